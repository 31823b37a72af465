"""The application of all client connections of a worker: admit, dispatch, answer, drain.

It joins the parts: who may come in (app/auth, app/limits), what a message means (wire/messages), what should happen
(app/handlers), and what must reach Redis (net/presence).
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import islice
from time import perf_counter_ns
from typing import Final

from vizora_rt import errors, report
from vizora_rt.app import auth
from vizora_rt.app.auth import Identity
from vizora_rt.app.handlers import Event, Handlers
from vizora_rt.app.limits import Meter, Rate
from vizora_rt.app.state import Device, State
from vizora_rt.config import Config
from vizora_rt.errors import Refusal
from vizora_rt.metrics import Cell, Metrics, Timer
from vizora_rt.net.bus import Bus
from vizora_rt.net.connection import Connection, Terms
from vizora_rt.net.presence import Claim, Presence
from vizora_rt.net.store import Store
from vizora_rt.net.timers import Wheel
from vizora_rt.wire import messages
from vizora_rt.wire.http import Request
from vizora_rt.wire.messages import Invalid, Repaired

log = report.logger("gateway")

RETRY_AFTER: Final = 5
"""Seconds in `Retry-After` of a refusal that is nobody's fault: long enough for a restart, short for a dark screen."""

GOODBYES_A_TURN: Final = 200
"""Connections told of the restart per turn of the loop, so that the others are still served meanwhile."""


Settle = Callable[[Connection | Refusal, str], None]


class Counted:
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


class Gateway:
    """One worker's clients."""

    def __init__(
        self, config: Config, worker: int, node: str, url: str, metrics: Metrics, wheel: Wheel, store: Store
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._wheel = wheel
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.state = State(self._on_dirty)
        self.bus = Bus(config.redis, url, node, worker, store, self._on_doorbell)
        self._presence = Presence(config, node, worker, self.state, store, wheel, self.bus.ring)
        self._handlers = Handlers(self.state, config.player)
        self._verifier = auth.Verifier(config.auth)
        self._clock = Clock()
        bytes_in, bytes_out = (metrics.counter("ws_bytes_total", direction) for direction in ("in", "out"))
        self._terms = Terms(config, wheel, bytes_in, bytes_out)
        self._events = {n: Counted(metrics, n, event) for n, event in self._handlers.table.items()}
        self._unknown = Counted(metrics, "unknown", None)
        self._error = Counted(metrics, "error", None)
        self._rate = Rate(config.limits.messages_per_minute, 2 * config.limits.messages_per_minute)
        self._patience = config.limits.refusals_in_a_row
        self._per_token = Meter(config.limits.connections_per_minute)
        self._per_address = Meter(config.limits.connections_per_address_per_minute)
        self._addresses: dict[str, int] = {}
        self._connections: set[Connection] = set()
        self._limit = config.max_connections
        self._admitting = 0
        self._handshake_timer = metrics.timer("ws_handshake_duration_seconds")
        self.draining = False
        self._empty = asyncio.Event()
        metrics.on_collect(self._recount)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    # Admitting

    def admit(self, request: Request, address: str, settle: Settle) -> None:
        """Decide on an opening handshake. `settle` is called once, perhaps later: with a connection to attach and the
        subprotocol, or with a refusal."""
        refusal = self._overload(address)
        identity: Identity | Refusal = errors.AUTH_INVALID
        if refusal is None:
            token, by_cookie = auth.token_of(request)
            identity = self._verifier.verify(token, time.time()) if token else errors.AUTH_INVALID
            if isinstance(identity, Refusal):
                refusal = identity
            elif by_cookie and identity.kind == "device":
                refusal = errors.AUTH_INVALID
            else:
                refusal = auth.check_origin(request, self._config.auth.cors_origins, by_cookie)
                if refusal is None and self._per_token.take(auth.fingerprint(token), self._wheel.now):
                    refusal = self._limited("connections_per_minute", errors.RATE_LIMITED)
        if refusal is not None or isinstance(identity, Refusal):
            organization = "" if isinstance(identity, Refusal) else identity.organization_id
            settle(self._rejected(refusal or errors.AUTH_INVALID, organization), "")
            return
        subprotocol = auth.SUBPROTOCOL if auth.SUBPROTOCOL in auth.offered_subprotocols(request) else ""
        self._admitting += 1

        def checked(claim: Claim | Refusal) -> None:
            self._admitting -= 1
            if isinstance(claim, Refusal):
                settle(self._rejected(claim, identity.organization_id), "")
            elif identity.kind == "device":
                self._welcome(identity, address, claim, subprotocol, settle)
            else:
                self._welcome_user(identity, address, subprotocol, settle)

        if identity.kind == "device":
            self._presence.claim(identity, checked)
        else:
            self._presence.check_user(identity, checked)

    def _welcome_user(self, identity: Identity, address: str, subprotocol: str, settle: Settle) -> None:
        connection = Connection(self, self._terms, identity, address)
        settle(connection, subprotocol)
        self._enter(connection)
        if connection.transport is None:
            self.closed(connection)
        else:
            connection.release()

    def _welcome(self, identity: Identity, address: str, claim: Claim, subprotocol: str, settle: Settle) -> None:
        """The device is ours: answer the handshake, supersede whoever held it, send `config`; one write."""
        connection = Connection(self, self._terms, identity, address)
        settle(connection, subprotocol)
        self._enter(connection)
        device = connection.device = self.state.connect(identity, connection, claim.epoch, claim.since, claim.connected)
        self._presence.connected(device, claim)
        if connection.transport is None:
            self.closed(connection)  # it left while Redis was asked
            return
        player = self._config.player
        body = {
            "heartbeatInterval": player.heartbeat_interval,
            "cacheSize": player.cache_size,
            "autoUpdate": player.auto_update,
            "qrOverlay": None,
            "serverTime": self._clock.now(),
            "session": f"{claim.connected:x}",
        }
        connection.send("config", messages.dumps(body))
        connection.release()

    def _enter(self, connection: Connection) -> None:
        identity, address = connection.identity, connection.address
        self._connections.add(connection)
        self.state.enter(connection)
        self._addresses[address] = self._addresses.get(address, 0) + 1
        self._metrics.organization("ws_connections_total", identity.organization_id, "connected").value += 1

    def _overload(self, address: str) -> Refusal | None:
        limits = self._config.limits
        if self.draining:
            return errors.DRAINING
        if len(self._connections) + self._admitting >= self._limit:
            return self._limited("max_connections", errors.OVERLOADED)
        if limits.connections_per_address and self._addresses.get(address, 0) >= limits.connections_per_address:
            return self._limited("connections_per_address", errors.RATE_LIMITED)
        if self._per_address.take(address, self._wheel.now):
            return self._limited("connections_per_address_per_minute", errors.RATE_LIMITED)
        return None

    def _limited(self, limit: str, refusal: Refusal) -> Refusal:
        self._metrics.counter("limits_exceeded_total", limit).value += 1
        return refusal

    def _rejected(self, refusal: Refusal, organization: str) -> Refusal:
        self._metrics.counter("ws_handshakes_rejected_total", refusal.code).value += 1
        self._metrics.organization("ws_connections_total", organization, "rejected").value += 1
        return refusal

    def handshaken(self, ns: int) -> None:
        """An opening handshake took this long."""
        self._handshake_timer.observe(ns)

    # Messages: the hot path

    def message(self, connection: Connection, payload: str | bytes) -> None:
        """Validate, handle, answer, count."""
        if payload.__class__ is not str:
            connection.close(errors.BINARY_FRAME)
            return
        decoded = messages.decode(payload)
        started = perf_counter_ns()
        if isinstance(decoded, Refusal):
            self._refuse(connection, self._error, decoded, None, None, started)
            return
        name, ack_id, data = decoded
        counted = self._events.get(name)
        device = connection.device
        if counted is None or counted.event is None or device is None:
            self._refuse(connection, self._unknown, errors.UNKNOWN_EVENT, name, ack_id, started)
            return
        rate = self._rate
        if rate.interval:
            now = started / 1e9
            wait = rate.wait(device.arrival, now)
            if wait:
                self._over_rate(connection, counted, device, ack_id, wait, started)
                return
            device.arrival = rate.next(device.arrival, now)
        fields = messages.validate(counted.event.schema, data)
        if fields.__class__ is not counted.event.schema:
            if isinstance(fields, Invalid):
                self._invalid(connection, counted, device, fields, ack_id, started)
                return
            assert isinstance(fields, Repaired)
            counted.unknown.value += fields.unknown
            counted.wrong_type.value += fields.wrong_type
            fields = fields.payload
        clock = self._clock
        try:
            outcome = counted.event.handler(device, fields, clock.now())
        except Exception as error:
            self._fault(connection, counted, device, error)
            return
        connection.refusals = 0
        if ack_id is not None:
            reply = outcome.reply if self._store.up else outcome.degraded or outcome.reply
            connection.session.send(messages.encode_success(ack_id, reply, clock.iso))
        counted.ok.value += 1
        counted.timer.observe(perf_counter_ns() - started)

    def _refuse(
        self,
        connection: Connection,
        counted: Counted,
        refusal: Refusal,
        event: str | None,
        ack_id: int | None,
        started: int,
        extra: dict[str, object] | None = None,
    ) -> None:
        """Answer with a negative ack, or the event `error` where none was asked for; close after too many in a row."""
        self._clock.now()
        extra = extra or {}
        if ack_id is not None:
            body = messages.failure(refusal, self._clock.iso, extra)
            connection.session.send(messages.encode_ack(ack_id, body))
        else:
            connection.send("error", messages.error(refusal, event and event[:64], extra))
        counted.refused.value += 1
        counted.timer.observe(perf_counter_ns() - started)
        connection.refusals += 1
        if self._patience and connection.refusals >= self._patience:
            self._limited("refusals_in_a_row", refusal)
            connection.close(errors.TOO_MANY_MESSAGES)

    def _over_rate(
        self, connection: Connection, counted: Counted, device: Device, ack_id: int | None, wait: float, started: int
    ) -> None:
        self._limited("messages_per_minute", errors.RATE_LIMITED)
        self._heartbeat_failed(counted, device, "rate_limited")
        extra: dict[str, object] = {"retryAfterMs": int(wait * 1000) + 1}
        self._refuse(connection, counted, errors.RATE_LIMITED, counted.name, ack_id, started, extra)

    def _invalid(
        self,
        connection: Connection,
        counted: Counted,
        device: Device,
        invalid: Invalid,
        ack_id: int | None,
        started: int,
    ) -> None:
        self._heartbeat_failed(counted, device, "invalid_payload")
        extra: dict[str, object] = {"details": invalid.details}
        self._refuse(connection, counted, errors.INVALID_PAYLOAD, counted.name, ack_id, started, extra)

    def _fault(self, connection: Connection, counted: Counted, device: Device, error: Exception) -> None:
        """A fault of ours. The client is told to come back; the fault is reported, with the ids that find it again."""
        self._heartbeat_failed(counted, device, "fault")
        counted.failed.value += 1
        log.exception("handler failed", error, message=counted.name, device_id=device.id)
        connection.close(errors.FAULT)

    def _heartbeat_failed(self, counted: Counted, device: Device, reason: str) -> None:
        if counted.name == "heartbeat":
            device.heartbeats_failed += 1
            self.state.report(device)
            self._metrics.counter("heartbeat_errors_total", reason).value += 1

    # Leaving

    def closed(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if self.draining and not self._connections:
            self._empty.set()
        self.state.leave(connection)
        identity, address, cause = connection.identity, connection.address, connection.session.closed_by
        left = self._addresses.get(address, 0) - 1
        if left > 0:
            self._addresses[address] = left
        else:
            self._addresses.pop(address, None)
        self._metrics.organization("ws_connections_total", identity.organization_id, "disconnected").value += 1
        if cause is not None:
            self._metrics.counter("ws_disconnects_total", cause.name).value += 1
        device, connection.device = connection.device, None
        if device is not None and self.state.disconnect(device, connection, cause.name if cause else "client"):
            self._presence.disconnected(device)

    async def drain(self, seconds: float) -> None:
        """Tell all clients to reconnect, spread over half of `seconds`, and wait until they are gone or time is up."""
        self.draining = True
        if not self._connections:
            self._empty.set()
        started = self._loop.time()
        leaving = list(self._connections)
        turns = range(0, len(leaving), GOODBYES_A_TURN)
        pause = seconds / 2 / len(turns) if len(turns) > 1 else 0.0
        for turn in turns:
            for connection in leaving[turn : turn + GOODBYES_A_TURN]:
                connection.send("server:shutdown", b'{"reconnect":true,"retryAfterMs":%d}' % (RETRY_AFTER * 200))
                connection.close(errors.RESTARTING)
            await asyncio.sleep(pause)
        try:
            async with asyncio.timeout(max(0.0, started + seconds - self._loop.time())):
                await self._empty.wait()
        except TimeoutError:
            pass
        for connection in list(self._connections):
            connection.abort()

    # Doorbells and figures

    def _on_dirty(self) -> None:
        self._presence.on_dirty()

    def _on_doorbell(self, bell: dict[str, object]) -> None:
        device_id, epoch = bell.get("superseded"), bell.get("epoch")
        if isinstance(device_id, str) and isinstance(epoch, int):
            self._presence.superseded(device_id, epoch)

    def device_rows(self, limit: int) -> Iterator[list[list[object]]]:
        """Devices whose series are behind, `limit` at a time: id, organisation, status, CPU, memory, heartbeats ok and
        failed since the last time."""
        unreported, self.state.unreported = self.state.unreported, {}
        devices = iter(unreported)
        while chunk := list(islice(devices, limit)):
            yield [self._row(device) for device in chunk]

    def _row(self, device: Device) -> list[object]:
        device.reported = False
        beat = device.heartbeat.metrics if device.heartbeat is not None else None
        cpu, memory = (beat.cpu_usage, beat.memory_usage) if beat is not None else (None, None)
        # None: another worker has it, here it is neither online nor offline.
        online = None if device.reason == errors.SUPERSEDED.name else int(device.peer is not None)
        row: list[object] = [
            device.id,
            device.organization_id,
            online,
            cpu,
            memory,
            device.heartbeats_ok,
            device.heartbeats_failed,
        ]
        device.heartbeats_ok = device.heartbeats_failed = 0
        return row

    def _recount(self) -> None:
        metrics = self._metrics
        metrics.recount("ws_connections_active")
        metrics.recount("devices_online")
        for kind, organizations in (("device", self.state.screens), ("dashboard", self.state.dashboards)):
            for organization, members in organizations.items():
                metrics.organization("ws_connections_active", organization, kind).value += len(members)
        for organization, members in self.state.screens.items():
            metrics.gauge("devices_online", organization).value = len(members)
        metrics.gauge("ws_send_queue_bytes").value = sum(connection.unsent for connection in self._terms.stalled)
        metrics.gauge("ws_connections_limit").value = self._limit
