"""The control channel between the supervisor and a worker: messages over a Unix socket pair.

A frame is the length of what follows and the length of its JSON part (4 bytes each, big endian), the JSON, then raw
bytes: a rendered exposition of 10 MB travels beside its JSON, not as a string inside it. The framing and `hello` never
change; everything else may when VERSION does.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from vizora_rt.wire import messages

VERSION = 2
"""Of the messages. A worker of another version (new code on the disk below a running supervisor) is not let in."""

MAX_FRAME = 256 * 1024 * 1024
"""An exposition of 20,000 devices has about 10 MB; a longer length is a torn stream, not a message."""

HEADER = struct.Struct(">II")

Message = dict[str, Any]


class Channel(asyncio.Protocol):
    """One end. `on_message(message, raw)` per frame, then `on_eof()` once: the other side is gone."""

    __slots__ = ("_buffer", "_ended", "_on_eof", "_on_message", "_transport")

    def __init__(self, on_message: Callable[[Message, bytes], None], on_eof: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_eof = on_eof
        self._buffer = bytearray()
        self._transport: asyncio.WriteTransport | None = None
        self._ended = False

    @property
    def unsent(self) -> int:
        """Bytes that the other side has not taken yet. 0 once the channel is closed."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def send(self, message: Message, raw: bytes = b"") -> None:
        """Queue a frame; nothing happens once the channel is closed."""
        if self._transport is not None:
            text = messages.dumps(message)
            self._transport.write(HEADER.pack(4 + len(text) + len(raw), len(text)) + text + raw)

    def close(self) -> None:
        """Write what is queued, then close."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while not self._ended and len(self._buffer) >= HEADER.size:
            total, size = HEADER.unpack_from(self._buffer)
            if not 4 + size <= total <= MAX_FRAME:
                self._end()
                return
            end = 4 + total
            if len(self._buffer) < end:
                return
            text = bytes(self._buffer[HEADER.size : HEADER.size + size])
            raw = bytes(self._buffer[HEADER.size + size : end])
            del self._buffer[:end]
            try:
                message = messages.loads(text)
            except messages.JSONError:
                self._end()
                return
            self._on_message(message, raw)

    def connection_lost(self, _: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self.close()
            self._transport = None
            self._on_eof()


async def connect(
    end: socket.socket, on_message: Callable[[Message, bytes], None], on_eof: Callable[[], None]
) -> Channel:
    """A channel over `end`, one end of a Unix socket pair, in the running loop."""
    end.setblocking(False)
    loop = asyncio.get_running_loop()
    _, channel = await loop.create_unix_connection(lambda: Channel(on_message, on_eof), sock=end)
    return channel
