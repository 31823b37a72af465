"""Doorbells, rung as another worker would, through Redis."""

import json
from typing import Any

import pytest

from tests.net.backend import Backed, Screen, books, fleet
from tests.net.peers import until


async def ring(node: Backed, bell: Any, worker: int = 0) -> None:
    """Once the worker listens."""
    text = bell if isinstance(bell, str) else json.dumps(bell)
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
