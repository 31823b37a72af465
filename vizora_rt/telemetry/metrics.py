"""Every metric, declared once, and a worker's accumulators. The only `prometheus_client`.

`REGISTRY` is the one list of families, labels and label values: code, alerts, dashboards and docs are checked against
it. `Metrics` is what a worker counts into; `exposition.Totals` sums the workers. A hot path holds its `Cell` or `Timer`
and adds integers; label values are looked up once. Durations are integer nanoseconds until they are rendered.

Past 300 lines because the registry is a table.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain, product
from typing import Any, Literal

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS
from prometheus_client.utils import floatToGoString

from vizora_rt import config
from vizora_rt.app import commands, content_errors
from vizora_rt.errors import CLOSES, HANDSHAKE_REFUSALS

PREFIX = "vizora_realtime_"

OTHER = "other"
"""What is past a cap, or in no closed set."""
UNKNOWN = "unknown"

BOUNDS_NS = tuple(step * 10**power // 10 for power in range(3, 10) for step in (10, 25, 50))
"""Upper bounds of all histograms, 1 us to 5 s: about three a decade, the same everywhere, so that they compare."""
BOUNDS = (*(str(floatToGoString(bound / 1e9)) for bound in BOUNDS_NS), "+Inf")  # type: ignore[no-untyped-call]
"""The same as values of the label `le`, in the one spelling that OpenMetrics takes."""
SLOTS = len(BOUNDS) + 1
"""Integers of one Timer: a count per bucket, then the sum."""

MAX_CHILDREN_AT_START = 100
"""A closed family up to this size has all its children from the start, at 0: an alert sees 0 and not absence."""
MAX_GROUPS = 32
"""Consumer groups of the plays stream that get a series. Backends make them, a handful."""

MAX_REFUSED = 10_000
"""Organisations past the cap that are remembered, so that each is counted once: ten times the default cap, 1 MB."""

Kind = Literal["counter", "gauge", "histogram"]
Origin = Literal["worker", "supervisor", "device", "process", "alias"]
Combine = Literal["sum", "max", "min"]


@dataclass(frozen=True, slots=True)
class Label:
    """A label and its closed set of values. Without a set it is open: then `capped`, or bounded by what fills it in.

    `fallback` stands for what peers sent and the set lacks.
    """

    name: str
    values: tuple[str, ...] | None = None
    fallback: str = ""
    capped: bool = False

    def known(self, value: str) -> str:
        """`value` when it is in the set, else the fallback: the way from what a peer sent to a label value."""
        return value if self.values is not None and value in self.values else self.fallback


# fmt: off
RESULTS = ("ok", "refused", "failed")
"""Taken; refused for a reason of the sender's or a limit's; failed by a fault of ours."""

EVENT = Label("type", (
    "heartbeat", "content:impression", "content:impressions", "content:error", "playlist:request",
    "screenshot:response", "join:organization", "join:room", "leave:room", "ack", "error", UNKNOWN,
))
"""What clients send (docs/protocol.md, "From clients"). `error` is what was no message at all."""

NOTICE = Label("kind", (
    "config", "playlist:update", "command", "token:refresh", "device:revoked", "tenant:suspended", "tenant:resumed",
    "device:status", "device:status:batch", "joined:organization", "notification:new", "screenshot:ready",
    "session:expired", "server:shutdown", "error", OTHER,
), OTHER)
"""What the server sends (docs/protocol.md, "To clients")."""

COMMAND = Label("type", (*commands.TYPES, commands.PLAYLIST, commands.TOKEN, UNKNOWN), UNKNOWN)
"""The playlist update and the new token lie in the same ledger as commands."""
COMMAND_STATES = ("queued", "sent", "acked", "failed", "expired")

HEARTBEAT_ERRORS = ("invalid_payload", "not_allowed", "store", "fault")
CONTENT_ERROR = Label("error_type", (*content_errors.TYPES, UNKNOWN))

METHOD = Label("method", ("GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS", OTHER), OTHER)
PATH = Label("path", (
    "/metrics", "/internal/metrics", "/health", "/health/live", "/health/ready", "/status", "/push/playlist",
    "/push/content", "/commands/broadcast", "/internal/command", "/commands/{commandId}", "/notifications/broadcast",
    "/internal/device-revoked", "/internal/tenant-entitlement", "/internal/token-refresh", "/devices/{id}",
    "/organizations/{id}/devices", "/devices/{id}/plays", "/screenshots/{requestId}", "/ws", "/socket.io/", "*",
    "unmatched",
))
"""Route patterns, never paths: what no route takes is `unmatched`."""
STATUSES = tuple(map(str, (
    200, 202, 204, 400, 401, 403, 404, 405, 408, 409, 413, 414, 426, 429, 431, 500, 503, 504, 505,
)))

OPERATION = Label("operation", (
    "get", "set", "exists", "zadd", "expire", "eval_claim", "eval_release", "eval_offline", "eval_confirm",
    "eval_renew", "eval_look", "eval_settle", "eval_enqueue", "eval_replace", "eval_current", "eval_states",
    "eval_happened", "eval_idempotency", "eval_screenshot", "eval_play", "eval_content_error",
    "eval_event", "eval_backlog", "eval_missing", "eval_listed", "eval_live", "eval_lease", "eval_bury", "eval_sweep",
    "eval_expire", "sadd", "sscan", "zscan", "zrange", "publish", "xadd", "ping", "info", OTHER,
))

LIMITS = (
    *config.LimitSettings.__struct_fields__,
    "max_device_series", "max_organization_series", "pending_commands", "pending_bytes",
    "header_fields", "body_chunks", "unfinished_bytes", "unidentified_per_second",
    "commands_waiting", "command_states", "plays_boots", "plays_holes", "plays_entries", "plays_share",
)
"""The keys of [limits], then limits that are keys of other sections or constants."""

SHARD = Label("shard", (*map(str, range(32)), OTHER), OTHER)
"""The shards of a Redis Cluster, by the order of their slots. Those of more than 32 share a value: the worst."""

WORKER_STATES = ("starting", "ready", "hung", "draining")
RESTART_REASONS = ("crash", "hung", "boot", "roll")
SENTRY_DROPS = ("rate", "fingerprints", "queue", "quota", "network", "ignored", "development")
NODE_GC_KINDS = ("minor", "major", "incremental", "weakcb")
# fmt: on

ORGANIZATION = Label("organization_id", capped=True)
EVERY_ORGANIZATION = Label("organization_id")
DEVICE = Label("device_id")
WORKER = Label("worker")
PROCESS = Label("process")
GROUP = Label("group", capped=True)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family. `name` has no prefix; `origin` says who fills it.

    `combine` says how the gauges of several processes become one. A value of a family in seconds is held in integer
    nanoseconds. The label `worker` is filled in by whoever sums the workers.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    origin: Origin = "worker"
    combine: Combine = "sum"

    @property
    def full_name(self) -> str:
        """The name of the samples (of a histogram: without `_bucket` and its like)."""
        return self.name if self.name.startswith(("process_", "nodejs_")) else PREFIX + self.name

    @property
    def openmetrics_name(self) -> str:
        """The family's name in OpenMetrics, where `_total` belongs to the sample only."""
        return self.full_name.removesuffix("_total") if self.kind == "counter" else self.full_name

    @property
    def unit(self) -> str:
        last = self.openmetrics_name.rpartition("_")[2]
        return last if last in ("seconds", "bytes") else ""

    @property
    def nanoseconds(self) -> bool:
        return "seconds" in self.name.split("_")

    @property
    def given(self) -> tuple[Label, ...]:
        """The labels whose values the worker gives."""
        return tuple(label for label in self.labels if label is not WORKER)

    @property
    def children_at_start(self) -> tuple[tuple[str, ...], ...]:
        """The children that exist from the start, at 0."""
        if self.origin not in ("worker", "supervisor") or (self.kind == "gauge" and self.name != "workers"):
            return ()
        sets = [label.values for label in self.labels]
        if None in sets or math.prod(len(values or ()) for values in sets) > MAX_CHILDREN_AT_START:
            return ()
        return tuple(product(*(values or () for values in sets)))


def _counter(name: str, text: str, *labels: Label, origin: Origin = "worker") -> Family:
    return Family(name, "counter", text, labels, origin)


def _gauge(name: str, text: str, *labels: Label, origin: Origin = "worker", combine: Combine = "sum") -> Family:
    return Family(name, "gauge", text, labels, origin, combine)


def _histogram(name: str, text: str, *labels: Label, origin: Origin = "worker") -> Family:
    return Family(name, "histogram", text, labels, origin)


# fmt: off
FAMILIES = (
    _counter("ws_connections_total",
             "Device and dashboard connections by what became of them. Those of a killed worker are disconnected.",
             ORGANIZATION, Label("status", ("connected", "disconnected", "rejected"))),
    _gauge("ws_connections_active", "Open connections.", ORGANIZATION, Label("kind", ("device", "dashboard"))),
    _gauge("ws_connections_limit", "Connections that all workers together would take."),
    _counter("ws_disconnects_total", "Connections that this service closed, by the close code it chose.",
             Label("reason", tuple(close.name for close in CLOSES))),
    _counter("ws_handshakes_rejected_total", "Handshakes refused, by refusal.",
             Label("code", tuple(refusal.code for refusal in HANDSHAKE_REFUSALS))),
    _histogram(
        "ws_handshake_duration_seconds",
        "From the complete request to the queued answer of a handshake, without the time that it waited for its turn.",
    ),
    _gauge("ws_handshakes_waiting", "Handshakes over the budget that wait for their turn."),
    _counter("ws_messages_total", "Messages received, by event and outcome.", EVENT, Label("result", RESULTS)),
    _histogram("ws_message_duration_seconds", "From the decoded message to its queued reply.", EVENT),
    _counter("ws_fields_ignored_total", "Fields that were ignored: unknown, or optional and of a wrong type.",
             EVENT, Label("why", ("unknown", "wrong_type"))),
    _counter("ws_bytes_total", "Bytes read from and written to clients.", Label("direction", ("in", "out"))),
    _gauge("ws_send_queue_bytes", "Bytes that wait for clients to read them.", WORKER),
    _counter("ws_notices_dropped_total", "Notices that a slow client did not get, by event.", NOTICE),

    _counter("heartbeat_total", "Heartbeats by device; past the cap of device series all others share one.",
             DEVICE, Label("success", ("true", "false")), origin="device"),
    _histogram("heartbeat_duration_seconds", "From the decoded heartbeat to its queued ack.", origin="alias"),
    _counter("heartbeat_errors_total", "Heartbeats refused or failed, by reason.", Label("reason", HEARTBEAT_ERRORS)),
    _counter("content_impressions_total", "Plays recorded, each once.", ORGANIZATION),
    _counter("content_impressions_duplicate_total", "Plays that were recorded already.", ORGANIZATION),
    _gauge("content_impressions_missing", "Plays that devices numbered and did not deliver yet.", ORGANIZATION),
    _counter("content_errors_total", "Content errors that devices reported.", CONTENT_ERROR),
    _gauge("device_status",
           "1 while the device has a connection to this node, else 0 for an hour; none while another node has it.",
           DEVICE, EVERY_ORGANIZATION, origin="device"),
    _gauge("device_cpu_usage", "CPU usage of an online device in percent, from its last heartbeat.",
           DEVICE, EVERY_ORGANIZATION, origin="device"),
    _gauge("device_memory_usage", "Memory usage of an online device in percent, from its last heartbeat.",
           DEVICE, EVERY_ORGANIZATION, origin="device"),
    _gauge("devices_online",
           "Devices of each organisation with a connection to this node: those of device_status 1, but never capped.",
           EVERY_ORGANIZATION),
    _gauge("devices_known", "Devices that have a series or would have one without the cap.", origin="supervisor"),

    _counter("commands_total", "Commands and playlists in the ledger, by the state that they reached.",
             COMMAND, Label("state", COMMAND_STATES)),
    _histogram("command_ack_duration_seconds", "From the sent command to the device's ack."),
    _counter("http_requests_total", "HTTP requests answered.", METHOD, PATH, Label("status", STATUSES)),
    _histogram("http_request_duration_seconds",
               "From the complete request to the queued response, without the wait for a device's ack.", METHOD, PATH),

    _counter("http_wrong_keys_total", "Requests with a wrong key: of the control API, or of /metrics.",
             Label("key", ("internal", "metrics"))),

    _counter("redis_operations_total", "Redis operations by outcome.", OPERATION, Label("result", ("ok", "error"))),
    _histogram("redis_operation_duration_seconds", "From the queued command to its reply.", OPERATION),
    _gauge("redis_up", "1 while the worker's connection to Redis works, to each shard of it.", WORKER, combine="min"),
    _gauge("redis_shard_up", "1 while the worker's connection to this shard of a Redis Cluster works. Shards are "
           "numbered by their slots; without a cluster there is 0.", SHARD, WORKER, combine="min"),
    _gauge("redis_pipeline_depth", "Commands that wait for a reply.", WORKER),
    _gauge("redis_memory_bytes", "Memory that Redis says it uses.", combine="max"),
    _gauge("redis_evicts", "1 while Redis' maxmemory-policy is not noeviction: it may delete keys of the gateway.",
           combine="max"),
    _gauge("plays_backlog", "Entries of the plays stream that a reading group has not taken.", GROUP, combine="max"),

    _counter("limits_exceeded_total", "Times that a limit was met, by limit.", Label("limit", LIMITS)),
    _histogram("eventloop_lag_seconds", "How much later than asked a timer of the event loop ran.", WORKER),
    _gauge("eventloop_lag_seconds_max", "The largest event loop lag of the last minute.", WORKER, combine="max"),
    _histogram("gc_duration_seconds", "Pauses of the garbage collector.", Label("generation", ("0", "1", "2"))),
    _counter("worker_restarts_total", "Workers that were replaced, by reason.",
             Label("reason", RESTART_REASONS), origin="supervisor"),
    _gauge("workers", "Workers by state.", Label("state", WORKER_STATES), origin="supervisor"),
    _gauge("scrape_workers_missing", "Workers that did not answer this scrape in time: their figures are older.",
           origin="supervisor"),
    _counter("sentry_dropped_total", "Events that were not sent to Sentry.", Label("why", SENTRY_DROPS)),
    _gauge("build_info", "Always 1; the labels say what runs. `commit` is a git commit or `unknown`.",
           Label("version"), Label("python"), Label("commit"), origin="supervisor"),

    _counter("process_cpu_user_seconds_total", "User CPU time.", PROCESS, origin="process"),
    _counter("process_cpu_system_seconds_total", "System CPU time.", PROCESS, origin="process"),
    _counter("process_cpu_seconds_total", "User and system CPU time.", PROCESS, origin="process"),
    _gauge("process_resident_memory_bytes", "Resident memory.", PROCESS, origin="process"),
    _gauge("process_virtual_memory_bytes", "Virtual memory.", PROCESS, origin="process"),
    _gauge("process_open_fds", "Open file descriptors.", PROCESS, origin="process"),
    _gauge("process_max_fds", "Soft limit of open file descriptors.", PROCESS, origin="process"),
    _gauge("process_start_time_seconds", "Start of the process since the epoch.", PROCESS, origin="process"),

    _gauge("nodejs_eventloop_lag_seconds", "The last event loop lag, under the old service's name for it.",
           WORKER, combine="max"),
    _histogram("nodejs_gc_duration_seconds",
               "gc_duration_seconds under the old service's name: generations 0 and 1 are minor, 2 is major.",
               Label("kind", NODE_GC_KINDS), origin="alias"),
)
# fmt: on

REGISTRY = {family.name: family for family in FAMILIES}

ALIASES: dict[str, dict[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]]] = {
    "heartbeat_duration_seconds": {(): (("ws_message_duration_seconds", ("heartbeat",)),)},
    "nodejs_gc_duration_seconds": {
        ("minor",): (("gc_duration_seconds", ("0",)), ("gc_duration_seconds", ("1",))),
        ("major",): (("gc_duration_seconds", ("2",)),),
        ("incremental",): (),
        ("weakcb",): (),
    },
}
"""Histograms that are exposed again under another name: child -> the recorded children whose sum it is."""


class Cell:
    """A child of a counter or gauge. The hot path does `cell.value += 1`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Timer:
    """A child of a histogram: a count per bucket (not cumulative), +Inf, and last the sum in nanoseconds."""

    __slots__ = ("slots",)

    def __init__(self) -> None:
        self.slots = [0] * SLOTS

    def observe(self, ns: int) -> None:
        slots = self.slots
        slots[bisect_left(BOUNDS_NS, ns)] += 1
        slots[-1] += ns


class Metrics:
    """What one process counts. Children are made on first use and live as long as the process.

    A value outside a closed set is a bug of ours and raises ValueError: map what peers sent with `notice`,
    `command` and `method`. Capped labels map themselves to `other`. The supervisor counts what that refuses, so that an
    organisation is counted once however many workers it comes to.
    """

    __slots__ = (
        "_admitted",
        "_callbacks",
        "_caps",
        "_cells",
        "_children",
        "_first",
        "_new",
        "_new_refused",
        "_origins",
        "_refused",
        "_timers",
    )

    notice = staticmethod(NOTICE.known)
    command = staticmethod(COMMAND.known)
    method = staticmethod(METHOD.known)

    def __init__(self, settings: config.MetricsSettings, origins: tuple[Origin, ...] = ("worker",)) -> None:
        self._origins = origins
        self._caps = {"organization_id": settings.max_organization_series, "group": MAX_GROUPS}
        self._admitted: dict[str, dict[str, None]] = {name: {} for name in self._caps}
        self._refused: set[str] = set()
        self._new_refused: list[str] = []
        self._children: dict[str, dict[tuple[str, ...], Cell | Timer]] = {name: {} for name in REGISTRY}
        self._cells: list[Cell] = []
        self._timers: list[list[int]] = []
        self._new: list[tuple[str, Kind, tuple[str, ...]]] = []
        self._callbacks: list[Callable[[], None]] = []
        self._first = True

    def counter(self, name: str, *values: str) -> Cell:
        return self._cell(name, "counter", values)

    def gauge(self, name: str, *values: str) -> Cell:
        return self._cell(name, "gauge", values)

    def timer(self, name: str, *values: str) -> Timer:
        timer = self._child(name, "histogram", values)
        assert isinstance(timer, Timer)
        return timer

    def organization(self, name: str, organization: str, *rest: str) -> Cell:
        """The counter or gauge of an organisation, its siblings (other values of closed labels) beginning with it at 0.

        A client that was refused before its organisation was known has the empty one.
        """
        family = _family(name)
        values = (organization or UNKNOWN, *rest)
        if values not in self._children[name]:
            for others in product(*(label.values or () for label in family.given[1:])):
                self._cell(name, family.kind, (values[0], *others))
        return self._cell(name, family.kind, values)

    @property
    def organizations(self) -> list[str]:
        """The organisations that have series of their own, in the order in which they came."""
        return list(self._admitted[ORGANIZATION.name])

    def admit(self, organizations: Iterable[str]) -> None:
        """Give these organisations series of their own, past the cap too: the supervisor has them under its cap."""
        self._admitted[ORGANIZATION.name] |= dict.fromkeys(organizations)

    def take_refused(self) -> list[str]:
        """The organisations that found no room under the cap since the last call, each once."""
        refused, self._new_refused = self._new_refused, []
        return refused

    def recount(self, name: str) -> None:
        """Set all children of a gauge to 0, before it is counted again."""
        for child in self._children[name].values():
            assert isinstance(child, Cell)
            child.value = 0

    def on_collect(self, callback: Callable[[], None]) -> None:
        """Run `callback` before each snapshot: gauges are recounted, never incremented."""
        self._callbacks.append(callback)

    def snapshot(self) -> dict[str, Any]:
        """All values since the start, in the order in which the children were made, and what is new: the children, and
        the organisations that found no room."""
        for callback in self._callbacks:
            callback()
        new, self._new = self._new, []
        first, self._first = self._first, False
        return {
            "first": first,
            "new": new,
            "refused": self.take_refused(),
            "values": [cell.value for cell in self._cells],
            "timers": list(chain.from_iterable(self._timers)),
        }

    def resolve(self, name: str, kind: Kind, values: tuple[str, ...]) -> tuple[str, ...]:
        """The label values under which a child is counted. Raises ValueError for what the registry lacks."""
        family = _family(name)
        if family.kind != kind:
            raise ValueError(f"{name} is a {family.kind}, not a {kind}")
        if family.origin not in self._origins:
            raise ValueError(f"{name} is not counted here: its origin is {family.origin}")
        if len(values) != len(family.given):
            raise ValueError(f"{name} has {len(family.given)} labels here, not {len(values)}")
        return tuple(self._admit(name, label, value) for label, value in zip(family.given, values, strict=True))

    def _admit(self, name: str, label: Label, value: str) -> str:
        if label.values is not None and value not in label.values:
            raise ValueError(f"{name}: {value!r} is no value of {label.name}")
        if not label.capped or value in (OTHER, UNKNOWN):
            return value
        admitted = self._admitted[label.name]
        if value not in admitted:
            if len(admitted) >= self._caps[label.name]:
                if label is ORGANIZATION and value not in self._refused and len(self._refused) < MAX_REFUSED:
                    self._refused.add(value)
                    self._new_refused.append(value)
                return OTHER
            admitted[value] = None
        return value

    def _cell(self, name: str, kind: Kind, values: tuple[str, ...]) -> Cell:
        cell = self._child(name, kind, values)
        assert isinstance(cell, Cell)
        return cell

    def _child(self, name: str, kind: Kind, values: tuple[str, ...]) -> Cell | Timer:
        found = self._children[_family(name).name].get(values)
        if found is not None and REGISTRY[name].kind == kind:
            return found
        # What is past a cap is resolved anew each time: remembering it would grow with every name that peers invent.
        values = self.resolve(name, kind, values)
        child = self._children[name].get(values)
        if child is None:
            child = self._children[name][values] = self._make(kind)
            self._new.append((name, kind, values))
        return child

    def _make(self, kind: Kind) -> Cell | Timer:
        if kind == "histogram":
            timer = Timer()
            self._timers.append(timer.slots)
            return timer
        cell = Cell()
        self._cells.append(cell)
        return cell


def _family(name: str) -> Family:
    family = REGISTRY.get(name)
    if family is None:
        raise ValueError(f"there is no metric {name!r}")
    return family


def negotiate(accept: str) -> tuple[bool, str]:
    """Whether the `Accept` header prefers OpenMetrics 1.0 to the text format, and the content type of the answer.

    RFC 9110 section 12.5.1; prometheus_client's own choice ignores `q` and raises on a version that is no number.
    """
    best, openmetrics = 0.0, False
    for offer in accept.split(","):
        kind, *parts = (part.strip().lower() for part in offer.split(";"))
        parameters = dict(part.partition("=")[::2] for part in parts)
        version = parameters.get("version", "").strip('" ')
        if kind == "application/openmetrics-text":
            fits = version in ("", "0.0.1", "1.0.0")
        else:
            fits = kind in ("text/plain", "text/*", "*/*")
        quality = _quality(parameters.get("q", "1"))
        if fits and quality > best:
            best, openmetrics = quality, kind == "application/openmetrics-text"
    return openmetrics, CONTENT_TYPE_OPENMETRICS if openmetrics else CONTENT_TYPE_PLAIN_0_0_4


def _quality(text: str) -> float:
    try:
        quality = float(text)
    except ValueError:
        return 0.0
    return quality if 0 <= quality <= 1 else 0.0
