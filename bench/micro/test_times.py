"""What a play pays for its time to be read: a number, the text of most players, and one in a form of its own."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.wire.times import milliseconds


@pytest.mark.parametrize("time", [1_796_047_206_000, "2026-11-30T14:00:06.000Z", "Mon, 30 Nov 2026 14:00:06 GMT"])
def test_milliseconds(benchmark: BenchmarkFixture, time: int | str) -> None:
    assert benchmark(milliseconds, time) == 1_796_047_206_000
