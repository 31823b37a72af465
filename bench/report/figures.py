"""From what was measured to what is told: kinds with their histograms, a timeline, figures by name, and doubts."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

from bench.load.counters import Interval, Taken
from bench.load.load_context import Connects, Measured
from bench.load.server import STORE, Process
from bench.plan import Options
from bench.report import histogram, schema
from bench.report.histogram import Counts

SATURATED: Final = 0.97
STARVED: Final = 0.05
"""Shares of the time: of a load process on its core, and of one waiting for a core."""
ENDED: Final = "ended: "
ENOUGH: Final = 20
"""Connections to divide by: /proc counts CPU in hundredths of a second, memory in pages that many share."""


@dataclass(slots=True)
class Look:
    """The gateway's processes at one moment, and what all that ever were have used."""

    at: float
    processes: dict[int, Process]
    used: tuple[float, float]
    store: tuple[float, float]

    @property
    def resident(self) -> int:
        return sum(process.resident for process in self.mine)

    @property
    def descriptors(self) -> int:
        return sum(process.descriptors for process in self.mine)

    @property
    def mine(self) -> list[Process]:
        return [process for process in self.processes.values() if process.name != STORE]


@dataclass(slots=True)
class Measurement:
    """All of a run. `looks` are before and after the connect phase, then at each end of an interval."""

    options: Options
    storm: bool
    asked: int
    connects: list[Connects]
    measured: list[Measured]
    before: Look
    connected: Look
    looks: list[Look]
    marks: list[tuple[float, str]]
    split: float | None = None
    extra: dict[str, float] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        return self.looks[-1].at - self.looks[0].at

    @property
    def intervals(self) -> list[list[Interval]]:
        """Those of the run, each of all processes; not that of the answers after its end."""
        return [list(each) for each in zip(*(process.intervals[:-1] for process in self.measured), strict=True)]

    @property
    def every(self) -> list[Interval]:
        return [interval for process in self.measured for interval in process.intervals]

    def kind_names(self) -> list[str]:
        return [
            name
            for name in dict.fromkeys(name for interval in self.every for name in interval.kinds)
            if any(taken(interval, name).sent or taken(interval, name).accepted for interval in self.every)
        ]


NOTHING: Final = Taken(0, 0, Counter(), 0, {})


def taken(interval: Interval, kind: str) -> Taken:
    return interval.kinds.get(kind, NOTHING)


def merged(all_counts: Iterator[Counts]) -> Counts:
    total: defaultdict[int, int] = defaultdict(int)
    for counts in all_counts:
        for us, count in counts.items():
            total[us] += count
    return total


def latency(counts: Counts) -> schema.Latency:
    return schema.Latency(**asdict(histogram.stats(counts)))


def kind(run: Measurement, name: str, log: str) -> schema.Kind:
    of = [taken(interval, name) for interval in run.every]
    counts = merged(each.counts for each in of)
    sent, accepted = sum(each.sent for each in of), sum(each.accepted for each in of)
    refused = sum((each.refused for each in of), Counter[str]())
    within = sum(taken(interval, name).accepted for turn in run.intervals for interval in turn)
    return schema.Kind(
        name=name,
        sent=sent,
        accepted=accepted,
        refused=dict(refused),
        lost=max(0, sent - accepted - refused.total()),
        rate=schema.rounded(within / run.elapsed),
        latency=latency(counts),
        curve=histogram.curve(counts),
        log=log,
    )


def timeline(run: Measurement, names: Sequence[str]) -> schema.Timeline:
    turns, series = run.intervals, {}
    lengths = [after.at - before.at for before, after in zip(run.looks, run.looks[1:], strict=False)]
    for name in names:
        found = [histogram.stats(merged(taken(each, name).counts for each in turn)) for turn in turns]
        series[name] = schema.Series(
            rate=[schema.rounded(each.count / length) for each, length in zip(found, lengths, strict=True)],
            p50=[each.p50 if each.count else None for each in found],
            p99=[each.p99 if each.count else None for each in found],
            max=[each.max if each.count else None for each in found],
        )
    return schema.Timeline(
        seconds=[round(look.at - run.looks[0].at, 3) for look in run.looks[1:]],
        connections=[sum(each.connections for each in turn) for turn in turns],
        kinds=series,
        processes=list(processes(run.looks)),
        marks=[schema.Mark(at=at, what=what) for at, what in run.marks],
    )


def processes(looks: Sequence[Look]) -> Iterator[schema.Process]:
    for pid in dict.fromkeys(pid for look in looks for pid in look.processes):
        seen = [look.processes.get(pid) for look in looks]
        cpu: list[float | None] = []
        for number in range(1, len(looks)):
            before, after = seen[number - 1], seen[number]
            length = looks[number].at - looks[number - 1].at
            used = None if before is None or after is None else after.user + after.system - before.user - before.system
            cpu.append(None if used is None else schema.rounded(used / length))
        there = [each for each in seen if each is not None]
        yield schema.Process(
            pid=pid,
            name=there[-1].name,
            cpu=cpu,
            memory=[None if each is None else each.resident for each in seen[1:]],
            descriptors=[None if each is None else each.descriptors for each in seen[1:]],
        )


def figures(run: Measurement, kinds: Sequence[schema.Kind]) -> dict[str, float]:
    """All that a threshold can be set on."""
    opened, elapsed = sum(each.opened for each in run.connects), run.elapsed
    found: dict[str, float] = {}
    messages = [each for each in kinds if each.name not in ("connect", "reconnect", "command", "notice")]
    sent, accepted = sum(each.sent for each in messages), sum(each.accepted for each in messages)
    if run.asked:
        found["connected"] = opened / run.asked
    if sent:
        found |= {"acked": accepted / sent, "errors": (sent - accepted) / sent}
    for each in kinds:
        found[f"{each.name}.rate"] = each.rate
        if each.sent:
            found[f"{each.name}.accepted"] = each.accepted / each.sent
            found[f"{each.name}.errors"] = (each.sent - each.accepted) / each.sent
        stats = {field: getattr(each.latency, field) for field in each.latency.__struct_fields__}
        found |= {f"{each.name}.{histogram.STAT_NAMES[field]}": value for field, value in stats.items()}
    every = counters(run)
    found["ended"] = sum(count for what, count in every.items() if what.startswith(ENDED))
    answered = sum(each.messages for turn in run.intervals for interval in turn for each in interval.kinds.values())
    found["rate"] = answered / elapsed
    if run.connected.processes:
        connected = sum(each.accepted for each in kinds if each.name == "connect")
        found |= costs(run, answered, opened, connected if run.storm else 0)
    if any(each.name == "reconnect" for each in kinds):
        found["reconnect.peak"] = peak(run, "reconnect")
    if run.split is not None:
        found |= rise(run)
    return {name: schema.rounded(value) for name, value in (found | run.extra).items()}


def costs(run: Measurement, answered: int, opened: int, storm: int) -> dict[str, float]:
    """CPU and memory of the gateway: per message, per connection, and over time."""
    first, last = run.looks[0], run.looks[-1]
    user, system = (after - before for before, after in zip(first.used, last.used, strict=True))
    found = {"cpu.cores": (user + system) / run.elapsed}
    if answered:
        found |= {"cpu": (user + system) / answered, "cpu.user": user / answered, "cpu.system": system / answered}
        found["store.cpu"] = (sum(last.store) - sum(first.store)) / answered
    if storm:
        found |= {"connect.cpu": (user + system) / storm, "memory": (last.resident - first.resident) / storm}
    elif opened >= ENOUGH:
        found["connect.cpu"] = (sum(run.connected.used) - sum(run.before.used)) / opened
        found["memory"] = (run.connected.resident - run.before.resident) / opened
    tenth = max(1, len(run.looks) // 10)
    early, late = (sum(look.resident for look in part) / len(part) for part in (run.looks[:tenth], run.looks[-tenth:]))
    held = [sum(each.connections for each in turn) for turn in run.intervals]
    found |= {"memory.start": early, "memory.end": late, "memory.growth": max(0.0, late / max(1, early) - 1)}
    found["descriptors.growth"] = max(0, (last.descriptors - held[-1]) - (run.looks[1].descriptors - held[0]))
    return found


def rise(run: Measurement) -> dict[str, float]:
    """What the heartbeats' p99 was before and after the split, and how much higher."""
    turns = run.intervals
    at = round(len(turns) * (run.split or 0))
    halves = [
        histogram.stats(merged(taken(each, "heartbeat").counts for turn in part for each in turn)).p99
        for part in (turns[:at], turns[at:])
    ]
    return {
        "heartbeat.p99_before": halves[0],
        "heartbeat.p99_after": halves[1],
        "scrape.rise": max(0.0, halves[1] - halves[0]),
    }


def peak(run: Measurement, name: str) -> float:
    """The most answers a second of a kind, within any second or longer interval."""
    turns = [sum(taken(each, name).accepted for each in turn) for turn in run.intervals]
    times = [look.at for look in run.looks]
    several = max(1, round(len(turns) / run.elapsed))
    return max(
        sum(turns[at : at + several]) / (times[min(at + several, len(turns))] - times[at]) for at in range(len(turns))
    )


def counters(run: Measurement) -> Counter[str]:
    """What happened besides messages."""
    total = sum((interval.counters for interval in run.every), Counter[str]())
    for connects in run.connects:
        total.update({f"connect failed: {reason}": count for reason, count in connects.failed.items()})
    return total


def generator(run: Measurement) -> schema.Generator:
    late = merged(interval.lateness for interval in run.every)
    return schema.Generator(
        processes=len(run.measured),
        busy=schema.rounded(max(each.busy for each in run.measured)),
        busiest=schema.rounded(max(each.busiest for each in run.measured)),
        waited=schema.rounded(max(each.waited for each in run.measured)),
        late=latency(late),
    )


def doubts(found: schema.Generator, options: Options) -> Iterator[str]:
    """Why the figures are the generator's and not the gateway's."""
    if found.waited > STARVED:
        yield f"a load process waited for a core {found.waited:.0%} of the time: give it one of its own"
    if not found.late.count:
        if found.busy > SATURATED:
            yield f"a load process was busy {found.busy:.0%} of the time: the gateway could have done more (--workers)"
        return
    if found.busiest > SATURATED:
        yield f"a load process was busy {found.busiest:.0%} of an interval: latencies are its own (--workers)"
    if found.late.p99 > options.late:
        yield f"one message in a hundred left {found.late.p99 * 1e3:.2f} ms late or later"


def logs(run: Measurement, name: str) -> list[tuple[float, float, Counts]]:
    """The intervals of one kind for its .hlog file, that of the last answers at the end."""
    starts = [look.at - run.looks[0].at for look in run.looks]
    rows = [
        (starts[number], starts[number + 1], merged(taken(each, name).counts for each in turn))
        for number, turn in enumerate(run.intervals)
    ]
    last = merged(taken(process.intervals[-1], name).counts for process in run.measured)
    return [*rows, (starts[-1], starts[-1] + 1.0, last)] if last else rows
