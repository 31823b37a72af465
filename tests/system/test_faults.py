"""Faults under load: what was promised is kept. The players are the reference player, the processes are real.

Each test is a row of docs/reliability.md. The short ones have a small fleet; those marked `soak` have the load that the
promise was made for.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.adversity import Fleet, Redis
from tests.net.backend import API_KEY
from tests.net.peers import SECRETS
from tests.net.proxy import Proxy
from tests.service import Service, alive, until
from vizora_rt.net import embedded

ENV = {
    **SECRETS,
    "INTERNAL_API_SECRET": API_KEY,
    "VIZORA_PLAYER__HEARTBEAT_INTERVAL": "1000",
    "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
    "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0",
    "VIZORA_SERVER__DRAIN_SECONDS": "1",
}
"""Heartbeats each second, so that a second shows what 15 do in the field. All else is as it ships."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Redis]:
    """A Redis that outlives the gateway, and that the test can hurt."""
    store = Redis(tmp_path / "redis")
    yield store
    store.close()


@asynccontextmanager
async def serving(folder: Path, store: Redis | None = None, workers: int = 2, **env: str) -> AsyncIterator[Service]:
    folder = folder / "gateway"
    folder.mkdir(exist_ok=True)
    urls = {"REDIS_URL": store.url} if store is not None else {}
    with Service(folder, {**ENV, **urls, **env}, workers=workers) as service:
        await asyncio.to_thread(service.start)
        yield service


def books_of(service: Service) -> Any:
    """The embedded store, as somebody else's client reads it."""
    url = embedded.running(Path(service.env["VIZORA_STATE_DIR"]))
    return redis.Redis.from_url(url, decode_responses=True)


def settled(fleet: Fleet, books: Any) -> None:
    """Nothing acked is lost, nothing is there twice, and nobody was said to be offline."""
    assert fleet.unrecorded(books) == (set(), 0)
    assert fleet.said(books, "offline") == set()


async def logged(service: Service, event: str, count: int = 1) -> Any:
    return await asyncio.to_thread(service.wait, event, count)


async def ready(service: Service) -> None:
    def answer() -> bool:
        try:
            return service.get("/health/ready")[0] == 200
        except OSError:
            return False

    await asyncio.to_thread(until, answer)


# Processes


async def kill_a_worker(folder: Path, count: int) -> None:
    async with serving(folder) as service, Fleet(service.port, count) as fleet:
        books = books_of(service)
        await fleet.online()
        await fleet.beaten()
        fleet.show()
        victim = (await asyncio.to_thread(service.workers))[0]
        os.kill(victim, signal.SIGKILL)
        fleet.show()
        away = await fleet.until(lambda: fleet.connects > count)
        back = away + await fleet.online()
        fleet.show()
        await fleet.told()
        await logged(service, "worker ready", 3)
        assert count < fleet.connects < 2 * count, "the other worker's screens came back too"
        settled(fleet, books)
        print(f"worker SIGKILL, {count} screens: {fleet.connects - count} came back, all within {back:.1f} s")


async def test_a_worker_is_killed(tmp_path: Path) -> None:
    await kill_a_worker(tmp_path, 40)


@pytest.mark.soak
async def test_a_worker_is_killed_under_2000(tmp_path: Path) -> None:
    await kill_a_worker(tmp_path, 2000)


BLOCKED = """
import signal, sys, time
if "vizora_rt.worker" in sys.orig_argv:
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600))
"""
"""As sitecustomize of a worker: its event loop can be blocked from outside, as by a regular expression gone wild."""


async def test_a_worker_hangs(tmp_path: Path) -> None:
    """Its loop is blocked. The supervisor has it write its stacks, replaces it, and its screens come back."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKED)
    env = {"PYTHONPATH": str(tmp_path / "site"), "VIZORA_SERVER__HANG_SECONDS": "1"}
    async with serving(tmp_path, None, 2, **env) as service, Fleet(service.port, 20) as fleet:
        await fleet.online()
        await fleet.beaten()
        victim = (await asyncio.to_thread(service.workers))[0]
        os.kill(victim, signal.SIGUSR1)
        fleet.show()
        assert (await logged(service, "worker hangs"))["pid"] == victim
        await logged(service, "worker ready", 3)
        await fleet.online()
        await fleet.beaten()
        await fleet.told()
        settled(fleet, books_of(service))
        assert any("time.sleep" in line or "sitecustomize" in line for line in service.lines), "no stacks in the log"
        assert not alive(victim)


async def kill_the_supervisor(folder: Path, count: int) -> None:
    async with serving(folder) as service:
        gateway = Proxy(service.port)
        await gateway.open()
        async with Fleet(gateway.port, count) as fleet:
            await fleet.online()
            fleet.show()
            await fleet.told()
            store = embedded_pid(service)
            fleet.show()
            killed = time.monotonic()
            await asyncio.to_thread(service.stop, signal.SIGKILL)
            fleet.show()
            await asyncio.to_thread(service.start)
            gateway.target = service.port
            assert (await logged(service, "embedded store adopted"))["pid"] == store
            await fleet.online()
            back = time.monotonic() - killed
            await fleet.beaten()
            await fleet.told()
            settled(fleet, books_of(service))
            print(f"supervisor SIGKILL, {count} screens: all back within {back:.1f} s of it")
        await gateway.close()


def embedded_pid(service: Service) -> int:
    events = ("embedded store started", "embedded store adopted")
    return int([record["pid"] for record in service.records if record["event"] in events][-1])


async def test_the_supervisor_is_killed(tmp_path: Path) -> None:
    await kill_the_supervisor(tmp_path, 40)


@pytest.mark.soak
async def test_the_supervisor_is_killed_under_2000(tmp_path: Path) -> None:
    await kill_the_supervisor(tmp_path, 2000)
