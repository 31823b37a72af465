"""What tests of faults share: a fleet of players that counts what becomes of it, a wall that is told, a store to hurt.

    async with Fleet(port, 50) as fleet:          # the reference player, fifty of it
        await fleet.online()
        os.kill(worker, signal.SIGKILL)
        await fleet.online()
        assert fleet.lost(books) == set()         # each play that was acked is recorded, and once

`tests/net/proxy.py` is the network that misbehaves, `tests/service_process.py` starts and kills the processes.
"""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis
from websockets.exceptions import ConnectionClosed

from tests.net.peers import Client, Json, device_token, dial, user_token
from vizora_rt.client.player import Player, PlayerState, Timing
from vizora_rt.client.websocket import WebSocket
from vizora_rt.net.valkey import server as valkey_server

PATIENCE = 60.0
"""Seconds for what takes a second or two on a machine that is not busy."""
BEAT_SECONDS = 0.3
"""Between two heartbeats, whatever the server asks for: a second shows what most of a minute does in the field."""
PARTITIONS = 16
EXPIRES = int(time.time()) + 86_400
"""Of tokens: clocks jump here."""

QUICK = Timing(
    goodbye=0.2,
    first_beat=0.1,
    least_interval=0.1,
    silent_intervals=3.0,
    backoff_first=0.2,
    backoff_most=1.0,
    plays_retry=0.2,
)
"""A player that comes back within a second: the tests of its own patience are in tests/client/test_player.py."""


class Screen(Player):
    """A player that shows something now and then, and remembers what became of it."""

    __slots__ = ("acked", "beats", "commands", "connects", "degraded", "endings", "fleet", "name", "shown")

    def __init__(self, fleet: "Fleet", name: str) -> None:
        url = f"ws://127.0.0.{1 + len(fleet.screens) % fleet.addresses}:{fleet.port}/ws"
        super().__init__(url, device_token(name, fleet.organization, exp=EXPIRES), timing=fleet.timing)
        self.fleet = fleet
        self.name = name
        self.connects = 0
        self.beats = 0
        self.degraded = 0
        self.shown: set[tuple[str, int]] = set()
        self.commands: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()

    def show(self) -> None:
        self.shown.add((self.plays.boot, seq := self.play_started("spot")))
        self.play_ended(seq, "spot")

    def on_state(self, state: PlayerState) -> None:
        if state is PlayerState.ONLINE:
            self.connects += 1
        elif state is PlayerState.WAITING and self.ending is not None:
            self.endings[self.ending.reason] += 1
        self.fleet.news.set()

    def on_event(self, event: str, data: dict[str, Any]) -> None:
        if event == "command":
            self.commands[data["commandId"]] += 1
            self.fleet.news.set()
        elif event == "config":
            self.fleet.arrivals.append(int(data["session"], 16) / 1e6)
            self.interval = self.fleet.beat or self.interval

    def received(self, socket: WebSocket, text: str) -> None:
        if '"nextHeartbeatIn"' in text:
            self.beats += 1
            self.degraded += '"degraded":true' in text
            self.fleet.news.set()
        super().received(socket, text)


class Fleet:
    """Players against a port: of the gateway, or of a proxy before it."""

    def __init__(
        self,
        port: int,
        count: int,
        *,
        organization: str = "acme",
        prefix: str = "screen",
        timing: Timing = QUICK,
        beat: float = BEAT_SECONDS,
        ramp: float = 1000.0,
        kind: Callable[["Fleet", str], Screen] = Screen,
        addresses: int = 1,
    ) -> None:
        """`addresses`: how many of this machine the server listens on; each has 28,000 ports for connections."""
        self.addresses = addresses
        self.port = port
        self.organization = organization
        self.timing = timing
        self.beat = beat
        self.news = asyncio.Event()
        self.arrivals: list[float] = []
        """When each was let in, by the gateway's clock: a large fleet hears of it late."""
        self.screens: list[Screen] = []
        for number in range(count):
            self.screens.append(kind(self, f"{prefix}-{number}"))
        self._ramp = ramp
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        for number, screen in enumerate(self.screens):
            self._tasks.append(asyncio.create_task(screen.run()))
            if number % 20 == 19:
                await asyncio.sleep(20 / self._ramp)
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def leave(self, name: str) -> None:
        """One of them goes for good."""
        task = self._tasks[self.names.index(name)]
        task.cancel()
        await asyncio.wait([task])

    @property
    def names(self) -> list[str]:
        return [screen.name for screen in self.screens]

    @property
    def connects(self) -> int:
        return sum(screen.connects for screen in self.screens)

    @property
    def beats(self) -> int:
        return sum(screen.beats for screen in self.screens)

    @property
    def degraded(self) -> int:
        return sum(screen.degraded for screen in self.screens)

    @property
    def endings(self) -> Counter[str]:
        return sum((screen.endings for screen in self.screens), Counter())

    async def until(self, condition: Callable[[], Any], patience: float = PATIENCE) -> float:
        """Wait for something of the fleet's; how long it took."""
        started = time.monotonic()
        async with asyncio.timeout(patience):
            while not condition():
                self.news.clear()
                await self.news.wait()
                await asyncio.sleep(len(self.screens) / 1e6)  # to look at all of them takes as long
        return time.monotonic() - started

    async def online(self, patience: float = PATIENCE) -> float:
        """All are connected. How long that took."""
        return await self.until(lambda: all(screen.state is PlayerState.ONLINE for screen in self.screens), patience)

    async def beaten(self, times: int = 1) -> None:
        """From now on each has had so many heartbeats acked."""
        wanted = {screen: screen.beats + times for screen in self.screens}
        await self.until(lambda: all(screen.beats >= count for screen, count in wanted.items()))

    def show(self) -> None:
        """Each plays something and tells of it as soon as it can."""
        for screen in self.screens:
            screen.show()

    async def told(self) -> float:
        """All that was shown is acked. How long that took."""
        started = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            while any(screen.plays.queue for screen in self.screens):
                await asyncio.sleep(0.01)
        return time.monotonic() - started

    def unrecorded(self, books: Any) -> tuple[set[tuple[str, int]], int]:
        """Plays that were shown and acked and are not in Redis, start and end; and how many are there twice."""
        shown = {play for screen in self.screens for play in screen.shown}
        rows = recorded(books, set(self.names))
        found = Counter((boot, seq, phase) for boot, seq, phase in rows)
        missing = {(boot, seq) for boot, seq in shown if not (found[boot, seq, "start"] and found[boot, seq, "end"])}
        held = {
            (screen.plays.boot, json.loads(entry)["seq"]) for screen in self.screens for entry in screen.plays.queue
        }
        return missing - held, sum(count > 1 for count in found.values())

    def said(self, books: Any, *status_writer: str) -> set[str]:
        """Screens of which one of these was ever told to dashboards and backends."""
        names, found = set(self.names), set()
        for _, fields in books.xrange("vz:events"):
            if fields["type"] == "device:status" and json.loads(fields["json"])["status"] in status_writer:
                found.add(fields["deviceId"])
        return found & names


def recorded(books: Any, devices: set[str]) -> list[tuple[str, int, str]]:
    """All plays of some devices: boot, number, phase."""
    pipeline = books.pipeline()
    for number in range(PARTITIONS):
        pipeline.xrange(f"vz:{{p:{number}}}:plays")
    found = []
    for rows in pipeline.execute():
        for _, fields in rows:
            device, boot, seq = fields["play_id"].rsplit(":", 2)
            if device in devices:
                found.append((boot, int(seq), fields["phase"]))
    return found


class Wall:
    """A dashboard that writes down all that it is told, device by device."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.told: dict[str, list[str]] = {}
        self.seqs: dict[str, int] = {}
        self.news = asyncio.Event()
        self._task = asyncio.create_task(self._read())

    @classmethod
    @contextlib.asynccontextmanager
    async def watching(cls, port: int, organization: str = "acme") -> AsyncIterator["Wall"]:
        """It has its snapshot, and misses nothing from now on."""
        client = await dial(port, user_token("ann", organization))
        await client.ask("join:organization", {"organizationId": organization})
        while (await client.receive())["event"] != "device:status:batch":
            pass
        wall = cls(client)
        try:
            yield wall
        finally:
            wall._task.cancel()
            await asyncio.wait([wall._task])
            client.connection.transport.abort()
            await client.connection.wait_closed()

    @property
    def alive(self) -> bool:
        return not self._task.done()

    async def _read(self) -> None:
        try:
            while True:
                self._take(json.loads(await self.client.connection.recv()))
        except ConnectionClosed:
            pass

    def _take(self, message: Json) -> None:
        data = message["data"]
        if message["event"] == "device:status":
            assert data["seq"] > self.seqs.get(data["deviceId"], 0), "it went back in time"
            self.seqs[data["deviceId"]] = data["seq"]
            self.told.setdefault(data["deviceId"], []).append(data["status"])
            self.news.set()

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.news.clear()
                await self.news.wait()

    def said(self, *status_writer: str) -> set[str]:
        """Devices of which one of these was ever told."""
        return {device for device, told in self.told.items() if set(status_writer) & set(told)}


class Redis:
    """A store of the test's own, on a Unix socket, that can be stopped, killed, and started again on its data."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._store = valkey_server.start(folder)
        self.url = self._store.url
        self.books: Any = redis.Redis.from_url(self.url, decode_responses=True)

    def freeze(self) -> None:
        """It neither answers nor goes away."""
        os.kill(self._store.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._store.pid, signal.SIGCONT)

    def kill(self) -> None:
        self._store._end(0)

    def restart(self) -> None:
        self._store.restart()

    def close(self) -> None:
        self.books.close()
        if self._store.alive():
            self.thaw()
        self._store.stop()
