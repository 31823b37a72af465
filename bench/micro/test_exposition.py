"""What a scrape costs the supervisor."""

import os

from pytest_benchmark.fixture import BenchmarkFixture

from bench.micro.test_metrics import busy
from vizora_rt import config
from vizora_rt.telemetry.exposition import Totals, read_processes
from vizora_rt.wire import messages

DEVICES = 20_000
WORKERS = 4


def rows(first: int, count: int) -> list[list[object]]:
    return [
        [f"0f8fad5b-d9cb-469f-a165-{n:012d}", f"org-{n % 200}", 1, n / 7 % 100, n / 3 % 100, 1, 0]
        for n in range(first, first + count)
    ]


def full(devices: int) -> Totals:
    totals = Totals(config.MetricsSettings(max_device_series=DEVICES))
    for worker in range(WORKERS):
        totals.merge(str(worker), messages.loads(messages.dumps(busy().snapshot())))
    totals.devices("0", rows(0, devices), 0.0)
    return totals


def test_render_without_devices(benchmark: BenchmarkFixture) -> None:
    assert benchmark(full(0).render, False).endswith(b"\n")


def test_render_20000_devices(benchmark: BenchmarkFixture) -> None:
    """Four series each: status, CPU, memory, heartbeats."""
    body = benchmark(full(DEVICES).render, False)
    assert body.count(b"device_id=") == 4 * DEVICES


def test_render_20000_devices_openmetrics(benchmark: BenchmarkFixture) -> None:
    assert benchmark(full(DEVICES).render, True).endswith(b"# EOF\n")


def test_merge(benchmark: BenchmarkFixture) -> None:
    totals = full(0)
    metrics = busy()
    totals.merge("9", metrics.snapshot())
    benchmark(totals.merge, "9", metrics.snapshot())


def test_devices_250_rows(benchmark: BenchmarkFixture) -> None:
    totals = full(DEVICES)
    turn = rows(1000, 250)
    benchmark(totals.devices, "0", turn, 1.0)


def test_beats_of_1000_devices(benchmark: BenchmarkFixture) -> None:
    totals = full(DEVICES)
    turn = [[row[0], 1, 0] for row in rows(1000, 1000)]
    benchmark(totals.beats, "0", turn, 1.0)


def test_expire_20000_devices(benchmark: BenchmarkFixture) -> None:
    totals = full(DEVICES)
    benchmark(totals.expire, 10.0)


def test_read_five_processes(benchmark: BenchmarkFixture) -> None:
    pids = {f"worker-{number}": os.getpid() for number in range(5)}
    assert len(benchmark(read_processes, pids)) == 8
