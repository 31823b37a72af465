"""What a handshake pays that comes while the node has no time: for its turn, and for having had one."""

import itertools

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.retry_schedule import MEMORY_BYTES, RetrySchedule, key_of

NOW = 764_000.0
KEYS = [key_of(f"screen-{number}") for number in range(20_000)]


def turns() -> RetrySchedule:
    return RetrySchedule(memoryview(bytearray(MEMORY_BYTES)), 5000)


def test_a_key(benchmark: BenchmarkFixture) -> None:
    assert benchmark(key_of, "screen-1") > 0


def test_a_turn(benchmark: BenchmarkFixture) -> None:
    """Of a fleet of 20,000, most of which have one already."""
    of, keys = turns(), itertools.cycle(KEYS)
    assert benchmark(lambda: of.take(next(keys), NOW)) > NOW


def test_it_is_in(benchmark: BenchmarkFixture) -> None:
    of, keys = turns(), itertools.cycle(KEYS)
    for key in KEYS:
        of.take(key, NOW)
    benchmark(lambda: of.forget(next(keys), NOW))
