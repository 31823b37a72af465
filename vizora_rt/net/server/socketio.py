"""A Socket.IO client from its upgrade to the answer of its CONNECT packet: only then is it known who it is.

It is sent the open packet at once and must connect in time. What cannot be retried is refused with a CONNECT_ERROR,
after which shipped clients stay away; on whatever will pass the connection is ended without a packet, and they come
back. What a client says before the answer waits for it, in bounds: a native one may do so too.

Over 300 lines because the opening of a Socket.IO client and all of its ends are one machine of states.
"""

import asyncio
import secrets
from collections.abc import Callable
from time import perf_counter_ns
from typing import Final, Protocol

from vizora_rt import errors
from vizora_rt.config import Config
from vizora_rt.errors import Close, Refusal
from vizora_rt.net.access.handshake_queue import OnQueued, Ticket
from vizora_rt.net.server.bounded_reader import DIRECT_BYTES, FRAMES, BoundedReader
from vizora_rt.net.server.held_messages import MESSAGE_BYTES
from vizora_rt.net.server.turn_queue import TurnQueue
from vizora_rt.net.server.websocket import CLOSE_SECONDS, FLOOD_SECONDS, Connection
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.wire import socketio
from vizora_rt.wire.frames import TEXT, encode_frame
from vizora_rt.wire.http import Request
from vizora_rt.wire.session import CLOSING, OPEN, Session
from vizora_rt.wire.socketio import ConnectPacket

Greeted = Callable[[Connection | Refusal], None]

ID_BYTES: Final = 15
"""120 bits, as 20 characters: what the reference server makes."""

PACKETS: Final = 20
"""How many packets a client may send before it connects: pings, namespaces that are not there."""

SMALL_FRAMES: Final = 100
"""The same of pings, pongs and fragments of WebSocket: a token of 8 KiB in pieces of 100 bytes."""

CLOSING_BYTES: Final = 262_144
"""What is read past while the client's close frame is awaited: a day of plays, 1,040 of 250 bytes."""

CLOSES: Final = {
    errors.DRAINING: errors.RESTARTING,
    errors.RATE_LIMITED: errors.TOO_MANY_MESSAGES,
}
"""Which close code goes with a passing refusal, for whoever reads it; all others are overload."""


class Host(Protocol):
    """Who decides on CONNECT packets: the gateway."""

    def forgo(self, address: str) -> None:
        """A client has left that never said who it is."""

    def connect_socketio(
        self, request: Request, packet: ConnectPacket, address: str, session: Session, greeted: Greeted, waits: OnQueued
    ) -> None:
        """Decide who it is. `greeted` is called once, perhaps later, with a connection to attach or a refusal; `waits`
        is given its place in the line meanwhile."""

    @property
    def turns(self) -> TurnQueue:
        """Where clients wait that have more to do than one turn of the loop allows."""

    def handshaken(self, ns: int, path: str) -> None:
        """An opening handshake took this long."""


class HandshakeServer(Protocol):
    """Where clients wait: the HTTP server, which counts their connections."""

    config: Config
    wheel: Wheel

    @property
    def gateway(self) -> Host: ...

    def greeted(self, greeting: "Greeting") -> None:
        """A greeting is over."""

    def limited(self, limit: str) -> None:
        """Count that a limit was met."""


class Greeting(BoundedReader):
    """One client that has not said who it is, or is being checked."""

    __slots__ = (
        "_asking",
        "_due",
        "_early",
        "_flooding",
        "_frames",
        "_hello",
        "_packets",
        "_place",
        "_queued",
        "_request",
        "_room",
        "_server",
        "_session",
        "_stalled",
        "_started",
        "counted",
        "transport",
    )  # fmt: skip

    def __init__(self, lobby: HandshakeServer, request: Request, address: str) -> None:
        self._server = lobby
        self._request = request
        self.counted = address
        self._place: Ticket | None = None
        """Its place in the line of handshakes, while it waits there."""
        # As much as HTTP takes from who has not said who it is.
        self._session = Session(lobby.config.limits.header_bytes)
        self.transport: asyncio.Transport | None = None
        self._due = 0.0
        self._packets = 0
        self._frames = 0
        self._flooding = False
        self._hello: ConnectPacket | None = None
        self._queued = False
        self._stalled = False
        self._early: list[str | bytes] = []
        self._room = lobby.config.limits.header_bytes
        self._asking = False
        self._started = 0

    def attach(self, transport: asyncio.Transport, handshake: bytes, early: bytes) -> None:
        """Take over `transport`; `early` came behind the request."""
        limits, presence = self._server.config.limits, self._server.config.presence
        self.transport = transport
        transport.set_protocol(self)
        self._session.send_raw(handshake)
        session_id = secrets.token_urlsafe(ID_BYTES)
        times = (presence.ping_after_seconds, presence.ping_timeout_seconds)
        self._session.send(socketio.open_packet(session_id, *times, limits.message_bytes))
        self._flush()
        self._expect(limits.handshake_seconds)
        transport.resume_reading()
        if early:
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        session = self._session
        if session.state == CLOSING:
            self._read_past(len(data))
        for payload in session.receive(data, FRAMES if len(data) <= DIRECT_BYTES else 1):
            if session.state == OPEN:
                self._take(payload)
        self._frames += session.small_frames
        session.small_frames = 0
        if self._frames > SMALL_FRAMES:
            self._flooded()
        self._flush()
        packet, self._hello = self._hello, None
        if packet is not None and session.state == OPEN:
            # Only now: who it is may be known at once, and then all that came behind must wait for it already.
            self._started = perf_counter_ns()
            greet = self._server.gateway.connect_socketio
            greet(self._request, packet, self.counted, session, self._greeted, self._waits)
        if session.pending:
            self.read_on()

    def take_share(self) -> bool:
        """Go on with what was read. Called by the queue of the turn."""
        self._queued = False
        if self.transport is not None and not self._stalled:
            self.data_received(b"")
            self.read_on()
        return False

    def read_on(self) -> None:
        """Read, unless what was read has to be dealt with first."""
        transport = self.transport
        if transport is None or self._stalled or transport.is_closing():
            return
        if self._room < 0 or self._flooding:
            transport.pause_reading()
        elif self._session.pending:
            transport.pause_reading()
            if not self._queued:
                self._queued = True
                self._server.gateway.turns.add(self)
        else:
            transport.resume_reading()

    def pause_writing(self) -> None:
        self._stalled = True
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        self._stalled = False
        self.read_on()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._session.closed_by is errors.TOO_BIG:
            self._server.limited("header_bytes")
        self._leave()

    @property
    def closed_by(self) -> Close | None:
        """Why this service closed it."""
        return self._session.closed_by

    @property
    def busy(self) -> bool:
        """Whether it has said who it is, and is being checked."""
        return self._asking

    def give_way(self) -> None:
        """Its place is needed for another."""
        transport = self.transport
        self._leave()
        if transport is not None:
            transport.abort()

    def on_timer(self, now: float) -> float | None:
        """The end of patience: first with the CONNECT packet, then with the closing handshake."""
        if self.transport is None:
            return None
        if now < self._due:
            return self._due - now
        if self._session.state != OPEN:
            self.transport.abort()
        elif self._asking:
            self._expect(CLOSE_SECONDS)  # the store has a limit of its own
        else:
            self._server.limited("handshake_seconds")
            self._end(errors.SILENT)
        return None

    def _expect(self, seconds: float) -> None:
        """What comes next must have come in `seconds`."""
        self._due = self._server.wheel.now + seconds
        self._server.wheel.add(self, seconds)

    def _take(self, payload: str | bytes) -> None:
        packet = socketio.decode_connect(payload) if isinstance(payload, str) else errors.BINARY_EVENT
        if isinstance(packet, ConnectPacket) and not self._asking:
            self._asking = True
            self._hello = packet
        elif packet is None:
            self._end(errors.NORMAL)
            self._session.closed_by = None  # the client said goodbye
        elif self._asking and not isinstance(packet, bytes):
            self._keep(payload)
        elif not isinstance(packet, bytes):
            self._end(errors.PROTOCOL_ERROR)
        elif self._packets == PACKETS:
            self._flooded()
        else:
            self._packets += 1
            if packet:
                self._session.send(packet)

    def _flooded(self) -> None:
        """More packets than anybody needs who is about to connect. It is told why, and not read any more."""
        if self._session.state == OPEN:
            self._server.limited("packets_per_minute")
            self._flooding = True
            self._session.fail(errors.TOO_MANY_MESSAGES)
            self._expect(FLOOD_SECONDS)
        elif self.transport is not None and not self._session.ended and not self.transport.is_closing():
            self._server.limited("packets_per_minute")
            self.transport.abort()

    def _read_past(self, size: int) -> None:
        """It closes. Who goes on to send is not read any more, and cut when its time is over."""
        over = self._room < 0
        self._room -= size
        if self._room < 0 and not over:
            self._server.limited("packets_per_minute")
            self.read_on()

    def _waits(self, place: Ticket) -> None:
        """It stands in the line of handshakes."""
        self._place = place
        if self.transport is None:
            place.leave()

    def _keep(self, payload: str | bytes) -> None:
        """For when it is answered. Who says more is not read until then."""
        self._early.append(payload)
        self._room -= len(payload) + MESSAGE_BYTES
        if self._room < 0 and self.transport is not None:
            self.transport.pause_reading()

    def _greeted(self, outcome: Connection | Refusal) -> None:
        transport = self.transport
        waited = self._place.waited if self._place is not None else 0
        self._place = None
        if isinstance(outcome, Connection):
            if transport is None or self._session.state != OPEN:
                return  # it left meanwhile
            self._leave()
            answer = encode_frame(TEXT, socketio.connected(secrets.token_urlsafe(ID_BYTES)))
            outcome.attach(transport, answer, self._early)
            self._server.gateway.handshaken(perf_counter_ns() - self._started - waited, "/socket.io/")
        elif outcome.retryable:
            self._end(CLOSES.get(outcome, errors.OVERLOADED_CLOSE))
        else:
            for packet in socketio.refused(outcome):
                self._session.send(packet)
            self._end(errors.NORMAL)

    def _end(self, cause: Close) -> None:
        self._session.close(cause)
        self._flush()
        self._room = CLOSING_BYTES
        if not self._session.ended:
            self.read_on()
        self._expect(CLOSE_SECONDS)

    def _flush(self) -> None:
        output, transport = self._session.take_output(), self.transport
        if transport is None:
            return
        if output:
            transport.write(output)
        if self._session.ended and not transport.is_closing():
            if self._flooding:
                transport.pause_reading()
                transport.write_eof()  # to close with more unread is a reset, which takes the close frame away
            else:
                transport.close()

    def _leave(self) -> None:
        if self.transport is not None:
            self.transport = None
            if self._place is not None:
                self._place.leave()
            if not self._started:
                self._server.gateway.forgo(self.counted)
            self._server.greeted(self)
