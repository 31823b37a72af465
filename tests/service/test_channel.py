"""The control channel over real socket pairs, whole, byte by byte and torn."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from vizora_rt.service import channel as service_channel
from vizora_rt.service.channel import HEADER, Channel, Message
from vizora_rt.wire import messages


@dataclass
class Side:
    """What one end saw."""

    frames: asyncio.Queue[tuple[Message, bytes]] = field(default_factory=asyncio.Queue)
    eof: asyncio.Event = field(default_factory=asyncio.Event)

    async def open(self, end: socket.socket) -> Channel:
        return await service_channel.connect(
            end, lambda message, raw: self.frames.put_nowait((message, raw)), self.eof.set
        )


@dataclass
class Pair:
    """A channel, and the bare socket at its other end."""

    side: Side
    channel: Channel
    peer: socket.socket

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.peer, data)


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    near, far = socket.socketpair()
    far.setblocking(False)
    side = Side()
    opened = await side.open(near)
    yield Pair(side, opened, far)
    opened.close()
    far.close()
    await side.eof.wait()


def frame(message: Message, raw: bytes = b"") -> bytes:
    text = messages.dumps(message)
    return HEADER.pack(4 + len(text) + len(raw), len(text)) + text + raw


async def test_messages_travel_both_ways_in_order() -> None:
    here, there = socket.socketpair()
    left, right = Side(), Side()
    a, b = await left.open(here), await right.open(there)
    a.send({"t": "hello", "version": service_channel.VERSION})
    a.send({"t": "ready"})
    b.send({"t": "answer", "id": 1}, b"raw")
    assert await right.frames.get() == ({"t": "hello", "version": service_channel.VERSION}, b"")
    assert await right.frames.get() == ({"t": "ready"}, b"")
    assert await left.frames.get() == ({"t": "answer", "id": 1}, b"raw")
    a.close()
    await right.eof.wait()
    await left.eof.wait()


async def test_a_large_raw_body_arrives_whole_although_the_sender_closes_after_it() -> None:
    here, there = socket.socketpair()
    left, right = Side(), Side()
    a, _ = await left.open(here), await right.open(there)
    body = bytes(range(256)) * 40_000
    a.send({"t": "answer", "id": 9}, body)
    assert a.unsent > 0
    a.close()
    await right.eof.wait()
    await left.eof.wait()
    assert right.frames.get_nowait() == ({"t": "answer", "id": 9}, body)


async def test_a_frame_may_arrive_byte_by_byte_and_with_a_tail(pair: Pair) -> None:
    for byte in frame({"t": "collect", "id": 3}, b"xyz"):
        await pair.write(bytes([byte]))
    assert await pair.side.frames.get() == ({"t": "collect", "id": 3}, b"xyz")
    whole = frame({"t": "drain", "seconds": 1})
    await pair.write(whole + whole[:7])
    assert await pair.side.frames.get() == ({"t": "drain", "seconds": 1}, b"")
    await pair.write(whole[7:])
    assert await pair.side.frames.get() == ({"t": "drain", "seconds": 1}, b"")


@pytest.mark.parametrize(
    "torn",
    [
        pytest.param(HEADER.pack(service_channel.MAX_FRAME + 1, 2) + b"{}", id="too long"),
        pytest.param(HEADER.pack(6, 3) + b"{}", id="JSON longer than the frame"),
        pytest.param(HEADER.pack(3, 0), id="shorter than its own header"),
        pytest.param(HEADER.pack(8, 4) + b"{]{]", id="not JSON"),
    ],
)
async def test_a_torn_stream_ends_the_channel(pair: Pair, torn: bytes) -> None:
    await pair.write(torn + frame({"t": "ready"}))
    await pair.side.eof.wait()
    assert pair.side.frames.empty()


async def test_sending_on_a_closed_channel_does_nothing(pair: Pair) -> None:
    pair.peer.close()
    await pair.side.eof.wait()
    pair.channel.send({"t": "beat"})
    pair.channel.close()
    assert pair.channel.unsent == 0


async def test_eof_is_told_once_and_after_what_was_sent_before_it() -> None:
    seen: list[str] = []
    done = asyncio.Event()
    near, far = socket.socketpair()

    def on_eof() -> None:
        seen.append("eof")
        done.set()

    await service_channel.connect(near, lambda message, _: seen.append(message["t"]), on_eof)
    far.sendall(frame({"t": "failed"}))
    far.close()
    await done.wait()
    assert seen == ["failed", "eof"]
