"""docs/metrics.md: every metric of the registry, with its labels and their values.

vizora-rt ops metrics --write
"""

from vizora_rt.telemetry.metrics import BOUNDS, FAMILIES, Family, Label

HEAD = """\
# Metrics

Made by `vizora-rt ops metrics --write` from the registry in `vizora_rt/telemetry/metrics.py`; change it there.

`GET /metrics` answers in the Prometheus text format or in OpenMetrics, as `Accept` asks. Prometheus adds `job` and
`instance`. Values of closed labels are listed; nothing that a client sends makes another one. Open labels are bounded:
`organization_id` of counters by `metrics.max_organization_series` and `device_id` by `metrics.max_device_series`, past
which they are `other`; `worker`, `process` and `group` by what runs.

A scrape asks every worker for its newest figures. A counter does not fall while the service runs: not when a device
moves between workers, and not when a worker is replaced, dies or hangs. A worker that is killed loses what it counted
since its last report, at most a second of it. A device's counter ends an hour after its last connection to the node; a
restart of the service begins all counters anew. A gauge counts what is connected now: of a worker that died, nothing.

Histograms have `_bucket`, `_sum` and `_count`. All have the same bounds, in seconds:
{bounds}.
"""

GROUPS = (
    ("WebSocket", "ws_"),
    ("Heartbeats", "heartbeat_"),
    ("Content", ("content_", "plays_")),
    ("Devices", ("device_", "devices_")),
    ("Commands", "command"),
    ("HTTP", "http_"),
    ("Redis", "redis_"),
    ("The service", ("limits_", "eventloop_", "gc_", "worker", "scrape_", "sentry_", "build_")),
    ("Processes", "process_"),
    ("Names of the service before", "nodejs_"),
)


def render() -> str:
    """The whole page."""
    parts = [HEAD.format(bounds=", ".join(f"`{bound}`" for bound in BOUNDS))]
    for title, prefixes in GROUPS:
        parts.append(f"\n## {title}\n")
        parts += [_family(family) for family in FAMILIES if family.name.startswith(prefixes)]
    return "".join(parts)


def _family(family: Family) -> str:
    lines = [f"\n### `{family.full_name}`\n", f"\n{family.kind.capitalize()}. {family.help}\n"]
    if family.labels:
        lines += ["\n| label | values |\n", "|---|---|\n"]
        lines += [f"| `{label.name}` | {_values(label)} |\n" for label in family.labels]
    return "".join(lines)


def _values(label: Label) -> str:
    if label.values is None:
        return "open, capped" if label.capped or label.name == "device_id" else "open"
    return " ".join(f"`{value}`" for value in label.values)
