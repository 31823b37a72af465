"""Bounded reads: what one client may bring in one turn of the event loop.

libuv reads one socket up to 32 times before it looks at the next one. A protocol of this module takes at most
`READ_BYTES` a turn: a read that fills the buffer pauses the socket until the next turn.
"""

import asyncio
from typing import Final

READ_BYTES: Final = 65_536
"""Bytes of one read. A worker's heartbeats come 300 at a time; a batch of 200 plays (40 KB) still comes in one read."""

FRAMES: Final = 32
"""Frames of one client that are parsed in one go, 0.3 ms of work. A player in a hurry sends eight."""

DIRECT_BYTES: Final = 8192
"""Bytes of a read that are dealt with at once, 0.3 ms of work. A longer read waits for its share of the next turn, but
for its first frame: any number of clients may send one in the same turn."""

_buffer = bytearray(READ_BYTES)
"""One for all connections of a process: what was read is copied out before the next read begins."""
_view = memoryview(_buffer)


class BoundedReader(asyncio.BufferedProtocol):
    """A protocol that is given what one read brought, at most `READ_BYTES` of it in one turn of the loop."""

    __slots__ = ()

    transport: asyncio.Transport | None

    def get_buffer(self, sizehint: int) -> bytearray:
        return _buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_view[:nbytes]))
        transport = self.transport
        if nbytes == READ_BYTES and transport is not None and not transport.is_closing():
            transport.pause_reading()
            asyncio.get_running_loop().call_soon(self.read_on)

    def data_received(self, data: bytes) -> None:
        """Take what one read brought."""
        raise NotImplementedError

    def read_on(self) -> None:
        """Read again, unless something else has paused the socket meanwhile. Called in a later turn."""
        raise NotImplementedError
