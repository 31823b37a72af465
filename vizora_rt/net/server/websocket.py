"""The asyncio protocol of one WebSocket client: feed, dispatch, cork, backpressure.

One read, one write: what the messages of a read are answered with is corked and written together, since uvloop writes
at once. What the messages mean is the application's business.

Over 300 lines because the hot path of a connection stays in one class.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from vizora_rt.app.auth import Identity
from vizora_rt.app.dashboards import DashboardSubscription
from vizora_rt.app.limits import Rate
from vizora_rt.app.state import Device
from vizora_rt.config import Config
from vizora_rt.errors import NORMAL, SILENT, SLOW_CONSUMER, TOO_MANY_MESSAGES, Close, Refusal
from vizora_rt.net.server.bounded_reader import DIRECT_BYTES, FRAMES, BoundedReader
from vizora_rt.net.server.held_messages import Held, Total
from vizora_rt.net.server.turn_queue import TurnQueue
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry.metrics import Cell
from vizora_rt.wire.messages import NATIVE, Dialect
from vizora_rt.wire.session import CLOSING, LARGE, OPEN, Session

CLOSE_SECONDS: Final = 5.0
"""How long a closing handshake may take before the transport is cut."""

FLOOD_SECONDS: Final = 1.0
"""How long a client that is left for its many packets may take to read why. It is not read meanwhile."""

PAST_BYTES: Final = 1024
"""Bytes behind our close frame that count as one packet: what a client had sent before it read it is a few of them."""

STORE_SECONDS: Final = 2.0
"""How long a close waits for Redis to answer what is being stored, so that it is acked. Redis takes a millisecond."""


class Application(Protocol):
    """What a connection carries messages for."""

    @property
    def message(self) -> "Callable[[Connection, str | bytes], None]":
        """Takes one whole message, and answers with `connection.session.send`."""

    def closed(self, connection: "Connection") -> None:
        """The transport is gone. Called once."""


class ConnectionContext:
    """What all connections of a worker share: clock, limits and counters."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "kept",
        "message_bytes",
        "over_packets",
        "over_unsent",
        "over_unsent_for",
        "packets",
        "ping_after",
        "ping_timeout",
        "stalled",
        "turns",
        "unsent",
        "unsent_for",
        "wheel",
    )

    def __init__(self, config: Config, wheel: Wheel, bytes_in: Cell, bytes_out: Cell) -> None:
        self.wheel = wheel
        self.bytes_in = bytes_in
        self.bytes_out = bytes_out
        self.turns = TurnQueue()
        self.over_packets, self.over_unsent, self.over_unsent_for = Cell(), Cell(), Cell()
        """How often each limit was met; a gateway puts its metric children here."""
        self.stalled: set[Connection] = set()
        self.kept = Total()
        self.packets = Rate(config.limits.packets_per_minute, 2 * config.limits.packets_per_minute)
        self.message_bytes = config.limits.message_bytes
        self.ping_after = config.presence.ping_after_seconds
        self.ping_timeout = config.presence.ping_timeout_seconds
        self.unsent = config.limits.unsent_bytes
        self.unsent_for = config.limits.unsent_seconds


class Connection(BoundedReader):
    """One client after its opening handshake."""

    __slots__ = (
        "_app",
        "_context",
        "_corked",
        "_dropped",
        "_early",
        "_ending",
        "_kept",
        "_leaving",
        "_packets",
        "_pinged",
        "_queued",
        "_stalled",
        "_stopped",
        "_storing",
        "_unread",
        "_waits",
        "_watched",
        "acks_deliveries",
        "address",
        "device",
        "dialect",
        "identity",
        "last_seen",
        "session",
        "transport",
        "watch",
    )

    def __init__(
        self,
        app: Application,
        context: ConnectionContext,
        identity: Identity,
        address: str = "",
        dialect: Dialect = NATIVE,
        session: Session | None = None,
    ) -> None:
        """`session`: an opening handshake has begun to use it."""
        self._app = app
        self._context = context
        self.identity = identity
        self.address = address
        self.dialect = dialect
        self.acks_deliveries = True
        self.device: Device | None = None
        self.watch: DashboardSubscription | None = None
        self.session = session or Session(context.message_bytes)
        self.session.limit = context.message_bytes
        self.transport: asyncio.Transport | None = None
        self.last_seen = context.wheel.now
        self._pinged = 0.0
        self._corked = False
        self._dropped = 0
        self._ending = False
        self._early: bytes | list[str | bytes] = b""
        self._stalled = 0.0
        self._watched = False
        self._queued = False
        self._stopped = False
        """Whether no more messages are taken, for now or for good."""
        self._waits = False
        """Whether that is because the client is over its rate."""
        self._unread = False
        """Whether it is not read any more until its closing handshake is given up."""
        self._kept: Held | None = None
        self._packets = 0.0
        """The theoretical arrival time of its packets that carry no event (app/limits.py)."""
        self._storing = 0
        self._leaving: Close | None = None
        """Why it closes, while that waits for Redis."""

    def attach(self, transport: asyncio.Transport, handshake: bytes, early: bytes | list[str | bytes] = b"") -> None:
        """Take over `transport`; `early` came behind the request, or are messages that came before the answer.

        What the application sends before `release` goes out with the handshake's answer.
        """
        self.transport = transport
        self._corked = True
        self._early = early
        transport.set_protocol(self)
        self.session.send_raw(handshake)
        self._context.wheel.add(self, self._context.ping_after)

    def release(self) -> None:
        """Write what was corked, take what came early, and read."""
        early, self._early = self._early, b""
        self._corked = False
        self.flush()
        if isinstance(early, list):
            self._keep(early)
        elif early:
            self.data_received(early)
        self._go_on()

    def data_received(self, data: bytes) -> None:
        context = self._context
        self.last_seen = context.wheel.now
        context.bytes_in.value += len(data)
        self._corked = True
        session = self.session
        frames = FRAMES if len(data) <= DIRECT_BYTES else 1
        if self._kept:
            self._keep(session.receive(data, frames))
        else:
            self._take(session.receive(data, frames))
        if session.small_frames:
            self.spend(0)
        if session.state == CLOSING:
            self.spend(len(data) // PAST_BYTES)
        if session.ended and session.closed_by is not None:
            self._fail(session.closed_by)
        self._corked = False
        self.flush()
        if session.pending or self._kept:
            self._go_on()

    def _take(self, messages: list[str | bytes]) -> None:
        """Have each handled, until the client is made to wait or the connection closes."""
        rest = iter(messages)
        for payload in rest:
            self._app.message(self, payload)
            if self._stopped:
                if self._waits:
                    self._keep(rest)
                break

    def hold(self, payload: str | bytes, seconds: float) -> None:
        """Take `payload`, and all behind it, only after that time: the client is over its rate.

        What has been read waits in memory, what has not in the client's own buffers. Pings and acks overtake.
        """
        self._waits = self._stopped = True
        if self._kept is None:
            self._kept = Held(self._context.kept)
        self._kept.put_back(payload)
        self._context.wheel.add(_Once(self._on_turn), seconds)

    def _on_turn(self) -> None:
        """The time has come for the next of the messages that wait."""
        self._waits = False
        if self.open:
            self._stopped = False
            self.last_seen = self._context.wheel.now
            self._go_on()

    def _keep(self, messages: Iterable[str | bytes]) -> None:
        """Let messages wait for their turn. A packet that is no event does not."""
        kept = self._kept
        if kept is None:
            kept = self._kept = Held(self._context.kept)
        overtakes = self.dialect.overtakes
        for payload in messages:
            if isinstance(payload, str) and kept and overtakes(payload):
                self._app.message(self, payload)
            else:
                kept.append(payload)
        if not self.open:
            self._forget()

    def _forget(self) -> None:
        """Drop the messages that wait."""
        if self._kept is not None:
            self._kept.clear()
            self._kept = None

    def _next(self) -> None:
        """Have messages handled that have waited, as many as make a share."""
        kept = self._kept
        assert kept is not None
        for _ in range(min(FRAMES, len(kept))):
            payload = kept.pop()
            self._app.message(self, payload)
            if self._stopped or len(payload) > LARGE:
                break
        if not kept:
            self._forget()

    @property
    def held(self) -> bool:
        """Whether messages of the client wait because it is over its rate: it is not silent."""
        return self._kept is not None

    def take_share(self) -> bool:
        """One share of what waits. Called by the queue of the turn."""
        self._queued = False
        session = self.session
        if self.transport is None or self._stalled or self._leaving is not None:
            return False
        self._corked = True
        if self._kept and not self._waits:
            self._next()
        elif session.pending:
            messages = session.receive(b"", FRAMES)
            if self._kept:
                self._keep(messages)
            else:
                self._take(messages)
        if session.small_frames:
            self.spend(0)
        if session.ended and session.closed_by is not None:
            self._fail(session.closed_by)
        self._corked = False
        self.flush()
        self._go_on()
        return False

    def _go_on(self) -> None:
        """Read on, unless what was read has to be dealt with first."""
        transport = self.transport
        if transport is None or self._stalled or self._leaving is not None or transport.is_closing():
            return
        if self._unread or (self._ending and self.session.closed_by is TOO_MANY_MESSAGES):
            return
        room = not self._kept or self._kept.room
        if (self._kept and not self._waits) or (self.session.pending and room):
            transport.pause_reading()
            if not self._queued:
                self._queued = True
                self._context.turns.add(self)
        elif room and not self.session.pending:
            transport.resume_reading()
        else:
            transport.pause_reading()

    def read_on(self) -> None:
        self._go_on()

    def spend(self, packets: int) -> None:
        """Count packets that carry no event, and the small frames that came, against their rate."""
        session, context = self.session, self._context
        packets += session.small_frames
        session.small_frames = 0
        rate = context.packets
        if not rate.interval:
            return
        now = context.wheel.now
        if rate.wait(self._packets, now):
            if session.state == OPEN:
                context.over_packets.value += 1
                self.close(TOO_MANY_MESSAGES)
            elif not session.ended and not self._unread and self.transport is not None:
                # Not cut yet: a reset would take the close frame away from a client that is about to read it.
                context.over_packets.value += 1
                self._unread = True
                self.transport.pause_reading()
        else:
            self._packets = max(self._packets, now) + packets * rate.interval

    def send(self, event: str, body: bytes, ack_id: int | None = None) -> None:
        """Queue an event; `body` is JSON. Written at once, unless a read is being answered."""
        self.session.send(self.dialect.encode(event, body, ack_id))
        self.flush()

    def notice(self, frame: bytes) -> bool:
        """Queue a frame encoded once for many. False: it is dropped, for the client is behind; it is told later."""
        if self._stalled:
            self._dropped += 1
            return False
        self.session.send_raw(frame)
        self.flush()
        return True

    def set_message_limit(self, message_bytes: int) -> None:
        """Take messages of this size too; 0 for the configured limit."""
        usual = self._context.message_bytes
        self.session.limit = max(usual, message_bytes) if usual else 0

    def close(self, cause: Close) -> None:
        """Begin the closing handshake; the transport is cut when the peer does not finish it in time.

        What is being stored is acked before it. The first cause counts.
        """
        if self.session.state != OPEN or self._leaving is not None:
            return
        self._stopped = True
        self._forget()
        if self._storing:
            self._wait_for_store(cause)
        else:
            self._close(cause)

    def _close(self, cause: Close) -> None:
        self._say_goodbye(cause)
        if cause is TOO_MANY_MESSAGES:
            self.session.fail(cause)  # it is not read any more, not even for its own close frame
        else:
            self.session.close(cause)
            self._context.wheel.add(_Once(self.abort), CLOSE_SECONDS)
        self.flush()

    def _fail(self, cause: Close) -> None:
        """The client broke the protocol: its session has ended, and the close frame is the last to be written."""
        self._stopped = True
        self._forget()
        if self._ending or self._leaving is not None:
            return
        if self._storing:
            self._wait_for_store(cause)
        else:
            self._say_goodbye(cause)

    def _wait_for_store(self, cause: Close) -> None:
        self._leaving = cause
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        self._context.wheel.add(_Once(self._leave), STORE_SECONDS)

    def storing(self) -> None:
        """Redis is asked to store what a message brought; the ack waits for it."""
        self._storing += 1

    def stored(self) -> None:
        """Redis has answered, and so was the client."""
        self._storing -= 1
        if not self._storing:
            self._leave()
        self.flush()

    def _leave(self) -> None:
        """End the connection that waited for Redis only."""
        cause, self._leaving = self._leaving, None
        if cause is None or self.transport is None:
            return
        if self.session.ended:
            self._say_goodbye(cause)
            self.flush()
        else:
            self._close(cause)
            self.read_on()

    def leave(self) -> None:
        """The client said goodbye in its dialect: end the connection, which nobody here chose to."""
        if self.session.state == OPEN and self._leaving is None:
            self._stopped = True
            self._forget()
            self._close(NORMAL)
            self.session.closed_by = None

    def _say_goodbye(self, cause: Close) -> None:
        for packet in self.dialect.goodbye(cause):
            self.session.send(packet)

    def abort(self) -> None:
        """Cut the transport; what was not sent is lost."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def stalled(self) -> bool:
        """Whether the client does not read what was written already."""
        return self._stalled != 0.0

    def push(self, event: str, bodies: list[bytes]) -> None:
        """Queue several of an event, with one write."""
        for body in bodies:
            self.session.send(self.dialect.encode(event, body, None))
        self.flush()

    @property
    def open(self) -> bool:
        """Whether what is sent may still arrive."""
        return self.transport is not None and self.session.state == OPEN and self._leaving is None

    @property
    def unsent(self) -> int:
        """Bytes that wait for the client to read."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def flush(self) -> None:
        """Write what is queued; a read that is being answered does so at its end."""
        session, transport = self.session, self.transport
        if self._corked:
            return
        output = session.take_output(self._leaving is None)
        if transport is None:
            return
        if output:
            self._context.bytes_out.value += len(output)
            transport.write(output)
            over = self._stalled and transport.get_write_buffer_size() > self._context.unsent
            if over and session.state == OPEN:
                self._give_up(self._context.over_unsent)
        if session.ended and not self._ending and self._leaving is None:
            self._end(transport)

    def _end(self, transport: asyncio.Transport) -> None:
        """The server closes TCP first (RFC 6455 section 7.1.1)."""
        self._ending = True
        flooded = self.session.closed_by is TOO_MANY_MESSAGES
        self._context.wheel.add(_Once(self.abort), FLOOD_SECONDS if flooded else CLOSE_SECONDS)
        if flooded:
            transport.pause_reading()  # to read on, as below, would serve the flood
            transport.write_eof()
        elif self.session.close_received is None:
            # More of what was refused is on its way. To close with it unread is a reset, which takes the close frame
            # away from a client that has not read it yet: read on until it has seen ours.
            transport.write_eof()
        else:
            transport.close()

    def _give_up(self, limit: Cell) -> None:
        """The close frame stands behind all that waits: who wakes up in time learns why."""
        limit.value += 1
        self.close(SLOW_CONSUMER)

    def pause_writing(self) -> None:
        # What a client does not read it may not ask for either: no reading, so no replies, until it has caught up.
        self._stalled = self._context.wheel.now
        self._context.stalled.add(self)
        if self.transport is not None:
            self.transport.pause_reading()
        if not self._watched:
            self._watched = True
            self._context.wheel.add(_Stall(self), self._context.unsent_for)

    def resume_writing(self) -> None:
        self._stalled = 0.0
        self._context.stalled.discard(self)
        self.last_seen = self._context.wheel.now
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.send("gap", b'{"dropped":%d}' % dropped)
        self._go_on()
        if self.watch is not None:
            self.watch.readable()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._context.stalled.discard(self)
        self._forget()
        if self.session.closed_by is None:
            self.session.closed_by = self._leaving
        self._app.closed(self)

    def on_timer(self, now: float) -> float | None:
        """Silence: any byte counts as life, a ping asks for one, then the connection is given up."""
        if self.transport is None or self.session.state != OPEN:
            return None
        context, ping = self._context, self.dialect.ping
        if self._stalled:
            return context.ping_after
        if self._leaving is not None or self._kept or self.session.pending:
            # It is not read, so its answer to a ping may wait. It counts our pings as life all the same.
            self.last_seen = self._pinged = now
            self._ping()
            return context.ping_after
        if self._pinged <= self.last_seen:
            quiet = now - (self.last_seen if ping is None else self._pinged)
            if quiet < context.ping_after:
                return context.ping_after - quiet
            self._pinged = now
            self._ping()
            return context.ping_timeout
        if now - self._pinged < context.ping_timeout:
            return context.ping_timeout - (now - self._pinged)
        self.close(SILENT)
        return None

    def _ping(self) -> None:
        if self.dialect.ping is None:
            self.session.ping()
        else:
            self.session.send(self.dialect.ping)
        self.flush()


class _Once:
    """An entry of the timer wheel that calls a method of a connection once."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_timer(self, now: float) -> float | None:
        self._call()
        return None


class _Stall:
    """The end of patience with a client that does not read. An entry of the wheel, one however often it stalls."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def on_timer(self, now: float) -> float | None:
        connection = self.connection
        context, since = connection._context, connection._stalled
        if not since or connection.session.state != OPEN:
            connection._watched = False
            return None
        if now - since < context.unsent_for:
            return context.unsent_for - (now - since)
        connection._give_up(context.over_unsent_for)
        return None


Settle = Callable[[Connection | Refusal], None]
