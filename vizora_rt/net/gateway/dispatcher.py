"""What a message does: decode, limit, validate, handle, answer, count. The hot path.

Over 300 lines because a message is handled in one pass, without calls into other files on the hot path.
"""

import time
from collections.abc import Callable
from copy import copy
from time import perf_counter_ns
from typing import Final

from vizora_rt import errors
from vizora_rt.app.auth import Identity
from vizora_rt.app.dashboards import DashboardSubscription
from vizora_rt.app.handlers import Event, Handlers, Outcome, Write
from vizora_rt.app.limits import Rate
from vizora_rt.app.state import Device, State
from vizora_rt.config import Config
from vizora_rt.errors import Refusal
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.server.websocket import Connection
from vizora_rt.telemetry import logs, sentry
from vizora_rt.telemetry.metrics import Cell, Metrics, Timer
from vizora_rt.wire import messages, payloads
from vizora_rt.wire.messages import ControlPacket, Envelope, Refused
from vizora_rt.wire.payloads import Invalid, Repaired
from vizora_rt.wire.resp import ReplyError

log = logs.logger("dispatch")


class EventMetrics:
    """An event of the table with its metric children, resolved once."""

    __slots__ = ("event", "failed", "name", "ok", "refused", "timer", "unknown", "wrong_type")

    def __init__(self, metrics: Metrics, name: str, event: Event | None) -> None:
        self.name = name
        self.event = event
        self.ok: Cell = metrics.counter("ws_messages_total", name, "ok")
        self.refused: Cell = metrics.counter("ws_messages_total", name, "refused")
        self.failed: Cell = metrics.counter("ws_messages_total", name, "failed")
        self.timer: Timer = metrics.timer("ws_message_duration_seconds", name)
        self.unknown: Cell = metrics.counter("ws_fields_ignored_total", name, "unknown")
        self.wrong_type: Cell = metrics.counter("ws_fields_ignored_total", name, "wrong_type")


class Traced(Timer):
    """The timer of one message: when that is over, it is counted where all are, and a trace of it is sent."""

    __slots__ = ("_cells", "_name", "_tags", "_timer")

    def __init__(self, whole: EventMetrics, part: EventMetrics, identity: Identity) -> None:
        self._timer = whole.timer
        self._name = whole.name
        self._tags = {f"{identity.kind}_id": identity.id, "organization_id": identity.organization_id}
        self._cells = ((part.ok, whole.ok), (part.refused, whole.refused), (part.failed, whole.failed))

    def observe(self, ns: int) -> None:
        self._timer.observe(ns)
        for mine, all_of_them in self._cells:
            all_of_them.value += mine.value
        ok, refused = (mine.value for mine, _ in self._cells[:2])
        status = "ok" if ok else "invalid_argument" if refused else "internal_error"
        sentry.traced(sentry.MESSAGE, self._name, ns, status, **self._tags)


class Clock:
    """The time of an ack, as text; at 100,000 acks a second most fall into a millisecond that is already written."""

    __slots__ = ("_ms", "_second", "_start", "iso")

    def __init__(self) -> None:
        self._ms = 0
        self._second = 0
        self._start = b""
        self.iso = b""

    def now(self) -> int:
        """Milliseconds since the epoch; `iso` is the same as RFC 3339 text."""
        ms = time.time_ns() // 1_000_000
        if ms != self._ms:
            self._ms = ms
            second, rest = divmod(ms, 1000)
            if second != self._second:
                self._second = second
                self._start = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
            self.iso = b"%b.%03dZ" % (self._start, rest)
        return ms


COST_CHARACTERS: Final = 1024
"""Characters of a packet that count as one more packet: to parse 64 KiB costs as much as 60 short ones."""

UNAVAILABLE = Outcome(refusal=errors.STORE_UNAVAILABLE)


def cost(payload: str | bytes) -> int:
    """As how many packets one that carries no event counts."""
    return 1 + len(payload) // COST_CHARACTERS


class Dispatcher:
    """One worker's messages."""

    def __init__(self, config: Config, metrics: Metrics, store: RedisClient, state: State, handlers: Handlers) -> None:
        self.clock = Clock()
        self.acked: Callable[[Device, int | None, object], object] = lambda device, ack_id, data: None
        """Is given what a device acks."""
        self.notify: Callable[[str, str, bytes], None] = lambda organization, event, body: None
        """Tells the dashboards of an organisation, wherever they are."""
        self._metrics = metrics
        self._store = store
        self._state = state
        self._events = {name: EventMetrics(metrics, name, event) for name, event in handlers.table.items()}
        self._unknown = EventMetrics(metrics, "unknown", None)
        self._error = EventMetrics(metrics, "error", None)
        self._ack = EventMetrics(metrics, "ack", None)
        limits = config.limits
        self._rate = Rate(limits.messages_per_minute, 2 * limits.messages_per_minute)
        self._play_cost = limits.messages_per_minute / limits.plays_per_minute if limits.plays_per_minute else 0.0
        self._over_rate: Cell = metrics.counter("limits_exceeded_total", "messages_per_minute")
        self._traced = sentry.message_share()
        self._looked_at = 0
        self._is_full = False
        """Whether Redis, or a shard of it, turned down a write lately; looked up once a millisecond."""

    def message(self, connection: Connection, payload: str | bytes) -> None:
        """Validate, handle, answer, count."""
        dialect = connection.dialect
        if payload.__class__ is not str:
            if dialect.binary is not None:
                connection.close(dialect.binary)
            else:
                connection.spend(cost(payload))
            return
        decoded = dialect.decode(payload)
        started = perf_counter_ns()
        if not isinstance(decoded, tuple):
            connection.spend(cost(payload))
            self._aside(connection, decoded, started)
            return
        name, ack_id, data = decoded
        counted = self._events.get(name)
        device = connection.device
        if started % sentry.SHARES < self._traced:
            counted = self._trace(counted, connection)
        if counted is None or counted.event is None or device is None:
            self._misplaced(connection, payload, counted, decoded, started)
            return
        parts = counted.event.parts
        wait = self._rate.take(device, started / 1e9, counted.event.cost if parts is None else self._cost(parts(data)))
        if wait:
            self._hold(connection, payload, wait)
            return
        fields = payloads.validate(counted.event.schema, data)
        if fields.__class__ is not counted.event.schema:
            if isinstance(fields, Invalid):
                self._invalid(connection, counted, device, fields, ack_id, started)
                return
            assert isinstance(fields, Repaired)
            counted.unknown.value += fields.unknown
            counted.wrong_type.value += fields.wrong_type
            fields = fields.payload
        clock = self.clock
        try:
            now = clock.now()
            outcome = counted.event.handler(device, fields, now)
        except Exception as error:
            self._heartbeat_failed(counted, device, "fault")
            self._failed(counted, connection, error, started, device_id=device.id)
            return
        if outcome.write is not None:
            self._write(connection, counted, outcome.write, ack_id, started)
            return
        if outcome.refusal is not None:
            self._decline(connection, counted, outcome, ack_id, started)
            return
        if ack_id is not None:
            if now != self._looked_at:
                self._looked_at, self._is_full = now, self._store.write_error != ""
            well = self._store.up and not self._is_full
            reply = outcome.reply if well or self._stored(device) else outcome.degraded or outcome.reply
            connection.session.send(dialect.encode_success(ack_id, reply, clock.iso))
        counted.ok.value += 1
        counted.timer.observe(perf_counter_ns() - started)

    def _trace(self, counted: EventMetrics | None, connection: Connection) -> EventMetrics | None:
        if counted is None:
            return None
        part = copy(counted)
        part.ok, part.refused, part.failed = Cell(), Cell(), Cell()
        part.timer = Traced(counted, part, connection.identity)
        return part

    def _stored(self, device: Device) -> bool:
        """Whether a store that is not well as a whole keeps what is of this device."""
        return self._store.stores(b"vz:{d:%b}:status" % device.id.encode())

    def _aside(self, connection: Connection, aside: ControlPacket, started: int) -> None:
        """What is no message."""
        if isinstance(aside, Refusal):
            self._refuse(connection, self._error, aside, None, None, started)
        elif isinstance(aside, Refused):
            self._refuse(connection, self._error, aside.refusal, None, aside.ack_id, started)
        elif aside is None:
            connection.leave()
        elif aside:
            connection.session.send(aside)

    def _misplaced(
        self,
        connection: Connection,
        payload: str | bytes,
        counted: EventMetrics | None,
        envelope: Envelope,
        started: int,
    ) -> None:
        """What no handler takes from a device."""
        name, ack_id, data = envelope
        if name == "ack":
            connection.spend(cost(payload))
            if connection.device is not None:
                self.acked(connection.device, ack_id, data)
            # Also when nothing waits for it: an ack is never answered, or two peers would go on for ever.
            self._ack.ok.value += 1
            self._ack.timer.observe(perf_counter_ns() - started)
            return
        sender = connection.device or connection.watch
        wait = self._wait(sender, started / 1e9) if sender is not None else 0.0
        if wait:
            self._hold(connection, payload, wait)
        elif counted is None:
            self._refuse(connection, self._unknown, errors.UNKNOWN_EVENT, name, ack_id, started)
        elif connection.watch is not None and counted.event is not None and counted.event.viewer is not None:
            self._on_dashboard_event(connection, counted, connection.watch, data, ack_id, started)
        else:
            if name == "heartbeat":
                self._metrics.counter("heartbeat_errors_total", "not_allowed").value += 1
                sentry.issue("heartbeat failed", "not_allowed", organization_id=connection.identity.organization_id)
            self._refuse(connection, counted, errors.NOT_ALLOWED, name, ack_id, started)

    def _hold(self, connection: Connection, payload: str | bytes, seconds: float) -> None:
        """The sender is over its rate: it is not refused, for it would have to keep the message; it is read later."""
        self._over_rate.value += 1
        connection.hold(payload, seconds)

    def _on_dashboard_event(
        self,
        connection: Connection,
        counted: EventMetrics,
        watch: DashboardSubscription,
        data: object,
        ack_id: int | None,
        started: int,
    ) -> None:
        """A dashboard's message: as a device's, but rare."""
        assert counted.event is not None and counted.event.viewer is not None
        fields = payloads.validate(counted.event.schema, data)
        if isinstance(fields, Invalid):
            extra: dict[str, object] = {"details": fields.details}
            self._refuse(connection, counted, errors.INVALID_PAYLOAD, counted.name, ack_id, started, extra)
            return
        if isinstance(fields, Repaired):
            counted.unknown.value += fields.unknown
            counted.wrong_type.value += fields.wrong_type
            fields = fields.payload
        try:
            outcome = counted.event.viewer(watch, fields, self.clock.now())
        except Exception as error:
            self._failed(counted, connection, error, started, user_id=connection.identity.id)
            return
        self._settle(connection, counted, outcome, ack_id, started)

    def _write(
        self, connection: Connection, counted: EventMetrics, write: Write, ack_id: int | None, started: int
    ) -> None:
        """Nothing is acked before it is safe: the answer waits for the store's."""

        def on_reply(reply: object) -> None:
            if isinstance(reply, ReplyError):
                self._decline(connection, counted, UNAVAILABLE, ack_id, started)
            else:
                self._settle(connection, counted, write.then(reply), ack_id, started)
            connection.stored()

        connection.storing()
        if not self._store.eval(write.script, write.keys, write.args, on_reply):
            self._decline(connection, counted, UNAVAILABLE, ack_id, started)
            connection.stored()

    def _settle(
        self, connection: Connection, counted: EventMetrics, outcome: Outcome, ack_id: int | None, started: int
    ) -> None:
        """Answer an outcome that needs nothing more."""
        organization = connection.identity.organization_id
        for name, count in outcome.counts:
            self._metrics.organization(name, organization).value += count
        for name, values, count in outcome.tallies:
            self._metrics.counter(name, *values).value += count
        if outcome.write is not None:
            self._write(connection, counted, outcome.write, ack_id, started)
            return
        if outcome.refusal is not None:
            self._decline(connection, counted, outcome, ack_id, started)
            return
        if outcome.issue is not None:
            kind, why, more = outcome.issue
            sentry.issue(kind, why, device_id=connection.identity.id, organization_id=organization, **more)
        if outcome.notice is not None:
            self.notify(organization, *outcome.notice)
        if ack_id is not None:
            self.clock.now()
            connection.session.send(connection.dialect.encode_success(ack_id, outcome.reply, self.clock.iso))
        for event, body in outcome.events:
            connection.send(event, body)
        counted.ok.value += 1
        counted.timer.observe(perf_counter_ns() - started)

    def _decline(
        self, connection: Connection, counted: EventMetrics, outcome: Outcome, ack_id: int | None, started: int
    ) -> None:
        refusal = outcome.refusal or errors.INTERNAL
        extra: dict[str, object] = {"details": outcome.details} if outcome.details else {}
        if outcome.retry_after_ms:
            extra["retryAfterMs"] = outcome.retry_after_ms
        self._refuse(connection, counted, refusal, counted.name, ack_id, started, extra)

    def _refuse(
        self,
        connection: Connection,
        counted: EventMetrics,
        refusal: Refusal,
        event: str | None,
        ack_id: int | None,
        started: int,
        extra: dict[str, object] | None = None,
    ) -> None:
        """Answer with a negative ack, or the event `error` where none was asked for.

        The connection stays: a client that is left would come back with the same message.
        """
        self.clock.now()
        extra = extra or {}
        if ack_id is not None:
            body = messages.failure(refusal, self.clock.iso, extra)
            connection.session.send(connection.dialect.encode_ack(ack_id, body))
        else:
            connection.send("error", messages.error(refusal, event and event[:64], extra))
        counted.refused.value += 1
        counted.timer.observe(perf_counter_ns() - started)

    def _wait(self, sender: Device | DashboardSubscription, now: float) -> float:
        """Take one from the sender's bucket; when it is empty, the seconds until one is back."""
        return self._rate.take(sender, now)

    def _cost(self, plays: int) -> float:
        """How many messages of the rate a message with so many plays takes: one at least."""
        return max(1.0, plays * self._play_cost)

    def _invalid(
        self,
        connection: Connection,
        counted: EventMetrics,
        device: Device,
        invalid: Invalid,
        ack_id: int | None,
        started: int,
    ) -> None:
        self._heartbeat_failed(counted, device, "invalid_payload")
        extra: dict[str, object] = {"details": invalid.details}
        self._refuse(connection, counted, errors.INVALID_PAYLOAD, counted.name, ack_id, started, extra)

    def _failed(
        self, counted: EventMetrics, connection: Connection, error: Exception, started: int, **ids: str
    ) -> None:
        """A fault of ours. The client is told to come back; the fault is reported, with the ids that find it again."""
        counted.failed.value += 1
        counted.timer.observe(perf_counter_ns() - started)
        organization = connection.identity.organization_id
        log.exception("handler failed", error, message=counted.name, organization_id=organization, **ids)
        connection.close(errors.FAULT)

    def _heartbeat_failed(self, counted: EventMetrics, device: Device, reason: str) -> None:
        if counted.name == "heartbeat":
            device.heartbeats_failed += 1
            self._state.report(device)
            self._metrics.counter("heartbeat_errors_total", reason).value += 1
            if reason != "fault":  # reported as what was raised
                ids = {"device_id": device.id, "organization_id": device.organization_id}
                sentry.issue("heartbeat failed", reason, **ids)
