"""The shards of a cluster, as its table of slots has them: up, nowhere, or a `SlotMigration` for slots that are on
their way.

Commands for such a slot wait, in order, until what was sent to the old shard is answered; see `cluster`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from vizora_rt.config import RedisSettings
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.client import PING, REDIRECTIONS, OnReply, RedisClient, Script
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.resp import ReplyError, pack

HOLD_SECONDS: Final = 2.0
"""Longest time that commands wait for a slot which is on its way; then they are LOST."""

CLUSTER_INFO: Final = pack("CLUSTER", "INFO")


class Slots(Protocol):
    """Whose slots they are: the cluster."""

    def redirect(self, sent: "PendingCommand", reply: ReplyError) -> bool:
        """Send a command where it belongs. False: nobody knows, or it took too long."""

    def later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle: ...

    def make_room(self, sent: "PendingCommand") -> bool:
        """Whether one more command may wait here."""

    def finish_migration(self, hold: "SlotMigration", waiting: Sequence["PendingCommand"]) -> None:
        """A hold is over: its slots are its target's."""

    def lose(self, sents: Iterable["PendingCommand"]) -> None:
        """Commands that were taken and get no reply."""

    def tell_down(self) -> None:
        """Some slots are with nobody who answers."""


class PendingCommand:
    """A command on its way, and the callback of its reply."""

    __slots__ = ("_cluster", "on_reply", "operation", "packed", "shard", "slot", "tries", "until")

    def __init__(self, cluster: Slots, slot: int, operation: str, packed: bytes, on_reply: OnReply | None) -> None:
        self._cluster = cluster
        self.slot = slot
        self.operation = operation
        self.packed = packed
        self.on_reply = on_reply
        self.shard: Shard | None = None
        self.tries = 0
        self.until = 0.0

    def __call__(self, reply: object) -> None:
        if type(reply) is ReplyError and reply.code in REDIRECTIONS and self._cluster.redirect(self, reply):
            return
        if self.on_reply is not None:
            self.on_reply(reply)


class Shard(RedisClient):
    """The connection to one master."""

    __slots__ = ()

    def __init__(
        self, config: RedisSettings, address: Address, metrics: Metrics, name: str, scripts: dict[str, Script]
    ) -> None:
        super().__init__(config, address, metrics, name=name, gauges=False)
        self._scripts = scripts

    def send(self, sent: PendingCommand) -> bool:
        sent.shard = self
        return self.submit(sent.operation, sent.packed, sent)

    def _greeting(self) -> list[tuple[str, bytes]]:
        # A node of a cluster that is down greets like any other.
        return [("CLUSTER", CLUSTER_INFO), *super()._greeting()]

    @property
    def depth(self) -> int:
        return len(self._waiting)


class UnassignedSlot:
    """What has the slots that nobody has."""

    up = False

    def send(self, sent: PendingCommand) -> bool:
        return False


class SlotMigration:
    """What has slots that are on their way to `target`: commands wait for its turn, in order."""

    __slots__ = ("_again", "_barrier", "_cluster", "_new", "_pause", "_timer", "slots", "target", "up")

    def __init__(self, cluster: Slots, target: Shard, slots: Iterable[int]) -> None:
        self.target = target
        self.slots = list(slots)
        self.up = True
        self._cluster = cluster
        self._again: deque[PendingCommand] = deque()
        self._new: deque[PendingCommand] = deque()
        self._barrier: Shard | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._timer = cluster.later(HOLD_SECONDS, self._expire)

    def send(self, sent: PendingCommand) -> bool:
        """A new command."""
        if not self._cluster.make_room(sent):
            return False
        self._new.append(sent)
        return True

    def send_again(self, sent: PendingCommand) -> None:
        """One that the old shard has not executed: before all new ones."""
        if self._cluster.make_room(sent):
            self._again.append(sent)
        else:
            self._cluster.lose([sent])

    @property
    def open(self) -> bool:
        """Whether what the old shard has not executed may go to the new one at once."""
        return self.target.up and self._pause is None and not self._again

    def behind(self, source: Shard) -> None:
        """Wait until `source` has answered what it was sent."""
        if source.up and source.busy and source.submit("ping", PING, self._passed):
            self._barrier = source

    def pause(self, seconds: float) -> None:
        if self._pause is None:
            self._pause = self._cluster.later(seconds, self._resume)

    def release(self) -> None:
        """Send what waits, if nothing stands in the way."""
        if self.up and self._barrier is None and self._pause is None and self.target.up:
            # Callbacks last: what they submit comes behind all of it.
            self._cluster.lose([sent for sent in self._end() if not self.target.send(sent)])

    def give_up(self) -> None:
        """Nobody takes what waits."""
        self._cluster.lose(self._end())

    def _passed(self, reply: object) -> None:
        self._barrier = None
        self.release()

    def _resume(self) -> None:
        self._pause = None
        self.release()

    def _expire(self) -> None:
        source, self._barrier = self._barrier, None
        if source is not None:
            # It hangs, and has lost the slot.
            source.reconnect("its slots are elsewhere")
        if self.target.up:
            self._resume()
        else:
            self.give_up()
            self._cluster.tell_down()

    def _end(self) -> list[PendingCommand]:
        """Give the slots to the target. What has waited, in order."""
        waiting = [*self._again, *self._new]
        self._again.clear()
        self._new.clear()
        self.up = False
        self._timer.cancel()
        if self._pause is not None:
            self._pause.cancel()
        self._cluster.finish_migration(self, waiting)
        return waiting
