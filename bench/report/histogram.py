"""Latencies: counted while a run lasts, HDR histograms after it. The only `hdrh`.

A histogram covers 1 us to an hour with three significant digits, whatever was measured; histograms of several load
processes add up to the one that a single process would have made. A `.hlog` file is the standard log of HdrHistogram, a
line an interval, which its tools read.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from hdrh.histogram import HdrHistogram  # type: ignore[import-untyped]
from hdrh.log import HistogramLogReader, HistogramLogWriter  # type: ignore[import-untyped]

LONGEST_US: Final = 3_600_000_000
DIGITS: Final = 3

Counts = Mapping[int, int]
"""How often each latency was seen, by the microsecond."""


class Latencies:
    """Counted by the microsecond while a run lasts, and put into an HDR histogram after it.

    HdrHistogram.record_value takes 1.5 us, a tenth of what the server takes for a message; this takes 0.1 us.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: defaultdict[int, int] = defaultdict(int)

    def record(self, ns: int) -> None:
        self.counts[ns // 1000] += 1


@dataclass(frozen=True, slots=True)
class Stats:
    """What is told of a histogram; times in seconds."""

    count: int
    min: float
    mean: float
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float
    p999: float
    p9999: float
    max: float


STAT_NAMES: Final = {
    each.name: {"p999": "p99.9", "p9999": "p99.99"}.get(each.name, each.name) for each in fields(Stats)
}
"""How a statistic is written in a threshold and in a report."""

PERCENTS: Final = (50, 75, 90, 95, 99, 99.9, 99.99, 100)
CURVE: Final = tuple(100 - 100 / 2 ** (step / 4) for step in range(81))
"""Where a latency curve is drawn: four points for each halving of the share above, up to one in a million."""


def of(counts: Counts) -> HdrHistogram:
    histogram = HdrHistogram(1, LONGEST_US, DIGITS)
    for us, count in counts.items():
        histogram.record_value(min(max(us, 1), LONGEST_US), count)
    return histogram


def stats(counts: Counts) -> Stats:
    if not counts:
        return Stats(0, *[0.0] * 10)
    histogram = of(counts)
    at = [histogram.get_value_at_percentile(percent) / 1e6 for percent in PERCENTS]
    least, mean = histogram.get_min_value() / 1e6, histogram.get_mean_value() / 1e6
    return Stats(histogram.get_total_count(), least, mean, *at)


def curve(counts: Counts) -> list[tuple[float, float]]:
    """Percentile and latency in seconds, up to the percentile that one of the latencies stands for."""
    if not counts:
        return []
    histogram = of(counts)
    finest = 100 - 100 / histogram.get_total_count()
    points = [percent for percent in CURVE if percent < finest] + [100.0]
    return [(percent, histogram.get_value_at_percentile(percent) / 1e6) for percent in points]


def write_log(file: Path, started: float, intervals: Iterable[tuple[float, float, Counts]]) -> None:
    """`started` is a time of day, an interval its begin and end in seconds since then, and what was seen in it."""
    with file.open("w", encoding="utf-8") as stream:
        writer = HistogramLogWriter(stream)
        writer.output_log_format_version()
        writer.output_comment("[values and Interval_Max are microseconds]")
        writer.output_comment(f"[StartTime: {started:.3f} (seconds since epoch)]")
        writer.output_legend()
        for begin, end, counts in intervals:
            # The writer takes a begin of 0 for none, and then asks the histogram, which has a time of its own.
            writer.output_interval_histogram(of(counts), begin or 1e-9, end, 1.0)


def read_log(file: Path) -> list[HdrHistogram]:
    """The histograms of a log, an interval each."""
    reference = HdrHistogram(1, LONGEST_US, DIGITS)
    reader, found = HistogramLogReader(str(file), reference), []
    try:
        while (histogram := reader.get_next_interval_histogram()) is not None:
            found.append(histogram)
    finally:
        reader.close()
    return found
