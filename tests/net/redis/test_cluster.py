"""The store of a cluster against a real one of three masters: routed, redirected, held, and lost in part only."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.net.peers import until
from tests.net.valkeys import Cluster as Servers
from tests.net.valkeys import Server, Valkeys
from vizora_rt import config
from vizora_rt.net.redis import cluster as module
from vizora_rt.net.redis import slots
from vizora_rt.net.redis.client import CONNECTION_LOST
from vizora_rt.net.redis.cluster import Cluster
from vizora_rt.net.redis.topology import RedisTarget
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.resp import ReplyError, pack, slot

BOTH = "return {redis.call('INCR', KEYS[1]), redis.call('EXISTS', KEYS[2])}"


class Bench:
    """A store, and what it told."""

    def __init__(self, url: str, **keys: Any) -> None:
        settings = config.RedisSettings(reconnect_max_seconds=0.2, **keys)
        self.metrics = Metrics(config.MetricsSettings())
        self.store = Cluster(settings, RedisTarget.parse(url), self.metrics, name="test")
        self.store.script("play", BOTH)
        self.told: list[str] = []
        self.store.on_up.append(lambda: self.told.append("up"))
        self.store.on_down.append(lambda: self.told.append("down"))

    async def start(self) -> Cluster:
        self.store.start()
        await until(lambda: self.store.up and self.told)
        return self.store

    def count(self, operation: str, result: str) -> int:
        return self.metrics.counter("redis_operations_total", operation, result).value


Make = Callable[..., Bench]


async def tear(cluster: Servers, store: Cluster) -> tuple[Server, Callable[[], None]]:
    """A slot is on its way, and one of two keys in it has gone ahead: a script that takes both is answered TRYAGAIN.
    The shard that it leaves, and what ends the move."""
    number = slot(b"{both}a")
    assert await store.request("set", pack("SET", "{both}b", 1)) == b"OK"
    assert await store.request("set", pack("SET", "{both}a", 0)) == b"OK"
    target = cluster.other(number)
    source = cluster.begin_move(number, target)
    assert cluster.move_keys(number, source, target, 1) == 1

    def end() -> None:
        while cluster.move_keys(number, source, target):
            pass
        cluster.end_move(number, target)

    return source, end


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    benches: list[Bench] = []

    def build(url: str, **keys: Any) -> Bench:
        benches.append(Bench(url, **keys))
        return benches[-1]

    yield build
    for bench in benches:
        await bench.store.close(0.5)
    names = ("Store.", "Cluster.", "Shard.")
    assert [task for task in asyncio.all_tasks() if any(name in repr(task.get_coro()) for name in names)] == []


async def test_each_key_goes_to_its_shard(cluster: Servers, make: Make) -> None:
    bench = make(cluster.url)
    assert not bench.store.submit("get", pack("GET", "a"))
    assert not bench.store.available
    assert not bench.store.is_available(b"a")
    assert bench.store.place(b"a") is None
    store = await bench.start()
    assert bench.told == ["up"]
    replies: dict[int, object] = {}
    for number in range(300):
        assert store.submit("set", pack("SET", f"k{number}", number))
        assert store.submit("get", pack("GET", f"k{number}"), lambda reply, n=number: replies.update({n: reply}))  # type: ignore[misc]
    await until(lambda: len(replies) == 300)
    assert replies == {number: b"%d" % number for number in range(300)}
    assert min(master.tell("DBSIZE") for master in cluster.masters) > 50
    assert store.is_available(b"k1")
    for number in range(10):
        place = store.place(b"k%d" % number)
        assert place is not None and place.port == cluster.owner(slot(b"k%d" % number)).port
    # Nothing was sent to the wrong one.
    assert all(b"errorstat_MOVED" not in master.tell("INFO", "errorstats") for master in cluster.masters)


async def test_scripts_are_loaded_everywhere(cluster: Servers, make: Make) -> None:
    store = await make(cluster.url).start()
    replies: list[object] = []
    for number in range(30):
        assert store.eval("play", (f"{{{number}}}:a", f"{{{number}}}:b"), (), replies.append)
    await until(lambda: len(replies) == 30)
    assert replies == [[1, 0]] * 30
    for master in cluster.masters:
        master.tell("SCRIPT", "FLUSH")
    for number in range(30):
        assert store.eval("play", (f"{{{number}}}:a", f"{{{number}}}:b"), (), replies.append)
    await until(lambda: len(replies) == 60)
    assert replies[30:] == [[2, 0]] * 30


async def test_a_command_without_a_key_is_every_shards(cluster: Servers, make: Make) -> None:
    bench = make(cluster.url)
    assert await bench.store.request("ping", pack("PING")) is CONNECTION_LOST
    store = await bench.start()
    assert await store.request("ping", pack("PING")) == b"\r\n".join([b"PONG"] * 3)
    assert bench.count("ping", "ok") == 3
    error = await store.request("other", pack("CLIENT", "NONSENSE"))
    assert isinstance(error, ReplyError)
    assert error.code == "ERR"


async def test_a_doorbell_is_rung_where_its_slot_is(cluster: Servers, make: Make) -> None:
    store = await make(cluster.url).start()
    heard: list[object] = []
    assert store.publish("vz:org:acme", b"x", heard.append)
    await until(lambda: heard)
    assert heard == [0]


async def test_a_slot_moves_and_nobody_notices(cluster: Servers, make: Make) -> None:
    bench = make(cluster.url)
    store = await bench.start()
    number = slot(b"k")
    replies: list[object] = []
    stop = False

    async def count() -> int:
        sent = 0
        while not stop:
            for _ in range(20):
                assert store.submit("other", pack("INCR", "k"), replies.append)
                sent += 1
            await asyncio.sleep(0)
        return sent

    counting = asyncio.create_task(count())
    for target in (cluster.other(number), cluster.home(number)):
        before = len(replies)
        await until(lambda before=before: len(replies) > before + 100)  # type: ignore[misc]
        await asyncio.to_thread(cluster.move, number, target)
    stop = True
    sent = await counting
    await until(lambda: len(replies) == sent)
    # Each was done once, in the order in which it was sent.
    assert replies == list(range(1, sent + 1))
    assert bench.count("other", "error") == 0
    assert bench.told == ["up"]
    assert any(b"errorstat_MOVED" in master.tell("INFO", "errorstats") for master in cluster.masters)


async def test_a_key_that_has_gone_ahead(cluster: Servers, make: Make) -> None:
    """ASK: the slot is still the old shard's, the key is the new one's."""
    store = await make(cluster.url).start()
    number = slot(b"{tag}1")
    for each in range(4):
        assert await store.request("set", pack("SET", f"{{tag}}{each}", each)) == b"OK"
    target = cluster.other(number)
    source = cluster.begin_move(number, target)
    assert cluster.move_keys(number, source, target, 2) == 2
    for each in range(4):
        assert await store.request("get", pack("GET", f"{{tag}}{each}")) == b"%d" % each
    assert await store.request("set", pack("SET", "{tag}new", "x")) == b"OK"
    assert target.tell("CLUSTER", "COUNTKEYSINSLOT", number) == 3
    place = store.place(b"{tag}1")
    assert place is not None and place.port == source.port
    while cluster.move_keys(number, source, target):
        pass
    cluster.end_move(number, target)
    assert await store.request("get", pack("GET", "{tag}new")) == b"x"
    place = store.place(b"{tag}1")
    assert place is not None and place.port == target.port


async def test_a_script_whose_keys_are_at_both_ends_waits(cluster: Servers, make: Make) -> None:
    """TRYAGAIN, until the slot has moved; what was submitted later comes after it."""
    bench = make(cluster.url)
    store = await bench.start()
    source, end = await tear(cluster, store)
    replies: list[object] = []
    assert store.eval("play", ("{both}a", "{both}b"), (), replies.append)
    await until(lambda: b"errorstat_TRYAGAIN" in source.tell("INFO", "errorstats"))
    assert store.is_available(b"{both}a")
    assert store.submit("get", pack("GET", "{both}a"), replies.append)
    assert replies == []
    end()
    await until(lambda: len(replies) == 2)
    assert replies == [[1, 1], b"1"]
    assert bench.count("eval_play", "error") == 0


async def test_a_script_does_not_wait_for_ever(cluster: Servers, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from_now(monkeypatch, 0.1)
    store = await make(cluster.url).start()
    _, end = await tear(cluster, store)
    replies: list[object] = []
    assert store.eval("play", ("{both}a", "{both}b"), (), replies.append)
    await until(lambda: replies)
    (reply,) = replies
    assert isinstance(reply, ReplyError)
    assert reply.code == "TRYAGAIN"
    end()
    assert store.eval("play", ("{both}a", "{both}b"), (), replies.append)
    await until(lambda: len(replies) == 2)
    assert replies[1] == [1, 1]


async def test_what_waits_is_bounded(cluster: Servers, make: Make) -> None:
    bench = make(cluster.url, pending_commands=5)
    store = await bench.start()
    _, end = await tear(cluster, store)
    replies: list[object] = []
    assert store.eval("play", ("{both}a", "{both}b"), (), replies.append)
    await until(lambda: store._held == 1)
    taken = [store.submit("get", pack("GET", "{both}b"), replies.append) for _ in range(6)]
    assert taken == [True] * 4 + [False] * 2
    assert bench.metrics.counter("limits_exceeded_total", "pending_commands").value == 2
    end()
    await until(lambda: len(replies) == 5)
    assert store._held == store._held_bytes == 0


async def test_close_answers_what_waits(cluster: Servers, make: Make) -> None:
    store = await make(cluster.url).start()
    _, end = await tear(cluster, store)
    replies: list[object] = []
    assert store.eval("play", ("{both}a", "{both}b"), (), replies.append)
    await until(lambda: store._held == 1)
    await store.close(1)
    assert replies == [CONNECTION_LOST]
    assert not store.submit("get", pack("GET", "a"))
    end()


async def test_one_shard_away(tmp_path: Path, make: Make) -> None:
    """What touches it is refused, the others go on; it comes back and is found."""
    with Valkeys(tmp_path) as valkeys:
        servers = valkeys.cluster(3, 0, "--cluster-require-full-coverage", "no")
        bench = make(servers.url)
        store = await bench.start()
        key = {index: next(b"k%d" % n for n in range(100) if servers.owner(slot(b"k%d" % n)) is servers.masters[index])
               for index in range(3)}  # fmt: skip
        servers.masters[2].kill()
        await until(lambda: not store.up)
        assert store.available
        assert [store.is_available(key[index]) for index in range(3)] == [True, True, False]
        assert bench.told == ["up", "down"]
        assert not store.submit("set", pack("SET", key[2], 1))
        assert await store.request("set", pack("SET", key[1], 1)) == b"OK"
        assert await store.request("ping", pack("PING")) is CONNECTION_LOST
        servers.masters[2].start()
        await until(lambda: store.up)
        assert bench.told[-1] == "up"
        assert store.is_available(key[2])
        assert await store.request("set", pack("SET", key[2], 1)) == b"OK"
        assert all(map(store.stores, key.values()))
        servers.masters[0].tell("CONFIG", "SET", "maxmemory", "1")
        assert isinstance(await store.request("set", pack("SET", key[0], 1)), ReplyError)
        assert [store.stores(key[index]) for index in range(3)] == [False, True, True]


def from_now(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    for each in (module, slots):
        monkeypatch.setattr(each, "HOLD_SECONDS", seconds)
