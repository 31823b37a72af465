"""A Redis Cluster as the hot path sees it: a store that has one connection per shard and routes by key slot.

Replies come in order per slot, not over all: each shard answers for itself. A shard that is away takes nothing, the
others go on. When a slot moves, what was sent to its old shard is answered before anything newer goes to the new one:
until then the newer waits in a `SlotMigration`. A command that is answered MOVED, ASK or TRYAGAIN was not executed; it
is sent where it belongs, and its caller does not notice.

Over 300 lines because moved slots, lost shards and waiting commands share one table.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from operator import itemgetter
from typing import Final

from vizora_rt.config import RedisSettings
from vizora_rt.net.redis.address import Address, explain
from vizora_rt.net.redis.client import CONNECTION_LOST, FIRST_DELAY, OnReply, Part, RedisClient
from vizora_rt.net.redis.slots import HOLD_SECONDS, PendingCommand, Shard, SlotMigration, UnassignedSlot
from vizora_rt.net.redis.topology import Ranges, RedisTarget, find_shards, redirected
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.metrics import SHARD, Metrics
from vizora_rt.wire.resp import SLOTS, ReplyError, key_of, pack, slot

MAP_SECONDS: Final = 5.0
"""Between two looks at the map when nothing asks for one. A shard that hangs is noticed by the others before."""

MOST_REDIRECTIONS: Final = 5
"""Of one command in a row, as in other clients; then it waits before it goes on."""

AGAIN_SECONDS: Final = 0.02
"""Until a slot is asked again whose keys are on both of two shards: as long as a thousand keys take to move."""

ASKING: Final = pack("ASKING")

log = logs.logger("cluster")


class Cluster(RedisClient):
    """A store for each master, and the map of slots. Its own connection, which it has as a Store, is never made."""

    __slots__ = (
        "_announced",
        "_held",
        "_held_bytes",
        "_leaving",
        "_map",
        "_metrics",
        "_migrations",
        "_order",
        "_served",
        "_shards",
        "_stale",
        "_table",
        "_where",
    )

    subscribe = "SSUBSCRIBE"
    one_slot = True

    def __init__(self, config: RedisSettings, where: RedisTarget, metrics: Metrics, *, name: str) -> None:
        super().__init__(config, where.seeds[0], metrics, name=name)
        self._where = where
        self._metrics = metrics
        self._shards: dict[Address, Shard] = {}
        nowhere: Shard | SlotMigration | UnassignedSlot = UnassignedSlot()
        self._table = [nowhere] * SLOTS
        self._served: set[Shard] = set()
        """Shards with slots."""
        self._migrations: set[SlotMigration] = set()
        self._held = self._held_bytes = 0
        self._leaving: set[asyncio.Task[None]] = set()
        self._stale = asyncio.Event()
        self._announced = False
        self._map: Ranges = ()
        """The one that was taken last, if nothing has changed it since."""
        self._order: list[Address] = []
        """The shards that it named, by their first slot."""

    def start(self) -> None:
        self._runner = self._loop.create_task(self._run())

    @property
    def write_error(self) -> str:
        return next((shard.write_error for shard in self._served if shard.write_error), "")

    @property
    def parts(self) -> list[Part]:
        shards = [(number, self._shards.get(address)) for number, address in enumerate(self._order)]
        return [
            Part(number, shard.address, shard.up, shard.reason, shard.busy)
            for number, shard in shards
            if shard is not None and shard in self._served
        ]

    @property
    def refusal(self) -> str:
        refusals = ((shard, shard.refusal) for shard in self._served)
        found = sorted(f"{shard.address.host}:{shard.address.port} {why}" for shard, why in refusals if why)
        return "; ".join(filter(None, (super().refusal, *found)))

    @property
    def available(self) -> bool:
        return self._announced and any(shard.up for shard in self._served)

    @property
    def busy(self) -> bool:
        return bool(self._held) or any(shard.busy for shard in self._shards.values())

    def is_available(self, key: bytes) -> bool:
        return self._table[slot(key)].up

    def stores(self, key: bytes) -> bool:
        taker = self._table[slot(key)]
        return taker.up and not (isinstance(taker, Shard) and taker.write_error)

    def place(self, key: bytes) -> Address | None:
        taker = self._table[slot(key)]
        return (
            taker.address
            if isinstance(taker, Shard)
            else taker.target.address
            if isinstance(taker, SlotMigration)
            else None
        )

    def look_again(self) -> None:
        self._stale.set()

    def submit(self, operation: str, packed: bytes, on_reply: OnReply | None = None) -> bool:
        """As a Store's; what names no key goes to every shard, and the reply is that of all (`PING`)."""
        if self._closing:
            return False
        key = key_of(packed)
        if key is None:
            return self._submit_to_all(operation, packed, on_reply)
        number = slot(key)
        return self._table[number].send(PendingCommand(self, number, operation, packed, on_reply))

    def publish(self, channel: str, payload: bytes, on_reply: OnReply | None = None) -> bool:
        return self.submit("publish", pack("SPUBLISH", channel, payload), on_reply)

    def _submit_to_all(self, operation: str, packed: bytes, on_reply: OnReply | None) -> bool:
        """The reply is the first error, or all answers, one after the other."""
        shards = list(self._served)
        replies: list[object] = []

        def replied(reply: object) -> None:
            replies.append(reply)
            if len(replies) == len(shards) and on_reply is not None:
                on_reply(next((each for each in replies if isinstance(each, ReplyError)), _joined(replies)))

        if not self.available:
            return False
        for shard in shards:
            if not shard.submit(operation, packed, replied):
                # Not within the call: a caller knows that it was taken when it has returned.
                self._loop.call_soon(replied, CONNECTION_LOST)
        return True

    def reconnect(self, reason: str) -> None:
        for shard in list(self._shards.values()):
            shard.reconnect(reason)

    async def close(self, timeout: float | None = None) -> None:
        self._closing = True
        if self._runner is not None:
            self._runner.cancel()
            await asyncio.wait([self._runner])
        for hold in list(self._migrations):
            hold.give_up()
        self.up = False
        leaving = [asyncio.ensure_future(shard.close(timeout)) for shard in self._shards.values()]
        if leaving or self._leaving:
            await asyncio.wait([*leaving, *self._leaving])

    # The map

    async def _run(self) -> None:
        failures = 0
        while True:
            self._stale.clear()
            try:
                known = [shard.address for shard in self._served if shard.up]
                timeout = self._config.connect_timeout_seconds
                ranges = sorted(await asyncio.to_thread(find_shards, self._where, known, timeout), key=itemgetter(0))
            except OSError as error:
                self._not_up(explain(error))
                failures += 1
            except Exception as error:
                log.exception("the map of the cluster was not understood", error)
                failures += 1
            else:
                failures = 0 if all(shard.up for shard in self._served) else failures + 1
                self._take_map(ranges)
            delay = min(self._config.reconnect_max_seconds, FIRST_DELAY * 2 ** min(failures, 16))
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            if not failures:
                with suppress(TimeoutError):
                    async with asyncio.timeout(MAP_SECONDS):
                        await self._stale.wait()

    def _take_map(self, ranges: Ranges) -> None:
        """The cluster says who has what."""
        if ranges == self._map:
            return
        self._map = ranges
        moved: dict[tuple[Shard | SlotMigration | UnassignedSlot, Shard], list[int]] = {}
        wanted = {address: self._shard(address) for _, _, address in ranges}
        for first, last, address in ranges:
            shard = wanted[address]
            for number in range(first, last + 1):
                taker = self._table[number]
                if taker is not shard and not (isinstance(taker, SlotMigration) and taker.target is shard):
                    moved.setdefault((taker, shard), []).append(number)
        found_again = False
        for (taker, shard), numbers in moved.items():
            found_again |= not taker.up and shard.up
            self._move(taker, shard, numbers)
        self._served = set(wanted.values())
        self._order = list(wanted)
        for address, shard in list(self._shards.items()):
            if shard not in self._served and not any(hold.target is shard for hold in self._migrations):
                self._leave(address, shard)
        self._look()
        if moved:
            self._tell(self.on_moved)
        if found_again and self._announced:
            self._tell(self.on_up)

    def _move(self, taker: Shard | SlotMigration | UnassignedSlot, shard: Shard, numbers: list[int]) -> None:
        if isinstance(taker, SlotMigration):
            taker.target = shard
            return
        under_way = isinstance(taker, Shard) and taker.up and taker.busy
        if not under_way and (shard.up or not taker.up):
            self._fill(numbers, shard)
            return
        # For a shard that is not up yet, but has the slots of one that is, it holds too: its clients need not notice.
        hold = SlotMigration(self, shard, numbers)
        self._migrations.add(hold)
        self._fill(numbers, hold)
        if isinstance(taker, Shard):
            hold.behind(taker)
        hold.release()

    def _fill(self, numbers: Iterable[int], taker: Shard | SlotMigration) -> None:
        for number in numbers:
            self._table[number] = taker

    def _shard(self, address: Address) -> Shard:
        """The connection to a node, made now if there is none."""
        shard = self._shards.get(address)
        if shard is None:
            shard = self._shards[address] = Shard(self._config, address, self._metrics, self._name, self._scripts)
            shard.on_up.append(partial(self._shard_up, shard))
            shard.on_down.append(partial(self._shard_down, shard))
            shard.start()
        return shard

    def _leave(self, address: Address, shard: Shard) -> None:
        """A node has no slots any more."""
        del self._shards[address]
        task = self._loop.create_task(shard.close(HOLD_SECONDS))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    # Shards come and go

    def _shard_up(self, shard: Shard) -> None:
        for hold in [hold for hold in self._migrations if hold.target is shard]:
            hold.release()
        if shard not in self._served:
            return
        self._look()
        if self._announced:
            self._tell(self.on_up)
        elif self.up:
            self._announce()
        else:
            # One that is away from the start must not keep the others from their clients.
            self._loop.call_later(self._config.connect_timeout_seconds / 2, self._announce)

    def _announce(self) -> None:
        if not self._announced and not self._closing:
            self._announced = True
            self._tell(self.on_moved)
            self._tell(self.on_up)

    def _shard_down(self, shard: Shard) -> None:
        self.look_again()
        if self._shards.get(shard.address) is shard and shard in self._served:
            self.tell_down()

    def tell_down(self) -> None:
        """Some slots are with nobody who answers."""
        self._look()
        if self._announced and not self._closing:
            self._tell(self.on_down)

    def _look(self) -> None:
        away = [shard for shard in self._served if not shard.up]
        self.up = bool(self._served) and not away
        self.reason = "; ".join(f"{shard.address}: {shard.reason}" for shard in away)

    def _tell(self, callbacks: list[Callable[[], None]]) -> None:
        for callback in callbacks:
            self._call(callback)

    # Redirections

    def redirect(self, sent: PendingCommand, reply: ReplyError) -> bool:
        """Send a command where it belongs. False: nobody knows, or it took too long."""
        now = self._loop.time()
        sent.until = sent.until or now + HOLD_SECONDS
        if self._closing or now > sent.until or sent.shard is None:
            return False
        sent.tries += 1
        address = redirected(self._where, reply, sent.shard.address) if reply.code != "TRYAGAIN" else None
        if address is None or sent.tries > MOST_REDIRECTIONS:
            self._wait_for_slot(sent.slot).send_again(sent)
            return True
        shard = self._shard(address)
        if reply.code == "MOVED":
            return self._follow(sent, shard)
        if not shard.up:
            # A node without slots until now: by the next time there is a connection.
            self._wait_for_slot(sent.slot).send_again(sent)
        elif not (shard.submit("other", ASKING) and shard.send(sent)):
            self.lose([sent])
        return True

    def _follow(self, sent: PendingCommand, shard: Shard) -> bool:
        self.look_again()
        self._map = ()
        taker = self._table[sent.slot]
        if taker is not shard and not (isinstance(taker, SlotMigration) and taker.target is shard):
            if isinstance(taker, SlotMigration) and len(taker.slots) > 1:
                # The other slots go where they were to go. This one is sent on from there.
                taker.send_again(sent)
                return True
            self._served.add(shard)
            self._move(taker, shard, [sent.slot])
            self._tell(self.on_moved)
            taker = self._table[sent.slot]
        if isinstance(taker, SlotMigration) and not taker.open:
            taker.send_again(sent)
        elif not shard.send(sent):
            self.lose([sent])
        return True

    def _wait_for_slot(self, number: int) -> SlotMigration:
        """Keep what is for a slot, for a moment."""
        taker = self._table[number]
        if isinstance(taker, Shard):
            taker = SlotMigration(self, taker, [number])
            self._migrations.add(taker)
            self._table[number] = taker
        assert isinstance(taker, SlotMigration)
        taker.pause(AGAIN_SECONDS)
        return taker

    # For holds

    def later(self, seconds: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(seconds, callback)

    def make_room(self, sent: PendingCommand) -> bool:
        """Whether one more command may wait here."""
        if self._held >= self._max_commands:
            self._full_commands.value += 1
            return False
        if self._held_bytes + len(sent.packed) > self._max_bytes:
            self._full_bytes.value += 1
            return False
        self._held += 1
        self._held_bytes += len(sent.packed)
        return True

    def finish_migration(self, hold: SlotMigration, waiting: Sequence[PendingCommand]) -> None:
        """A hold is over: its slots are its target's."""
        self._migrations.discard(hold)
        self._held -= len(waiting)
        self._held_bytes -= sum(len(sent.packed) for sent in waiting)
        for number in hold.slots:
            if self._table[number] is hold:
                self._table[number] = hold.target

    def lose(self, sents: Iterable[PendingCommand]) -> None:
        """Commands that were taken and get no reply."""
        for sent in sents:
            self._operations[sent.operation].error.value += 1
            self._call(partial(sent, CONNECTION_LOST))

    def _collect(self) -> None:
        # A worker that closes its connections at its end has no outage: what was true before stays told.
        if not self._closing:
            self._up_gauge.value = int(self.up)
            self._collect_shards()
        self._depth_gauge.value = self._held + sum(shard.depth for shard in self._shards.values())

    def _collect_shards(self) -> None:
        # A shard that is no more is not away; before there is a map, all are.
        up = dict.fromkeys(self._shard_gauges, int(bool(self._order)))
        for part in self.parts:
            label = SHARD.known(str(part.number))
            up[label] = min(up.get(label, 1), int(part.up))
        for label, value in up.items():
            if label not in self._shard_gauges:
                self._shard_gauges[label] = self._metrics.gauge("redis_shard_up", label)
            self._shard_gauges[label].value = value


def _joined(replies: Sequence[object]) -> object:
    """The answers of all shards: texts, such as those of INFO, behind each other."""
    texts = [reply for reply in replies if isinstance(reply, bytes)]
    return b"\r\n".join(texts) if len(texts) == len(replies) else replies[-1]
