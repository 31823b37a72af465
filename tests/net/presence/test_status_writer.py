"""What Redis is told of devices, and how often; with a real Valkey that is full or does not answer."""

import os
import signal
import time
from contextlib import AsyncExitStack

from tests.net.peers import Node, dial_device, until
from tests.net.workers import Books
from vizora_rt.net.valkey.server import EmbeddedServer


class TestHeartbeats:
    async def test_heartbeat(self, node: Node, books: Books) -> None:
        client = await dial_device(node.port, "screen-1")
        before = books.status()
        said = {
            "metrics": {"cpuUsage": 12.5, "memoryUsage": 40.0, "temperature": 51.0},
            "currentContent": {"contentId": "c-1", "playlistId": "p-1", "status": "playing", "playbackPosition": 3.5},
            "uptime": 60.0,
            "appVersion": "1.2.3",
            "screenState": "on",
            "playbackSource": "cache",
        }
        await client.heartbeat(**said)
        status = await books.when(lambda status: "metrics" in status)
        assert before["since"] <= status["lastHeartbeat"] <= before["since"] + 60_000
        assert status == {**before, **said, "lastHeartbeat": status["lastHeartbeat"]}
        assert 58 <= books.ttl("vz:{d:screen-1}:status") <= 60

    async def test_a_bare_content_id(self, node: Node, books: Books) -> None:
        client = await dial_device(node.port, "screen-1")
        await client.heartbeat(currentContent="c-1")
        assert await until(lambda: books.status().get("currentContent")) == {"contentId": "c-1"}

    async def test_the_last_of_many_heartbeats_is_written(self, node: Node, books: Books) -> None:
        client = await dial_device(node.port, "screen-1")
        before = node.counter("redis_operations_total", "set", "ok")
        for uptime in range(1, 101):
            await client.send("heartbeat", {"uptime": uptime})
        await until(lambda: books.status().get("uptime") == 100)
        # Two tenths of a second at most, a write each: not one for each heartbeat.
        assert node.counter("redis_operations_total", "set", "ok") - before < 10

    async def test_a_slow_interval_makes_long_lives(self, stack: AsyncExitStack, redis_url: str, books: Books) -> None:
        worker = await Node(redis_url, player={"heartbeat_interval": 60_000}).start()
        stack.push_async_callback(worker.stop)
        await dial_device(worker.port, "screen-1")
        assert 238 <= books.ttl("vz:{d:screen-1}:status") <= 240


class TestStoreFull:
    """Redis is slow and the queue to it short: nothing is forgotten for it."""

    async def test_a_store_that_is_full(self, slow: tuple[Node, EmbeddedServer, Books]) -> None:
        worker, _, books = slow
        client = await dial_device(worker.port, "screen-1")
        await client.heartbeat(uptime=1)
        await books.when(lambda status: status.get("uptime") == 1)
        books.client.config_set("maxmemory", "1")
        assert (await client.heartbeat(uptime=2))["success"]
        await until(lambda: worker.counter("heartbeat_errors_total", "store") == 1)
        books.client.config_set("maxmemory", "0")
        await client.heartbeat(uptime=3)
        await books.when(lambda status: status.get("uptime") == 3)
        assert worker.counter("heartbeat_errors_total", "store") == 1

    async def test_statuses(self, slow: tuple[Node, EmbeddedServer, Books]) -> None:
        worker, store, books = slow
        clients = [await dial_device(worker.port, f"screen-{number}") for number in range(10)]
        os.kill(store.pid, signal.SIGSTOP)
        for client in clients:
            await client.heartbeat(uptime=1)
        await until(lambda: worker.counter("limits_exceeded_total", "pending_commands"))
        os.kill(store.pid, signal.SIGCONT)
        await until(lambda: all(books.status(f"screen-{number}").get("uptime") for number in range(10)))


async def test_an_owner_is_renewed_after_the_clock_was_set_back(redis_url: str, stack: AsyncExitStack) -> None:
    node = await Node(redis_url).start()
    stack.push_async_callback(node.stop)
    screen = await dial_device(node.port, "screen-1")
    hour = 3_600_000
    device = node.gateway.state.devices["screen-1"]
    device.owner_checked = device.listed = time.time_ns() // 1_000_000 + hour
    await screen.heartbeat()
    await until(lambda: node.counter("redis_operations_total", "eval_renew", "ok") == 1)
    await until(lambda: device.listed < time.time() * 1000 + hour / 2)
    await screen.leave()
