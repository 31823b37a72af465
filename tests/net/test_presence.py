"""What Redis knows of devices, with workers on one loop and a real Valkey that is cut off, stopped and killed.

The client named `redis` reads and writes for the tests. Two `Node`s are two workers; each may have a `Gate` of its own
before the store, so that an outage ends for one worker before it ends for the other.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from websockets.protocol import State

from tests.net.peers import Client, Json, Node, device_token, dial, dial_device, refusal, until, user_token
from tests.net.proxy import Proxy
from vizora_rt.net import embedded, presence
from vizora_rt.net.embedded import Embedded
from vizora_rt.net.link import Address

AWAY = {"offline_after_seconds": 0.1}
"""A device without a connection is offline soon."""
DAY = 24 * 3600


class Gate(Proxy):
    """A way to the store that can be shut."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.shut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.shut:
            writer.close()
        else:
            await super()._serve(reader, writer)

    def away(self) -> None:
        self.shut = True
        self.cut()

    def back(self) -> None:
        self.shut = False


class Books:
    """What stands in Redis."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url, decode_responses=True)

    def get(self, key: str) -> str | None:
        return cast("str | None", self.client.get(key))

    def ttl(self, key: str) -> int:
        return int(cast(str, self.client.ttl(key)))

    def status(self, device: str = "screen-1") -> Json:
        """The status key, {} when there is none."""
        found: Json = json.loads(self.get(f"vz:{{d:{device}}}:status") or "{}")
        return found

    def owner(self, device: str = "screen-1") -> tuple[int, str, int, int]:
        """Epoch, node, worker and time of the connection; zeros when nobody owns the device."""
        epoch, node, worker, connected = (self.get(f"vz:{{d:{device}}}:owner") or "0  0 0").split(" ")
        return int(epoch), node, int(worker), int(connected)

    async def when(self, true: Callable[[Json], object], device: str = "screen-1") -> Json:
        """The status, as soon as this is true of it."""
        return await until(lambda: self.status(device) if true(self.status(device)) else {})

    def listed(self, organization: str = "acme") -> dict[str, float]:
        return dict(cast("list[tuple[str, float]]", self.client.zrange(key_of(organization), 0, -1, withscores=True)))


def key_of(organization: str) -> str:
    return f"vz:{{o:{organization}}}:devices"


@pytest.fixture
def books(redis_url: str) -> Iterator[Books]:
    books = Books(redis_url)
    yield books
    books.client.close()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


class Two:
    """Two workers of one node, each behind a gate. `start` is given the configuration."""

    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        self._stack = stack
        self._path = Address.parse(url).path

    async def start(self, *, stores: bool = True, **sections: Json) -> "Two":
        self.gates = [Gate(self._path), Gate(self._path)]
        self.nodes: list[Node] = []
        for index, gate in enumerate(self.gates):
            self._stack.push_async_callback(gate.close)
            worker = Node(await gate.open(), index, **sections)
            self.nodes.append(await worker.start(store=stores))
            self._stack.push_async_callback(worker.stop)
        self.a, self.b = self.nodes
        return self

    async def away(self) -> None:
        for gate in self.gates:
            gate.away()
        await until(lambda: not self.a.store.up and not self.b.store.up)


@pytest.fixture
def two(stack: AsyncExitStack, redis_url: str) -> Two:
    return Two(stack, redis_url)


@pytest.fixture
async def node(stack: AsyncExitStack, redis_url: str) -> Node:
    worker = await Node(redis_url).start()
    stack.push_async_callback(worker.stop)
    return worker


def online(node: Node) -> int:
    """Devices that the worker knows."""
    return len(node.gateway.state.devices)


def owned(node: Node, device: str = "screen-1") -> bool:
    """Whether the worker may write of the device."""
    found = node.gateway.state.devices.get(device)
    return found is not None and found.owned


async def outlast(node: Node) -> None:
    """Until a device that is away since before now would be offline, were nothing done about it."""
    over = node.wheel.now + 0.3
    await until(lambda: node.wheel.now > over)


def look_soon(node: Node, device: str = "screen-1") -> None:
    """See at the next heartbeat who owns the device, and not after most of an interval."""
    node.gateway.state.devices[device].owner_checked = 0


async def settled(client: Client) -> None:
    """All that the gateway has to say to this client is said: it answers, and is not told to go."""
    assert (await client.heartbeat())["success"]


class TestStatus:
    async def test_connected(self, node: Node, books: Books) -> None:
        before = books.client.time()[0] * 1000
        await dial_device(node.port, "screen-1")
        epoch, name, worker, connected = books.owner()
        assert (name, worker) == ("node", 0)
        assert epoch >= connected >= before * 1000
        status = books.status()
        assert status.pop("since") == connected // 1000
        assert status == {
            "status": "online",
            "reason": "connected",
            "organizationId": "acme",
            "node": "node",
            "worker": 0,
            "epoch": epoch,
        }
        assert 58 <= books.ttl("vz:{d:screen-1}:status") <= 60
        assert 58 <= books.ttl("vz:{d:screen-1}:owner") <= 60
        assert books.listed() == {"screen-1": connected // 1000}

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

    async def test_what_a_device_says_stays_text(self, node: Node, books: Books) -> None:
        # The claim's script looks into the status without parsing it.
        client = await dial_device(node.port, "screen-1")
        since = books.status()["since"]
        sly = '","since":1,"lastHeartbeat":2,"status":"offline","x":"'
        await client.heartbeat(currentContent={"contentId": sly, "status": "offline"}, appVersion=sly)
        await until(lambda: "appVersion" in books.status())
        again = await dial_device(node.port, "screen-1")
        await again.heartbeat(appVersion="2")
        status = await books.when(lambda status: status.get("appVersion") == "2")
        assert (status["since"], status["status"]) == (since, "online")

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

    async def test_the_owner_key_is_renewed_and_made_again(
        self, node: Node, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(presence, "AGAIN", 0.05)
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
        store = embedded.start(tmp_path)
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
        await two.a.gateway.bus.close()
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
        monkeypatch.setattr(presence, "AGAIN", 0.05)
        store = embedded.start(tmp_path)
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
        monkeypatch.setattr(presence, "AGAIN", 0.05)
        await two.start()
        await two.a.gateway.bus.close()
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
        monkeypatch.setattr(presence, "AGAIN", 0.1)
        store = embedded.start(tmp_path)
        stack.callback(store.stop)
        worker = await Node(store.url).start()
        stack.push_async_callback(worker.stop)
        os.kill(store.pid, signal.SIGSTOP)
        arriving = asyncio.create_task(dial(worker.port, device_token("screen-1")))
        await until(lambda: worker.gauge("redis_pipeline_depth"))
        worker.gateway._on_doorbell({"superseded": "screen-1", "epoch": 2**53})
        os.kill(store.pid, signal.SIGCONT)
        assert await (await arriving).ended() == 4500

    async def test_a_newer_epoch_does_not_bow_to_an_old_doorbell(self, node: Node, books: Books) -> None:
        client = await dial_device(node.port, "screen-1")
        epoch = books.owner()[0]
        for bell in ({"superseded": "screen-1", "epoch": epoch}, {"superseded": "screen-2", "epoch": 2**53}):
            node.gateway._on_doorbell(bell)
        await settled(client)

    async def test_a_doorbell_does_not_judge_who_is_not_confirmed(self, two: Two) -> None:
        # The confirmation does: this connection may be newer than the one that the doorbell is about.
        await two.start(stores=False)
        client = await dial_device(two.a.port, "screen-1")
        two.a.gateway._on_doorbell({"superseded": "screen-1", "epoch": 5})
        await settled(client)
        two.a.store.start()
        await until(lambda: owned(two.a))
        await settled(client)

    async def test_one_look_at_another_owner_is_not_enough(
        self, node: Node, books: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As when a token that is revoked claims the device: it is given back at once. 4500 would be for good.
        monkeypatch.setattr(presence, "AGAIN", 0.1)
        client = await dial_device(node.port, "screen-1")
        epoch, name, worker, connected = books.owner()
        books.client.set("vz:{d:screen-1}:owner", f"{epoch + 5} elsewhere 3 {connected + 5}")
        look_soon(node)
        await client.heartbeat()
        await until(lambda: node.counter("redis_operations_total", "eval_renew", "ok") == 1)
        books.client.set("vz:{d:screen-1}:owner", f"{epoch} {name} {worker} {connected}")
        await until(lambda: node.counter("redis_operations_total", "eval_renew", "ok") == 2)
        await settled(client)


class TestRevoked:
    async def test_a_device(self, node: Node, books: Books) -> None:
        books.client.set("vz:{d:screen-1}:revoked", "1")
        status, body = await refusal(node.port, device_token("screen-1"))
        assert (status, body["code"], body["retryable"]) == (403, "DEVICE_REVOKED", False)
        assert body["message"] == "device_token_stale"
        await until(lambda: not books.listed())
        assert (books.status(), books.owner()[0]) == ({}, 0)
        assert node.counter("ws_handshakes_rejected_total", "DEVICE_REVOKED") == 1

    async def test_a_token_of_a_device_that_is_connected(self, two: Two, books: Books) -> None:
        await two.start()
        client = await dial_device(two.a.port, "screen-1", jti="good")
        await client.heartbeat(uptime=5)
        before = await books.when(lambda status: "uptime" in status)
        owner = books.owner()
        books.client.set("revoked_token:stale", "1")
        status, body = await refusal(two.b.port, device_token("screen-1", jti="stale"))
        assert (status, body["code"]) == (403, "DEVICE_REVOKED")
        await until(lambda: books.owner() == owner and books.status() == before)
        assert 0 < books.ttl("vz:{d:screen-1}:owner") <= 60
        assert 0 < books.ttl("vz:{d:screen-1}:status") <= 60
        await settled(client)
        assert "screen-1" in books.listed()

    async def test_a_token_of_a_device_that_is_offline(
        self, stack: AsyncExitStack, redis_url: str, books: Books
    ) -> None:
        worker = await Node(redis_url, presence=AWAY).start()
        stack.push_async_callback(worker.stop)
        await (await dial_device(worker.port, "screen-1")).leave()
        before = await books.when(lambda status: status["status"] == "offline")
        books.client.set("revoked_token:stale", "1")
        assert (await refusal(worker.port, device_token("screen-1", jti="stale")))[0] == 403
        await until(lambda: books.status() == before)
        assert books.ttl("vz:{d:screen-1}:status") > 3600

    async def test_a_token_of_a_device_that_nobody_knows(self, node: Node, books: Books) -> None:
        books.client.set("revoked_token:stale", "1")
        assert (await refusal(node.port, device_token("screen-1", jti="stale")))[0] == 403
        await until(lambda: not books.client.exists("vz:{d:screen-1}:owner", "vz:{d:screen-1}:status", key_of("acme")))


class TestDashboards:
    @pytest.mark.parametrize(
        ("key", "value"),
        [("revoked_token:j-1", "1"), ("user_revoked:ann", "1"), ("pwd_changed:ann", ""), ("pwd_changed:ann", "ms")],
    )
    async def test_refused(self, node: Node, books: Books, key: str, value: str) -> None:
        token = user_token(jti="j-1")
        client = await dial(node.port, token)
        await client.leave()
        changed = books.client.time()[0] + 10
        books.client.set(key, {"": changed, "ms": changed * 1000}.get(value, value))
        status, body = await refusal(node.port, token)
        assert (status, body["code"]) == (401, "AUTH_INVALID")

    @pytest.mark.parametrize("value", ["1", "1000000000000", "never"])
    async def test_a_password_that_was_changed_before_the_token_was_made(
        self, node: Node, books: Books, value: str
    ) -> None:
        books.client.set("pwd_changed:ann", value)
        await (await dial(node.port, user_token())).leave()

    async def test_a_token_that_does_not_say_when_it_was_made_is_older_than_any_change(
        self, node: Node, books: Books
    ) -> None:
        await (await dial(node.port, user_token(iat=None))).leave()
        books.client.set("pwd_changed:ann", "1")
        assert (await refusal(node.port, user_token(iat=None)))[0] == 401

    async def test_nothing_is_written(self, node: Node, books: Books) -> None:
        before = set(books.client.keys("*"))
        await (await dial(node.port, user_token())).leave()
        assert set(books.client.keys("*")) == before


class TestRedisAway:
    """Connections stay, heartbeats are taken, and what was buffered is written by who owns the device."""

    async def test_one_worker(self, stack: AsyncExitStack, tmp_path: Path) -> None:
        store = embedded.start(tmp_path)
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
        monkeypatch.setattr(presence, "AGAIN", 60.0)  # by doorbell, not by looking
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

    async def test_closed_when_a_revocation_must_be_checked(self, two: Two) -> None:
        await two.start(stores=False, auth={"fail_open_devices": False, "fail_open_dashboards": False})
        for token in (device_token("screen-1"), user_token()):
            status, body = await refusal(two.a.port, token)
            assert (status, body["code"], body["retryable"]) == (503, "STORE_UNAVAILABLE", True)
        assert two.a.counter("ws_handshakes_rejected_total", "STORE_UNAVAILABLE") == 2

    async def test_open_when_told_so(self, two: Two) -> None:
        await two.start(stores=False, auth={"fail_open_devices": True, "fail_open_dashboards": True})
        await dial_device(two.a.port, "screen-1")
        await dial(two.a.port, user_token())

    async def test_it_goes_away_while_a_claim_is_under_way(self, stack: AsyncExitStack, tmp_path: Path) -> None:
        store = embedded.start(tmp_path)
        stack.callback(store.stop)
        open_ = await Node(store.url, 0, auth={"fail_open_devices": True}).start()
        closed = await Node(store.url, 1, auth={"fail_open_devices": False}).start()
        stack.push_async_callback(open_.stop)
        stack.push_async_callback(closed.stop)
        os.kill(store.pid, signal.SIGSTOP)
        arriving = asyncio.create_task(dial_device(open_.port, "screen-1", jti="j-1"))
        refused = asyncio.create_task(refusal(closed.port, device_token("screen-2", jti="j-1")))
        await until(lambda: open_.gauge("redis_pipeline_depth") and closed.gauge("redis_pipeline_depth"))
        os.kill(store.pid, signal.SIGKILL)
        assert (await (await arriving).heartbeat())["data"]["degraded"] is True
        assert (await refused)[1]["code"] == "STORE_UNAVAILABLE"


async def test_a_device_is_asked_for_once_at_a_time(node: Node, books: Books) -> None:
    """Shards of a cluster come back one after the other, and each time all that is not confirmed is asked for."""
    screen = await dial_device(node.port, "screen-1")
    device = node.gateway.state.devices["screen-1"]
    before = node.counter("redis_operations_total", "eval_confirm", "ok")
    device.owned = False
    for _ in range(3):
        node.gateway._presence._on_up()
    await until(lambda: device.owned)
    assert node.counter("redis_operations_total", "eval_confirm", "ok") == before + 1
    assert (await screen.heartbeat())["success"]


class TestStoreFull:
    """Redis is slow and the queue to it short: nothing is forgotten for it."""

    @pytest.fixture
    async def slow(self, stack: AsyncExitStack, tmp_path: Path) -> tuple[Node, Embedded, Books]:
        store = embedded.start(tmp_path)
        stack.callback(store.stop)
        books = Books(store.url)
        stack.callback(books.client.close)
        worker = await Node(store.url, redis={"pending_commands": 4}).start()
        stack.push_async_callback(worker.stop)
        return worker, store, books

    async def test_a_store_that_is_full(self, slow: tuple[Node, Embedded, Books]) -> None:
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

    async def test_statuses(self, slow: tuple[Node, Embedded, Books]) -> None:
        worker, store, books = slow
        clients = [await dial_device(worker.port, f"screen-{number}") for number in range(10)]
        os.kill(store.pid, signal.SIGSTOP)
        for client in clients:
            await client.heartbeat(uptime=1)
        await until(lambda: worker.counter("limits_exceeded_total", "pending_commands"))
        os.kill(store.pid, signal.SIGCONT)
        await until(lambda: all(books.status(f"screen-{number}").get("uptime") for number in range(10)))

    async def test_confirmations(self, slow: tuple[Node, Embedded, Books], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(presence, "AGAIN", 0.02)
        worker, store, books = slow
        for number in range(10):
            await dial_device(worker.port, f"screen-{number}", jti=str(number))
        epochs = [books.owner(f"screen-{number}")[0] for number in range(10)]
        os.kill(store.pid, signal.SIGKILL)
        await until(lambda: not worker.store.up)
        store.restart()
        await until(lambda: all(owned(worker, f"screen-{number}") for number in range(10)))
        assert all(books.owner(f"screen-{number}")[0] > epochs[number] for number in range(10))


async def test_what_redis_holds_may_be_anything(node: Node, books: Books) -> None:
    """Keys that others broke keep nobody out."""
    broken: dict[str, Any] = {"vz:{d:screen-1}:owner": "nonsense", "vz:{d:screen-1}:status": "nonsense"}
    books.client.mset(broken)
    client = await dial_device(node.port, "screen-1")
    await settled(client)
    assert books.owner()[1] == "node"
    books.client.delete("vz:{d:screen-2}:status")
    books.client.hset("vz:{d:screen-2}:status", "a", "b")
    await settled(await dial_device(node.port, "screen-2"))


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
    monkeypatch.setattr(presence, "time", wall := Wall())
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
    await screen.leave()


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
