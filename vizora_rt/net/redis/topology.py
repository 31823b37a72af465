"""Where Redis is: the URL of one server, of the Sentinels that name a master, or of a cluster. The only `redis`.

It finds masters and shards, and is not on the way of any command: `stores`, `cluster` and `direct` connect to what it
says. Everything that asks here blocks.
"""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Self
from urllib.parse import unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from vizora_rt.errors import ConfigError
from vizora_rt.net.redis import address as redis_address
from vizora_rt.net.redis.address import Address, one_line, parse_options
from vizora_rt.wire.resp import ReplyError

SENTINEL_PORT: Final = 26379
CLUSTER_PORT: Final = 6379

SENTINEL_FORM: Final = "redis+sentinel://[user:password@]host[:port][,host[:port]...]/master[/db]"
CLUSTER_FORM: Final = "redis+cluster://[user:password@]host[:port][,host[:port]...]"
SENTINEL_OPTIONS: Final = ("sentinel_user", "sentinel_password")

ONCE: Final = Retry(NoBackoff(), 0)
"""By itself the client would try one that is away ten times. The next one may know."""

SILENT: Final[dict[str, Any]] = (
    {"driver_info": None}
    if "driver_info" in inspect.signature(redis.Redis).parameters
    else {"lib_name": None, "lib_version": None}
)
"""Keeps the client from CLIENT SETINFO, which a user with few rights is denied. Its versions name it differently."""

Kind = Literal["server", "sentinel", "cluster"]
Ranges = Sequence[tuple[int, int, Address]]
"""First and last slot, and the master that has them."""


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """What a URL says. `seeds` are the server, the Sentinels, or some nodes of the cluster; `access` is how a server
    is greeted once its host and port are known. Its text never shows user or password."""

    kind: Kind
    seeds: tuple[Address, ...]
    credentials: Address
    master: str = ""
    sentinel_user: str = field(default="", repr=False)
    sentinel_password: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ConfigError; its line never shows the URL, it may hold a password."""
        redis_address.check_form(url)
        scheme = url.partition("://")[0]
        if scheme == "redis+sentinel":
            return cls._sentinel(url)
        if scheme == "redis+cluster":
            return cls._cluster(url)
        if scheme in ("rediss+sentinel", "rediss+cluster"):
            raise ConfigError(f"redis.url: TLS is for one server only (rediss://); there is no {scheme}://")
        address = Address.parse(url)
        return cls("server", (address,), address)

    @classmethod
    def _sentinel(cls, url: str) -> Self:
        access, seeds, path, options = _parts(url, SENTINEL_PORT, SENTINEL_FORM)
        words = path.strip("/").split("/") if path.strip("/") else []
        if not words:
            raise ConfigError(f"redis.url: the name of the master is missing: {SENTINEL_FORM}")
        if len(words) > 2 or (len(words) == 2 and not (words[1].isascii() and words[1].isdecimal())):
            raise ConfigError(f"redis.url: behind the master's name stands a database, a number: {SENTINEL_FORM}")
        own = {name: options.pop(name) for name in SENTINEL_OPTIONS if name in options}
        _refuse(options, f"there are {' and '.join(SENTINEL_OPTIONS)}")
        return cls("sentinel", seeds, replace(access, database=int((*words, "0")[1])), unquote(words[0]), **own)

    @classmethod
    def _cluster(cls, url: str) -> Self:
        access, seeds, path, options = _parts(url, CLUSTER_PORT, CLUSTER_FORM)
        if path.strip("/") not in ("", "0"):
            raise ConfigError("redis.url: a cluster has one database only, 0")
        _refuse(options, "a cluster has none")
        return cls("cluster", seeds, access)

    def __str__(self) -> str:
        if self.kind == "server":
            return str(self.credentials)
        hosts = ",".join(str(seed).partition("://")[2].partition("/")[0] for seed in self.seeds)
        database = f"/{self.credentials.database}" if self.credentials.database else ""
        return f"redis+sentinel://{hosts}/{self.master}{database}" if self.master else f"redis+cluster://{hosts}"

    def at(self, host: str, port: int) -> Address:
        """A server that was named by another."""
        return replace(self.credentials, host=host, port=port)


def find_master(where: RedisTarget, timeout: float) -> Address:
    """The master that Sentinels name. Raises OSError."""
    access: dict[str, Any] = {
        "username": where.sentinel_user or None,
        "password": where.sentinel_password or None,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": ONCE,
        **SILENT,
    }
    sentinel = Sentinel([(seed.host, seed.port) for seed in where.seeds], sentinel_kwargs=access)  # type: ignore[no-untyped-call]
    try:
        host, port = sentinel.discover_master(where.master)  # type: ignore[no-untyped-call]
    except redis.RedisError as error:
        raise ConnectionError(one_line(f"Sentinels: {error}")) from None
    finally:
        for each in sentinel.sentinels:
            each.close()
    return where.at(_text(host), int(port))


def find_shards(where: RedisTarget, known: Sequence[Address], timeout: float) -> Ranges:
    """Who has which slots, as the first says that answers of the `known` nodes and the URL's. Raises OSError."""
    reason = ""
    for node in dict.fromkeys((*known, *where.seeds)):
        client = redis.Redis(
            node.host,
            node.port,
            username=node.user or None,
            password=node.password or None,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=ONCE,
            **SILENT,
        )
        # As it came: what the client makes of it differs from version to version.
        client.set_response_callback("CLUSTER SLOTS", lambda reply, **_: reply)
        try:
            reply: Any = client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
        except (redis.RedisError, OSError) as error:
            reason = one_line(f"{node.host}:{node.port}: {error}")
        else:
            ranges = list(_ranges(where, node, reply))
            if ranges:
                return ranges
            reason = f"{node.host}:{node.port}: has no slots"
        finally:
            client.close()
    raise ConnectionError(f"no node of the cluster says where its slots are; {reason}")


def _ranges(where: RedisTarget, node: Address, reply: Any) -> Iterator[tuple[int, int, Address]]:
    """CLUSTER SLOTS: [[first, last, [host, port, id, ...], replicas ...], ...]."""
    for first, last, (host, port, *_), *_ in reply:
        # A node that does not know its own name has an empty one: the one that it was reached by will do.
        yield int(first), int(last), where.at(_text(host) or node.host, int(port))


def redirected(where: RedisTarget, reply: ReplyError, asked: Address) -> Address | None:
    """Where MOVED or ASK point, which the node said that was `asked`; None when that cannot be read."""
    host, _, port = reply.message.partition(" ")[2].rpartition(":")
    return where.at(host.strip("[]") or asked.host, int(port)) if port.isdecimal() else None


def _parts(url: str, port: int, form: str) -> tuple[Address, tuple[Address, ...], str, dict[str, str]]:
    """How servers are greeted, the hosts, what stands behind them, and the options."""
    try:
        parts = urlsplit(url)
        options = parse_options(parts.query)
        names, _, hosts = parts.netloc.rpartition("@")
        seeds = tuple(_host(host, port) for host in hosts.split(","))
    except ValueError:
        raise ConfigError(f"redis.url: not a URL of the form {form}") from None
    user, _, password = names.partition(":")
    access = Address(user=unquote(user), password=unquote(password))
    return access, tuple(replace(access, host=host, port=port) for host, port in seeds), parts.path, options


def _host(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(text)
    parts.hostname.encode("idna")
    if parts.port == 0:
        raise ValueError(text)
    return parts.hostname, parts.port or port


def _refuse(options: dict[str, str], there_are: str) -> None:
    if options:
        raise ConfigError(f"redis.url: unknown option {sorted(options)[0]!r}: {there_are}")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
