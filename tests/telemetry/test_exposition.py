"""Totals: literal text, both parsers of prometheus_client, and counters that never go back whatever workers do."""

import math
import os
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from vizora_rt import config
from vizora_rt.telemetry.exposition import Totals, read_processes
from vizora_rt.telemetry.metrics import BOUNDS_NS, FAMILIES, PREFIX, SLOTS, Metrics
from vizora_rt.wire import messages

SETTINGS = config.MetricsSettings()


def made(metrics: Metrics | None = None) -> Totals:
    totals = Totals(SETTINGS, "1.2.3", "abc1234")
    if metrics is not None:
        ship(totals, "0", metrics)
    return totals


def ship(totals: Totals, worker: str, metrics: Metrics, process: int = 0) -> None:
    """A snapshot as it arrives: through JSON."""
    totals.merge(worker, messages.loads(messages.dumps(metrics.snapshot())), process)


def family(totals: Totals, name: str, openmetrics: bool = False) -> bytes:
    """The text of one family, its header included."""
    blocks = totals.render(openmetrics).split(b"# HELP ")
    return b"".join(b"# HELP " + block for block in blocks if block.startswith(name.encode() + b" "))


def values(totals: Totals) -> dict[str, float]:
    """series as written -> value"""
    lines = totals.render(False).decode().splitlines()
    return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


# --- text -------------------------------------------------------------------------------------------------------------


def test_counter_literal() -> None:
    metrics = Metrics(SETTINGS)
    metrics.counter("ws_bytes_total", "in").value = 12_345_678_901
    totals = made(metrics)
    assert family(totals, "vizora_realtime_ws_bytes_total") == (
        b"# HELP vizora_realtime_ws_bytes_total Bytes read from and written to clients.\n"
        b"# TYPE vizora_realtime_ws_bytes_total counter\n"
        b'vizora_realtime_ws_bytes_total{direction="in"} 12345678901\n'
        b'vizora_realtime_ws_bytes_total{direction="out"} 0\n'
    )
    assert family(totals, "vizora_realtime_ws_bytes", openmetrics=True) == (
        b"# HELP vizora_realtime_ws_bytes Bytes read from and written to clients.\n"
        b"# TYPE vizora_realtime_ws_bytes counter\n"
        b"# UNIT vizora_realtime_ws_bytes bytes\n"
        b'vizora_realtime_ws_bytes_total{direction="in"} 12345678901\n'
        b'vizora_realtime_ws_bytes_total{direction="out"} 0\n'
    )


def test_gauge_literals() -> None:
    metrics = Metrics(SETTINGS)
    metrics.gauge("eventloop_lag_seconds_max").value = 1_500_000
    metrics.organization("ws_connections_active", "acme", "device").value = 7
    totals = made(metrics)
    assert family(totals, "vizora_realtime_eventloop_lag_seconds_max") == (
        b"# HELP vizora_realtime_eventloop_lag_seconds_max The largest event loop lag of the last minute.\n"
        b"# TYPE vizora_realtime_eventloop_lag_seconds_max gauge\n"
        b'vizora_realtime_eventloop_lag_seconds_max{worker="0"} 0.0015\n'
    )
    assert family(totals, "vizora_realtime_ws_connections_active") == (
        b"# HELP vizora_realtime_ws_connections_active Open connections.\n"
        b"# TYPE vizora_realtime_ws_connections_active gauge\n"
        b'vizora_realtime_ws_connections_active{organization_id="acme",kind="device"} 7\n'
        b'vizora_realtime_ws_connections_active{organization_id="acme",kind="dashboard"} 0\n'
    )


def test_histogram_literal() -> None:
    metrics = Metrics(SETTINGS)
    timer = metrics.timer("command_ack_duration_seconds")
    for ns in (1_000, 7_300, 7_300, 6_000_000_000):
        timer.observe(ns)
    name = b"vizora_realtime_command_ack_duration_seconds"
    cumulative = [1, 1, 1, *[3] * 18, 4]
    bounds = [
        *[b"1e-06", b"2.5e-06", b"5e-06", b"1e-05", b"2.5e-05", b"5e-05", b"0.0001", b"0.00025", b"0.0005", b"0.001"],
        *[b"0.0025", b"0.005", b"0.01", b"0.025", b"0.05", b"0.1", b"0.25", b"0.5", b"1.0", b"2.5", b"5.0", b"+Inf"],
    ]
    buckets = [b'%b_bucket{le="%b"} %d\n' % (name, *pair) for pair in zip(bounds, cumulative, strict=True)]
    expected = b"".join(
        [
            b"# HELP %b From the sent command to the device's ack.\n" % name,
            b"# TYPE %b histogram\n" % name,
            *buckets,
            b"%b_count 4\n" % name,
            b"%b_sum 6.0000156\n" % name,
        ]
    )
    totals = made(metrics)
    assert family(totals, name.decode()) == expected
    with_unit = expected.replace(b" histogram\n", b" histogram\n# UNIT %b seconds\n" % name)
    assert family(totals, name.decode(), openmetrics=True) == with_unit


def test_openmetrics_ends_with_eof_and_text_does_not() -> None:
    totals = made()
    assert totals.render(True).endswith(b"\n# EOF\n")
    assert b"EOF" not in totals.render(False)


def test_labels_are_escaped() -> None:
    metrics = Metrics(SETTINGS)
    metrics.gauge("devices_online", 'a"b\\c\nd').value = 1
    assert b'devices_online{organization_id="a\\"b\\\\c\\nd"} 1\n' in made(metrics).render(False)


def test_a_lone_surrogate_does_not_cost_the_scrape() -> None:
    metrics = Metrics(SETTINGS)
    metrics.gauge("devices_online", "\ud800").value = 1
    totals = made()
    totals.merge("0", metrics.snapshot())
    assert b'devices_online{organization_id="?"} 1\n' in totals.render(False)


# --- what prometheus_client reads -------------------------------------------------------------------------------------


def filled() -> Totals:
    """Two workers that counted everything once, with label values as bad as they get."""
    totals = made()
    for worker in ("0", "1"):
        metrics = Metrics(SETTINGS)
        for one in FAMILIES:
            if one.origin != "worker":
                continue
            given = [label.values[-1] if label.values else 'o"\\\n' + label.name for label in one.given]
            if one.kind == "histogram":
                metrics.timer(one.name, *given).observe(7_300)
            elif one.kind == "counter":
                metrics.counter(one.name, *given).value += 3
            else:
                metrics.gauge(one.name, *given).value = 5
        ship(totals, worker, metrics)
    totals.counter("worker_restarts_total", "crash").value += 1
    totals.gauge("workers", "ready").value = 2
    totals.gauge("scrape_workers_missing").value = 0
    totals.devices("0", [['d"\\\n', "o", 1, 12.5, 0, 3, 1]], 0.0)
    totals.processes({"supervisor": os.getpid()})
    return totals


def parsed(totals: Totals, openmetrics: bool) -> list[Metric]:
    text = totals.render(openmetrics).decode()
    return list(parse_openmetrics(text) if openmetrics else parse_text(text))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("openmetrics", [False, True])
def test_prometheus_client_reads_every_family(openmetrics: bool) -> None:
    found = parsed(filled(), openmetrics)
    # Its text parser takes `_total` off the names of counters too.
    assert [(f.name, f.type) for f in found] == [(f.openmetrics_name, f.kind) for f in FAMILIES]
    assert [f.documentation for f in found] == [f.help for f in FAMILIES]
    if openmetrics:
        assert [f.unit for f in found] == [f.unit for f in FAMILIES]
    for declared, read in zip(FAMILIES, found, strict=True):
        names = [label.name for label in declared.labels]
        assert read.samples, declared.name
        for sample in read.samples:
            assert [name for name in sample.labels if name != "le"] == names
            for label in declared.labels:
                assert label.values is None or sample.labels[label.name] in label.values


@pytest.mark.parametrize("openmetrics", [False, True])
def test_prometheus_client_reads_the_values(openmetrics: bool) -> None:
    read = {
        (sample.name, tuple(sample.labels.values())): sample.value
        for one in parsed(filled(), openmetrics)
        for sample in one.samples
    }
    assert read[PREFIX + "ws_messages_total", ("unknown", "failed")] == 6
    assert read[PREFIX + "ws_messages_total", ("heartbeat", "ok")] == 0
    assert read[PREFIX + "content_impressions_total", ('o"\\\norganization_id',)] == 6
    assert read[PREFIX + "devices_online", ('o"\\\norganization_id',)] == 10
    assert read[PREFIX + "redis_up", ("1",)] == 5
    assert read[PREFIX + "redis_memory_bytes", ()] == 5
    assert read[PREFIX + "eventloop_lag_seconds_max", ("0",)] == 5e-9
    assert read[PREFIX + "eventloop_lag_seconds_sum", ("0",)] == 7.3e-6
    assert read[PREFIX + "command_ack_duration_seconds_count", ()] == 2
    assert read[PREFIX + "heartbeat_total", ('d"\\\n', "true")] == 3
    assert read[PREFIX + "heartbeat_total", ('d"\\\n', "false")] == 1
    assert read[PREFIX + "device_cpu_usage", ('d"\\\n', "o")] == 12.5
    assert read[PREFIX + "devices_known", ()] == 1
    assert read[PREFIX + "worker_restarts_total", ("crash",)] == 1
    assert read[PREFIX + "workers", ("ready",)] == 2
    buckets = [
        (float(labels[0]), value)
        for (name, labels), value in read.items()
        if name == PREFIX + "command_ack_duration_seconds_bucket"
    ]
    assert buckets == [*((ns / 1e9, 2 * (ns >= 7_300)) for ns in BOUNDS_NS), (math.inf, 2)]


def test_no_series_appears_twice() -> None:
    lines = [line.rpartition(" ")[0] for line in filled().render(False).decode().splitlines() if line[0] != "#"]
    assert len(lines) == len(set(lines))


# --- from the start ---------------------------------------------------------------------------------------------------


def test_closed_families_are_at_zero_before_any_worker_reports() -> None:
    seen = values(made())
    for one in FAMILIES:
        for child in one.children_at_start:
            labels = ",".join(f'{label.name}="{value}"' for label, value in zip(one.labels, child, strict=True))
            name = one.full_name + ("_count" if one.kind == "histogram" else "")
            assert seen[f"{name}{{{labels}}}" if labels else name] == 0
    assert seen['vizora_realtime_ws_messages_total{type="heartbeat",result="refused"}'] == 0
    assert seen["vizora_realtime_heartbeat_duration_seconds_count"] == 0
    assert seen["vizora_realtime_devices_known"] == 0


def test_build_info() -> None:
    build = family(made(), "vizora_realtime_build_info")
    assert b'build_info{version="1.2.3",python="3.' in build
    assert build.endswith(b',commit="abc1234"} 1\n')


def test_what_is_recorded_once_is_exposed_twice() -> None:
    metrics = Metrics(SETTINGS)
    metrics.timer("ws_message_duration_seconds", "heartbeat").observe(7_300)
    metrics.timer("ws_message_duration_seconds", "ack").observe(7_300)
    for generation, ns in (("0", 10_000), ("1", 20_000), ("2", 4_000_000)):
        metrics.timer("gc_duration_seconds", generation).observe(ns)
    seen = values(made(metrics))
    assert seen["vizora_realtime_heartbeat_duration_seconds_count"] == 1
    assert seen["vizora_realtime_heartbeat_duration_seconds_sum"] == 7.3e-6
    assert seen['vizora_realtime_ws_message_duration_seconds_count{type="heartbeat"}'] == 1
    assert seen['nodejs_gc_duration_seconds_count{kind="minor"}'] == 2
    assert seen['nodejs_gc_duration_seconds_sum{kind="minor"}'] == 3e-5
    assert seen['nodejs_gc_duration_seconds_sum{kind="major"}'] == 0.004
    assert seen['nodejs_gc_duration_seconds_count{kind="weakcb"}'] == 0


def test_one_switch_turns_the_names_of_the_old_service_off() -> None:
    metrics = Metrics(SETTINGS)
    metrics.gauge("nodejs_eventloop_lag_seconds").value = 2_000_000
    assert family(made(metrics), "nodejs_eventloop_lag_seconds").endswith(b'_seconds{worker="0"} 0.002\n')
    totals = Totals(config.MetricsSettings(nodejs_aliases=False))
    ship(totals, "0", Metrics(SETTINGS))
    assert b"nodejs" not in totals.render(False)
    assert b"nodejs" not in totals.render(True)


# --- sums, deaths, rolls ----------------------------------------------------------------------------------------------


def counted(number: int) -> Metrics:
    metrics = Metrics(SETTINGS)
    metrics.counter("ws_bytes_total", "in").value = number
    metrics.timer("eventloop_lag_seconds").observe(number)
    metrics.organization("ws_connections_active", "acme", "device").value = number
    metrics.gauge("redis_up").value = 1
    metrics.gauge("redis_memory_bytes").value = number
    return metrics


BYTES_IN = 'vizora_realtime_ws_bytes_total{direction="in"}'
ACTIVE = 'vizora_realtime_ws_connections_active{organization_id="acme",kind="device"}'


def test_workers_are_summed() -> None:
    totals = made()
    ship(totals, "0", counted(3))
    ship(totals, "1", counted(4))
    seen = values(totals)
    assert seen[BYTES_IN] == 7
    assert seen[ACTIVE] == 7
    assert seen["vizora_realtime_redis_memory_bytes"] == 4
    assert seen['vizora_realtime_redis_up{worker="0"}'] == seen['vizora_realtime_redis_up{worker="1"}'] == 1
    assert seen['vizora_realtime_eventloop_lag_seconds_sum{worker="0"}'] == 3e-9
    assert seen['vizora_realtime_eventloop_lag_seconds_sum{worker="1"}'] == 4e-9


def test_a_later_snapshot_takes_the_place_of_the_last() -> None:
    totals, metrics = made(), counted(3)
    ship(totals, "0", metrics)
    metrics.counter("ws_bytes_total", "in").value = 10
    metrics.counter("ws_bytes_total", "out").value = 1
    ship(totals, "0", metrics)
    assert values(totals)[BYTES_IN] == 10
    assert values(totals)['vizora_realtime_ws_bytes_total{direction="out"}'] == 1


def test_a_dead_worker_leaves_its_counters_and_takes_its_gauges() -> None:
    totals = made()
    ship(totals, "0", counted(3))
    ship(totals, "1", counted(4))
    totals.retire("1")
    seen = values(totals)
    assert seen[BYTES_IN] == 7
    assert seen[ACTIVE] == 3
    assert seen["vizora_realtime_redis_memory_bytes"] == 3
    assert 'vizora_realtime_redis_up{worker="1"}' not in seen
    assert seen['vizora_realtime_eventloop_lag_seconds_sum{worker="1"}'] == 4e-9
    ship(totals, "1", counted(5))
    seen = values(totals)
    assert seen[BYTES_IN] == 12
    assert seen['vizora_realtime_eventloop_lag_seconds_count{worker="1"}'] == 2
    totals.retire("0")
    totals.retire("1")
    assert values(totals)[ACTIVE] == 0
    assert values(totals)[BYTES_IN] == 12


def test_retiring_twice_or_nobody_changes_nothing() -> None:
    totals = made()
    ship(totals, "0", counted(3))
    totals.retire("7")
    totals.retire("0")
    totals.retire("0")
    assert values(totals)[BYTES_IN] == 3


def test_a_successor_that_nobody_announced_does_not_set_counters_back() -> None:
    totals = made()
    ship(totals, "0", counted(100))
    ship(totals, "0", counted(1))
    assert values(totals)[BYTES_IN] == 101
    assert values(totals)[ACTIVE] == 1


def test_during_a_roll_two_processes_are_one_worker() -> None:
    totals = made()
    ship(totals, "0", counted(3), process=11)
    fresh = counted(4)
    fresh.gauge("redis_up").value = 0
    ship(totals, "0", fresh, process=22)
    seen = values(totals)
    assert seen[BYTES_IN] == seen[ACTIVE] == 7
    assert seen['vizora_realtime_redis_up{worker="0"}'] == 0
    totals.retire("0", process=11)
    assert values(totals)[BYTES_IN] == 7
    assert values(totals)[ACTIVE] == 4


def snapshot(**publisher: Any) -> dict[str, Any]:
    return {"first": True, "new": [["ws_bytes_total", "counter", ["in"]]], "values": [1], "timers": [], **publisher}


@pytest.mark.parametrize(
    "wrong",
    [
        snapshot(values=[]),
        snapshot(values=[1, 2]),
        snapshot(timers=[0] * 23),
        snapshot(new=[["gc_duration_seconds", "histogram", ["0"]]], values=[], timers=[1] * 22),
        snapshot(new=[["workers_of_tomorrow", "gauge", []]], values=[1, 2]),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused_and_changes_nothing(wrong: dict[str, Any]) -> None:
    totals = made()
    before = values(totals)
    with pytest.raises(ValueError, match=r"does not fit"):
        totals.merge("0", wrong)
    totals.retire("0")
    assert values(totals) == before
    totals.merge("0", snapshot())
    assert values(totals)[BYTES_IN] == 1


@pytest.mark.parametrize(
    ("child", "reason"),
    [
        (["ws_bytes_total", "counter", ["up"]], "no value of"),
        (["ws_bytes_total", "gauge", ["in"]], "is a counter"),
        (["ws_bytes_total", "counter", []], "labels"),
        (["workers_of_tomorrow", "gauge", []], "no metric"),
        (["heartbeat_total", "counter", ["d1", "true"]], "origin"),
    ],
)
def test_what_a_newer_worker_counts_beside_the_rest_is_left_out(child: list[Any], reason: str) -> None:
    totals = made()
    names = set(values(totals))
    both = [["ws_bytes_total", "counter", ["in"]], child, ["workers_of_tomorrow_seconds", "histogram", []]]
    first, second = totals.merge("0", snapshot(new=both, values=[1, 7], timers=[1] * SLOTS))
    assert reason in first and "no metric" in second
    assert totals.merge("0", snapshot(first=False, new=[], values=[2, 8], timers=[2] * SLOTS)) == []
    assert values(totals)[BYTES_IN] == 2
    totals.retire("0")
    assert values(totals)[BYTES_IN] == 2
    assert set(values(totals)) == names


def test_the_organization_cap_holds_over_workers() -> None:
    settings = config.MetricsSettings(max_organization_series=3)
    totals = Totals(settings)
    for worker in range(4):
        metrics = Metrics(settings)
        for number in range(3):
            metrics.organization("content_impressions_total", f"o-{worker}-{number}").value += 1
        ship(totals, str(worker), metrics)
    seen = {name: v for name, v in values(totals).items() if "content_impressions_total" in name}
    assert len(seen) == 4
    assert seen['vizora_realtime_content_impressions_total{organization_id="other"}'] == 9
    assert values(totals)['vizora_realtime_limits_exceeded_total{limit="max_organization_series"}'] == 9


def test_an_organization_past_the_cap_is_counted_once() -> None:
    """However often it comes, to however many workers, before and after they are replaced."""
    settings = config.MetricsSettings(max_organization_series=2)
    limit = 'vizora_realtime_limits_exceeded_total{limit="max_organization_series"}'
    totals = Totals(settings)
    for process in range(3):
        for worker in ("0", "1"):
            metrics = Metrics(settings)
            metrics.admit(totals.organizations)
            for _ in range(4):
                for organization in ("acme", "globex", "initech", "hooli"):
                    metrics.organization("ws_connections_total", organization, "connected").value += 1
                ship(totals, worker, metrics, process)
            assert values(totals)[limit] == 2
            totals.retire(worker, process)
    seen = values(totals)
    assert seen[limit] == 2
    assert seen['vizora_realtime_ws_connections_total{organization_id="acme",status="connected"}'] == 24
    assert seen['vizora_realtime_ws_connections_total{organization_id="other",status="connected"}'] == 48


WORKERS = st.sampled_from(["0", "1", "2"])
NAMES = st.sampled_from(["acme", "globex", "initech", "hooli"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("count"), WORKERS, NAMES, st.integers(1, 5)),
        st.tuples(st.just("time"), WORKERS, NAMES, st.integers(0, 10**10)),
        st.tuples(st.just("ship"), WORKERS),
        st.tuples(st.just("die"), WORKERS),
        st.tuples(st.just("vanish"), WORKERS),
        st.tuples(st.just("roll"), WORKERS),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_no_sequence_of_merges_and_deaths_lets_a_counter_fall(steps: list[tuple[Any, ...]]) -> None:
    caps = config.MetricsSettings(max_organization_series=2)
    totals = Totals(caps)
    workers = {name: (Metrics(caps), 0) for name in ("0", "1", "2")}
    before: dict[str, float] = {}
    for kind, name, *rest in steps:
        metrics, process = workers[name]
        if kind == "count":
            metrics.organization("content_impressions_total", rest[0]).value += rest[1]
            metrics.organization("ws_connections_total", rest[0], "connected").value += rest[1]
            metrics.gauge("devices_online", rest[0]).value = rest[1]
        elif kind == "time":
            metrics.timer("eventloop_lag_seconds").observe(rest[1])
        elif kind == "ship":
            ship(totals, name, metrics, process)
        elif kind == "die":
            totals.retire(name, process)
            workers[name] = (Metrics(caps), process)
        elif kind == "vanish":
            workers[name] = (Metrics(caps), process)
        else:
            ship(totals, name, metrics, process)
            workers[name] = (Metrics(caps), process + 1)
        now = values(totals)
        for series, value in before.items():
            assert now[series] >= value, series
        before = {series: v for series, v in now.items() if "devices_online" not in series}


# --- devices ----------------------------------------------------------------------------------------------------------


def test_devices_over_the_cap_can_be_alerted_on() -> None:
    totals = Totals(config.MetricsSettings(max_device_series=1))
    limit = 'vizora_realtime_limits_exceeded_total{limit="max_device_series"}'
    totals.devices("0", [["d1", "acme", 1, None, None, 1, 0]], 0.0)
    assert values(totals)[limit] == 0
    totals.devices("0", [["d2", "acme", 1, 5, 5, 2, 0], ["d3", "acme", 1, 5, 5, 2, 0]], 0.0)
    seen = values(totals)
    assert seen[limit] == 2
    assert seen["vizora_realtime_devices_known"] == 3
    assert seen['vizora_realtime_heartbeat_total{device_id="other",success="true"}'] == 4


def test_no_device_series_wanted_is_no_limit_met() -> None:
    totals = Totals(config.MetricsSettings(max_device_series=0))
    totals.devices("0", [["d1", "acme", 1, None, None, 1, 0]], 0.0)
    assert values(totals)['vizora_realtime_limits_exceeded_total{limit="max_device_series"}'] == 0


def test_devices_of_a_dead_worker_are_offline_at_once() -> None:
    totals = made()
    status = 'vizora_realtime_device_status{device_id="d1",organization_id="acme"}'
    totals.devices("0", [["d1", "acme", 1, None, None, 1, 0]], 0.0)
    totals.beats("0", [["d1", 2, 0]], 1.0)
    ship(totals, "0", counted(1))
    totals.expire(1000.0)
    assert values(totals)[status] == 1
    totals.retire("0", now=1000.0)
    assert values(totals)[status] == 0
    totals.expire(999.0 + 3600)
    assert values(totals)['vizora_realtime_heartbeat_total{device_id="d1",success="true"}'] == 3
    totals.expire(1000.0 + 3600)
    assert status not in values(totals)


def test_what_a_killed_worker_had_open_is_disconnected() -> None:
    """Of each organisation; and nothing is added for a worker that counted its ends itself."""
    name = "vizora_realtime_ws_connections_total"

    def ended(organization: str) -> tuple[float, float]:
        seen = values(totals)
        labels = f'organization_id="{organization}",status='
        return seen[f'{name}{{{labels}"connected"}}'], seen[f'{name}{{{labels}"disconnected"}}']

    totals = made()
    killed, drained = Metrics(SETTINGS), Metrics(SETTINGS)
    for metrics, open_now in ((killed, 2), (drained, 0)):
        for organization, count in (("acme", 9), ("globex", 4)):
            metrics.organization("ws_connections_total", organization, "connected").value = count
            metrics.organization("ws_connections_total", organization, "disconnected").value = count - open_now
    ship(totals, "0", killed)
    ship(totals, "1", drained)
    assert (ended("acme"), ended("globex")) == ((18, 16), (8, 6))
    totals.retire("0")
    assert (ended("acme"), ended("globex")) == ((18, 18), (8, 8))
    totals.retire("1")
    totals.retire("0")
    assert (ended("acme"), ended("globex")) == ((18, 18), (8, 8))


def test_devices_of_two_processes_of_a_worker_are_told_apart() -> None:
    totals = made()
    totals.devices("0", [["d1", "acme", 1, None, None, 1, 0]], 0.0, process=11)
    totals.devices("0", [["d1", "acme", 1, None, None, 1, 0]], 1.0, process=22)
    totals.devices("0", [["d1", "acme", 0, None, None, 0, 0]], 2.0, process=11)
    assert values(totals)['vizora_realtime_device_status{device_id="d1",organization_id="acme"}'] == 1


# --- processes --------------------------------------------------------------------------------------------------------


def read(pid: int) -> dict[str, float]:
    return {name: found[0][1] for name, found in read_processes({"x": pid}).items()}


def test_process_series_are_those_of_the_process() -> None:
    mine = read(os.getpid())
    assert set(mine) == {one.name for one in FAMILIES if one.origin == "process"}
    usage = resource.getrusage(resource.RUSAGE_SELF)
    assert mine["process_cpu_user_seconds_total"] == pytest.approx(usage.ru_utime, abs=0.2)
    assert mine["process_cpu_system_seconds_total"] == pytest.approx(usage.ru_stime, abs=0.2)
    assert mine["process_cpu_seconds_total"] == pytest.approx(usage.ru_utime + usage.ru_stime, abs=0.4)
    # ru_maxrss is the peak, in KiB.
    assert 2**20 < mine["process_resident_memory_bytes"] <= usage.ru_maxrss * 1024 * 1.1
    assert mine["process_virtual_memory_bytes"] > mine["process_resident_memory_bytes"]
    assert mine["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert time.time() - 24 * 3600 < mine["process_start_time_seconds"] <= time.time() + 1


def test_open_descriptors_are_counted(tmp_path: Path) -> None:
    before = read(os.getpid())["process_open_fds"]
    with (tmp_path / "a").open("w"), (tmp_path / "b").open("w"):
        assert read(os.getpid())["process_open_fds"] == before + 2


def test_a_command_name_with_brackets_and_spaces(tmp_path: Path) -> None:
    """proc(5): the second field of stat is what the process calls itself."""
    odd = tmp_path / "x) R 1 (y"
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([odd, "60"]) as child:
        try:
            assert read(child.pid)["process_start_time_seconds"] == pytest.approx(time.time(), abs=30)
        finally:
            child.kill()


def test_a_process_that_is_gone_has_no_series() -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        child.wait()
    totals = made()
    totals.processes({"supervisor": os.getpid(), "worker-0": child.pid})
    seen = values(totals)
    assert 'process_open_fds{process="supervisor"}' in seen
    assert not any("worker-0" in series for series in seen)
    totals.processes({})
    assert not any(series.startswith("process_") for series in values(totals))
