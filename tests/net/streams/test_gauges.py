"""What Redis says of its memory becomes the figure that an alert looks at."""

import pytest

from tests.net.peers import Node, running, until
from tests.net.valkeys import Cluster
from vizora_rt.net.streams import gauges
from vizora_rt.wire.resp import pack


async def used(node: Node) -> int:
    return await until(lambda: node.gauge("redis_memory_bytes"))


async def test_one_worker_of_a_node_asks(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "MEMORY_FIRST", 0.05)
    monkeypatch.setattr(gauges, "MEMORY_EVERY", 0.05)
    async with running(redis_url, 0) as first, running(redis_url, 1) as second:
        before = await used(first)
        assert before > 100_000
        await first.store.request("set", pack("SET", "large", b"x" * 4_000_000))
        await until(lambda: first.gauge("redis_memory_bytes") > before + 3_900_000)
        assert second.gauge("redis_memory_bytes") == 0
        asked = first.counter("redis_operations_total", "info", "ok")
        await until(lambda: first.counter("redis_operations_total", "info", "ok") > asked)


async def test_without_redis_there_is_no_figure_and_no_fault(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "MEMORY_FIRST", 0.05)
    node = await Node(redis_url).start(store=False)
    try:
        await until(lambda: node.wheel.now and not node.store.up)
        found = gauges.Memory(node.metrics, node.store, node.wheel)
        assert found.on_timer(0.0) == gauges.MEMORY_EVERY
        assert node.gauge("redis_memory_bytes") == 0
    finally:
        await node.stop()


@pytest.mark.parametrize(
    ("info", "policies"),
    [
        (b"used_memory:1\r\nmaxmemory_policy:noeviction\r\n", []),
        (b"maxmemory_policy:allkeys-lru\r\n", ["allkeys-lru"]),
        (b"maxmemory_policy:noeviction\r\nmaxmemory_policy:volatile-ttl\r\n", ["volatile-ttl"]),
        (b"used_memory:1\r\n", None),
        (b"", None),
        (None, None),
    ],
)
def test_policies_that_evict(info: object, policies: list[str] | None) -> None:
    assert gauges.evicting(info) == policies


async def test_one_shard_that_evicts_is_enough(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "MEMORY_FIRST", 0.05)
    monkeypatch.setattr(gauges, "MEMORY_EVERY", 0.05)
    async with running(cluster.url, 0) as node:
        await used(node)
        assert node.gauge("redis_evicts") == 0
        cluster.masters[1].tell("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")
        try:
            await until(lambda: node.gauge("redis_evicts") == 1)
        finally:
            cluster.masters[1].tell("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await until(lambda: node.gauge("redis_evicts") == 0)
