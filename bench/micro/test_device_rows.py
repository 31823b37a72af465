"""What the figures of devices cost a worker: once a second for those that sent heartbeats, and for a scrape."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.device_rows import DeviceRows
from vizora_rt.app.state import Device, State
from vizora_rt.wire import messages
from vizora_rt.wire.payloads import DeviceMetrics, Heartbeat

DEVICES = 1_000
BEAT = Heartbeat(metrics=DeviceMetrics(cpu_usage=41.5, memory_usage=63.0), uptime=86400.0)


def full() -> State:
    state = State(lambda: None)
    for number in range(DEVICES):
        device = Device(f"0f8fad5b-d9cb-469f-a165-{number:012d}", f"org-{number % 20}")
        device.heartbeat = BEAT
        state.devices[device.id] = device
    return state


def test_beats_of_1000_devices(benchmark: BenchmarkFixture) -> None:
    """As it goes into the channel: with its JSON."""
    state = full()
    rows = DeviceRows(state)

    def second() -> int:
        for device in state.devices.values():
            device.heartbeats_ok = 1
            state.count(device)
        return sum(len(messages.dumps(chunk)) for chunk in rows.beats(DEVICES))

    assert benchmark(second) > DEVICES


def test_measured_1000_devices(benchmark: BenchmarkFixture) -> None:
    state = full()
    rows = DeviceRows(state)

    def scrape() -> int:
        for device in state.devices.values():
            device.measured = False
        return sum(len(messages.dumps(chunk)) for chunk in rows.measured(250))

    assert benchmark(scrape) > DEVICES
