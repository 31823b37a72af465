"""Commands that end while nobody looks: taken off, counted and told once each, whoever it is that finds them."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.net.backend import Screen, books, call, command, entries, fleet
from tests.net.peers import Json, until
from vizora_rt import config
from vizora_rt.app.commands import QueuedCommand, key
from vizora_rt.net.commands import expiry
from vizora_rt.net.commands.expiry import Expiry
from vizora_rt.net.commands.queue import CommandQueue
from vizora_rt.net.redis.client import PING, RedisClient
from vizora_rt.telemetry.metrics import Metrics

PROMPT: Json = {"presence": {"worker_lost_after_seconds": 0.2, "offline_after_seconds": 0.1}}
"""The lease is renewed four times in that, and who leaves is offline soon."""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "LATE_MS", 0)


class Office:
    """A ledger and who looks after its ends; what was told, in order."""

    def __init__(self, store: RedisClient, url: str) -> None:
        self.told: list[tuple[str, str, str]] = []
        self.store = store
        self.redis: Any = books(url)
        self.ledger = CommandQueue(store, 100)
        self.expiry = Expiry(
            store, lambda device, organization, entry: self.told.append((device, organization, entry.id))
        )
        self.now = time.time_ns() // 1_000_000

    async def put(self, name: str, *devices: str, ago: int = 60_000, kind: str = "reload") -> QueuedCommand:
        """A command that ended so many ms ago, or ends in as many."""
        entry = QueuedCommand(name, kind, self.now - ago, self.now - ago - 1000, "node 1", b"{}")
        if kind == "reload":
            states = [(f"d:{device}", "queued 1") for device in devices]
            self.ledger.states(name, states, entry.expires + 86_400_000)
        self.expiry.due(entry, devices)
        for device in devices:
            placed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            assert self.ledger.enqueue(device, entry, entry.line(), False, placed.set_result)
            assert (await placed).code == 1
        return entry

    def waiting(self, device: str) -> list[str]:
        return [line.partition(" ")[0] for line in self.redis.lrange(key(device, "ledger"), 0, -1)]

    def due(self) -> list[str]:
        found: list[str] = self.redis.zrange("vz:due", 0, -1)
        return found


@pytest.fixture
async def office(redis_url: str) -> AsyncIterator[Office]:
    store = RedisClient(config.RedisSettings(), redis_url, Metrics(config.MetricsSettings()), name="test")
    made = Office(store, redis_url)
    store.start()
    await until(lambda: store.up)
    yield made
    await store.close(1.0)
    made.redis.close()


class TestSweep:
    async def test_what_is_over_is_taken_off_and_told(self, office: Office) -> None:
        office.redis.set("vz:{d:lobby}:status", '{"status":"offline","organizationId":"acme"}')
        await office.put("c1", "lobby")
        await office.put("c2", "lobby", ago=-60_000)
        await office.put("c3", "hall")
        await office.expiry.sweep()
        assert sorted(office.told) == [("hall", "", "c3"), ("lobby", "acme", "c1")]
        assert (office.waiting("lobby"), office.waiting("hall")) == (["c2"], [])
        assert office.due() == ["c2 lobby"]
        await office.expiry.sweep()
        assert len(office.told) == 2

    async def test_clocks_differ(self, office: Office) -> None:
        await office.put("c1", "lobby", ago=expiry.LATE_MS - 2000)
        await office.expiry.sweep()
        assert (office.told, office.due()) == ([], ["c1 lobby"])

    async def test_also_behind_one_that_lives_longer(self, office: Office) -> None:
        await office.put("long", "lobby", ago=-60_000)
        for number in range(250):
            await office.put(f"c{number}", "lobby", ago=60_000 if number % 2 else -60_000)
        await office.expiry.sweep()
        assert sorted(name for _, _, name in office.told) == sorted(f"c{number}" for number in range(1, 250, 2))
        assert office.waiting("lobby") == ["long", *(f"c{number}" for number in range(0, 250, 2))]

    @pytest.mark.parametrize(("count", "page"), [(600, 10), pytest.param(10_000, expiry.PAGE, marks=pytest.mark.soak)])
    async def test_one_for_many(self, office: Office, monkeypatch: pytest.MonkeyPatch, count: int, page: int) -> None:
        monkeypatch.setattr(expiry, "PAGE", page)
        if count < 1000:
            monkeypatch.setattr(expiry, "PAUSE", 0.0)
        devices = [f"screen-{number}" for number in range(count)]
        await office.put("c1", *devices)
        office.ledger.states("c1", [("d:screen-7", "acked 1")])
        office.redis.delete("vz:{d:screen-7}:ledger")
        assert office.redis.zcard("vz:due") == 1
        await office.store.request("ping", PING)  # what was submitted is done
        began, before = time.perf_counter(), office.redis.info("commandstats")
        await office.expiry.sweep()
        took, after = time.perf_counter() - began, office.redis.info("commandstats")
        calls, usec = (after["cmdstat_evalsha"][each] - before["cmdstat_evalsha"][each] for each in ("calls", "usec"))
        print(f"{count} devices in {took:.2f} s, {calls} scripts, {usec / calls:.1f} us of Redis each")
        assert calls == count - 1  # none for what was acked
        assert sorted(office.told) == sorted((each, "", "c1") for each in devices if each != "screen-7")
        assert office.due() == []

    async def test_a_token(self, office: Office) -> None:
        """Which has no record."""
        await office.put("t1", "lobby", kind="token")
        await office.expiry.sweep()
        assert office.told == [("lobby", "", "t1")]

    async def test_a_record_that_is_gone(self, office: Office) -> None:
        office.redis.zadd("vz:due", {"forgotten": 1, "gone lobby": 1})
        await office.expiry.sweep()
        assert (office.told, office.due()) == ([], [])

    async def test_two_at_a_time(self, office: Office) -> None:
        """Whoever has lost the lease amid a sweep may still be at it."""
        for number in range(50):
            await office.put(f"c{number}", "lobby", "hall")
        await asyncio.gather(office.expiry.sweep(), office.expiry.sweep())
        assert sorted(office.told) == sorted((each, "", f"c{n}") for n in range(50) for each in ("lobby", "hall"))

    async def test_a_pass_has_an_end(self, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(expiry, "A_PASS", 3)
        for number in range(4):
            await office.put(f"c{number}", f"lobby-{number}", f"hall-{number}")
        await office.expiry.sweep()
        assert len(office.told) == 4
        await office.expiry.sweep()
        assert len(office.told) == 8

    async def test_who_does_not_answer_is_asked_later(self, office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
        evaluate: Callable[..., bool] = RedisClient.eval

        def away(self: RedisClient, name: str, keys: tuple[str, ...], *rest: Any) -> bool:
            return not (name == "expire" and "hall" in keys[0]) and evaluate(self, name, keys, *rest)

        await office.put("c1", "hall")
        await office.put("c2", "hall", "lobby")
        await office.put("c3", "lobby")
        monkeypatch.setattr(RedisClient, "eval", away)
        await office.expiry.sweep()
        assert sorted(office.told) == [("lobby", "", "c2"), ("lobby", "", "c3")]
        assert sorted(office.due()) == ["c1 hall", "c2"]
        later = office.redis.zscore("vz:due", "c1 hall")
        assert later >= office.now + expiry.AGAIN_MS
        monkeypatch.setattr(RedisClient, "eval", evaluate)
        office.redis.zadd("vz:due", {"c1 hall": 1, "c2": 1})
        await office.expiry.sweep()
        assert sorted(office.told)[:2] == [("hall", "", "c1"), ("hall", "", "c2")]
        assert office.due() == []

    async def test_redis_is_away(self, office: Office) -> None:
        await office.put("c1", "hall")
        office.store.up = False
        await office.expiry.sweep()
        office.store.up = True
        assert (office.told, office.due()) == ([], ["c1 hall"])


async def test_commands_for_screens_that_stay_dark_expire(redis_url: str, at_once: None) -> None:
    async with fleet(redis_url, 2, **PROMPT) as (one, other):
        client: Any = books(redis_url)
        await (await Screen.dial(one, "seen")).leave()
        await until(lambda: '"offline"' in client.get("vz:{d:seen}:status"))
        single = await command(one, "seen", "reload", ttl=1)
        body = {"deviceIds": ["seen", "never"], "command": {"type": "pause", "ttl": 1}}
        many = await call(other, "POST", "/commands/broadcast", body)
        assert [answer.status for answer in (single, many)] == [202, 202]

        def expired(kind: str) -> int:
            return sum(node.counter("commands_total", kind, "expired") for node in (one, other))

        await until(lambda: (expired("reload"), expired("pause")) == (1, 2))
        await until(lambda: len([each for each in entries(client) if each["type"] == "command"]) == 3)
        outcomes = {(each["deviceId"], each["organizationId"], each["json"]["state"]) for each in entries(client)[-3:]}
        assert outcomes == {("seen", "acme", "expired"), ("never", "", "expired")}
        found = await call(one, "GET", f"/commands/{many.body['commandIds'][0]}")
        assert {each["state"] for each in found.body["devices"].values()} == {"expired"}
        await until(lambda: not client.exists("vz:due", "vz:{d:seen}:ledger", "vz:{d:never}:ledger"))


async def test_what_its_screen_acked_is_not_told_again(redis_url: str, at_once: None) -> None:
    async with fleet(redis_url, 1, **PROMPT) as (node,):
        await Screen.dial(node, "lobby")
        assert (await command(node, "lobby", ttl=1)).status == 200
        client = books(redis_url)
        assert client.zcard("vz:due") == 1
        await until(lambda: not client.exists("vz:due"))
        assert node.counter("commands_total", "reload", "expired") == 0
