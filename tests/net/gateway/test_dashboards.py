"""Snapshots, rounds and joins of dashboards: real connections and a real store."""

import asyncio
import socket
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from tests.net.peers import Client, Json, Node, Wire, dial_device, until, upgrade, user_token
from tests.net.watching import dashboard, join, node, silent, status
from vizora_rt.app.dashboards import status_body
from vizora_rt.net.server.websocket import Connection

pytestmark = pytest.mark.usefixtures("quick")


async def next_round(worker: Node) -> None:
    last = worker.gateway._dashboards._sent
    await until(lambda: worker.gateway._dashboards._sent > last)


def only(worker: Node) -> Connection:
    """The one connection, whose kernel takes little for a client that does not read."""
    (connection,) = worker.gateway._connections
    assert connection.transport is not None
    connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return connection


class TestSnapshot:
    def seed(self, client: Any, count: int, organization: str = "acme") -> None:
        """Screens that were there before."""
        for start in range(0, count, 1000):
            pipe = client.pipeline(transaction=False)
            for number in range(start, min(count, start + 1000)):
                value = f'{{"status":"online","reason":"connected","organizationId":"{organization}",'
                pipe.set(f"vz:{{d:d{number}}}:status", f'{value}"since":{number + 1},"epoch":7}}')
                pipe.zadd("vz:{o:acme}:devices", {f"d{number}": number + 5})
            pipe.execute()

    async def pages(self, client: Client) -> list[Json]:
        found = [await client.next("device:status:batch")]
        while found[-1]["page"] < found[-1]["pages"]:
            found.append(await client.next("device:status:batch"))
        return found

    @pytest.mark.parametrize("count", [0, 1, 500, 501, 1700])
    async def test_all_of_the_organization_in_pages(
        self, stack: AsyncExitStack, redis_url: str, client: Any, count: int
    ) -> None:
        worker = await node(stack, redis_url)
        self.seed(client, count)
        ann = await dashboard(worker)
        await join(ann)
        pages = await self.pages(ann)
        assert [page["page"] for page in pages] == list(range(1, len(pages) + 1))
        assert {page["pages"] for page in pages} == {max(1, -(-count // 500))}
        told = [(each["deviceId"], each["seq"], each["lastSeen"]) for page in pages for each in page["devices"]]
        assert sorted(told) == sorted((f"d{number}", number + 1, number + 5) for number in range(count))
        await silent(ann)

    async def test_then_only_changes(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url)
        await dial_device(worker.port, "lobby-1")
        ann = await dashboard(worker)
        await join(ann)
        (page,) = await self.pages(ann)
        assert [(each["deviceId"], each["status"]) for each in page["devices"]] == [("lobby-1", "online")]
        await dial_device(worker.port, "lobby-2")
        assert await status(ann) == ("lobby-2", "online", "connected")

    async def test_a_room_is_an_organization_too(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url)
        await dial_device(worker.port, "lobby-1")
        ann = await dashboard(worker)
        ack = await ann.ask("join:room", {"room": "org:acme"})
        assert ack["data"] == {"joined": True, "room": "org:acme"}
        (page,) = await self.pages(ann)
        assert len(page["devices"]) == 1
        ack = await ann.ask("join:room", {"room": "device:lobby-1"})
        assert ack["data"] == {"joined": True, "room": "device:lobby-1"}

    async def test_what_is_another_organization_s_by_now(
        self, stack: AsyncExitStack, redis_url: str, client: Any
    ) -> None:
        worker = await node(stack, redis_url)
        self.seed(client, 3, "globex")
        ann = await dashboard(worker)
        await join(ann)
        assert [page["devices"] for page in await self.pages(ann)] == [[]]

    async def test_what_nothing_is_known_of(self, stack: AsyncExitStack, redis_url: str, client: Any) -> None:
        worker = await node(stack, redis_url)
        client.zadd("vz:{o:acme}:devices", {"d1": 77})
        ann = await dashboard(worker)
        await join(ann)
        ((device,),) = [page["devices"] for page in await self.pages(ann)]
        assert (device["status"], device["reason"], device["since"]) == ("offline", "unknown", 77)

    async def test_again_whenever_something_may_have_been_missed(
        self, stack: AsyncExitStack, redis_url: str, client: Any
    ) -> None:
        worker = await node(stack, redis_url)
        ann, bob = await dashboard(worker), await dashboard(worker, "bob")
        await join(ann)
        await self.pages(ann)
        self.seed(client, 1)
        assert client.client_kill_filter(_type="pubsub") == 1
        (page,) = await self.pages(ann)
        assert [each["deviceId"] for each in page["devices"]] == ["d0"]
        await silent(bob)

    async def test_an_outage_meanwhile(self, stack: AsyncExitStack, redis_url: str, client: Any) -> None:
        worker = await node(stack, redis_url)
        self.seed(client, 700)
        ann = await dashboard(worker)
        worker.store.reconnect("for the test")
        await join(ann)
        pages = await self.pages(ann)
        assert sum(len(page["devices"]) for page in pages) == 700

    async def test_asked_for_twice(self, stack: AsyncExitStack, redis_url: str, client: Any) -> None:
        """Who asks while it is told is told once more, not twice at a time."""
        worker = await node(stack, redis_url)
        self.seed(client, 1200)
        ann = await dashboard(worker)
        for ack_id in (1, 2, 3):
            await ann.send("join:organization", {"organizationId": "acme"}, ack_id)
        batches: list[int] = []
        while batches != [1, 2, 3, 1, 2, 3]:
            message = await ann.receive()
            if message["event"] == "device:status:batch":
                batches.append(message["data"]["page"])
        await silent(ann)

    async def test_who_leaves_meanwhile(self, stack: AsyncExitStack, redis_url: str, client: Any) -> None:
        worker = await node(stack, redis_url)
        self.seed(client, 1200)
        ann, bob = await dashboard(worker), await dashboard(worker, "bob")
        await join(ann)
        await join(bob)
        await ann.leave()
        pages = await self.pages(bob)
        assert sum(len(page["devices"]) for page in pages) == 1200


class TestSlow:
    async def test_who_does_not_read_gets_the_latest_of_each_device_once(
        self, stack: AsyncExitStack, redis_url: str, client: Any
    ) -> None:
        worker = await node(stack, redis_url, limits={"unsent_seconds": 300.0, "unsent_bytes": 100_000_000})
        wire = await Wire.open(worker.port, receive_buffer=4096)
        stack.push_async_callback(wire.close)
        await wire.send(upgrade(user_token()))
        await wire.response()
        await until(lambda: worker.gateway.pubsub.is_subscribed("acme"))
        connection = only(worker)

        def tell(name: str, seq: int) -> None:
            text = status_body(name, "online", seq, seq, "x" * 500, seq).decode()
            client.publish("vz:org:acme", f'{{"status":{text},"organizationId":"acme"}}')

        seq = 1
        while not connection.stalled:
            for number in range(100):
                tell(f"noise-{number}", seq)
            seq += 1
            await asyncio.sleep(0)
        watch = connection.watch
        assert watch is not None
        for change in range(5):
            for number in range(300):
                tell(f"d{number}", 1_000_000 + change)
            # As many rounds pass.
            await next_round(worker)
        await until(lambda: len(watch.due) + len(watch.pending) >= 300)
        assert connection.unsent < 1_000_000
        told: list[tuple[str, int]] = []
        while len(told) < 300:
            data = (await wire.message())["data"]
            if data["deviceId"].startswith("d"):
                told.append((data["deviceId"], data["seq"]))
        assert sorted(told) == sorted((f"d{number}", 1_000_004) for number in range(300))
        await until(lambda: not watch.due and not watch.pending)

    async def test_pages_wait_for_a_reader(self, stack: AsyncExitStack, redis_url: str, client: Any) -> None:
        worker = await node(stack, redis_url, limits={"unsent_seconds": 300.0, "unsent_bytes": 100_000_000})
        TestSnapshot().seed(client, 20_000)
        wire = await Wire.open(worker.port, receive_buffer=4096)
        stack.push_async_callback(wire.close)
        await wire.send(upgrade(user_token()))
        await wire.response()
        connection = only(worker)
        worker.gateway._dashboards._join(cast("Any", connection.watch))
        await until(lambda: connection.stalled)
        await next_round(worker)
        assert connection.unsent < 200_000
        devices: set[str] = set()
        page = {"page": 0, "pages": 1}
        while page["page"] < page["pages"]:
            page = (await wire.message())["data"]
            devices |= {each["deviceId"] for each in cast("Any", page)["devices"]}
        assert len(devices) == 20_000


class TestBadInput:
    @pytest.mark.parametrize(
        ("event", "data", "code", "details"),
        [
            ("join:organization", {"organizationId": "globex"}, "FORBIDDEN", {"organizationId": "not yours"}),
            ("join:organization", {}, "INVALID_PAYLOAD", {"organizationId": "required"}),
            (
                "join:organization",
                {"organizationId": 5},
                "INVALID_PAYLOAD",
                {"organizationId": "expected str, got int"},
            ),
            ("join:organization", "acme", "INVALID_PAYLOAD", None),
            ("join:room", {"room": "org:globex"}, "FORBIDDEN", {"room": "not yours"}),
            ("join:room", {"room": "device:abroad"}, "FORBIDDEN", {"room": "not yours"}),
            ("join:room", {"room": "device:unheard-of"}, "FORBIDDEN", {"room": "not yours"}),
            ("join:room", {"room": "lobby-1"}, "FORBIDDEN", {"room": "not yours"}),
            ("join:room", {}, "INVALID_PAYLOAD", {"room": "required"}),
            ("join:room", {"room": ""}, "INVALID_PAYLOAD", None),
            ("join:room", {"room": "device:" + "x" * 129}, "INVALID_PAYLOAD", None),
            ("join:room", {"room": {"a": [[]]}}, "INVALID_PAYLOAD", None),
            ("leave:room", {"room": "org:globex"}, "FORBIDDEN", {"room": "not yours"}),
            ("leave:room", {"room": None}, "INVALID_PAYLOAD", {"room": "required"}),
            ("heartbeat", {}, "NOT_ALLOWED", None),
            ("content:impression", {"contentId": "c1"}, "NOT_ALLOWED", None),
        ],
    )
    async def test_of_a_dashboard(
        self, stack: AsyncExitStack, redis_url: str, event: str, data: Any, code: str, details: Any
    ) -> None:
        worker = await node(stack, redis_url)
        await dial_device(worker.port, "abroad", organization="globex")
        ann = await dashboard(worker)
        ack = await ann.ask(event, data)
        assert (ack["success"], ack["code"], ack["retryable"]) == (False, code, False)
        assert details is None or ack["details"] == details
        await ann.send(event, data)
        error = await ann.next("error")
        assert (error["code"], error["event"]) == (code, event)

    @pytest.mark.parametrize(
        ("event", "data"),
        [
            ("join:organization", {"organizationId": "acme"}),
            ("join:room", {"room": "org:acme"}),
            ("join:room", {"room": "device:lobby-2"}),
            ("leave:room", {"room": "device:lobby-2"}),
        ],
    )
    async def test_of_a_device(self, stack: AsyncExitStack, redis_url: str, event: str, data: Json) -> None:
        worker = await node(stack, redis_url)
        screen = await dial_device(worker.port, "lobby-1")
        ack = await screen.ask(event, data)
        assert (ack["success"], ack["code"]) == (False, "NOT_ALLOWED")

    async def test_a_device_may_name_its_own_room(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url)
        screen = await dial_device(worker.port, "lobby-1")
        ack = await screen.ask("join:room", {"room": "device:lobby-1"})
        assert ack["success"] is True
        assert not worker.gateway._dashboards._rooms.rooms

    async def test_unknown_fields_are_ignored_and_counted(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        ack = await ann.ask("join:room", {"room": "org:acme", "since": 5})
        assert ack["success"] is True
        assert worker.counter("ws_fields_ignored_total", "join:room", "unknown") == 1

    async def test_redis_away(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        worker.store.reconnect("for the test")
        await until(lambda: not worker.store.up)
        ack = await ann.ask("join:room", {"room": "device:lobby-1"})
        assert (ack["code"], ack["retryable"]) == ("STORE_UNAVAILABLE", True)

    async def test_a_fault_of_ours(
        self, stack: AsyncExitStack, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        monkeypatch.setattr(worker.gateway._dashboards._rooms, "on_join", None)
        await ann.send("join:room", {"room": "org:acme"}, 1)
        assert await ann.ended() == 1011


class TestCounts:
    async def test_devices_online(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url)
        await dashboard(worker)
        screens = [await dial_device(worker.port, f"lobby-{number}") for number in range(3)]
        assert worker.gauge("devices_online", "acme") == 3
        await dial_device(worker.port, "lobby-0")
        assert worker.gauge("devices_online", "acme") == 3
        await screens[2].leave()
        await until(lambda: worker.gauge("devices_online", "acme") == 2)
