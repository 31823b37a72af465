"""The series of devices: a row each under a hard cap, with expiry, and their lines of text.

Kept by the supervisor. Workers send what changed; a device past the cap shares the counters of `device_id="other"` and
has no gauges. Heartbeats are sums, so the order of rows is nothing to them. A device is online while one worker says
that it has a connection of it. Each worker's last word counts, in whatever order those of two workers arrive.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vizora_rt.telemetry.metrics import OTHER, REGISTRY

OFFLINE_SECONDS = 3600.0
"""A device that is offline this long loses its series."""
MAX_WAITING = 100_000
"""Devices without a series that are remembered, to count them: ten times the default cap, about 20 MB."""

NAN = float("nan")

AWAY = -1
"""The status of a device of which no process here has anything to say: it moved to another node."""
NOBODY = 0
"""The source of what no process says any more. Processes have numbers from 1."""

Row = Sequence[Any]
"""device_id, organization_id, status (1, 0; None: another worker has it, this one has no say), CPU and memory in
percent or None, heartbeats ok and failed since the last row of either kind"""
BeatRow = Sequence[Any]
"""device_id, heartbeats ok and failed since the last row of either kind"""
Word = tuple[int, str, float, float]
"""What one process says of a device: status 1 or 0, organisation, CPU and memory (NaN: not known)"""


def escape(value: str) -> str:
    """A label value as text. The same object when there is nothing to escape."""
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


class DeviceSeries:
    """One row for each device, in parallel columns without gaps: about 200 bytes with the id, and quick to render."""

    __slots__ = (
        "_cap",
        "_cpu",
        "_failed",
        "_ids",
        "_index",
        "_memory",
        "_ok",
        "_organizations",
        "_other",
        "_overflowed",
        "_seen",
        "_shared",
        "_source",
        "_status",
        "_waiting",
    )

    def __init__(self, cap: int) -> None:
        self._cap = cap
        self._index: dict[str, int] = {}
        self._ids: list[str] = []
        self._organizations: list[str] = []
        self._status = array("b")
        self._cpu = array("d")
        self._memory = array("d")
        self._ok = array("q")
        self._failed = array("q")
        # When a process last said that the device is online; when it ceased to be.
        self._seen = array("d")
        # The process whose word the row shows, or NOBODY.
        self._source = array("q")
        # Where several processes have a say for a moment: the word of each.
        self._shared: dict[str, dict[int, Word]] = {}
        # Devices past the cap: when one was last heard of, and by which process.
        self._waiting: dict[str, tuple[float, int]] = {}
        self._other = [0, 0]
        self._overflowed = False

    def __len__(self) -> int:
        """Devices of this node that have a series or would have one without the cap."""
        waiting = sum(source != NOBODY for _, source in self._waiting.values())
        return len(self._ids) - self._status.count(AWAY) + waiting

    def update(self, source: int, rows: Iterable[Row], now: float) -> int:
        """Take the full rows of a process. Returns how many devices found no room under the cap for the first time."""
        refused = 0
        for device, organization, status, cpu, memory, ok, failed in rows:
            at = self._index.get(device, -1)
            if at < 0:
                if not (status or ok or failed):
                    # Nothing to begin a series with. A device that moved away waits no more, but is still known.
                    if status is None and (waits := self._waiting.get(device)) and waits[1] == source:
                        self._waiting[device] = waits[0], NOBODY
                    continue
                if not self._has_room(device):
                    refused += status is not None and self._wait(device, source, now)
                    self._share(ok, failed)
                    continue
                at = self._add(device, organization, now)
            self._ok[at] += ok
            self._failed[at] += failed
            word = None
            if status is not None:
                word = status, organization, NAN if cpu is None else cpu, NAN if memory is None else memory
            self._hear(at, source, word, now)
        return refused

    def beats(self, source: int, rows: Iterable[BeatRow], now: float) -> None:
        """Take the rows of beats of a process. Its full row of a device comes before, or a second after."""
        index = self._index
        for device, ok, failed in rows:
            at = index.get(device, -1)
            if at < 0:
                if device in self._waiting or not self._has_room(device):
                    if device in self._waiting:
                        self._waiting[device] = now, source
                    self._share(ok, failed)
                    continue
                at = self._add(device, "", now)
            self._ok[at] += ok
            self._failed[at] += failed

    def gone(self, source: int, now: float) -> None:
        """The process is gone, and all connections with it. What it counted stays."""
        for at, owner in enumerate(self._source):
            if owner == source or (self._shared and source in self._shared.get(self._ids[at], ())):
                # As if it had said first that the device left, then that it has no say: the row keeps the former.
                self._hear(at, source, (0, self._organizations[at], NAN, NAN), now)
                if self._ids[at] in self._shared:
                    self._hear(at, source, None, now)
                elif self._source[at] == source:
                    self._source[at] = NOBODY

    def expire(self, now: float) -> None:
        """Forget what is offline or away for an hour, and what waits and has not been heard of for as long."""
        for at in range(len(self._ids) - 1, -1, -1):
            if self._status[at] != 1 and self._seen[at] <= now - OFFLINE_SECONDS:
                self._remove(at)
        if any(seen <= now - OFFLINE_SECONDS for seen, _ in self._waiting.values()):
            self._waiting = {d: word for d, word in self._waiting.items() if word[0] > now - OFFLINE_SECONDS}

    def lines(self) -> dict[str, list[str]]:
        """The samples of each family.

        A device has no `success="false"` before its first failure: that would be one more series for each screen of a
        healthy fleet, and `heartbeat_errors_total` has its zeros from the start.
        """
        ids = list(map(escape, self._ids))
        rows = zip(ids, map(escape, self._organizations), strict=True)
        labels = [f'device_id="{device}",organization_id="{organization}"' for device, organization in rows]
        gauges: tuple[tuple[str, Iterable[float]], ...] = (
            ("device_status", [NAN if status == AWAY else status for status in self._status]),
            ("device_cpu_usage", self._cpu),
            ("device_memory_usage", self._memory),
        )
        found = {name: _gauge_lines(name, labels, column) for name, column in gauges}
        ok, failed = [*zip(ids, self._ok, strict=True)], [*zip(ids, self._failed, strict=True)]
        if self._overflowed:
            ok.append((OTHER, self._other[0]))
            failed.append((OTHER, self._other[1]))
        name = REGISTRY["heartbeat_total"].full_name
        found["heartbeat_total"] = [f'{name}{{device_id="{device}",success="true"}} {n}\n' for device, n in ok] + [
            f'{name}{{device_id="{device}",success="false"}} {n}\n' for device, n in failed if n
        ]
        return found

    def _has_room(self, device: str) -> bool:
        # A device may be called "other": it shares the series of that name.
        return len(self._ids) < self._cap and device != OTHER

    def _wait(self, device: str, source: int, now: float) -> bool:
        """The device is past the cap. True the first time that this is known of it."""
        first = device not in self._waiting
        if first and len(self._waiting) >= MAX_WAITING:
            return False
        self._waiting[device] = now, source
        return first

    def _share(self, ok: int, failed: int) -> None:
        self._overflowed = True
        self._other[0] += ok
        self._other[1] += failed

    def _add(self, device: str, organization: str, now: float) -> int:
        """A new row of which no process has said anything."""
        self._waiting.pop(device, None)
        self._index[device] = len(self._ids)
        self._ids.append(device)
        self._organizations.append(sys.intern(organization))
        for column, value in self._columns((AWAY, NAN, NAN, 0, 0, now, NOBODY)):
            column.append(value)
        return len(self._ids) - 1

    def _hear(self, at: int, source: int, word: Word | None, now: float) -> None:
        """`source` says this of the device; None: it has no say any more."""
        shown = self._source[at]
        if self._shared and (words := self._shared.pop(self._ids[at], None)) is not None:
            words.pop(source, None)
        elif shown == source or (shown == NOBODY and word is not None):
            self._show(at, source, word, now)
            return
        elif word is None:
            return  # it had none
        else:
            words = {shown: self._shown(at)}
        if word is not None:
            if word[0]:
                # That it left another process before is over. Two that have it: one does not know yet that it left.
                words = {other: said for other, said in words.items() if said[0]}
            words[source] = word
        latest = max(reversed(words), key=lambda each: words[each][0])
        if len(words) > 1 and words[latest][0]:
            self._shared[self._ids[at]] = words
        self._show(at, latest, words[latest], now)

    def _show(self, at: int, source: int, word: Word | None, now: float) -> None:
        status, organization, cpu, memory = word or (AWAY, self._organizations[at], NAN, NAN)
        if status == 1 or self._status[at] == 1:
            self._seen[at] = max(self._seen[at], now)
        self._source[at] = NOBODY if word is None else source
        self._status[at] = status
        self._organizations[at] = sys.intern(organization)
        # What an offline screen said of itself is no longer true.
        self._cpu[at], self._memory[at] = (cpu, memory) if status == 1 else (NAN, NAN)

    def _shown(self, at: int) -> Word:
        return self._status[at], self._organizations[at], self._cpu[at], self._memory[at]

    def _remove(self, at: int) -> None:
        """The last row takes the place, so that the columns stay dense."""
        self._shared.pop(self._ids[at], None)
        del self._index[self._ids[at]]
        last = self._ids.pop()
        organization = self._organizations.pop()
        if at < len(self._ids):
            self._index[last] = at
            self._ids[at] = last
            self._organizations[at] = organization
        for column, _ in self._columns((0,) * 7):
            value = column.pop()
            if at < len(column):
                column[at] = value

    def _columns(self, values: Sequence[float]) -> Iterator[tuple[Any, float]]:
        columns = (self._status, self._cpu, self._memory, self._ok, self._failed, self._seen, self._source)
        return zip(columns, values, strict=True)


def _gauge_lines(name: str, labels: list[str], column: Iterable[float]) -> list[str]:
    name = REGISTRY[name].full_name
    # NaN, what a device did not say, is not equal to itself.
    return [f"{name}{{{pairs}}} {value}\n" for pairs, value in zip(labels, column, strict=True) if value == value]
