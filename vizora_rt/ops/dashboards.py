"""What the dashboards show: three audiences, rows of panels, and each panel's queries. `grafana.py` makes JSON of it.

    fleet      the business: which screens play, and what
    service    operations: does the gateway serve, and what stands in its way
    internals  developers: where does the time go

The panels that the owner asked for are here under their titles. Each shows sums: a quotient of two unsummed rates
divides every series by itself and hides failures. `$organization` is what the reader chose, `$__rate_interval` a window
that Grafana fits to the zoom.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["graph", "stat", "table"]

RATE = "$__rate_interval"
ORGANIZATION = 'organization_id=~"$organization"'
JOB = 'job="vizora-realtime"'


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what a line is called: `{{label}}` is replaced."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit` is Grafana's name of it; `about` is what the reader should know."""

    title: str
    unit: str
    about: str
    queries: tuple[Query, ...]
    kind: Kind = "graph"


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    uid: str
    title: str
    about: str
    rows: tuple[Row, ...]
    organizations: bool = False
    """Whether the reader can choose organisations."""


def _graph(title: str, unit: str, about: str, *queries: tuple[str, str]) -> Panel:
    return Panel(title, unit, about, tuple(Query(expr, legend) for expr, legend in queries))


def _stat(title: str, unit: str, about: str, *queries: tuple[str, str]) -> Panel:
    return Panel(title, unit, about, tuple(Query(expr, legend) for expr, legend in queries), "stat")


def _table(title: str, unit: str, about: str, *queries: tuple[str, str]) -> Panel:
    return Panel(title, unit, about, tuple(Query(expr, legend) for expr, legend in queries), "table")


def _rate(family: str, by: str, matchers: str = "", suffix: str = "") -> str:
    inner = f"rate(vizora_realtime_{family}{suffix}{{{matchers}}}[{RATE}])" if matchers else ""
    return f"sum by ({by}) ({inner or f'rate(vizora_realtime_{family}{suffix}[{RATE}])'})"


def _quantile(share: float, family: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, {_rate(family, labels, suffix='_bucket')})"


# fmt: off
FLEET = Dashboard(
    "vizora-fleet", "Vizora: fleet", "Which screens are on, and what they played.", (
        Row("Screens", (
            _stat("Device Status", "short", "Screens with a connection, of those that have a series of their own.",
                  ("sum(vizora_realtime_device_status == 1) or vector(0)", "online")),
            _stat("Active Devices", "short", "Screens with a connection, all of them: exact, never capped.",
                  (f"sum(vizora_realtime_devices_online{{{ORGANIZATION}}}) or vector(0)", "online")),
            _stat("Known screens", "short", "Screens that were online within the hour.",
                  ("sum(vizora_realtime_devices_known)", "known")),
            _graph("Screens online", "short", "A step down in one line: that organisation's network or power.",
                   (f"sum by (organization_id) (vizora_realtime_devices_online{{{ORGANIZATION}}})",
                    "{{organization_id}}")),
            _table("Screens offline", "short",
                   "On no node, for less than an hour; after it a screen leaves this list.",
                   (f"max by (organization_id, device_id) (vizora_realtime_device_status{{{ORGANIZATION}}}) == 0",
                    "{{organization_id}} {{device_id}}")),
            _graph("Busiest screens", "percent", "CPU as the screens report it: at 100 videos stutter.",
                   (f"topk(10, vizora_realtime_device_cpu_usage{{{ORGANIZATION}}})",
                    "{{organization_id}} {{device_id}}")),
            _graph("Fullest screens", "percent", "Memory as the screens report it.",
                   (f"topk(10, vizora_realtime_device_memory_usage{{{ORGANIZATION}}})",
                    "{{organization_id}} {{device_id}}")),
        )),
        Row("Proof of play", (
            _graph("Plays", "ops", "Plays recorded, each once.",
                   (_rate("content_impressions_total", "organization_id", ORGANIZATION), "{{organization_id}}")),
            _graph("Plays missing", "short", "Numbered by players and not delivered yet.",
                   (f"sum by (organization_id) (vizora_realtime_content_impressions_missing{{{ORGANIZATION}}})",
                    "{{organization_id}}")),
            _graph("Plays sent twice", "ops", "Known already: players repeat what was not acked. Harmless.",
                   (_rate("content_impressions_duplicate_total", "organization_id", ORGANIZATION),
                    "{{organization_id}}")),
            _graph("Plays still to read", "short", "By consumer group; refused when all of plays.max_entries waits.",
                   ("max by (group) (vizora_realtime_plays_backlog)", "{{group}}")),
            _graph("Content errors", "ops", "What screens could not play, by what they say of it.",
                   (_rate("content_errors_total", "error_type"), "{{error_type}}")),
        )),
        Row("Commands and playlists", (
            _graph("Commands", "ops", "By the state that they reached: queued, sent, acked, failed, expired.",
                   (_rate("commands_total", "state"), "{{state}}")),
            _graph("Commands that did not arrive", "ops", "Failed on the screen, or expired before it was acked.",
                   (_rate("commands_total", "type, state", 'state=~"failed|expired"'), "{{type}} {{state}}")),
            _graph("Time to ack", "s", "From the sent command to the screen's ack.",
                   (_quantile(0.5, "command_ack_duration_seconds"), "median"),
                   (_quantile(0.95, "command_ack_duration_seconds"), "95 %")),
        )),
    ), organizations=True)

SERVICE = Dashboard(
    "vizora-service", "Vizora: service", "Does the gateway serve, and what stands in its way.", (
        Row("Now", (
            _stat("Up", "short", "Nodes that answer scrapes.", (f"sum(up{{{JOB}}})", "nodes")),
            _stat("Workers", "short", "All ready is good; hung ones are being replaced.",
                  ("sum by (state) (vizora_realtime_workers)", "{{state}}")),
            _stat("Redis", "short", "1 when every worker of the node reaches it.",
                  ("min by (instance) (vizora_realtime_redis_up)", "{{instance}}")),
            _table("Builds", "short", "What runs where.",
                   ("sum by (instance, version, python, commit) (vizora_realtime_build_info)",
                    "{{instance}} {{version}} {{python}} {{commit}}")),
            _graph("Workers replaced", "short", "Rolls are intended; crashes, hangs and failed boots are not.",
                   ("sum by (reason) (increase(vizora_realtime_worker_restarts_total[10m]))", "{{reason}}")),
        )),
        Row("Connections", (
            _graph("WebSocket Connections", "short", "Open connections, by kind, and what all workers would take.",
                   ("sum by (kind) (vizora_realtime_ws_connections_active)", "{{kind}}"),
                   ("sum(vizora_realtime_ws_connections_limit)", "limit")),
            _graph("Connections by organisation", "short", "The ten largest.",
                   ("topk(10, sum by (organization_id) (vizora_realtime_ws_connections_active))",
                    "{{organization_id}}")),
            _graph("Connections come and go", "ops", "A wave of both: a network that came back.",
                   (_rate("ws_connections_total", "status"), "{{status}}")),
            _graph("Drops by organisation", "ops", "The ten with most disconnects.",
                   ("topk(10, " + _rate("ws_connections_total", "organization_id", 'status="disconnected"') + ")",
                    "{{organization_id}}")),
            _graph("Closed by the gateway", "ops", "By the close code's name.",
                   (_rate("ws_disconnects_total", "reason"), "{{reason}}")),
            _graph("Handshakes refused", "ops", "AUTH_*: tokens. OVERLOADED, DRAINING: they come back.",
                   (_rate("ws_handshakes_rejected_total", "code"), "{{code}}")),
            _graph("Handshakes that wait", "short", "Over the budget: a fleet comes back.",
                   ("sum(vizora_realtime_ws_handshakes_waiting)", "waiting")),
        )),
        Row("Heartbeats", (
            _graph("Heartbeat Success Rate", "percent", "Of all heartbeats of all screens.",
                   (f'sum(rate(vizora_realtime_heartbeat_total{{success="true"}}[{RATE}])) / '
                    f"(sum(rate(vizora_realtime_heartbeat_total[{RATE}])) > 0) * 100", "success")),
            _graph("Heartbeat Rate", "ops", "Taken and not.",
                   (_rate("heartbeat_total", "success"), "success={{success}}")),
            _graph("Heartbeat errors", "ops", "Why heartbeats were refused or failed.",
                   (_rate("heartbeat_errors_total", "reason"), "{{reason}}")),
            _table("Screens with failing heartbeats", "ops", "The ten worst.",
                   ("topk(10, " + _rate("heartbeat_total", "device_id", 'success="false"') + ") > 0",
                    "{{device_id}}")),
        )),
        Row("HTTP", (
            _graph("P95 Latency", "s", "Without the wait for a device's ack.",
                   (_quantile(0.95, "http_request_duration_seconds", "path"), "{{path}}")),
            _graph("Average Latency", "s", "Of all requests.",
                   (f"sum(rate(vizora_realtime_http_request_duration_seconds_sum[{RATE}])) / "
                    f"(sum(rate(vizora_realtime_http_request_duration_seconds_count[{RATE}])) > 0)", "average")),
            _graph("Error Rate", "ops", "503 of /health* says that Redis is away; it is an answer.",
                   (_rate("http_requests_total", "status", 'status=~"5.."'), "{{status}}")),
            _table("Top Error Endpoints", "ops", "Routes with most 5xx.",
                   ("topk(5, " + _rate("http_requests_total", "method, path, status", 'status=~"5.."') + ") > 0",
                    "{{method}} {{path}} {{status}}")),
            _graph("Requests", "ops", "By status; a wrong key of the control API or of /metrics also by itself.",
                   (_rate("http_requests_total", "status"), "{{status}}"),
                   (_rate("http_wrong_keys_total", "key") + " > 0", "wrong key: {{key}}")),
        )),
        Row("Resources", (
            _graph("Memory Usage", "mbytes", "Each process; an idle screen takes about 6 KiB.",
                   (f"sum by (instance, process) (process_resident_memory_bytes{{{JOB}}}) / 1024 / 1024",
                    "{{instance}} {{process}}")),
            _graph("Memory Growth", "Bps", "Over an hour; a line that stays above 0 all day is a leak.",
                   (f"sum by (process) (deriv(process_resident_memory_bytes{{{JOB}}}[1h]))", "{{process}}")),
            _graph("CPU", "percentunit", "1 is a full core; a worker has one.",
                   (f"sum by (process) (rate(process_cpu_seconds_total{{{JOB}}}[{RATE}]))", "{{process}}")),
            _graph("Descriptors", "percentunit", "Of what the process may open.",
                   (f"max by (process) (process_open_fds{{{JOB}}}) / max by (process) (process_max_fds{{{JOB}}})",
                    "{{process}}")),
            _graph("Redis memory", "bytes", "As Redis says.",
                   ("max by (instance) (vizora_realtime_redis_memory_bytes)", "{{instance}}")),
            _graph("Limits met", "ops", "Each is a key of config.toml with a reason for its number.",
                   (_rate("limits_exceeded_total", "limit") + " > 0", "{{limit}}")),
        )),
    ))

INTERNALS = Dashboard(
    "vizora-internals", "Vizora: internals", "Where the time goes.", (
        Row("Messages", (
            _graph("Messages", "ops", "By event.", (_rate("ws_messages_total", "type"), "{{type}}")),
            _graph("Messages not taken", "ops", "Refused: the sender's fault or a limit. Failed: ours.",
                   (_rate("ws_messages_total", "type, result", 'result!="ok"') + " > 0", "{{type}} {{result}}")),
            _graph("Time per message, 99 %", "s", "From the decoded message to the queued reply.",
                   (_quantile(0.99, "ws_message_duration_seconds", "type"), "{{type}}")),
            _graph("Time per heartbeat", "s", "The hot path.",
                   (_quantile(0.5, "heartbeat_duration_seconds"), "median"),
                   (_quantile(0.99, "heartbeat_duration_seconds"), "99 %")),
            _graph("Time per handshake", "s", "With the token verified and Redis asked.",
                   (_quantile(0.5, "ws_handshake_duration_seconds"), "median"),
                   (_quantile(0.99, "ws_handshake_duration_seconds"), "99 %")),
            _graph("Fields ignored", "ops", "Unknown, or of a wrong type: a player release.",
                   (_rate("ws_fields_ignored_total", "type, why"), "{{type}} {{why}}")),
            _graph("Bytes", "Bps", "Read from and written to clients.",
                   (_rate("ws_bytes_total", "direction"), "{{direction}}")),
            _graph("Unsent bytes", "bytes", "What waits for clients to read.",
                   ("sum by (worker) (vizora_realtime_ws_send_queue_bytes)", "worker {{worker}}")),
            _graph("Notices dropped", "ops", "For clients that read too slowly, by event.",
                   (_rate("ws_notices_dropped_total", "kind"), "{{kind}}")),
        )),
        Row("Redis", (
            _graph("Redis operations", "ops", "By operation.", (_rate("redis_operations_total", "operation"),
                                                                "{{operation}}")),
            _graph("Redis errors", "ops", "By operation.",
                   (_rate("redis_operations_total", "operation", 'result="error"'), "{{operation}}")),
            _graph("Redis latency, 99 %", "s", "From the queued command to its reply.",
                   (_quantile(0.99, "redis_operation_duration_seconds", "operation"), "{{operation}}")),
            _graph("Pipeline", "short", "Commands that wait for a reply.",
                   ("sum by (worker) (vizora_realtime_redis_pipeline_depth)", "worker {{worker}}")),
        )),
        Row("Event loops", (
            _graph("Event loop lag, 99 %", "s", "How late timers run.",
                   (_quantile(0.99, "eventloop_lag_seconds", "worker"), "worker {{worker}}")),
            _graph("Event loop lag, largest", "s", "Of the last minute.",
                   ("max by (worker) (vizora_realtime_eventloop_lag_seconds_max)", "worker {{worker}}")),
            _graph("Garbage collection", "percentunit", "Share of the time, by generation.",
                   (_rate("gc_duration_seconds", "generation", suffix="_sum"), "{{generation}}")),
            _graph("Event loop lag, under the old name", "s", "For whoever compares with the service before.",
                   ("max by (worker) (nodejs_eventloop_lag_seconds)", "worker {{worker}}")),
            _graph("Garbage collection, under the old name", "percentunit", "By kind, as Node told it.",
                   (f"sum by (kind) (rate(nodejs_gc_duration_seconds_sum[{RATE}]))", "{{kind}}")),
        )),
        Row("Processes", (
            _graph("CPU in user code", "percentunit", "Ours.",
                   (f"sum by (process) (rate(process_cpu_user_seconds_total{{{JOB}}}[{RATE}]))", "{{process}}")),
            _graph("CPU in the kernel", "percentunit", "Reading and writing sockets.",
                   (f"sum by (process) (rate(process_cpu_system_seconds_total{{{JOB}}}[{RATE}]))", "{{process}}")),
            _graph("Virtual memory", "bytes", "Address space, not memory.",
                   (f"max by (process) (process_virtual_memory_bytes{{{JOB}}})", "{{process}}")),
            _graph("Age", "s", "Since the process began.",
                   (f"time() - max by (process) (process_start_time_seconds{{{JOB}}})", "{{process}}")),
        )),
        Row("What observes", (
            _graph("Scrapes without a worker", "short", "Workers that did not answer in 250 ms: figures are older.",
                   ("max by (instance) (vizora_realtime_scrape_workers_missing)", "{{instance}}")),
            _graph("Scrape duration", "s", "As Prometheus sees it.",
                   (f"max by (instance) (scrape_duration_seconds{{{JOB}}})", "{{instance}}")),
            _graph("Series", "short", "Samples of a scrape: flat, whatever clients send.",
                   (f"max by (instance) (scrape_samples_scraped{{{JOB}}})", "{{instance}}")),
            _graph("Events not sent to Sentry", "ops", "By why.",
                   (_rate("sentry_dropped_total", "why"), "{{why}}")),
        )),
    ))
# fmt: on

DASHBOARDS = (FLEET, SERVICE, INTERNALS)
