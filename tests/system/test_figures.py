"""Whether the figures of devices and organisations are true: real processes, while screens move and workers end."""

import asyncio
import http.client
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.net.peers import SECRETS, Client, dial_device
from tests.service_process import PATIENCE, Service, until
from tests.system.test_metrics import Samples, fallen, samples, scrape
from vizora_rt.telemetry.metrics import PREFIX

API_KEY = "internal-w7Kp2Zr9Tn4Xb6"

ENV = {
    **SECRETS,
    "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
    "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0",
    "VIZORA_LIMITS__HANDSHAKES_PER_SECOND": "0",
    "VIZORA_SERVER__DRAIN_SECONDS": "2",
}

Start = Callable[..., list[Service]]


@pytest.fixture
def services(tmp_path: Path, redis_url: str) -> Iterator[Start]:
    """Starts services that share one Redis."""
    with ExitStack() as stack:

        def start(count: int = 1, workers: int = 2, **env: str) -> list[Service]:
            found = []
            for number in range(count):
                folder = tmp_path / str(number)
                folder.mkdir()
                service = Service(folder, {**ENV, "REDIS_URL": redis_url, **env}, workers=workers)
                found.append(stack.enter_context(service).start())
            return found

        yield start


class Figures:
    """What one scrape says, summed over nodes as Prometheus would."""

    def __init__(self, *found: Samples) -> None:
        self._found = found

    def total(self, name: str, **labels: str) -> float:
        """The sum of the series of this name and these labels; those with `device_status` 0 add nothing to it."""
        wanted = set(labels.items())
        every = (each for found in self._found for each in found.items())
        return sum(value for (family, has), value in every if family == PREFIX + name and wanted <= set(has))

    @property
    def online(self) -> list[float]:
        """By `sum(device_status == 1)` and by `sum(devices_online)`: one set, counted twice."""
        return [self.total("device_status"), self.total("devices_online")]

    @property
    def connections(self) -> list[float]:
        """connected, disconnected, and those that are open."""
        name = "ws_connections_total"
        ended = [self.total(name, status=status) for status in ("connected", "disconnected")]
        return [*ended, self.total("ws_connections_active")]


async def read(*nodes: Service) -> Figures:
    """A scrape for which all workers answered in time: on a busy machine one may not, and says so."""
    return await eventually(lambda _: True, *nodes)


async def eventually(accept: Callable[[Figures], bool], *nodes: Service) -> Figures:
    """The first scrape that `accept` takes: for what a worker learns from a socket and no event tells the test."""

    def found() -> Figures | None:
        figures = Figures(*[samples(scrape(node)) for node in nodes])
        return figures if not figures.total("scrape_workers_missing") and accept(figures) else None

    result: Figures = await asyncio.to_thread(until, found)
    return result


async def on_worker(service: Service, index: int, device: str) -> Client:
    """The device's connection to that worker. The kernel chooses: it connects until it has it."""
    before = await asyncio.to_thread(counts, service)
    while True:
        client = await dial_device(service.port, device)
        after: list[int] = await asyncio.to_thread(until, lambda: sum(now := counts(service)) > sum(before) and now)
        if after[index] > before[index]:
            return client
        await client.leave()
        await asyncio.to_thread(until, lambda: counts(service) == before)


def counts(service: Service) -> list[int]:
    """Connections by worker."""
    return [worker["connections"] for worker in service.status()["workers"]]


@pytest.mark.parametrize("leaves", [True, False])
async def test_heartbeats_are_exact_when_a_screen_moves_between_workers(services: Start, leaves: bool) -> None:
    """Ten heartbeats, a move, one heartbeat, and so on. A screen that does not leave is superseded."""
    (service,) = services()
    before = samples(await asyncio.to_thread(scrape, service))
    sent = 0
    clients: list[Client] = []
    for index in (0, 1, 0, 1):
        client = await dial_device(service.port, "lobby") if not leaves else await on_worker(service, index, "lobby")
        clients.append(client)
        for _ in range(1 if index else 10):
            assert (await client.heartbeat())["success"]
            sent += 1
        assert (await read(service)).total("heartbeat_total", device_id="lobby") == sent
        now = samples(await asyncio.to_thread(scrape, service))
        assert fallen(before, now) == {}
        before = now
        await eventually(lambda figures: figures.online == [1, 1], service)
        if leaves:
            await client.leave()
            await eventually(lambda figures: figures.online == [0, 0], service)
    for client in clients[:-1]:
        await client.ended()
    await clients[-1].leave()
    gone = await eventually(lambda figures: figures.online == [0, 0], service)
    assert gone.total("heartbeat_total", device_id="lobby", success="true") == sent


@asynccontextmanager
async def screens(port: int, count: int, first: int = 0) -> AsyncIterator[list[Client]]:
    clients = [await dial_device(port, f"lobby-{number}") for number in range(first, first + count)]
    try:
        yield clients
    finally:
        for client in clients:
            await client.leave()


def call(service: Service, method: str, path: str, body: object = None) -> int:
    """A call of the control API; the status that it is answered with."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    try:
        text = None if body is None else json.dumps(body)
        connection.request(method, path, text, {"X-Internal-Api-Key": API_KEY, "Content-Type": "application/json"})
        return connection.getresponse().status
    finally:
        connection.close()


async def test_a_killed_worker_loses_no_heartbeat_of_a_second_ago_and_its_screens_are_gone(services: Start) -> None:
    (service,) = services(workers=1)
    async with screens(service.port, 9) as clients:
        for _ in range(20):
            for client in clients:
                await client.heartbeat()
        # No scrape has asked, so what is known is what the worker said by itself.
        await asyncio.sleep(2)
        os.kill(service.workers()[0], signal.SIGKILL)
        await asyncio.to_thread(service.wait, "worker ready", 2)
        after = await read(service)
        assert after.total("heartbeat_total", success="true") == 180
        assert {after.total("heartbeat_total", device_id=f"lobby-{number}") for number in range(9)} == {20}
        assert after.connections == [9, 9, 0]
        assert after.online == [0, 0]
        exposition = await asyncio.to_thread(scrape, service)
        assert exposition.count(f'{PREFIX}device_status{{device_id="lobby-') == 9
        assert f'{PREFIX}redis_up{{worker="0"}} 1\n' in exposition
        assert f'{PREFIX}devices_online{{organization_id="acme"}} 0\n' in exposition
    async with screens(service.port, 9) as clients:
        await clients[0].heartbeat()
        back = await read(service)
        assert back.online == [9, 9]
        assert back.connections == [18, 9, 9]
        assert back.total("heartbeat_total", device_id="lobby-0") == 21


async def test_the_last_heartbeats_before_a_roll_are_counted(services: Start) -> None:
    (service,) = services(workers=1, RELEASE_VERSION="1.0.0")
    async with screens(service.port, 3) as clients:
        build = await asyncio.to_thread(scrape, service)
        assert re.search(r'build_info{[^}]*commit="(unknown|[0-9a-f]{40})"', build), "a version is no commit"
        for client in clients:
            for _ in range(5):
                await client.heartbeat()
        service.signal(signal.SIGHUP)
        await asyncio.to_thread(service.wait, "reloaded")
        await asyncio.to_thread(until, lambda: len(service.workers()) == 1)
        after = await read(service)
        assert after.total("heartbeat_total", success="true") == 15
        assert after.connections == [3, 3, 0]
        assert after.online == [0, 0]


async def test_no_figure_is_wrong_while_workers_are_replaced(services: Start) -> None:
    """A roll and a crash under constant scrapes: no outage is told, and no room that is not there."""
    (service,) = services(VIZORA_LIMITS__MAX_CONNECTIONS="100")
    over = asyncio.Event()
    wrong: list[tuple[str, float]] = []

    async def watch() -> None:
        before = samples(await asyncio.to_thread(scrape, service))
        while not over.is_set():
            try:
                now = samples(await asyncio.to_thread(scrape, service))
            except ConnectionError:
                continue  # the worker that took the scrape was killed
            wrong.extend((what, 0.0) for what in fallen(before, now))
            for (name, _), value in now.items():
                true = {"redis_up": value == 1, "ws_connections_limit": value <= 200, "device_status": value in (0, 1)}
                if not true.get(name.removeprefix(PREFIX), True):
                    wrong.append((name, value))
            before = now

    watching = asyncio.create_task(watch())
    async with screens(service.port, 6) as clients:
        for client in clients:
            await client.heartbeat()
        service.signal(signal.SIGHUP)
        await asyncio.to_thread(service.wait, "reloaded")
        os.kill(service.workers()[0], signal.SIGKILL)
        await asyncio.to_thread(service.wait, "worker ready", 5)
    over.set()
    await watching
    assert wrong == []


async def test_screens_that_move_to_another_node_are_counted_once(services: Start) -> None:
    """A roll of node A, and all of its screens come to node B: the owner's own query is right at once."""
    a, b = services(2)
    async with screens(a.port, 10) as clients:
        for client in clients:
            await client.heartbeat()
        assert (await read(a, b)).online == [10, 10]
        a.signal(signal.SIGHUP)
        for client in clients:
            await client.ended()
        async with screens(b.port, 10) as moved:
            for client in moved:
                await client.heartbeat()
            figures = await eventually(lambda figures: figures.online == [10, 10], a, b)
            await asyncio.to_thread(a.wait, "reloaded")
            figures = await read(a, b)
            assert figures.online == [10, 10]
            assert figures.total("heartbeat_total") == 20
            # A says nothing of screens that are elsewhere, and still has what it counted.
            only_a = await asyncio.to_thread(scrape, a)
            assert only_a.count(f"{PREFIX}heartbeat_total{{") == 10


async def test_whatever_ends_a_connection_both_figures_count_the_same_set(services: Start) -> None:
    """Erased, revoked, superseded, suspended and resumed; what was connected is what is open and what has ended."""
    (service,) = services(INTERNAL_API_SECRET=API_KEY)

    async def count(online: int, connected: int) -> None:
        figures = await eventually(lambda figures: figures.online == [online, online], service)
        assert figures.connections == [connected, connected - online, online]

    async with screens(service.port, 5):
        await count(5, 5)
        assert await asyncio.to_thread(call, service, "DELETE", "/devices/lobby-0") == 200
        await count(4, 5)
        revoked = {"deviceId": "lobby-1", "reason": "stolen"}
        assert await asyncio.to_thread(call, service, "POST", "/internal/device-revoked", revoked) == 200
        await count(3, 5)
        async with screens(service.port, 5, first=2):
            await count(5, 10)
            for state, online in (("suspended", 5), ("resumed", 5)):
                entitlement = {"organizationId": "acme", "state": state}
                assert (
                    await asyncio.to_thread(call, service, "POST", "/internal/tenant-entitlement", entitlement) == 200
                )
                await count(online, 10)
    await count(0, 10)


async def test_heartbeats_are_exact_over_kills_one_after_another(services: Start) -> None:
    """Each time a screen comes and beats, and all workers are killed once its beats are told."""
    (service,) = services()
    for number in range(3):
        client = await dial_device(service.port, "lobby")
        for _ in range(20):
            assert (await client.heartbeat())["success"]
        sent = 20 * (number + 1)
        assert (await read(service)).total("heartbeat_total", device_id="lobby") == sent
        pids = service.workers()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(service.wait, "worker ready", 2 * (number + 2))
        figures = await eventually(lambda figures: figures.online == [0, 0], service)
        assert figures.total("heartbeat_total", device_id="lobby") == sent
        assert figures.connections == [number + 1, number + 1, 0]


async def test_all_screens_offline_is_zero_before_they_are_told_offline(services: Start) -> None:
    """The presence of a screen lasts some seconds longer than its connection: the figures count connections."""
    (service,) = services(VIZORA_PRESENCE__OFFLINE_AFTER_SECONDS="60")
    async with screens(service.port, 28):
        assert (await read(service)).online == [28, 28]
    await eventually(lambda figures: figures.online == [0, 0], service)


async def test_past_the_caps_each_is_counted_once_and_those_within_are_exact(services: Start) -> None:
    caps = {"VIZORA_METRICS__MAX_DEVICE_SERIES": "3", "VIZORA_METRICS__MAX_ORGANIZATION_SERIES": "2"}
    (service,) = services(**caps)

    async def visit(number: int) -> None:
        client = await dial_device(service.port, f"lobby-{number}", organization=f"o-{number}")
        assert (await client.heartbeat())["success"]
        await client.leave()
        await eventually(lambda figures: figures.connections[2] == 0, service)

    for _ in range(4):
        for number in range(5):
            await visit(number)
    # New workers meet them in another order, and choose no others.
    for pid in service.workers():
        os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(service.wait, "worker ready", 4)
    for number in reversed(range(5)):
        await visit(number)
    figures = await read(service)
    assert figures.total("limits_exceeded_total", limit="max_device_series") == 2
    assert figures.total("limits_exceeded_total", limit="max_organization_series") == 3
    name = "ws_connections_total"
    for status in ("connected", "disconnected"):
        assert [figures.total(name, organization_id=f"o-{number}", status=status) for number in range(3)] == [5, 5, 0]
        assert figures.total(name, organization_id="other", status=status) == 15
    assert figures.total("heartbeat_total", device_id="other") == 10
