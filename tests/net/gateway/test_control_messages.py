"""Doorbells, rung as another worker would, through Redis."""

import json
from typing import Any

import pytest
import redis

from tests.net.backend import Backed, Screen, books, call, command, fleet
from tests.net.peers import dial, until, user_token
from vizora_rt.app.limits import SlidingWindow
from vizora_rt.telemetry import logs


async def ring(node: Backed, message: Any, worker: int = 0) -> None:
    """Once the worker listens."""
    text = message if isinstance(message, str) else json.dumps(message)
    client = books(node.store.address.path and f"unix://{node.store.address.path}")
    await until(lambda: client.publish(f"vz:node:node:{worker}", text) == 1)
    client.close()


async def test_look(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        books(redis_url).rpush("vz:{d:lobby}:ledger", f'c1 {2**53} 1 node 9 reload {{"commandId":"c1"}}')
        await ring(node, {"look": ["unknown", "lobby"]})
        assert (await screen.event("command"))["commandId"] == "c1"


async def test_kick(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        await ring(node, {"kick": "lobby"})
        assert await screen.ended() == 1000


async def test_revoked(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby", jti="t1")
        await ring(node, {"revoked": "lobby", "jti": "t2"})
        await ring(node, {"revoked": "lobby", "jti": "t1", "reason": "stolen"})
        assert await screen.event("device:revoked") == {"reason": "stolen"}
        assert await screen.ended() == 4501


@pytest.mark.parametrize("name", ["look", "kick", "revoked", "erased"])
async def test_a_device_that_is_elsewhere(redis_url: str, name: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        await ring(node, {name: ["hall"] if name == "look" else "hall"})
        assert (await screen.answer("heartbeat", {}, 1))["success"] is True


@pytest.mark.parametrize(
    "bell", [{"look": 7}, {"done": "c1"}, {"notice": "x"}, {"tenant": "suspended"}, {"novelty": 1}]
)
async def test_what_cannot_be_acted_on_harms_nobody(redis_url: str, bell: dict[str, Any]) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        await ring(node, bell)
        await ring(node, {"kick": "lobby"})
        assert await screen.ended() == 1000


GARBAGE = (
    b"",
    b"null",
    b"[]",
    b"\xff\xfe",
    b"{" * 2000,
    *(b'{"%b":%b}' % (name, value) for name in (b"look", b"done", b"revoked", b"kick", b"erased", b"superseded")
      for value in (b"7", b"null", b"{}", b"[[1]]", b'"\\u0000"')),
    b'{"done":"c1","of":[["lobby"]]}',
    b'{"done":"c1","of":[[[],1,{}]]}',
    b'{"superseded":"lobby","epoch":1e300}',
    b'{"tenant":"suspended","organizationId":["acme"]}',
    b'{"tenant":"suspended","organizationId":{}}',
    b'{"tenant":"suspended","organizationId":"acme","reason":{"a":1}}',
    b'{"notice":7,"organizationId":"acme","data":{}}',
    b'{"notice":null,"organizationId":"acme","data":{}}',
    b'{"notice":"a b\\n","organizationId":"acme","data":{}}',
    b'{"notice":"notification:new","organizationId":["acme"],"data":{}}',
    b'{"notice":"notification:new","organizationId":"acme","data":%b%b}' % (b"[" * 600, b"]" * 600),
    b'{"status":',
    b'{"status":7}',
    b'{"status":{"deviceId":[],"seq":1}}',
    b'{"status":{"deviceId":"lobby","seq":9007199254740991}}',
    b'{"status":{"deviceId":"lobby","seq":1e300}}',
    b'{"status":{"deviceId":"lobby","seq":"z"}}',
    b'{"status":{"deviceId":"lobby","seq":1,"x":%b%b}}' % (b"[" * 600, b"]" * 600),
)  # fmt: skip


async def test_garbage_on_every_channel_harms_nobody(
    redis_url: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published by hand: nothing raises, nobody is told of it, and what comes behind it is heard."""
    monkeypatch.setattr(logs, "_room", SlidingWindow(logs.PER_MINUTE, 60, logs.MAX_KINDS))  # other tests wrote some too
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "hall")
        viewer = Screen(await dial(node.port, user_token()), acks=False)
        await viewer.client.send("join:organization", {"organizationId": "acme"}, 1)
        await viewer.message("device:status:batch")
        client = redis.Redis.from_url(redis_url)
        channels = [b"vz:node:node:0", b"vz:org:acme"]
        await until(lambda: all(count for _, count in client.pubsub_numsub(*channels)))
        for each in GARBAGE:
            for channel in channels:
                client.publish(channel, each)
        before = len(viewer.heard)
        body = {"organizationId": "acme", "notification": {"text": "after"}}
        assert (await call(node, "POST", "/notifications/broadcast", body)).body["delivered"]
        assert await viewer.event("notification:new") == {"text": "after"}
        assert (await command(node, "hall")).body["delivered"]
        late = await Screen.dial(node, "lobby")
        assert (await viewer.event("device:status"))["status"] == "online"
        assert {message["event"] for message in viewer.heard[before:]} == {"notification:new", "device:status"}
        assert screen.code is None
        client.close()
        for party in (screen, late, viewer):
            await party.leave()
    records = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [record for record in records if record["level"] in ("error", "critical")] == []
    said = [record for record in records if record["event"] == "doorbell not understood"]
    assert {record.get("name") for record in said} >= {None, "look", "notice", "status", "superseded", "tenant"}
    assert all("lobby" not in json.dumps(record) for record in said)
