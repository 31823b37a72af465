"""What a heartbeat pays for its schema, and one that does not fit it."""

from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.test_messages import DATA
from vizora_rt.wire.payloads import Heartbeat, Repaired, validate

MISFITS: dict[str, dict[str, Any]] = {
    "one field more": {**DATA, "battery": 71},
    "one metric more": {**DATA, "metrics": {**DATA["metrics"], "gpuUsage": 5}},
    "one wrong type": {**DATA, "contentVersion": 1764000000000},
}


def test_validate(benchmark: BenchmarkFixture) -> None:
    assert isinstance(benchmark(validate, Heartbeat, DATA), Heartbeat)


@pytest.mark.parametrize("data", MISFITS.values(), ids=MISFITS.keys())
def test_validate_a_misfit(benchmark: BenchmarkFixture, data: dict[str, Any]) -> None:
    assert isinstance(benchmark(validate, Heartbeat, data), Repaired)
