"""What a load process counts: one tally for each kind of message, and all of them together, interval by interval."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import NamedTuple

from bench.report.histogram import Counts, Latencies
from vizora_rt.wire.messages import JSONError, loads


class Taken(NamedTuple):
    """What was counted of one kind in an interval. `messages` are answers: one may be for several plays."""

    sent: int
    accepted: int
    refused: Counter[str]
    messages: int
    counts: Counts


class Tally:
    """One kind of message since `reset`. One from before it counts for nothing, nor does its ack."""

    __slots__ = ("_before", "accepted", "latencies", "messages", "refused", "sent", "since")

    def __init__(self, since: int | None = None) -> None:
        self.reset(perf_counter_ns() if since is None else since)

    def reset(self, since: int) -> None:
        """`since` may lie ahead: until then it is warm-up."""
        self.since = since
        self.sent = self.accepted = self.messages = 0
        self.refused: Counter[str] = Counter()
        self.latencies = Latencies()
        self._before = (0, 0, Counter[str](), 0)

    def take(self) -> Taken:
        """What has come since the last call of this."""
        sent, accepted, refused, messages = self._before
        self._before = (self.sent, self.accepted, self.refused.copy(), self.messages)
        counts, self.latencies = self.latencies.counts, Latencies()
        return Taken(
            self.sent - sent, self.accepted - accepted, self.refused - refused, self.messages - messages, counts
        )

    def ask(self, due: int) -> None:
        """A message was due, and sent."""
        if due >= self.since:
            self.sent += 1

    def succeed(self, due: int, now: int, messages: int = 1) -> None:
        if due >= self.since:
            self.latencies.record(now - due)
            self.accepted += 1
            self.messages += messages

    def refuse(self, due: int, now: int, code: str) -> None:
        if due >= self.since:
            self.latencies.record(now - due)
            self.refused[code] += 1
            self.messages += 1

    def ack(self, payload: bytes, sent: int, now: int) -> None:
        if sent < self.since:
            return
        self.latencies.record(now - sent)
        self.messages += 1
        if payload.find(b'"success":true') > 0 or (code := refusal(payload)) is None:
            self.accepted += 1
        else:
            self.refused[code] += 1

    @property
    def answered(self) -> int:
        return self.accepted + self.refused.total()


def refusal(payload: bytes) -> str | None:
    """The code in an ack of either dialect, or None when it is one of success."""
    try:
        body = loads(payload[payload.index(b"[") :])[0] if payload[:2] == b"43" else loads(payload)["data"]
        return None if body["success"] is True else str(body["code"])
    except (JSONError, LookupError, TypeError, ValueError):
        return "not an ack of ours"


@dataclass(slots=True)
class Interval:
    """A second or so of a load process. `counters` are what happened besides messages."""

    kinds: dict[str, Taken] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)
    lateness: Counts = field(default_factory=dict)
    connections: int = 0


class Recorder:
    """All that one load process measures. `connections` tells how many are open."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.counters: Counter[str] = Counter()
        self.lateness = Latencies()
        self.since = 2**63
        self.connections: Callable[[], int] = int

    def tally(self, kind: str) -> Tally:
        """The one of a kind; before `begin` nothing counts."""
        if kind not in self.tallies:
            self.tallies[kind] = Tally(self.since)
        return self.tallies[kind]

    def begin(self, since: int) -> None:
        """Messages count that are due at `since` or later, and all else from now on."""
        self.since = since
        self.counters.clear()
        self.lateness = Latencies()
        for result in self.tallies.values():
            result.reset(since)

    def take(self) -> Interval:
        """What has come since the last call of this."""
        counters, self.counters = self.counters, Counter()
        lateness, self.lateness = self.lateness.counts, Latencies()
        kinds = {name: result.take() for name, result in self.tallies.items()}
        return Interval(kinds, counters, lateness, self.connections())
