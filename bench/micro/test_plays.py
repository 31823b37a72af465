"""What plays pay before they are written: the arguments of the script, one play a message or 200."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt import config
from vizora_rt.app.plays import PlayRecorder, partition
from vizora_rt.app.state import Device
from vizora_rt.wire.payloads import Impression, Impressions, validate

NOW = 1_764_000_000_000
PLAY = {"contentId": "spot", "playlistId": "p", "duration": 20, "completionPercentage": 100, "timestamp": NOW}


def recorder() -> PlayRecorder:
    plays = PlayRecorder(config.PlaySettings())
    plays.partitions = 16
    return plays


def test_one(benchmark: BenchmarkFixture) -> None:
    payload = validate(Impression, {**PLAY, "play": {"boot": "b", "seq": 9, "phase": "end"}})
    assert isinstance(payload, Impression)
    assert benchmark(recorder().impression, Device("lobby", "acme"), payload, NOW).write is not None


def test_without_a_number(benchmark: BenchmarkFixture) -> None:
    """A player in the field: its plays are told apart by a digest."""
    payload = validate(Impression, PLAY)
    assert isinstance(payload, Impression)
    assert benchmark(recorder().impression, Device("lobby", "acme"), payload, NOW).write is not None


def test_two_hundred(benchmark: BenchmarkFixture) -> None:
    played = [{**PLAY, "seq": number, "phase": "end"} for number in range(1, 201)]
    payload = validate(Impressions, {"boot": "b", "plays": played})
    assert isinstance(payload, Impressions)
    assert benchmark(recorder().impressions, Device("lobby", "acme"), payload, NOW).write is not None


def test_partition(benchmark: BenchmarkFixture) -> None:
    assert 0 <= benchmark(partition, b"lobby-1", 16) < 16
