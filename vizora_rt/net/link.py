"""One connection to Redis: a URL into an `Address`, opened, greeted, replies handed on in order.

`store` and `bus` connect through here, so both authenticate, select and name themselves alike, and neither takes a
replica, a server that still loads its data, or a stream that is not RESP for a Redis that is up. `ask` and `probe` do
the same without a loop, for the supervisor and the command line.
"""

import asyncio
import contextlib
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Self, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from vizora_rt.config import TLS_FILES
from vizora_rt.errors import ConfigError, UnavailableError
from vizora_rt.wire.resp import Replies, ReplyError, pack

PORT = 6379
UNIX_PATH_BYTES = 107
"""sun_path of Linux has 108 bytes, the last one 0."""

UNASKED = "a reply that nobody asked for"

MAY_FAIL = ("CLIENT", "ROLE")
"""Managed services refuse these to some users; both are courtesies."""

TAKES_NO_WRITES: Final = frozenset({"OOM", "MISCONF", "NOREPLICAS"})
"""Errors of a server that answers reads and refuses writes. MISCONF is also the answer to a PING then."""

AUTH_ERRORS: Final = {
    "WRONGPASS": "wrong user or password",
    "NOAUTH": "a password is needed, and redis.url has none",
    "NOPERM": "permission denied",
}
"""Errors that only a person can mend: in redis.url, or in the rules of the user."""

PROTECTED: Final = "DENIED"
"""The error of a server in protected mode, behind which it closes: it has no password and listens to the world."""

RESERVED: Final = {"#": "%23", "/": "%2F", "?": "%3F", "@": "%40", " ": "%20"}
"""What ends or divides a URL (RFC 3986 section 2.2) and how it is written in a user or password."""

WITH_AT_SIGN: Final = (*TLS_FILES, "sentinel_user", "sentinel_password")
"""Options of a URL whose value may hold an @."""

_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_UNPRINTABLE: Final = re.compile(r"[\s\x00-\x1f\x7f]")

TLS_RECORD: Final = re.compile(r"\\x1[456]")
"""The first byte of a TLS record (RFC 8446 section 5.1), as the parser of RESP writes it in its error."""
NO_TLS: Final = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
"""How OpenSSL calls what a server without TLS answers."""
ALERTS: Final = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE")
"""Alerts of a TLS server that was given no certificate (RFC 8446 section 6.2), in OpenSSL's names."""


class FileError(OSError):
    """A file of TLS cannot be used; the text names its key."""


class UnansweredError(ConnectionError):
    """The connection ended before any reply."""


class RefusedError(ConnectionError):
    """Redis can be reached and refuses this user, password or database: nothing that time mends."""


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
    cert_file: str = ""
    key_file: str = ""

    @classmethod
    def parse(cls, url: str) -> Self:
        """redis://[[user]:password@]host[:port][/db], rediss://, valkey://, valkeys://, unix:///path.

        The database may also stand in `?db=`; rediss:// and valkeys:// take `ca_file`, `cert_file` and `key_file`.
        Raises ConfigError; its line never shows the URL, it may hold a password.
        """
        check_form(url)
        try:
            parts = urlsplit(url)
            port = PORT if parts.port is None else parts.port
            options = parse_options(parts.query)
            # RFC 6874: the % before the zone of a link-local address is escaped.
            host = (parts.hostname or "127.0.0.1").replace("%25", "%", 1)
            # The resolver encodes the name like this, and its UnicodeError is no OSError.
            host.encode("idna")
        except ValueError:
            raise ConfigError("redis.url: not a URL of the form redis://[user:password@]host[:port][/db]") from None
        in_path = "" if parts.scheme == "unix" else parts.path.strip("/")
        database = parse_database(options.pop("db", ""), in_path)
        tls = parts.scheme in ("rediss", "valkeys")
        files = {name: options.pop(name, "") for name in TLS_FILES} if tls else {}
        path = unquote(parts.path) if parts.scheme == "unix" else ""
        if parts.scheme not in ("redis", "rediss", "valkey", "valkeys", "unix"):
            raise ConfigError("redis.url: must begin with redis://, rediss:// or unix://")
        if options:
            there_are = f"there are db and, of rediss, {', '.join(TLS_FILES)}"
            raise ConfigError(f"redis.url: unknown option {one_line(sorted(options)[0])!r}: {there_are}")
        if bool(files.get("cert_file")) is not bool(files.get("key_file")):
            raise ConfigError("redis.url: a client certificate needs both cert_file and key_file")
        if parts.scheme == "unix" and not (path.startswith("/") and not parts.netloc.rpartition("@")[2]):
            raise ConfigError("redis.url: a Unix socket is unix:///absolute/path")
        if len(os.fsencode(path)) > UNIX_PATH_BYTES:
            raise ConfigError(f"redis.url: the path of a Unix socket has at most {UNIX_PATH_BYTES} bytes")
        if port == 0:
            raise ConfigError("redis.url: the port is a number from 1 to 65535")
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(host, port, path, database, user, password, tls, **files)

    def __str__(self) -> str:
        if self.path:
            return f"unix://{quote(self.path)}" + (f"?db={self.database}" if self.database else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis{'s' if self.tls else ''}://{host}:{self.port}/{self.database}"

    def greeting(self, name: str) -> list[tuple[str, bytes]]:
        """The first commands of a connection, by their word: who we are, which database, and is it a master."""
        commands: list[tuple[str, bytes]] = []
        if self.user or self.password:
            words = (self.user, self.password) if self.user else (self.password,)
            commands.append(("AUTH", pack("AUTH", *words)))
        if self.database:
            commands.append(("SELECT", pack("SELECT", self.database)))
        commands.append(("CLIENT", pack("CLIENT", "SETNAME", name)))
        commands.append(("ROLE", pack("ROLE")))
        commands.append(("PING", pack("PING")))
        return commands

    def tls_context(self) -> ssl.SSLContext | None:
        """None without TLS. Raises OSError that names the file which cannot be used."""
        if not self.tls:
            return None
        context = ssl.create_default_context()
        if self.ca_file:
            with _naming("ca_file", self.ca_file):
                context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file:
            with _naming("cert_file or key_file", self.cert_file):
                # A key with a passphrase would ask for it at the terminal, and the process would wait for ever.
                context.load_cert_chain(self.cert_file, self.key_file or None, password=lambda: "")
        return context


@contextlib.contextmanager
def _naming(key: str, path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise FileError(f"redis.{key}: {path}: {explain(error)}") from None


def check_form(url: str) -> None:
    """Refuse a URL whose user or password was not escaped: parsed as it stands, it would name another server.

    Raises ConfigError, which names the character and never shows a part of the URL.
    """
    scheme, _, rest = url.partition("://")
    if "#" in rest:
        raise _unescaped("#")
    if _UNPRINTABLE.search(url):
        raise _unescaped(" ")
    head, mark, query = rest.partition("?")
    authority, slash, path = head.partition("/")
    if authority.count("@") > 1:
        raise _unescaped("@")
    # A path of a Unix socket may hold an @, the path of a server is a number or a name of a master.
    if slash and "@" in path and scheme != "unix":
        raise _unescaped("/")
    if mark and "@" in query and "@" not in head:
        option = query.partition("@")[0].rpartition("&")[2].partition("=")
        # Values of these may hold one: paths and passwords.
        if not option[1] or option[0] not in WITH_AT_SIGN:
            raise _unescaped("?")
    names = authority.rpartition("@")[0]
    if _BAD_ESCAPE.search(names):
        raise ConfigError("redis.url: a % in the user or password must be written %25")


def parse_options(query: str) -> dict[str, str]:
    """What stands behind the `?` of a URL. Raises ConfigError for an option that stands there twice, else ValueError
    for what is no list of options."""
    options: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)):
        if name in options:
            raise ConfigError(f"redis.url: the option {one_line(name)!r} stands there twice")
        options[name] = value
    return options


def parse_database(*said: str) -> int:
    """The number of a database, which a URL may give in its path and in `?db=`; 0 when it gives none.

    Raises ConfigError for what is no number, and for two that differ.
    """
    given = {each for each in said if each}
    # int() takes "1_0", "+1" and digits of all scripts: a slip would select another database.
    if not all(each.isascii() and each.isdecimal() for each in given):
        raise ConfigError("redis.url: the database is a number from 0")
    if len({int(each) for each in given}) > 1:
        raise ConfigError("redis.url: the path and the option db name two databases")
    return int(given.pop()) if given else 0


def _unescaped(character: str) -> ConfigError:
    if character == " ":
        return ConfigError("redis.url: holds a space or a control character; a space in a password must be written %20")
    return ConfigError(f"redis.url: a {character} in the user or password must be written {RESERVED[character]}")


def fault(
    address: "Address", greeting: Sequence[tuple[str, bytes]], replies: Sequence[object]
) -> ConnectionError | None:
    """Why a server with these replies to `greeting` cannot be used; None when it can.

    One that refuses writes can be used: it answers reads, and may take writes again at any time.
    """
    for (word, _), reply in zip(greeting, replies, strict=True):
        if isinstance(reply, ReplyError):
            if word not in MAY_FAIL and reply.code not in TAKES_NO_WRITES:
                return _refused(address, word, reply)
        elif word == "CLUSTER" and isinstance(reply, bytes) and b"cluster_state:ok" not in reply:
            return ConnectionError("the cluster is down")
        elif word == "ROLE" and isinstance(reply, list) and reply and reply[0] != b"master":
            role = one_line(reply[0].decode(errors="replace"))
            if role == "sentinel":
                return RefusedError("it is a Sentinel: redis.url must begin with redis+sentinel://")
            return ConnectionError(f"it is a {role}, not a master")
    return None


def _refused(address: "Address", word: str, reply: ReplyError) -> ConnectionError:
    # No colon behind "password": the log would take what follows for one.
    said = one_line(f"{word} was answered {reply.code} {reply.message}")
    if word == "AUTH" and reply.code == "ERR":
        return RefusedError(f"it has no such password ({said})")
    if word == "SELECT" and reply.code == "ERR":
        return RefusedError(f"there is no database {address.database}: {said}")
    if reply.code in AUTH_ERRORS:
        return RefusedError(f"{AUTH_ERRORS[reply.code]} ({said})")
    return ConnectionError(said)


def turned_down(replies: Sequence[object]) -> ReplyError | None:
    """The error by which a server said in its greeting that it takes no writes."""
    return next((each for each in replies if isinstance(each, ReplyError) and each.code in TAKES_NO_WRITES), None)


def hint(address: "Address", error: OSError) -> str:
    """Why a connection could not be made, in one line; with what is likely when only one end speaks TLS."""
    said = explain(error)
    cause = error.__cause__ or error
    code = getattr(cause, "reason", None) or ""
    ended = isinstance(error, UnansweredError | ssl.SSLEOFError | ConnectionResetError | ConnectionAbortedError)
    if address.path:
        return said
    if not address.tls:
        return f"{said}; if it speaks TLS, use rediss://" if ended or TLS_RECORD.search(said) else said
    if code in NO_TLS:
        return f"{said}; it speaks no TLS: use redis://"
    if isinstance(error, TimeoutError):
        # Redis takes the first message of TLS for half a command, and waits for the rest.
        return f"{said}; if it speaks no TLS, use redis://"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"{said}; redis.ca_file names the authority to trust"
    if not address.cert_file and (ended or any(alert in code for alert in ALERTS)):
        return f"{said}; if it wants a client certificate, set redis.cert_file and redis.key_file"
    return said


def explain(error: BaseException | None) -> str:
    """An exception of a connection as one line."""
    if error is None:
        return "connection closed"
    if isinstance(error, TimeoutError) and not error.errno:
        return "timed out"
    if isinstance(error, OSError) and error.errno and not isinstance(error, socket.gaierror | ssl.SSLError):
        return os.strerror(error.errno)
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _ended(reason: str, replies: Sequence[object]) -> ConnectionError:
    """A connection ended early. A server that is full, or protected, says so and closes."""
    last = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
    said = one_line(f"{reason} after {last.code} {last.message}" if last is not None else reason)
    if last is not None and last.code == PROTECTED:
        return RefusedError(f"it takes connections of its own machine only: {said}")
    return ConnectionError(said) if replies else UnansweredError(said)


def one_line(text: str) -> str:
    """What a server said, fit for a log line."""
    return "".join(c if c.isprintable() else " " for c in text[:300]).strip()


class Link(asyncio.Protocol):
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
            raise _ended(self.reason, self._greeting) from self._error
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
        error = fault(address, greeting, replies)
        if error is not None:
            raise error
    except BaseException:
        link.drop("not greeted")
        raise
    link.turned_down = turned_down(replies)
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
            raise _ended(explain(error), answered) from error
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
            error = fault(address, greeting, self.ask([packed for _, packed in greeting]))
            if error is not None:
                raise error
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
    """See that the Redis at `url` can be reached and greeted. Blocks; raises as `ask_all` and `judge` do."""
    address = url if isinstance(url, Address) else Address.parse(url)
    greeting = address.greeting("vizora-probe")
    judge(address, fault(address, greeting, ask_all(address, [packed for _, packed in greeting], timeout)))


def ask_all(address: Address, commands: Sequence[bytes], timeout: float) -> list[object]:
    """As `ask`, for an operator: raises ConfigError when a file of TLS cannot be used, UnavailableError else."""
    try:
        return ask(address, commands, timeout)
    except FileError as wrong:
        raise ConfigError(explain(wrong)) from None
    except RefusedError as refused:
        raise ConfigError(f"Redis at {address} cannot be used: {refused}") from None
    except OSError as away:
        raise UnavailableError(f"Redis at {address} cannot be reached: {hint(address, away)}") from None


def judge(address: Address, error: ConnectionError | None) -> None:
    """Raises ConfigError for what Redis will refuse for ever, UnavailableError for what may pass; one line."""
    if isinstance(error, RefusedError):
        raise ConfigError(f"Redis at {address} cannot be used: {error}")
    if error is not None:
        raise UnavailableError(f"Redis at {address} cannot be used: {error}")


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
