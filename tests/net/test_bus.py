"""Doorbells over a real Valkey: between workers, through cuts and silence, and what is no doorbell."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.net.peers import until
from tests.net.proxy import Proxy
from vizora_rt import config
from vizora_rt.metrics import Metrics
from vizora_rt.net import bus
from vizora_rt.net.bus import Bell, Bus
from vizora_rt.net.store import Store


class Ears:
    """A bus and what it heard."""

    def __init__(self, url: str, worker: int = 0, node: str = "node") -> None:
        settings = config.Redis(reconnect_max_seconds=0.05)
        self.store = Store(settings, url, Metrics(config.Metrics()), name="test")
        self.heard: list[Bell] = []
        self.bus = Bus(settings, node, worker, self.store, self.heard.append)
        self.channel = f"vz:node:{node}:{worker}"

    async def start(self) -> "Ears":
        self.store.start()
        self.bus.start()
        await until(lambda: self.store.up)
        return self

    async def close(self) -> None:
        await self.bus.close()
        await self.store.close(0.1)


Make = Callable[..., Any]


@pytest.fixture
async def ears() -> AsyncIterator[Make]:
    made: list[Ears] = []

    async def make(url: str, *names: Any) -> Ears:
        made.append(await Ears(url, *names).start())
        return made[-1]

    yield make
    for each in made:
        await each.close()


@pytest.fixture
def client(redis_url: str) -> Any:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


def listeners(client: Any, ears: Ears) -> int:
    return int(client.pubsub_numsub(ears.channel)[0][1])


async def listening(client: Any, *all_ears: Ears) -> None:
    await until(lambda: all(listeners(client, each) == 1 for each in all_ears))


async def test_a_bell_is_heard_where_it_is_rung(redis_url: str, client: Any, ears: Make) -> None:
    here, there, elsewhere = await ears(redis_url, 0), await ears(redis_url, 1), await ears(redis_url, 0, "other")
    await listening(client, here, there, elsewhere)
    for number in range(10):
        here.bus.ring("node", 1, {"superseded": "screen-1", "epoch": number})
    elsewhere.bus.ring("node", 0, {"look": "ü\n"})
    await until(lambda: len(there.heard) == 10 and here.heard)
    assert there.heard == [{"superseded": "screen-1", "epoch": number} for number in range(10)]
    assert here.heard == [{"look": "ü\n"}]
    assert elsewhere.heard == []


async def test_what_is_no_bell_is_let_pass(
    redis_url: str, client: Any, ears: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    here = await ears(redis_url)
    await listening(client, here)
    for nonsense in ("", "nonsense", "[1]", "7", "null", b"\xff\xfe", "{", '"{}"'):
        client.publish(here.channel, nonsense)
    client.publish(here.channel, json.dumps({"look": 1}))
    await until(lambda: here.heard)
    assert here.heard == [{"look": 1}]
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["event"] for line in lines].count("doorbell not understood") == 8
    assert all("nonsense" not in str(line) for line in lines)


async def test_a_listener_that_fails_hears_the_next_one(
    redis_url: str, client: Any, ears: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = await ears(redis_url)
    await listening(client, here)
    heard = here.heard

    def hear(bell: Bell) -> None:
        heard.append(bell)
        if len(heard) == 1:
            raise RuntimeError("broken")

    monkeypatch.setattr(here.bus, "_on_bell", hear)
    for number in range(2):
        client.publish(here.channel, json.dumps({"number": number}))
    await until(lambda: len(heard) == 2)


async def test_it_listens_again_after_a_cut(redis_url: str, client: Any, proxy: Proxy, ears: Make) -> None:
    here = await ears(await proxy.open())
    await listening(client, here)
    for number in range(3):
        proxy.cut()
        await until(lambda: listeners(client, here) == 0)
        await listening(client, here)
        client.publish(here.channel, json.dumps({"number": number}))
        await until(lambda number=number: {"number": number} in here.heard)  # type: ignore[misc]


async def test_it_listens_when_redis_comes_later(
    redis_url: str, client: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    later = tmp_path / "valkey.sock"
    here = Ears(f"unix://{later}")
    here.bus.start()
    here.bus.ring("node", 0, {"look": 1})  # lost, and no fault
    await asyncio.sleep(0.05)
    later.symlink_to(redis_url.removeprefix("unix://"))
    await listening(client, here)
    assert "error" not in capfd.readouterr().err
    await here.close()


async def test_a_connection_that_leads_nowhere_is_left(
    redis_url: str, client: Any, proxy: Proxy, ears: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "CHECK_SECONDS", 0.1)
    here = await ears(await proxy.open())
    await listening(client, here)
    connections = proxy.connections
    # As behind a firewall that forgot the connection: bytes go, none come. Greetings are let through.
    proxy.rewrite = lambda data: b"" if b"pong" in data.lower() and b"$4" in data else data
    await until(lambda: proxy.connections > connections)


async def test_a_quiet_connection_stays(
    redis_url: str, client: Any, proxy: Proxy, ears: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bus, "CHECK_SECONDS", 0.5)
    here = await ears(await proxy.open())
    await listening(client, here)
    connections, checks = proxy.connections, 0

    def count(data: bytes) -> bytes:
        nonlocal checks
        checks += b"pong" in data
        return data

    proxy.rewrite = count
    await until(lambda: checks >= 3)
    assert proxy.connections == connections
    assert listeners(client, here) == 1


async def test_it_ends(redis_url: str, client: Any, ears: Make) -> None:
    here = await ears(redis_url)
    await listening(client, here)
    await here.bus.close()
    await until(lambda: listeners(client, here) == 0)
    await here.bus.close()
