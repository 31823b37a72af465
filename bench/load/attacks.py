"""What a client may send that takes more than its part of a gateway: the rows of the scenario `hostile`.

An attack is a number of connections, each with something to begin with and something that it then sends for as long as
it is taken. A connection that the gateway ends is opened again, a little later.
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle, repeat
from typing import Final

from vizora_rt.client.websocket import Endpoint
from vizora_rt.wire.frames import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_payload, encode_masked
from vizora_rt.wire.messages import dumps

AT_ONCE: Final = 65_536
"""Bytes that are written in one go: so many fill the gateway's buffer."""
AGAIN_SECONDS: Final = 0.05
KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
BODY_BYTES: Final = 1_048_576

Opening = Callable[[str, str], bytes]
"""Given the host and a device's token: the bytes that a connection begins with."""


@dataclass(frozen=True, slots=True)
class Attack:
    """`sends` makes what each connection sends, piece by piece; when there is no more of it, the connection says
    nothing and stays. `reads`: whether it reads answers."""

    name: str
    about: str
    connections: int
    opening: Opening
    sends: Callable[[], Iterator[bytes]]
    reads: bool = True


def upgrade(path: str, host: str, token: str = "") -> bytes:
    fields = f"Authorization: Bearer {token}\r\n" if token else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n{fields}"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
    ).encode()


def native(host: str, token: str) -> bytes:
    return upgrade("/ws", host, token)


def anonymous(host: str, token: str) -> bytes:
    """A Socket.IO client that does not say who it is."""
    return upgrade("/socket.io/?EIO=4&transport=websocket", host)


def socketio(host: str, token: str) -> bytes:
    return anonymous(host, token) + packet(b"40" + dumps({"token": token}))


def nothing(host: str, token: str) -> bytes:
    return b""


def masked(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    return encode_masked(opcode, payload, os.urandom(4), fin)


def packet(text: bytes) -> bytes:
    return masked(TEXT, text)


def event(name: str, data: object, ack_id: int | None = None) -> bytes:
    return packet(dumps({"event": name, "id": ack_id, "data": data}))


def endless(unit: bytes, first: bytes = b"") -> Callable[[], Iterator[bytes]]:
    """The same again and again, after something once."""

    def sends() -> Iterator[bytes]:
        if first:
            yield first
        yield from repeat(unit * max(1, AT_ONCE // len(unit)))

    return sends


def once(data: bytes = b"") -> Callable[[], Iterator[bytes]]:
    return lambda: iter((data,) if data else ())


def holes() -> Iterator[bytes]:
    """Batches of 200 plays of which every second is missing: what a player never sends, within its rate."""
    for number in count():
        plays = [{"contentId": "c", "seq": 2 * (200 * number + n) + 1, "phase": "end"} for n in range(200)]
        yield event("content:impressions", {"boot": os.urandom(4).hex() if not number % 50 else "b", "plays": plays}, 1)


def chunks() -> Iterator[bytes]:
    yield b"POST /nope HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield from repeat(b"1\r\nx\r\n" * (AT_ONCE // 6))


def bodies() -> Iterator[bytes]:
    """All of a body but its last byte."""
    yield b"POST /internal/command HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES
    yield from repeat(b"x" * AT_ONCE, BODY_BYTES // AT_ONCE - 1)
    yield b"x" * (AT_ONCE - 1)


def fields() -> Iterator[bytes]:
    """Requests with as many header fields as have room."""
    yield from repeat(
        b"GET /nope HTTP/1.1\r\nHost: x\r\n" + b"".join(b"%x:\r\n" % n for n in range(256, 3256)) + b"\r\n"
    )


def ack(text: str) -> bytes:
    """The text stands in it as it is: `dumps` would refuse half a character."""
    return packet(b'{"event":"ack","id":7,"data":"%b"}' % text.encode())


ATTACKS: Final = (
    Attack("pings_before_connect", "pings, no token", 10, anonymous, endless(masked(PING))),
    Attack("pongs_before_connect", "pongs, no token", 10, anonymous, endless(masked(PONG))),
    Attack(
        "fragments_before_connect",
        "empty fragments, no token",
        10,
        anonymous,
        endless(masked(CONTINUATION, fin=False), masked(TEXT, fin=False)),
    ),
    Attack("probes_before_connect", "Engine.IO pings, no token", 10, anonymous, endless(packet(b"2"))),
    Attack("namespaces_before_connect", "CONNECT to others", 10, anonymous, endless(packet(b"40/x,"))),
    Attack(
        "unread_before_connect", "pings, answers never read", 10, anonymous, endless(masked(PING, b"x" * 125)), False
    ),
    Attack("never_connects", "Socket.IO upgrades that never CONNECT", 100, anonymous, once()),
    Attack("pings", "pings of devices", 10, native, endless(masked(PING))),
    Attack("pongs", "pongs of devices", 10, native, endless(masked(PONG))),
    Attack("unread", "pings of devices, answers never read", 10, native, endless(masked(PING, b"x" * 125)), False),
    Attack(
        "fragments",
        "empty fragments of devices",
        10,
        native,
        endless(masked(CONTINUATION, fin=False), masked(TEXT, fin=False)),
    ),
    Attack("probes", "Engine.IO pings of devices", 10, socketio, endless(packet(b"2"))),
    Attack("acks", "acks that nobody asked for", 10, socketio, endless(packet(b'437[{"ok":true}]'))),
    Attack("half_characters", "acks of 16 KB of half characters", 10, native, endless(ack(r"\ud83d" * 2700))),
    Attack("long_acks", "acks of 64 KB", 10, native, endless(ack("x" * 65_000))),
    Attack("junk", "text that is no message", 10, native, endless(packet(b"x"))),
    Attack("empty", "empty messages", 10, native, endless(packet(b""))),
    Attack("binary", "binary messages", 10, socketio, endless(masked(BINARY, b"x"))),
    Attack("closes", "close frames", 10, native, endless(masked(CLOSE, close_payload(1000)))),
    Attack("unknown_events", "unknown events", 10, native, endless(event("dance", {}, 1))),
    Attack("heartbeats", "heartbeats as fast as they go", 10, native, endless(event("heartbeat", {}, 1))),
    Attack("plays", "batches of plays with holes", 8, native, holes),
    Attack("chunks", "chunks of one byte", 10, nothing, chunks),
    Attack("bodies", "bodies that are never whole", 200, nothing, bodies),
    Attack("fields", "3,000 header fields", 50, nothing, fields),
    Attack("requests", "pipelined requests", 10, nothing, endless(b"GET /nope HTTP/1.1\r\nHost: x\r\n\r\n")),
    Attack("silent", "connections that say nothing", 500, nothing, once()),
)


class Attackers:
    """All connections of one attack. `ended` is how many of them the gateway has ended, `refused` how many it did not
    let in."""

    def __init__(self, attack: Attack, endpoint: Endpoint, tokens: list[str]) -> None:
        self._attack = attack
        self._endpoint = endpoint
        self._tokens = cycle(tokens)
        self.ended = 0
        self.refused = 0

    async def attack(self, seconds: float) -> None:
        tasks = [asyncio.create_task(self._again(number)) for number in range(self._attack.connections)]
        try:
            await asyncio.sleep(seconds)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _again(self, number: int) -> None:
        while True:
            try:
                await self._once(f"127.0.2.{number % 8 + 1}")
                self.ended += 1
            except OSError:
                self.refused += 1
            await asyncio.sleep(AGAIN_SECONDS)

    async def _once(self, source: str) -> None:
        """One connection, until the gateway ends it."""
        host, port, *_ = self._endpoint
        local = (source, 0) if host.startswith("127.") else None
        reader, writer = await asyncio.open_connection(host, port, local_addr=local, limit=AT_ONCE)
        tasks = [asyncio.create_task(self._send(writer))]
        if self._attack.reads:
            tasks.append(asyncio.create_task(self._read(reader)))
        try:
            writer.write(self._attack.opening(self._endpoint.authority, next(self._tokens)))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        """Until the connection ends."""
        with contextlib.suppress(ConnectionError):
            for piece in self._attack.sends():
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            await writer.wait_closed()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while await reader.read(AT_ONCE):
                pass
