"""A backend that reads plays from Redis with a consumer group, and acknowledges each after it has handled it.

    python examples/read_plays.py redis://127.0.0.1:6379/0 billing

`vizora-rt plays export` does the same from the command line. An entry that was handled and not acknowledged comes
again after a restart: `play_id` and `phase` name it, so that a database can refuse the second one.
"""

import sys
from collections.abc import Iterator
from typing import Any

import redis

PARTITIONS_KEY = "vz:schema"
BLOCK_MS = 5000


def streams(store: Any) -> list[str]:
    """The names of all streams of plays. Raises LookupError before a gateway has used this Redis."""
    count = store.hget(PARTITIONS_KEY, "partitions")
    if count is None:
        raise LookupError("no gateway has used this Redis yet")
    return [f"vz:{{p:{number}}}:plays" for number in range(int(count))]


def plays(store: Any, group: str, consumer: str) -> Iterator[dict[str, str]]:
    """Yields each play for ever, first those that this consumer was given before and did not acknowledge."""
    names = streams(store)
    for name in names:
        try:
            store.xgroup_create(name, group, id="0", mkstream=True)
        except redis.ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
    after = dict.fromkeys(names, "0")  # "0": those given before; ">": new ones.
    while True:
        for name, entries in store.xreadgroup(group, consumer, after, count=100, block=BLOCK_MS) or []:
            if not entries:
                after[name] = ">"
            for entry, fields in entries:
                yield {"entry": entry, **(fields or {})}  # None: trimmed since this consumer was given it
                store.xack(name, group, entry)
                if after[name] != ">":
                    after[name] = entry


if __name__ == "__main__":
    for play in plays(redis.Redis.from_url(sys.argv[1], decode_responses=True), sys.argv[2], "reader-1"):
        print(play, flush=True)
