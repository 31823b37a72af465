"""What the gateway uses of Redis: names of channels, and the commands, keys and channels that its user must be allowed.

The only list of these. `probe` asks a server for each of them, and docs/redis.md has the user that they make.
"""

from typing import Final

VERSION: Final = (6, 2)
"""XTRIM MINID and XAUTOCLAIM came with it."""
CLUSTER_VERSION: Final = (7, 0)
"""SPUBLISH and SSUBSCRIBE came with it."""

CONNECTION: Final = ("PING", "SELECT")
SCRIPTING: Final = ("EVAL", "EVALSHA", "SCRIPT|LOAD")
READS: Final = (
    "EXISTS", "GET", "HGET", "HGETALL", "HKEYS", "HMGET", "HSCAN", "LINDEX", "LLEN", "LRANGE", "MGET", "PTTL",
    "SSCAN", "XINFO|GROUPS", "XLEN", "XPENDING", "XREVRANGE", "ZCARD", "ZRANGE", "ZRANGEBYSCORE",
    "ZREVRANGE", "ZSCAN", "ZSCORE",
)  # fmt: skip
WRITES: Final = (
    "DEL", "EXPIRE", "HDEL", "HINCRBY", "HSET", "HSETNX", "LPOP", "LPUSH", "LREM", "LTRIM", "PEXPIREAT", "RPOP",
    "RPUSH", "SADD", "SET", "XADD", "XTRIM", "ZADD", "ZREM",
)  # fmt: skip
KEYLESS: Final = ("TIME",)
PUBSUB: Final = ("PUBLISH", "SUBSCRIBE", "UNSUBSCRIBE")
CLUSTER_PUBSUB: Final = ("SPUBLISH", "SSUBSCRIBE", "SUNSUBSCRIBE")
CLUSTER: Final = ("CLUSTER|SLOTS", "CLUSTER|INFO", "ASKING")

COURTESIES: Final = ("CLIENT|SETNAME", "ROLE", "INFO")
"""What may be refused: a name in CLIENT LIST, whether the server is a master, its version, memory and policy."""
READERS: Final = ("XACK", "XAUTOCLAIM", "XGROUP|CREATE", "XRANGE", "XREADGROUP")
"""What only `vizora-rt plays` and `vizora-rt events` need."""

KEYS: Final = ("vz:*",)
REVOKED: Final = ("revoked_token:*",)
"""Read and written: the gateway revokes tokens too."""
SESSIONS: Final = ("user_revoked:*", "pwd_changed:*")
"""Other services write these; the gateway reads them."""
CHANNELS: Final = ("vz:*",)

ORGANIZATION: Final = "org:"
NODE: Final = "node:"


def prefix(database: int) -> str:
    """How the channels of a database begin. Redis has channels for all databases together; keys it has for each.

    Those of database 0 have no number: releases before this one gave none to any.
    """
    return f"vz:db{database}:" if database else "vz:"


NODE_CHANNELS: Final = 6
"""Of a worker in a cluster. With one shard of three away all six are on it for one worker in 729."""


def organization_channel(database: int, organization: str) -> str:
    """What is published to workers that have clients of an organisation."""
    return f"{prefix(database)}{ORGANIZATION}{organization}"


def node_channel(database: int, node: str, worker: int | str) -> str:
    """What is published to one worker."""
    return f"{prefix(database)}{NODE}{node}:{worker}"


def node_channels(database: int, node: str, worker: int | str, cluster: bool) -> list[str]:
    """The channels that a worker hears, the one to use first. In a cluster there are several, on as many shards as it
    falls out: while the shard of one is away, control messages come over another."""
    first = node_channel(database, node, worker)
    return [first, *(f"{first}:{copy}" for copy in range(1, NODE_CHANNELS if cluster else 1))]


def commands(cluster: bool) -> tuple[str, ...]:
    """All commands that a service needs, in the form of an ACL rule."""
    pubsub = (*CLUSTER_PUBSUB, *CLUSTER) if cluster else PUBSUB
    return (*CONNECTION, *SCRIPTING, *READS, *WRITES, *KEYLESS, *pubsub)


def acl(cluster: bool, readers: bool = True) -> list[str]:
    """The rules of a user that may do what the gateway does, and nothing else: for ACL SETUSER, behind its password."""
    names = (*commands(cluster), *COURTESIES, *(READERS if readers else ()))
    keys = [f"~{pattern}" for pattern in (*KEYS, *REVOKED, *SESSIONS)]
    return ["resetkeys", *keys, "resetchannels", *(f"&{pattern}" for pattern in CHANNELS), "-@all",
            *(f"+{name.lower()}" for name in names)]  # fmt: skip
