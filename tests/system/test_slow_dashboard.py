"""A dashboard that stops reading while its whole organisation changes: bounded memory, then one final state a device.

Its connection is left open as long as the configuration allows: 30 s as it ships, after which it is closed (4001) and
comes back to a snapshot. Here it is allowed more, so that what waits for it has time to grow.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from bench.load.server import look
from tests.net.backend import API_KEY
from tests.net.peers import SECRETS, Wire, device_token, text, upgrade, user_token
from tests.service_process import Service, until

ENV = {
    **SECRETS,
    "INTERNAL_API_SECRET": API_KEY,
    "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0",
    "VIZORA_LIMITS__UNSENT_SECONDS": "3600",
    "VIZORA_PRESENCE__OFFLINE_AFTER_SECONDS": "1",
    "VIZORA_PLAYER__HEARTBEAT_INTERVAL": "60000",
}
UNREAD_BYTES = 1 << 20
"""`limits.unsent_bytes`: what may wait for one client."""


ROOM_BYTES = 32 << 20
"""For screens that came and went: until their next turn on the timer wheel, connections are still there."""


@asynccontextmanager
async def serving(folder: Path, url: str, **env: str) -> AsyncIterator[Service]:
    with Service(folder, {**ENV, "REDIS_URL": url, **env}, workers=2) as service:
        await asyncio.to_thread(service.start)
        yield service


async def come_and_go(port: int, names: list[str]) -> None:
    """Each connects and leaves at once: two changes, soon after each other."""
    limit = asyncio.Semaphore(100)

    async def one(name: str) -> None:
        async with limit:
            wire = await Wire.open(port)
            await wire.send(upgrade(device_token(name)))
            await wire.response()
            await wire.close()

    await asyncio.gather(*(one(name) for name in names))


async def watch(port: int) -> Wire:
    """A dashboard on a socket that takes next to nothing unread, with its snapshot read."""
    wire = await Wire.open(port, receive_buffer=4096)
    await wire.send(upgrade(user_token()))
    await wire.response()
    await wire.send(text("join:organization", {"organizationId": "acme"}, 1))
    while (await wire.message())["event"] != "device:status:batch":
        pass
    return wire


async def stops_reading(folder: Path, url: str, count: int, seconds: float, every: float) -> None:
    client: Any = redis.Redis.from_url(url, decode_responses=True)
    names = [f"screen-{number}" for number in range(count)]
    async with serving(folder, url) as service:
        wall = await watch(service.port)
        pids = await asyncio.to_thread(service.workers)
        memory: list[int] = []
        began, rounds = time.monotonic(), 0
        while not rounds or time.monotonic() - began < seconds:
            await come_and_go(service.port, names)
            rounds += 1
            # From the first round on: until then devices were unknown, and with them what is kept of each.
            memory = memory or [resident(pid) for pid in pids]
            await asyncio.sleep(max(0.0, began + rounds * every - time.monotonic()))
        await asyncio.to_thread(until, lambda: settled(client, names))
        grown = max(resident(pid) - before for pid, before in zip(pids, memory, strict=True))
        truth = final(client, names)
        told, told_of = await read_up(wall, truth)
        # What the kernel and the transport held when it stopped is old; of what waited behind, each is told once.
        last = Counter(device for device, seq in told if seq == truth[device][1])
        assert last == Counter(names), "each final state is told exactly once"
        assert told_of <= 2 * count + 100 + HELD // 150, "it was told more than it could have held unread"
        assert grown < UNREAD_BYTES + ROOM_BYTES, "memory grew"
        print(
            f"{count} screens, {rounds} rounds in {time.monotonic() - began:.0f} s unread: {told_of} changes of "
            f"{2 * rounds * count} told, worker grew by {grown / 2**20:.1f} MiB"
        )
        await wall.close()


HELD = 4 << 20
"""What a pair of sockets on one machine may hold unread, at most."""


def settled(client: Any, names: list[str]) -> bool:
    return all(status == "offline" for status, _ in final(client, names).values())


def final(client: Any, names: list[str]) -> dict[str, tuple[str, int]]:
    """Status and since of each device, as Redis has it."""
    found = {}
    for name, value in zip(names, client.mget([f"vz:{{d:{name}}}:status" for name in names]), strict=True):
        state = json.loads(value or '{"status": "", "since": 0}')
        found[name] = state["status"], state["since"]
    return found


async def read_up(wall: Wire, truth: dict[str, tuple[str, int]]) -> tuple[list[tuple[str, int]], int]:
    """All that waits for the dashboard, until it knows the final state of each device and nothing more comes."""
    told: list[tuple[str, int]] = []
    missing = {device: seq for device, (_, seq) in truth.items()}
    while missing:
        message = await wall.message()
        if message["event"] == "device:status":
            data = message["data"]
            told.append((data["deviceId"], data["seq"]))
            if missing.get(data["deviceId"]) == data["seq"]:
                del missing[data["deviceId"]]
    try:
        async with asyncio.timeout(2.5):
            while True:
                data = (await wall.message())["data"]
                told.append((data["deviceId"], data["seq"]))
    except TimeoutError:
        pass
    return told, len(told)


async def test_a_dashboard_stops_reading(tmp_path: Path, redis_url: str) -> None:
    await stops_reading(tmp_path, redis_url, 200, 2.0, 0.5)


@pytest.mark.soak
async def test_a_dashboard_of_10000_stops_reading_for_five_minutes(tmp_path: Path, redis_url: str) -> None:
    await stops_reading(tmp_path, redis_url, 10_000, 300.0, 30.0)


def resident(pid: int) -> int:
    process = look(pid)
    assert process is not None
    return process.resident
