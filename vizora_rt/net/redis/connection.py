"""One connection to Redis: opened, greeted, replies handed on in order.

`client` and `pubsub` connect through here, so both authenticate, select and name themselves alike, and neither takes a
replica, a server that still loads its data, or a stream that is not RESP for a Redis that is up.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from vizora_rt.net.redis.address import UNSOLICITED_REPLY, Address, ended, explain, fault, one_line, turned_down
from vizora_rt.wire.resp import Replies, ReplyError


class RedisConnection(asyncio.Protocol):
    """A connection, made and greeted by `connect`; then `on_replies(replies)` per read and `on_lost(reason)` once."""

    __slots__ = (
        "_error",
        "_greeted",
        "_greeting",
        "_replies",
        "_wanted",
        "on_lost",
        "on_replies",
        "reason",
        "transport",
        "turned_down",
    )

    transport: asyncio.WriteTransport

    def __init__(self) -> None:
        self.on_replies: Callable[[list[object]], None] | None = None
        self.on_lost: Callable[[str], None] | None = None
        self.reason = ""
        self.turned_down: ReplyError | None = None
        """The error by which the server said in its greeting that it takes no writes."""
        self._error: Exception | None = None
        self._replies = Replies()
        self._greeting: list[object] = []
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._wanted = 0

    async def greet(self, commands: Sequence[bytes]) -> list[object]:
        """Send `commands` and wait for the reply to each. ConnectionError when the connection ends before that."""
        self._wanted = len(commands)
        self.transport.write(b"".join(commands))
        await self._greeted
        if self.reason:
            raise ended(self.reason, self._greeting) from self._error
        return self._greeting

    def drop(self, reason: str) -> None:
        """End the connection now; unsent bytes are lost. The first reason counts."""
        self.reason = self.reason or reason
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        replies = self._replies.read(data)
        if self.on_replies is not None:
            self.on_replies(replies)
        else:
            self._collect(replies)
        if self._replies.broken:
            self.drop(one_line(self._replies.broken))

    def connection_lost(self, error: Exception | None) -> None:
        self.reason = self.reason or explain(error)
        self._error = error
        if not self._greeted.done():
            self._greeted.set_result(None)
        if self.on_lost is not None:
            self.on_lost(self.reason)

    def _collect(self, replies: list[object]) -> None:
        self._greeting += replies
        if len(self._greeting) > self._wanted:
            self.drop(UNSOLICITED_REPLY)
        elif len(self._greeting) == self._wanted and not self._greeted.done():
            self._greeted.set_result(None)


async def connect(
    address: Address,
    name: str,
    on_replies: Callable[[list[object]], None],
    on_lost: Callable[[str], None],
    *,
    connect_timeout: float,
    reply_timeout: float,
    first: Sequence[tuple[str, bytes]] = (),
) -> RedisConnection:
    """Open a connection and greet the server; `first` are commands of the caller's to send with the greeting.

    Raises OSError when the server cannot be reached or used. Neither callback is called before this returns.
    """
    loop = asyncio.get_running_loop()
    greeting = [*address.greeting(name), *first]
    async with asyncio.timeout(connect_timeout):
        if address.path:
            _, link = await loop.create_unix_connection(RedisConnection, address.path)
        else:
            _, link = await loop.create_connection(
                RedisConnection, address.host, address.port, ssl=address.tls_context()
            )
    try:
        async with asyncio.timeout(reply_timeout):
            replies = await link.greet([packed for _, packed in greeting])
        error = fault(address, greeting, replies)
        if error is not None:
            raise error
    except BaseException:
        link.drop("not greeted")
        raise
    link.turned_down = turned_down(replies)
    link.on_replies, link.on_lost = on_replies, on_lost
    return link
