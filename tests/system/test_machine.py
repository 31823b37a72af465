"""Devices, networks and the whole gateway in one state machine: what is acked is recorded once, what is held arrives.

The gateway is a service of its own, with two workers and an embedded store. Each device reaches it through a network
that loses, repeats, reorders and breaks, while workers, the store and the service are killed. A device here is a model
written for this test: it keeps plays until they are acked, sends any of them again in any order, and obeys commands.
The network stands still between two steps, the gateway does not.
"""

import asyncio
import json
import os
import signal
import time
import uuid
from collections.abc import Coroutine, Iterator
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
    "VIZORA_REDIS__RECONNECT_MAX_SECONDS": "0.1",
    "VIZORA_SERVER__DRAIN_SECONDS": "1",
}
DEVICES = 2
MOMENT = 0.05
"""Seconds in which an answer comes when all is well; when it does not, the device goes on without."""
ACTS = {
    **{f"play {number}": "play" for number in range(8)},
    **{f"command {number}": "command" for number in range(6)},
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
FATES_OF_COMMANDS = ["it is there", "it is away", "lost on its way", "worker dies", "store dies"]
CLOCK_MS = 1000
"""A command that expires while it is on its way may still be obeyed."""


class Gateway:
    """The service, its store, and the hands that hurt both."""

    def __init__(self, folder: Path) -> None:
        self.service = Service(folder, ENV, workers=2)
        self.frozen = False
        self.happened = 0

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
        self.readers: set[asyncio.Task[None]] = set()
        self.deaf = False
        self.ids = 0
        self.obeyed: list[str] = []
        self.obeyed_at: dict[str, float] = {}
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
        reader = asyncio.create_task(self.read(client))
        self.readers.add(reader)
        reader.add_done_callback(self.readers.discard)
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
        elif message["event"] == "command" and data["commandId"] not in self.obeyed:
            self.obeyed.append(data["commandId"])
            self.obeyed_at[data["commandId"]] = time.time()
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
        if self.readers:
            await asyncio.wait(self.readers, timeout=PATIENCE)


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


class Machine(RuleBasedStateMachine):
    """The rules that a night in the field plays by."""

    gateway: Gateway
    runner: asyncio.Runner

    @initialize()
    def begin(self) -> None:
        name = uuid.uuid4().hex[:8]
        self.devices = [Device(f"{name}-{number}", self.gateway) for number in range(DEVICES)]
        self.orders: list[Order] = []
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
        act = getattr(self, ACTS[what])
        self.run(act(data.draw(st.sampled_from(self.devices)), data))

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
        if fate == "it is away":
            await device.cut()
            await asyncio.sleep(MOMENT)
        elif device.client is None:
            await device.connect()
        if fate == "lost on its way":
            device.network.replies.shut()
        for seconds in lives:
            order = Order(device, seconds)
            self.orders.append(order)
            await self.call(order.give(self.gateway))
        if fate == "lost on its way":
            await device.cut()
            device.network.mend()
        elif fate == "worker dies":
            await asyncio.to_thread(self.gateway.kill_worker, len(lives) % 2)
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
            self.run(self.settle())
            self.acked_is_recorded_once()
            for device in self.devices:
                self.check_plays(device)
                self.check_commands(device)
        finally:
            self.run(self.leave())

    async def settle(self) -> None:
        if self.gateway.frozen:
            self.gateway.thaw()
        for device in self.devices:
            device.deaf = False
            device.network.mend()
        await asyncio.gather(*(self.drain(device) for device in self.devices))
        for order in self.orders:
            while order.taken is None:
                if self.calls:
                    await asyncio.wait(self.calls)
                await order.give(self.gateway)
        # Each ack that was lost holds the next command back for an ack timeout or two.
        await quiet(lambda: all(order.over for order in self.orders), 8 * PATIENCE)

    async def drain(self, device: Device) -> None:
        """As players do: one batch at a time, anew when there is no answer."""
        async with asyncio.timeout(3 * PATIENCE):
            while not await device.connect(PATIENCE):
                await asyncio.sleep(MOMENT)
            while device.held:
                if device.client is None:
                    await device.connect(PATIENCE)
                    continue
                device.flights.clear()
                await device.send(device.held[:100])
                await quiet(lambda: not device.flights, 1.0)

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
            answer = self.run(call(self.gateway, "GET", f"/commands/{order.id}"))
            state = answer.body["devices"][device.name]["state"]
            if order.id in device.obeyed:
                assert (device.obeyed_at[order.id] - order.expires) * 1000 < CLOCK_MS
            else:
                assert state == "expired" and order.expires < time.time(), f"a command is lost: {state}"
        # Only those are in order of which one was taken before the other was given.
        for first in orders:
            for second in orders:
                before = first.taken is not None and first.taken < second.begun
                if before and {first.id, second.id} <= set(device.obeyed):
                    assert device.obeyed.index(first.id) < device.obeyed.index(second.id), "out of order"

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


def play_on(gateway: Gateway, steps: int) -> None:
    """Nights until so much has happened: the first ones that Hypothesis thinks of are quiet."""
    with asyncio.Runner() as runner:
        machine = type("Night", (Machine,), {"gateway": gateway, "runner": runner})
        while gateway.happened < steps:
            run_state_machine_as_test(
                machine,
                settings=settings(
                    max_examples=4,
                    stateful_step_count=20,
                    deadline=None,
                    # A night takes seconds: to look for the shortest that fails would take minutes.
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
            )


def test_some_nights(gateway: Gateway) -> None:
    play_on(gateway, 60)


@pytest.mark.soak
def test_many_nights(gateway: Gateway) -> None:
    play_on(gateway, 600)
