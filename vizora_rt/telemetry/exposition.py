"""The supervisor's totals of all workers, and their text: Prometheus 0.0.4 and OpenMetrics 1.0.

Workers send absolute values; the sum is taken for a scrape. What a dead worker counted is kept in a base, so that
counters never go back. A gauge that is a sum falls by the dead worker's part; its other gauges go with it. Lines are
put together by hand: prometheus_client takes 0.7 s for 20,000 series, and it is a child object for each.

Over 300 lines because both text formats are written by one walk over the totals.
"""

import operator
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from vizora_rt import config
from vizora_rt.telemetry.device_series import BeatRow, DeviceSeries, Row, escape
from vizora_rt.telemetry.metrics import (
    ALIASES,
    BOUNDS,
    FAMILIES,
    MAX_REFUSED,
    REGISTRY,
    SLOTS,
    WORKER,
    Cell,
    Family,
    Kind,
    Metrics,
)

CONNECTIONS = "ws_connections_total"
"""The one family whose children are pairs: what a process counted as `connected` ends as `disconnected`."""


def _labels(family: Family, values: Iterable[str], extra: str = "") -> str:
    pairs = [f'{label.name}="{escape(value)}"' for label, value in zip(family.labels, values, strict=True)]
    inner = ",".join([*pairs, extra] if extra else pairs)
    return f"{{{inner}}}" if inner else ""


def _header(family: Family, openmetrics: bool) -> str:
    name = family.openmetrics_name if openmetrics else family.full_name
    unit = f"# UNIT {name} {family.unit}\n" if openmetrics and family.unit else ""
    return f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n{unit}"


class _Source:
    """One process: what its last snapshot said, and which series each value belongs to."""

    __slots__ = ("cells", "number", "started", "timer_slots", "timers", "values")

    def __init__(self, number: int) -> None:
        self.number = number
        self.started = False
        self.cells: list[int] = []
        self.values: Sequence[int] = ()
        self.timers: list[int] = []
        self.timer_slots: Sequence[int] = ()

    def blocks(self) -> Iterator[tuple[int, Sequence[int]]]:
        """The histograms: series, its slots."""
        for place, series in enumerate(self.timers):
            yield series, self.timer_slots[place * SLOTS : (place + 1) * SLOTS]


_COMBINE: dict[str, Callable[[int, int], int]] = {"sum": operator.add, "max": max, "min": min}


class Totals:
    """The supervisor's sums. `worker` is the value of that label; `process` tells two of a worker apart in a roll.

    `render` may run in a thread when nothing else is called meanwhile; cells that exist may be counted.
    """

    def __init__(self, settings: config.MetricsSettings, version: str = "", commit: str = "") -> None:
        self._settings = settings
        self._own = Metrics(settings, ("worker", "supervisor"))
        self._sources: dict[tuple[str, int], _Source] = {}
        self._numbers = 0
        self._series: dict[tuple[str, tuple[str, ...]], int] = {}
        self._of_family: dict[str, list[int]] = {family.name: [] for family in FAMILIES}
        self._heads: list[str] = []
        self._base: list[int | None] = []
        self._combine: list[Callable[[int, int], int]] = []
        # How much of a value stays when its process is gone: all of a counter, 0 of a sum; None: it has no value then.
        self._stays: list[int | None] = []
        self._timers: list[tuple[str, ...]] = []
        self._timer_base: list[list[int]] = []
        # Of no family, so never rendered: what is left out is added up here.
        self._scrap, self._scrap_timer = self._new_cell("", operator.add, None), self._new_timer(())
        self._devices = DeviceSeries(settings.max_device_series)
        self._refused: set[str] = set()
        self._processes: dict[str, list[tuple[str, float]]] = {}
        for family in FAMILIES:
            for values in family.children_at_start:
                self._start(family, values)
        self.gauge("build_info", version, platform.python_version(), commit).value = 1

    def counter(self, name: str, *values: str) -> Cell:
        """A counter of the supervisor's own."""
        return self._own.counter(name, *values)

    def gauge(self, name: str, *values: str) -> Cell:
        """A gauge of the supervisor's own."""
        return self._own.gauge(name, *values)

    def merge(self, worker: str, snapshot: Mapping[str, Any], process: int = 0) -> list[str]:
        """Take a worker's snapshot in place of its last. Raises ValueError for one that is not whole.

        What the registry lacks is left out and returned as reasons: after an upgrade by a roll, workers are of a newer
        release than their supervisor, and all else they count is still wanted.
        """
        source = self._source(worker, process)
        if snapshot["first"] and source.started:
            self.retire(worker, process)
            source = self._source(worker, process)
        left_out: list[str] = []
        new: list[tuple[Kind, int]] = []
        for name, kind, labels in snapshot["new"]:
            try:
                new.append((kind, self._place(worker, name, kind, tuple(labels))))
            except ValueError as error:
                new.append((kind, self._scrap_timer if kind == "histogram" else self._scrap))
                left_out.append(str(error))
        cells = source.cells + [series for kind, series in new if kind != "histogram"]
        timers = source.timers + [series for kind, series in new if kind == "histogram"]
        if len(snapshot["values"]) != len(cells) or len(snapshot["timers"]) != len(timers) * SLOTS:
            raise ValueError(f"snapshot of worker {worker} does not fit")
        source.started = True
        source.cells, source.values = cells, snapshot["values"]
        source.timers, source.timer_slots = timers, snapshot["timers"]
        self._refuse(snapshot.get("refused", ()))
        self._refuse(self._own.take_refused())
        return left_out

    @property
    def organizations(self) -> list[str]:
        """The organisations that have series of their own. Only grows, at its end."""
        return self._own.organizations

    def _refuse(self, organizations: Iterable[str]) -> None:
        for organization in organizations:
            # A cap of 0 is a choice, not a limit that was met.
            known = organization in self._refused or len(self._refused) >= MAX_REFUSED
            if not known and self._settings.max_organization_series:
                self._refused.add(organization)
                self.counter("limits_exceeded_total", "max_organization_series").value += 1

    def retire(self, worker: str, process: int = 0, now: float = 0.0) -> None:
        """The process is gone at `now`, monotonic: what it counted stays, its gauges go, its connections ended."""
        source = self._sources.pop((worker, process), None)
        if source is None:
            return
        for series, value in zip(source.cells, source.values, strict=True):
            stays = self._stays[series]
            if stays is not None:
                self._base[series] = (self._base[series] or 0) + stays * value
        for series, slots in source.blocks():
            self._timer_base[series] = list(map(operator.add, self._timer_base[series], slots))
        self._end_connections(source)
        self._devices.gone(source.number, now)

    def _end_connections(self, source: _Source) -> None:
        """A process that was killed did not count the ends of its connections: `connected` less `disconnected` is what
        it left open."""
        counted: dict[int, int] = {}
        for series, value in zip(source.cells, source.values, strict=True):
            counted[series] = counted.get(series, 0) + value
        for (name, values), connected in self._series.items():
            if name == CONNECTIONS and values[1] == "connected" and connected in counted:
                disconnected = self._series[name, (values[0], "disconnected")]
                # Never negative: an organisation may have got a series of its own between the two.
                left_open = max(0, counted[connected] - counted.get(disconnected, 0))
                self._base[disconnected] = (self._base[disconnected] or 0) + left_open

    def devices(self, worker: str, rows: Iterable[Row], now: float, process: int = 0) -> None:
        """Take a worker's full rows; `now` is monotonic."""
        refused = self._devices.update(self._source(worker, process).number, rows, now)
        # A cap of 0 is a choice, not a limit that was met.
        if refused and self._settings.max_device_series:
            self.counter("limits_exceeded_total", "max_device_series").value += refused

    def beats(self, worker: str, rows: Iterable[BeatRow], now: float, process: int = 0) -> None:
        """Take a worker's rows of beats."""
        self._devices.beats(self._source(worker, process).number, rows, now)

    def expire(self, now: float) -> None:
        """To be called now and then: devices that are offline for an hour lose their series."""
        self._devices.expire(now)

    def processes(self, pids: Mapping[str, int]) -> None:
        """Read the process series of label -> pid; a process that is gone has none."""
        self._processes = read_processes(pids)

    def render(self, openmetrics: bool) -> bytes:
        """The whole exposition."""
        self.gauge("devices_known").value = len(self._devices)
        self.merge("", self._own.snapshot())
        values, timers = self._sums()
        devices = self._devices.lines()
        parts: list[str] = []
        for family in FAMILIES:
            if family.name.startswith("nodejs_") and not self._settings.nodejs_aliases:
                continue
            parts.append(_header(family, openmetrics))
            parts += devices[family.name] if family.origin == "device" else self._samples(family, values, timers)
        if openmetrics:
            parts.append("# EOF\n")
        # A lone surrogate is no UTF-8; it must not cost the whole scrape.
        return "".join(parts).encode("utf-8", "replace")

    def _samples(self, family: Family, values: list[int | None], timers: list[list[int]]) -> list[str]:
        series = self._of_family[family.name]
        if family.origin == "process":
            found = self._processes.get(family.name, ())
            return [f"{family.full_name}{_labels(family, [label])} {value}\n" for label, value in found]
        if family.origin == "alias":
            return [line for child in ALIASES[family.name] for line in self._alias(family, child, timers)]
        if family.kind == "histogram":
            return [line for index in series for line in _histogram_lines(self._timers[index], timers[index])]
        divisor = 1e9 if family.nanoseconds else None
        known = [(self._heads[index], value) for index in series if (value := values[index]) is not None]
        return [f"{head}{value / divisor if divisor else value}\n" for head, value in known]

    def _alias(self, family: Family, child: tuple[str, ...], timers: list[list[int]]) -> Iterator[str]:
        slots = [0] * SLOTS
        for recorded in ALIASES[family.name][child]:
            slots = list(map(operator.add, slots, timers[self._series[recorded]]))
        return _histogram_lines(_histogram_heads(family, child), slots)

    def _sums(self) -> tuple[list[int | None], list[list[int]]]:
        values = self._base.copy()
        timers = self._timer_base.copy()
        combine = self._combine
        for source in self._sources.values():
            for series, value in zip(source.cells, source.values, strict=True):
                held = values[series]
                values[series] = value if held is None else combine[series](held, value)
            for series, slots in source.blocks():
                timers[series] = list(map(operator.add, timers[series], slots))
        return values, timers

    def _start(self, family: Family, values: tuple[str, ...]) -> None:
        if family.kind == "histogram":
            self._own.timer(family.name, *values)
        elif family.kind == "counter":
            self._own.counter(family.name, *values)
        else:
            self._own.gauge(family.name, *values)

    def _source(self, worker: str, process: int) -> _Source:
        source = self._sources.get((worker, process))
        if source is None:
            self._numbers += 1
            source = self._sources[worker, process] = _Source(self._numbers)
        return source

    def _place(self, worker: str, name: str, kind: Kind, given: tuple[str, ...]) -> int:
        """The series of a worker's child. Caps count again here: each worker has its own."""
        rest = iter(self._own.resolve(name, kind, given))
        family = REGISTRY[name]
        values = tuple(worker if label is WORKER else next(rest) for label in family.labels)
        series = self._series.get((name, values))
        return self._new_series(family, values) if series is None else series

    def _new_series(self, family: Family, values: tuple[str, ...]) -> int:
        if family.kind == "histogram":
            series = self._new_timer(_histogram_heads(family, values))
        else:
            head = f"{family.full_name}{_labels(family, values)} "
            summed = family.combine == "sum" and WORKER not in family.labels
            stays = 1 if family.kind == "counter" else 0 if summed else None
            series = self._new_cell(head, _COMBINE[family.combine], stays)
        self._of_family[family.name].append(series)
        self._series[family.name, values] = series
        return series

    def _new_cell(self, head: str, combine: Callable[[int, int], int], stays: int | None) -> int:
        self._heads.append(head)
        self._base.append(None)
        self._combine.append(combine)
        self._stays.append(stays)
        return len(self._heads) - 1

    def _new_timer(self, heads: tuple[str, ...]) -> int:
        self._timers.append(heads)
        self._timer_base.append([0] * SLOTS)
        return len(self._timers) - 1


def _histogram_heads(family: Family, values: tuple[str, ...]) -> tuple[str, ...]:
    name, labels = family.full_name, _labels(family, values)
    limits = [_labels(family, values, f'le="{bound}"') for bound in BOUNDS]
    return (*(f"{name}_bucket{limit} " for limit in limits), f"{name}_count{labels} ", f"{name}_sum{labels} ")


def _histogram_lines(heads: tuple[str, ...], slots: Sequence[int]) -> Iterator[str]:
    counts = list(accumulate(slots[:-1]))
    texts = (*counts, counts[-1], slots[-1] / 1e9)
    return (f"{head}{text}\n" for head, text in zip(heads, texts, strict=True))


# --- /proc ------------------------------------------------------------------------------------------------------------

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BOOT = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
"""When the machine started. Asked once, so that a process always started at the same time; and not of /proc/stat, which
is hidden where /proc shows processes only (systemd's ProcSubset=pid)."""


def read_processes(pids: Mapping[str, int]) -> dict[str, list[tuple[str, float]]]:
    """family -> (label, value), from proc(5). prometheus_client's collector has no label for the process."""
    found: dict[str, list[tuple[str, float]]] = {}
    for label, pid in pids.items():
        for name, value in _read_process(Path("/proc") / str(pid)):
            found.setdefault(name, []).append((label, value))
    return found


def _read_process(folder: Path) -> list[tuple[str, float]]:
    """What can be read: a process may end in between, or belong to somebody else."""
    found: list[tuple[str, float]] = []
    try:
        # The second field is the command in brackets and may hold anything, brackets and spaces too.
        stat = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        user, system = int(stat[11]) / _TICKS, int(stat[12]) / _TICKS
        found += [
            ("process_cpu_user_seconds_total", user),
            ("process_cpu_system_seconds_total", system),
            ("process_cpu_seconds_total", user + system),
            ("process_resident_memory_bytes", int(stat[21]) * _PAGE),
            ("process_virtual_memory_bytes", int(stat[20])),
            ("process_start_time_seconds", _BOOT + int(stat[19]) / _TICKS),
        ]
        limits = (folder / "limits").read_text()
        soft = next(line.split()[3] for line in limits.splitlines() if line.startswith("Max open files"))
        found.append(("process_max_fds", int(soft)))
        found.append(("process_open_fds", sum(1 for _ in (folder / "fd").iterdir())))
    except (OSError, ValueError):
        pass
    return found
