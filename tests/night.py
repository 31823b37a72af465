"""Who takes part in the nights of tests/system/test_machine.py: the gateway and what kills it, devices, backends.

gateway = Gateway(folder)
device = Device("lobby", gateway)      # behind a network of its own, that misbehaves
order = Order(device, seconds=300)     # a command, as the backend sees it
"""

import asyncio
import json
import math
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any, Literal

import redis
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.net.backend import API_KEY, call
from tests.net.peers import SECRETS, Client, Json, device_token, dial
from tests.net.proxy import Proxy
from tests.service_process import PATIENCE, Service, until
from vizora_rt.net.valkey import server as valkey_server

Play = tuple[int, Literal["start", "end"]]

ENV = {
    **SECRETS,
    "INTERNAL_API_SECRET": API_KEY,
    "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
    "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0",
    "VIZORA_PLAYER__HEARTBEAT_INTERVAL": "1000",
    "VIZORA_REDIS__RECONNECT_MAX_SECONDS": "0.1",
    "VIZORA_SERVER__DRAIN_SECONDS": "1",
}
QUICK = """
import sys
if "vizora_rt.service.worker" in sys.orig_argv:
    from vizora_rt.app import commands
    from vizora_rt.net.commands import requests
    commands.FIRST_ACK_TIMEOUT, commands.MAX_ACK_TIMEOUT = 0.5, 2.0
    requests.ACK_SECONDS = 0.1
"""
"""As sitecustomize of a worker: an ack is overdue after half a second, one and two, not 10 to 300, and a call waits for
it for a tenth of a second, not 4: so it is known of most commands which was taken before which."""
OVERDUE = 1.1
"""By then the first patience is over, and the tick of the timers after it."""
BEAT_SECONDS = 0.5
MOMENT = 0.05
"""Seconds in which an answer comes when all is well; when it does not, the device goes on without."""


class Gateway:
    """The service, its store, and the hands that hurt both."""

    def __init__(self, folder: Path) -> None:
        (folder / "site").mkdir()
        (folder / "site" / "sitecustomize.py").write_text(QUICK)
        self.service = Service(folder, {**ENV, "PYTHONPATH": str(folder / "site")}, workers=2)
        self.frozen = False
        self.happened = 0
        self.failure: BaseException | None = None
        """The first: Hypothesis plays a night again that failed, and then the processes do otherwise."""
        self.late: dict[str, float] = {}
        """Seconds until two commands had come, at most, from the end of what befell them."""
        self.trials = 0

    @property
    def port(self) -> int:
        return self.service.port

    def start(self) -> None:
        self.service.start()
        url = valkey_server.running(Path(self.service.env["VIZORA_STATE_DIR"]))
        self.books: Any = redis.Redis.from_url(url, decode_responses=True)

    def store_pid(self) -> int:
        events = ("embedded store started", "embedded store adopted")
        return int([record["pid"] for record in self.service.records if record["event"] in events][-1])

    def freeze(self) -> None:
        os.kill(self.store_pid(), signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        os.kill(self.store_pid(), signal.SIGCONT)
        self.frozen = False

    def kill_store(self) -> None:
        """As by the kernel when memory is short; the supervisor starts it again on what is on the disk."""
        started = self.count("embedded store started")
        os.kill(self.store_pid(), signal.SIGKILL)
        self.frozen = False
        self.service.wait("embedded store started", count=started + 1)

    def deafen(self) -> None:
        """Workers lose the connections on which they hear of each other, for a moment."""
        self.books.client_kill_filter(_type="pubsub")

    def kill_worker(self, index: int) -> None:
        """One that is ready: a service whose workers die while they boot gives up, as it should."""
        ready = self.count("worker ready")
        status = until(self.whole)
        pid = next(worker["pid"] for worker in status["workers"] if worker["index"] == index)
        os.kill(pid, signal.SIGKILL)
        self.service.wait("worker ready", count=ready + 1)

    def kill_service(self) -> None:
        """The supervisor and, with it, its workers. The next one adopts the store."""
        if self.frozen:
            self.thaw()
        self.service.stop(signal.SIGKILL)
        self.start()

    def whole(self) -> Json | None:
        try:
            status = self.service.status()
        except OSError:
            return None  # it came to the worker that was killed
        ready = [worker for worker in status["workers"] if worker["state"] == "ready"]
        return status if len(ready) == 2 else None

    def count(self, event: str) -> int:
        return sum(record["event"] == event for record in self.service.records)

    def entries(self) -> list[dict[str, str]]:
        """All plays in all partitions."""
        pipeline = self.books.pipeline()
        for number in range(16):
            pipeline.xrange(f"vz:{{p:{number}}}:plays")
        return [fields for rows in pipeline.execute() for _, fields in rows]


class Device:
    """A player and its way to the gateway."""

    def __init__(self, name: str, gateway: Gateway) -> None:
        self.name = name
        self.gateway = gateway
        self.network = Proxy(gateway.port)
        self.client: Client | None = None
        self.tasks: set[asyncio.Task[None]] = set()
        self.deaf = self.away = False
        self.holds: list[tuple[float, float]] = []
        """When nothing passed its network, and all that was on its way arrived after it."""
        self.ids = 0
        self.obeyed: list[str] = []
        self.obeyed_at: dict[str, float] = {}
        self.shows: list[str] = []
        """Versions of playlists, as they came."""
        self.described: Json = {}
        self.states: dict[str, str] = {}
        """In the end, of each command."""
        self.story: list[tuple[float, str]] = []
        """What became of its connections and commands, and when."""
        self.sent: set[tuple[str, int, str]] = set()
        self.acked: set[tuple[str, int, str]] = set()
        self.refused = 0
        self.boots: list[str] = []
        self.skipped: set[tuple[str, int]] = set()
        self.start()

    def start(self) -> None:
        """What it held in memory is gone."""
        self.boot = f"{self.name}-{len(self.boots)}"
        self.boots.append(self.boot)
        self.number = 0
        self.held: list[Play] = []
        self.flights: dict[int, list[Play]] = {}

    def show(self, shown: list[str]) -> None:
        """Contents, each with the phases that will be told of it; of a skipped one none: a gap."""
        for phase in shown:
            self.number += 1
            if phase == "skipped":
                self.skipped.add((self.boot, self.number))
            if phase in ("start", "both"):
                self.held.append((self.number, "start"))
            if phase in ("end", "both"):
                self.held.append((self.number, "end"))

    def tell(self, what: str) -> None:
        self.story.append((time.time(), what))

    async def connect(self, patience: float = 4 * MOMENT) -> bool:
        """Whether it is let in. What an older connection still has on its way may arrive later."""
        await self.network_open()
        self.network.target = self.gateway.port
        self.flights.clear()
        try:
            async with asyncio.timeout(patience):
                client = await dial(self.network.port, device_token(self.name, f"org-{self.name}"))
        except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed):
            return False
        self.client = client
        self.tell("connected, deaf" if self.deaf else "connected")
        for work in (self.read(client), self.beat(client)):
            task = asyncio.create_task(work)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        return True

    async def network_open(self) -> None:
        if not self.network.port:
            await self.network.open()

    async def read(self, client: Client) -> None:
        try:
            while True:
                message: Json = json.loads(await client.connection.recv())
                if client is self.client:
                    await self.take(client, message)
        except ConnectionClosed:
            if client is self.client:
                self.client = None
                self.flights.clear()
                self.tell(f"connection ended: {client.connection.close_code}")

    async def beat(self, client: Client) -> None:
        try:
            while client is self.client:
                await client.send("heartbeat", {"metrics": {"cpuUsage": 1}})
                await asyncio.sleep(BEAT_SECONDS)
        except ConnectionClosed:
            pass

    async def take(self, client: Client, message: Json) -> None:
        data = message["data"]
        if message["event"] == "ack":
            flight = self.flights.pop(message["id"], [])
            if data["success"]:
                self.held = [play for play in self.held if play not in flight]
                self.acked |= {(self.boot, *play) for play in flight}
            else:
                assert data["retryable"], data
                self.refused += 1
        elif message["event"] == "command":
            self.tell(f"command {data['commandId']} came")
            if data["commandId"] not in self.obeyed:
                self.obeyed.append(data["commandId"])
                self.obeyed_at[data["commandId"]] = time.time()
        elif message["event"] == "playlist:update":
            self.tell(f"playlist {data['version']} came")
            self.shows.append(data["version"])
        if message["event"] != "ack" and "id" in message and not self.deaf:
            await client.send("ack", {"ok": True}, message["id"])

    async def send(self, plays: list[Play]) -> None:
        """On its way; the answer comes when it comes."""
        assert self.client is not None
        self.ids += 1
        self.flights[self.ids] = plays
        self.sent |= {(self.boot, *play) for play in plays}
        batch = [{"contentId": "spot", "seq": number, "phase": phase} for number, phase in plays]
        try:
            await self.client.send("content:impressions", {"boot": self.boot, "plays": batch}, self.ids)
        except ConnectionClosed:
            pass  # the reader finds out

    def hold(self) -> None:
        self.network.hold()
        self.holds.append((time.time(), math.inf))

    def mend(self) -> None:
        self.network.mend()
        self.holds = [(begin, min(end, time.time())) for begin, end in self.holds]

    def held_up(self, expires: float, came: float) -> bool:
        """Whether what came then was perhaps on its way when its time was over."""
        return any(begin < expires and came < end + 1 for begin, end in self.holds)

    async def cut(self) -> None:
        self.network.cut()
        if self.client is not None:
            await self.client.connection.wait_closed()
        self.client = None
        self.flights.clear()

    async def close(self) -> None:
        self.mend()
        await self.network.close()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=PATIENCE)


class Order:
    """A command as the backend that gave it sees it. Until it is `taken` it gives it again, under the same id."""

    def __init__(self, device: Device, seconds: int) -> None:
        self.id = uuid.uuid4().hex
        self.device = device
        self.seconds = seconds
        self.begun = 0.0
        """When it was given first: it may have been taken then, though the answer was lost."""
        self.expires = 0.0
        self.taken: float | None = None

    @property
    def over(self) -> bool:
        return self.id in self.device.obeyed or self.expires < time.time()

    async def give(self, gateway: Gateway) -> None:
        body = {"deviceId": self.device.name, "command": {"type": "reload", "commandId": self.id, "ttl": self.seconds}}
        self.begun = self.begun or time.time()
        try:
            answer = await call(gateway, "POST", "/internal/command", body)
        except (OSError, EOFError, TimeoutError):
            return
        assert answer.status in (200, 202, 503), answer
        if answer.status != 503:
            self.taken = time.time()
            self.expires = self.taken + self.seconds


class Push:
    """A playlist, as the backend sees it. It is given once: who does not know whether it was taken gives another."""

    def __init__(self, device: Device) -> None:
        self.version = uuid.uuid4().hex
        self.device = device
        self.begun = 0.0
        self.ended = math.inf
        self.taken = False

    async def give(self, gateway: Gateway) -> None:
        body = {"deviceId": self.device.name, "playlist": {"items": []}, "version": self.version}
        self.begun = time.time()
        try:
            answer = await call(gateway, "POST", "/push/playlist", body)
            assert answer.status in (200, 202, 503), answer
            self.taken = answer.status != 503
        except (OSError, EOFError, TimeoutError):
            pass
        finally:
            self.ended = time.time()


async def quiet(done: Any, seconds: float = MOMENT) -> None:
    """Until it is done, or for as long as that takes when all is well."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        await asyncio.sleep(0.002)
