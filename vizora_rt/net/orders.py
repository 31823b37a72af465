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
from vizora_rt.app.commands import Entry
from vizora_rt.metrics import Metrics
from vizora_rt.net.delivery import DEVICES_A_BELL
from vizora_rt.net.expiry import Expiry
from vizora_rt.net.ledger import Fields, Ledger, Place

ACK_SECONDS: Final = 4.0
"""Below the 5 s after which backends commonly give a call up."""

Ring = Callable[[str, int, dict[str, object]], None]
Put = Callable[[str, Callable[[Place | None], None]], bool]


@dataclass(slots=True)
class Tally:
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


class Orders:
    """One worker's askers."""

    def __init__(self, metrics: Metrics, ledger: Ledger, asker: str, ring: Ring, expiry: Expiry) -> None:
        self.asker = asker
        self._metrics = metrics
        self._ledger = ledger
        self._ring = ring
        self._expiry = expiry
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[str, list[Tally]] = {}

    def on_done(self, entry_id: str, rows: Sequence[Sequence[str]]) -> None:
        """A doorbell: devices have come to an end with an entry."""
        for tally in self._waiting.get(entry_id, ()):
            for device_id, state, error in rows:
                tally.done(device_id, state, error)

    async def command(
        self, devices: Sequence[str], entry: Entry, known: bool, before: dict[str, str], fingerprint: str
    ) -> Tally:
        """Put a command before `devices`. `known`: the id is the caller's, and `before` the states that it led to."""
        line = entry.line()
        fresh = [device for device in devices if before.get(device, "queued") in ("queued", "sent")]
        record = [("type", entry.type), ("created", str(entry.created)), ("expires", str(entry.expires))]
        record += [("fingerprint", fingerprint), *((f"d:{device}", f"queued {entry.created}") for device in fresh)]
        recorded = await self._record(entry, record)
        if recorded:
            self._expiry.due(entry, fresh)

        def put(device: str, done: Callable[[Place | None], None]) -> bool:
            return recorded and self._ledger.enqueue(device, entry, line, known, done)

        return await self._place(devices, entry, before, put)

    async def _record(self, entry: Entry, fields: Fields) -> bool:
        """Make the record of a command. Whether it is there: only then may a device get the command, and ack it."""
        unanswered, taken = len(fields), True
        answered = asyncio.Event()

        def done(part: Fields, written: bool) -> None:
            nonlocal unanswered, taken
            unanswered -= len(part)
            taken &= written
            if not unanswered:
                answered.set()

        self._ledger.states(entry.id, fields, entry.expires + commands.KEPT_AFTER, done)
        await answered.wait()
        return taken

    async def token(self, device: str, entry: Entry, known: bool) -> Tally:
        """Have a device get a new token. It is `delivered` when it is written to the connection: nobody acks it."""
        line = entry.line()
        self._expiry.due(entry, [device])

        def put(device: str, done: Callable[[Place | None], None]) -> bool:
            return self._ledger.enqueue(device, entry, line, known, done)

        return await self._place([device], entry, {}, put)

    async def playlist(self, device: str, entry: Entry, version: str) -> Tally:
        """Make a playlist a device's current one."""

        def put(device: str, done: Callable[[Place | None], None]) -> bool:
            return self._ledger.replace(device, entry, version, "push", done)

        return await self._place([device], entry, {}, put)

    async def _place(self, devices: Sequence[str], entry: Entry, before: dict[str, str], put: Put) -> Tally:
        tally = Tally(set(devices))
        for device in devices:
            if before.get(device, "queued") not in ("queued", "sent"):
                tally.done(device, before[device], "")
        self._waiting.setdefault(entry.id, []).append(tally)
        started = self._loop.time()
        try:
            fresh = [device for device in devices if device in tally.waiting]
            for start in range(0, len(fresh), DEVICES_A_BELL):
                self._put(fresh[start : start + DEVICES_A_BELL], entry, tally, put)
                await asyncio.sleep(0)
            since = perf_counter_ns()
            try:
                async with asyncio.timeout_at(started + ACK_SECONDS):
                    await tally.finished.wait()
            except TimeoutError:
                pass
            tally.waited = perf_counter_ns() - since
        finally:
            self._waiting[entry.id].remove(tally)
            if not self._waiting[entry.id]:
                del self._waiting[entry.id]
        tally.queued += len(tally.waiting)
        return tally

    def _put(self, devices: Sequence[str], entry: Entry, tally: Tally, put: Put) -> None:
        """Write the entry for some devices; when the last of them is answered, ring whoever has them."""
        owners: dict[tuple[str, int], list[str]] = {}
        open_replies = len(devices)

        def placed(device: str, place: Place | None) -> None:
            nonlocal open_replies
            open_replies -= 1
            if place is None:
                tally.unavailable.append(device)
                tally.done(device, "failed", "the store did not answer")
            else:
                self._placed(device, place, entry, tally)
                if place.owner is not None and place.code >= 0:
                    owners.setdefault(place.owner, []).append(device)
            if not open_replies:
                for (node, worker), found in owners.items():
                    self._ring(node, worker, {"look": found})

        for device in devices:
            if not put(device, partial(placed, device)):
                placed(device, None)

    def _placed(self, device: str, place: Place, entry: Entry, tally: Tally) -> None:
        for each in place.expired:
            self._expiry.expired(device, "", each)
        tally.online += place.owner is not None
        kind = self._metrics.command(entry.type)
        if place.code < 0:
            tally.full = True
            self._metrics.counter("limits_exceeded_total", "commands_waiting").value += 1
            tally.done(device, "failed", "too many commands wait for this device")
            return
        if place.code:
            self._metrics.counter("commands_total", kind, "queued").value += 1
        if place.owner is None and device in tally.waiting:
            # Nobody is there to ack it: the call need not wait.
            tally.waiting.discard(device)
            tally.queued += 1
            if not tally.waiting:
                tally.finished.set()
