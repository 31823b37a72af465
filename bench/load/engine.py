"""The load engine: many connections in one process, and what they count.

A connection is only what a load generator needs: it knows whole frames, matches acks to messages by their order, and
counts. When the next message goes is a pace's business (`pace.py`).
"""

import asyncio
import contextlib
import gc
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter_ns
from typing import Final, Protocol, cast

from bench.load.counters import Tally
from bench.report.histogram import Latencies
from vizora_rt.client.websocket import CloseInfo, Endpoint, Handshake
from vizora_rt.wire.frames import CLOSE, PING, PONG, TEXT, close_payload, encode_masked, parse_close, parse_frame
from vizora_rt.wire.messages import JSONError, dumps, loads
from vizora_rt.wire.socketio import PATHS

Progress = Callable[[str, float], None]
"""Is told the phase and which share of it is over."""

CONNECT_SECONDS: Final = 30.0
LEAVE_SECONDS: Final = 5.0
GOODBYE: Final = encode_masked(CLOSE, close_payload(1000), os.urandom(4))
SOURCES: Final = [(f"127.0.0.{number}", 0) for number in range(1, 65)]
"""Where to connect from on this machine: each address has 28,000 ports, and a connection keeps its own for a while."""


class Pace(Protocol):
    """When the next message goes."""

    def start(self, engine: "Engine") -> None: ...
    def stop(self) -> None: ...
    def acked(self, connection: "Connection", count: int) -> None: ...


class Connection(asyncio.Protocol):
    """One device."""

    __slots__ = ("_buffer", "_engine", "_fd", "_handshake", "_hello", "_sent", "_transport", "gone", "settled")

    def __init__(self, engine: "Engine", handshake: Handshake, packet: bytes = b"") -> None:
        """`hello` is a Socket.IO client's CONNECT packet: it is settled when that is answered."""
        self._engine = engine
        self._handshake: Handshake | None = handshake
        self._hello = packet
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._buffer = b""
        self._sent: deque[int] = deque()
        self.settled: asyncio.Future[CloseInfo | None] = asyncio.get_running_loop().create_future()
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def send(self, frame: bytes, times: Sequence[int]) -> None:
        """As many messages as there are times, each that from which its latency counts.

        What is due on a connection that has ended counts as sent: it is a message without an answer.
        """
        result = self._engine.tally
        if times[0] >= result.since:
            result.sent += len(times)
        if self._transport is not None:
            self._sent += times
            self.write(frame)

    def write(self, data: bytes) -> None:
        """At once, as a device of its own does.

        uvloop gathers what is written until it has read from all that are ready, and messages that come together cost a
        server less: one wake-up for many.
        """
        if self._transport is None:
            return
        if self._fd >= 0 and not self._transport.get_write_buffer_size():
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:  # the transport meets the same, and knows what to do
                pass
        if data:
            self._transport.write(data)

    def leave(self) -> None:
        """End it from this side: no ending to be counted."""
        if self._transport is not None:
            if self._handshake is None:
                self._transport.write(GOODBYE)
            self._transport.close()
            self._transport = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self._handshake is not None
        self._transport = cast(asyncio.Transport, transport)
        if transport.get_extra_info("sslcontext") is None:
            self._fd = transport.get_extra_info("socket").fileno()
        self._transport.write(self._handshake.request)

    def data_received(self, data: bytes) -> None:
        if self._handshake is not None:
            opened = self._handshake.feed(data)
            if opened is None:
                return
            if isinstance(opened, CloseInfo):
                self._end(opened)
                return
            self._handshake, data = None, opened
            if not self._hello:
                self.settled.set_result(None)
            elif self._transport is not None:
                self._transport.write(encode_masked(TEXT, self._hello, os.urandom(4)))
        if self._buffer:
            data = self._buffer + data
        now = perf_counter_ns()
        engine, pos, acks = self._engine, 0, 0
        mark, within = (b"43", 2) if self._hello else (b'"ack"', 24)
        while True:
            frame = parse_frame(data, pos, 0, False)
            if type(frame) is not tuple:
                break
            opcode, _, payload, pos = frame
            if opcode != TEXT:
                self._control(opcode, payload)
            elif payload.find(mark, 0, within) >= 0 and self._sent:
                acks += 1
                engine.tally.ack(payload, self._sent.popleft(), now)
            else:
                self._other(payload)
        self._buffer = data[pos:]
        if frame is not None:
            self._end(CloseInfo("protocol error of the server"))
        elif acks:
            engine.pace.acked(self, acks)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(CloseInfo("connection lost"))
        self.gone.set_result(None)

    def _other(self, payload: bytes) -> None:
        """No ack: an event, or in Socket.IO the handshake and pings."""
        if self._hello:
            if payload == b"2" and self._transport is not None:
                self._transport.write(encode_masked(TEXT, b"3", os.urandom(4)))
            elif payload[:2] == b"40" and not self.settled.done():
                self.settled.set_result(None)
            elif payload[:2] == b"44":
                self._end(CloseInfo(refusal(payload)))

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING and self._transport is not None:
            self._transport.write(encode_masked(PONG, payload, os.urandom(4)))
        elif opcode == CLOSE:
            parsed = parse_close(payload)
            self._end(CloseInfo(f"close code {parsed[0]}" if isinstance(parsed, tuple) else "bad close frame"))

    def _end(self, ending: CloseInfo) -> None:
        if self._transport is not None:
            self.leave()
            if self.settled.done():
                self._engine.closed[ending.reason] += 1
            else:
                self.settled.set_result(ending)


def refusal(packet: bytes) -> str:
    """The code in a CONNECT_ERROR, else its message: `44{"message":"auth_invalid","data":{"code":"AUTH_INVALID"}}`."""
    try:
        error = loads(packet[2:])
        return str((error.get("data") or {}).get("code") or error["message"])
    except (JSONError, LookupError, TypeError, AttributeError):
        return "refused"


def is_socketio(endpoint: Endpoint) -> bool:
    """Whether Socket.IO is spoken there: its path says so."""
    return endpoint.target.partition("?")[0] in PATHS


class Engine:
    """The connections of a run."""

    def __init__(self, endpoint: Endpoint, pace: Pace, result: Tally | None = None) -> None:
        self.pace = pace
        self.tally = result or Tally()
        self.closed: Counter[str] = Counter()
        self.lateness = Latencies()
        self.handshakes = Latencies()
        self.failed: Counter[str] = Counter()
        self.connections: list[Connection] = []
        self._endpoint = endpoint
        self._sources = itertools.cycle(SOURCES if endpoint.host.startswith("127.") else [None])
        self.socketio = is_socketio(endpoint)

    async def connect(self, tokens: Sequence[str], ramp: float, progress: Progress) -> None:
        """Open a connection for each token, `ramp` a second, and wait until each is open or has failed."""
        begun = perf_counter_ns()
        tasks = []
        for number, token in enumerate(tokens):
            due = begun + int(number / ramp * 1e9)
            if (ahead := due - perf_counter_ns()) > 0:
                progress("connecting", number / len(tokens))
                await asyncio.sleep(ahead / 1e9)
            packet = b"40" + dumps({"token": token}) if self.socketio else b""
            connection = Connection(self, Handshake(self._endpoint, token), packet)
            tasks.append(asyncio.create_task(self._open(connection, due)))
        await asyncio.wait(tasks)

    async def _open(self, connection: Connection, due: int) -> None:
        ending = await self.dial(connection)
        if ending is None:
            self.handshakes.record(perf_counter_ns() - due)
            self.connections.append(connection)
        else:
            self.failed[ending.reason] += 1

    async def dial(self, connection: Connection) -> CloseInfo | None:
        """Connect, and wait for the end of the handshake: None, or why there is no connection."""
        host, port, _, _, tls = self._endpoint
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                source = next(self._sources)
                await asyncio.get_running_loop().create_connection(
                    lambda: connection, host, port, ssl=tls, local_addr=source
                )
                ending = await connection.settled
        except TimeoutError:
            ending = CloseInfo("timeout")
        except OSError as error:
            ending = CloseInfo(error.strerror or str(error))
        if ending is not None:
            connection.leave()
        return ending

    async def leave(self) -> None:
        for connection in self.connections:
            connection.leave()
        if self.connections:
            await asyncio.wait([connection.gone for connection in self.connections], timeout=LEAVE_SECONDS)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage collection: it would hold up the messages of thousands of connections, and finds nothing."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
