"""What the body of a control call pays to be checked: the smallest, and the largest that is allowed."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.wire.bodies import Broadcast, DeviceCommand, check

COMMAND = {"type": "reload", "payload": {"reason": "night"}, "ttl": 60}


def test_one_device(benchmark: BenchmarkFixture) -> None:
    body = {"deviceId": "lobby-1", "command": COMMAND}
    assert isinstance(benchmark(check, DeviceCommand, body), DeviceCommand)


def test_ten_thousand_devices(benchmark: BenchmarkFixture) -> None:
    body = {"deviceIds": [f"lobby-{number}" for number in range(10_000)], "command": COMMAND}
    assert isinstance(benchmark(check, Broadcast, body), Broadcast)
