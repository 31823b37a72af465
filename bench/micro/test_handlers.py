"""What a heartbeat pays for being taken into memory."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.handlers import Handlers
from vizora_rt.app.state import Device, State
from vizora_rt.config import PlayerSettings
from vizora_rt.wire.payloads import DeviceMetrics, Heartbeat

NOW = 1_764_000_000_000

BEAT = Heartbeat(metrics=DeviceMetrics(cpu_usage=41.5), current_content="content-8213", uptime=86400.0)


def test_heartbeat(benchmark: BenchmarkFixture) -> None:
    """The ordinary case: the device waits to be written already."""
    handlers = Handlers(State(lambda: None), PlayerSettings())
    device = Device("lobby-1", "acme")
    assert benchmark(handlers.heartbeat, device, BEAT, NOW).reply


def test_heartbeat_after_a_write(benchmark: BenchmarkFixture) -> None:
    """The first one after the device was written and its series were shipped."""
    state = State(lambda: None)
    handlers = Handlers(state, PlayerSettings())
    device = Device("lobby-1", "acme")

    def beat() -> None:
        handlers.heartbeat(device, BEAT, NOW)
        state.dirty.clear()
        state.counted.clear()
        device.dirty = device.counted = False

    benchmark(beat)
    assert device.heartbeats_ok > 0
