"""Deliveries to real connections: order, acks, redelivery, expiry, and what may be lost on the way."""

import asyncio
import base64
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.net.backend import Backed, Screen, books, call, command, entries, fleet
from tests.net.peers import Wire, device_token, dial_device, text, until, upgrade
from vizora_rt.app import commands
from vizora_rt.net.commands import delivery, requests
from vizora_rt.net.valkey import server as valkey_server

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200_000)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Acks are overdue soon, and no call waits for long."""
    monkeypatch.setattr(commands, "FIRST_ACK_TIMEOUT", 0.1)
    monkeypatch.setattr(requests, "ACK_SECONDS", 0.1)


async def put(node: Backed, device: str, *kinds: str) -> list[str]:
    """Commands for a device that is away; their ids."""
    answers = [await command(node, device, kind) for kind in kinds]
    assert [answer.status for answer in answers] == [202] * len(kinds)
    return [answer.body["commandId"] for answer in answers]


async def test_what_waits_comes_after_config_the_playlist_first_then_commands_in_order(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        ids = await put(node, "lobby", "reload", "pause", "resume")
        await call(node, "POST", "/push/playlist", {"deviceId": "lobby", "playlist": {"items": [1]}, "version": "v1"})
        screen = await Screen.dial(node, "lobby")
        await screen.message("command", 3)
        assert [message["event"] for message in screen.heard] == ["config", "playlist:update", *["command"] * 3]
        assert screen.commands() == ids
        assert screen.heard[1]["data"].keys() == {"playlist", "version", "source", "timestamp"}
        assert [message["data"]["type"] for message in screen.messages("command")] == ["reload", "pause", "resume"]
        await until(lambda: node.counter("commands_total", "resume", "acked"))
        client = books(redis_url)
        assert client.llen("vz:{d:lobby}:ledger") == 0
        assert client.hget("vz:{d:lobby}:playlist", "waiting") == "0"


async def test_one_at_a_time(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        ids = await put(node, "lobby", "reload", "pause")
        client = await dial_device(node.port, "lobby")
        first = await client.receive()
        assert first["data"]["commandId"] == ids[0]
        assert await client.heartbeat() is not None  # nothing else came before its ack
        await client.send("ack", {"ok": True}, first["id"])
        assert (await client.receive())["data"]["commandId"] == ids[1]


async def test_a_command_that_is_not_acked_comes_again_the_same(redis_url: str, impatient: None) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby", acks=False)
        answer = await command(node, "lobby")
        assert answer.status == 202
        first, second = await screen.message("command", 1), await screen.message("command", 2)
        assert first == second
        await screen.ack(second)
        await until(lambda: node.counter("commands_total", "reload", "acked"))
        assert node.counter("commands_total", "reload", "queued") == 1
        assert node.counter("commands_total", "reload", "sent") >= 2


async def test_and_after_a_reconnect_to_another_worker(redis_url: str) -> None:
    async with fleet(redis_url, 2) as (one, other):
        await put(one, "lobby", "reload")
        screen = await Screen.dial(one, "lobby", acks=False)
        first = await screen.event("command")
        await screen.leave()
        again = await Screen.dial(other, "lobby")
        assert await again.event("command") == first
        await until(lambda: other.counter("commands_total", "reload", "acked"))


async def test_and_after_redis_was_killed(tmp_path: Path) -> None:
    own = valkey_server.start(tmp_path)
    try:
        async with fleet(own.url, 1) as (node,):
            ids = await put(node, "lobby", "reload", "pause", "resume")
            await call(node, "POST", "/push/playlist", {"deviceId": "lobby", "playlist": {"a": 1}, "version": "v1"})
            screen = await Screen.dial(node, "lobby", acks=False)
            await screen.ack(await screen.message("playlist:update"))
            await screen.ack(await screen.message("command"))
            await screen.event("command", 2)
            os.kill(own.pid, signal.SIGKILL)
            await until(lambda: not node.store.up)
            assert (await command(node, "lobby")).status == 503
            await asyncio.to_thread(own.restart)
            await until(lambda: node.store.up)
            await screen.leave()
            again = await Screen.dial(node, "lobby")
            await again.event("command", 2)
            assert again.commands() == ids[1:]
            assert again.messages("playlist:update") == []
    finally:
        own.stop()


async def test_an_ack_while_redis_is_away_is_recorded_when_it_is_back(tmp_path: Path) -> None:
    own = valkey_server.start(tmp_path)
    try:
        async with fleet(own.url, 1, player={"heartbeat_interval": 1000}) as (node,):
            (command_id,) = await put(node, "lobby", "reboot")
            screen = await Screen.dial(node, "lobby", acks=False)
            message = await screen.message("command")
            os.kill(own.pid, signal.SIGKILL)
            await until(lambda: not node.store.up)
            await screen.ack(message)
            assert (await screen.answer("heartbeat", {}, 1))["data"]["degraded"] is True
            await asyncio.to_thread(own.restart)
            await until(lambda: node.store.up)
            beats = count(2)
            while not node.counter("commands_total", "reboot", "acked"):
                await screen.answer("heartbeat", {}, next(beats))
                await asyncio.sleep(0.1)
            assert screen.commands() == [command_id]  # nobody reboots twice
    finally:
        own.stop()


async def test_a_connection_that_is_superseded_gets_no_more(redis_url: str) -> None:
    async with fleet(redis_url, 2) as (one, other):
        old = await Screen.dial(one, "lobby", acks=False)
        new = await Screen.dial(other, "lobby")
        assert await old.ended() == 4500
        assert (await command(one, "lobby")).body["delivered"]
        assert len(new.commands()) == 1
        assert old.commands() == []


async def test_a_refusal_of_the_device_ends_the_command(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        screen.verdict = {"ok": False, "error": "no disk"}
        answer = await command(node, "lobby", "update")
        assert answer.status == 200
        assert (answer.body["success"], answer.body["delivered"]) == (False, True)
        assert answer.body["message"] == "the device could not: no disk"
        states = await call(node, "GET", f"/commands/{answer.body['commandId']}")
        assert states.body["devices"]["lobby"].items() >= {"state": "failed", "error": "no disk"}.items()
        assert node.counter("commands_total", "update", "failed") == 1
        assert books(redis_url).llen("vz:{d:lobby}:ledger") == 0


async def test_a_command_that_expires_is_not_delivered_and_the_next_one_is(redis_url: str, impatient: None) -> None:
    async with fleet(redis_url, 1) as (node,):
        answer = await command(node, "lobby", "reload", ttl=1)
        later = await command(node, "lobby", "pause")
        await asyncio.sleep(1.05)
        screen = await Screen.dial(node, "lobby")
        await screen.event("command")
        assert screen.commands() == [later.body["commandId"]]
        await until(lambda: node.counter("commands_total", "reload", "expired"))
        found = await call(node, "GET", f"/commands/{answer.body['commandId']}")
        assert found.body["devices"]["lobby"]["state"] == "expired"


async def test_a_command_that_expires_without_an_ack_does_not_hold_up_the_next_one(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its screen is there, and patience has ten seconds."""
    monkeypatch.setattr(requests, "ACK_SECONDS", 2.0)
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby", acks=False)
        asked = asyncio.get_running_loop().time()
        reload, pause = await asyncio.gather(command(node, "lobby", "reload", ttl=1), command(node, "lobby", "pause"))
        assert (reload.status, pause.status) == (200, 202)
        assert reload.body.items() >= {"success": False, "delivered": False, "queued": False}.items()
        assert reload.body["message"] == "expired before the device acked it"
        second = await screen.message("command", 2)
        assert asyncio.get_running_loop().time() - asked < commands.FIRST_ACK_TIMEOUT
        assert screen.commands() == [reload.body["commandId"], pause.body["commandId"]]
        await screen.ack(screen.messages("command")[0])  # too late
        await screen.ack(second)
        await until(lambda: node.counter("commands_total", "pause", "acked"))
        states = [node.counter("commands_total", "reload", state) for state in ("queued", "sent", "acked", "expired")]
        assert states == [1, 1, 0, 1]
        found = await call(node, "GET", f"/commands/{reload.body['commandId']}")
        assert found.body["devices"]["lobby"]["state"] == "expired"


async def test_after_long_patience_with_one_the_next_is_not_waited_for_as_long(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "FIRST_ACK_TIMEOUT", 600.0)
    monkeypatch.setattr(commands, "MAX_ACK_TIMEOUT", 600.0)
    monkeypatch.setattr(requests, "ACK_SECONDS", 0.1)
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby", acks=False)
        playlist = {"deviceId": "lobby", "playlist": {"a": 1}, "version": "v1"}
        await call(node, "POST", "/push/playlist", playlist)
        first = await screen.message("playlist:update")
        monkeypatch.setattr(commands, "MAX_ACK_TIMEOUT", 0.1)
        await command(node, "lobby", "pause")
        await screen.ack(first)
        assert await screen.message("command", 1) == await screen.message("command", 2)


async def test_backends_read_of_the_outcome(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        await Screen.dial(node, "lobby")
        answer = await command(node, "lobby", "pause")
        found = [each for each in entries(books(redis_url)) if each["type"] == "command"]
        assert [(each["deviceId"], each["organizationId"]) for each in found] == [("lobby", "acme")]
        assert found[0]["json"] == {"commandId": answer.body["commandId"], "command": "pause", "state": "acked"}


async def test_a_doorbell_that_was_lost_delays_until_the_next_heartbeat(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet(redis_url, 2, player={"heartbeat_interval": 1000}) as (one, other):
        screen = await Screen.dial(other, "lobby")
        monkeypatch.setattr(one.gateway.requests, "_send_to_worker", lambda *bell: None)
        monkeypatch.setattr(requests, "ACK_SECONDS", 0.05)
        assert (await command(one, "lobby")).status == 202
        assert screen.commands() == []
        await screen.client.send("heartbeat", {})
        await screen.event("command")


async def test_what_waits_comes_when_redis_is_back_without_a_word_of_the_device(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bells and looks may be lost with the connection; the next heartbeat is most of a minute away."""
    async with fleet(redis_url, 1, player={"heartbeat_interval": 60_000}) as (node,):
        screen = await Screen.dial(node, "lobby")
        assert (await screen.answer("heartbeat", {}, 1))["success"]
        await until(lambda: node.gateway.state.devices["lobby"].owner_checked)
        monkeypatch.setattr(node.gateway.requests, "_send_to_worker", lambda *bell: None)
        monkeypatch.setattr(requests, "ACK_SECONDS", 0.05)
        assert (await command(node, "lobby")).status == 202
        assert screen.commands() == []
        node.store.reconnect("test")
        await screen.event("command")


@contextmanager
def full(client: Any) -> Iterator[None]:
    """Redis takes nothing that needs memory; what is taken off, is."""
    client.config_set("maxmemory", "1")
    try:
        yield
    finally:
        client.config_set("maxmemory", "0")


async def state_of(node: Backed, command_id: str) -> str:
    found = await call(node, "GET", f"/commands/{command_id}")
    state: str = found.body["devices"]["lobby"]["state"]
    return state


async def test_a_state_that_redis_did_not_take_is_written_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "AGAIN_SECONDS", 0.05)
    client = books(redis_url)
    async with fleet(redis_url, 1) as (node,):
        (command_id,) = await put(node, "lobby", "reload")
        screen = await Screen.dial(node, "lobby", acks=False)
        message = await screen.message("command")
        assert await state_of(node, command_id) == "sent"
        with full(client):
            await screen.ack(message)
            await until(lambda: node.counter("commands_total", "reload", "acked"))
            assert client.llen("vz:{d:lobby}:ledger") == 0
            assert await state_of(node, command_id) == "sent"
        await until(lambda: str(client.hget(f"vz:{{c:{command_id}}}", "d:lobby")).startswith("acked"))
        assert await state_of(node, command_id) == "acked"


async def test_states_that_are_kept_are_bounded(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "AGAIN_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "MOST_UNWRITTEN", 2)
    client = books(redis_url)
    async with fleet(redis_url, 1) as (node,):
        screens = [await Screen.dial(node, f"hall-{number}", acks=False) for number in range(5)]
        body = {"organizationId": "acme", "command": {"type": "reload", "commandId": "c1"}}
        asking = asyncio.create_task(call(node, "POST", "/commands/broadcast", body))
        sent = [await screen.message("command") for screen in screens]
        await until(lambda: [value[:4] for value in client.hvals("vz:{c:c1}")].count("sent") == 5)
        with full(client):
            for screen, message in zip(screens, sent, strict=True):
                await screen.ack(message)
            assert (await asking).body["delivered"] == 5
            await until(lambda: node.counter("limits_exceeded_total", "command_states") == 3)
        await until(lambda: [value[:5] for value in client.hvals("vz:{c:c1}")].count("acked") == 2)


async def beat(wire: Wire) -> None:
    while True:
        await asyncio.sleep(0.1)
        wire.writer.write(text("heartbeat", {}, 2))


async def test_commands_wait_in_the_ledger_for_a_device_that_does_not_read(redis_url: str, impatient: None) -> None:
    """Also for one that acks nothing: what is written to it counts as delivered."""
    limits = {"messages_per_minute": 0}
    async with fleet(redis_url, 1, limits=limits, player={"heartbeat_interval": 1000}) as (node,):
        wire = await Wire.open(node.port, receive_buffer=4096)
        await wire.send(upgrade(device_token("lobby")))
        assert (await wire.response())[0] == 101
        (connection,) = node.gateway._connections
        connection.acks_deliveries = False
        heartbeats = b"".join(text("heartbeat", {}, 1) for _ in range(1000))
        while not connection.stalled:
            wire.writer.write(heartbeats)
            await asyncio.sleep(0)
        unsent = connection.unsent
        ids = await put(node, "lobby", *["reload"] * 5)
        assert books(redis_url).llen("vz:{d:lobby}:ledger") == 5
        assert (connection.unsent, node.counter("commands_total", "reload", "sent")) == (unsent, 0)
        beating = asyncio.create_task(beat(wire))
        came: list[str] = []
        while len(came) < 5:
            message = await wire.message()
            if message["event"] == "command":
                came.append(message["data"]["commandId"])
        assert came == ids
        beating.cancel()
        await wire.close()


async def test_a_new_playlist_takes_the_place_of_one_that_was_not_acked(redis_url: str, impatient: None) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby", acks=False)
        body = {"deviceId": "lobby", "playlist": {}}
        await call(node, "POST", "/push/playlist", {**body, "version": "v1"})
        await call(node, "POST", "/push/playlist", {**body, "version": "v2"})
        old = await screen.message("playlist:update")
        await until(lambda: screen.messages("playlist:update")[-1]["data"]["version"] == "v2")
        await screen.ack(old)  # too late, and of no meaning for v2
        await screen.ack(screen.messages("playlist:update")[-1])
        await until(lambda: node.counter("commands_total", "playlist", "acked"))
        client = books(redis_url)
        assert client.hget("vz:{d:lobby}:playlist", "version") == "v2"
        assert client.hget("vz:{d:lobby}:playlist", "waiting") == "0"


async def test_a_playlist_that_was_acked_does_not_come_again(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        body = {"deviceId": "lobby", "playlist": {"a": 1}, "version": "v1"}
        assert (await call(node, "POST", "/push/playlist", body)).status == 200
        await screen.leave()
        again = await Screen.dial(node, "lobby")
        beat = await again.answer("heartbeat", {"contentVersion": "v1"}, 1)
        assert beat["data"]["reconcileContent"] is False
        beat = await again.answer("heartbeat", {"contentVersion": "v0"}, 2)
        assert beat["data"]["reconcileContent"] is True
        beat = await again.answer("heartbeat", {"contentVersion": "v0"}, 3)
        assert beat["data"]["reconcileContent"] is False  # at most once a minute
        answer = await again.answer("playlist:request", {"lastKnownVersion": "v0"}, 4)
        assert answer["data"].items() >= {"playlist": {"a": 1}, "version": "v1", "source": "push"}.items()
        assert again.messages("playlist:update") == []


async def test_disable_disconnects(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        assert (await command(node, "lobby", "disable")).body["delivered"]
        assert await screen.ended() == 1000


async def test_disable_disconnects_also_who_does_not_ack(redis_url: str, impatient: None) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby", acks=False)
        assert (await command(node, "lobby", "disable")).status == 202
        assert await screen.ended() == 1000


async def test_a_screenshot_may_be_larger_than_other_messages(redis_url: str) -> None:
    async with fleet(redis_url, 2) as (one, other):
        screen = await Screen.dial(other, "lobby")
        asked = await command(one, "lobby", "screenshot", payload={"requestId": "r1"})
        assert asked.body["delivered"]
        assert (await screen.event("command"))["payload"] == {"requestId": "r1"}
        waiting = await call(one, "GET", "/screenshots/r1")
        assert (waiting.status, waiting.body["details"]) == (404, {"requestId": "not taken yet"})
        picture = {"imageData": base64.b64encode(PNG).decode(), "width": 1920, "height": 1080}
        refused = await screen.answer("screenshot:response", {**picture, "requestId": "r2"}, 1)
        assert refused["details"] == {"requestId": "this device was not asked for it"}
        saved = await screen.answer("screenshot:response", {**picture, "requestId": "r1"}, 2)
        assert saved["data"] == {"saved": True}
        found = await call(one, "GET", "/screenshots/r1")
        assert (found.status, found.headers["content-type"], found.body) == (200, "image/png", PNG)
        assert 590 < books(redis_url).ttl("vz:{s:r1}") <= 600


async def test_who_was_asked_for_none_may_not(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        await screen.client.send("screenshot:response", {"requestId": "r1", "imageData": "x" * 70_000})
        assert await screen.ended() == 1009


async def test_a_token_is_delivered_once_and_asks_for_no_ack(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        body = {"deviceId": "lobby", "token": "abc.def.ghi"}
        assert (await call(node, "POST", "/internal/token-refresh", body)).status == 202
        screen = await Screen.dial(node, "lobby", acks=False)
        assert await screen.message("token:refresh") == {"event": "token:refresh", "data": {"token": "abc.def.ghi"}}
        answer = await call(node, "POST", "/internal/token-refresh", {**body, "token": "new"})
        assert (answer.status, answer.body["delivered"]) == (200, True)
        assert await screen.event("token:refresh", 2) == {"token": "new"}
        assert books(redis_url).llen("vz:{d:lobby}:ledger") == 0
        assert [node.counter("commands_total", "token", state) for state in ("queued", "sent", "acked")] == [2, 2, 2]


async def test_acks_that_nobody_asked_for_are_read_past(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        client = await dial_device(node.port, "lobby")
        for ack in ({"id": 1}, {"id": 2**53}, {}, {"id": 3, "data": {"ok": False}}):
            await client.connection.send(json.dumps({"event": "ack", **ack}))
        assert (await client.heartbeat())["success"] is True


async def test_a_suspended_organisation_gets_nothing_until_it_is_resumed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "ACK_SECONDS", 0.1)
    async with fleet(redis_url, 2) as (one, other):
        screen = await Screen.dial(other, "lobby")
        entitlement = {"organizationId": "acme", "reason": "unpaid"}
        await call(one, "POST", "/internal/tenant-entitlement", {**entitlement, "state": "suspended"})
        assert await screen.event("tenant:suspended") == {"reason": "unpaid"}
        assert (await command(one, "lobby")).status == 202
        late = await Screen.dial(one, "hall")
        assert await late.event("tenant:suspended") == {"reason": "unpaid"}
        playlist = {"deviceId": "hall", "playlist": {"items": [1]}, "version": "v1"}
        assert (await call(other, "POST", "/push/playlist", playlist)).status == 202
        beat = await late.answer("heartbeat", {"contentVersion": "v0"}, 1)
        assert beat["data"]["reconcileContent"] is False
        asked = await late.answer("playlist:request", {"forceRefresh": True}, 2)
        assert asked["data"] == {"playlist": None, "version": None, "source": "suspended"}
        await call(one, "POST", "/internal/tenant-entitlement", {**entitlement, "state": "resumed"})
        await screen.event("tenant:resumed")
        await screen.event("command")
        assert (await late.event("playlist:update"))["version"] == "v1"
        asked = await late.answer("playlist:request", {"forceRefresh": True}, 3)
        assert asked["data"]["playlist"] == {"items": [1]}
        await late.event("tenant:resumed")
