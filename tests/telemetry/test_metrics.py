"""The registry against the contract and against prometheus_client; accumulators; caps; negotiation."""

import random
from collections.abc import Callable

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.validation import METRIC_LABEL_NAME_RE, METRIC_NAME_RE

from vizora_rt import config, errors
from vizora_rt.telemetry.metrics import (
    ALIASES,
    BOUNDS,
    BOUNDS_NS,
    EVENT,
    FAMILIES,
    GROUP,
    LIMITS,
    MAX_GROUPS,
    REGISTRY,
    SLOTS,
    STATUSES,
    Family,
    Metrics,
    Timer,
    negotiate,
)
from vizora_rt.wire import messages

# The table of the observability contract: name, kind, labels.
CONTRACT = """
ws_connections_total counter organization_id status
ws_connections_active gauge organization_id kind
ws_disconnects_total counter reason
ws_handshakes_rejected_total counter code
ws_messages_total counter type result
ws_message_duration_seconds histogram type
ws_fields_ignored_total counter type why
ws_bytes_total counter direction
ws_send_queue_bytes gauge worker
heartbeat_total counter device_id success
heartbeat_duration_seconds histogram
heartbeat_errors_total counter reason
content_impressions_total counter organization_id
content_impressions_duplicate_total counter organization_id
content_impressions_missing gauge organization_id
content_errors_total counter error_type
device_status gauge device_id organization_id
device_cpu_usage gauge device_id organization_id
device_memory_usage gauge device_id organization_id
devices_online gauge organization_id
commands_total counter type state
http_requests_total counter method path status
http_wrong_keys_total counter key
http_request_duration_seconds histogram method path
redis_operations_total counter operation result
redis_operation_duration_seconds histogram operation
redis_up gauge worker
redis_shard_up gauge shard worker
redis_pipeline_depth gauge worker
eventloop_lag_seconds histogram worker
eventloop_lag_seconds_max gauge worker
gc_duration_seconds histogram generation
worker_restarts_total counter reason
workers gauge state
build_info gauge version python commit
ws_handshake_duration_seconds histogram
ws_handshakes_waiting gauge
command_ack_duration_seconds histogram
limits_exceeded_total counter limit
ws_notices_dropped_total counter kind
ws_connections_limit gauge
devices_known gauge
redis_memory_bytes gauge
redis_evicts gauge
plays_backlog gauge group
process_cpu_user_seconds_total counter process
process_cpu_system_seconds_total counter process
process_cpu_seconds_total counter process
process_resident_memory_bytes gauge process
process_virtual_memory_bytes gauge process
process_open_fds gauge process
process_max_fds gauge process
process_start_time_seconds gauge process
nodejs_eventloop_lag_seconds gauge worker
nodejs_gc_duration_seconds histogram kind
sentry_dropped_total counter why
scrape_workers_missing gauge
"""


def made(max_organization_series: int = 1_000) -> Metrics:
    return Metrics(config.MetricsSettings(max_organization_series=max_organization_series))


def children(metrics: Metrics, name: str) -> set[tuple[str, ...]]:
    return {values for family, _, values in metrics.snapshot()["new"] if family == name}


def test_the_registry_is_the_contract() -> None:
    declared = {f"{f.name} {f.kind} {' '.join(label.name for label in f.labels)}".strip() for f in FAMILIES}
    assert declared == set(CONTRACT.strip().splitlines())
    assert len(REGISTRY) == len(FAMILIES)


def test_prometheus_client_takes_every_family_together() -> None:
    """One registry refuses names that clash, suffixes of histograms and counters included."""
    registry = prometheus_client.CollectorRegistry()
    kinds: dict[str, Callable[[Family], object]] = {
        "counter": lambda f: prometheus_client.Counter(f.full_name, f.help, _names(f), registry=registry),
        "gauge": lambda f: prometheus_client.Gauge(f.full_name, f.help, _names(f), registry=registry),
        "histogram": lambda f: prometheus_client.Histogram(
            f.full_name, f.help, _names(f), buckets=[bound / 1e9 for bound in BOUNDS_NS], registry=registry
        ),
    }
    for family in FAMILIES:
        kinds[family.kind](family)
    assert {metric.name for metric in registry.collect()} == {family.openmetrics_name for family in FAMILIES}


def _names(family: Family) -> list[str]:
    return [label.name for label in family.labels]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: str(family.name))
def test_names_and_texts_are_plain(family: Family) -> None:
    assert METRIC_NAME_RE.match(family.full_name)
    assert all(METRIC_LABEL_NAME_RE.match(label.name) for label in family.labels)
    assert family.help.endswith(".")
    # HELP lines are rendered unescaped.
    assert not set(family.help) & set('\\\n"')
    assert family.full_name.endswith("_total") == (family.kind == "counter")
    for label in family.labels:
        values = label.values or ()
        assert len(set(values)) == len(values)
        assert all(value.isprintable() and not set(value) & set('\\"') for value in values)
        assert not label.fallback or label.fallback in values


def test_prefixes_and_units() -> None:
    assert REGISTRY["ws_bytes_total"].full_name == "vizora_realtime_ws_bytes_total"
    assert REGISTRY["ws_bytes_total"].openmetrics_name == "vizora_realtime_ws_bytes"
    assert REGISTRY["ws_bytes_total"].unit == "bytes"
    assert REGISTRY["process_cpu_user_seconds_total"].full_name == "process_cpu_user_seconds_total"
    assert REGISTRY["process_cpu_user_seconds_total"].unit == "seconds"
    assert REGISTRY["nodejs_eventloop_lag_seconds"].full_name == "nodejs_eventloop_lag_seconds"
    assert REGISTRY["eventloop_lag_seconds_max"].unit == ""
    assert REGISTRY["eventloop_lag_seconds_max"].nanoseconds


def test_label_values_come_from_the_error_vocabulary() -> None:
    reasons, codes = REGISTRY["ws_disconnects_total"].labels[0], REGISTRY["ws_handshakes_rejected_total"].labels[0]
    assert reasons.values == tuple(close.name for close in errors.CLOSES)
    assert codes.values == tuple(refusal.code for refusal in errors.HANDSHAKE_REFUSALS)


def test_every_status_that_a_refusal_carries_is_a_label_value() -> None:
    refusals = [value for value in vars(errors).values() if isinstance(value, errors.Refusal)]
    assert {str(refusal.status) for refusal in refusals} <= set(STATUSES)


def test_every_key_of_the_limits_section_is_a_limit() -> None:
    assert {"message_bytes", "messages_per_minute", "unsent_seconds", "max_connections"} <= set(LIMITS)
    assert len(set(LIMITS)) == len(LIMITS)


def test_aliases_name_recorded_children_that_exist_from_the_start() -> None:
    assert set(ALIASES) == {family.name for family in FAMILIES if family.origin == "alias"}
    for name, mapping in ALIASES.items():
        assert set(mapping) == (
            {()} if not REGISTRY[name].labels else {(v,) for v in REGISTRY[name].labels[0].values or ()}
        )
        for recorded in mapping.values():
            for family, values in recorded:
                assert values in REGISTRY[family].children_at_start


def test_which_families_start_at_zero() -> None:
    assert len(REGISTRY["ws_messages_total"].children_at_start) == len(EVENT.values or ()) * 3
    assert REGISTRY["heartbeat_errors_total"].children_at_start
    assert REGISTRY["ws_handshake_duration_seconds"].children_at_start == ((),)
    assert REGISTRY["workers"].children_at_start == (("starting",), ("ready",), ("hung",), ("draining",))
    # Too many, open, or a gauge of which 0 would be a claim that nobody made.
    for name in ("http_requests_total", "content_impressions_total", "redis_memory_bytes", "heartbeat_total"):
        assert REGISTRY[name].children_at_start == ()


# --- accumulators -----------------------------------------------------------------------------------------------------


def test_bounds_are_about_three_a_decade_from_a_microsecond_to_five_seconds() -> None:
    assert len(BOUNDS_NS) == 21
    assert BOUNDS_NS[:4] == (1_000, 2_500, 5_000, 10_000)
    assert BOUNDS_NS[-3:] == (1_000_000_000, 2_500_000_000, 5_000_000_000)
    assert BOUNDS[:3] == ("1e-06", "2.5e-06", "5e-06")
    assert BOUNDS[-2:] == ("5.0", "+Inf")


@pytest.mark.parametrize(
    ("ns", "slot"),
    [(0, 0), (1_000, 0), (1_001, 1), (2_500, 1), (7_300, 3), (5_000_000_000, 20), (5_000_000_001, 21), (10**15, 21)],
)
def test_a_bucket_includes_its_upper_bound(ns: int, slot: int) -> None:
    timer = Timer()
    timer.observe(ns)
    assert timer.slots == [int(place == slot) for place in range(SLOTS - 1)] + [ns]


@given(st.lists(st.integers(0, 10**11)))
def test_a_timer_loses_nothing(durations: list[int]) -> None:
    timer = Timer()
    for ns in durations:
        timer.observe(ns)
    assert sum(timer.slots[:-1]) == len(durations)
    assert timer.slots[-1] == sum(durations)
    for place, bound in enumerate(BOUNDS_NS):
        assert sum(timer.slots[: place + 1]) == sum(ns <= bound for ns in durations)


def test_a_child_is_remembered() -> None:
    metrics = made()
    assert metrics.counter("ws_bytes_total", "in") is metrics.counter("ws_bytes_total", "in")
    assert metrics.timer("gc_duration_seconds", "2") is metrics.timer("gc_duration_seconds", "2")
    assert metrics.gauge("redis_up") is metrics.gauge("redis_up")


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda m: m.counter("ws_messages_total", "hello", "ok"), "'hello' is no value of type"),
        (lambda m: m.counter("ws_messages_total", "heartbeat", "maybe"), "'maybe' is no value of result"),
        (lambda m: m.counter("ws_messages_total", "heartbeat"), "2 labels here, not 1"),
        (lambda m: m.counter("http_requests_total", "GET", "/devices/42", "200"), "'/devices/42' is no value of path"),
        (lambda m: m.counter("nothing_total"), "there is no metric 'nothing_total'"),
        (lambda m: m.organization("nothing_total", "o"), "there is no metric 'nothing_total'"),
        (lambda m: m.gauge("ws_bytes_total", "in"), "is a counter, not a gauge"),
        (lambda m: m.counter("redis_up"), "is a gauge, not a counter"),
        (lambda m: m.timer("ws_bytes_total", "in"), "is a counter, not a histogram"),
        (lambda m: m.timer("heartbeat_duration_seconds"), "its origin is alias"),
        (lambda m: m.counter("heartbeat_total", "d1", "true"), "its origin is device"),
        (lambda m: m.gauge("workers", "ready"), "its origin is supervisor"),
        (lambda m: m.gauge("redis_up", "0"), "0 labels here, not 1"),
        (lambda m: m.organization("ws_connections_active", "o", "robot"), "'robot' is no value of kind"),
    ],
)
def test_what_the_registry_lacks_is_a_bug(ask: Callable[[Metrics], object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ask(made())


def test_a_remembered_child_is_still_checked_for_its_kind() -> None:
    metrics = made()
    metrics.counter("ws_bytes_total", "in")
    with pytest.raises(ValueError, match="not a gauge"):
        metrics.gauge("ws_bytes_total", "in")


def test_snapshot() -> None:
    metrics = made()
    metrics.counter("ws_bytes_total", "in").value += 280
    metrics.timer("gc_duration_seconds", "0").observe(3_000)
    first = metrics.snapshot()
    assert first == {
        "first": True,
        "new": [("ws_bytes_total", "counter", ("in",)), ("gc_duration_seconds", "histogram", ("0",))],
        "refused": [],
        "values": [280],
        "timers": [0, 0, 1, *[0] * 19, 3_000],
    }
    metrics.counter("ws_bytes_total", "in").value += 1
    metrics.gauge("redis_up").value = 1
    second = metrics.snapshot()
    assert second == {**first, "first": False, "new": [("redis_up", "gauge", ())], "values": [281, 1]}
    # What was taken is not the live list.
    metrics.timer("gc_duration_seconds", "0").observe(1)
    assert second["timers"] == first["timers"]


def test_a_snapshot_travels_as_json() -> None:
    metrics = made()
    metrics.organization("ws_connections_total", 'o"\n\\', "connected").value += 2**53
    metrics.timer("command_ack_duration_seconds").observe(10**15)
    snapshot = metrics.snapshot()
    assert messages.loads(messages.dumps(snapshot)) == {
        **snapshot,
        "new": [[n, k, [*v]] for n, k, v in snapshot["new"]],
    }


def test_gauges_are_recounted_before_a_snapshot() -> None:
    metrics = made()
    open_now = {"acme": 2, "globex": 1}

    def recount() -> None:
        metrics.recount("devices_online")
        for organization, count in open_now.items():
            metrics.gauge("devices_online", organization).value += count

    metrics.on_collect(recount)
    assert metrics.snapshot()["values"] == [2, 1]
    open_now = {"acme": 1}
    assert metrics.snapshot()["values"] == [1, 0]


# --- caps: a client never creates a series ----------------------------------------------------------------------------


def test_past_the_cap_organizations_share_a_series() -> None:
    metrics = made(max_organization_series=2)
    for organization in ("a", "b", "c", "d", "a"):
        metrics.organization("ws_connections_total", organization, "connected").value += 1
    assert metrics.organization("ws_connections_total", "a", "connected").value == 2
    assert metrics.organization("ws_connections_total", "other", "connected").value == 2
    # The set is one for all families, and no way leads around it.
    assert metrics.counter("content_impressions_total", "e") is metrics.counter("content_impressions_total", "other")
    # The supervisor counts them, for all workers together.
    assert metrics.snapshot()["refused"] == ["c", "d", "e"]
    metrics.organization("ws_connections_total", "c", "disconnected")
    assert metrics.snapshot()["refused"] == []


def test_past_the_cap_no_organization_makes_a_child() -> None:
    metrics = made(max_organization_series=2)
    for organization in ("a", "b", "c", "d"):
        metrics.organization("ws_connections_total", organization, "connected")
    assert {values[0] for values in children(metrics, "ws_connections_total")} == {"a", "b", "other"}


def test_what_the_supervisor_admits_has_series_of_its_own_from_then_on() -> None:
    metrics = made(max_organization_series=1)
    for organization in ("a", "b"):
        metrics.organization("content_impressions_total", organization).value += 1
    metrics.admit(["b", "c"])
    for organization in ("a", "b", "c", "d"):
        metrics.organization("content_impressions_total", organization).value += 1
    assert children(metrics, "content_impressions_total") == {("a",), ("other",), ("b",), ("c",)}
    assert metrics.organizations == ["a", "b", "c"]


def test_organizations_that_are_remembered_as_refused_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vizora_rt.telemetry.metrics.MAX_REFUSED", 3)
    metrics = made(max_organization_series=1)
    for number in range(10):
        metrics.organization("content_impressions_total", f"o-{number}")
    assert metrics.take_refused() == ["o-1", "o-2", "o-3"]
    assert metrics.take_refused() == []


def test_a_cap_of_zero_is_a_choice_not_a_limit_that_was_met() -> None:
    metrics = made(max_organization_series=0)
    metrics.organization("content_impressions_total", "a").value += 1
    assert metrics.organization("content_impressions_total", "other").value == 1
    assert children(metrics, "limits_exceeded_total") == set()


def test_siblings_of_an_organization_begin_at_zero() -> None:
    metrics = made()
    metrics.organization("ws_connections_total", "acme", "connected").value += 1
    assert children(metrics, "ws_connections_total") == {
        ("acme", "connected"),
        ("acme", "disconnected"),
        ("acme", "rejected"),
    }


def test_before_the_organization_is_known() -> None:
    metrics = made(max_organization_series=1)
    metrics.organization("ws_connections_total", "acme", "connected")
    metrics.organization("ws_connections_total", "", "rejected").value += 1
    assert metrics.counter("ws_connections_total", "unknown", "rejected").value == 1
    assert {values[0] for values in children(metrics, "ws_connections_total")} == {"acme", "unknown"}


def test_online_devices_are_never_capped() -> None:
    metrics = made(max_organization_series=1)
    for organization in ("a", "b", "c"):
        metrics.gauge("devices_online", organization).value = 1
    assert children(metrics, "devices_online") == {("a",), ("b",), ("c",)}


def test_groups_of_the_plays_stream_are_capped() -> None:
    metrics = made()
    assert GROUP.capped
    for number in range(1000):
        metrics.gauge("plays_backlog", f"g{number}").value = 1
    assert len(children(metrics, "plays_backlog")) == MAX_GROUPS + 1


def test_a_million_random_names_leave_the_series_constant() -> None:
    metrics = made(max_organization_series=10)
    for number in range(10):
        metrics.organization("content_impressions_total", f"org-{number}")
    metrics.organization("content_impressions_total", "other")
    metrics.counter("limits_exceeded_total", "max_organization_series")
    metrics.counter("http_requests_total", metrics.method(""), "unmatched", "404")
    metrics.counter("ws_notices_dropped_total", metrics.notice(""))
    metrics.snapshot()
    source = random.Random(1)
    for _ in range(100_000):
        name = source.randbytes(8).hex()
        metrics.organization("content_impressions_total", name).value += 1
        metrics.counter("http_requests_total", metrics.method(name), "unmatched", "404").value += 1
        metrics.counter("ws_notices_dropped_total", metrics.notice(name)).value += 1
    assert metrics.snapshot()["new"] == []
    for _ in range(1_000_000):
        assert metrics.command(str(source.random())) == "unknown"


@given(st.text())
def test_what_peers_sent_maps_into_closed_sets(text: str) -> None:
    metrics = made()
    metrics.counter("ws_notices_dropped_total", metrics.notice(text))
    metrics.counter("commands_total", metrics.command(text), "queued")
    metrics.counter("http_requests_total", metrics.method(text), "unmatched", "404")


def test_known_names_stay_themselves() -> None:
    assert Metrics.notice("device:status") == "device:status"
    assert Metrics.command("reload") == "reload"
    assert Metrics.method("GET") == "GET"
    assert Metrics.method("get") == "other"


# --- negotiation ------------------------------------------------------------------------------------------------------

TEXT = (False, "text/plain; version=0.0.4; charset=utf-8")
OPENMETRICS = (True, "application/openmetrics-text; version=1.0.0; charset=utf-8")
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;"
    "q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


@pytest.mark.parametrize(
    ("accept", "answer"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; version=1.0.0; charset=utf-8", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ("text/plain;q=0.5, application/openmetrics-text;q=0.6", OPENMETRICS),
        ("text/plain;q=0.7, application/openmetrics-text;q=0.6", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;version=2.0.0", TEXT),
        ("application/openmetrics-text;version=x", TEXT),
        ("application/openmetrics-text;q=nan", TEXT),
        ("application/openmetrics-text;q=2", TEXT),
        (";;,=;q", TEXT),
    ],
)
def test_negotiation(accept: str, answer: tuple[bool, str]) -> None:
    assert negotiate(accept) == answer


@given(st.text(alphabet=st.sampled_from("application/openmetrics-text;q=01.,version*\t \"'\x00ü"), max_size=200))
def test_no_accept_header_raises(accept: str) -> None:
    assert negotiate(accept) in (TEXT, OPENMETRICS)
