"""Bounded reads on real sockets: what one client can bring in one turn of the loop, whatever waits in the kernel."""

import asyncio
import socket
from collections import Counter
from typing import cast

from tests.net.peers import until
from vizora_rt.net.server.bounded_reader import READ_BYTES, BoundedReader


class Turns:
    """Counts the turns of the loop while it is asked to."""

    def __init__(self) -> None:
        self.number = 0
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self.number += 1
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def stop(self) -> None:
        self._handle.cancel()


class Reader(BoundedReader):
    """Counts the bytes of each turn; is paused until it is told to begin."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.read: Counter[int] = Counter()
        self.data = b""
        self.held = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.read[self.turns.number] += len(data)
        self.data += data

    def read_on(self) -> None:
        if self.transport is not None and not self.held:
            self.transport.resume_reading()


def filled(count: int) -> tuple[list[socket.socket], list[socket.socket], bytes]:
    """Pairs of sockets of which the first holds as much as the kernel takes, and what that is."""
    here, there = zip(*(socket.socketpair() for _ in range(count)), strict=True)
    data = b""
    for near, far in zip(here, there, strict=True):
        for each in (near, far):
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        data = b""
        try:
            while True:
                piece = len(data).to_bytes(8, "big") * 2048
                data += piece[: far.send(piece)]
        except BlockingIOError:
            pass
    return list(here), list(there), data


async def test_one_client_brings_no_more_than_one_read_a_turn() -> None:
    turns = Turns()
    here, there, data = filled(3)
    assert len(data) > 2 * READ_BYTES
    readers = []
    for each in here:
        _, reader = await asyncio.get_running_loop().create_connection(lambda: Reader(turns), sock=each)
        readers.append(reader)
    for reader in readers:
        reader.read_on()
    await until(lambda: all(len(reader.data) == len(data) for reader in readers))
    turns.stop()
    for reader in readers:
        assert max(reader.read.values()) == READ_BYTES
        assert reader.data == data  # whole, and in its order, though they share one buffer
    for each in there:
        each.close()
    await until(lambda: all(reader.transport is None for reader in readers))


async def test_a_paused_socket_stays_paused() -> None:
    turns = Turns()
    (here,), (there,), data = filled(1)
    _, reader = await asyncio.get_running_loop().create_connection(lambda: Reader(turns), sock=here)
    reader.held = True
    assert reader.transport is not None
    reader.transport.resume_reading()
    await until(lambda: reader.data)
    turn = turns.number
    await until(lambda: turns.number > turn + 10)
    assert len(reader.data) == READ_BYTES
    reader.held = False
    reader.read_on()
    await until(lambda: len(reader.data) == len(data))
    turns.stop()
    there.close()
    await until(lambda: reader.transport is None)
