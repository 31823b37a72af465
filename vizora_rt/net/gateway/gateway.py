"""The application of all client connections of a worker: from the handshake's end to the last goodbye.

It joins the parts: who may come in (`admission`), what a message does (`dispatch`), what Redis knows (`presence`).

Over 300 lines because it still builds all parts of a worker.
"""

import asyncio
from collections.abc import Iterator
from itertools import chain
from typing import Final

from vizora_rt import errors
from vizora_rt.app.auth import Identity
from vizora_rt.app.content_errors import ContentErrors
from vizora_rt.app.dashboards import Rooms
from vizora_rt.app.device_rows import DeviceRows, Row
from vizora_rt.app.handlers import Handlers
from vizora_rt.app.plays import PlayRecorder
from vizora_rt.app.reconnect_schedule import FIRST_MS, reconnect_schedules
from vizora_rt.app.state import State
from vizora_rt.config import Config
from vizora_rt.net.access.admission import Admission, Refused
from vizora_rt.net.access.handshake_queue import OnAdmitted, OnQueued
from vizora_rt.net.access.session_check import Sessions
from vizora_rt.net.access.token_refresh import Refresher
from vizora_rt.net.access.token_revocation import Revocations
from vizora_rt.net.commands.delivery import Deliveries
from vizora_rt.net.commands.expiry import Expiry
from vizora_rt.net.commands.queue import CommandQueue
from vizora_rt.net.commands.requests import CommandRequests
from vizora_rt.net.gateway.broadcast import Broadcaster
from vizora_rt.net.gateway.control_messages import ControlMessageHandler
from vizora_rt.net.gateway.dashboards import Dashboards
from vizora_rt.net.gateway.dispatcher import Dispatcher
from vizora_rt.net.gateway.suspension import Suspensions
from vizora_rt.net.presence.claim import Grant
from vizora_rt.net.presence.lifecycle import Presence
from vizora_rt.net.presence.publisher import StatusPublisher
from vizora_rt.net.presence.reaper import Reaper
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.redis.pubsub import PubSub
from vizora_rt.net.server.socketio import Greeted
from vizora_rt.net.server.turn_queue import TurnQueue
from vizora_rt.net.server.websocket import Connection, ConnectionContext, Settle
from vizora_rt.net.streams.gauges import Backlog, Memory, Missing
from vizora_rt.net.streams.partitions import Partitions
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry import logs, sentry
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire import messages, socketio
from vizora_rt.wire.http import Request
from vizora_rt.wire.session import Session
from vizora_rt.wire.socketio import ConnectPacket

log = logs.logger("gateway")

CLOSED_SECONDS: Final = 3.0
"""From the last goodbye of a service that is stopped until, started again, it accepts: its store stops, and loads."""

GOODBYES_A_TURN: Final = 200
"""Connections told of the restart per turn of the loop, so that the others are still served meanwhile."""
GOODBYE_TURN_SECONDS: Final = 0.05
TOGETHER_SHARE: Final = 0.2
"""Of the time for goodbyes: what a node waits at most to hear which others stop as well."""


class Gateway:
    """One worker's clients."""

    def __init__(
        self,
        config: Config,
        worker: int,
        node: str,
        metrics: Metrics,
        wheel: Wheel,
        store: RedisClient,
        turns: memoryview | None = None,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._wheel = wheel
        self._store = store
        self._loop = asyncio.get_running_loop()
        self.state = State(self._on_dirty)
        self.rows = DeviceRows(self.state)
        self.pubsub = PubSub(config.redis, node, worker, store, self._on_control_message)
        self._presence = Presence(config, node, worker, self.state, store, wheel, self.pubsub.send_to_worker)
        self.broadcaster = Broadcaster(metrics)
        self.queue = CommandQueue(store, config.plays.max_events)
        self._place = (node, worker)
        self._deliveries = Deliveries(metrics, wheel, self.queue, self.state, self._reply)
        expiry = Expiry(store, self._deliveries.expired)
        self.requests = CommandRequests(metrics, self.queue, f"{node} {worker}", self.send_to_worker, expiry)
        self._suspensions = Suspensions(self.state, store, self.pubsub, self.broadcaster, wheel, self._deliveries.look)
        self._control_messages = ControlMessageHandler(
            self.state,
            self._deliveries,
            self.broadcaster,
            self.requests,
            self._suspensions,
            self._presence.ownership.superseded,
        )
        Revocations(self.state, store, wheel, self._control_messages.handle)
        publisher = StatusPublisher(store, wheel, config.plays.max_events, config.presence.notify_after_seconds)
        self._presence.ownership_store.on_acquiring = self._suspensions.track
        self._presence.ownership.on_renewed = self._control_messages.renewed
        self._presence.ownership.on_return = publisher.returned
        self._presence.status_writer.on_change = publisher.changed
        self._presence.status_writer.on_turned_down = self._heartbeat_turned_down
        self._presence.on_moved = publisher.moved
        self._reaper = Reaper(
            config, node, worker, self.state, store, wheel, self._presence.ownership, publisher, expiry
        )
        rooms = Rooms()
        self._dashboards = Dashboards(rooms, store, self.pubsub, Sessions(self.state, store, wheel))
        self._admission = Admission(config, metrics, wheel, self._presence.ownership_store, turns)
        self.plays = PlayRecorder(config.plays)
        Partitions(config.plays, self.plays, store)
        self._missing = Missing(self.plays, store, wheel)
        if config.auth.refresh:
            Refresher(config.auth, metrics, self.state, store, wheel)
        if worker == 0:
            Backlog(metrics, self.plays, store, wheel)
            Memory(metrics, store, wheel)
        handlers = Handlers(self.state, config.player)
        handlers.table |= self.plays.table | ContentErrors(config.plays).table | rooms.table
        self._dispatcher = Dispatcher(config, metrics, store, self.state, handlers)
        self._dispatcher.acked = self._deliveries.on_ack
        self._dispatcher.notify = self._notify
        self.message = self._dispatcher.message
        bytes_in, bytes_out = (metrics.counter("ws_bytes_total", direction) for direction in ("in", "out"))
        self._context = ConnectionContext(config, wheel, bytes_in, bytes_out)
        self._context.over_packets = metrics.counter("limits_exceeded_total", "packets_per_minute")
        self._context.over_unsent = metrics.counter("limits_exceeded_total", "unsent_bytes")
        self._context.over_unsent_for = metrics.counter("limits_exceeded_total", "unsent_seconds")
        self._over_message = metrics.counter("limits_exceeded_total", "message_bytes")
        self._connections: set[Connection] = set()
        self._handshake_timer = metrics.timer("ws_handshake_duration_seconds")
        self._empty = asyncio.Event()
        self.leaving = False
        """Whether this worker ends: who comes in now is asked to come again."""
        self._retry_after_ms = FIRST_MS
        metrics.on_collect(self._recount)

    def _heartbeat_turned_down(self) -> None:
        self._metrics.counter("heartbeat_errors_total", "store").value += 1
        sentry.issue("heartbeat failed", "store")

    @property
    def turns(self) -> TurnQueue:
        """Where clients wait that have more to do than one turn of the loop allows."""
        return self._context.turns

    @property
    def draining(self) -> bool:
        """Whether nobody is let in any more."""
        return self._admission.draining

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    def connections_of(self, address: str) -> int:
        """How many clients of this address are connected, or being checked."""
        return self._admission.connections_of(address)

    def admit(self, request: Request, address: str, settle: Settle, waits: OnQueued) -> None:
        """Decide on an opening handshake. `settle` is called once, perhaps later: with a connection to attach, or with
        a refusal. `waits` is given its place in the line meanwhile."""

        def admitted(identity: Identity, grant: Grant) -> None:
            connection = Connection(self, self._context, identity, address)
            settle(connection)
            self._enter(connection, grant)

        self._admission.admit(request, address, admitted, settle, waits)

    def admit_anonymous(self, address: str, enter: OnAdmitted, refused: Refused, waits: OnQueued) -> None:
        """Decide on a client before it says who it is. One of the two is called once, perhaps later."""
        self._admission.admit_anonymous(address, enter, refused, waits)

    def forgo(self, address: str) -> None:
        """A client has left that was let in and never said who it is."""
        self._admission.forgo(address)

    def connect_socketio(
        self, request: Request, packet: ConnectPacket, address: str, session: Session, greeted: Greeted, waits: OnQueued
    ) -> None:
        """Decide on a Socket.IO client's CONNECT packet. `greeted` is called once, perhaps later; `waits` is given its
        place in the line meanwhile."""

        def admitted(identity: Identity, grant: Grant) -> None:
            connection = Connection(self, self._context, identity, address, socketio.DIALECT, session)
            connection.acks_deliveries = packet.acks_deliveries
            greeted(connection)
            self._enter(connection, grant)

        self._admission.authenticate(request, packet.token, address, admitted, greeted, waits)

    def _enter(self, connection: Connection, grant: Grant) -> None:
        """Count it, supersede whoever held the device, send `config`: one write with the handshake's answer."""
        identity = connection.identity
        self._connections.add(connection)
        self.state.enter(connection)
        self._suspensions.track(identity.organization_id)
        self._metrics.organization("ws_connections_total", identity.organization_id, "connected").value += 1
        if identity.kind == "device":
            device = self.state.connect(identity, connection, grant.epoch, grant.since, grant.connected)
            connection.device = device
            self._presence.connected(device, grant)
            connection.send("config", self._welcome(grant))
            device.playlist_version = grant.version
            self._missing.expect(device)
            if device.status == "suspended":
                reason = self.state.suspended.get(device.organization_id, "")
                connection.send("tenant:suspended", messages.dumps({"reason": reason}))
            self._deliveries.connected(device, grant.waiting)
        else:
            self._dashboards.enter(connection)
        if self.leaving:
            self._dismiss(connection, self._retry_after_ms)  # on a connection that was accepted before
        if connection.transport is None:
            self.closed(connection)  # it left while Redis was asked
        else:
            connection.release()

    def _welcome(self, grant: Grant) -> bytes:
        player = self._config.player
        return messages.dumps(
            {
                "heartbeatInterval": player.heartbeat_interval,
                "cacheSize": player.cache_size,
                "autoUpdate": player.auto_update,
                "qrOverlay": None,
                "serverTime": self._dispatcher.clock.now(),
                "session": f"{grant.connected:x}",
            }
        )

    def handshaken(self, ns: int, path: str) -> None:
        """An opening handshake took this long."""
        self._handshake_timer.observe(ns)
        sentry.traced(sentry.HANDSHAKE, path, ns, 101)

    # Leaving

    def closed(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        if self.leaving and not self._connections:
            self._empty.set()
        self.state.leave(connection)
        self._dashboards.leave(connection)
        identity, cause = connection.identity, connection.session.closed_by
        self._admission.left(connection.address)
        self._metrics.organization("ws_connections_total", identity.organization_id, "disconnected").value += 1
        if cause is not None:
            self._metrics.counter("ws_disconnects_total", cause.name).value += 1
            self._over_message.value += cause is errors.TOO_BIG
            if cause.report:
                ids = {f"{identity.kind}_id": identity.id, "organization_id": identity.organization_id}
                sentry.issue("connection failed", cause.name, **ids)
        device, connection.device = connection.device, None
        if device is not None and self.state.disconnect(device, connection, cause.name if cause else "client"):
            self._deliveries.disconnected(device)
            self._presence.disconnected(device)

    async def drain(self, seconds: float, successor: bool = False) -> None:
        """Tell all clients to reconnect, spread over half of `seconds`, and wait until they are gone or time is up.

        A `successor` accepts already: then nobody is refused, and they come back at once, not when the service is back.
        So they do when other nodes serve.
        """
        self.leaving = True
        if not successor:
            self._admission.close()
        self._reaper.stop()
        if not self._connections:
            self._empty.set()
        started = self._loop.time()
        await self._say_goodbye(started, seconds / 2, successor)
        try:
            async with asyncio.timeout(max(0.0, started + seconds - self._loop.time())):
                await self._empty.wait()
        except TimeoutError:
            pass
        for connection in list(self._connections):
            connection.abort()

    def leave(self) -> None:
        """Tell the other workers that this one has stopped, and did not die."""
        self._reaper.leave()

    async def _say_goodbye(self, started: float, seconds: float, successor: bool) -> None:
        # A successor shares the work with all other workers; other nodes with all that leave this one; after the stop
        # of a single node each of its workers has its own to take back.
        others = 0 if successor else await self._reaper.remaining(seconds * TOGETHER_SHARE)
        begun = self._loop.time()
        share = self._config.workers if successor else others / self._config.workers or 1
        per_second = self._config.limits.handshakes_per_second * share
        closed = 0.0 if successor or others else CLOSED_SECONDS
        leaving = list(self._connections)
        schedule = reconnect_schedules(len(leaving), max(0.0, started + seconds - begun), closed, per_second)
        for number, (connection, departure) in enumerate(zip(leaving, schedule, strict=True), 1):
            ahead = begun + departure.seconds - self._loop.time()
            if ahead > 0 or number % GOODBYES_A_TURN == 0:
                await asyncio.sleep(GOODBYE_TURN_SECONDS if ahead > 0 else 0)
            self._retry_after_ms = departure.retry_after_ms
            self._dismiss(connection, departure.retry_after_ms)

    def _dismiss(self, connection: Connection, retry_after_ms: int) -> None:
        connection.send("server:shutdown", b'{"reconnect":true,"retryAfterMs":%d}' % retry_after_ms)
        connection.close(errors.RESTARTING)

    # Doorbells and figures

    def _on_dirty(self) -> None:
        self._presence.status_writer.on_dirty()

    def _on_control_message(self, message: dict[str, object]) -> None:
        self._control_messages.handle(message)

    def send_to_worker(self, node: str, worker: int, message: dict[str, object]) -> None:
        """Ring a worker's doorbell; one's own needs no Redis."""
        if (node, worker) == self._place:
            self._loop.call_soon(self._on_control_message, message)
        else:
            self.pubsub.send_to_worker(node, worker, message)

    def _reply(self, reply_to: str, message: dict[str, object]) -> None:
        node, _, worker = reply_to.partition(" ")
        self.send_to_worker(node, int(worker), message)

    def _notify(self, organization: str, event: str, body: bytes) -> None:
        message = {"notice": event, "organizationId": organization, "data": messages.loads(body)}
        self.pubsub.publish(organization, message)

    def device_rows(self, limit: int) -> Iterator[list[Row]]:
        """Full rows of all devices whose series are behind, at most `limit` at a time."""
        return chain(self.rows.changed(limit), self.rows.measured(limit))

    def _recount(self) -> None:
        metrics = self._metrics
        metrics.recount("ws_connections_active")
        metrics.recount("devices_online")
        for kind, organizations in (("device", self.state.screens), ("dashboard", self.state.dashboards)):
            for organization, members in organizations.items():
                metrics.organization("ws_connections_active", organization, kind).value += len(members)
        for organization, members in self.state.screens.items():
            metrics.gauge("devices_online", organization).value = len(members)
        metrics.recount("content_impressions_missing")
        for device in self.state.devices.values():
            # Only a worker that has the device counts it: its holes as of its last ack here, or as it came.
            if device.missing and device.peer is not None:
                metrics.organization("content_impressions_missing", device.organization_id).value += device.missing
        metrics.gauge("ws_send_queue_bytes").value = sum(connection.unsent for connection in self._context.stalled)
        metrics.gauge("ws_handshakes_waiting").value = self._admission.waiting
        metrics.gauge("ws_connections_limit").value = 0 if self.leaving else self._admission.limit
