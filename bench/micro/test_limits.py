"""What a message and a handshake pay to be counted against their limits."""

import itertools

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.limits import KeyedRateLimiter, Rate, RateLimiter

NOW = 1_764_000_000.0


def test_a_message(benchmark: BenchmarkFixture) -> None:
    rate = Rate(120, 240)

    def take() -> float:
        return rate.next(NOW - 10, NOW) if not rate.wait(NOW - 10, NOW) else 0.0

    assert benchmark(take) > 0


def test_a_connect(benchmark: BenchmarkFixture) -> None:
    """Each of another token, as of a fleet that comes back."""
    meter, keys = KeyedRateLimiter(30), itertools.count()
    benchmark(lambda: meter.take(next(keys), NOW))
    assert len(meter) > 0


def test_a_handshake(benchmark: BenchmarkFixture) -> None:
    budget, clock = RateLimiter(2500), itertools.count()
    assert benchmark(lambda: budget.take(NOW + next(clock))) is True
