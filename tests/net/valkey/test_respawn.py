"""The embedded store under its keeper: a real Valkey, killed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service_process import PATIENCE, alive
from vizora_rt.errors import UnavailableError
from vizora_rt.net.redis import blocking
from vizora_rt.net.valkey import respawn
from vizora_rt.net.valkey.respawn import Keeper


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Keeper]:
    made = Keeper()
    await made.start(tmp_path)
    yield made
    await made.stop()


async def another(kept: Keeper, pid: int) -> None:
    """Wait until the store runs as another process than `pid`, and is watched."""
    async with asyncio.timeout(PATIENCE):
        while kept.pid in (pid, 0) or kept._pidfd < 0:
            await asyncio.sleep(0.01)


async def test_it_runs_from_start_to_stop(tmp_path: Path) -> None:
    kept = Keeper()
    assert (kept.url, kept.pid) == ("", 0)
    await kept.start(tmp_path)
    pid = kept.pid
    await asyncio.to_thread(blocking.probe, kept.url, 2.0)
    await kept.stop()
    assert not alive(pid)


async def test_it_is_started_again_at_the_same_place_each_time(kept: Keeper) -> None:
    url = kept.url
    for _ in range(2):
        pid = kept.pid
        os.kill(pid, signal.SIGKILL)
        await another(kept, pid)
        assert kept.url == url
        await asyncio.to_thread(blocking.probe, url, 2.0)


async def test_one_that_does_not_start_is_tried_again(kept: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respawn, "RETRY_SECONDS", 0.0)
    assert kept._store is not None
    failures = iter([UnavailableError("no room"), RuntimeError("can't start new thread"), UnavailableError("no room")])
    start = type(kept._store)._start

    def sometimes(store: object) -> None:
        for failure in failures:
            raise failure
        start(store)  # type: ignore[arg-type]

    monkeypatch.setattr(type(kept._store), "_start", sometimes)
    pid = kept.pid
    os.kill(pid, signal.SIGKILL)
    await another(kept, pid)
    await asyncio.to_thread(blocking.probe, kept.url, 2.0)


async def test_a_store_that_ends_while_the_service_stops_stays_ended(tmp_path: Path) -> None:
    kept = Keeper()
    await kept.start(tmp_path)
    os.kill(kept.pid, signal.SIGKILL)
    await kept.stop()
    await kept.stop()
    with pytest.raises(UnavailableError):
        await asyncio.to_thread(blocking.probe, kept.url, 2.0)
