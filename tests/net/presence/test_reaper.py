"""Workers that die, are cut off for a while, stand still or are replaced: two of them on one loop."""

import asyncio
import json
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from tests.net.peers import Client, Json, Node, dial_device, until
from tests.net.watching import dashboard, silent, status
from tests.net.workers import Gate
from vizora_rt.net.presence import reaper
from vizora_rt.net.redis.address import Address
from vizora_rt.net.valkey.server import EmbeddedServer

pytestmark = pytest.mark.usefixtures("quick")

DEAD: Json = {"worker_lost_after_seconds": 0.4, "offline_after_seconds": 60.0}
LATER: Json = {"server": {"drain_seconds": 3600}}
"""An heir inherits only after a drain: here none does."""


class Pair:
    """One worker that lives and is watched, and one behind a gate."""

    def __init__(self, stack: AsyncExitStack, url: str) -> None:
        self._stack = stack
        self._url = url

    async def start(self, **sections: Json) -> "Pair":
        self.gate = Gate(Address.parse(self._url).path)
        self._stack.push_async_callback(self.gate.close)
        self.alive = await self.worker(self._url, 0, **sections)
        self.other = await self.worker(await self.gate.open(), 1, **sections)
        self.ann = await dashboard(self.alive)
        return self

    async def worker(self, url: str, index: int, **sections: Json) -> Node:
        worker = await Node(url, index, **{"presence": DEAD, **LATER, **sections}).start()
        self._stack.push_async_callback(worker.stop)
        return worker

    async def tried(self) -> None:
        """Both have tried for the lease some more times."""
        workers = (self.alive, self.other)
        tries = [partial(worker.counter, "redis_operations_total", "eval_lease", "ok") for worker in workers]
        before = [count() for count in tries]
        await until(lambda: all(count() > start + 3 for count, start in zip(tries, before, strict=True)))

    def kill(self) -> None:
        """What a SIGKILL leaves: connections end, and nothing more is written."""
        self.gate.away()
        self.other.wheel.stop()
        for connection in list(self.other.gateway._connections):
            connection.abort()


@pytest.fixture
def pair(stack: AsyncExitStack, redis_url: str) -> Pair:
    return Pair(stack, redis_url)


def read(client: Any, device: str) -> Json:
    found: Json = json.loads(client.get(f"vz:{{d:{device}}}:status"))
    return found


async def test_workers_are_on_record(pair: Pair, client: Any) -> None:
    await pair.start()
    await until(lambda: client.zcard("vz:nodes") == 2)
    assert set(client.zrange("vz:nodes", 0, -1)) == {"node 0", "node 1"}
    first = client.zscore("vz:nodes", "node 1")
    await until(lambda: client.zscore("vz:nodes", "node 1") > first)
    now, micros = client.time()
    assert 0 <= now * 1000 + micros // 1000 - client.zscore("vz:nodes", "node 1") < 15_000


async def test_one_at_a_time_sweeps(pair: Pair, client: Any) -> None:
    await pair.start()
    await until(lambda: client.get("vz:lease:sweeper"))
    holder = client.get("vz:lease:sweeper")
    await pair.tried()
    assert client.get("vz:lease:sweeper") == holder
    assert 0 < client.pttl("vz:lease:sweeper") <= 300


async def test_without_the_lease_nobody_sweeps(pair: Pair, client: Any) -> None:
    await pair.start()
    await until(lambda: client.get("vz:lease:sweeper"))
    client.set("vz:lease:sweeper", "elsewhere 0", px=60_000)
    await pair.tried()  # who had it may be amid a sweep
    client.zadd("vz:nodes", {"dead 0": 1})
    await pair.tried()
    assert client.get("vz:lease:sweeper") == "elsewhere 0"
    assert client.zscore("vz:nodes", "dead 0") == 1
    client.delete("vz:lease:sweeper")
    await until(lambda: client.zscore("vz:nodes", "dead 0") is None)


async def test_who_comes_back_while_it_is_swept_stays_online(
    pair: Pair, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the owner and the script that marks."""
    await pair.start()
    await dial_device(pair.other.port, "lobby-1")
    assert await status(pair.ann) == ("lobby-1", "online", "connected")
    mark = reaper.Reaper._mark
    marked: list[bool] = []
    back: list[Client] = []

    async def late(self: reaper.Reaper, organization: str, device: str, owner: bytes, why: str, seen: int) -> bool:
        back.append(await dial_device(pair.alive.port, device))
        marked.append(await mark(self, organization, device, owner, why, seen))
        return marked[-1]

    monkeypatch.setattr(reaper.Reaper, "_mark", late)
    pair.kill()
    await until(lambda: client.zcard("vz:nodes") == 1)
    assert marked == [False]
    assert read(client, "lobby-1")["status"] == "online"
    assert client.get("vz:{d:lobby-1}:owner") is not None
    await silent(pair.ann, *back)


async def test_devices_of_a_dead_worker_go_offline_once(pair: Pair, client: Any) -> None:
    await pair.start()
    for number in range(3):
        screen = await dial_device(pair.other.port, f"lobby-{number}")
        await screen.heartbeat(appVersion="7")
        assert await status(pair.ann) == (f"lobby-{number}", "online", "connected")
    stays = await dial_device(pair.alive.port, "stays")
    assert await status(pair.ann) == ("stays", "online", "connected")
    await until(lambda: "appVersion" in read(client, "lobby-2"))
    before = read(client, "lobby-2")
    pair.kill()
    told = {await status(pair.ann) for _ in range(3)}
    assert told == {(f"lobby-{number}", "offline", "worker_lost") for number in range(3)}
    after = read(client, "lobby-2")
    assert after["since"] > before["since"]
    assert {**after, "status": "online", "reason": before["reason"], "since": 0, "epoch": 0} == {
        **before,
        "since": 0,
        "epoch": 0,
    }
    assert client.ttl("vz:{d:lobby-2}:status") > 80_000
    assert client.get("vz:{d:lobby-2}:owner") is None
    await until(lambda: client.zrange("vz:nodes", 0, -1) == ["node 0"])
    await stays.heartbeat()
    await silent(pair.ann)


async def test_who_comes_back_in_time_is_no_change(pair: Pair) -> None:
    await pair.start()
    await dial_device(pair.other.port, "lobby-1")
    await dial_device(pair.other.port, "lobby-2")
    assert [(await status(pair.ann))[1] for _ in range(2)] == ["online", "online"]
    pair.kill()
    await dial_device(pair.alive.port, "lobby-1")
    assert await status(pair.ann) == ("lobby-2", "offline", "worker_lost")
    await dial_device(pair.alive.port, "lobby-2")
    assert await status(pair.ann) == ("lobby-2", "online", "connected")
    await silent(pair.ann)


async def test_keys_that_have_ended_are_no_mystery(pair: Pair, client: Any) -> None:
    """All were dead for longer than a status lives: what was listed until then was with the dead."""
    await pair.start()
    await dial_device(pair.other.port, "lobby-1")
    assert await status(pair.ann) == ("lobby-1", "online", "connected")
    client.zadd("vz:{o:acme}:devices", {"long-gone": 5})
    pair.kill()
    client.delete("vz:{d:lobby-1}:status", "vz:{d:lobby-1}:owner")
    assert await status(pair.ann) == ("lobby-1", "offline", "worker_lost")
    assert read(client, "lobby-1")["organizationId"] == "acme"
    await until(lambda: client.zcard("vz:nodes") == 1)
    await silent(pair.ann)


async def test_a_worker_that_was_cut_off_says_so_when_it_is_back(pair: Pair, client: Any) -> None:
    """Its devices were said to be offline, which nobody could know better; then they are online again."""
    await pair.start()
    screen = await dial_device(pair.other.port, "lobby-1")
    assert await status(pair.ann) == ("lobby-1", "online", "connected")
    pair.gate.away()
    assert await status(pair.ann) == ("lobby-1", "offline", "worker_lost")
    swept = read(client, "lobby-1")["since"]
    pair.gate.shut = False
    device, now, _ = await status(pair.ann)
    assert (device, now) == ("lobby-1", "online")
    assert read(client, "lobby-1")["since"] > swept
    await screen.heartbeat()
    await silent(pair.ann)


async def test_a_worker_that_stood_still_confirms_before_it_writes(pair: Pair, client: Any) -> None:
    """A process that is stopped keeps its connections, and knows nothing of it when it goes on."""
    await pair.start()
    screen = await dial_device(pair.other.port, "lobby-1")
    assert await status(pair.ann) == ("lobby-1", "online", "connected")
    pair.other.wheel.stop()
    assert await status(pair.ann) == ("lobby-1", "offline", "worker_lost")
    await screen.heartbeat()
    assert (await status(pair.ann))[:2] == ("lobby-1", "online")
    await until(lambda: read(client, "lobby-1")["status"] == "online")


async def test_the_clock_of_redis_may_be_set(pair: Pair, client: Any) -> None:
    """Whose renewal is an hour old by it, or an hour ahead, lives all the same; who does not renew is dead."""
    await pair.start()
    screen = await dial_device(pair.other.port, "lobby-1")
    assert await status(pair.ann) == ("lobby-1", "online", "connected")
    for hours in (-1, 1, -1, 1):
        for member in ("node 0", "node 1"):
            client.zadd("vz:nodes", {member: client.zscore("vz:nodes", member) + hours * 3_600_000})
        await pair.tried()
    await silent(pair.ann)
    await screen.heartbeat()
    client.zadd("vz:nodes", {"elsewhere 0": client.zscore("vz:nodes", "node 0") + 3_600_000})
    await until(lambda: client.zscore("vz:nodes", "elsewhere 0") is None)
    await silent(pair.ann)


async def test_who_slept_does_not_judge(pair: Pair, client: Any) -> None:
    """A machine that was suspended wakes up with all its workers; none takes the others for dead."""
    await pair.start()
    mine = pair.alive.gateway._reaper
    await until(lambda: len(mine._seen) == 2)
    members = {member: renewed for member, (renewed, _, _) in mine._seen.items()}
    mine._seen = {member: (renewed, since - 100, 0) for member, (renewed, since, _) in mine._seen.items()}
    for _ in range(reaper.LOOKS):
        assert mine._dead() == {}
        mine._look(members)
    assert set(mine._dead()) == {b"node 1"}
    await pair.tried()
    assert mine._dead() == {}


async def test_nobody_is_declared_dead_just_after_an_outage(pair: Pair, client: Any) -> None:
    await pair.start()
    client.zadd("vz:nodes", {"elsewhere 0": 1})
    await until(lambda: client.zscore("vz:nodes", "elsewhere 0") is None)
    since = pair.alive.gateway._reaper._up_since
    pair.alive.store.reconnect("for the test")
    await until(lambda: pair.alive.store.up and pair.alive.gateway._reaper._up_since > since)
    before = pair.alive.counter("redis_operations_total", "eval_lease", "ok")
    lives = pair.alive.counter("redis_operations_total", "eval_live", "ok")
    await until(lambda: pair.alive.counter("redis_operations_total", "eval_live", "ok") >= lives + 2)
    assert pair.alive.counter("redis_operations_total", "eval_lease", "ok") <= before + 1


async def test_a_sweep_that_loses_redis_begins_anew(pair: Pair, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await pair.start()
    await dial_device(pair.other.port, "lobby-1")
    assert await status(pair.ann) == ("lobby-1", "online", "connected")
    ask = reaper.Reaper._ask
    failures = 0

    async def fail_once(self: reaper.Reaper, operation: str, *command: bytes | str | int) -> Any:
        nonlocal failures
        if operation == "zscan" and not failures:
            failures += 1
            raise reaper.LostError
        return await ask(self, operation, *command)

    monkeypatch.setattr(reaper.Reaper, "_ask", fail_once)
    pair.kill()
    assert await status(pair.ann) == ("lobby-1", "offline", "worker_lost")
    assert failures == 1


async def sweeps(capfd: pytest.CaptureFixture[str]) -> list[Json]:
    """What the sweeper has written to the log, as soon as there is something: it does so last."""
    found: list[Json] = []

    def told() -> bool:
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        found.extend(line for line in lines if line["logger"] == "sweeper")
        return bool(found)

    await until(told)
    return found


class TestLeaving:
    async def test_a_worker_that_stops_is_not_lost(
        self, pair: Pair, client: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Its member is out at once. Of its devices one comes back in time, the other is offline as after a restart."""
        await pair.start()
        for name in ("lobby-1", "lobby-2"):
            await dial_device(pair.other.port, name)
            assert await status(pair.ann) == (name, "online", "connected")
        pair.other.gateway.leave()
        await until(lambda: set(client.zrange("vz:nodes", 0, -1)) == {"node 0", "left node 1"})
        score = client.zscore("vz:nodes", "left node 1")
        await until(lambda: client.zscore("vz:nodes", "left node 1") > score)  # renewed until the end
        assert set(client.zrange("vz:nodes", 0, -1)) == {"node 0", "left node 1"}
        pair.kill()
        back = await dial_device(pair.alive.port, "lobby-1")
        assert await status(pair.ann) == ("lobby-2", "offline", "restarting")
        await until(lambda: client.zrange("vz:nodes", 0, -1) == ["node 0"])
        await silent(pair.ann, back)
        told = await sweeps(capfd)
        assert [(line["level"], line["event"]) for line in told] == [("info", "workers have left")]

    async def test_one_that_is_back_under_its_name_has_not_left(self, pair: Pair, client: Any) -> None:
        await pair.start()
        client.zadd("vz:nodes", {"left node 0": 1})
        await until(lambda: set(client.zrange("vz:nodes", 0, -1)) == {"node 0", "node 1"})

    async def test_one_that_leaves_while_another_dies(
        self, pair: Pair, client: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        await pair.start()
        client.zadd("vz:nodes", {"left elsewhere 0": 1, "elsewhere 1": 1, "left elsewhere 2": 1})
        await until(lambda: set(client.zrange("vz:nodes", 0, -1)) == {"node 0", "node 1"})
        told = await sweeps(capfd)
        assert [(line["event"], line["workers"]) for line in told] == [("workers lost", 1)]

    async def test_members_that_no_worker_wrote(
        self, pair: Pair, client: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Neither counted nor swept, and in nobody's way."""
        garbage = {
            b"\xff\xfe 0": 1,
            "": 1,
            "nobody": 1,
            "a b c": 1,
            "left ": 1,
            "x 0\n": 1,
            "far 0": float("inf"),
            "{": 1,
        }
        client.zadd("vz:nodes", garbage)
        await pair.start()
        await dial_device(pair.other.port, "lobby-1")
        assert await status(pair.ann) == ("lobby-1", "online", "connected")
        assert await pair.alive.gateway._reaper._others() == 0
        pair.kill()
        assert await status(pair.ann) == ("lobby-1", "offline", "worker_lost")
        await until(lambda: client.zcard("vz:nodes") == len(garbage) + 1)
        assert [(line["event"], line["workers"]) for line in await sweeps(capfd)] == [("workers lost", 1)]

    async def test_who_else_serves(self, pair: Pair, client: Any) -> None:
        """Workers of other nodes that renewed lately: none of this node, none that left, none that is silent."""
        await pair.start()
        mine = pair.alive.gateway._reaper
        await until(lambda: len(mine._seen) == 2)
        assert await mine._others() == 0
        for count in range(1, 4):
            client.zadd("vz:nodes", {f"elsewhere {worker}": count for worker in range(3)} | {"left gone 0": count})
            await until(lambda score=count: mine._seen.get(b"elsewhere 0", (b"",))[0] == b"%d" % score)  # type: ignore[misc]
            assert await mine._others() == 3
        async with asyncio.timeout(10):
            while await mine._others():
                await asyncio.sleep(0.05)

    async def test_nodes_that_stop_together_do_not_count_on_each_other(
        self, pair: Pair, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One that says it within the time does not count, nor one that said it before."""
        monkeypatch.setattr(reaper, "TOGETHER_SECONDS", 2.0)
        await pair.start(presence={**DEAD, "worker_lost_after_seconds": 60.0})
        here = pair.alive.gateway._reaper
        client.zadd("vz:nodes", {"elsewhere 0": 1, "faraway 0": 1})
        asking = asyncio.create_task(here.remaining(60))
        await until(lambda: client.zscore("vz:nodes", "left node 0"))
        assert not asking.done()
        client.zrem("vz:nodes", "elsewhere 0")
        client.zadd("vz:nodes", {"left elsewhere 0": 2})
        assert await asking == 1
        client.zrem("vz:nodes", "faraway 0")
        client.zadd("vz:nodes", {"left faraway 0": 2})
        assert await here.remaining(60) == 0  # with nobody there, none is waited for


SOON: Json = {"server": {"drain_seconds": 0.1}, "presence": {**DEAD, "offline_after_seconds": 0.5}}


class TestHeirs:
    async def test_what_the_one_before_left_behind(self, pair: Pair, client: Any) -> None:
        await pair.start()
        for name in ("lobby-1", "lobby-2", "lobby-3"):
            await dial_device(pair.other.port, name)
            assert await status(pair.ann) == (name, "online", "connected")
        pair.kill()
        heir = await pair.worker(pair._url, 1, **SOON)
        back: list[Client] = [await dial_device(heir.port, "lobby-1"), await dial_device(pair.alive.port, "lobby-2")]
        assert await status(pair.ann) == ("lobby-3", "offline", "worker_lost")
        assert client.zcard("vz:nodes") == 2
        await silent(pair.ann, *back)

    async def test_what_it_has_itself_is_not_touched(self, pair: Pair, client: Any) -> None:
        await pair.start()
        heir = await pair.worker(pair._url, 5, **SOON)
        screen = await dial_device(heir.port, "lobby-1")
        assert await status(pair.ann) == ("lobby-1", "online", "connected")
        await until(lambda: heir.gateway._reaper._inherits_at > 1e9 and heir.gateway._reaper._task is None)
        await silent(pair.ann, screen)
        assert read(client, "lobby-1")["status"] == "online"


@pytest.mark.parametrize("status", ["offline", "revoked"])
async def test_what_is_not_here_cannot_go(pair: Pair, client: Any, valkey: EmbeddedServer, status: str) -> None:
    await pair.start()
    value = f'{{"status":"{status}","reason":"by_hand","organizationId":"acme","since":5,"epoch":7}}'
    client.set("vz:{d:lobby-1}:status", value)
    client.set("vz:{d:lobby-1}:owner", "7 node 1 5")
    client.zadd("vz:{o:acme}:devices", {"lobby-1": 5})
    client.sadd("vz:orgs", "acme")
    pair.kill()
    await until(lambda: client.zcard("vz:nodes") == 1)
    assert client.get("vz:{d:lobby-1}:status") == value
