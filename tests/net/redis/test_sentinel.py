"""Which store a URL gets, and the one of a master that Sentinels name: found, and found again after a failover."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.net.peers import until
from tests.net.valkeys import Guarded, Valkeys
from vizora_rt import config
from vizora_rt.errors import ConfigError
from vizora_rt.net.redis import sentinel
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.redis.cluster import Cluster
from vizora_rt.net.redis.sentinel import SentinelClient as GuardedStore
from vizora_rt.net.redis.sentinel import open_client
from vizora_rt.net.redis.topology import find_master
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.resp import pack

Make = Callable[[str], RedisClient]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[RedisClient] = []

    def build(url: str) -> RedisClient:
        made.append(
            open_client(
                config.RedisSettings(reconnect_max_seconds=0.1), url, Metrics(config.MetricsSettings()), name="test"
            )
        )
        return made[-1]

    yield build
    for store in made:
        await store.close(0.1)


async def test_a_url_gets_its_store(make: Make) -> None:
    assert type(make("redis://127.0.0.1:1")) is RedisClient
    assert type(make("unix:///s")) is RedisClient
    assert type(make("redis+sentinel://a/m")) is GuardedStore
    assert type(make("redis+cluster://a")) is Cluster
    with pytest.raises(ConfigError):
        make("redis+cluster://a/9")


async def test_a_url_says_the_database_before_a_server_is_known(make: Make) -> None:
    """Names of channels depend on it, and are made before Sentinels have named a master."""
    assert make("redis+sentinel://a/m/3").database == 3
    assert make("redis+sentinel://a/m").database == 0
    assert make("redis://a/2").database == 2
    assert make("unix:///s?db=1").database == 1
    assert make("redis+cluster://a").database == 0


async def test_the_master_is_found(guarded: Guarded, make: Make) -> None:
    store = make(guarded.url)
    assert store.place(b"key") is None
    store.start()
    await until(lambda: store.up)
    assert store.address == store.place(b"key") == Address(port=guarded.master.port)
    assert await store.request("set", pack("SET", "key", 1)) == b"OK"


async def test_without_a_sentinel_it_says_so(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    store = make("redis+sentinel://:s3cret@127.0.0.1:1/signage")
    store.start()
    await until(lambda: "No master found" in store.reason)
    assert "s3cret" not in capfd.readouterr().err
    assert not store.up


async def test_an_old_master_is_left(
    guarded: Guarded, make: Make, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    """One that still takes commands, but that nobody else can reach."""
    monkeypatch.setattr(sentinel, "WATCH_SECONDS", 0.02)
    store = make(guarded.url)
    named = Address.parse(redis_url)
    monkeypatch.setattr(sentinel, "find_master", lambda *_: named)
    store.start()
    await until(lambda: store.up)
    assert store.address == named
    monkeypatch.setattr(sentinel, "find_master", find_master)
    await until(lambda: store.up and store.address.port == guarded.master.port)


@pytest.mark.soak
async def test_a_failover(tmp_path: Path, make: Make) -> None:
    with Valkeys(tmp_path) as valkeys:
        guarded = valkeys.guarded()
        store = make(guarded.url)
        told: list[str] = []
        store.on_up.append(lambda: told.append("up"))
        store.on_down.append(lambda: told.append("down"))
        store.start()
        await until(lambda: store.up)
        assert await store.request("set", pack("SET", "key", 1)) == b"OK"
        assert await store.request("other", pack("WAIT", 1, 1000)) == 1
        guarded.master.kill()
        async with asyncio.timeout(30):
            while not (store.up and store.address.port == guarded.replica.port):
                await asyncio.sleep(0.05)
        assert await store.request("get", pack("GET", "key")) == b"1"
        assert told == ["up", "down", "up"]
        # The old one comes back as a master for a moment, and is made a replica.
        guarded.master.start()
        async with asyncio.timeout(30):
            # Sentinels end the connections of whom they demote.
            role = b""
            while role != b"slave":
                await asyncio.sleep(0.1)
                with suppress(OSError):
                    role = guarded.master.tell("ROLE")[0]
        assert store.up and store.address.port == guarded.replica.port
