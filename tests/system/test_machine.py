"""Devices, networks and the whole gateway in one state machine: what is acked is recorded once, what is held arrives.

The gateway is a service of its own, with two workers and an embedded store. Each device reaches it through a network
that loses, repeats, reorders and breaks, while workers, the store and the service are killed. A device here is a model
written for this test: it keeps plays until they are acked, sends any of them again in any order, obeys commands, shows
playlists and sends heartbeats. The network stands still between two steps, the gateway does not.

How long a command may take once nothing is at fault any more is known: a device that keeps its connection is sent again
what it did not ack after an ack timeout, at most `MOST_PATIENCE`; what nobody was told of comes with a heartbeat; who
comes anew gets it at once. Here these are seconds, and a command that takes `PATIENCE` is lost.
"""

import asyncio
import json
import math
import os
import signal
import time
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.net.backend import API_KEY, call
from tests.net.peers import SECRETS, Client, Json, device_token, dial
from tests.net.proxy import Proxy
from tests.service import PATIENCE, Service, until
from vizora_rt.app.play_script import MAX_BOOTS
from vizora_rt.net import embedded

T = TypeVar("T")
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
if "vizora_rt.worker" in sys.orig_argv:
    from vizora_rt.app import commands
    from vizora_rt.net import orders
    commands.FIRST_PATIENCE, commands.MOST_PATIENCE = 0.5, 2.0
    orders.ACK_SECONDS = 0.1
"""
"""As sitecustomize of a worker: an ack is overdue after half a second, one and two, not 10 to 300, and a call waits for
it for a tenth of a second, not 4: so it is known of most commands which was taken before which."""
BEAT_SECONDS = 0.5
DEVICES = 2
MOMENT = 0.05
"""Seconds in which an answer comes when all is well; when it does not, the device goes on without."""
ACTS = {
    **{f"play {number}": "play" for number in range(8)},
    **{f"command {number}": "command" for number in range(6)},
    "playlist": "playlist",
    **{f"connect {number}": "connect" for number in range(2)},
    "reboot": "reboot",
    "cut": "cut",
    "hold": "hold",
    "mend": "mend",
    "worker": "kill_a_worker",
    "freeze": "freeze_the_store",
    "store": "kill_the_store",
    "service": "kill_the_service",
}
"""What may happen next, the usual more often."""

FATES_OF_PLAYS = ["heard", "on its way", "ack lost", "worker dies", "store dies", "store hangs"]
FATES_OF_COMMANDS = [
    "it is there",
    "it is away",
    "ack lost",
    "bell lost",
    "lost on its way",
    "worker dies",
    "store dies",
]
LAST = ["ack lost", "bell lost", "it is away", "store dies", "it expires", "playlist lost", "workers die"]
"""What befalls two commands, or two playlists, when all else is over, a device and night after the other."""
FATES_OF_PLAYLISTS = ["it is there", "it is away", "ack lost", "lost on its way", "worker dies", "store dies"]
CLOCK_MS = 1000
"""A command that expires while it is on its way may still be obeyed."""


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
        url = embedded.running(Path(self.service.env["VIZORA_STATE_DIR"]))
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

    async def cut(self) -> None:
        self.network.cut()
        if self.client is not None:
            await self.client.connection.wait_closed()
        self.client = None
        self.flights.clear()

    async def close(self) -> None:
        self.network.mend()
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


class Machine(RuleBasedStateMachine):
    """The rules that a night in the field plays by."""

    gateway: Gateway
    runner: asyncio.Runner

    @initialize()
    def begin(self) -> None:
        if self.gateway.failure is not None:
            raise self.gateway.failure
        self.acts: list[str] = []
        name = uuid.uuid4().hex[:8]
        self.devices = [Device(f"{name}-{number}", self.gateway) for number in range(DEVICES)]
        self.orders: list[Order] = []
        self.pushes: list[Push] = []
        self.calls: set[asyncio.Task[None]] = set()
        for device in self.devices:
            self.run(device.connect())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    @rule(data=st.data(), what=st.sampled_from(sorted(ACTS)))
    def night_goes_on(self, data: st.DataObject, what: str) -> None:
        """One rule for all: of several, Hypothesis leaves some out each night, and most faults take two.

        What is drawn must not depend on what the gateway did meanwhile: it is drawn first, and always.
        """
        self.gateway.happened += 1
        act, number = getattr(self, ACTS[what]), data.draw(st.integers(0, DEVICES - 1))
        self.acts.append(f"{ACTS[what]} {number}")
        with self.noted():
            self.run(act(self.devices[number], data))

    @contextmanager
    def noted(self) -> Iterator[None]:
        try:
            yield
        except Exception as failure:
            if not type(failure).__module__.startswith("hypothesis"):
                failure.add_note("the night: " + ", ".join(self.acts))
                self.gateway.failure = self.gateway.failure or failure
            raise

    # A device

    async def play(self, device: Device, data: st.DataObject) -> None:
        """It shows something, and sends some of what it holds: any of it, in any order, on its way already or not."""
        shown = st.lists(st.sampled_from(["start", "end", "both", "skipped"]), min_size=1, max_size=4)
        device.show(data.draw(shown))
        fate = data.draw(st.sampled_from(FATES_OF_PLAYS))
        picks = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=6, unique=True))
        if not device.held or (device.client is None and not await device.connect()):
            return
        plays = list(dict.fromkeys(device.held[pick % len(device.held)] for pick in picks))
        if fate == "ack lost":
            device.network.replies.shut()
        if fate == "store hangs" and not self.gateway.frozen:
            self.gateway.freeze()
        await device.send(plays)
        if fate == "worker dies":
            await asyncio.to_thread(self.gateway.kill_worker, len(plays) % 2)
        elif fate == "store dies":
            await asyncio.to_thread(self.gateway.kill_store)
        elif fate != "on its way":
            await quiet(lambda: not device.flights)
        if fate == "store hangs":
            await asyncio.to_thread(self.gateway.kill_store)
            await quiet(lambda: not device.flights)
        elif fate == "ack lost":
            await device.cut()
            device.network.mend()

    async def connect(self, device: Device, data: st.DataObject) -> None:
        """Anew, whatever became of the connection before. A deaf one obeys, but its acks are lost."""
        device.network.mend()
        device.deaf = data.draw(st.booleans())
        await device.connect()

    async def reboot(self, device: Device, data: st.DataObject) -> None:
        if len(device.boots) < MAX_BOOTS:
            await device.cut()
            device.start()

    # Its network

    async def cut(self, device: Device, data: st.DataObject) -> None:
        await device.cut()

    async def hold(self, device: Device, data: st.DataObject) -> None:
        """Half a connection: both ends believe in it."""
        device.network.hold()

    async def mend(self, device: Device, data: st.DataObject) -> None:
        """What was held arrives, perhaps at a connection that another has superseded."""
        device.network.mend()
        await asyncio.sleep(MOMENT)

    # The gateway

    async def kill_a_worker(self, device: Device, data: st.DataObject) -> None:
        await asyncio.to_thread(self.gateway.kill_worker, data.draw(st.integers(0, 1)))

    async def freeze_the_store(self, device: Device, data: st.DataObject) -> None:
        """Or have it go on."""
        if self.gateway.frozen:
            self.gateway.thaw()
        else:
            self.gateway.freeze()

    async def kill_the_store(self, device: Device, data: st.DataObject) -> None:
        await asyncio.to_thread(self.gateway.kill_store)

    async def kill_the_service(self, device: Device, data: st.DataObject) -> None:
        await asyncio.to_thread(self.gateway.kill_service)

    # A backend

    async def command(self, device: Device, data: st.DataObject) -> None:
        """Some commands. The backend waits a moment for each answer, then gives the next one meanwhile."""
        lives = data.draw(st.lists(st.sampled_from([1, 300, 300]), min_size=1, max_size=3))
        fate = data.draw(st.sampled_from(FATES_OF_COMMANDS))
        orders = [Order(device, seconds) for seconds in lives]
        self.orders += orders
        await self.put(device, fate, orders, len(lives) % 2)

    async def playlist(self, device: Device, data: st.DataObject) -> None:
        fate = data.draw(st.sampled_from(FATES_OF_PLAYLISTS))
        self.pushes.append(Push(device))
        await self.put(device, fate, self.pushes[-1:], data.draw(st.integers(0, 1)))

    async def put(self, device: Device, fate: str, given: Sequence[Order | Push], worker: int) -> None:
        deaf = device.deaf
        if fate == "it is away":
            await device.cut()
            await asyncio.sleep(MOMENT)
        elif device.client is None:
            await device.connect()
        if fate == "lost on its way":
            device.network.replies.shut()
        elif fate == "ack lost":
            device.deaf = True
        elif fate == "bell lost" and not self.gateway.frozen:
            await asyncio.to_thread(self.gateway.deafen)
        for each in given:
            await self.call(each.give(self.gateway))
        device.deaf = deaf
        if fate == "lost on its way":
            await device.cut()
            device.network.mend()
        elif fate == "worker dies":
            await asyncio.to_thread(self.gateway.kill_worker, worker)
        elif fate == "store dies":
            await asyncio.to_thread(self.gateway.kill_store)

    async def call(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)
        await asyncio.wait([task], timeout=MOMENT)

    # What always holds

    @invariant()
    def acked_is_recorded_once(self) -> None:
        if self.gateway.frozen:
            return
        with self.noted():
            self.check_recorded()

    def check_recorded(self) -> None:
        for device in self.devices:
            found = self.recorded(device)
            assert len(found) == len(set(found)), "a play is there twice"
            assert device.acked <= set(found), "a play was acked and is not there"
            assert set(found) <= device.sent, "a play is there that was never sent"

    def recorded(self, device: Device) -> list[tuple[str, int, str]]:
        entries = [entry for entry in until(self.readable) if entry["device_id"] == device.name]
        rows = [
            (*entry["play_id"].split(":"), entry["phase"]) for entry in entries if entry["device_id"] == device.name
        ]
        return [(boot, int(number), phase) for _, boot, number, phase in rows]

    def readable(self) -> list[dict[str, str]] | None:
        """The books, when the store is not just being started again. An empty one is read once more, for nothing."""
        try:
            return [{"device_id": "", "play_id": ""}, *self.gateway.entries()]
        except redis.ConnectionError:
            return None

    # The end: faults cease, and all that is held arrives

    def teardown(self) -> None:
        if not hasattr(self, "devices"):
            return
        try:
            with self.noted():
                self.run(self.settle())
                self.check_recorded()
                for device in self.devices:
                    self.check_plays(device)
                    self.check_commands(device)
                    self.check_playlists(device)
        finally:
            self.run(self.leave())

    async def settle(self) -> None:
        """Who is connected stays so: what it did not ack must come again on that connection."""
        if self.gateway.frozen:
            self.gateway.thaw()
        for device in self.devices:
            device.deaf = False
            device.network.mend()
        self.ceased = time.time()
        staying = [asyncio.create_task(self.stay(device)) for device in self.devices]
        try:
            async with asyncio.timeout(3 * PATIENCE):
                await asyncio.gather(*(self.drain(device) for device in self.devices))
            if self.calls:
                await asyncio.wait(self.calls)
            for order in self.orders:
                while order.taken is None:
                    await order.give(self.gateway)
            await self.over()
            for device in self.devices:
                self.gateway.trials += 1
                await self.trial(device, LAST[self.gateway.trials % len(LAST)])
            for device in self.devices:
                await self.read_books(device)
        finally:
            for task in staying:
                task.cancel()
            await asyncio.wait(staying)

    async def over(self) -> None:
        """All commands have come, or have expired."""
        await quiet(lambda: all(order.over for order in self.orders), PATIENCE)
        for order in self.orders:
            assert order.over, self.timeline(order.device, order, "lost")

    async def trial(self, device: Device, fate: str) -> None:
        """Two commands that one thing befalls, and nothing after it: what came before often hides what is lost."""
        self.acts.append(f"in the end: {fate}")
        if fate == "playlist lost":
            await self.lose_a_playlist(device)
            return
        first, second = Order(device, 1 if fate == "it expires" else 300), Order(device, 300)
        self.orders += [first, second]
        device.away = fate in ("it is away", "it expires")
        device.deaf = fate in ("ack lost", "store dies", "workers die")
        if device.away:
            await device.cut()
        while first.taken is None:
            await first.give(self.gateway)
        if fate == "bell lost":
            second = await self.lose_a_bell(second)
        if fate == "store dies":
            await asyncio.to_thread(self.gateway.kill_store)
        elif fate == "workers die":
            for worker in range(2):
                await asyncio.to_thread(self.gateway.kill_worker, worker)
        while second.taken is None:
            await second.give(self.gateway)
        if fate == "ack lost":
            await quiet(lambda: first.over, PATIENCE)
        elif fate == "it expires":
            await asyncio.sleep(first.expires + 2 * CLOCK_MS / 1000 - time.time())
        device.away = device.deaf = False
        ended = time.time()
        await self.over()
        late = device.obeyed_at.get(second.id, math.inf) - ended
        self.gateway.late[fate] = max(late, self.gateway.late.get(fate, 0.0))

    async def lose_a_bell(self, order: Order) -> Order:
        """The worker that has the device is asked every other time, and needs no bell."""
        for _ in range(8):
            await asyncio.to_thread(self.gateway.deafen)
            while order.taken is None:
                await order.give(self.gateway)
            await quiet(lambda order=order: order.over, MOMENT)
            if not order.over:
                break
            self.orders.append(order := Order(order.device, 300))
        return order

    async def lose_a_playlist(self, device: Device) -> None:
        """It is written to a connection that leads nowhere any more, and so is the one that replaces it."""
        await quiet(lambda: device.client, PATIENCE)
        device.network.replies.shut()
        for push in (Push(device), Push(device)):
            self.pushes.append(push)
            while not push.taken:
                await push.give(self.gateway)
        await device.cut()
        device.network.mend()
        await quiet(lambda: device.shows[-1:] == [push.version], PATIENCE)

    async def stay(self, device: Device) -> None:
        """As players do: whenever the connection has ended, it comes again."""
        while True:
            if device.client is None and not device.away:
                await device.connect(PATIENCE)
            await asyncio.sleep(MOMENT)

    async def drain(self, device: Device) -> None:
        """One batch at a time, again when there is no answer."""
        while device.held:
            if device.client is None:
                await asyncio.sleep(MOMENT)
                continue
            device.flights.clear()
            await device.send(device.held[:100])
            await quiet(lambda: not device.flights, 1.0)

    async def read_books(self, device: Device) -> None:
        """What the gateway says of a device in the end, when nothing waits for it and all states are final."""
        deadline = time.monotonic() + PATIENCE
        while True:
            device.described = (await call(self.gateway, "GET", f"/devices/{device.name}")).body
            device.states = {}
            for order in [order for order in self.orders if order.device is device]:
                answer = await call(self.gateway, "GET", f"/commands/{order.id}")
                device.states[order.id] = answer.body["devices"][device.name]["state"]
                order.expires = datetime.fromisoformat(answer.body["expiresAt"]).timestamp()
            waiting = device.described.get("commandsWaiting") or device.described.get("playlist", {}).get("waiting")
            final = not {"queued", "sent"} & set(device.states.values())
            if (final and not waiting) or time.monotonic() > deadline:
                return
            await asyncio.sleep(MOMENT)

    def check_plays(self, device: Device) -> None:
        recorded = self.recorded(device)
        answer = self.run(call(self.gateway, "GET", f"/devices/{device.name}/plays"))
        told = {boot["boot"]: boot for boot in answer.body["boots"]} if answer.status == 200 else {}
        for boot in device.boots:
            numbers = {number for of, number, _ in recorded if of == boot}
            if not numbers:
                assert boot not in told
                continue
            gaps = set(range(1, max(numbers))) - numbers
            reported = {n for low, high in told[boot]["holes"] for n in range(low, high + 1)}
            assert reported == gaps, "gaps reported are not the gaps there are"
            if boot == device.boot:
                skipped = {number for of, number in device.skipped if of == boot}
                assert gaps == {number for number in skipped if number < max(numbers)}
        held = {(device.boot, number) for number in range(1, device.number + 1)} - device.skipped
        assert {(boot, number) for boot, number, _ in recorded if boot == device.boot} == held

    def check_commands(self, device: Device) -> None:
        orders = [order for order in self.orders if order.device is device]
        for order in orders:
            state, expired = device.states[order.id], order.expires < time.time()
            if order.id in device.obeyed:
                assert (device.obeyed_at[order.id] - order.expires) * 1000 < CLOCK_MS
                assert state == "acked" or (state == "expired" and expired), self.timeline(device, order, state)
            else:
                assert state == "expired" and expired, self.timeline(device, order, state)
        assert device.described["commandsWaiting"] == 0, "something waits for a device that has all"
        # Only those are in order of which one was taken before the other was given.
        for first in orders:
            for second in orders:
                before = first.taken is not None and first.taken < second.begun
                if before and {first.id, second.id} <= set(device.obeyed):
                    assert device.obeyed.index(first.id) < device.obeyed.index(second.id), "out of order"

    def check_playlists(self, device: Device) -> None:
        """What it shows is what was pushed last, as far as the backend can know."""
        pushes = [push for push in self.pushes if push.device is device]
        taken = [push for push in pushes if push.taken]
        last = {push.version for push in pushes if not any(other.begun > push.ended for other in taken)}
        stored = device.described.get("playlist")
        if stored is None:
            assert not taken and not device.shows
            return
        assert stored["version"] in last, "an older playlist has taken the place of a newer one"
        assert not stored["waiting"] and device.shows[-1] == stored["version"], "a playlist is lost"

    def timeline(self, device: Device, order: Order, state: str) -> str:
        """What became of a command that is not where it should be."""
        rows = [
            *device.story,
            (order.begun, "given first"),
            (order.taken or 0.0, "taken"),
            (self.ceased, "all faults cease"),
        ]
        for record in self.gateway.service.records:
            at = datetime.fromisoformat(record["time"]).timestamp()
            rows.append((at, f"{record['event']} {record.get('pid', '')} {record.get('reason', '')}"))
        lines = [f"{at - self.ceased:9.3f} {what}" for at, what in sorted(rows) if at > order.begun - 5]
        return f"command {order.id} is {state}\n" + "\n".join(lines)

    async def leave(self) -> None:
        for device in self.devices:
            await device.close()
        for task in self.calls:
            task.cancel()
        if self.calls:
            await asyncio.wait(self.calls)


async def quiet(done: Any, seconds: float = MOMENT) -> None:
    """Until it is done, or for as long as that takes when all is well."""
    deadline = time.monotonic() + seconds
    while not done() and time.monotonic() < deadline:
        await asyncio.sleep(0.002)


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    with gateway.service:
        gateway.start()
        yield gateway


NIGHTS = settings(
    max_examples=4,
    stateful_step_count=20,
    deadline=None,
    database=None,
    # A night takes seconds: to look for the shortest that fails would take minutes.
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def play_on(gateway: Gateway, steps: int) -> None:
    """Nights until so much has happened: the first ones that Hypothesis thinks of are quiet."""
    with asyncio.Runner() as runner:
        machine = type("Night", (Machine,), {"gateway": gateway, "runner": runner})
        while gateway.happened < steps:
            try:
                run_state_machine_as_test(machine, settings=NIGHTS)
            except BaseException:
                if gateway.failure is not None:
                    raise gateway.failure from None
                raise
    told = ", ".join(f"{fate} {late:.1f} s" for fate, late in gateway.late.items())
    print(f"{gateway.happened} things befell, commands came within: {told}")


def test_some_nights(gateway: Gateway) -> None:
    play_on(gateway, 30)


@pytest.mark.soak
def test_many_nights(gateway: Gateway) -> None:
    play_on(gateway, 600)
