"""Bring what waits in the ledger to the devices of this worker: send, await the ack, record it, tell who asked.

`app.commands.Delivery` decides; this executes it. A device costs nothing here while nothing waits for it. What happens
within one turn of the loop goes to Redis together: states per command, then the settling of each ledger, so that a
command whose record says `acked` may be delivered once more after a crash, but never the other way round. In a cluster
the record may be on a shard that is away, or it may be full: nobody waits for it, its states are written again.

Over 300 lines because the states of one delivery are told in one place.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice
from time import perf_counter_ns
from typing import Any, Final

from vizora_rt.app import commands, events
from vizora_rt.app.commands import Action, Delivery, Phase, QueuedCommand
from vizora_rt.app.state import Device, Peer, State
from vizora_rt.errors import NORMAL
from vizora_rt.net.commands.queue import CommandQueue, Fields, QueueHead
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire import messages

Tell = Callable[[str, dict[str, object]], None]
"""Ring the worker that asked, given as `node worker`."""

CALLERS_WAIT_MS: Final = 5000
"""An HTTP call waits 4 s for an ack: who asked longer ago is not told."""

SCREENSHOT_BYTES: Final = 1_572_864
SCREENSHOT_MS: Final = 600_000
"""A screen that was asked for a screenshot may send a message of 1.5 MiB for 10 min, then its usual limit holds."""

DEVICES_A_MESSAGE: Final = 500

MOST_UNWRITTEN: Final = 10_000
"""States that Redis has not taken: those of one broadcast. Beyond, a record says `sent`, and in the end `expired`."""
AGAIN_SECONDS: Final = 1.0


class InFlight:
    """One device's delivery. An entry of the timer wheel while an ack is awaited."""

    __slots__ = ("ack_id", "deliveries", "delivery", "device", "due", "entry", "peer", "sent", "timer_at", "verdict")

    def __init__(self, deliveries: "Deliveries", device: Device, peer: Peer) -> None:
        self.deliveries = deliveries
        self.delivery = Delivery()
        self.device = device
        self.peer = peer
        self.entry: QueuedCommand | None = None
        self.ack_id = 0
        self.due = self.timer_at = 0.0
        self.sent = 0
        self.verdict = ("acked", "")

    def await_ack(self, wheel: Wheel, now: float, seconds: float) -> None:
        """An ack is overdue in `seconds`."""
        self.due = now + seconds
        if not self.timer_at or self.due < self.timer_at:
            self.timer_at = self.due
            wheel.add(self, seconds)

    def on_timer(self, now: float) -> float | None:
        if not self.timer_at or now < self.timer_at:
            return None  # an entry of an earlier end took over
        self.timer_at = 0.0
        if self.delivery.phase is Phase.AWAITING and self.deliveries.current(self):
            if now < self.due:
                self.timer_at = self.due
                return self.due - now
            self.deliveries.overdue(self)
        return None


class Deliveries:
    """One worker's couriers."""

    def __init__(self, metrics: Metrics, wheel: Wheel, ledger: CommandQueue, state: State, tell: Tell) -> None:
        self._metrics = metrics
        self._wheel = wheel
        self._queue = ledger
        self._state = state
        self._send_to_worker = tell
        self._loop = asyncio.get_running_loop()
        self._ack_timer = metrics.timer("command_ack_duration_seconds")
        self._ids = count(1)
        self._in_flight: dict[Device, InFlight] = {}
        self._armed = False
        self._states: dict[str, dict[str, str]] = {}
        self._unwritten: dict[tuple[str, str], str] = {}
        self._settling: list[tuple[InFlight, QueuedCommand, str, str]] = []
        self._results: dict[tuple[str, str], list[list[str]]] = {}
        self._outcomes: dict[tuple[QueuedCommand, str, str], list[tuple[str, str]]] = {}

    def connected(self, device: Device, waiting: bool) -> None:
        """The device has a new connection: what was under way to an older one begins anew."""
        self._in_flight.pop(device, None)
        if device.screenshot_until > _now() and device.peer is not None:
            device.peer.set_message_limit(SCREENSHOT_BYTES)
        if waiting:
            self.look(device)

    def disconnected(self, device: Device) -> None:
        self._in_flight.pop(device, None)

    def look(self, device: Device) -> None:
        """Something may wait for the device."""
        if device.peer is None or device.organization_id in self._state.suspended:
            return
        in_flight = self._in_flight.get(device)
        if in_flight is None:
            in_flight = self._in_flight[device] = InFlight(self, device, device.peer)
        self._do(in_flight, in_flight.delivery.look())

    def on_ack(self, device: Device, ack_id: int | None, data: Any) -> bool:
        """A client's ack. False when nothing waits for it."""
        in_flight = self._in_flight.get(device)
        if in_flight is None or in_flight.entry is None or in_flight.ack_id != ack_id:
            return False
        entry = in_flight.entry
        if in_flight.sent:
            self._ack_timer.observe(perf_counter_ns() - in_flight.sent)
            in_flight.sent = 0
        in_flight.verdict = commands.verdict(data)
        if in_flight.delivery.acked() is Action.RECORD:
            self._settle(in_flight, entry, *in_flight.verdict)
        return True

    def overdue(self, in_flight: InFlight) -> None:
        """No ack came in time."""
        if in_flight.entry is not None and in_flight.entry.type == "disable":
            in_flight.peer.close(NORMAL)  # whether it obeys or not
        self._do(in_flight, in_flight.delivery.overdue())

    def current(self, in_flight: InFlight) -> bool:
        """Whether the courier's connection is still the device's."""
        return self._in_flight.get(in_flight.device) is in_flight

    def _do(self, in_flight: InFlight, do: Action) -> None:
        if do is Action.LOOK:
            if not self._queue.peek(in_flight.device.id, _now(), lambda found: self._found(in_flight, found)):
                in_flight.delivery.failed()
        elif do is Action.SEND:
            self._send(in_flight)
        elif do is Action.RECORD and in_flight.entry is not None:
            self._settle(in_flight, in_flight.entry, *in_flight.verdict)
        elif in_flight.delivery.phase is Phase.IDLE and self.current(in_flight):
            del self._in_flight[in_flight.device]

    def _found(self, in_flight: InFlight, found: QueueHead | None) -> None:
        if found is None:
            in_flight.delivery.failed()
            return
        device, entry = in_flight.device, found.next
        for each in found.expired:
            self.expired(device.id, device.organization_id, each)
        if not self.current(in_flight):
            return
        device.playlist_version = found.version
        # What was not sent yet waits for a client that does not read. When it has caught up, its heartbeats look again.
        waits = in_flight.peer.stalled and in_flight.delivery.attempt == 0
        if device.organization_id in self._state.suspended or not in_flight.peer.open or waits:
            del self._in_flight[device]
            return
        do = in_flight.delivery.found(entry.id if entry is not None else None)
        if do is Action.SEND and in_flight.delivery.attempt == 0:
            in_flight.ack_id = next(self._ids)
            in_flight.verdict = ("acked", "")
        in_flight.entry = entry
        self._do(in_flight, do)

    def _send(self, in_flight: InFlight) -> None:
        entry = in_flight.entry
        assert entry is not None
        self._metrics.counter("commands_total", self._metrics.command(entry.type), "sent").value += 1
        if entry.type == "screenshot":
            in_flight.device.screenshot_until = _now() + SCREENSHOT_MS
            in_flight.peer.set_message_limit(SCREENSHOT_BYTES)
            self._wheel.add(_Limit(in_flight.device, in_flight.peer), SCREENSHOT_MS / 1000)
        if entry.type == commands.TOKEN or not in_flight.peer.acks_deliveries:
            # No ack will come. Kept until it expires, a reboot would be obeyed again each time that the screen is back;
            # a playlist does come again then, for nobody knows whether it arrived.
            in_flight.peer.send(entry.event, entry.body)
            in_flight.verdict = ("acked" if in_flight.peer.acks_deliveries else "sent", "")
            if in_flight.delivery.acked() is Action.RECORD:
                self._settle(in_flight, entry, *in_flight.verdict)
            return
        in_flight.sent = perf_counter_ns()
        patience = in_flight.delivery.ack_timeout
        if entry.expires:
            # What has expired must not hold up what is behind it.
            patience = min(patience, max(0.0, (entry.expires + 1 - _now()) / 1000))
        in_flight.await_ack(self._wheel, self._loop.time(), patience)
        if entry.type != commands.PLAYLIST:
            self._states.setdefault(entry.id, {})[f"d:{in_flight.device.id}"] = f"sent {_now()}"
            self._soon()
        in_flight.peer.send(entry.event, entry.body, in_flight.ack_id)

    def _settle(self, in_flight: InFlight, entry: QueuedCommand, state: str, error: str) -> None:
        if entry.type not in commands.EVENTS:
            value = f"{state} {_now()} {error}".rstrip()
            self._states.setdefault(entry.id, {})[f"d:{in_flight.device.id}"] = value
        self._settling.append((in_flight, entry, state, error))
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
            self._queue.states(command_id, list(fields.items()), done=partial(self._written, command_id))
        now = _now()
        for in_flight, entry, state, error in settling:
            self._record(in_flight, entry, state, error, now)
        outcomes, self._outcomes = self._outcomes, {}
        if outcomes:
            self._queue.append_events(
                [event for outcome, rows in outcomes.items() for event in _events(outcome, rows, now)]
            )
        news, self._results = self._results, {}
        for (reply_to, entry_id), rows in news.items():
            for start in range(0, len(rows), DEVICES_A_MESSAGE):
                self._send_to_worker(reply_to, {"done": entry_id, "of": rows[start : start + DEVICES_A_MESSAGE]})

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

    def _record(self, in_flight: InFlight, entry: QueuedCommand, state: str, error: str, now: int) -> None:
        device = in_flight.device

        def settled(found: QueueHead | None) -> None:
            if found is not None:
                if found.taken:  # else it had expired elsewhere, or its ack came twice, and was counted there
                    self._over(device.id, device.organization_id, entry, state, error)
                if entry.type == "disable" and self.current(in_flight):
                    in_flight.peer.close(NORMAL)
            self._found(in_flight, found)

        if not self._queue.ack(device.id, entry, now, settled, state != "sent"):
            in_flight.delivery.failed()

    def expired(self, device_id: str, organization_id: str, entry: QueuedCommand) -> None:
        """An entry has left the ledger because its time was over."""
        self._states.setdefault(entry.id, {})[f"d:{device_id}"] = f"expired {_now()}"
        self._over(device_id, organization_id, entry, "expired", "")

    def _over(self, device_id: str, organization_id: str, entry: QueuedCommand, state: str, error: str) -> None:
        """An entry has come to its end: count it, tell backends and who asked."""
        now = _now()
        if state != "sent":  # which was counted then
            self._metrics.counter("commands_total", self._metrics.command(entry.type), state).value += 1
        if entry.type != commands.TOKEN:
            self._outcomes.setdefault((entry, state, error), []).append((device_id, organization_id))
        if now - entry.created < CALLERS_WAIT_MS:
            self._results.setdefault((entry.reply_to, entry.id), []).append([device_id, state, error])
        self._soon()


class _Limit:
    """The end of a larger limit for messages. An entry of the timer wheel."""

    __slots__ = ("device", "peer")

    def __init__(self, device: Device, peer: Peer) -> None:
        self.device = device
        self.peer = peer

    def on_timer(self, now: float) -> float | None:
        if self.device.screenshot_until <= _now():
            self.peer.set_message_limit(0)
        return None


def _events(
    outcome: tuple[QueuedCommand, str, str], rows: list[tuple[str, str]], now: int
) -> Iterator[tuple[bytes | str | int, ...]]:
    """What backends are told of an outcome: the same of each device, written once."""
    entry, state, error = outcome
    detail = {"commandId": entry.id, "command": entry.type, "state": state, **({"error": error} if error else {})}
    text = messages.dumps(detail)
    for device_id, organization_id in rows:
        yield events.entry("command", device_id, organization_id, now, text)


def _now() -> int:
    return time.time_ns() // 1_000_000
