"""One connection to Redis: a URL into an `Address`, opened, greeted, replies handed on in order.

`store` and `bus` connect through here, so both authenticate, select and name themselves alike, and neither takes a
replica, a server that still loads its data, or a stream that is not RESP for a Redis that is up. `ask` and `probe` do
the same without a loop, for the supervisor and the command line.
"""

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from vizora_rt.errors import ConfigError, UnavailableError
from vizora_rt.wire.resp import Replies, ReplyError, pack

PORT = 6379
UNIX_PATH_BYTES = 107
"""sun_path of Linux has 108 bytes, the last one 0."""

UNASKED = "a reply that nobody asked for"

MAY_FAIL = ("CLIENT", "ROLE")
"""Managed services refuse these to some users; both are courtesies."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is and who we are to it. Its text never shows user or password."""

    host: str = "127.0.0.1"
    port: int = PORT
    path: str = ""
    database: int = 0
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    tls: bool = False
    ca_file: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """redis://[[user]:password@]host[:port][/db], rediss:// (`?ca_file=`), valkey://, valkeys://, unix:///path.

        The database may also stand in `?db=`. Raises ConfigError; its line never shows the URL, it may hold a password.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or PORT
            options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
            database = int(options.pop("db", "") or (parts.path.strip("/") if parts.scheme != "unix" else "") or 0)
            host = parts.hostname or "127.0.0.1"
            # The resolver encodes the name like this, and its UnicodeError is no OSError.
            host.encode("idna")
        except ValueError:
            raise ConfigError("redis.url: not a URL of the form redis://[user:password@]host[:port][/db]") from None
        tls = parts.scheme in ("rediss", "valkeys")
        ca_file = options.pop("ca_file", "") if tls else ""
        path = unquote(parts.path) if parts.scheme == "unix" else ""
        if parts.scheme not in ("redis", "rediss", "valkey", "valkeys", "unix"):
            raise ConfigError("redis.url: must begin with redis://, rediss:// or unix://")
        if options:
            raise ConfigError(f"redis.url: unknown option {sorted(options)[0]!r}: there are db and, of rediss, ca_file")
        if parts.scheme == "unix" and not (path.startswith("/") and not parts.netloc.rpartition("@")[2]):
            raise ConfigError("redis.url: a Unix socket is unix:///absolute/path")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES:
            raise ConfigError(f"redis.url: the path of a Unix socket has at most {UNIX_PATH_BYTES} bytes")
        if database < 0:
            raise ConfigError("redis.url: the database is a number from 0")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(host, port, path, database, user, password, tls, ca_file)

    def __str__(self) -> str:
        if self.path:
            return f"unix://{quote(self.path)}" + (f"?db={self.database}" if self.database else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis{'s' if self.tls else ''}://{host}:{self.port}/{self.database}"

    def greeting(self, name: str) -> list[tuple[str, bytes]]:
        """The first commands of a connection, by their word: who we are, which database, and is it a master."""
        commands: list[tuple[str, bytes]] = []
        if self.password:
            words = (self.user, self.password) if self.user else (self.password,)
            commands.append(("AUTH", pack("AUTH", *words)))
        if self.database:
            commands.append(("SELECT", pack("SELECT", self.database)))
        commands.append(("CLIENT", pack("CLIENT", "SETNAME", name)))
        commands.append(("ROLE", pack("ROLE")))
        commands.append(("PING", pack("PING")))
        return commands

    def tls_context(self) -> ssl.SSLContext | None:
        return ssl.create_default_context(cafile=self.ca_file or None) if self.tls else None


def fault(greeting: Sequence[tuple[str, bytes]], replies: Sequence[object]) -> str:
    """Why a server with these replies to `greeting` cannot be used, in one line; "" when it can."""
    for (word, _), reply in zip(greeting, replies, strict=True):
        if isinstance(reply, ReplyError):
            if word not in MAY_FAIL:
                return one_line(f"{word} was answered {reply.code} {reply.message}")
        elif word == "CLUSTER" and isinstance(reply, bytes) and b"cluster_state:ok" not in reply:
            return "the cluster is down"
        elif word == "ROLE" and isinstance(reply, list) and reply and reply[0] != b"master":
            return one_line(f"it is a {reply[0].decode(errors='replace')}, not a master")
    return ""


def explain(error: BaseException | None) -> str:
    """An exception of a connection as one line."""
    if error is None:
        return "connection closed"
    if isinstance(error, TimeoutError) and not error.errno:
        return "timed out"
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror | ssl.SSLError):
        return os.strerror(error.errno)
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _with_last_words(reason: str, replies: Sequence[object]) -> str:
    """A server that is full, or protected, says so and closes."""
    said = next((f" after {reply.code} {reply.message}" for reply in replies if isinstance(reply, ReplyError)), "")
    return one_line(reason + said)


def one_line(text: str) -> str:
    """What a server said, fit for a log line."""
    return "".join(c if c.isprintable() else " " for c in text[:300]).strip()


class Link(asyncio.Protocol):
    """A connection, made and greeted by `connect`; then `on_replies(replies)` per read and `on_lost(reason)` once."""

    __slots__ = ("_greeted", "_greeting", "_replies", "_wanted", "on_lost", "on_replies", "reason", "transport")

    transport: asyncio.WriteTransport

    def __init__(self) -> None:
        self.on_replies: Callable[[list[object]], None] | None = None
        self.on_lost: Callable[[str], None] | None = None
        self.reason = ""
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
            raise ConnectionError(_with_last_words(self.reason, self._greeting))
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
        if not self._greeted.done():
            self._greeted.set_result(None)
        if self.on_lost is not None:
            self.on_lost(self.reason)

    def _collect(self, replies: list[object]) -> None:
        self._greeting += replies
        if len(self._greeting) > self._wanted:
            self.drop(UNASKED)
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
) -> Link:
    """Open a connection and greet the server; `first` are commands of the caller's to send with the greeting.

    Raises OSError when the server cannot be reached or used. Neither callback is called before this returns.
    """
    loop = asyncio.get_running_loop()
    greeting = [*address.greeting(name), *first]
    async with asyncio.timeout(connect_timeout):
        if address.path:
            _, link = await loop.create_unix_connection(Link, address.path)
        else:
            _, link = await loop.create_connection(Link, address.host, address.port, ssl=address.tls_context())
    try:
        async with asyncio.timeout(reply_timeout):
            replies = await link.greet([packed for _, packed in greeting])
        reason = fault(greeting, replies)
        if reason:
            raise ConnectionError(reason)
    except BaseException:
        link.drop("not greeted")
        raise
    link.on_replies, link.on_lost = on_replies, on_lost
    return link


def ask(address: Address, commands: Sequence[bytes], timeout: float) -> list[object]:
    """Send `commands` over a connection of their own and return the replies. Blocks; raises OSError."""
    deadline = time.monotonic() + timeout
    stream, replies, answered = _socket(address, timeout), Replies(), list[object]()
    with stream:
        try:
            stream.sendall(b"".join(commands))
            while len(answered) < len(commands):
                stream.settimeout(max(0.001, deadline - time.monotonic()))
                data = stream.recv(65536)
                answered += replies.read(data)
                if replies.broken or not data:
                    raise ConnectionError(one_line(replies.broken) or explain(None))
        except ConnectionError as error:
            with contextlib.suppress(OSError):
                # A server that is full speaks before it is asked; what it said may still be there to read.
                stream.setblocking(False)
                answered += replies.read(stream.recv(65536))
            raise ConnectionError(_with_last_words(explain(error), answered)) from None
    if len(answered) > len(commands):
        raise ConnectionError(UNASKED)
    return answered


class Line:
    """A greeted connection for a command that runs for a while and may block. Its calls raise OSError."""

    __slots__ = ("_replies", "_stream")

    def __init__(self, address: Address, name: str, timeout: float) -> None:
        self._replies = Replies()
        self._stream = _socket(address, timeout)
        greeting = address.greeting(name)
        try:
            reason = fault(greeting, self.ask([packed for _, packed in greeting]))
            if reason:
                raise ConnectionError(reason)
        except BaseException:
            self.close()
            raise

    def ask(self, commands: Sequence[bytes]) -> list[object]:
        """Send `commands` and wait for the reply to each."""
        self._stream.sendall(b"".join(commands))
        answered: list[object] = []
        while len(answered) < len(commands):
            data = self._stream.recv(1 << 20)
            answered += self._replies.read(data)
            if self._replies.broken or not data:
                raise ConnectionError(one_line(self._replies.broken) or explain(None))
        if len(answered) > len(commands):
            raise ConnectionError(UNASKED)
        return answered

    def close(self) -> None:
        self._stream.close()


def probe(url: str | Address, timeout: float) -> None:
    """See that the Redis at `url` can be reached and used. Blocks; raises ConfigError or UnavailableError, one line."""
    address = url if isinstance(url, Address) else Address.parse(url)
    greeting = address.greeting("vizora-probe")
    try:
        reason = fault(greeting, ask(address, [packed for _, packed in greeting], timeout))
    except OSError as error:
        raise UnavailableError(f"Redis at {address} cannot be reached: {explain(error)}") from None
    if reason:
        raise UnavailableError(f"Redis at {address} cannot be used: {reason}")


def _socket(address: Address, timeout: float) -> socket.socket:
    if not address.path:
        context = address.tls_context()
        stream = socket.create_connection((address.host, address.port), timeout)
        return context.wrap_socket(stream, server_hostname=address.host) if context else stream
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout)
    try:
        stream.connect(address.path)
    except OSError:
        stream.close()
        raise
    return stream
