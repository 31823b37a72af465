"""What counting costs on a worker's loop: an addition, an observation, a snapshot a second."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt import config
from vizora_rt.telemetry.metrics import FAMILIES, Metrics, Timer, negotiate
from vizora_rt.wire import messages

ROUNDS = range(1000)


def busy() -> Metrics:
    """Every closed family counted, and 200 organisations: about 4,500 integers."""
    metrics = Metrics(config.MetricsSettings())
    for family in FAMILIES:
        if family.origin == "worker":
            for values in family.children_at_start:
                if family.kind == "histogram":
                    metrics.timer(family.name, *values).observe(7_300)
                else:
                    metrics.counter(family.name, *values).value += 1
    for number in range(200):
        metrics.organization("ws_connections_total", f"org-{number}", "connected").value += 1
        metrics.organization("ws_connections_active", f"org-{number}", "device").value += 1
        metrics.organization("content_impressions_total", f"org-{number}").value += 1
        metrics.gauge("devices_online", f"org-{number}").value += 1
    for pattern in ("/metrics", "/health", "/internal/command", "/commands/broadcast", "/push/playlist"):
        for method in ("GET", "POST"):
            for status in ("200", "401", "503"):
                metrics.counter("http_requests_total", method, pattern, status).value += 1
            metrics.timer("http_request_duration_seconds", method, pattern).observe(300_000)
    return metrics


def test_count_1000(benchmark: BenchmarkFixture) -> None:
    cell = Metrics(config.MetricsSettings()).counter("ws_messages_total", "heartbeat", "ok")

    def count() -> None:
        for _ in ROUNDS:
            cell.value += 1

    benchmark(count)
    assert cell.value >= 1000


def test_observe_1000(benchmark: BenchmarkFixture) -> None:
    timer = Timer()

    def observe() -> None:
        observe = timer.observe
        for _ in ROUNDS:
            observe(7_300)

    benchmark(observe)
    assert sum(timer.slots[:-1]) >= 1000


def test_look_up_a_child(benchmark: BenchmarkFixture) -> None:
    """Why hot paths hold their children."""
    metrics = busy()
    assert benchmark(metrics.counter, "ws_messages_total", "heartbeat", "ok").value == 1


def test_snapshot(benchmark: BenchmarkFixture) -> None:
    metrics = busy()
    snapshot = benchmark(metrics.snapshot)
    assert len(snapshot["values"]) + len(snapshot["timers"]) > 2000


def test_snapshot_as_json(benchmark: BenchmarkFixture) -> None:
    metrics = busy()
    metrics.snapshot()
    assert len(benchmark(lambda: messages.dumps(metrics.snapshot()))) > 4000


def test_negotiate(benchmark: BenchmarkFixture) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    assert benchmark(negotiate, accept)[0]
