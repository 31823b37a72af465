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
import math
import time
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

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

from tests.net.backend import call
from tests.night import MOMENT, OVERDUE, Device, Gateway, Order, Push, quiet
from tests.service_process import PATIENCE, until
from vizora_rt.app.play_script import MAX_BOOTS

T = TypeVar("T")

DEVICES = 2
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
            device.mend()

    async def connect(self, device: Device, data: st.DataObject) -> None:
        """Anew, whatever became of the connection before. A deaf one obeys, but its acks are lost."""
        device.mend()
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
        device.hold()

    async def mend(self, device: Device, data: st.DataObject) -> None:
        """What was held arrives, perhaps at a connection that another has superseded."""
        device.mend()
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
        requests = [Order(device, seconds) for seconds in lives]
        self.orders += requests
        await self.put(device, fate, requests, len(lives) % 2)

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
            device.mend()
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
            device.mend()
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
            self.gateway.freeze()
            await asyncio.sleep(OVERDUE)  # the ledger is being asked what to send again
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
        device.mend()
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
        requests = [order for order in self.orders if order.device is device]
        for order in requests:
            state, expired = device.states[order.id], order.expires < time.time()
            if order.id in device.obeyed:
                came = device.obeyed_at[order.id]
                late = (came - order.expires) * 1000 >= CLOCK_MS and not device.held_up(order.expires, came)
                assert not late, self.timeline(device, order, state)
                assert state == "acked" or (state == "expired" and expired), self.timeline(device, order, state)
            else:
                assert state == "expired" and expired, self.timeline(device, order, state)
        assert device.described["commandsWaiting"] == 0, "something waits for a device that has all"
        # Only those are in order of which one was taken before the other was given.
        for first in requests:
            for second in requests:
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
        assert not stored["waiting"] and device.shows[-1:] == [stored["version"]], "a playlist is lost"

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


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(tmp_path)
    with gateway.service:
        gateway.start()
        yield gateway


def play_on(gateway: Gateway, steps: int, a_night: int, *, same: bool) -> None:
    """Nights until so much has happened: of each four the first one that Hypothesis thinks of is quiet.

    With `same` they are the same ones each time: the search for new ones is the long test's.
    """
    nights = settings(
        max_examples=4,
        stateful_step_count=a_night,
        deadline=None,
        database=None,
        derandomize=same,
        # A night takes seconds: to look for the shortest that fails would take minutes.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with asyncio.Runner() as runner:
        machine = type("Night", (Machine,), {"gateway": gateway, "runner": runner})
        while gateway.happened < steps:
            try:
                run_state_machine_as_test(machine, settings=nights)
            except BaseException:
                if gateway.failure is not None:
                    raise gateway.failure from None
                raise
    told = ", ".join(f"{fate} {late:.1f} s" for fate, late in gateway.late.items())
    print(f"{gateway.happened} things befell, commands came within: {told}")


def test_some_nights(gateway: Gateway) -> None:
    play_on(gateway, 20, 10, same=True)


@pytest.mark.soak
def test_many_nights(gateway: Gateway) -> None:
    play_on(gateway, 600, 20, same=False)
