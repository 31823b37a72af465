"""Ask Redis without a loop, wherever it is: one connection, or of a cluster one to each shard that is asked.

For commands of the shell. They wait, so what a slot that is on its way did not answer is simply asked again, after what
was asked with it.
"""

import time
from collections.abc import Sequence
from typing import Final

from vizora_rt.net.redis.address import Address, explain
from vizora_rt.net.redis.blocking import BlockingConnection
from vizora_rt.net.redis.topology import Ranges, RedisTarget, find_master, find_shards, redirected
from vizora_rt.wire.resp import ReplyError, key_of, pack, slot

FIND_SECONDS: Final = 2.0
PATIENCE_SECONDS: Final = 10.0
"""For slots that are on their way; a failover takes as long."""
AGAIN_SECONDS: Final = 0.1

ASKING: Final = pack("ASKING")


class BlockingClient:
    """Connections to what `where` names. Calls raise OSError."""

    def __init__(self, where: RedisTarget, name: str, timeout: float) -> None:
        self._target = where
        self._name = name
        self._timeout = timeout
        self._connections: dict[Address, BlockingConnection] = {}
        self._ranges: Ranges = ()
        if where.kind == "cluster":
            self._ranges = find_shards(where, (), min(timeout, FIND_SECONDS))
            self._address = where.seeds[0]
        else:
            self._address = find_master(where, FIND_SECONDS) if where.kind == "sentinel" else where.credentials
            self._connection(self._address)

    def ask(self, commands: Sequence[bytes], in_part: bool = False) -> list[object]:
        """Send `commands` and wait for the reply to each. `in_part`: in a cluster the reply of a shard that is away is
        a ReplyError, as long as another shard answers."""
        if not self._ranges:
            return self._connection(self._address).ask(commands)
        replies: list[object] = [None] * len(commands)
        wanted = list(range(len(commands)))
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            groups: dict[Address, list[int]] = {}
            for index in wanted:
                groups.setdefault(self._place(commands[index]), []).append(index)
            wanted = []
            away: OSError | None = None
            for address, indexes in groups.items():
                try:
                    found = self._connection(address).ask([commands[index] for index in indexes])
                except OSError as error:
                    if not in_part:
                        raise
                    self._drop(address)
                    away, found = error, [ReplyError(f"AWAY {address}: {explain(error)}")] * len(indexes)
                for index, reply in zip(indexes, found, strict=True):
                    replies[index] = self._followed(commands[index], reply, address)
                    if _later(replies[index]):
                        wanted.append(index)
            if away is not None and all(isinstance(reply, ReplyError) for reply in replies):
                raise away
            if not wanted or time.monotonic() > end:
                return replies
            time.sleep(AGAIN_SECONDS)
            self._ranges = find_shards(self._target, list(self._connections), FIND_SECONDS)

    def close(self) -> None:
        for line in self._connections.values():
            line.close()

    def _connection(self, address: Address) -> BlockingConnection:
        line = self._connections.get(address)
        if line is None:
            line = self._connections[address] = BlockingConnection(address, self._name, self._timeout)
        return line

    def _drop(self, address: Address) -> None:
        line = self._connections.pop(address, None)
        if line is not None:
            line.close()

    def _place(self, command: bytes) -> Address:
        key = key_of(command)
        if key is not None:
            number = slot(key)
            for first, last, address in self._ranges:
                if first <= number <= last:
                    return address
        return self._ranges[0][2]

    def _followed(self, command: bytes, reply: object, asked: Address) -> object:
        """The reply to a command, from where ASK points."""
        if isinstance(reply, ReplyError) and reply.code == "ASK":
            address = redirected(self._target, reply, asked)
            if address is not None:
                return self._connection(address).ask([ASKING, command])[1]
        return reply


def _later(reply: object) -> bool:
    return isinstance(reply, ReplyError) and reply.code in ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
