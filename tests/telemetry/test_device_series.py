"""Device series: the cap and its overflow, who owns a device, expiry, and rows that stay together."""

import tracemalloc
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizora_rt.telemetry import device_series
from vizora_rt.telemetry.device_series import DeviceSeries, escape

HOUR = 3600.0


def text(series: DeviceSeries, name: str) -> str:
    return "".join(series.lines()[name]).replace("vizora_realtime_", "")


def beats(series: DeviceSeries) -> str:
    return text(series, "heartbeat_total")


def status(series: DeviceSeries) -> str:
    return text(series, "device_status")


def online(device: str, ok: int = 0, failed: int = 0, organization: str = "acme") -> list[object]:
    return [device, organization, 1, None, None, ok, failed]


def offline(device: str) -> list[object]:
    return [device, "acme", 0, None, None, 0, 0]


def moved(device: str) -> list[object]:
    return [device, "acme", None, None, None, 0, 0]


def test_the_series_of_a_device() -> None:
    series = DeviceSeries(10)
    series.update(1, [["d1", "acme", 1, 12.5, 40, 3, 0], ["d2", "globex", 1, None, 0.0, 1, 2]], 0.0)
    series.update(1, [["d1", "acme", 1, 13.25, 41, 1, 0]], 1.0)
    assert beats(series) == (
        'heartbeat_total{device_id="d1",success="true"} 4\n'
        'heartbeat_total{device_id="d2",success="true"} 1\n'
        'heartbeat_total{device_id="d2",success="false"} 2\n'
    )
    assert status(series) == (
        'device_status{device_id="d1",organization_id="acme"} 1\n'
        'device_status{device_id="d2",organization_id="globex"} 1\n'
    )
    assert text(series, "device_cpu_usage") == 'device_cpu_usage{device_id="d1",organization_id="acme"} 13.25\n'
    assert text(series, "device_memory_usage") == (
        'device_memory_usage{device_id="d1",organization_id="acme"} 41.0\n'
        'device_memory_usage{device_id="d2",organization_id="globex"} 0.0\n'
    )
    assert len(series) == 2


def test_an_offline_device_keeps_counters_and_status_and_loses_what_it_said_of_itself() -> None:
    series = DeviceSeries(10)
    series.update(1, [["d1", "acme", 1, 12.5, 40, 3, 1]], 0.0)
    series.update(1, [["d1", "acme", 0, 12.5, 40, 1, 0]], 1.0)
    assert status(series) == 'device_status{device_id="d1",organization_id="acme"} 0\n'
    assert 'success="true"} 4\n' in beats(series)
    assert 'success="false"} 1\n' in beats(series)
    assert text(series, "device_cpu_usage") == text(series, "device_memory_usage") == ""


def test_a_device_that_changes_its_organization_stays_one_series() -> None:
    series = DeviceSeries(10)
    series.update(1, [online("d1", organization="acme")], 0.0)
    series.update(1, [online("d1", organization="globex")], 1.0)
    assert status(series) == 'device_status{device_id="d1",organization_id="globex"} 1\n'


@pytest.mark.parametrize(
    ("value", "escaped"),
    [("plain", "plain"), ('say "hi"', r"say \"hi\""), ("a\\b", r"a\\b"), ("a\nb", r"a\nb"), ('\\"\n', r"\\\"\n")],
)
def test_labels_are_escaped(value: str, escaped: str) -> None:
    assert escape(value) == escaped
    series = DeviceSeries(10)
    series.update(1, [online(value, ok=1, organization=value)], 0.0)
    assert status(series) == f'device_status{{device_id="{escaped}",organization_id="{escaped}"}} 1\n'
    assert beats(series) == f'heartbeat_total{{device_id="{escaped}",success="true"}} 1\n'


# --- the cap ----------------------------------------------------------------------------------------------------------


def test_past_the_cap_devices_share_counters_and_have_no_gauges() -> None:
    series = DeviceSeries(2)
    assert series.update(1, [online("d1", 1), online("d2", 1)], 0.0) == 0
    assert series.update(1, [online("d3", 5), online("d4", 2, 1), online("d1", 1)], 1.0) == 2
    assert beats(series) == (
        'heartbeat_total{device_id="d1",success="true"} 2\n'
        'heartbeat_total{device_id="d2",success="true"} 1\n'
        'heartbeat_total{device_id="other",success="true"} 7\n'
        'heartbeat_total{device_id="other",success="false"} 1\n'
    )
    assert "d3" not in status(series)
    assert "other" not in status(series)
    assert len(series) == 4


def test_a_device_called_other_cannot_double_the_overflow_series() -> None:
    series = DeviceSeries(10)
    series.update(1, [online("other", 1), online("d1", 1)], 0.0)
    assert beats(series).count('device_id="other"') == 1
    assert "other" not in status(series)


def test_a_cap_of_zero_leaves_the_shared_series() -> None:
    series = DeviceSeries(0)
    series.update(1, [online("d1", 1), online("d2", 2)], 0.0)
    assert beats(series) == 'heartbeat_total{device_id="other",success="true"} 3\n'


def test_a_freed_place_is_taken_by_a_device_that_waited() -> None:
    series = DeviceSeries(1)
    series.update(1, [online("d1", 1), online("d2", 1)], 0.0)
    series.update(1, [offline("d1")], 1.0)
    series.update(1, [online("d2", 1)], HOUR)
    series.expire(1.0 + HOUR)
    assert status(series) == ""
    assert len(series) == 1
    series.update(1, [online("d2", 4)], 2.0 + HOUR)
    assert status(series) == 'device_status{device_id="d2",organization_id="acme"} 1\n'
    # What it counted while it shared stays where it was counted.
    assert beats(series) == (
        'heartbeat_total{device_id="d2",success="true"} 4\nheartbeat_total{device_id="other",success="true"} 2\n'
    )
    assert len(series) == 1


def test_who_waits_is_forgotten_too() -> None:
    series = DeviceSeries(1)
    series.update(1, [online("d1"), online("d2"), online("d3")], 0.0)
    series.update(1, [online("d3")], HOUR - 1)
    series.update(1, [moved("d9")], HOUR - 1)
    assert len(series) == 3
    series.expire(HOUR)
    assert len(series) == 2
    series.update(1, [moved("d3")], HOUR)
    assert len(series) == 1


def test_those_who_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_series, "MAX_WAITING", 5)
    series = DeviceSeries(1)
    refused = series.update(1, [online(f"d{n}", 1) for n in range(1000)], 0.0)
    assert refused == 5
    assert len(series) == 6
    assert beats(series).endswith('device_id="other",success="true"} 999\n')


def test_a_million_random_ids_leave_the_series_constant() -> None:
    series = DeviceSeries(100)
    for turn in range(1_000):
        series.update(1, [online(f"d{turn}-{n}", 1) for n in range(1_000)], float(turn))
    assert beats(series).count("\n") == 101
    assert status(series).count("\n") == 100
    assert beats(series).endswith(f'device_id="other",success="true"}} {1_000_000 - 100}\n')
    assert len(series) == 100 + device_series.MAX_WAITING


def test_a_device_past_the_cap_is_counted_once() -> None:
    series = DeviceSeries(1)
    series.update(1, [online("d1", 1)], 0.0)
    assert series.update(1, [online("d2", 1), online("d2", 1)], 0.0) == 1
    assert series.update(2, [online("d2", 1), offline("d2")], 1.0) == 0
    series.beats(2, [["d2", 3, 0]], 2.0)
    assert series.update(1, [online("d2", 1)], 3.0) == 0
    assert series.update(1, [online("d3", 1)], 4.0) == 1
    # Word of a worker that lost it does not make it a newcomer, in whatever order.
    assert series.update(3, [moved("d2")], 5.0) == 0
    assert series.update(1, [moved("d2")], 5.0) == 0
    assert len(series) == 2
    assert series.update(2, [online("d2", 1)], 6.0) == 0
    assert len(series) == 3
    assert beats(series).endswith('device_id="other",success="true"} 9\n')


def test_a_device_that_waits_and_sends_heartbeats_is_not_forgotten() -> None:
    series = DeviceSeries(1)
    series.update(1, [online("d1", 1), online("d2")], 0.0)
    series.beats(1, [["d2", 1, 0]], HOUR)
    series.expire(HOUR)
    assert series.update(1, [online("d2", 1)], HOUR) == 0


# --- rows of beats ----------------------------------------------------------------------------------------------------


def test_rows_of_beats_count_and_say_nothing_else() -> None:
    series = DeviceSeries(10)
    series.update(1, [["d1", "acme", 1, 12.5, 40, 1, 0]], 0.0)
    before = series.lines()
    series.beats(1, [["d1", 4, 2]], 1.0)
    after = series.lines()
    assert beats(series) == (
        'heartbeat_total{device_id="d1",success="true"} 5\nheartbeat_total{device_id="d1",success="false"} 2\n'
    )
    del before["heartbeat_total"], after["heartbeat_total"]
    assert after == before


def test_beats_of_a_device_that_nothing_is_known_of_are_counted() -> None:
    """Its series ended an hour after it left, and a last heartbeat is told late."""
    series = DeviceSeries(1)
    series.beats(1, [["d1", 4, 0], ["d2", 1, 0]], 0.0)
    assert beats(series) == (
        'heartbeat_total{device_id="d1",success="true"} 4\nheartbeat_total{device_id="other",success="true"} 1\n'
    )
    assert status(series) == ""
    assert len(series) == 0
    series.expire(HOUR)
    assert 'device_id="d1"' not in beats(series)


# --- what several workers say of a device -----------------------------------------------------------------------------


def test_the_old_owner_cannot_put_a_device_offline_that_came_back_elsewhere() -> None:
    series = DeviceSeries(10)
    series.update(1, [online("d1")], 0.0)
    series.update(2, [online("d1")], 1.0)
    series.update(1, [offline("d1")], 2.0)
    assert status(series).endswith(" 1\n")
    series.update(1, [moved("d1")], 2.0)
    assert status(series).endswith(" 1\n")
    series.update(2, [offline("d1")], 3.0)
    assert status(series).endswith(" 0\n")


def test_what_an_old_owner_counted_still_counts() -> None:
    series = DeviceSeries(10)
    series.update(1, [online("d1", 1)], 0.0)
    series.update(2, [online("d1", 1)], 1.0)
    series.update(1, [["d1", "acme", 0, None, None, 1, 0]], 2.0)
    assert beats(series) == 'heartbeat_total{device_id="d1",success="true"} 3\n'


@pytest.mark.parametrize("first", [1, 2])
def test_a_counter_does_not_fall_when_the_device_goes_to_another_worker(first: int) -> None:
    """In whatever order the two tell it."""
    series = DeviceSeries(10)
    series.update(1, [online("d1", 5)], 0.0)
    words = {1: moved("d1"), 2: online("d1", 1)}
    for source in (first, 3 - first):
        series.update(source, [words[source]], 1.0)
        assert heartbeats(series) >= 5
    assert beats(series) == 'heartbeat_total{device_id="d1",success="true"} 6\n'
    assert status(series).endswith(" 1\n")


def test_a_late_word_of_the_old_owner_leaves_what_the_new_one_says() -> None:
    series = DeviceSeries(10)
    series.update(1, [["d1", "acme", 1, 5, 5, 0, 0]], 0.0)
    series.update(2, [["d1", "globex", 1, 7, 8, 0, 0]], 1.0)
    series.update(1, [["d1", "acme", 1, 6, 6, 1, 0]], 2.0)
    series.update(1, [moved("d1")], 3.0)
    assert status(series) == 'device_status{device_id="d1",organization_id="globex"} 1\n'
    assert text(series, "device_cpu_usage") == 'device_cpu_usage{device_id="d1",organization_id="globex"} 7.0\n'


def test_a_device_that_moved_to_another_node_keeps_its_counter_and_has_no_gauge() -> None:
    series = DeviceSeries(10)
    series.update(1, [online("d1", 1), online("d2", 2)], 0.0)
    series.update(1, [moved("d1")], 1.0)
    assert beats(series) == (
        'heartbeat_total{device_id="d1",success="true"} 1\nheartbeat_total{device_id="d2",success="true"} 2\n'
    )
    assert "d1" not in status(series)
    assert len(series) == 1
    series.update(1, [online("d1", 1)], 2.0)
    assert 'device_id="d1",success="true"} 2\n' in beats(series)
    series.update(1, [moved("d1")], 3.0)
    series.expire(2.0 + HOUR)
    assert 'device_id="d1"' in beats(series)
    series.expire(3.0 + HOUR)
    assert 'device_id="d1"' not in beats(series)


def test_a_dead_process_has_no_devices_online() -> None:
    series = DeviceSeries(10)
    series.update(1, [["d1", "acme", 1, 5, 5, 3, 0], online("d2")], 0.0)
    series.update(2, [online("d2"), online("d3")], 1.0)
    series.update(1, [online("d3")], 1.0)
    series.gone(1, 2.0)
    assert status(series) == (
        'device_status{device_id="d1",organization_id="acme"} 0\n'
        'device_status{device_id="d2",organization_id="acme"} 1\n'
        'device_status{device_id="d3",organization_id="acme"} 1\n'
    )
    assert text(series, "device_cpu_usage") == ""
    # Whoever never had a say cannot take it out of the list.
    series.update(2, [moved("d1"), offline("d3")], 3.0)
    assert status(series).count(" 0\n") == 2
    series.update(2, [online("d1", 1)], 4.0)
    assert status(series).count(" 1\n") == 2
    assert 'device_id="d1",success="true"} 4\n' in beats(series)


def test_a_silent_device_of_a_living_process_never_expires() -> None:
    series = DeviceSeries(10)
    series.update(1, [online("d1")], 0.0)
    series.expire(100 * HOUR)
    assert status(series).endswith(" 1\n")


def test_an_hour_offline_counts_from_its_beginning() -> None:
    series = DeviceSeries(10)
    series.update(1, [online("d1")], 0.0)
    series.update(1, [offline("d1")], 10.0)
    series.update(1, [offline("d1")], HOUR)
    series.expire(HOUR + 9)
    assert len(series) == 1
    series.expire(HOUR + 10)
    assert len(series) == 0
    # Word that it is still offline does not bring the series back.
    series.update(1, [offline("d1")], HOUR + 11)
    assert len(series) == 0
    assert status(series) == beats(series) == ""


def test_a_short_visit_between_two_shipments_is_a_series() -> None:
    series = DeviceSeries(10)
    series.update(1, [["d1", "acme", 0, None, None, 2, 0]], 0.0)
    assert beats(series) == 'heartbeat_total{device_id="d1",success="true"} 2\n'
    assert status(series) == 'device_status{device_id="d1",organization_id="acme"} 0\n'


WORDS = st.lists(
    st.tuples(st.sampled_from([1, 0, None, "beats"]), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=6
)


@settings(deadline=None)
@given(st.dictionaries(st.integers(1, 4), WORDS, min_size=1), st.data())
def test_in_whatever_order_the_rows_of_workers_come_the_counter_is_exact_and_the_last_words_hold(
    told: dict[int, list[tuple[object, int, int]]], data: st.DataObject
) -> None:
    """Each worker's rows come in the order in which it sent them; between workers any order is possible."""
    series = DeviceSeries(10)
    left = {source: list(rows) for source, rows in told.items()}
    last: dict[int, object] = {}
    counted = 0
    while left:
        source = data.draw(st.sampled_from(sorted(left)))
        said, ok, failed = left[source].pop(0)
        if not left[source]:
            del left[source]
        if said == "beats":
            series.beats(source, [["d1", ok, failed]], 0.0)
        else:
            series.update(source, [["d1", f"o-{source}", said, source, source, ok, failed]], 0.0)
            last[source] = said
        counted += ok + failed
        assert heartbeats(series) == counted
        owners = [str(each) for each, word in last.items() if word == 1]
        shown = status(series)
        assert shown.endswith(" 1\n") == bool(owners)
        if owners:
            assert shown.split('"')[3].removeprefix("o-") in owners
            assert text(series, "device_cpu_usage").split()[-1].removesuffix(".0") in owners
    for source in sorted(told):
        series.gone(source, 1.0)
        last.pop(source, None)
        assert status(series).endswith(" 1\n") == (1 in last.values())
    assert heartbeats(series) == counted


# --- rows stay together -----------------------------------------------------------------------------------------------

DEVICES = [f"d{number}" for number in range(6)]
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("row"),
            st.integers(1, 3),
            st.sampled_from(DEVICES),
            st.sampled_from([1, 0, None]),
            st.integers(0, 3),
            st.integers(0, 2),
        ),
        st.tuples(st.just("beats"), st.integers(1, 3), st.sampled_from(DEVICES), st.integers(0, 3), st.integers(0, 2)),
        st.tuples(st.just("gone"), st.integers(1, 3)),
        st.tuples(st.just("expire"), st.floats(0, 2 * HOUR)),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(STEPS, st.integers(0, 5))
def test_any_sequence_keeps_each_row_together_and_loses_no_heartbeat(steps: list[tuple[object, ...]], cap: int) -> None:
    """The CPU of a device is always its number and its organisation is named after it: a mixed-up row shows."""
    series = DeviceSeries(cap)
    now = 0.0
    for step in steps:
        match step:
            case ("row", int(source), str(device), state, int(ok), int(failed)):
                before = heartbeats(series)
                series.update(source, [[device, f"o-{device}", state, int(device[1:]), 50, ok, failed]], now)
                assert heartbeats(series) == before + ok + failed
            case ("beats", int(source), str(device), int(ok), int(failed)):
                before = heartbeats(series)
                series.beats(source, [[device, ok, failed]], now)
                assert heartbeats(series) == before + ok + failed
            case ("gone", int(source)):
                series.gone(source, now)
            case ("expire", float(seconds)):
                now += seconds
                series.expire(now)
        gauges = status(series).splitlines()
        names = {line.split('"')[1] for line in gauges}
        assert len(gauges) == len(names) <= cap
        assert all(f'organization_id="o-{line.split(chr(34))[1]}"' in line for line in gauges)
        counters = {line.split('"')[1] for line in beats(series).splitlines()} - {"other"}
        assert names <= counters
        assert len(counters) <= cap
        for line in text(series, "device_cpu_usage").splitlines():
            assert float(line.split(" ")[-1]) == int(line.split('"')[1][1:])


def heartbeats(series: DeviceSeries) -> int:
    return sum(int(line.rpartition(" ")[2]) for line in beats(series).splitlines())


def test_a_device_takes_under_300_bytes() -> None:
    """The id included: it is a fresh string of a decoded message."""
    count = 20_000
    series = DeviceSeries(count)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(count):
            row = [str(uuid.UUID(int=n)), f"org-{n % 50}", 1, n / 7 % 100, n / 3 % 100, 300, 0]
            series.update(1, [row], 0.0)
        used = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert used < 300 * count, f"{used / count:.0f} bytes each"
