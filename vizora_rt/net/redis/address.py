"""Where a Redis is and how it is greeted: a URL into an `Address`; why a server cannot be used, in one line.

Over 300 lines because a URL, and every way in which a server can refuse it, is explained in one place.
"""

import contextlib
import os
import re
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from vizora_rt.config import TLS_FILES
from vizora_rt.errors import ConfigError
from vizora_rt.wire.resp import ReplyError, pack

PORT = 6379
UNIX_PATH_BYTES = 107
"""sun_path of Linux has 108 bytes, the last one 0."""

UNSOLICITED_REPLY = "a reply that nobody asked for"

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


class ServerRefusedError(ConnectionError):
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
            with naming("ca_file", self.ca_file):
                context = ssl.create_default_context(cafile=self.ca_file)
        if self.cert_file:
            with naming("cert_file or key_file", self.cert_file):
                # A key with a passphrase would ask for it at the terminal, and the process would wait for ever.
                context.load_cert_chain(self.cert_file, self.key_file or None, password=lambda: "")
        return context


@contextlib.contextmanager
def naming(key: str, path: str) -> Iterator[None]:
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
                return refused(address, word, reply)
        elif word == "CLUSTER" and isinstance(reply, bytes) and b"cluster_state:ok" not in reply:
            return ConnectionError("the cluster is down")
        elif word == "ROLE" and isinstance(reply, list) and reply and reply[0] != b"master":
            role = one_line(reply[0].decode(errors="replace"))
            if role == "sentinel":
                return ServerRefusedError("it is a Sentinel: redis.url must begin with redis+sentinel://")
            return ConnectionError(f"it is a {role}, not a master")
    return None


def refused(address: "Address", word: str, reply: ReplyError) -> ConnectionError:
    # No colon behind "password": the log would take what follows for one.
    said = one_line(f"{word} was answered {reply.code} {reply.message}")
    if word == "AUTH" and reply.code == "ERR":
        return ServerRefusedError(f"it has no such password ({said})")
    if word == "SELECT" and reply.code == "ERR":
        return ServerRefusedError(f"there is no database {address.database}: {said}")
    if reply.code in AUTH_ERRORS:
        return ServerRefusedError(f"{AUTH_ERRORS[reply.code]} ({said})")
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


def ended(reason: str, replies: Sequence[object]) -> ConnectionError:
    """A connection ended early. A server that is full, or protected, says so and closes."""
    last = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
    said = one_line(f"{reason} after {last.code} {last.message}" if last is not None else reason)
    if last is not None and last.code == PROTECTED:
        return ServerRefusedError(f"it takes connections of its own machine only: {said}")
    return ConnectionError(said) if replies else UnansweredError(said)


def one_line(text: str) -> str:
    """What a server said, fit for a log line."""
    return "".join(c if c.isprintable() else " " for c in text[:300]).strip()
