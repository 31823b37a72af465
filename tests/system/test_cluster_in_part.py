"""A Redis Cluster of which one shard of three is away: what the others have is served, and the rest is named."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from tests.net.backend import Answer, Backed, Screen, call, command
from tests.net.peers import dial, until, user_token
from tests.net.valkeys import Cluster, Server, Valkeys
from tests.net.valkeys import until as soon
from vizora_rt.app import plays
from vizora_rt.errors import UnavailableError
from vizora_rt.net.presence.admin import Shell
from vizora_rt.wire.resp import slot

AWAY = 2
"""The shard that goes, of three. The first one tells where slots are. The first channel of worker 1 is on it."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters that serve what they have when one of them is away, and keep it when they end."""
    with Valkeys(tmp_path_factory.mktemp("cluster")) as valkeys:
        options = ("--cluster-require-full-coverage", "no", "--cluster-allow-pubsubshard-when-down", "yes")
        yield valkeys.cluster(3, 0, *options, "--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture(autouse=True)
def whole(servers: Cluster) -> Iterator[None]:
    """All shards are there afterwards, and empty."""
    yield
    for master in servers.masters:
        if not master._answers():
            master.start()
    soon(lambda: all(b"cluster_state:ok" in master.tell("CLUSTER", "INFO") for master in servers.masters))
    servers.settle()


def on(servers: Cluster, index: int, pattern: str, count: int = 1, prefix: str = "x") -> list[str]:
    """Names whose key is on a shard."""
    home: Server = servers.masters[index]
    names = (f"{prefix}{number}" for number in range(10_000))
    found = (name for name in names if servers.home(slot(pattern.format(name).encode())) is home)
    return [next(found) for _ in range(count)]


DEVICE, LIST, RECORD = "vz:{{d:{}}}:status", "vz:{{o:{}}}:devices", "vz:{{c:{}}}"


@asynccontextmanager
async def workers(url: str) -> AsyncIterator[Sequence[Backed]]:
    async with AsyncExitStack() as stack:
        nodes = []
        for index in range(2):
            node = Backed(url, index, redis={"reconnect_max_seconds": 0.2}, presence={"offline_after_seconds": 0.1})
            await node.start()
            stack.push_async_callback(node.stop)
            nodes.append(node)
        yield nodes


async def kill(servers: Cluster, nodes: Sequence[Backed], index: int = AWAY) -> None:
    servers.masters[index].kill()
    await until(lambda: not any(node.store.up for node in nodes))


async def back(servers: Cluster, nodes: Sequence[Backed], index: int = AWAY) -> None:
    await asyncio.to_thread(servers.masters[index].start)
    await until(lambda: all(node.store.up for node in nodes))


async def test_erase_can_be_repeated_until_it_is_done(servers: Cluster) -> None:
    """The list of the device's organisation is on the shard that is away."""
    (organization,), (device,) = on(servers, AWAY, LIST, prefix="o"), on(servers, 0, DEVICE)
    async with workers(servers.url) as nodes:
        screen = await Screen.dial(nodes[0], device, organization=organization)
        await until(lambda: servers.masters[AWAY].tell("ZCARD", f"vz:{{o:{organization}}}:devices"))
        await screen.leave()
        await until(lambda: b'"offline"' in servers.masters[0].tell("GET", f"vz:{{d:{device}}}:status"))
        await kill(servers, nodes)
        for _ in range(2):
            answer = await call(nodes[1], "DELETE", f"/devices/{device}")
            assert (answer.status, answer.body["code"]) == (503, "STORE_UNAVAILABLE")
        with pytest.raises(UnavailableError):
            await asyncio.to_thread(Shell(servers.url).erase, device)
        await back(servers, nodes)
        assert (await call(nodes[1], "GET", f"/organizations/{organization}/devices")).body["total"] == 1
        answer = await call(nodes[1], "DELETE", f"/devices/{device}")
        assert (answer.status, answer.body["message"]) == (200, "erased")
        assert (await call(nodes[1], "GET", f"/organizations/{organization}/devices")).status == 404
        assert (await call(nodes[1], "DELETE", f"/devices/{device}")).status == 404


async def test_plays_of_an_erased_device_are_on_a_shard_that_is_away(servers: Cluster) -> None:
    (organization,) = on(servers, 0, LIST, prefix="o")
    away = servers.masters[AWAY]
    names = on(servers, 0, DEVICE, 500)
    device = next(each for each in names if servers.home(slot(plays.seen_key(each.encode(), 16))) is away)
    async with workers(servers.url) as nodes:
        await until(lambda: nodes[0].gateway.plays.partitions == 16)
        screen = await Screen.dial(nodes[0], device, organization=organization)
        play = {"contentId": "c", "play": {"boot": "b", "seq": 1}}
        assert (await screen.answer("content:impression", play, 1))["success"]
        await screen.leave()
        await kill(servers, nodes)
        assert (await call(nodes[1], "DELETE", f"/devices/{device}")).status == 503
        await back(servers, nodes)
        assert (await call(nodes[1], "DELETE", f"/devices/{device}")).status == 200
        assert (await call(nodes[1], "GET", f"/devices/{device}/plays")).body["boots"] == []


async def test_a_device_without_a_record_is_taken_off_whatever_list_it_is_on(servers: Cluster) -> None:
    """It was away for a day. Its list may be on any shard."""
    async with workers(servers.url) as nodes:
        for index in range(3):
            (organization,) = on(servers, index, LIST, prefix="o")
            (device,) = on(servers, 0, DEVICE)
            screen = await Screen.dial(nodes[0], device, organization=organization)
            await screen.leave()
            status, owner = f"vz:{{d:{device}}}:status", f"vz:{{d:{device}}}:owner"
            await until(lambda key=status: b'"offline"' in servers.masters[0].tell("GET", key))  # type: ignore[misc]
            servers.masters[0].tell("DEL", status, owner)
            path = f"/organizations/{organization}/devices"
            assert (await call(nodes[1], "GET", path)).body["devices"][0]["status"] == "unknown"
            if index:
                assert (await call(nodes[1], "DELETE", f"/devices/{device}")).status == 200
            else:
                assert await asyncio.to_thread(Shell(servers.url).erase, device)
            assert (await call(nodes[1], "GET", path)).status == 404


async def test_a_broadcast_reaches_those_that_can_be_reached(servers: Cluster) -> None:
    (organization,) = on(servers, 0, LIST, prefix="o")
    here, there = on(servers, 0, DEVICE, 2), on(servers, AWAY, DEVICE, 2)
    async with workers(servers.url) as nodes:
        # One screen of each shard on each worker: messages between workers have to find another way.
        assert servers.home(slot(b"vz:node:node:1")) is servers.masters[AWAY]
        screens = {name: await Screen.dial(nodes[at % 2], name, organization=organization)
                   for at, name in enumerate((*here, *there))}  # fmt: skip
        await until(lambda: servers.masters[0].tell("ZCARD", f"vz:{{o:{organization}}}:devices") == 4)
        await kill(servers, nodes)
        body = {"organizationId": organization, "command": {"type": "reload"}}
        for count in range(6):
            answer = await call(nodes[count % 2], "POST", "/commands/broadcast", body)
            assert answer.status == 200, answer
            assert (answer.body["success"], answer.body["delivered"], answer.body["failed"]) == (False, 2, 2)
            assert sorted(answer.body["unavailable"]) == sorted(there)
            assert set(answer.body["failures"]) == set(there)
        named = {"deviceIds": [*here, *there], "command": {"type": "pause"}}
        answer = await call(nodes[0], "POST", "/commands/broadcast", named)
        assert (answer.status, sorted(answer.body["unavailable"])) == (200, sorted(there))
        only = {"deviceIds": there, "command": {"type": "pause"}}
        answer = await call(nodes[0], "POST", "/commands/broadcast", only)
        assert (answer.status, answer.body["code"]) == (503, "STORE_UNAVAILABLE")
        (kept,) = on(servers, 0, RECORD, prefix="c")
        named["command"] = {"type": "pause", "commandId": kept}
        answer = await call(nodes[0], "POST", "/commands/broadcast", named)
        assert (answer.status, sorted(answer.body["unavailable"])) == (200, sorted(there))
        await back(servers, nodes)
        # The same call again brings it to the rest, and to nobody twice.
        before = {name: len(screen.commands()) for name, screen in screens.items()}
        answer = await call(nodes[0], "POST", "/commands/broadcast", named)
        assert (answer.status, answer.body["delivered"], answer.body["failed"]) == (200, 4, 0)
        assert [len(screens[name].commands()) - before[name] for name in here] == [0, 0]
        assert all(kept in screens[name].commands() for name in there)
        for screen in screens.values():
            await screen.leave()


async def test_a_page_names_the_devices_of_a_shard_that_is_away(servers: Cluster) -> None:
    (organization,) = on(servers, 0, LIST, prefix="o")
    here, there = on(servers, 0, DEVICE, 2), on(servers, AWAY, DEVICE)
    async with workers(servers.url) as nodes:
        screens = [await Screen.dial(nodes[0], name, organization=organization) for name in (*here, *there)]
        await until(lambda: servers.masters[0].tell("ZCARD", f"vz:{{o:{organization}}}:devices") == 3)
        await kill(servers, nodes)
        answer = await call(nodes[1], "GET", f"/organizations/{organization}/devices")
        assert (answer.status, answer.body["total"], answer.body["unavailable"]) == (200, 3, there)
        found = {each["deviceId"]: each["status"] for each in answer.body["devices"]}
        assert found == {**dict.fromkeys(here, "online"), **dict.fromkeys(there, "unknown")}
        page = await asyncio.to_thread(Shell(servers.url).members, organization, 0, 10)
        assert (len(page["devices"]), page["unavailable"]) == (3, there)
        assert (await call(nodes[1], "GET", f"/devices/{here[0]}")).status == 200
        assert (await call(nodes[1], "GET", f"/devices/{there[0]}")).status == 503
        assert (await command(nodes[1], here[0])).status == 200
        assert (await command(nodes[1], there[0])).status == 503
        await back(servers, nodes)
        answer = await call(nodes[1], "GET", f"/organizations/{organization}/devices")
        assert "unavailable" not in answer.body
        for screen in screens:
            await screen.leave()


async def test_a_dashboard_is_told_of_those_that_can_be_read(servers: Cluster) -> None:
    """And of all of them when the shard is back."""
    organization = next(
        name
        for name in on(servers, 0, LIST, 200, prefix="o")
        if servers.home(slot(f"vz:org:{name}".encode())) is servers.masters[0]
    )
    here, there = on(servers, 0, DEVICE, 2), on(servers, AWAY, DEVICE)
    async with workers(servers.url) as nodes:
        screens = [await Screen.dial(nodes[0], name, organization=organization) for name in (*here, *there)]
        await until(lambda: servers.masters[0].tell("ZCARD", f"vz:{{o:{organization}}}:devices") == 3)
        wall = Screen(await dial(nodes[0].port, user_token("ann", organization)), acks=False)
        await kill(servers, nodes)
        assert (await wall.answer("join:organization", {"organizationId": organization}, 1))["success"]
        page = await wall.event("device:status:batch")
        assert {each["deviceId"] for each in page["devices"]} >= set(here)  # of the other it may know from before
        assert page["unavailable"] == there
        await back(servers, nodes)
        page = await wall.event("device:status:batch", 2)
        assert {each["deviceId"] for each in page["devices"]} == {*here, *there}
        assert "unavailable" not in page
        for screen in (*screens, wall):
            await screen.leave()


async def test_a_device_that_moves_leaves_a_list_that_is_away(servers: Cluster) -> None:
    (left,), (entered,) = on(servers, AWAY, LIST, prefix="o"), on(servers, 0, LIST, prefix="o")
    (device,) = on(servers, 0, DEVICE)
    async with workers(servers.url) as nodes:
        first = await Screen.dial(nodes[0], device, organization=left)
        await until(lambda: servers.masters[AWAY].tell("ZCARD", f"vz:{{o:{left}}}:devices"))
        await kill(servers, nodes)
        second = await Screen.dial(nodes[1], device, organization=entered)
        assert await first.ended() == 4500
        await back(servers, nodes)
        await until(lambda: servers.masters[AWAY].tell("ZCARD", f"vz:{{o:{left}}}:devices") == 0)
        assert servers.masters[0].tell("ZCARD", f"vz:{{o:{entered}}}:devices") == 1
        await second.leave()


async def test_the_shell_finds_a_worker_whose_channel_is_away(servers: Cluster) -> None:
    (device,) = on(servers, 0, DEVICE)
    async with workers(servers.url) as nodes:
        screen = await Screen.dial(nodes[1], device)
        await kill(servers, nodes)
        assert await asyncio.to_thread(Shell(servers.url).kick, device)
        assert await screen.ended() == 1000


async def test_health_and_metrics_name_the_shard_that_is_away(servers: Cluster) -> None:
    async with workers(servers.url) as nodes:
        node = nodes[0]

        def shards_up() -> list[int]:
            node.metrics.snapshot()
            return [node.metrics.gauge("redis_shard_up", str(number)).value for number in range(3)]

        def redis(answer: Answer) -> Any:
            return answer.body["dependencies"]["redis"]

        node.answers["status"] = b'{"workers":[{"state":"ready"},{"state":"ready"}],"uptime":1}'
        addresses = [f"redis://127.0.0.1:{master.port}/0" for master in servers.masters]
        found = redis(await call(node, "GET", "/health", key=None))
        assert found["status"] == "up"
        assert [(each["address"], each["status"]) for each in found["shards"]] == [(each, "up") for each in addresses]
        assert shards_up() == [1, 1, 1]
        await kill(servers, nodes)
        answer = await call(node, "GET", "/health", key=None)
        assert (answer.status, answer.body["status"]) == (200, "degraded")
        found = redis(answer)
        assert (found["status"], found["latencyMs"] is None) == ("degraded", False)
        assert found["reason"].startswith(f"shard {AWAY} ({addresses[AWAY]}): ")
        assert [each["status"] for each in found["shards"]] == ["up", "up", "down"]
        assert found["shards"][AWAY]["reason"]
        assert shards_up() == [1, 1, 0]
        assert node.metrics.gauge("redis_up").value == 0
        assert (await call(node, "GET", "/health/ready", key=None)).status == 200
        await back(servers, nodes)
        found = redis(await call(node, "GET", "/health", key=None))
        assert [each["status"] for each in found["shards"]] == ["up", "up", "up"]
        assert shards_up() == [1, 1, 1]


async def test_health_names_a_shard_that_hangs(servers: Cluster) -> None:
    """Its connection stands, and nothing comes over it."""
    async with workers(servers.url) as nodes:
        servers.masters[AWAY].signal(signal.SIGSTOP)
        try:
            answer = await call(nodes[0], "GET", "/health", key=None)
        finally:
            servers.masters[AWAY].signal(signal.SIGCONT)
        found = answer.body["dependencies"]["redis"]
        assert found["status"] == "degraded"
        assert [each["status"] for each in found["shards"]] == ["up", "up", "down"]
        await until(lambda: all(node.store.up for node in nodes))
