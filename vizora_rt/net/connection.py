"""The asyncio protocol of one WebSocket client: feed, dispatch, cork, backpressure.

One read, one write: what the messages of a read are answered with is corked and written together, since uvloop writes
at once. What the messages mean is the application's business.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from vizora_rt.app.auth import Identity
from vizora_rt.app.dashboards import Watch
from vizora_rt.app.state import Device
from vizora_rt.config import Config
from vizora_rt.errors import NORMAL, SILENT, SLOW_CONSUMER, Close
from vizora_rt.metrics import Cell
from vizora_rt.net.reading import BoundedReader
from vizora_rt.net.timers import Wheel
from vizora_rt.wire.messages import NATIVE, Dialect
from vizora_rt.wire.session import CLOSING, OPEN, Session

CLOSE_SECONDS: Final = 5.0
"""How long a closing handshake may take before the transport is cut."""


class Application(Protocol):
    """What a connection carries messages for."""

    @property
    def message(self) -> "Callable[[Connection, str | bytes], None]":
        """Takes one whole message, and answers with `connection.session.send`."""

    def closed(self, connection: "Connection") -> None:
        """The transport is gone. Called once."""


class Terms:
    """What all connections of a worker share: clock, limits and counters."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "message_bytes",
        "over_unsent",
        "over_unsent_for",
        "ping_after",
        "ping_timeout",
        "stalled",
        "unsent",
        "unsent_for",
        "wheel",
    )

    def __init__(self, config: Config, wheel: Wheel, bytes_in: Cell, bytes_out: Cell) -> None:
        self.wheel = wheel
        self.bytes_in = bytes_in
        self.bytes_out = bytes_out
        self.over_unsent, self.over_unsent_for = Cell(), Cell()
        """How often each limit was met; a gateway puts its metric children here."""
        self.stalled: set[Connection] = set()
        self.message_bytes = config.limits.message_bytes
        self.ping_after = config.presence.ping_after_seconds
        self.ping_timeout = config.presence.ping_timeout_seconds
        self.unsent = config.limits.unsent_bytes
        self.unsent_for = config.limits.unsent_seconds


class Connection(BoundedReader):
    """One client after its opening handshake."""

    __slots__ = (
        "_app",
        "_corked",
        "_dropped",
        "_early",
        "_ending",
        "_pinged",
        "_stalled",
        "_terms",
        "_watched",
        "acks_deliveries",
        "address",
        "device",
        "dialect",
        "identity",
        "last_seen",
        "refusals",
        "session",
        "transport",
        "watch",
    )

    def __init__(
        self,
        app: Application,
        terms: Terms,
        identity: Identity,
        address: str = "",
        dialect: Dialect = NATIVE,
        session: Session | None = None,
    ) -> None:
        """`session`: an opening handshake has begun to use it."""
        self._app = app
        self._terms = terms
        self.identity = identity
        self.address = address
        self.dialect = dialect
        self.acks_deliveries = True
        self.refusals = 0
        self.device: Device | None = None
        self.watch: Watch | None = None
        self.session = session or Session(terms.message_bytes)
        self.session.limit = terms.message_bytes
        self.transport: asyncio.Transport | None = None
        self.last_seen = terms.wheel.now
        self._pinged = 0.0
        self._corked = False
        self._dropped = 0
        self._ending = False
        self._early: bytes | list[str | bytes] = b""
        self._stalled = 0.0
        self._watched = False

    def attach(self, transport: asyncio.Transport, handshake: bytes, early: bytes | list[str | bytes] = b"") -> None:
        """Take over `transport`; `early` came behind the request, or are messages that came before the answer.

        What the application sends before `release` goes out with the handshake's answer.
        """
        self.transport = transport
        self._corked = True
        self._early = early
        transport.set_protocol(self)
        self.session.send_raw(handshake)
        self._terms.wheel.add(self, self._terms.ping_after)

    def release(self) -> None:
        """Write what was corked, and read."""
        early, self._early = self._early, b""
        if isinstance(early, list):
            for payload in early:
                if self.session.state == OPEN:
                    self._app.message(self, payload)
            early = b""
        self._corked = False
        self.flush()
        if self.transport is not None and not self._stalled:
            self.transport.resume_reading()
        if early:
            self.data_received(early)

    def data_received(self, data: bytes) -> None:
        terms = self._terms
        self.last_seen = terms.wheel.now
        terms.bytes_in.value += len(data)
        self._corked = True
        session = self.session
        for payload in session.receive(data):
            self._app.message(self, payload)
            if session.state == CLOSING:
                break
        if session.ended and session.closed_by is not None:
            self._say_goodbye(session.closed_by)
        self._corked = False
        self.flush()

    def read_on(self) -> None:
        if self.transport is not None and not self._stalled and not self.transport.is_closing():
            self.transport.resume_reading()

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

    def allow(self, message_bytes: int) -> None:
        """Take messages of this size too; 0 for the configured limit."""
        usual = self._terms.message_bytes
        self.session.limit = max(usual, message_bytes) if usual else 0

    def close(self, cause: Close) -> None:
        """Begin the closing handshake; the transport is cut when the peer does not finish it in time."""
        if self.session.state != OPEN:
            return
        self._say_goodbye(cause)
        self.session.close(cause)
        self.flush()
        self._terms.wheel.add(_Deadline(self), CLOSE_SECONDS)

    def leave(self) -> None:
        """The client said goodbye in its dialect: end the connection, which nobody here chose to."""
        self.close(NORMAL)
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
        return self.transport is not None and self.session.state == OPEN

    @property
    def unsent(self) -> int:
        """Bytes that wait for the client to read."""
        return self.transport.get_write_buffer_size() if self.transport is not None else 0

    def flush(self) -> None:
        """Write what is queued; a read that is being answered does so at its end."""
        session, transport = self.session, self.transport
        if self._corked:
            return
        output = session.take_output()
        if transport is None:
            return
        if output:
            self._terms.bytes_out.value += len(output)
            transport.write(output)
            over = self._stalled and transport.get_write_buffer_size() > self._terms.unsent
            if over and session.state == OPEN:
                self._give_up(self._terms.over_unsent)
        if session.ended and not self._ending:
            self._end(transport)

    def _end(self, transport: asyncio.Transport) -> None:
        """The server closes TCP first (RFC 6455 section 7.1.1)."""
        self._ending = True
        self._terms.wheel.add(_Deadline(self), CLOSE_SECONDS)
        if self.session.close_received is None:
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
        self._stalled = self._terms.wheel.now
        self._terms.stalled.add(self)
        if self.transport is not None:
            self.transport.pause_reading()
        if not self._watched:
            self._watched = True
            self._terms.wheel.add(_Stall(self), self._terms.unsent_for)

    def resume_writing(self) -> None:
        self._stalled = 0.0
        self._terms.stalled.discard(self)
        self.last_seen = self._terms.wheel.now
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.send("gap", b'{"dropped":%d}' % dropped)
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        if self.watch is not None:
            self.watch.readable()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._terms.stalled.discard(self)
        self._app.closed(self)

    def on_timer(self, now: float) -> float | None:
        """Silence: any byte counts as life, a ping asks for one, then the connection is given up."""
        if self.transport is None or self.session.state != OPEN:
            return None
        terms, ping = self._terms, self.dialect.ping
        if self._stalled:
            return terms.ping_after
        if self._pinged <= self.last_seen:
            quiet = now - (self.last_seen if ping is None else self._pinged)
            if quiet < terms.ping_after:
                return terms.ping_after - quiet
            self._pinged = now
            if ping is None:
                self.session.ping()
            else:
                self.session.send(ping)
            self.flush()
            return terms.ping_timeout
        if now - self._pinged < terms.ping_timeout:
            return terms.ping_timeout - (now - self._pinged)
        self.close(SILENT)
        return None


class _Deadline:
    """The end of patience with a closing handshake. An entry of the timer wheel."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def on_timer(self, now: float) -> float | None:
        self.connection.abort()
        return None


class _Stall:
    """The end of patience with a client that does not read. An entry of the wheel, one however often it stalls."""

    __slots__ = ("connection",)

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def on_timer(self, now: float) -> float | None:
        connection = self.connection
        terms, since = connection._terms, connection._stalled
        if not since or connection.session.state != OPEN:
            connection._watched = False
            return None
        if now - since < terms.unsent_for:
            return terms.unsent_for - (now - since)
        connection._give_up(terms.over_unsent_for)
        return None
