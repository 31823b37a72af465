"""What Redis knows of devices, asked from a shell."""

import asyncio
import json
from pathlib import Path

import pytest

from tests.net.backend import Screen, books, fleet
from tests.net.peers import until
from vizora_rt.errors import UnavailableError
from vizora_rt.net.presence.admin import Shell


@pytest.fixture
def shell(redis_url: str) -> Shell:
    return Shell(redis_url)


async def test_list_and_show(redis_url: str, shell: Shell) -> None:
    async with fleet(redis_url, 1) as (node,):
        for number in range(3):
            await Screen.dial(node, f"s{number}")
        page = await asyncio.to_thread(shell.members, "acme", 0, 2)
        assert ([each["deviceId"] for each in page["devices"]], page["total"], page["next"]) == (["s2", "s1"], 3, 2)
        page = await asyncio.to_thread(shell.members, "acme", 2, 2)
        assert ([each["deviceId"] for each in page["devices"]], page["next"]) == (["s0"], None)
        found = await asyncio.to_thread(shell.show, "s1")
        assert found is not None
        assert (found["deviceId"], found["status"], found["organizationId"]) == ("s1", "online", "acme")


def test_nobody(shell: Shell) -> None:
    assert shell.members("acme", 0, 10) == {"devices": [], "total": 0, "next": None}
    assert shell.show("lobby") is None
    assert not shell.kick("lobby")
    assert not shell.restore("lobby")
    assert not shell.erase("lobby")


async def test_kick_revoke_and_let_in_again(redis_url: str, shell: Shell) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        await until(lambda: books(redis_url).pubsub_numsub("vz:node:node:0")[0][1])
        assert await asyncio.to_thread(shell.kick, "lobby")
        assert await screen.ended() == 1000
        screen = await Screen.dial(node, "lobby")
        assert await asyncio.to_thread(shell.revoke, "lobby", "stolen", 7)
        assert await screen.event("device:revoked") == {"reason": "stolen"}
        assert await screen.ended() == 4501
        found = await asyncio.to_thread(shell.show, "lobby")
        assert found is not None
        assert (found["status"], found["revoked"]) == ("revoked", {"reason": "stolen", "at": 7})
        assert await asyncio.to_thread(shell.restore, "lobby")
        await Screen.dial(node, "lobby")


async def test_one_token_of_a_device(redis_url: str, shell: Shell) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby", jti="t1")
        await until(lambda: books(redis_url).pubsub_numsub("vz:node:node:0")[0][1])
        assert await asyncio.to_thread(shell.revoke, "lobby", "lost", 7, "t2")
        assert (await screen.answer("heartbeat", {}, 1))["success"]
        assert await asyncio.to_thread(shell.revoke, "lobby", "lost", 7, "t1")
        assert await screen.ended() == 4501
        await Screen.dial(node, "lobby", jti="t3")
        assert not await asyncio.to_thread(shell.restore, "lobby")
        assert await asyncio.to_thread(shell.restore, "lobby", "t1")
        await Screen.dial(node, "lobby", jti="t1")


async def test_erase(redis_url: str, shell: Shell) -> None:
    async with fleet(redis_url, 1) as (node,):
        screen = await Screen.dial(node, "lobby")
        await until(lambda: node.gateway.plays.partitions)
        await until(lambda: books(redis_url).pubsub_numsub("vz:node:node:0")[0][1])
        play = {"contentId": "c", "play": {"boot": "b", "seq": 1}}
        assert (await screen.answer("content:impression", play, 1))["success"] is True
        assert books(redis_url).keys("vz:{p:*}:seen:lobby") != []
        assert await asyncio.to_thread(shell.erase, "lobby")
        assert await screen.ended() == 1000
        assert books(redis_url).keys("*lobby*") == []
        assert books(redis_url).zcard("vz:{o:acme}:devices") == 0


def test_what_others_wrote_is_no_fault(redis_url: str, shell: Shell) -> None:
    client = books(redis_url)
    client.set("vz:{d:lobby}:status", "nonsense")
    client.set("vz:{d:lobby}:revoked", "1")
    client.set("vz:{d:lobby}:owner", "nonsense")
    client.rpush("vz:{d:lobby}:errors", "[]", json.dumps({"a": 1}), "{")
    assert shell.show("lobby") == {
        "deviceId": "lobby",
        "status": "revoked",
        "revoked": {},
        "commandsWaiting": 0,
        "errors": [{"a": 1}],
    }
    assert not shell.kick("lobby")


def test_without_redis(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"cannot be asked: No such file"):
        Shell(f"unix://{tmp_path}/none.sock").show("lobby")


def test_a_redis_that_refuses(redis_url: str, shell: Shell) -> None:
    books(redis_url).rpush("vz:{d:lobby}:status", "a list")
    with pytest.raises(UnavailableError, match="cannot be used: WRONGTYPE"):
        shell.show("lobby")
