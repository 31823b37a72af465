"""The ledger's scripts against a real Valkey."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from tests.net.backend import books, entries
from tests.net.peers import until
from vizora_rt import config
from vizora_rt.app import events
from vizora_rt.app.commands import KEPT_AFTER, MAX_WAITING, QueuedCommand
from vizora_rt.net.commands.queue import STATES_A_WRITE, CommandQueue, EnqueueResult, Fields, QueueHead
from vizora_rt.net.presence.ownership import parse_owner
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.telemetry.metrics import Metrics

NOW = 1_800_000_000_000
"""Some time in 2027: Redis forgets what has expired by its own clock."""


class Bench:
    """A ledger whose calls are awaited."""

    def __init__(self, store: RedisClient, client: "redis.Redis") -> None:
        self.store = store
        self.ledger = CommandQueue(store, 100)
        self.redis = client

    async def wait(self, call: Callable[..., bool], *arguments: Any) -> Any:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        assert call(*arguments, answered.set_result)
        return await answered

    async def look(self, now: int = NOW) -> QueueHead:
        found = await self.wait(self.ledger.peek, "d", now)
        assert isinstance(found, QueueHead)
        return found

    async def settle(self, entry: QueuedCommand, now: int = NOW) -> QueueHead:
        found = await self.wait(self.ledger.ack, "d", entry, now)
        assert isinstance(found, QueueHead)
        return found

    async def put(self, entry: QueuedCommand, known: bool = False) -> EnqueueResult:
        place = await self.wait(self.ledger.enqueue, "d", entry, entry.line(), known)
        assert isinstance(place, EnqueueResult)
        return place

    async def playlist(self, entry: QueuedCommand, version: str) -> EnqueueResult:
        place = await self.wait(self.ledger.replace, "d", entry, version, "push")
        assert isinstance(place, EnqueueResult)
        return place

    async def states(self, *fields: tuple[str, str], expiry: int = 0) -> dict[str, str]:
        taken: list[bool] = []
        self.ledger.states("c", fields, expiry, lambda _, written: taken.append(written))
        await self.store.request("ping", b"PING\r\n")
        assert taken and all(taken)
        found: Any = self.redis.hgetall("vz:{c:c}")
        return dict(found)


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    store = RedisClient(config.RedisSettings(), redis_url, Metrics(config.MetricsSettings()), name="test")
    made = Bench(store, books(redis_url))
    store.start()
    await until(lambda: store.up)
    yield made
    await store.close(1.0)
    made.redis.close()


def entry(name: str, life: int = 300_000, kind: str = "reload", created: int = NOW) -> QueuedCommand:
    return QueuedCommand(
        name, kind, created + life if life else 0, created, "node 1", b'{"commandId":"%b"}' % name.encode()
    )


class TestCommands:
    async def test_nothing(self, bench: Bench) -> None:
        assert await bench.look() == QueueHead([], None, None)

    async def test_in_order_and_only_what_was_acked_is_taken_off(self, bench: Bench) -> None:
        one, two = entry("1"), entry("2")
        assert (await bench.put(one)).code == 1
        assert (await bench.put(two)).code == 1
        assert (await bench.look()).next == one
        assert (await bench.look()).next == one
        assert (await bench.settle(two)).next == one
        assert (await bench.settle(one)).next == two
        assert (await bench.settle(one)).next == two
        assert await bench.settle(two) == QueueHead([], None, None)

    async def test_what_is_taken_off_is_taken_off_once(self, bench: Bench) -> None:
        """Who acks what has expired elsewhere, or acks twice, is told that it was not there any more."""
        one, two = entry("1"), entry("2")
        await bench.put(one)
        await bench.put(two)
        assert (await bench.settle(one)).taken
        assert not (await bench.settle(one)).taken
        assert (await bench.settle(two)).taken
        assert not (await bench.settle(two)).taken
        playlist = entry("p", 0, "playlist")
        await bench.playlist(playlist, "v1")
        assert (await bench.settle(playlist)).taken

    async def test_what_has_expired_is_dropped_and_told(self, bench: Bench) -> None:
        short, long = entry("1", 1000), entry("2", 5000)
        await bench.put(short)
        await bench.put(long)
        assert (await bench.look(NOW + 999)).next == short
        found = await bench.look(NOW + 1000)
        assert [(each.id, each.type, each.reply_to) for each in found.expired] == [("1", "reload", "node 1")]
        assert found.next == long
        assert [each.id for each in (await bench.look(NOW + 5000)).expired] == ["2"]
        assert bench.redis.llen("vz:{d:d}:ledger") == 0

    async def test_the_same_id_is_put_once(self, bench: Bench) -> None:
        assert (await bench.put(entry("1"), known=True)).code == 1
        assert (await bench.put(entry("2"), known=True)).code == 1
        assert (await bench.put(entry("1"), known=True)).code == 0
        assert bench.redis.llen("vz:{d:d}:ledger") == 2

    async def test_full(self, bench: Bench) -> None:
        for number in range(MAX_WAITING):
            await bench.put(entry(str(number)))
        assert (await bench.put(entry("more"))).code == -1
        assert bench.redis.llen("vz:{d:d}:ledger") == MAX_WAITING
        await bench.settle(entry("0"))
        assert (await bench.put(entry("more"))).code == 1

    async def test_what_has_expired_makes_room(self, bench: Bench) -> None:
        await bench.put(entry("long", 1_000_000))
        for number in range(MAX_WAITING - 1):
            await bench.put(entry(str(number), 1000))
        place = await bench.put(entry("late", created=NOW + 1000))
        assert place.code == 1
        assert [each.id for each in place.expired] == [str(number) for number in range(MAX_WAITING - 1)]
        assert bench.redis.llen("vz:{d:d}:ledger") == 2
        assert (await bench.look(NOW + 1000)).next == entry("long", 1_000_000)

    async def test_the_key_outlives_its_last_command_by_a_day(self, bench: Bench) -> None:
        await bench.put(entry("long", 1_000_000))
        await bench.put(entry("short", 1000))
        assert bench.redis.pexpiretime("vz:{d:d}:ledger") == NOW + 1_000_000 + KEPT_AFTER
        await bench.put(entry("longest", 2_000_000))
        assert bench.redis.pexpiretime("vz:{d:d}:ledger") == NOW + 2_000_000 + KEPT_AFTER

    @pytest.mark.parametrize(
        ("status", "owner"),
        [("online", ("n-1", 3)), ("stale", ("n-1", 3)), ("offline", None), ("suspended", None), (None, None)],
    )
    async def test_who_has_the_device(self, bench: Bench, status: str | None, owner: tuple[str, int] | None) -> None:
        bench.redis.set("vz:{d:d}:owner", "17 n-1 3 99")
        if status is not None:
            bench.redis.set("vz:{d:d}:status", f'{{"status":"{status}","reason":"connected"}}')
        assert (await bench.put(entry("1"))).owner == owner
        assert (await bench.playlist(entry("p", 0, "playlist"), "v1")).owner == owner


class TestPlaylist:
    async def test_it_comes_before_commands_and_stays_when_it_is_acked(self, bench: Bench) -> None:
        first, playlist = entry("1"), entry("p", 0, "playlist")
        await bench.put(first)
        await bench.playlist(playlist, "v1")
        assert await bench.look() == QueueHead([], playlist, "v1")
        assert await bench.settle(playlist) == QueueHead([], first, "v1")
        assert await bench.settle(first) == QueueHead([], None, "v1")

    async def test_it_is_due_again_when_it_was_only_sent(self, bench: Bench) -> None:
        playlist = entry("p", 0, "playlist")
        await bench.playlist(playlist, "v1")
        found: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        assert bench.ledger.ack("d", playlist, NOW, found.set_result, False)
        assert await found == await bench.look() == QueueHead([], None, "v1")
        assert bench.redis.hget("vz:{d:d}:playlist", "waiting") == "sent"

    async def test_it_replaces_the_one_before_and_an_ack_of_that_one_is_none_of_this(self, bench: Bench) -> None:
        old, new = entry("p1", 0, "playlist"), entry("p2", 0, "playlist")
        await bench.playlist(old, "v1")
        await bench.playlist(new, "v2")
        assert await bench.look() == QueueHead([], new, "v2")
        assert await bench.settle(old) == QueueHead([], new, "v2")
        assert await bench.settle(new) == QueueHead([], None, "v2")

    async def test_it_has_no_end(self, bench: Bench) -> None:
        await bench.playlist(entry("p", 0, "playlist"), "v1")
        assert bench.redis.ttl("vz:{d:d}:playlist") == -1


class TestStates:
    async def test_they_only_go_forward(self, bench: Bench) -> None:
        expiry = NOW + KEPT_AFTER
        assert await bench.states(("type", "reload"), ("d:a", "queued 1"), expiry=expiry) == {
            "type": "reload",
            "d:a": "queued 1",
        }
        assert (await bench.states(("d:a", "sent 2")))["d:a"] == "sent 2"
        assert (await bench.states(("d:a", "queued 3")))["d:a"] == "sent 2"
        assert (await bench.states(("d:a", "acked 4")))["d:a"] == "acked 4"
        for late in ("sent 5", "queued 6", "expired 7", "failed 8 no disk"):
            assert (await bench.states(("d:a", late)))["d:a"] == "acked 4"
        assert bench.redis.pexpiretime("vz:{c:c}") == expiry

    async def test_a_record_that_is_over_is_not_made_again(self, bench: Bench) -> None:
        assert await bench.states(("d:a", "acked 1")) == {}

    async def test_ten_thousand_devices(self, bench: Bench) -> None:
        fields = [(f"d:{number}", "queued 1") for number in range(10_000)]
        assert len(await bench.states(*fields, expiry=NOW)) == 10_000

    async def test_what_is_not_written_is_told(self, bench: Bench) -> None:
        told: list[tuple[Fields, bool]] = []
        fields = [(f"d:{number}", "acked 1") for number in range(STATES_A_WRITE + 1)]
        expected = [(fields[:STATES_A_WRITE], False), (fields[STATES_A_WRITE:], False)]
        bench.redis.config_set("maxmemory", "1")
        try:
            bench.ledger.states("c", fields, NOW + KEPT_AFTER, lambda part, written: told.append((part, written)))
            await bench.store.request("ping", b"PING\r\n")
        finally:
            bench.redis.config_set("maxmemory", "0")
        assert told == expected
        bench.store.reconnect("test")
        bench.ledger.states("c", fields, 0, lambda part, written: told.append((part, written)))
        assert told == 2 * expected


async def test_events_are_bounded(bench: Bench) -> None:
    bench.ledger.append_events(
        [events.entry("command", "d", "acme", NOW + number, b'{"a":1}') for number in range(1000)]
    )
    await bench.store.request("ping", b"PING\r\n")
    found = entries(bench.redis)
    assert len(found) < 300  # about a hundred: a stream is trimmed a node at a time
    last = {"type": "command", "deviceId": "d", "organizationId": "acme", "at": str(NOW + 999)}
    assert found[-1] == {**last, "json": {"a": 1}}


def test_place() -> None:
    assert parse_owner(b"17 node-1 3 99") == ("node-1", 3)
    assert parse_owner(b"nonsense") is None
    assert parse_owner(None) is None
