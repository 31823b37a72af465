"""Restarts under load: nobody is refused by a roll, nothing is lost, and a fleet comes back at the rate of the budget.

Rows of docs/reliability.md. The short tests have a small fleet and small limits, those marked `soak` the load that the
promise was made for.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import sysconfig
import venv
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

import vizora_rt
from tests.adversity import PATIENCE, QUICK, Fleet, Screen
from tests.net.backend import API_KEY, call
from tests.net.peers import SECRETS, device_token, dial
from tests.net.workers import Books
from tests.service_process import Service
from tests.service_process import until as soon
from tests.system.test_faults import books_of, settled
from vizora_rt.app.limits import BURST
from vizora_rt.client.player import Timing
from vizora_rt.client.websocket import CloseInfo
from vizora_rt.service import channel

ENV = {**SECRETS, "INTERNAL_API_SECRET": API_KEY, "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0"}
WORKERS = 2
PATIENT = replace(QUICK, silent_intervals=15.0)
"""Players that do not take a machine which pauses for a few seconds for a gateway that is gone."""


def peak(arrivals: Iterable[float], seconds: float = 1.0) -> int:
    """The most handshakes a second, within any time of so many seconds."""
    times = sorted(arrivals)
    most = max((bisect_left(times, begin + seconds) - at for at, begin in enumerate(times)), default=0)
    return round(most / seconds)


def refused(service: Service) -> dict[str, float]:
    """Handshakes that were refused, by code."""
    _, body = service.get("/metrics")
    series = (line.rpartition(" ") for line in body.decode().splitlines())
    return {name: float(value) for name, _, value in series if "handshakes_rejected_total{" in name and float(value)}


def endings(*fleets: Fleet) -> Counter[str]:
    return sum((fleet.endings for fleet in fleets), Counter())


# A rolling restart


async def roll(folder: Path, count: int, rate: int, drain_seconds: float) -> None:
    env = {**ENV, "VIZORA_SERVER__DRAIN_SECONDS": str(drain_seconds), "VIZORA_PLAYER__HEARTBEAT_INTERVAL": "5000"}
    with Service(folder, env, workers=WORKERS) as service:
        await asyncio.to_thread(service.start)
        async with Fleet(service.port, count, beat=max(1.0, count / 1000), timing=PATIENT) as fleet:
            await fleet.online()
            books, before = books_of(service), await asyncio.to_thread(service.workers)
            (folder / ".env").write_text("VIZORA_PLAYER__CACHE_SIZE=4711\n")
            begun = len(fleet.arrivals)
            newcomers = Fleet(service.port, rate * 20, prefix="new", ramp=float(rate), timing=PATIENT)
            arriving = asyncio.create_task(newcomers.__aenter__())
            service.signal(signal.SIGHUP)
            commands = 0
            while not any(record["event"] == "reloaded" for record in service.records):
                fleet.show()
                body = {"organizationId": "acme", "command": {"type": "reload", "commandId": f"c-{commands}"}}
                assert (await call(service, "POST", "/commands/broadcast", body)).status in (200, 202)
                commands += 1
                await asyncio.sleep(drain_seconds / 4)
            fleet.show()
            arriving.cancel()
            await asyncio.wait([arriving])
            await fleet.online()
            await fleet.told()
            screens = [screen for screen in fleet.screens if screen.connects]
            await fleet.until(lambda: all(len(screen.commands) == commands for screen in screens))

            assert not set(before) & set(await asyncio.to_thread(service.workers))
            assert await asyncio.to_thread(refused, service) == {}
            assert set(endings(fleet, newcomers)) == {"restarting"}
            # Who comes back to a worker whose turn is yet to come leaves once more.
            assert 2 * count <= fleet.connects <= (1 + WORKERS) * count
            assert {times for screen in screens for times in screen.commands.values()} == {1}
            settled(fleet, books)
            assert newcomers.connects > 0
            client = await dial(service.port, device_token("last"))
            assert (await client.next("config"))["cacheSize"] == 4711
            await client.leave()
            budget = 2500 * WORKERS
            most = peak([*fleet.arrivals[begun:], *newcomers.arrivals])
            assert most <= budget * (1 + BURST)
            print(
                f"roll of {WORKERS} workers under {count} screens, {newcomers.connects} new ones at {rate}/s: "
                f"refused 0, plays lost 0, {commands} commands each executed once, peak {most} handshakes/s of {budget}"
            )
            for task in newcomers._tasks:
                task.cancel()
            await asyncio.wait(newcomers._tasks)


async def test_a_roll_refuses_nobody_and_loses_nothing(tmp_path: Path) -> None:
    await roll(tmp_path, 60, 20, 2.0)


@pytest.mark.soak
async def test_a_roll_under_5000(tmp_path: Path) -> None:
    await roll(tmp_path, 5000, 100, 10.0)


def release(folder: Path, name: str) -> Path:
    """A release as ops/install.md makes one: a virtual environment with the package in it. Where its package is.

    It says its `name` at /health.
    """
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    package = Path(vizora_rt.__path__[0])
    shutil.copytree(package, site / "vizora_rt", ignore=shutil.ignore_patterns("__pycache__"))
    # What the package needs is not copied; this one package stands before all others.
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    operators = site / "vizora_rt/net/api/operations.py"
    text = operators.read_text()
    assert text.count('SERVICE: Final = "vizora-rt"') == 1
    operators.write_text(text.replace('SERVICE: Final = "vizora-rt"', f'SERVICE: Final = "release {name}"'))
    return site / "vizora_rt"


async def test_a_roll_takes_new_code_and_rolls_back(tmp_path: Path) -> None:
    """Through the link `current`, of which the supervisor's own release knows nothing."""
    for name in ("1", "2", "3"):
        code = release(tmp_path / name, name)
    other = code / "service/channel.py"
    text = other.read_text()
    assert text.count(f"\nVERSION = {channel.VERSION}\n") == 1
    other.write_text(text.replace(f"\nVERSION = {channel.VERSION}\n", "\nVERSION = 99\n"))

    def lead_to(name: str) -> None:
        (tmp_path / "next").symlink_to(name)
        (tmp_path / "next").replace(tmp_path / "current")

    def serves() -> str:
        name: str = json.loads(service.get("/health")[1])["service"]
        return name

    lead_to("1")
    with Service(tmp_path, ENV, workers=1) as service:
        service.python = str(tmp_path / "current/bin/python")
        await asyncio.to_thread(service.start)
        assert serves() == "release 1"
        for rolls, name in enumerate(("2", "1"), 1):
            lead_to(name)
            service.signal(signal.SIGHUP)
            await asyncio.to_thread(service.wait, "reloaded", rolls)
            assert serves() == f"release {name}"
        # Another worker protocol: the roll is refused with one line, and the workers stay.
        lead_to("3")
        before = service.workers()
        service.signal(signal.SIGHUP)
        said = await asyncio.to_thread(service.wait, "roll refused")
        assert said["error"] == (
            f"its worker protocol is version 99, the running one {channel.VERSION}: restart instead"
        )
        assert service.workers() == before
        assert await asyncio.to_thread(service.stop) == 0
        await asyncio.to_thread(service.start)
        assert serves() == "release 3"


# A fleet that returns


class Deaf(Screen):
    """Comes back five times a second, whatever it is told."""

    __slots__ = ()

    def _absence(self, ending: CloseInfo) -> float:
        return 0.2


async def come_back(
    folder: Path,
    count: int,
    deaf: int,
    per_second: int,
    number: int,
    timing: Timing = QUICK,
    patience: float = PATIENCE,
    addresses: int = 1,
    wait: float = 5.0,
) -> int:
    """How often somebody was sent away when the whole gateway ends and starts again.

    Killed, it says goodbye to nobody, and nobody is told when to return.
    """
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    env = {**ENV, "VIZORA_LIMITS__HANDSHAKES_PER_SECOND": str(per_second)}
    env["VIZORA_LIMITS__HANDSHAKE_WAIT_SECONDS"] = str(wait)
    env["VIZORA_SERVER__HOST"] = "127.0.0.1" if addresses == 1 else "0.0.0.0"
    env["VIZORA_PLAYER__HEARTBEAT_INTERVAL"] = str(max(1000, count))  # a thousand a second, at most
    with Service(folder, env, args=("--port", str(port)), workers=WORKERS) as service:
        await asyncio.to_thread(service.start)
        ramp = per_second * WORKERS * 0.8
        async with (
            Fleet(
                service.port, count, ramp=ramp, timing=timing, beat=max(1.0, count / 1000), addresses=addresses
            ) as fleet,
            Fleet(
                service.port, deaf, prefix="deaf", kind=Deaf, ramp=ramp, timing=timing, addresses=addresses
            ) as impatient,
        ):
            await fleet.online()
            await impatient.online()
            if number == signal.SIGKILL:
                for pid in await asyncio.to_thread(service.workers):
                    os.kill(pid, number)
            assert await asyncio.to_thread(service.stop, number) in (0, -number)
            begun = (len(fleet.arrivals), len(impatient.arrivals))
            sent_away = endings(fleet, impatient)["OVERLOADED"]
            await asyncio.to_thread(service.start)
            took = await fleet.online(patience)
            took += await impatient.online(patience)
            most = peak([*fleet.arrivals[begun[0] :], *impatient.arrivals[begun[1] :]])
            sent_away = endings(fleet, impatient)["OVERLOADED"] - sent_away
            budget = per_second * WORKERS
            await fleet.beaten()
            assert most <= budget * (1 + BURST) + WORKERS
            offline = len(fleet.said(books_of(service), "offline"))
            assert set(await asyncio.to_thread(refused, service)) <= {
                'vizora_realtime_ws_handshakes_rejected_total{code="OVERLOADED"}'
            }
            print(
                f"{count} screens and {deaf} that do not wait, {signal.Signals(number).name}: "
                f"all back {took:.1f} s after the start, peak {most} handshakes/s of {budget}, "
                f"sent away {sent_away} times, {offline} offline meanwhile"
            )
            assert offline == 0
            return sent_away


async def test_a_fleet_that_returns_at_once_is_taken_at_the_budget(tmp_path: Path) -> None:
    assert await come_back(tmp_path, 30, 4, 16, signal.SIGKILL) == 0


async def test_those_for_whom_there_is_no_room_at_the_door_are_told_when_to_come(tmp_path: Path) -> None:
    assert await come_back(tmp_path, 30, 4, 8, signal.SIGKILL, wait=0.5) > 0


@pytest.mark.soak
async def test_8000_return_after_a_stop(tmp_path: Path) -> None:
    """With the patience of the reference player."""
    await come_back(tmp_path, 8000, 100, 1200, signal.SIGTERM, Timing(), 300.0, addresses=8)


@pytest.mark.soak
async def test_15000_return_after_a_kill(tmp_path: Path) -> None:
    """As many as the descriptors of one test process allow."""
    await come_back(tmp_path, 15_000, 100, 1200, signal.SIGKILL, Timing(), 300.0, addresses=8)


# A node of several stops


async def test_the_screens_of_a_node_that_stops_go_to_the_others(tmp_path: Path, redis_url: str) -> None:
    """With another node there, screens come back at once; the last one has them wait until it may be back."""
    env = {**ENV, "REDIS_URL": redis_url, "VIZORA_PRESENCE__WORKER_LOST_AFTER_SECONDS": "4"}
    with ExitStack() as stack:
        nodes = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            node = stack.enter_context(Service(tmp_path / name, env, workers=WORKERS))
            nodes.append(await asyncio.to_thread(node.start))
        books = Books(redis_url)
        await asyncio.to_thread(soon, lambda: books.client.zcard("vz:nodes") == 2 * WORKERS)
        for node, told_within in ((nodes[0], range(1000)), (nodes[1], range(3000, 30_000))):
            screens = [await dial(node.port, device_token(f"screen-{number}")) for number in range(8)]
            for screen in screens:
                await screen.next("config")
            stopping = asyncio.create_task(asyncio.to_thread(node.stop))
            for screen in screens:
                assert (await screen.next("server:shutdown"))["retryAfterMs"] in told_within
                assert await screen.ended() == 1012
            assert await stopping == 0
        members = cast("list[str]", books.client.zrange("vz:nodes", 0, -1))
        assert all(member.startswith("left ") for member in members)
        # A clean restart finds them, and is not alarmed.
        again = await asyncio.to_thread(nodes[0].start)
        await asyncio.to_thread(soon, lambda: books.client.zcard("vz:nodes") == WORKERS)
        assert again.records and not [record for record in again.records if record["event"] == "workers lost"]
        assert [record["level"] for record in again.records if record["event"] == "workers have left"] == ["info"]


async def test_the_screens_of_nodes_that_stop_together_wait_for_all(tmp_path: Path, redis_url: str) -> None:
    """None is sent to another node that stops as well: there it would meet nobody, and back off."""
    with ExitStack() as stack:
        nodes = []
        for name in ("a", "b", "c"):
            (tmp_path / name).mkdir()
            node = stack.enter_context(Service(tmp_path / name, {**ENV, "REDIS_URL": redis_url}, workers=1))
            nodes.append(await asyncio.to_thread(node.start))
        books = Books(redis_url)
        await asyncio.to_thread(soon, lambda: books.client.zcard("vz:nodes") == len(nodes))
        screens = [await dial(node.port, device_token(f"{number}")) for number, node in enumerate(nodes)]
        for screen in screens:
            await screen.next("config")
        for node in nodes:
            node.signal(signal.SIGTERM)
        told = [(await screen.next("server:shutdown"))["retryAfterMs"] for screen in screens]
        assert min(told) >= 3000
        for node in nodes:
            assert await asyncio.to_thread(node.join) == 0
