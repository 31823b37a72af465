"""Who owns a device, with workers on one loop and a real Valkey that is cut off, stopped and killed."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from websockets.protocol import State

from tests.net.peers import Node, device_token, dial, dial_device, until
from tests.net.workers import AWAY, Books, Two, look_soon, online, owned, settled
from vizora_rt.net.presence import ownership
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer


async def test_the_owner_key_is_renewed_and_made_again(
    node: Node, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "AGAIN", 0.05)
    client = await dial_device(node.port, "screen-1")
    books.client.expire("vz:{d:screen-1}:owner", 5)
    look_soon(node)
    await client.heartbeat()
    await until(lambda: books.ttl("vz:{d:screen-1}:owner") > 50)
    epoch = books.owner()[0]
    books.client.delete("vz:{d:screen-1}:owner", "vz:{d:screen-1}:status")
    look_soon(node)
    await client.heartbeat(uptime=7)
    await until(lambda: books.owner()[0] > epoch and books.status().get("uptime") == 7)
    await settled(client)


async def outlast(node: Node) -> None:
    """Until a device that is away since before now would be offline, were nothing done about it."""
    over = node.wheel.now + 0.3
    await until(lambda: node.wheel.now > over)


class TestSuperseding:
    async def test_on_one_worker(self, stack: AsyncExitStack, redis_url: str, books: Books) -> None:
        worker = await Node(redis_url, presence=AWAY).start()
        stack.push_async_callback(worker.stop)
        older = await dial_device(worker.port, "screen-1")
        before = books.status()
        newer = await dial_device(worker.port, "screen-1")
        assert await older.ended() == 4500
        await until(lambda: worker.gateway.connections == 1)
        await outlast(worker)
        after = books.status()
        assert after.pop("epoch") > before.pop("epoch")
        assert after == before
        await settled(newer)
        assert worker.counter("ws_disconnects_total", "superseded") == 1

    async def test_across_workers(self, two: Two, books: Books) -> None:
        await two.start(presence=AWAY)
        older = await dial_device(two.a.port, "screen-1")
        before = books.status()
        newer = await dial_device(two.b.port, "screen-1")
        assert await older.ended() == 4500
        await until(lambda: not two.a.gateway.connections)
        await outlast(two.a)
        after = books.status()
        assert after["epoch"] > before["epoch"]
        assert after == {**before, "worker": 1, "epoch": after["epoch"]}
        assert books.owner()[:3] == (after["epoch"], "node", 1)
        await settled(newer)
        assert (online(two.a), online(two.b)) == (0, 1)

    async def test_back_and_forth(self, two: Two, books: Books) -> None:
        await two.start()
        epochs = []
        client = await dial_device(two.a.port, "screen-1")
        for turn in range(1, 11):
            newer = await dial_device(two.nodes[turn % 2].port, "screen-1")
            assert await client.ended() == 4500
            client = newer
            epochs.append(books.owner()[0])
        assert epochs == sorted(set(epochs))
        await settled(client)

    async def test_all_at_once(self, two: Two, books: Books) -> None:
        await two.start()
        clients = await asyncio.gather(
            *(dial(two.nodes[number % 2].port, device_token("screen-1", jti=str(number))) for number in range(20))
        )
        await until(lambda: two.a.gateway.connections + two.b.gateway.connections == 1)
        owner = books.owner()[2]
        assert two.nodes[owner].gateway.connections == 1
        left = [client for client in clients if client.connection.state is not State.OPEN]
        assert [await client.ended() for client in left] == [4500] * 19

    async def test_a_lost_doorbell_is_made_up_for(
        self, two: Two, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ownership, "AGAIN", 0.05)
        await two.start()
        await two.a.gateway.pubsub.close()
        older = await dial_device(two.a.port, "screen-1")
        newer = await dial_device(two.b.port, "screen-1")
        assert two.a.gateway.connections == 1
        look_soon(two.a)
        await older.heartbeat()
        assert await older.ended() == 4500
        await settled(newer)
        await until(lambda: books.status().get("worker") == 1 and "lastHeartbeat" in books.status())

    async def test_a_doorbell_before_the_answer_that_it_is_about(
        self, stack: AsyncExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Doorbells come on a connection of their own, and may overtake the reply to a claim.
        monkeypatch.setattr(ownership, "AGAIN", 0.1)
        store = valkey_server.start(tmp_path)
        stack.callback(store.stop)
        worker = await Node(store.url).start()
        stack.push_async_callback(worker.stop)
        os.kill(store.pid, signal.SIGSTOP)
        arriving = asyncio.create_task(dial(worker.port, device_token("screen-1")))
        await until(lambda: worker.gauge("redis_pipeline_depth"))
        worker.gateway._on_control_message({"superseded": "screen-1", "epoch": 2**53})
        os.kill(store.pid, signal.SIGCONT)
        assert await (await arriving).ended() == 4500

    async def test_a_newer_epoch_does_not_bow_to_an_old_doorbell(self, node: Node, books: Books) -> None:
        client = await dial_device(node.port, "screen-1")
        epoch = books.owner()[0]
        for message in ({"superseded": "screen-1", "epoch": epoch}, {"superseded": "screen-2", "epoch": 2**53}):
            node.gateway._on_control_message(message)
        await settled(client)

    async def test_a_doorbell_does_not_judge_who_is_not_confirmed(self, two: Two) -> None:
        # The confirmation does: this connection may be newer than the one that the doorbell is about.
        await two.start(stores=False)
        client = await dial_device(two.a.port, "screen-1")
        two.a.gateway._on_control_message({"superseded": "screen-1", "epoch": 5})
        await settled(client)
        two.a.store.start()
        await until(lambda: owned(two.a))
        await settled(client)

    async def test_one_look_at_another_owner_is_not_enough(
        self, node: Node, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As when a token that is revoked claims the device: it is given back at once. 4500 would be for good.
        monkeypatch.setattr(ownership, "AGAIN", 0.1)
        client = await dial_device(node.port, "screen-1")
        epoch, name, worker, connected = books.owner()
        books.client.set("vz:{d:screen-1}:owner", f"{epoch + 5} elsewhere 3 {connected + 5}")
        look_soon(node)
        await client.heartbeat()
        await until(lambda: node.counter("redis_operations_total", "eval_renew", "ok") == 1)
        books.client.set("vz:{d:screen-1}:owner", f"{epoch} {name} {worker} {connected}")
        await until(lambda: node.counter("redis_operations_total", "eval_renew", "ok") == 2)
        await settled(client)


class TestRedisAway:
    """Connections stay, heartbeats are taken, and what was buffered is written by who owns the device."""

    async def test_one_worker(self, stack: AsyncExitStack, tmp_path: Path) -> None:
        store = valkey_server.start(tmp_path)
        stack.callback(store.stop)
        books = Books(store.url)
        stack.callback(books.client.close)
        worker = await Node(store.url).start()
        stack.push_async_callback(worker.stop)
        client = await dial_device(worker.port, "screen-1", jti="j-1")
        quiet = await dial_device(worker.port, "screen-2")
        assert "degraded" not in (await client.heartbeat(uptime=1))["data"]
        before = await books.when(lambda status: "uptime" in status)
        os.kill(store.pid, signal.SIGKILL)
        await until(lambda: not worker.store.up)
        for uptime in range(2, 5):
            ack = await client.heartbeat(uptime=uptime)
            assert ack["success"]
            assert ack["data"]["degraded"] is True
        store.restart()
        status = await books.when(lambda status: status.get("uptime") == 4)
        assert status["epoch"] > before["epoch"]
        assert status["since"] == before["since"]
        assert books.owner()[0] == status["epoch"]
        assert books.owner("screen-2")[0] == books.status("screen-2")["epoch"]
        assert "degraded" not in (await client.heartbeat())["data"]
        await settled(quiet)
        assert worker.gateway.connections == 2

    async def test_a_device_that_went_elsewhere_meanwhile(self, two: Two, books: Books) -> None:
        await two.start()
        older = await dial_device(two.a.port, "screen-1")
        two.gates[0].away()
        await until(lambda: not two.a.store.up)
        newer = await dial_device(two.b.port, "screen-1")
        await older.heartbeat(uptime=1)
        assert books.owner()[2] == 1
        two.gates[0].back()
        assert await older.ended() == 4500
        await newer.heartbeat(uptime=2)
        assert (await books.when(lambda status: "uptime" in status))["uptime"] == 2
        assert two.a.counter("ws_disconnects_total", "superseded") == 1

    async def test_a_device_that_nobody_knew(self, two: Two, books: Books) -> None:
        await two.start(stores=False)
        client = await dial_device(two.a.port, "screen-1")
        assert (await client.heartbeat(uptime=3))["data"]["degraded"] is True
        two.a.store.start()
        status = await books.when(lambda status: "uptime" in status)
        assert (status["uptime"], status["worker"], status["epoch"]) == (3, 0, books.owner()[0])
        await settled(client)

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    async def test_of_two_that_nobody_knew_the_later_wins(
        self, two: Two, books: Books, order: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ownership, "AGAIN", 60.0)  # by doorbell, not by looking
        await two.start(stores=False)
        older = await dial_device(two.a.port, "screen-1")
        newer = await dial_device(two.b.port, "screen-1")
        first, second = (two.nodes[each] for each in order)
        first.store.start()
        await until(lambda: owned(first))
        second.store.start()
        assert await older.ended() == 4500
        await settled(newer)
        assert books.owner()[2] == 1
        await until(lambda: books.status().get("worker") == 1 and "lastHeartbeat" in books.status())

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    async def test_it_went_away_and_came_back_meanwhile(self, two: Two, books: Books, order: tuple[int, int]) -> None:
        # a before the outage, then b, then a again: whoever learns first, the last one stays.
        await two.start()
        await dial_device(two.a.port, "screen-1")
        await two.away()
        between = await dial_device(two.b.port, "screen-1")
        last = await dial_device(two.a.port, "screen-1")
        first, second = order
        two.gates[first].back()
        await until(lambda: two.nodes[first].store.up and owned(two.nodes[first]))
        two.gates[second].back()
        assert await between.ended() == 4500
        await until(lambda: owned(two.a))
        await settled(last)
        assert books.owner()[2] == 0

    async def test_revoked_meanwhile(self, two: Two, books: Books) -> None:
        await two.start()
        by_device = await dial_device(two.a.port, "screen-1")
        by_token = await dial_device(two.a.port, "screen-2", jti="stale")
        await two.away()
        unchecked = await dial_device(two.a.port, "screen-3")
        books.client.mset({f"vz:{{d:screen-{number}}}:revoked": "1" for number in (1, 3)})
        books.client.set("revoked_token:stale", "1")
        two.gates[0].back()
        assert [await each.ended() for each in (by_device, by_token, unchecked)] == [4501, 4501, 4501]
        assert two.a.counter("ws_disconnects_total", "revoked") == 3
        rows = {row[0]: row[2] for chunk in two.a.gateway.device_rows(10) for row in chunk}
        assert (rows["screen-1"], rows["screen-3"]) == (0, 0)


async def test_a_device_is_asked_for_once_at_a_time(node: Node, books: Books) -> None:
    """Shards of a cluster come back one after the other, and each time all that is not confirmed is asked for."""
    screen = await dial_device(node.port, "screen-1")
    device = node.gateway.state.devices["screen-1"]
    before = node.counter("redis_operations_total", "eval_confirm", "ok")
    device.owned = False
    for _ in range(3):
        node.gateway._presence.ownership._on_up()
    await until(lambda: device.owned)
    assert node.counter("redis_operations_total", "eval_confirm", "ok") == before + 1
    assert (await screen.heartbeat())["success"]


async def test_confirmations_behind_a_short_queue(
    slow: tuple[Node, EmbeddedServer, Books], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "AGAIN", 0.02)
    worker, store, books = slow
    for number in range(10):
        await dial_device(worker.port, f"screen-{number}", jti=str(number))
    epochs = [books.owner(f"screen-{number}")[0] for number in range(10)]
    os.kill(store.pid, signal.SIGKILL)
    await until(lambda: not worker.store.up)
    store.restart()
    await until(lambda: all(owned(worker, f"screen-{number}") for number in range(10)))
    assert all(books.owner(f"screen-{number}")[0] > epochs[number] for number in range(10))
