"""What a drain pays to tell each of 20,000 connections its time."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.reconnect_schedule import reconnect_schedules


def test_twenty_thousand(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(lambda: list(reconnect_schedules(20_000, 5.0, 0.0, 2500)))) == 20_000
