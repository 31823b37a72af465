"""Faults under load: what was promised is kept. The players are the reference player, the processes are real.

Each test is a row of docs/reliability.md. The short ones have a small fleet; those marked `soak` have the load that the
promise was made for, or a fault like that of another.
"""

import asyncio
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
import redis

from tests.adversity import Fleet, Redis
from tests.net.backend import API_KEY, call
from tests.net.peers import SECRETS
from tests.net.proxy import Proxy
from tests.service_process import Service, alive, until
from tests.tools import library
from vizora_rt.client.player import PlayerState, Timing
from vizora_rt.net.redis.address import Address
from vizora_rt.net.valkey import server as valkey_server

ENV = {
    **SECRETS,
    "INTERNAL_API_SECRET": API_KEY,
    "VIZORA_PLAYER__HEARTBEAT_INTERVAL": "1000",
    "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
    "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0",
    "VIZORA_SERVER__DRAIN_SECONDS": "1",
}
"""All else is as it ships."""


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


@asynccontextmanager
async def before(target: str | int) -> AsyncIterator[Proxy]:
    proxy = Proxy(target)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()


def pace(count: int) -> dict[str, Any]:
    """A fleet of thousands has the patience of players in the field: it shares two cores with the gateway."""
    return {} if count < 500 else {"beat": 5.0, "timing": Timing(goodbye=0.2)}


def books_of(service: Service) -> Any:
    """The embedded store, as somebody else's client reads it."""
    url = valkey_server.running(Path(service.env["VIZORA_STATE_DIR"]))
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
    async with serving(folder) as service, Fleet(service.port, count, **pace(count)) as fleet:
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
if "vizora_rt.service.worker" in sys.orig_argv:
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
    async with (
        serving(folder) as service,
        before(service.port) as gateway,
        Fleet(gateway.port, count, **pace(count)) as fleet,
    ):
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


def embedded_pid(service: Service) -> int:
    events = ("embedded store started", "embedded store adopted")
    return int([record["pid"] for record in service.records if record["event"] in events][-1])


async def test_the_supervisor_is_killed(tmp_path: Path) -> None:
    await kill_the_supervisor(tmp_path, 40)


@pytest.mark.soak
async def test_the_supervisor_is_killed_under_2000(tmp_path: Path) -> None:
    await kill_the_supervisor(tmp_path, 2000)


# Redis


async def redis_away(folder: Path, store: Redis, count: int, seconds: float, hangs: bool, interval: int = 1000) -> None:
    """Nobody is disconnected; heartbeats are acked as degraded, plays refused; when it is back all is written."""
    env = {"VIZORA_PLAYER__HEARTBEAT_INTERVAL": str(interval)}
    if hangs and seconds < 10:
        env["VIZORA_REDIS__REPLY_TIMEOUT_SECONDS"] = "0.5"
    async with serving(folder, store, 2, **env) as service, Fleet(service.port, count, **pace(count)) as fleet:
        await fleet.online()
        fleet.show()
        await fleet.told()
        if hangs:
            store.freeze()
        else:
            store.kill()
        away = time.monotonic()
        fleet.show()
        while time.monotonic() - away < seconds or fleet.degraded < count:
            await asyncio.sleep(0.1)
        degraded, status = fleet.degraded, await asyncio.to_thread(service.get, "/health/ready")
        assert status[0] == 200  # screens are let in
        async with Fleet(service.port, 2, prefix="new") as newcomers:
            await newcomers.online()
            await newcomers.beaten()
            if hangs:
                store.thaw()
            else:
                store.restart()
            back = time.monotonic()
            await fleet.told()
            told = time.monotonic() - back
            await asyncio.to_thread(until, lambda: current(store.books, [*fleet.screens, *newcomers.screens], back))
            written = time.monotonic() - back
        assert fleet.connects == count and not fleet.endings, fleet.endings
        assert sum(screen.plays.lost + screen.plays.refused for screen in fleet.screens) == 0
        settled(fleet, store.books)
        print(
            f"Redis {'hangs' if hangs else 'away'} {seconds:g} s, {count} screens: 0 disconnected, {degraded} degraded "
            f"acks, plays all in {told:.1f} s after it, states {written:.1f} s"
        )


def current(books: Any, screens: list[Any], since: float) -> bool:
    """Redis has a heartbeat of each screen that is younger than `since`."""
    wall = (time.time() - (time.monotonic() - since)) * 1000
    pipeline = books.pipeline()
    for screen in screens:
        pipeline.get(f"vz:{{d:{screen.name}}}:status")
    states = [json.loads(value or "{}") for value in pipeline.execute()]
    return all(s.get("status") == "online" and s.get("lastHeartbeat", 0) > wall for s in states)


@pytest.mark.parametrize("hangs", [False, pytest.param(True, marks=pytest.mark.soak)])
async def test_redis_is_away(tmp_path: Path, store: Redis, hangs: bool) -> None:
    await redis_away(tmp_path, store, 30, 1.0, hangs)


@pytest.mark.soak
@pytest.mark.parametrize("hangs", [False, True])
async def test_redis_is_away_for_a_minute_under_2000(tmp_path: Path, store: Redis, hangs: bool) -> None:
    await redis_away(tmp_path, store, 2000, 60.0, hangs, interval=15_000)


async def refuse_writes(store: Redis, how: str) -> None:
    """Have the server turn writes down: it was demoted, or its memory is full."""
    if how == "readonly":
        store.books.replicaof("127.0.0.1", 1)
    else:
        store.books.config_set("maxmemory", "1")


async def take_writes(store: Redis, how: str) -> None:
    if how == "readonly":
        store.books.replicaof("NO", "ONE")
    else:
        store.books.config_set("maxmemory", "0")


@pytest.mark.parametrize("how", ["readonly", pytest.param("oom", marks=pytest.mark.soak)])
async def test_redis_turns_writes_down(tmp_path: Path, store: Redis, how: str) -> None:
    async with serving(tmp_path, store) as service, Fleet(service.port, 20) as fleet:
        await fleet.online()
        await fleet.beaten()
        await refuse_writes(store, how)
        fleet.show()
        await fleet.beaten(2)
        assert any(screen.plays.queue for screen in fleet.screens)
        await take_writes(store, how)
        back = time.monotonic()
        await fleet.told()
        await asyncio.to_thread(until, lambda: current(store.books, fleet.screens, back))
        assert fleet.connects == 20 and not fleet.endings, fleet.endings
        settled(fleet, store.books)


@pytest.mark.soak
async def test_redis_is_slow(tmp_path: Path, store: Redis) -> None:
    """Each answer takes a fifth of a second. Heartbeats do not wait for it; plays are acked, later."""
    async with (
        before(Address.parse(store.url).path) as proxy,
        serving(tmp_path, None, 2, REDIS_URL=f"redis://127.0.0.1:{proxy.port}") as service,
        Fleet(service.port, 20) as fleet,
    ):
        await fleet.online()
        proxy.replies.delay = 0.2
        fleet.show()
        await fleet.beaten(2)
        await fleet.told()
        assert fleet.connects == 20 and fleet.degraded == 0
        settled(fleet, store.books)
        proxy.mend()


@pytest.mark.soak
async def test_the_pipeline_is_full(tmp_path: Path, store: Redis) -> None:
    """Redis hangs and more waits for it than may: what comes then is refused, counted, and comes again."""
    async with (
        serving(tmp_path, store, 1, VIZORA_REDIS__PENDING_COMMANDS="50") as service,
        Fleet(service.port, 20) as fleet,
    ):
        await fleet.online()
        await fleet.beaten()
        store.freeze()
        for _ in range(4):
            fleet.show()
            await fleet.beaten()
        store.thaw()
        await fleet.told()
        await fleet.beaten()
        assert fleet.connects == 20 and not fleet.endings, fleet.endings
        settled(fleet, store.books)
        full = 'vizora_realtime_limits_exceeded_total{limit="pending_commands"}'
        assert (await asyncio.to_thread(service.metric, full) or 0) > 0


# Networks


async def half_open(folder: Path, count: int, **env: str) -> None:
    """A router is switched off: neither side hears of it. The gateway finds out and nobody is told of an absence."""
    async with (
        serving(folder, None, 2, **env) as service,
        before(service.port) as network,
        Fleet(network.port, count, **pace(count)) as fleet,
    ):
        await fleet.online()
        await fleet.beaten()
        fleet.show()
        network.hold()
        fleet.show()
        started = time.monotonic()
        await fleet.until(lambda: all(screen.endings["silent"] for screen in fleet.screens))
        noticed = time.monotonic() - started
        network.mend()
        back = await fleet.online()
        await fleet.beaten()
        await fleet.told()
        settled(fleet, books_of(service))
        print(f"half-open TCP, {count} screens: noticed by players in {noticed:.1f} s, back in {back:.1f} s")


async def test_a_connection_is_half_open(tmp_path: Path) -> None:
    await half_open(tmp_path, 20)


@pytest.mark.soak
async def test_the_way_is_narrow_and_long(tmp_path: Path) -> None:
    """A fifth of a second each way and 4 KB a second, as over a mobile network in a basement; and it breaks."""
    async with (
        serving(tmp_path) as service,
        before(service.port) as network,
        Fleet(network.port, 20, beat=1.0) as fleet,
    ):
        for gate in (network.requests, network.replies):
            gate.delay, gate.rate = 0.2, 4000.0
        await fleet.online()
        for _ in range(50):
            fleet.show()
        await fleet.beaten()
        network.cut()
        await fleet.beaten()
        await fleet.told()
        assert fleet.endings.total() >= 20
        settled(fleet, books_of(service))


@pytest.mark.soak
async def test_screens_vanish(tmp_path: Path) -> None:
    """Nobody sends a FIN for a router that stays off: the gateway pings, gives up, and says so, once."""
    quick = {"PING_AFTER_SECONDS": "1", "PING_TIMEOUT_SECONDS": "1", "OFFLINE_AFTER_SECONDS": "1"}
    env = {f"VIZORA_PRESENCE__{name}": value for name, value in quick.items()}
    async with serving(tmp_path, None, 2, **env) as service, before(service.port) as network:
        books = books_of(service)
        async with Fleet(network.port, 20) as fleet:
            await fleet.online()
            await fleet.beaten()
            network.hold()
        await asyncio.to_thread(until, lambda: fleet.said(books, "offline") == set(fleet.names))
        network.mend()


# The machine


@pytest.mark.parametrize("whose", ["the machine's", pytest.param("the gateway's", marks=pytest.mark.soak)])
async def test_the_clock_jumps(tmp_path: Path, whose: str) -> None:
    """An hour forward, and two back. `the machine's`: the store's jumps too, and keys of an hour's life with it."""
    clock = Clock(tmp_path / "clock")
    # Whatever is silent for three heartbeats is stale, and for five seconds offline: each jump is looked at for longer.
    soon = {"VIZORA_PRESENCE__OFFLINE_AFTER_SECONDS": "2", "VIZORA_PRESENCE__WORKER_LOST_AFTER_SECONDS": "5"}
    with Valkey(tmp_path / "valkey", clock.env if whose == "the machine's" else {}) as valkey:
        env = {"REDIS_URL": valkey.url, **soon, **clock.env}
        async with serving(tmp_path, None, 2, **env) as service, Fleet(service.port, 20, beat=1.0) as fleet:
            await fleet.online()
            await fleet.beaten()
            for hours in (1, -1):
                clock.jump(hours)
                fleet.show()
                started = time.monotonic()
                while time.monotonic() - started < 6:
                    await fleet.beaten()
                await fleet.told()
                assert abs(beaten_at(valkey.books, fleet.names[0]) - time.time() - hours * 3600) < 60
                body = {"deviceId": fleet.names[0], "command": {"type": "reload"}}
                answer = await call(service, "POST", "/internal/command", body)
                assert answer.body["delivered"], answer
                assert fleet.connects == 20 and not fleet.endings, fleet.endings
                assert fleet.said(valkey.books, "offline", "stale") == set(), hours
            settled(fleet, valkey.books)
            await fleet.leave(fleet.names[1])
            await asyncio.to_thread(until, lambda: fleet.said(valkey.books, "offline") == {fleet.names[1]})


def beaten_at(books: Any, name: str) -> float:
    """The last heartbeat by the clock of the gateway."""
    return float(json.loads(books.get(f"vz:{{d:{name}}}:status"))["lastHeartbeat"]) / 1000


class Clock:
    """The time of processes that were started with `env`, as the library of faketime(1) has it. Only the wall clock."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.jump(0)
        self.env = {
            "LD_PRELOAD": library("libfaketimeMT.so.1"),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, hours: int) -> None:
        """To so many hours off the true time."""
        self._file.write_text(f"{hours * 3600:+d}\n")


class Valkey:
    """A store of its own, in an environment of its own."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        folder.mkdir()
        path = folder / "s"
        command = [str(valkey_server.binary()), "--port", "0", "--unixsocket", str(path), "--dir", str(folder)]
        self._process = subprocess.Popen([*command, "--save", ""], env=env, stdout=subprocess.DEVNULL)
        self.url = f"unix://{path}"
        self.books: Any = redis.Redis.from_url(self.url, decode_responses=True)

    def __enter__(self) -> Self:
        until(self._answers)
        return self

    def _answers(self) -> bool:
        try:
            return bool(self.books.ping())
        except redis.ConnectionError:
            return False

    def __exit__(self, *_: object) -> None:
        self.books.close()
        self._process.kill()
        self._process.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The service's state directory on a file system of its own, of 4 MiB."""
    folder = tmp_path / "gateway" / "state"
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


async def test_the_disk_of_the_embedded_store_is_full(tmp_path: Path, small_disk: Path) -> None:
    """Nothing is acked that is not on the disk; when there is room again, all goes on without anybody's help."""
    async with serving(tmp_path) as service, Fleet(service.port, 20) as fleet:
        await fleet.online()
        fleet.show()
        await fleet.told()
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        await logged(service, "embedded store ended; starting it again")
        full = time.monotonic()
        fleet.show()
        while time.monotonic() - full < 2:
            await fleet.beaten()
        assert all(screen.plays.queue for screen in fleet.screens)
        filler.unlink()
        room = time.monotonic()
        await fleet.told()
        back = time.monotonic() - room
        await ready(service)
        restarts = sum(record["event"] == "embedded store started" for record in service.records)
        assert restarts <= 5, "it is started again and again, with nothing changed"
        assert fleet.connects == 20 and not fleet.endings, fleet.endings
        settled(fleet, books_of(service))
        print(
            f"disk full, 20 screens: 0 disconnected, {restarts} starts, all plays in {back:.1f} s after there was room"
        )


async def test_descriptors_are_exhausted(tmp_path: Path) -> None:
    """Who is connected stays and is served, others come when there is room; meanwhile the loop does not spin."""
    async with serving(tmp_path, None, 1) as service, Fleet(service.port, 20) as fleet:
        await fleet.online()
        await fleet.beaten()
        (pid,) = await asyncio.to_thread(service.workers)
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = {int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()}
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (max(used), before[1]))
        async with Fleet(service.port, 20, prefix="late") as late:
            started, cpu = time.monotonic(), seconds_of(pid)
            fleet.show()
            while time.monotonic() - started < 2:
                await fleet.beaten()
            await fleet.told()
            share = (seconds_of(pid) - cpu) / (time.monotonic() - started)
            refused = sum(screen.state is not PlayerState.ONLINE for screen in late.screens)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
            back = await late.online()
        assert refused >= 15
        assert share < 0.5, "it spins"
        assert fleet.connects == 20 and not fleet.endings, fleet.endings
        settled(fleet, books_of(service))
        print(
            f"descriptors exhausted: 20 stay, {refused} wait, in within {back:.1f} s; {share:.0%} of a core meanwhile"
        )


def seconds_of(pid: int) -> float:
    """CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
