"""Devices that go and come back, or fall silent, with workers on one loop and a real Valkey that is killed."""

import asyncio
import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.net.peers import Node, dial_device, until
from tests.net.workers import AWAY, Books, Two, online
from vizora_rt.net.presence import lifecycle
from vizora_rt.net.valkey import server as valkey_server

DAY = 24 * 3600


class TestOffline:
    async def test_after_a_while_and_not_before(self, stack: AsyncExitStack, redis_url: str, books: Books) -> None:
        worker = await Node(redis_url, presence=AWAY).start()
        stack.push_async_callback(worker.stop)
        client = await dial_device(worker.port, "screen-1")
        await client.heartbeat(metrics={"cpuUsage": 1}, uptime=1)
        before = await books.when(lambda status: "uptime" in status)
        await client.leave()
        await until(lambda: not worker.gateway.connections)
        assert books.status() == before
        status = await books.when(lambda status: status["status"] == "offline")
        assert status["since"] >= before["since"]
        assert status == {
            "status": "offline",
            "reason": "client",
            "organizationId": "acme",
            "node": "node",
            "worker": 0,
            "lastHeartbeat": before["lastHeartbeat"],
            "since": status["since"],
            "epoch": before["epoch"],
        }
        assert DAY - 2 <= books.ttl("vz:{d:screen-1}:status") <= DAY
        assert DAY - 2 <= books.ttl("vz:{d:screen-1}:owner") <= DAY
        await until(lambda: not online(worker))
        rows = [row for chunk in worker.gateway.device_rows(10) for row in chunk]
        assert rows == [["screen-1", "acme", 0, None, None, 1, 0]]

    async def test_a_reconnect_in_time_is_no_change(self, node: Node, books: Books) -> None:
        client = await dial_device(node.port, "screen-1")
        await client.heartbeat()
        before = await books.when(lambda status: "lastHeartbeat" in status)
        await client.leave()
        await until(lambda: not node.gateway.connections)
        await dial_device(node.port, "screen-1")
        after = books.status()
        assert after.pop("epoch") > before.pop("epoch")
        assert after == before

    async def test_the_time_counts_from_the_last_connection(
        self, stack: AsyncExitStack, redis_url: str, books: Books
    ) -> None:
        worker = await Node(redis_url, presence={"offline_after_seconds": 0.4}).start()
        stack.push_async_callback(worker.stop)
        await (await dial_device(worker.port, "screen-1")).leave()
        over = worker.wheel.now + 0.2
        await until(lambda: worker.wheel.now > over)
        await (await dial_device(worker.port, "screen-1")).leave()
        seconds, micros = books.client.time()
        status = await books.when(lambda status: status["status"] == "offline")
        # The second end was before the time was taken, but by less than the first was before it.
        assert status["since"] > seconds * 1000 + micros // 1000 + 300

    async def test_it_comes_back_while_its_end_is_written(self, stack: AsyncExitStack, tmp_path: Path) -> None:
        store = valkey_server.start(tmp_path)
        stack.callback(store.stop)
        books = Books(store.url)
        stack.callback(books.client.close)
        worker = await Node(store.url, presence=AWAY).start()
        stack.push_async_callback(worker.stop)
        await (await dial_device(worker.port, "screen-1")).leave()
        device = worker.gateway.state.devices["screen-1"]
        os.kill(store.pid, signal.SIGSTOP)
        arriving = asyncio.create_task(dial_device(worker.port, "screen-1"))
        await until(lambda: device.status == "offline")
        os.kill(store.pid, signal.SIGCONT)
        await (await arriving).heartbeat(uptime=8)
        assert (await books.when(lambda status: "uptime" in status))["status"] == "online"
        assert worker.gateway.state.devices["screen-1"] is device

    async def test_a_device_that_comes_back_later_is_online_since_then(
        self, stack: AsyncExitStack, redis_url: str, books: Books
    ) -> None:
        worker = await Node(redis_url, presence=AWAY).start()
        stack.push_async_callback(worker.stop)
        client = await dial_device(worker.port, "screen-1")
        await client.heartbeat()
        await until(lambda: "lastHeartbeat" in books.status())
        await client.leave()
        before = await books.when(lambda status: status["status"] == "offline")
        await dial_device(worker.port, "screen-1")
        after = books.status()
        assert (after["status"], after["reason"]) == ("online", "connected")
        assert after["since"] >= before["since"]
        assert after["epoch"] > before["epoch"]
        assert after["lastHeartbeat"] == before["lastHeartbeat"]

    async def test_when_it_was_last_heard_is_known_although_another_worker_heard_it(
        self, two: Two, books: Books
    ) -> None:
        await two.start(presence=AWAY)
        client = await dial_device(two.a.port, "screen-1")
        await client.heartbeat()
        heard = (await books.when(lambda status: "lastHeartbeat" in status))["lastHeartbeat"]
        await client.leave()
        await (await dial_device(two.b.port, "screen-1")).leave()
        status = await books.when(lambda status: status["status"] == "offline")
        assert (status["lastHeartbeat"], status["worker"]) == (heard, 1)

    async def test_nobody_else_writes_it(self, two: Two, books: Books) -> None:
        # It left a, came to b, and the doorbell that tells a so was lost.
        await two.start(presence=AWAY)
        await two.a.gateway.pubsub.close()
        client = await dial_device(two.a.port, "screen-1")
        await client.leave()
        await dial_device(two.b.port, "screen-1")
        await until(lambda: not online(two.a))
        assert two.a.counter("redis_operations_total", "eval_offline", "ok") == 1
        assert books.status()["status"] == "online"
        assert books.owner()[2] == 1
        rows = [row for chunk in two.a.gateway.device_rows(10) for row in chunk]
        assert rows == [["screen-1", "acme", None, None, None, 0, 0]]

    async def test_a_worker_that_was_told_forgets(self, two: Two) -> None:
        await two.start(presence={"offline_after_seconds": 60})
        client = await dial_device(two.a.port, "screen-1")
        await client.leave()
        await until(lambda: not two.a.gateway.connections)
        await dial_device(two.b.port, "screen-1")
        await until(lambda: not online(two.a))

    async def test_it_is_written_when_redis_is_back(
        self, stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "AGAIN", 0.05)
        store = valkey_server.start(tmp_path)
        stack.callback(store.stop)
        books = Books(store.url)
        stack.callback(books.client.close)
        worker = await Node(store.url, presence=AWAY).start()
        stack.push_async_callback(worker.stop)
        client = await dial_device(worker.port, "screen-1")
        os.kill(store.pid, signal.SIGSTOP)
        await client.leave()
        depth = "redis_pipeline_depth"
        await until(lambda: worker.gateway.state.devices["screen-1"].status == "offline" and worker.gauge(depth))
        os.kill(store.pid, signal.SIGKILL)  # the script was sent and never answered
        await until(lambda: not worker.store.up)
        assert online(worker) == 1
        store.restart()
        await until(lambda: not online(worker))
        assert books.status()["status"] == "offline"
        assert books.ttl("vz:{d:screen-1}:status") > 3600


class Wall:
    """The wall clock, which can be set: in the place of the module `time`."""

    def __init__(self) -> None:
        self.off = 0.0

    def time_ns(self) -> int:
        return time.time_ns() + int(self.off * 1e9)


@pytest.mark.parametrize("hours", [1, -1])
async def test_a_clock_that_is_set_makes_nobody_stale(
    redis_url: str, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """How long the silence is by then, nothing can say; who says nothing for as long after it is stale."""
    monkeypatch.setattr(lifecycle, "time", wall := Wall())
    node = await Node(redis_url).start()
    stack.push_async_callback(node.stop)
    screen = await dial_device(node.port, "screen-1")
    await screen.heartbeat()
    device, watcher = node.gateway.state.devices["screen-1"], node.gateway._presence
    wall.off = hours * 3600
    patience = 3 * node.config.player.heartbeat_interval / 1000
    assert watcher.silent(device) == pytest.approx(patience, abs=1)
    assert str(device.status) == "online"
    for _ in range(int(patience) + 1):
        wall.off += 1
        watcher._offset += 1000  # the loop's clock goes on as well
        watcher.silent(device)
    assert str(device.status) == "stale"
    # The time of its connect may lie ahead for an hour; those of its heartbeats do not.
    node.gateway.state.change(device, "online", "heartbeat", wall.time_ns() // 1_000_000)
    for _ in range(int(patience) + 1):
        wall.off += 1
        watcher._offset += 1000
        device.last_heartbeat = wall.time_ns() // 1_000_000
        watcher.silent(device)
    assert str(device.status) == "online"
    await screen.leave()


async def test_a_client_whose_messages_wait_is_not_stale(
    redis_url: str, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "time", wall := Wall())
    node = await Node(redis_url, limits={"messages_per_minute": 1}).start()
    stack.push_async_callback(node.stop)
    screen = await dial_device(node.port, "screen-1")
    for _ in range(3):
        await screen.send("heartbeat")
    device, watcher = node.gateway.state.devices["screen-1"], node.gateway._presence
    peer = node.gateway.state.devices["screen-1"].peer
    await until(lambda: peer is not None and peer.held)
    for expected in ("online", "stale"):
        for _ in range(100):
            wall.off += 1
            watcher._offset += 1000
            watcher.silent(device)
        assert str(device.status) == expected
        await screen.leave()
        await until(lambda: peer is not None and not peer.held)
