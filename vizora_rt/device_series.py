"""The series of devices: a row each under a hard cap, with expiry, and their lines of text.

Kept by the supervisor. Workers send what changed; a device past the cap shares the counters of `device_id="other"` and
has no gauges. A device belongs to the process that last said it is online, and only that one may say that it is not.
"""

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vizora_rt.metrics import OTHER, REGISTRY

OFFLINE_SECONDS = 3600.0
"""A device that is offline this long loses its series."""
ORPHAN_SECONDS = 60.0
"""A device whose process died is offline after this: 20 s to reconnect, a shipment every 15 s, and as much again."""
MAX_WAITING = 100_000
"""Devices without a series that are remembered, to count them: ten times the default cap, about 15 MB."""

NAN = float("nan")

Row = Sequence[Any]
"""device_id, organization_id, status (1, 0; None: it moved to another node), CPU and memory in percent or None,
heartbeats ok and failed since the last row"""


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
        # When the owner last spoke of the device; of an offline one, since when it is.
        self._seen = array("d")
        # Which process has the device; -1 when that one is gone.
        self._source = array("q")
        self._waiting: dict[str, float] = {}
        self._other = [0, 0]
        self._overflowed = False

    def __len__(self) -> int:
        """Devices that have a series or would have one without the cap."""
        return len(self._ids) + len(self._waiting)

    def update(self, source: int, rows: Iterable[Row], now: float) -> int:
        """Take rows; returns how many found no room under the cap."""
        refused = 0
        for device, organization, status, cpu, memory, ok, failed in rows:
            at = self._index.get(device, -1)
            if at < 0:
                if not (status or ok or failed):
                    # Nothing to begin a series with; one that moved away stops waiting for one.
                    if status is None:
                        self._waiting.pop(device, None)
                    continue
                at = self._add(device, organization, source, now)
                if at < 0:
                    refused += 1
                    self._other[0] += ok
                    self._other[1] += failed
                    continue
            self._ok[at] += ok
            self._failed[at] += failed
            if status:
                self._source[at] = source
                self._seen[at] = now
                self._status[at] = 1
                self._organizations[at] = sys.intern(organization)
                self._cpu[at] = NAN if cpu is None else cpu
                self._memory[at] = NAN if memory is None else memory
            elif self._source[at] in (source, -1):
                # Only the owner may say so: the device may have come back to another worker before.
                if status is None:
                    self._remove(at)
                else:
                    self._offline(at, now)
        return refused

    def orphan(self, source: int) -> None:
        """The process is gone: its devices keep their state until another process or `expire` changes it."""
        for at, owner in enumerate(self._source):
            if owner == source:
                self._source[at] = -1

    def expire(self, now: float) -> None:
        """Forget what is offline for an hour, and who waits and has not been heard of for as long."""
        for at in range(len(self._ids) - 1, -1, -1):
            if self._status[at]:
                if self._source[at] == -1 and self._seen[at] < now - ORPHAN_SECONDS:
                    self._offline(at, now)
            elif self._seen[at] <= now - OFFLINE_SECONDS:
                self._remove(at)
        if any(seen <= now - OFFLINE_SECONDS for seen in self._waiting.values()):
            self._waiting = {d: seen for d, seen in self._waiting.items() if seen > now - OFFLINE_SECONDS}

    def lines(self) -> dict[str, list[str]]:
        """The samples of each family.

        A device has no `success="false"` before its first failure: that would be one more series for each screen of a
        healthy fleet, and `heartbeat_errors_total` has its zeros from the start.
        """
        ids = list(map(escape, self._ids))
        rows = zip(ids, map(escape, self._organizations), strict=True)
        labels = [f'device_id="{device}",organization_id="{organization}"' for device, organization in rows]
        gauges: tuple[tuple[str, Iterable[float]], ...] = (
            ("device_status", self._status),
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

    def _add(self, device: str, organization: str, source: int, now: float) -> int:
        """A new row, online or not is not known yet; -1 when there is no room."""
        # A device may be called "other": it shares the series of that name.
        if len(self._ids) >= self._cap or device == OTHER:
            self._overflowed = True
            if device in self._waiting or len(self._waiting) < MAX_WAITING:
                self._waiting[device] = now
            return -1
        self._waiting.pop(device, None)
        self._index[device] = len(self._ids)
        self._ids.append(device)
        self._organizations.append(sys.intern(organization))
        for column, value in self._columns((0, NAN, NAN, 0, 0, now, source)):
            column.append(value)
        return len(self._ids) - 1

    def _offline(self, at: int, now: float) -> None:
        if self._status[at]:
            self._status[at] = 0
            self._seen[at] = now
            # What the screen said of itself is no longer true.
            self._cpu[at] = self._memory[at] = NAN

    def _remove(self, at: int) -> None:
        """The last row takes the place, so that the columns stay dense."""
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
