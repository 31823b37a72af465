"""Asks a Redis, without a loop, for all that the gateway needs, and names what is missing.

For the start of the service, a reload, and `vizora-rt check-config`. Commands are really sent, on keys and a channel of
the probe's own: what a server answers to these is what the gateway would be answered.

Over 300 lines because each question to a server has its complaint beside it.
"""

import contextlib
import itertools
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from vizora_rt.errors import ConfigError, UnavailableError
from vizora_rt.net.redis import address as redis_address
from vizora_rt.net.redis import blocking, keys
from vizora_rt.net.redis.address import Address, explain, one_line
from vizora_rt.net.redis.topology import RedisTarget, find_master, find_shards
from vizora_rt.wire.resp import SLOTS, ReplyError, pack, slot

KEPT_SECONDS: Final = 60
"""Until a key of the probe is gone by itself, should the probe end before it deletes it."""

NOEVICTION: Final = "noeviction"
EVICTS: Final = (
    "has maxmemory-policy {policy}: with its memory full it deletes commands and plays; set maxmemory-policy noeviction"
)

Question = tuple[str, bytes]
"""What is asked about, in words for the operator, and the packed command."""

ARGUMENTS: Final[dict[str, tuple[str | int, ...]]] = {
    # Behind the key, which holds a string: what is written to it as another type is answered WRONGTYPE, which is an
    # answer of the command itself.
    "EXPIRE": (KEPT_SECONDS,),
    "HDEL": ("f",),
    "HGET": ("f",),
    "HINCRBY": ("f", 1),
    "HMGET": ("f",),
    "HSCAN": (0,),
    "HSET": ("f", "v"),
    "HSETNX": ("f", "v"),
    "LINDEX": (0,),
    "LPUSH": ("v",),
    "LRANGE": (0, 0),
    "LREM": (0, "v"),
    "LTRIM": (0, 0),
    "PEXPIREAT": (1,),
    "RPUSH": ("v",),
    "SADD": ("v",),
    "SET": ("1", "EX", KEPT_SECONDS),
    "SSCAN": (0,),
    "XADD": ("*", "f", "v"),
    "XPENDING": ("g",),
    "XREVRANGE": ("+", "-", "COUNT", 1),
    "XTRIM": ("MINID", "0-1"),
    "ZADD": (1, "v"),
    "ZRANGE": (0, 0),
    "ZRANGEBYSCORE": (0, 0),
    "ZREM": ("v",),
    "ZREVRANGE": (0, 0),
    "ZSCAN": (0,),
    "ZSCORE": ("v",),
}
"""By command; one that is not here needs none."""

FAMILIES: Final = (
    "vz:orgs", "vz:nodes", "vz:lease:sweeper", "vz:events", "vz:due", "vz:schema", "vz:{d:vz-probe}:status",
    "vz:{o:vz-probe}:devices", "vz:{p:0}:plays", "vz:{c:vz-probe}", "vz:{s:vz-probe}", "vz:{i:vz-probe}",
)  # fmt: skip
"""One key of each kind that the gateway has. They are only read, and a field is deleted that none of them has."""

FIELD: Final = "vz-probe"

IN_A_CLUSTER: Final = "it is a node of a cluster: redis.url must begin with redis+cluster://"

COURTESIES: Final = frozenset({"CLIENT", "ROLE", "INFO"})


@dataclass(slots=True)
class Found:
    """What one server said."""

    address: Address
    cluster: bool = False
    """Whether the URL says that it is a node of one."""
    missing: list[str] = field(default_factory=list)
    """What the user is not allowed or the server does not have."""
    notes: list[str] = field(default_factory=list)
    """What is not as it should be, and keeps nobody from starting."""
    refused: ReplyError | None = None
    """The error by which it takes no writes."""
    wrong: str = ""
    """Why it is not the server that the URL says."""


@dataclass(frozen=True, slots=True)
class Report:
    """What was found: a line of what can be used, and what an operator should know of it."""

    text: str
    notes: tuple[str, ...] = ()


def probe(url: str, timeout: float) -> Report:
    """See that the Redis at `url` can be reached and has what the gateway needs. Blocks.

    `timeout`: seconds for each server. Raises ConfigError with one line that names what only an operator can mend:
    the URL, the password, the rights of the user, the version. Raises UnavailableError when time may mend it.
    """
    where = RedisTarget.parse(url)
    servers, text = _locate(where, timeout)
    found = [_ask(where, address, tags, timeout) for address, tags in servers]
    for server in found:
        if server.wrong:
            raise ConfigError(f"Redis at {server.address} cannot be used: {server.wrong}")
        if server.missing:
            raise ConfigError(
                f"Redis at {server.address} lacks what the gateway needs: {'; '.join(server.missing)}. "
                "docs/redis.md has the rules of a user that may do all of it"
            )
    notes = dict.fromkeys(note for server in found for note in _notes(server))
    return Report(text, tuple(notes))


def _notes(found: Found) -> Iterator[str]:
    if found.refused is not None:
        yield one_line(f"Redis at {found.address} takes no writes: {found.refused.code} {found.refused.message}")
    yield from found.notes


def _locate(where: RedisTarget, timeout: float) -> tuple[list[tuple[Address, str]], str]:
    """The servers to ask, each with a hash tag that it has the slot of, and what is said of them."""
    if where.kind == "server":
        return [(where.credentials, FIELD)], "Redis can be reached and used"
    try:
        if where.kind == "sentinel":
            master = find_master(where, timeout)
            text = f"Sentinels name {master.host}:{master.port} as {where.master}; it can be reached and used"
            return [(master, FIELD)], text
        ranges = sorted(find_shards(where, (), timeout), key=lambda each: each[0])
    except OSError as error:
        complaint = _complaint(where, timeout)
        if complaint:
            raise ConfigError(f"Redis at {where} cannot be used: {complaint}") from None
        raise UnavailableError(f"Redis at {where} cannot be found: {explain(error)}") from None
    tags: dict[Address, str] = {}
    for first, last, address in ranges:
        tags.setdefault(address, _tag(first, last))
    covered = sum(last - first + 1 for first, last, _ in ranges)
    if covered < SLOTS:
        raise UnavailableError(f"Redis at {where} cannot be used: nobody has {SLOTS - covered} of its {SLOTS} slots")
    names = sorted(f"{address.host}:{address.port}" for address in tags)
    return list(tags.items()), f"the cluster has {len(tags)} shards ({', '.join(names)}); all can be reached and used"


def _complaint(where: RedisTarget, timeout: float) -> str:
    """What Sentinels, or nodes of the cluster, refuse that only an operator can mend; "" when it is something else.

    They are asked once more, because an exception of a client library tells no code.
    """
    sentinel = where.kind == "sentinel"
    question = pack("SENTINEL", "GET-MASTER-ADDR-BY-NAME", where.master) if sentinel else pack("CLUSTER", "SLOTS")
    for seed in where.seeds:
        who = replace(seed, user=where.sentinel_user, password=where.sentinel_password) if sentinel else seed
        greeting = [each for each in replace(who, database=0).greeting("vizora-probe") if each[0] in ("AUTH", "PING")]
        with contextlib.suppress(OSError):
            replies = blocking.ask(who, [*(packed for _, packed in greeting), question], timeout)
            error = redis_address.fault(who, greeting, replies[:-1])
            if isinstance(error, redis_address.ServerRefusedError):
                return f"{seed.host}:{seed.port}: {error}"
            said = replies[-1]
            if isinstance(said, ReplyError):
                kind = "no Sentinel" if sentinel else "no node of a cluster"
                denied = said.code == "NOPERM"
                why = "permission denied" if denied else f"it is {kind}"
                return one_line(f"{seed.host}:{seed.port}: {why}: {said.code} {said.message}")
    return ""


def _tag(first: int, last: int) -> str:
    """A hash tag of these slots."""
    tags = (f"{FIELD}-{number}" for number in itertools.count())
    return next(tag for tag in tags if first <= slot(tag.encode()) <= last)


def _ask(where: RedisTarget, address: Address, tag: str, timeout: float) -> Found:
    cluster = where.kind == "cluster"
    greeting = address.greeting("vizora-probe")
    packet = [packed for _, packed in greeting]
    greeted = blocking.ask_all(address, packet, timeout)
    found, denied = Found(address, cluster), dict[str, list[str]]()
    for index, ((word, _), reply) in enumerate(zip(greeting, greeted, strict=True)):
        # Named with all else that is denied.
        if isinstance(reply, ReplyError) and reply.code == "NOPERM":
            _judge(found, denied, word, reply)
            greeted[index] = None
    blocking.judge(address, redis_address.fault(address, greeting, greeted))
    questions = list(_questions(cluster, address.database, tag))
    replies = blocking.ask_all(address, [*packet, *(packed for _, packed in questions)], timeout)[len(packet) :]
    # Behind a subscription, other commands are not taken: it has a connection of its own.
    subscription = list(_subscription(cluster, address.database, tag))
    replies += blocking.ask_all(address, [*packet, *(packed for _, packed in subscription)], timeout)[len(packet) :]
    for (name, _), reply in zip((*questions, *subscription), replies, strict=True):
        if isinstance(reply, ReplyError):
            _judge(found, denied, name, reply)
        elif name == "INFO":
            found.notes += _of_info(found, reply)
    found.missing += [f"{kind} {', '.join(dict.fromkeys(names))}" for kind, names in denied.items()]
    return found


def _questions(cluster: bool, database: int, tag: str) -> Iterator[Question]:
    """All that is asked of one server. The name of a question is a command, or a command and what it is asked for."""
    mine = f"vz:{{{tag}}}:{secrets.token_hex(4)}"
    # First of all the key that the others need; last of all it is deleted.
    yield "SET", pack("SET", mine, *ARGUMENTS["SET"])
    for name in (*keys.READS, *keys.WRITES):
        if name not in ("SET", "DEL"):
            words = name.split("|")
            key = f"{mine}:none" if name in ("XTRIM", "PEXPIREAT") else mine
            yield name, pack(*words, key, *ARGUMENTS.get(words[0], ()))
    yield "TIME", pack("TIME")
    yield "EVAL", pack("EVAL", "return 1", 0)
    yield "EVALSHA", pack("EVALSHA", "0" * 40, 0)
    yield "SCRIPT|LOAD", pack("SCRIPT", "LOAD", "return 1")
    for key in FAMILIES:
        yield f"GET {keys.KEYS[0]}", pack("GET", key)
        yield f"HDEL {keys.KEYS[0]}", pack("HDEL", key, FIELD)
    (revoked,) = keys.REVOKED
    yield f"EXISTS {revoked}", pack("EXISTS", revoked.replace("*", FIELD))
    yield f"DEL {revoked}", pack("DEL", revoked.replace("*", FIELD))
    for pattern in keys.SESSIONS:
        yield f"GET {pattern}", pack("GET", pattern.replace("*", FIELD))
    publish = "SPUBLISH" if cluster else "PUBLISH"
    for channel in _channels(database, tag):
        yield f"{publish} {keys.CHANNELS[0]}", pack(publish, channel, "{}")
    if cluster:
        yield "CLUSTER|INFO", pack("CLUSTER", "INFO")
        yield "ASKING", pack("ASKING")
    yield "INFO", pack("INFO")
    yield "DEL", pack("DEL", mine)


def _channels(database: int, tag: str) -> tuple[str, str]:
    """Channels like those of the gateway, which no worker subscribes to."""
    organization = keys.organization_channel(database, f"{{{tag}}}")
    return organization, keys.node_channel(database, f"{{{tag}}}", FIELD)


def _subscription(cluster: bool, database: int, tag: str) -> Iterator[Question]:
    channel = _channels(database, tag)[0]
    for word in ("SSUBSCRIBE", "SUNSUBSCRIBE") if cluster else ("SUBSCRIBE", "UNSUBSCRIBE"):
        yield word, pack(word, channel)


def _judge(found: Found, denied: dict[str, list[str]], name: str, reply: ReplyError) -> None:
    """What an error means. Most mean that the command was run, and found a key of another type."""
    command, _, what = name.partition(" ")
    if command in COURTESIES:
        if command == "INFO":
            found.notes.append(f"Redis at {found.address} denies INFO: its memory and maxmemory-policy are not watched")
    elif reply.code == "NOPERM":
        # Redis names a key or a channel as such; else it is the command that is denied.
        pubsub = command in (*keys.PUBSUB, *keys.CLUSTER_PUBSUB)
        if " key" in reply.message:
            denied.setdefault("permission for keys", []).append(what or keys.KEYS[0])
        elif " channel" in reply.message and pubsub:
            denied.setdefault("permission for channels", []).append(keys.CHANNELS[0])
        else:
            denied.setdefault("permission for commands", []).append(command)
    elif reply.code == "ERR" and "unknown" in reply.message.lower():
        denied.setdefault("commands that it does not know (renamed, or an old version)", []).append(command)
    elif command == "XTRIM" and reply.code == "ERR":
        denied.setdefault("XTRIM MINID, which is of version", []).append(_dotted(keys.VERSION))
    elif reply.code in redis_address.TAKES_NO_WRITES:
        found.refused = reply
    elif reply.code == "READONLY":
        found.wrong = "it is a read-only replica, not a master"
    elif reply.code == "MOVED" and not found.cluster:
        found.wrong = IN_A_CLUSTER


def _of_info(found: Found, reply: object) -> list[str]:
    """What INFO says of the version and the policy. A server may refuse it: it is a courtesy."""
    if not isinstance(reply, bytes):
        return []
    lines = dict(line.partition(":")[::2] for line in reply.decode(errors="replace").splitlines())
    if lines.get("redis_mode") == "cluster" and not found.cluster:
        found.wrong = IN_A_CLUSTER
    old = _old(lines)
    if old:
        found.missing.append(old)
    policy = one_line(lines.get("maxmemory_policy", NOEVICTION))
    return [] if policy == NOEVICTION else [f"Redis at {found.address} {EVICTS.format(policy=policy)}"]


def _old(lines: dict[str, str]) -> str:
    """That the version is too old, or nothing. Valkey says a version of Redis too, with which it is compatible."""
    wanted = keys.CLUSTER_VERSION if lines.get("redis_mode") == "cluster" else keys.VERSION
    said = lines.get("redis_version", "")
    parts = said.split(".")[:2]
    if not all(part.isdecimal() for part in parts) or tuple(map(int, parts)) >= wanted:
        return ""
    return f"version {_dotted(wanted)} or newer (it is {one_line(said)})"


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))
