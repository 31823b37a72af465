"""What a worker pays to check a message of another: the most frequent, and the longest that is sent."""

import json

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.dashboards import status_body
from vizora_rt.wire import bells


def test_one_status(benchmark: BenchmarkFixture) -> None:
    status = json.loads(status_body("lobby-1", "online", 1796065784882, 1796065784882, "connected", 1796065784882))
    assert benchmark(bells.read, "status", status)


def test_five_hundred_devices(benchmark: BenchmarkFixture) -> None:
    message = {"look": [f"lobby-{number}" for number in range(500)]}
    assert benchmark(bells.read, "look", message)
