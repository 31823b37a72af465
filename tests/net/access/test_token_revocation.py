"""Tokens of connected devices that other services revoke by writing a key: seen without a doorbell, and cheaply."""

import time
from typing import Any

import pytest

from tests.net.backend import Screen, fleet
from tests.net.peers import until
from tests.net.watching import dashboard, status
from vizora_rt.net.access import token_revocation
from vizora_rt.net.redis.client import RedisClient


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_revocation, "EVERY", 0.05)
    monkeypatch.setattr(token_revocation, "PAUSE", 0.0)


QUICK: Any = {"presence": {"offline_after_seconds": 0.1}}


@pytest.mark.parametrize("kind", ["string", "hash"])
async def test_a_token_that_is_revoked_by_its_key_alone(redis_url: str, client: Any, quick: None, kind: str) -> None:
    async with fleet(redis_url, 1, **QUICK) as (node,):
        ann = await dashboard(node)
        screen = await Screen.dial(node, "lobby", jti="t1")
        assert await status(ann) == ("lobby", "online", "connected")
        if kind == "string":
            client.set("revoked_token:t1", "1")
        else:
            client.hset("revoked_token:t1", "by", "somebody")
        assert await screen.event("device:revoked") == {"reason": "revoked"}
        assert await screen.ended() == 4501
        assert await status(ann) == ("lobby", "offline", "revoked")


@pytest.mark.parametrize("one_slot", [False, True])
async def test_nobody_else_goes(redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch, one_slot: bool) -> None:
    """Of several that are asked for together, or one by one as in a cluster."""
    monkeypatch.setattr(token_revocation, "SLICE", 3)
    monkeypatch.setattr(RedisClient, "one_slot", one_slot)
    async with fleet(redis_url, 1) as (node,):
        screens = [await Screen.dial(node, f"s{number}", jti=f"t{number}") for number in range(8)]
        plain = await Screen.dial(node, "plain")
        client.set("revoked_token:t4", "1")
        client.set("revoked_token:", "1")
        assert await screens[4].ended() == 4501
        before = node.counter("redis_operations_total", "exists", "ok")
        await until(lambda: node.counter("redis_operations_total", "exists", "ok") >= before + 9)
        stay = [*screens[:4], *screens[5:], plain]
        assert [(await screen.answer("heartbeat", {}, 1))["success"] for screen in stay] == [True] * 8


async def test_one_command_for_many(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        for number in range(50):
            await Screen.dial(node, f"s{number}", jti=f"t{number}")
        before = node.counter("redis_operations_total", "exists", "ok")
        await until(lambda: node.counter("redis_operations_total", "exists", "ok") >= before + 2)
        assert node.counter("redis_operations_total", "exists", "ok") < before + 50


async def test_redis_away(redis_url: str, client: Any) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby", jti="t1")
        node.store.up = False
        client.set("revoked_token:t1", "1")
        assert (await screen.answer("heartbeat", {}, 1))["success"] is True
        node.store.up = True
        assert await screen.ended() == 4501


async def test_a_token_whose_time_is_over_ends_no_connection(redis_url: str) -> None:
    """A screen has no other way to a new token than this connection."""
    async with fleet(redis_url, 1) as (node,):
        soon = int(time.time()) + 1
        screen = await Screen.dial(node, "lobby", jti="t1", exp=soon)
        await until(lambda: time.time() > soon)
        before = node.counter("redis_operations_total", "exists", "ok")
        await until(lambda: node.counter("redis_operations_total", "exists", "ok") >= before + 2)
        assert (await screen.answer("heartbeat", {}, 1))["success"] is True
