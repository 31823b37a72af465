"""Bring what waits in the ledger to the devices of this worker: send, await the ack, record it, tell who asked.

`app.commands.Delivery` decides; this executes it. A device costs nothing here while nothing waits for it. What happens
within one turn of the loop goes to Redis together: states per command, then the settling of each ledger, so that a
command whose record says `acked` may be delivered once more after a crash, but never the other way round. In a cluster
the record may be on a shard that is away, or it may be full: nobody waits for it, its states are written again.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from time import perf_counter_ns
from typing import Any, Final

from vizora_rt.app import commands, events
from vizora_rt.app.commands import Delivery, Do, Entry, Phase
from vizora_rt.app.state import Device, Peer, State
from vizora_rt.errors import NORMAL
from vizora_rt.metrics import Metrics
from vizora_rt.net.ledger import Fields, Found, Ledger
from vizora_rt.net.timers import Wheel
from vizora_rt.wire import messages

Tell = Callable[[str, dict[str, object]], None]
"""Ring the worker that asked, given as `node worker`."""

ASKERS_WAIT_MS: Final = 5000
"""An HTTP call waits 4 s for an ack: who asked longer ago is not told."""

SCREENSHOT_BYTES: Final = 1_572_864
SCREENSHOT_MS: Final = 600_000
"""A screen that was asked for a screenshot may send a message of 1.5 MiB for 10 min, then its usual limit holds."""

DEVICES_A_BELL: Final = 500

MOST_UNWRITTEN: Final = 10_000
"""States that Redis has not taken: those of one broadcast. Beyond, a record says `sent`, and in the end `expired`."""
AGAIN_SECONDS: Final = 1.0


class Courier:
    """One device's delivery. An entry of the timer wheel while an ack is awaited."""

    __slots__ = ("ack_id", "deliveries", "delivery", "device", "due", "entry", "peer", "sent", "verdict", "wakes")

    def __init__(self, deliveries: "Deliveries", device: Device, peer: Peer) -> None:
        self.deliveries = deliveries
        self.delivery = Delivery()
        self.device = device
        self.peer = peer
        self.entry: Entry | None = None
        self.ack_id = 0
        self.due = self.wakes = 0.0
        self.sent = 0
        self.verdict = ("acked", "")

    def expect(self, wheel: Wheel, now: float, seconds: float) -> None:
        """An ack is overdue in `seconds`."""
        self.due = now + seconds
        if not self.wakes or self.due < self.wakes:
            self.wakes = self.due
            wheel.add(self, seconds)

    def on_timer(self, now: float) -> float | None:
        if not self.wakes or now < self.wakes:
            return None  # an entry of an earlier end took over
        self.wakes = 0.0
        if self.delivery.phase is Phase.AWAITING and self.deliveries.current(self):
            if now < self.due:
                self.wakes = self.due
                return self.due - now
            self.deliveries.overdue(self)
        return None


class Deliveries:
    """One worker's couriers."""

    def __init__(self, metrics: Metrics, wheel: Wheel, ledger: Ledger, state: State, tell: Tell) -> None:
        self._metrics = metrics
        self._wheel = wheel
        self._ledger = ledger
        self._state = state
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._ack_timer = metrics.timer("command_ack_duration_seconds")
        self._ids = count(1)
        self._couriers: dict[Device, Courier] = {}
        self._armed = False
        self._states: dict[str, dict[str, str]] = {}
        self._unwritten: dict[tuple[str, str], str] = {}
        self._settling: list[tuple[Courier, Entry, str, str]] = []
        self._news: dict[tuple[str, str], list[list[str]]] = {}
        self._outcomes: dict[tuple[Entry, str, str], list[tuple[str, str]]] = {}

    def connected(self, device: Device, waiting: bool) -> None:
        """The device has a new connection: what was under way to an older one begins anew."""
        self._couriers.pop(device, None)
        if device.screenshot_until > _now() and device.peer is not None:
            device.peer.allow(SCREENSHOT_BYTES)
        if waiting:
            self.look(device)

    def disconnected(self, device: Device) -> None:
        self._couriers.pop(device, None)

    def look(self, device: Device) -> None:
        """Something may wait for the device."""
        if device.peer is None or device.organization_id in self._state.suspended:
            return
        courier = self._couriers.get(device)
        if courier is None:
            courier = self._couriers[device] = Courier(self, device, device.peer)
        self._do(courier, courier.delivery.look())

    def on_ack(self, device: Device, ack_id: int | None, data: Any) -> bool:
        """A client's ack. False when nothing waits for it."""
        courier = self._couriers.get(device)
        if courier is None or courier.entry is None or courier.ack_id != ack_id:
            return False
        entry = courier.entry
        if courier.sent:
            self._ack_timer.observe(perf_counter_ns() - courier.sent)
            courier.sent = 0
        courier.verdict = commands.verdict(data)
        if courier.delivery.acked() is Do.RECORD:
            self._settle(courier, entry, *courier.verdict)
        return True

    def overdue(self, courier: Courier) -> None:
        """No ack came in time."""
        if courier.entry is not None and courier.entry.type == "disable":
            courier.peer.close(NORMAL)  # whether it obeys or not
        self._do(courier, courier.delivery.overdue())

    def current(self, courier: Courier) -> bool:
        """Whether the courier's connection is still the device's."""
        return self._couriers.get(courier.device) is courier

    def _do(self, courier: Courier, do: Do) -> None:
        if do is Do.LOOK:
            if not self._ledger.look(courier.device.id, _now(), lambda found: self._found(courier, found)):
                courier.delivery.failed()
        elif do is Do.SEND:
            self._send(courier)
        elif do is Do.RECORD and courier.entry is not None:
            self._settle(courier, courier.entry, *courier.verdict)
        elif courier.delivery.phase is Phase.IDLE and self.current(courier):
            del self._couriers[courier.device]

    def _found(self, courier: Courier, found: Found | None) -> None:
        if found is None:
            courier.delivery.failed()
            return
        device, entry = courier.device, found.next
        for each in found.expired:
            self.expired(device.id, device.organization_id, each)
        if not self.current(courier):
            return
        device.playlist_version = found.version
        # What was not sent yet waits for a client that does not read. When it has caught up, its heartbeats look again.
        waits = courier.peer.stalled and courier.delivery.attempt == 0
        if device.organization_id in self._state.suspended or not courier.peer.open or waits:
            del self._couriers[device]
            return
        do = courier.delivery.found(entry.id if entry is not None else None)
        if do is Do.SEND and courier.delivery.attempt == 0:
            courier.ack_id = next(self._ids)
            courier.verdict = ("acked", "")
        courier.entry = entry
        self._do(courier, do)

    def _send(self, courier: Courier) -> None:
        entry = courier.entry
        assert entry is not None
        self._metrics.counter("commands_total", self._metrics.command(entry.type), "sent").value += 1
        if entry.type == "screenshot":
            courier.device.screenshot_until = _now() + SCREENSHOT_MS
            courier.peer.allow(SCREENSHOT_BYTES)
            self._wheel.add(_Limit(courier.device, courier.peer), SCREENSHOT_MS / 1000)
        if entry.type == commands.TOKEN or not courier.peer.acks_deliveries:
            # No ack will come. Kept until it expires, a reboot would be obeyed again each time that the screen is back;
            # a playlist does come again then, for nobody knows whether it arrived.
            courier.peer.send(entry.event, entry.body)
            courier.verdict = ("acked" if courier.peer.acks_deliveries else "sent", "")
            if courier.delivery.acked() is Do.RECORD:
                self._settle(courier, entry, *courier.verdict)
            return
        courier.sent = perf_counter_ns()
        patience = courier.delivery.patience
        if entry.expires:
            # What has expired must not hold up what is behind it.
            patience = min(patience, max(0.0, (entry.expires + 1 - _now()) / 1000))
        courier.expect(self._wheel, self._loop.time(), patience)
        if entry.type != commands.PLAYLIST:
            self._states.setdefault(entry.id, {})[f"d:{courier.device.id}"] = f"sent {_now()}"
            self._soon()
        courier.peer.send(entry.event, entry.body, courier.ack_id)

    def _settle(self, courier: Courier, entry: Entry, state: str, error: str) -> None:
        if entry.type not in commands.EVENTS:
            value = f"{state} {_now()} {error}".rstrip()
            self._states.setdefault(entry.id, {})[f"d:{courier.device.id}"] = value
        self._settling.append((courier, entry, state, error))
        self._soon()

    def _soon(self) -> None:
        if not self._armed:
            self._armed = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """What this turn of the loop brought."""
        self._armed = False
        states, self._states = self._states, {}
        settling, self._settling = self._settling, []
        for command_id, fields in states.items():
            self._ledger.states(command_id, list(fields.items()), done=partial(self._written, command_id))
        now = _now()
        for courier, entry, state, error in settling:
            self._record(courier, entry, state, error, now)
        outcomes, self._outcomes = self._outcomes, {}
        if outcomes:
            self._ledger.happened(
                [event for outcome, rows in outcomes.items() for event in _events(outcome, rows, now)]
            )
        news, self._news = self._news, {}
        for (asker, entry_id), rows in news.items():
            for start in range(0, len(rows), DEVICES_A_BELL):
                self._tell(asker, {"done": entry_id, "of": rows[start : start + DEVICES_A_BELL]})

    def _written(self, command_id: str, fields: Fields, taken: bool) -> None:
        """What Redis did not take is kept for later. The script lets no state go back, whatever has come since."""
        if taken:
            return
        if not self._unwritten:
            self._loop.call_later(AGAIN_SECONDS, self._write_again)
        room = MOST_UNWRITTEN - len(self._unwritten)
        self._metrics.counter("limits_exceeded_total", "command_states").value += max(0, len(fields) - room)
        for name, value in islice(fields, room):
            if not value.startswith("sent"):
                self._unwritten[command_id, name] = value
            else:
                self._unwritten.setdefault((command_id, name), value)

    def _write_again(self) -> None:
        unwritten, self._unwritten = self._unwritten, {}
        for (command_id, name), value in unwritten.items():
            fields = self._states.setdefault(command_id, {})
            if fields.get(name, "sent").startswith("sent"):
                fields[name] = value
        self._soon()

    def _record(self, courier: Courier, entry: Entry, state: str, error: str, now: int) -> None:
        device = courier.device

        def settled(found: Found | None) -> None:
            if found is not None:
                if found.taken:  # else it had expired elsewhere, or its ack came twice, and was counted there
                    self._over(device.id, device.organization_id, entry, state, error)
                if entry.type == "disable" and self.current(courier):
                    courier.peer.close(NORMAL)
            self._found(courier, found)

        if not self._ledger.settle(device.id, entry, now, settled, state != "sent"):
            courier.delivery.failed()

    def expired(self, device_id: str, organization_id: str, entry: Entry) -> None:
        """An entry has left the ledger because its time was over."""
        self._states.setdefault(entry.id, {})[f"d:{device_id}"] = f"expired {_now()}"
        self._over(device_id, organization_id, entry, "expired", "")

    def _over(self, device_id: str, organization_id: str, entry: Entry, state: str, error: str) -> None:
        """An entry has come to its end: count it, tell backends and who asked."""
        now = _now()
        if state != "sent":  # which was counted then
            self._metrics.counter("commands_total", self._metrics.command(entry.type), state).value += 1
        if entry.type != commands.TOKEN:
            self._outcomes.setdefault((entry, state, error), []).append((device_id, organization_id))
        if now - entry.created < ASKERS_WAIT_MS:
            self._news.setdefault((entry.asker, entry.id), []).append([device_id, state, error])
        self._soon()


class _Limit:
    """The end of a larger limit for messages. An entry of the timer wheel."""

    __slots__ = ("device", "peer")

    def __init__(self, device: Device, peer: Peer) -> None:
        self.device = device
        self.peer = peer

    def on_timer(self, now: float) -> float | None:
        if self.device.screenshot_until <= _now():
            self.peer.allow(0)
        return None


def _events(
    outcome: tuple[Entry, str, str], rows: list[tuple[str, str]], now: int
) -> Iterator[tuple[bytes | str | int, ...]]:
    """What backends are told of an outcome: the same of each device, written once."""
    entry, state, error = outcome
    detail = {"commandId": entry.id, "command": entry.type, "state": state, **({"error": error} if error else {})}
    text = messages.dumps(detail)
    for device_id, organization_id in rows:
        yield events.entry("command", device_id, organization_id, now, text)


def _now() -> int:
    return time.time_ns() // 1_000_000
