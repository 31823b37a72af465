"""What the owner asked for, as data: queries and panels as written, and the lists of the production checklist."""

PANELS = {
    "WebSocket Connections": "vizora_realtime_ws_connections_active",
    "Heartbeat Success Rate": (
        'rate(vizora_realtime_heartbeat_total{success="true"}[5m]) /\nrate(vizora_realtime_heartbeat_total[5m]) * 100'
    ),
    "P95 Latency": ("histogram_quantile(0.95, \n  rate(vizora_realtime_http_request_duration_seconds_bucket[5m])\n)"),
    "Error Rate": 'rate(vizora_realtime_http_requests_total{status=~"5.."}[5m])',
    "Memory Usage": "process_resident_memory_bytes / 1024 / 1024",
    "Device Status": "sum(vizora_realtime_device_status == 1)",
}

QUERIES = {
    "Active Devices": "sum(vizora_realtime_device_status == 1)",
    "Heartbeat Rate": "rate(vizora_realtime_heartbeat_total[1m])",
    "Average Latency": (
        "rate(vizora_realtime_http_request_duration_seconds_sum[5m]) /\n"
        "rate(vizora_realtime_http_request_duration_seconds_count[5m])"
    ),
    "Top Error Endpoints": 'topk(5, rate(vizora_realtime_http_requests_total{status=~"5.."}[5m]))',
    "Memory Growth": "deriv(process_resident_memory_bytes[1h])",
}

ALERTS = {
    "HighErrorRate": 'rate(vizora_realtime_http_requests_total{status=~"5.."}[5m]) > 0.05',
    "HeartbeatFailures": "rate(vizora_realtime_heartbeat_errors_total[5m]) > 0.1",
    "HighLatency": ("histogram_quantile(0.95, rate(vizora_realtime_http_request_duration_seconds_bucket[5m])) > 0.5"),
    "ConnectionDrops": 'rate(vizora_realtime_ws_connections_total{status="disconnected"}[5m]) > 1',
    "HighMemoryUsage": "process_resident_memory_bytes > 1073741824",
}

METRICS = (
    "vizora_realtime_ws_connections_total", "vizora_realtime_ws_connections_active",
    "vizora_realtime_ws_messages_total", "vizora_realtime_ws_message_duration_seconds",
    "vizora_realtime_heartbeat_total", "vizora_realtime_heartbeat_duration_seconds",
    "vizora_realtime_heartbeat_errors_total", "vizora_realtime_content_impressions_total",
    "vizora_realtime_content_errors_total", "vizora_realtime_device_status", "vizora_realtime_device_cpu_usage",
    "vizora_realtime_device_memory_usage", "vizora_realtime_http_requests_total",
    "vizora_realtime_http_request_duration_seconds", "vizora_realtime_redis_operations_total",
    "vizora_realtime_redis_operation_duration_seconds", "process_cpu_user_seconds_total",
    "process_resident_memory_bytes", "nodejs_eventloop_lag_seconds", "nodejs_gc_duration_seconds",
)  # fmt: skip

CHECKLIST = {
    "Sentry": (
        "Set production DSN", "Configure release tracking", "Set up alerts", "Enable user feedback",
        "Configure source maps",
    ),
    "Prometheus": (
        "Configure scrape interval (15s recommended)", "Set up retention (15d minimum)",
        "Enable remote write (for long-term storage)", "Configure service discovery", "Set up backup/HA",
    ),
    "Grafana": (
        "Create comprehensive dashboards", "Set up user access", "Configure notifications", "Enable SSL",
        "Set up backup",
    ),
    "Alerting": (
        "Configure Alertmanager", "Set up notification channels (Slack, email, PagerDuty)",
        "Define escalation policies", "Test alert delivery", "Document on-call procedures",
    ),
}  # fmt: skip

PRACTICES = {
    "Set Baselines": "Run load tests to establish normal metrics",
    "Alert Fatigue": "Start with high thresholds, tune down gradually",
    "Dashboards": "Create dashboards for different audiences (ops, devs, business)",
    "Documentation": "Document what each alert means and how to resolve it",
    "Regular Review": "Review and update alerts monthly",
    "Incident Response": "Use metrics to diagnose issues during incidents",
    "Capacity Planning": "Use trends to predict scaling needs",
}

TROUBLESHOOTING = {
    "Sentry Not Receiving Events": (
        "Check DSN is correct", "Verify `NODE_ENV` (dev events are filtered by default)",
        "Check network connectivity to sentry.io", "Enable `SENTRY_DEBUG=true`",
    ),
    "Prometheus Metrics Not Showing": (
        "Verify service is running on correct port", "Check `/metrics` endpoint is accessible",
        "Verify Prometheus scrape config", "Check Prometheus targets page",
    ),
    "High Memory Usage": (
        "Check for memory leaks in logs", "Monitor GC metrics", "Review connection pool sizes",
        "Consider horizontal scaling",
    ),
}  # fmt: skip
