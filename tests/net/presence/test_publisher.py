"""What dashboards, backends and people are told of a screen, on whatever worker they are."""

import json
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from tests.net.peers import dial_device, until
from tests.net.watching import PATIENT, QUICK, dashboard, node, silent, status
from vizora_rt.net.presence import lifecycle

pytestmark = pytest.mark.usefixtures("quick")


class TestChanges:
    async def test_online_and_offline_with_reasons(self, stack: AsyncExitStack, redis_url: str) -> None:
        """From the connection on, on whatever worker: nobody has to join for changes."""
        one, two = await node(stack, redis_url), await node(stack, redis_url, 1)
        ann, bob = await dashboard(one), await dashboard(two, "bob")
        other = await dashboard(one, "eve", "globex")
        screen = await dial_device(one.port, "lobby-1")
        for client in (ann, bob):
            assert await status(client) == ("lobby-1", "online", "connected")
        await screen.leave()
        for client in (ann, bob):
            assert await status(client) == ("lobby-1", "offline", "client")
        await silent(other)

    async def test_a_reconnect_is_no_change(self, stack: AsyncExitStack, redis_url: str) -> None:
        one = await node(stack, redis_url, presence=PATIENT)
        two = await node(stack, redis_url, 1, presence=PATIENT)
        ann = await dashboard(one)
        screen = await dial_device(one.port, "lobby-1")
        assert await status(ann) == ("lobby-1", "online", "connected")
        for worker in (one, two, one):
            await screen.leave()
            screen = await dial_device(worker.port, "lobby-1")
        await dial_device(two.port, "lobby-2")
        assert await status(ann) == ("lobby-2", "online", "connected")
        await silent(ann)

    async def test_since_is_kept_over_a_reconnect(self, stack: AsyncExitStack, redis_url: str, client: Any) -> None:
        worker = await node(stack, redis_url, presence=PATIENT)
        screen = await dial_device(worker.port, "lobby-1")
        since = json.loads(client.get("vz:{d:lobby-1}:status"))["since"]
        await screen.leave()
        await dial_device(worker.port, "lobby-1")
        assert json.loads(client.get("vz:{d:lobby-1}:status"))["since"] == since

    async def test_stale_and_back(
        self, stack: AsyncExitStack, redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "STALE_INTERVALS", 0.2)
        worker = await node(stack, redis_url, player={"heartbeat_interval": 1000})
        ann = await dashboard(worker)
        screen = await dial_device(worker.port, "lobby-1")
        assert await status(ann) == ("lobby-1", "online", "connected")
        assert await status(ann) == ("lobby-1", "stale", "no_heartbeat")
        assert json.loads(client.get("vz:{d:lobby-1}:status"))["status"] == "stale"
        await screen.heartbeat()
        assert await status(ann) == ("lobby-1", "online", "heartbeat")

    async def test_the_keys_of_a_silent_device_do_not_end(
        self, stack: AsyncExitStack, redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "STALE_INTERVALS", 0.2)
        worker = await node(stack, redis_url, player={"heartbeat_interval": 1000})
        await dial_device(worker.port, "lobby-1")
        await until(lambda: "stale" in client.get("vz:{d:lobby-1}:status"))

        def longer(name: str) -> bool:
            return bool(client.ttl(f"vz:{{d:lobby-1}}:{name}") > 50)

        for name in ("status", "owner"):
            client.expire(f"vz:{{d:lobby-1}}:{name}", 20)
            await until(partial(longer, name))

    async def test_who_comes_back_stale_is_online(
        self, stack: AsyncExitStack, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "STALE_INTERVALS", 0.2)
        worker = await node(stack, redis_url, player={"heartbeat_interval": 1000}, presence=PATIENT)
        ann = await dashboard(worker)
        screen = await dial_device(worker.port, "lobby-1")
        assert await status(ann) == ("lobby-1", "online", "connected")
        assert await status(ann) == ("lobby-1", "stale", "no_heartbeat")
        await screen.leave()
        await dial_device(worker.port, "lobby-1")
        assert await status(ann) == ("lobby-1", "online", "connected")

    async def test_for_backends_too(self, stack: AsyncExitStack, redis_url: str, client: Any) -> None:
        worker = await node(stack, redis_url)
        screen = await dial_device(worker.port, "lobby-1")
        await screen.leave()
        await until(lambda: client.xlen("vz:events") == 2)
        entries = [entry for _, entry in client.xrange("vz:events")]
        assert [(entry["type"], entry["deviceId"], entry["organizationId"]) for entry in entries] == [
            ("device:status", "lobby-1", "acme")
        ] * 2
        details = [json.loads(entry["json"]) for entry in entries]
        assert [(each["status"], each["since"]) for each in details] == [
            ("online", int(entries[0]["at"])),
            ("offline", int(entries[1]["at"])),
        ]

    async def test_changes_of_an_outage_are_told_after_it(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        worker.store.reconnect("for the test")
        await until(lambda: not worker.store.up)
        await dial_device(worker.port, "lobby-1")
        assert await status(ann) == ("lobby-1", "online", "connected")

    async def test_who_was_let_in_unchecked_is_no_change(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url, presence=PATIENT)
        ann = await dashboard(worker)
        screen = await dial_device(worker.port, "lobby-1")
        assert await status(ann) == ("lobby-1", "online", "connected")
        await screen.leave()
        worker.store.reconnect("for the test")
        await until(lambda: not worker.store.up)
        await dial_device(worker.port, "lobby-1")
        await until(lambda: worker.gateway.state.devices["lobby-1"].owned)
        await dial_device(worker.port, "lobby-2")
        assert await status(ann) == ("lobby-2", "online", "connected")

    async def test_devices_never_get_what_dashboards_get(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        watching = await dial_device(worker.port, "lobby-1")
        for data in ({"room": "device:lobby-1"}, {"room": "org:acme"}):
            await watching.ask("join:room", data)
        await watching.ask("join:organization", {"organizationId": "acme"})
        screen = await dial_device(worker.port, "lobby-2")
        await screen.leave()
        seen = [await status(ann) for _ in range(3)]
        assert seen[-1] == ("lobby-2", "offline", "client")
        await silent(watching)

    @pytest.mark.parametrize("bell", ['{"status":', '{"status":{}}', '{"status":[]}', '{"status":{"deviceId":[]}}'])
    async def test_a_bell_that_is_none(self, stack: AsyncExitStack, redis_url: str, client: Any, bell: str) -> None:
        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        client.publish("vz:org:acme", bell)
        await dial_device(worker.port, "lobby-1")
        assert await status(ann) == ("lobby-1", "online", "connected")


class TestNotifications:
    async def test_offline_for_long_and_back(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url, presence={**QUICK, "notify_after_seconds": 0.3})
        ann = await dashboard(worker)
        screen = await dial_device(worker.port, "lobby-1")
        assert (await status(ann))[1] == "online"
        await screen.leave()
        offline = await ann.next("device:status")
        told = (await ann.next("notification:new"))["notification"]
        assert (told["type"], told["deviceId"], told["since"]) == ("device_offline", "lobby-1", offline["since"])
        await dial_device(worker.port, "lobby-1")
        events = {(message := await ann.receive())["event"]: message["data"] for _ in range(2)}
        back = events["notification:new"]["notification"]
        assert (back["type"], back["deviceId"]) == ("device_online", "lobby-1")
        assert (back["offlineSince"], back["since"]) == (offline["since"], events["device:status"]["since"])

    async def test_a_reboot_is_none(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url, presence={**QUICK, "notify_after_seconds": 1.0})
        ann = await dashboard(worker)
        screen = await dial_device(worker.port, "lobby-1")
        await screen.leave()
        seen = [(await status(ann))[1] for _ in range(2)]
        await dial_device(worker.port, "lobby-1")
        seen.append((await status(ann))[1])
        assert seen == ["online", "offline", "online"]
        # The reminder has come and gone.
        await until(lambda: worker.counter("redis_operations_total", "get", "ok") >= 4)
        await silent(ann)
