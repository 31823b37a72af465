"""Screens and a dashboard while workers and whole nodes are killed: real services, two of them with one Redis."""

import asyncio
import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from tests.net.peers import SECRETS, Client, Json, Wire, device_token, dial, dial_device, upgrade, user_token
from tests.service_process import Service, until

Dialled = Callable[[int, str], Awaitable[Client]]

ENV = {
    **SECRETS,
    "VIZORA_PRESENCE__OFFLINE_AFTER_SECONDS": "2",
    "VIZORA_PRESENCE__WORKER_LOST_AFTER_SECONDS": "3",
    "VIZORA_PLAYER__HEARTBEAT_INTERVAL": "1000",
    "VIZORA_SERVER__DRAIN_SECONDS": "1",
}


@pytest.fixture
def services(tmp_path: Path, redis_url: str) -> Iterator[Any]:
    """Starts services that share one Redis."""
    with ExitStack() as stack:

        def start(count: int, workers: int = 2, **env: str) -> list[Service]:
            found = []
            for number in range(count):
                folder = tmp_path / str(number)
                folder.mkdir()
                service = Service(folder, {**ENV, "REDIS_URL": redis_url, **env}, workers=workers)
                found.append(stack.enter_context(service).start())
            return found

        yield start


class Wall:
    """A dashboard that writes down all that it is told, device by device."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.told: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        self.seqs: dict[str, int] = {}
        self.news = asyncio.Event()
        self.task = asyncio.create_task(self._read())

    @classmethod
    async def open(cls, port: int, user: str = "ann") -> "Wall":
        client = await dial(port, user_token(user))
        await client.ask("join:organization", {"organizationId": "acme"})
        while (await client.receive())["event"] != "device:status:batch":
            pass
        return cls(client)

    async def _read(self) -> None:
        while True:
            self._take(json.loads(await self.client.connection.recv()))

    def _take(self, message: Json) -> None:
        if message["event"] == "device:status":
            data = message["data"]
            assert data["seq"] > self.seqs.get(data["deviceId"], 0), "it went back in time"
            self.seqs[data["deviceId"]] = data["seq"]
            self.told[data["deviceId"]].append((data["status"], data["reason"]))
            self.news.set()

    async def until_told(self, device: str, *status_writer: str) -> None:
        """Exactly these, in this order, and no other before them."""
        async with asyncio.timeout(40):
            while len(self.told[device]) < len(status_writer):
                assert not self.task.done(), self.task
                self.news.clear()
                await self.news.wait()
        assert tuple(status for status, _ in self.told[device]) == status_writer

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        self.client.connection.transport.abort()
        await self.client.connection.wait_closed()


@pytest.fixture
async def dialled() -> AsyncIterator[Dialled]:
    """Connects screens; whatever still stands at the end is closed."""
    clients: list[Client] = []

    async def connect(port: int, name: str) -> Client:
        clients.append(await dial_device(port, name))
        return clients[-1]

    yield connect
    for client in clients:
        client.connection.transport.abort()
    await asyncio.gather(*(client.connection.wait_closed() for client in clients))


@pytest.fixture
async def walls() -> AsyncIterator[list[Wall]]:
    walls: list[Wall] = []
    yield walls
    for wall in walls:
        await wall.close()


def of_worker(client: Any, node_port: int, worker: int, devices: list[str]) -> list[str]:
    """Devices whose owner key names this worker."""
    found = []
    for device in devices:
        _, node, index, _ = client.get(f"vz:{{d:{device}}}:owner").split(" ")
        if int(index) == worker and f"-{node_port}-" in node:
            found.append(device)
    return found


async def off_loop(call: Any, *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, call, *arguments)


async def beat(screens: list[Client], silent: set[Client]) -> None:
    """Heartbeats of all that live, as players send them."""
    while True:
        for screen in screens:
            if screen not in silent:
                try:
                    await screen.send("heartbeat", {})
                except Exception:
                    silent.add(screen)
        await asyncio.sleep(0.5)


async def test_what_a_dashboard_sees_of_one_screen(services: Any, walls: list[Wall], dialled: Dialled) -> None:
    """On any worker of any of two nodes: online, stale when it says nothing, offline when it is gone."""
    one, two = await off_loop(services, 2)
    walls += [await Wall.open(one.port), await Wall.open(two.port, "bob")]
    screen = await dialled(one.port, "lobby-1")
    for wall in walls:
        await wall.until_told("lobby-1", "online", "stale")
    await screen.heartbeat()
    await screen.leave()
    for wall in walls:
        await wall.until_told("lobby-1", "online", "stale", "online", "offline")
        assert wall.told["lobby-1"] == [
            ("online", "connected"),
            ("stale", "no_heartbeat"),
            ("online", "heartbeat"),
            ("offline", "client"),
        ]


async def test_a_worker_is_killed(services: Any, walls: list[Wall], redis_url: str, dialled: Dialled) -> None:
    """Who comes back is no change; who does not is offline once."""
    (service,) = await off_loop(services, 1)
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    names = [f"lobby-{number}" for number in range(16)]
    screens = [await dialled(service.port, name) for name in names]
    beating = asyncio.create_task(beat(screens, set()))
    pids = await off_loop(service.workers)
    victim = 0
    lost = of_worker(client, service.port, victim, names)
    assert 1 < len(lost) < len(names)
    wall = await until_elsewhere(service.port, pids[victim], walls)
    os.kill(pids[victim], signal.SIGKILL)
    await off_loop(service.wait, "worker ready", 3)
    back, gone = lost[::2], lost[1::2]
    screens += [await dialled(service.port, name) for name in back]
    for name in gone:
        await wall.until_told(name, "offline")
        assert wall.told[name] == [("offline", "worker_lost")]
    await dialled(service.port, "marker")
    await wall.until_told("marker", "online")
    assert {name for name, told in wall.told.items() if told} == {*gone, "marker"}
    beating.cancel()
    await asyncio.wait([beating])


async def until_elsewhere(port: int, victim: int, walls: list[Wall]) -> Wall:
    """A dashboard on a worker that is not killed: the one whose sockets do not include it."""
    for number in range(50):
        wall = await Wall.open(port, f"user-{number}")
        walls.append(wall)
        local = wall.client.connection.transport.get_extra_info("sockname")[1]
        if not holds(victim, local, port):
            return wall
    raise AssertionError("all dashboards came to one worker")


def holds(pid: int, remote: int, port: int) -> bool:
    """Whether a process has the server's end of a connection from `remote`."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        near, far = (int(fields[column].split(":")[1], 16) for column in (1, 2))
        if (near, far) == (port, remote):
            inodes.add(f"socket:[{fields[9]}]")
    links = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.add(str(link.readlink()))
        except OSError:
            pass
    return bool(links & inodes)


async def test_a_node_is_killed(services: Any, walls: list[Wall], redis_url: str, dialled: Dialled) -> None:
    """The other node's sweeper marks its devices offline, once, and touches nobody else's."""
    one, two = await off_loop(services, 2)
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    walls.append(wall := await Wall.open(two.port))
    lost = [f"lost-{number}" for number in range(12)]
    kept = [f"kept-{number}" for number in range(12)]
    moved = lost[:3]
    screens = [await dialled(one.port, name) for name in lost] + [await dialled(two.port, name) for name in kept]
    beating = asyncio.create_task(beat(screens, set()))
    for name in (*lost, *kept):
        await wall.until_told(name, "online")
    assert client.zcard("vz:nodes") == 4
    pids = [one.pid, *(await off_loop(one.workers))]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    screens += [await dialled(two.port, name) for name in moved]
    for name in lost[3:]:
        await wall.until_told(name, "online", "offline")
        assert wall.told[name][1] == ("offline", "worker_lost")
    await off_loop(until, lambda: client.zcard("vz:nodes") == 2)
    await dialled(two.port, "marker")
    await wall.until_told("marker", "online")
    assert [wall.told[name] for name in (*kept, *moved)] == [[("online", "connected")]] * 15
    entries = [entry for _, entry in cast("Any", client.xrange("vz:events"))]
    offline = Counter(entry["deviceId"] for entry in entries if '"status":"offline"' in entry["json"])
    assert offline == Counter(lost[3:])
    beating.cancel()
    await asyncio.wait([beating])


async def test_a_node_that_stands_still(services: Any, walls: list[Wall], dialled: Dialled) -> None:
    """Stopped for longer than a dead one may be silent: its screens are offline, and online when it goes on."""
    one, two = await off_loop(services, 2, 1)
    walls.append(wall := await Wall.open(two.port))
    screen = await dialled(one.port, "lobby-1")
    beating = asyncio.create_task(beat([screen], set()))
    await wall.until_told("lobby-1", "online")
    (pid,) = await off_loop(one.workers)
    # The supervisor too: it would take the worker for hung.
    for process in (one.pid, pid):
        os.kill(process, signal.SIGSTOP)
    try:
        await wall.until_told("lobby-1", "online", "offline")
    finally:
        for process in (pid, one.pid):
            os.kill(process, signal.SIGCONT)
    await wall.until_told("lobby-1", "online", "offline", "online")
    beating.cancel()
    await asyncio.wait([beating])


async def storm(service: Service, wires: list[Wire], names: list[str]) -> None:
    """All at once, as far as one process can."""

    async def connect(number: int, name: str) -> None:
        wire = wires[number] = await Wire.open(service.port)
        await wire.send(upgrade(device_token(name)))
        await wire.response()
        assert (await wire.message())["event"] == "config"

    wires += [None] * len(names)  # type: ignore[list-item]
    limit = asyncio.Semaphore(200)

    async def limited(number: int, name: str) -> None:
        async with limit:
            await connect(number, name)

    await asyncio.gather(*(limited(number, name) for number, name in enumerate(names)))


async def come_back(services: Any, walls: list[Wall], redis_url: str, *counts: int) -> None:
    """Operations of Redis grow with the devices, not faster, and the dashboard ends with what is true."""
    env = {
        "VIZORA_PLAYER__HEARTBEAT_INTERVAL": "60000",
        "VIZORA_LIMITS__HANDSHAKES_PER_SECOND": "0",
        "VIZORA_PRESENCE__OFFLINE_AFTER_SECONDS": "1",
    }
    (service,) = await off_loop(lambda: services(1, 2, **env))
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    walls.append(wall := await Wall.open(service.port))
    per_device: dict[int, float] = {}
    for count in counts:
        names = [f"wall-{count}-{number}" for number in range(count)]
        wires: list[Wire] = []
        await storm(service, wires, names)
        for wire in wires:
            await wire.close()
        for name in names:
            await wall.until_told(name, "online", "offline")
        before = operations(client)
        wires = []
        started = time.monotonic()
        await storm(service, wires, names)
        for name in names:
            await wall.until_told(name, "online", "offline", "online")
        took, ran = time.monotonic() - started, operations(client) - before
        per_device[count] = sum(ran.values()) / count
        often = ", ".join(f"{name} {calls / count:.1f}" for name, calls in ran.most_common(8))
        print(f"{count} devices: {per_device[count]:.2f} operations each ({often}), the last told after {took:.1f} s")
        for wire in wires:
            await wire.close()
    # The claim with what its script calls is 9, listing 1, telling dashboards and backends 2; half of them come to
    # another worker than before and have its bell rung. Each sweep that passes by looks at all of them: on a busy
    # machine, where all takes longer, several do. What grows with the square would be far above.
    for count, operations_each in per_device.items():
        assert 12 <= operations_each <= 20 + IDLE / count, count


IDLE = 150
"""Operations of two workers that nobody connects to, in a few seconds: signs of life, looks for the dead."""


async def test_all_come_back_at_once_while_a_dashboard_watches(
    services: Any, walls: list[Wall], redis_url: str
) -> None:
    await come_back(services, walls, redis_url, 50, 150)


@pytest.mark.soak
async def test_thousands_come_back_at_once_while_a_dashboard_watches(
    services: Any, walls: list[Wall], redis_url: str
) -> None:
    await come_back(services, walls, redis_url, 1250, 2500, 5000)


def operations(client: Any) -> Counter[str]:
    """Commands that Redis has run, those of scripts among them."""
    stats = client.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): int(each["calls"]) for name, each in stats.items()})
