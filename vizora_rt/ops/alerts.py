"""The alerts, as a table, and the Prometheus rule file made of it.

    vizora-rt ops alerts --write

Each alert has a reason for its numbers, a runbook in ops/runbooks and unit tests in ops/prometheus/alerts_test.yml.
A rate alert has two forms under one name: `rate`, which a large fleet meets first, and `ratio`, which a small one does.
A third, `fleet`, is about all organisations together when each of them alone is too small for the other two.
A ratio is a product on the other side, so that nothing is ever divided by zero, and asks for a number of cases, so that
one screen in a quiet night wakes nobody.

Over 300 lines because it is a table of all alerts, with the reason of each number.
"""

import json
import re
import textwrap
from dataclasses import dataclass
from typing import Literal

JOB = "vizora-realtime"
"""The scrape job of prometheus.yml."""
GROUP = "vizora_realtime"
INTERVAL = "30s"
RUNBOOKS = "https://github.com/vizora/vizora-rt/blob/main/ops/runbooks/"
"""Where the pages can be read. `vizora-rt ops alerts --runbooks URL` sets another place."""

Severity = Literal["critical", "warning", "info"]
"""critical: screens are dark or soon will be, wake somebody. warning: look today. info: look when there is time."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One rule. `reason` says why these numbers; `form` tells two rules of one name apart."""

    name: str
    severity: Severity
    reason: str
    hold: str
    expr: str
    summary: str
    description: str
    form: str = ""


def _by(labels: str, expression: str) -> str:
    return f"sum by ({labels}) ({expression})"


_ROUTES = 'path!~"/health.*|/ws|/socket.io/"'
_ASKED = f"vizora_realtime_http_requests_total{{{_ROUTES}}}"
_FAILED = f'vizora_realtime_http_requests_total{{status=~"5..",{_ROUTES}}}'
_ONLINE = _by("job, organization_id", "vizora_realtime_devices_online")
_BEFORE = f"max_over_time({_ONLINE}[15m:1m])"
# An organisation whose worker went too has no figure at all: that is none online.
_GONE = f"{_BEFORE} - ({_ONLINE} or 0 * {_BEFORE})"

_DROPS = _by("job, organization_id", 'increase(vizora_realtime_ws_connections_total{status="disconnected"}[5m])')
_FEW_DROPS = _by("job", f"{_DROPS} <= 25")
_FEW_OPEN = _by("job", f"{_by('job, organization_id', 'vizora_realtime_ws_connections_active')} and {_DROPS} <= 25")
_RESTARTS = _by("job", 'increase(vizora_realtime_ws_disconnects_total{reason="restarting"}[5m])')

# fmt: off
ALERTS = (
    Alert("HighErrorRate", "warning",
          "The owner's threshold: 0.05 a second are 15 failures in five minutes. /health* answers 503 to say that "
          "Redis is away; that is an answer and no error (RedisDown is the alert for it). Handshakes that "
          "are refused have an alert of their own.",
          "5m",
          _by("job, instance", f"rate({_FAILED}[5m])")
          + " > 0.05",
          "High error rate detected",
          "Error rate of {{ $labels.instance }} is {{ $value | humanize }} per second", "rate"),
    Alert("HighErrorRate", "warning",
          "One request in twenty fails, of which there were at least five: a backend that calls seldom sees it too.",
          "5m",
          _by("job, instance", f"rate({_FAILED}[5m])")
          + " > 0.05 * " + _by("job, instance", f"rate({_ASKED}[5m])")
          + " and "
          + _by("job, instance", f"increase({_FAILED}[5m])")
          + " >= 5",
          "High share of errors detected",
          "More than 5 % of the requests to {{ $labels.instance }} fail, {{ $value | humanize }} per second", "ratio"),

    Alert("HeartbeatFailures", "warning",
          "The owner's threshold: 30 in five minutes. One screen sends 20 heartbeats in that time.",
          "5m",
          _by("job, instance", "rate(vizora_realtime_heartbeat_errors_total[5m])") + " > 0.1",
          "High heartbeat failure rate",
          "{{ $value | humanize }} heartbeats per second are refused or fail on {{ $labels.instance }}", "rate"),
    Alert("HeartbeatFailures", "warning",
          "One heartbeat in a hundred, and at least 25: more than one screen can send, so it is no single screen.",
          "5m",
          _by("job, instance", "rate(vizora_realtime_heartbeat_errors_total[5m])") + " > 0.01 * "
          + _by("job, instance", 'rate(vizora_realtime_ws_messages_total{type="heartbeat"}[5m])') + " and "
          + _by("job, instance", "increase(vizora_realtime_heartbeat_errors_total[5m])") + " > 25",
          "High share of heartbeats fails",
          "More than 1 % of the heartbeats on {{ $labels.instance }} fail, {{ $value | humanize }} per second",
          "ratio"),

    Alert("HighLatency", "warning",
          "The owner's threshold. Per route, so that a slow one does not hide behind a scrape every 15 s; of at least "
          "ten requests, because the 95th percentile of two is the slower one.",
          "5m",
          "histogram_quantile(0.95, "
          + _by("job, instance, path, le", "rate(vizora_realtime_http_request_duration_seconds_bucket[5m])")
          + ") > 0.5 and "
          + _by("job, instance, path", "increase(vizora_realtime_http_request_duration_seconds_count[5m])") + " >= 10",
          "P95 latency above 500ms",
          "95 % of the requests to {{ $labels.path }} on {{ $labels.instance }} take up to "
          "{{ $value | humanizeDuration }}"),

    Alert("ConnectionDrops", "info",
          "The owner's threshold. One screen cannot meet it: it is let in 30 times a minute (connections_per_minute).",
          "5m",
          _by("job, organization_id", 'rate(vizora_realtime_ws_connections_total{status="disconnected"}[5m])') + " > 1",
          "High connection drop rate",
          "{{ $value | humanize }} connections of {{ $labels.organization_id }} end per second", "rate"),
    Alert("ConnectionDrops", "info",
          "One connection in ten ends within five minutes, and over 25: a venue's network, or a firewall's timeout.",
          "5m",
          _by("job, organization_id", 'increase(vizora_realtime_ws_connections_total{status="disconnected"}[5m])')
          + " > 0.1 * " + _by("job, organization_id", "vizora_realtime_ws_connections_active") + " and "
          + _by("job, organization_id", 'increase(vizora_realtime_ws_connections_total{status="disconnected"}[5m])')
          + " > 25",
          "High share of connections drops",
          "{{ printf `%.0f` $value }} connections of {{ $labels.organization_id }} ended in 5 minutes, more than 10 %",
          "ratio"),
    Alert("ConnectionDrops", "info",
          "The same over all organisations in which too few end for the ratio: one in ten of their connections within "
          "five minutes, and over 25. It is what they share: a provider, a player release, a proxy. A restart of ours "
          "is none.",
          "5m",
          f"{_FEW_DROPS} > 0.1 * {_FEW_OPEN} and {_FEW_DROPS} > 25 unless {_RESTARTS} > 0.5 * {_FEW_DROPS}",
          "High share of connections drops over all organisations",
          "{{ printf `%.0f` $value }} connections of many organisations ended in 5 minutes, more than 10 %",
          "fleet"),

    Alert("HighMemoryUsage", "warning",
          "The owner's threshold, for each process: an idle device takes 6 KiB, so 1 GiB is no number of screens.",
          "10m",
          f'process_resident_memory_bytes{{job="{JOB}"}} > 1073741824',
          "Memory usage above 1GB",
          "{{ $labels.process }} on {{ $labels.instance }} uses {{ $value | humanize1024 }}B"),

    Alert("ServiceDown", "critical",
          "Four scrapes in a row failed, or nothing is scraped at all. A restart takes two seconds and a roll none. "
          "When no gateway answers, an alert without an instance says so: all others follow from it.",
          "1m",
          f'up{{job="{JOB}"}} == 0 or max by (job) (up{{job="{JOB}"}}) == 0 or absent(up{{job="{JOB}"}})',
          "The gateway does not answer",
          "Prometheus cannot scrape {{ or $labels.instance `any gateway` }}; screens show what they have, nothing new"),

    Alert("WorkerCrashLoop", "critical",
          "One worker that dies is replaced in a second. Three in ten minutes die of something that comes back.",
          "0m",
          _by("job, instance", 'increase(vizora_realtime_worker_restarts_total{reason=~"crash|hung|boot"}[10m])')
          + " > 2.5",
          "Workers die again and again",
          "{{ printf `%.0f` $value }} workers of {{ $labels.instance }} died or hung in 10 minutes"),

    Alert("RedisDown", "critical",
          "A worker cannot reach Redis for a minute. Reconnects take up to 2 s, a failover about 15. When no gateway "
          "reaches it, an alert without an instance says so.",
          "1m",
          "min by (job, instance) (vizora_realtime_redis_up) == 0 or "
          "max by (job) (min by (job, instance) (vizora_realtime_redis_up)) == 0",
          "Redis cannot be reached",
          "{{ or $labels.instance `Every gateway` }} has no Redis: plays and commands are refused, heartbeats are not "
          "stored"),

    Alert("EventLoopLag", "warning",
          "One timer in a hundred is 100 ms late. A healthy loop stays below 5 ms; the budget of a heartbeat is 2 ms.",
          "5m",
          "histogram_quantile(0.99, "
          + _by("job, instance, worker, le", "rate(vizora_realtime_eventloop_lag_seconds_bucket[5m])") + ") > 0.1",
          "An event loop is late",
          "Worker {{ $labels.worker }} of {{ $labels.instance }} is {{ $value | humanizeDuration }} late"),

    Alert("HeartbeatsRefused", "warning",
          "Over 1 % of an event is refused: players and gateway disagree on the protocol. At least 100 in 15 minutes: "
          "one screen sends 60 heartbeats in that time.",
          "15m",
          _by("job, type", 'rate(vizora_realtime_ws_messages_total{result="refused"}[15m])') + " > 0.01 * "
          + _by("job, type", "rate(vizora_realtime_ws_messages_total[15m])") + " and "
          + _by("job, type", 'increase(vizora_realtime_ws_messages_total{result="refused"}[15m])') + " > 100",
          "More than 1 % of an event is refused",
          "{{ $value | humanize }} messages {{ $labels.type }} per second are refused"),

    Alert("HandshakesRefused", "warning",
          "One screen that is refused comes back every 30 s, ten times in five minutes: it is more than three, or a "
          "dashboard that many have open, and it lasts. A worker that stops says so for seconds only.",
          "5m",
          _by("job, instance, code", "increase(vizora_realtime_ws_handshakes_rejected_total[5m])") + " > 30",
          "Opening handshakes are refused",
          "{{ printf `%.0f` $value }} handshakes were refused by {{ $labels.instance }} in 5 minutes: "
          "{{ $labels.code }}"),

    Alert("FieldsIgnored", "info",
          "One message in ten has a field that we do not know or cannot read: a new player release. Nothing is lost "
          "but the field. At least 100, as above.",
          "30m",
          _by("job, type, why", "rate(vizora_realtime_ws_fields_ignored_total[15m])")
          + " > on (job, type) group_left () 0.1 * "
          + _by("job, type", "rate(vizora_realtime_ws_messages_total[15m])") + " and "
          + _by("job, type, why", "increase(vizora_realtime_ws_fields_ignored_total[15m])") + " > 100",
          "Players send fields that are ignored",
          "{{ $value | humanize }} fields per second of {{ $labels.type }} are ignored: {{ $labels.why }}"),

    Alert("DevicesOffline", "warning",
          "A quarter of an organisation's screens, and at least five, went offline within 15 minutes and stayed so. "
          "A closing time is the same to a figure: mute those hours in Alertmanager.",
          "5m",
          f"{_GONE} > 4.5 and {_GONE} > 0.25 * {_BEFORE}",
          "Many screens of an organisation went offline",
          "{{ printf `%.0f` $value }} screens of {{ $labels.organization_id }} went offline within 15 minutes"),

    Alert("PlaysMissing", "warning",
          "Plays that players numbered and did not deliver: over 1 % of six hours' plays, and over 100. Players "
          "deliver late after an outage, so it must last.",
          "30m",
          _by("job, organization_id", "vizora_realtime_content_impressions_missing") + " > 0.01 * "
          + _by("job, organization_id", "increase(vizora_realtime_content_impressions_total[6h])") + " and "
          + _by("job, organization_id", "vizora_realtime_content_impressions_missing") + " > 100",
          "Proof of play is missing",
          "{{ printf `%.0f` $value }} plays of {{ $labels.organization_id }} were numbered and never came"),

    Alert("SlowConsumers", "warning",
          "Over 1 % of the connections are closed as too slow within 15 minutes, and over 30: one screen can be that "
          "slow every 30 s and no faster.",
          "5m",
          _by("job, instance", 'increase(vizora_realtime_ws_disconnects_total{reason="slow_consumer"}[15m])')
          + " > 0.01 * " + _by("job, instance", "vizora_realtime_ws_connections_active") + " and "
          + _by("job, instance", 'increase(vizora_realtime_ws_disconnects_total{reason="slow_consumer"}[15m])')
          + " > 30",
          "Clients read too slowly",
          "{{ printf `%.0f` $value }} connections of {{ $labels.instance }} were closed as too slow in 15 minutes"),

    Alert("ConnectionsNearLimit", "warning",
          "85 % of what all workers together take: the last 15 % are a node's worth of reconnects.",
          "10m",
          _by("job, instance", "vizora_realtime_ws_connections_active")
          + " > 0.85 * " + _by("job, instance", "vizora_realtime_ws_connections_limit"),
          "Connections near the limit",
          "{{ $labels.instance }} has {{ $value | humanize }} connections, more than 85 % of its limit"),

    Alert("CommandsExpiring", "warning",
          "One command in five expires unread, and over twenty did. A screen that is switched off and is sent one each "
          "minute makes fifteen.",
          "15m",
          _by("job, type", 'increase(vizora_realtime_commands_total{state="expired"}[15m])') + " > 0.2 * "
          + _by("job, type", 'increase(vizora_realtime_commands_total{state="queued"}[15m])') + " and "
          + _by("job, type", 'increase(vizora_realtime_commands_total{state="expired"}[15m])') + " > 20",
          "Commands expire before screens take them",
          "{{ printf `%.0f` $value }} commands {{ $labels.type }} expired in 15 minutes"),

    Alert("StoreMemory", "warning",
          "2 GiB: ten times what 1,000,000 plays and 10,000 devices take. Set it to 80 % of your Redis' maxmemory.",
          "10m",
          "max by (job, instance) (vizora_realtime_redis_memory_bytes) > 2147483648",
          "Redis uses much memory",
          "The Redis of {{ $labels.instance }} uses {{ $value | humanize1024 }}B"),

    Alert("RedisEvicts", "warning",
          "Any maxmemory-policy but noeviction, for a minute: with its memory full Redis deletes commands, plays and "
          "revocations, and no error tells it.",
          "1m",
          "max by (job, instance) (vizora_realtime_redis_evicts) == 1",
          "Redis may delete keys",
          "The Redis of {{ $labels.instance }} has a maxmemory-policy that deletes keys when its memory is full"),

    Alert("PlaysBacklog", "warning",
          "Half of plays.max_entries (1,000,000) waits for a reader. When all of it does, plays are refused.",
          "15m",
          "max by (job, group) (vizora_realtime_plays_backlog) > 500000",
          "A reader of plays is behind",
          "The group {{ $labels.group }} has {{ $value | humanize }} plays still to read"),

    Alert("DuplicateIdentity", "warning",
          "Two screens with one identity evict each other for ever. A network that comes back supersedes as many "
          "connections, but once: it must last.",
          "20m",
          _by("job", 'increase(vizora_realtime_ws_disconnects_total{reason="superseded"}[10m])') + " > 20",
          "Screens with the same identity evict each other",
          "{{ printf `%.0f` $value }} connections were superseded in 10 minutes, and it goes on"),

    Alert("DeviceSeriesCapped", "info",
          "Devices beyond metrics.max_device_series share one series: per-device panels lack them.",
          "0m",
          _by("job, instance", 'increase(vizora_realtime_limits_exceeded_total{limit="max_device_series"}[15m])')
          + " > 0",
          "More devices than device series",
          "{{ $labels.instance }} has more devices than metrics.max_device_series; the rest share device_id=other"),
)
# fmt: on


def render(runbooks: str = RUNBOOKS) -> str:
    """ops/prometheus/alerts.yml."""
    head = f"""\
# Made by `vizora-rt ops alerts --write` from vizora_rt/ops/alerts.py; change it there.
groups:
  - name: {GROUP}
    interval: {INTERVAL}
    rules:
"""
    return head + "".join(_rule(alert, runbooks) for alert in ALERTS)


def _rule(alert: Alert, runbooks: str) -> str:
    reason = textwrap.indent(textwrap.fill(alert.reason, 108), "      # ")
    form = f"\n          form: {alert.form}" if alert.form else ""
    annotations = {
        "summary": alert.summary,
        "description": alert.description,
        "runbook_url": f"{runbooks}{alert.name}.md",
    }
    parts = re.sub(r" (and|or|unless) (?=sum|max|absent)", r"\n          \1 ", alert.expr)
    # A JSON string is a YAML string.
    texts = "".join(f"          {key}: {json.dumps(text)}\n" for key, text in annotations.items())
    return f"""
{reason}
      - alert: {alert.name}
        expr: >-
          {parts}
        for: {alert.hold}
        labels:
          severity: {alert.severity}{form}
        annotations:
{texts}"""
