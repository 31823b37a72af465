"""The asking side of the ledger: put a command or playlist before devices of any worker, and wait for their acks.

Entries are written first, then the workers that have the devices are told to look, many devices with one doorbell.
What they report comes back by doorbell too; who never hears it has the entry in the ledger, and says `queued`.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns
from typing import Final

from vizora_rt.app import commands
from vizora_rt.app.commands import QueuedCommand
from vizora_rt.net.commands.delivery import DEVICES_A_MESSAGE
from vizora_rt.net.commands.expiry import Expiry
from vizora_rt.net.commands.queue import CommandQueue, EnqueueResult, Fields
from vizora_rt.telemetry.metrics import Metrics

ACK_SECONDS: Final = 4.0
"""Below the 5 s after which backends commonly give a call up."""

SendToWorker = Callable[[str, int, dict[str, object]], None]
Put = Callable[[str, Callable[[EnqueueResult | None], None]], bool]


@dataclass(slots=True)
class DeliveryResult:
    """What became of an entry, device by device. `sent` are those that do not say what they have received; `failures`
    says why, `expired` counts those of them that had no ack in time, `unavailable` names those whose ledger did not
    answer."""

    waiting: set[str]
    finished: asyncio.Event = field(default_factory=asyncio.Event)
    online: int = 0
    delivered: int = 0
    queued: int = 0
    sent: int = 0
    expired: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    full: bool = False
    unavailable: list[str] = field(default_factory=list)
    waited: int = 0

    def done(self, device_id: str, state: str, error: str) -> None:
        """A device has come to an end with the entry."""
        if device_id not in self.waiting:
            return
        self.waiting.discard(device_id)
        if state == "acked":
            self.delivered += 1
        elif state == "sent":
            self.sent += 1
        else:
            self.expired += state == "expired"
            self.failures[device_id] = error or state
        if not self.waiting:
            self.finished.set()


class CommandRequests:
    """One worker's askers."""

    def __init__(
        self, metrics: Metrics, ledger: CommandQueue, reply_to: str, ring: SendToWorker, expiry: Expiry
    ) -> None:
        self.reply_to = reply_to
        self._metrics = metrics
        self._queue = ledger
        self._send_to_worker = ring
        self._expiry = expiry
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, list[DeliveryResult]] = {}

    def on_done(self, entry_id: str, rows: Sequence[Sequence[str]]) -> None:
        """A doorbell: devices have come to an end with an entry."""
        for result in self._waiting.get(entry_id, ()):
            for device_id, state, error in rows:
                result.done(device_id, state, error)

    async def command(
        self, devices: Sequence[str], entry: QueuedCommand, known: bool, before: dict[str, str], fingerprint: str
    ) -> DeliveryResult:
        """Put a command before `devices`. `known`: the id is the caller's, and `before` the states that it led to."""
        line = entry.line()
        fresh = [device for device in devices if before.get(device, "queued") in ("queued", "sent")]
        record = [("type", entry.type), ("created", str(entry.created)), ("expires", str(entry.expires))]
        record += [("fingerprint", fingerprint), *((f"d:{device}", f"queued {entry.created}") for device in fresh)]
        recorded = await self._record(entry, record)
        if recorded:
            self._expiry.due(entry, fresh)

        def put(device: str, done: Callable[[EnqueueResult | None], None]) -> bool:
            return recorded and self._queue.enqueue(device, entry, line, known, done)

        return await self._enqueue(devices, entry, before, put)

    async def _record(self, entry: QueuedCommand, fields: Fields) -> bool:
        """Make the record of a command. Whether it is there: only then may a device get the command, and ack it."""
        unanswered, taken = len(fields), True
        answered = asyncio.Event()

        def done(part: Fields, written: bool) -> None:
            nonlocal unanswered, taken
            unanswered -= len(part)
            taken &= written
            if not unanswered:
                answered.set()

        self._queue.states(entry.id, fields, entry.expires + commands.KEPT_AFTER, done)
        await answered.wait()
        return taken

    async def token(self, device: str, entry: QueuedCommand, known: bool) -> DeliveryResult:
        """Have a device get a new token. It is `delivered` when it is written to the connection: nobody acks it."""
        line = entry.line()
        self._expiry.due(entry, [device])

        def put(device: str, done: Callable[[EnqueueResult | None], None]) -> bool:
            return self._queue.enqueue(device, entry, line, known, done)

        return await self._enqueue([device], entry, {}, put)

    async def playlist(self, device: str, entry: QueuedCommand, version: str) -> DeliveryResult:
        """Make a playlist a device's current one."""

        def put(device: str, done: Callable[[EnqueueResult | None], None]) -> bool:
            return self._queue.replace(device, entry, version, "push", done)

        return await self._enqueue([device], entry, {}, put)

    async def _enqueue(
        self, devices: Sequence[str], entry: QueuedCommand, before: dict[str, str], put: Put
    ) -> DeliveryResult:
        result = DeliveryResult(set(devices))
        for device in devices:
            if before.get(device, "queued") not in ("queued", "sent"):
                result.done(device, before[device], "")
        self._waiting.setdefault(entry.id, []).append(result)
        started = self._loop.time()
        try:
            fresh = [device for device in devices if device in result.waiting]
            for start in range(0, len(fresh), DEVICES_A_MESSAGE):
                self._put(fresh[start : start + DEVICES_A_MESSAGE], entry, result, put)
                await asyncio.sleep(0)
            since = perf_counter_ns()
            try:
                async with asyncio.timeout_at(started + ACK_SECONDS):
                    await result.finished.wait()
            except TimeoutError:
                pass
            result.waited = perf_counter_ns() - since
        finally:
            self._waiting[entry.id].remove(result)
            if not self._waiting[entry.id]:
                del self._waiting[entry.id]
        result.queued += len(result.waiting)
        return result

    def _put(self, devices: Sequence[str], entry: QueuedCommand, result: DeliveryResult, put: Put) -> None:
        """Write the entry for some devices; when the last of them is answered, ring whoever has them."""
        owners: dict[tuple[str, int], list[str]] = {}
        open_replies = len(devices)

        def placed(device: str, place: EnqueueResult | None) -> None:
            nonlocal open_replies
            open_replies -= 1
            if place is None:
                result.unavailable.append(device)
                result.done(device, "failed", "the store did not answer")
            else:
                self._enqueued(device, place, entry, result)
                if place.owner is not None and place.code >= 0:
                    owners.setdefault(place.owner, []).append(device)
            if not open_replies:
                for (node, worker), found in owners.items():
                    self._send_to_worker(node, worker, {"look": found})

        for device in devices:
            if not put(device, partial(placed, device)):
                placed(device, None)

    def _enqueued(self, device: str, place: EnqueueResult, entry: QueuedCommand, result: DeliveryResult) -> None:
        for each in place.expired:
            self._expiry.expired(device, "", each)
        result.online += place.owner is not None
        kind = self._metrics.command(entry.type)
        if place.code < 0:
            result.full = True
            self._metrics.counter("limits_exceeded_total", "commands_waiting").value += 1
            result.done(device, "failed", "too many commands wait for this device")
            return
        if place.code:
            self._metrics.counter("commands_total", kind, "queued").value += 1
        if place.owner is None and device in result.waiting:
            # Nobody is there to ack it: the call need not wait.
            result.waiting.discard(device)
            result.queued += 1
            if not result.waiting:
                result.finished.set()
