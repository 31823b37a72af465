"""Schemas against every wrong type, and against noise."""

from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from tests.wire.noise import SCHEMAS, Batch, Phase, Play, any_json, json_text, names_of
from vizora_rt.wire import messages, payloads
from vizora_rt.wire.messages import (
    json_struct,
)
from vizora_rt.wire.payloads import (
    MAX_DETAILS,
    Content,
    DeviceMetrics,
    Heartbeat,
    Invalid,
    Repaired,
    repair,
    validate,
)

WRONG: dict[str, list[Any]] = {
    # For each field of a heartbeat, what it is not.
    "metrics": [1, 1.5, "cpu", True, [], [{"cpuUsage": 1}]],
    "currentContent": [1, 1.5, False, [], ["content"], "x" * 129],
    "uptime": ["1", True, [], {}, -1, -0.001],
    "appVersion": [1, 1.5, True, [], {}, "x" * 65, "x" * 1_000_000],
    "screenState": [0, True, [], {}, "x" * 33],
    "playbackSource": [0, True, [], {}, "x" * 33],
    "contentVersion": [20261123, 1.5, True, [], {}, "x" * 65],
}
WRONG_METRICS: dict[str, list[Any]] = {
    "cpuUsage": ["50", True, [], {}, -0.1, 100.1, -(2**63), 2**64 - 1, 1e308],
    "memoryUsage": ["50", False, [], {}, -1, 101],
    "diskUsage": ["50", True, [], {}, -1],
    "networkLatency": ["50", True, [], {}, -1e-9],
    "temperature": ["50", True, [], {}],
}
WRONG_CONTENT: dict[str, list[Any]] = {
    "contentId": [1, True, [], {}, "x" * 129],
    "playlistId": [1, True, [], {}, "x" * 129],
    "status": [1, True, [], {}, "x" * 33],
    "playbackPosition": ["1", True, [], {}, -1],
}
FULL = {
    "metrics": {"cpuUsage": 12.5, "memoryUsage": 100, "diskUsage": 0, "networkLatency": 3, "temperature": -40.5},
    "currentContent": {"contentId": "c", "playlistId": "p", "status": "playing", "playbackPosition": 1.5},
    "uptime": 3600,
    "appVersion": "v" * 64,
    "screenState": "s" * 32,
    "playbackSource": "cache",
    "contentVersion": "2026-11-23",
}
PLAY = {"contentId": "c", "phase": {"seq": 1}}


class TestHeartbeat:
    def test_full(self) -> None:
        beat = validate(Heartbeat, FULL)
        assert isinstance(beat, Heartbeat)
        assert beat.metrics == DeviceMetrics(12.5, 100.0, 0.0, -40.5, 3.0)
        assert beat.current_content == Content("c", "p", "playing", 1.5)
        assert (beat.uptime, beat.app_version, beat.playback_source) == (3600.0, "v" * 64, "cache")

    @pytest.mark.parametrize("data", [None, {}, dict.fromkeys(FULL), {"metrics": dict.fromkeys(WRONG_METRICS)}])
    def test_null_is_absent(self, data: Any) -> None:
        beat = validate(Heartbeat, data)
        assert isinstance(beat, Heartbeat)
        assert beat.metrics in (None, DeviceMetrics())
        assert beat == Heartbeat(metrics=beat.metrics)

    def test_a_bare_content_id(self) -> None:
        assert validate(Heartbeat, {"currentContent": "c-1"}) == Heartbeat(current_content="c-1")

    @pytest.mark.parametrize("data", [[], [{}], "heartbeat", "", 0, 1.5, True, False])
    def test_not_an_object(self, data: Any) -> None:
        assert validate(Heartbeat, data) == Invalid({"data": "expected an object"})

    @pytest.mark.parametrize(("name", "value"), [(name, value) for name in WRONG for value in WRONG[name]])
    def test_a_wrong_type_drops_its_field(self, name: str, value: Any) -> None:
        rest = {key: FULL[key] for key in FULL if key != name}
        assert validate(Heartbeat, {**rest, name: value}) == Repaired(validate(Heartbeat, rest), 0, 1)

    @pytest.mark.parametrize(
        ("outer", "name", "value"),
        [
            (outer, name, value)
            for outer, wrong in (("metrics", WRONG_METRICS), ("currentContent", WRONG_CONTENT))
            for name in wrong
            for value in wrong[name]
        ],
    )
    def test_a_wrong_type_drops_its_field_of_a_field(self, outer: str, name: str, value: Any) -> None:
        inner: Any = FULL[outer]
        rest = {key: inner[key] for key in inner if key != name}
        expected = validate(Heartbeat, {**FULL, outer: rest})
        assert isinstance(expected, Heartbeat)
        assert validate(Heartbeat, {**FULL, outer: {**rest, name: value}}) == Repaired(expected, 0, 1)

    def test_every_field_wrong(self) -> None:
        data = {name: WRONG[name][0] for name in WRONG}
        assert validate(Heartbeat, data) == Repaired(Heartbeat(), 0, len(WRONG))

    def test_unknown_fields(self) -> None:
        whole = validate(Heartbeat, FULL)
        assert validate(Heartbeat, {**FULL, "battery": 1, "": None}) == Repaired(whole, 2, 0)

    def test_unknown_fields_of_a_field(self) -> None:
        metrics = {"cpuUsage": 1, "gpuUsage": 2, "fans": {"left": 1, "right": 2}}
        expected = Heartbeat(metrics=DeviceMetrics(cpu_usage=1.0))
        assert validate(Heartbeat, {"metrics": metrics}) == Repaired(expected, 2, 0)

    def test_unknown_and_wrong(self) -> None:
        data = {"uptime": "long", "battery": 1, "metrics": {"cpuUsage": "high", "gpuUsage": 2, "memoryUsage": 3}}
        expected = Heartbeat(metrics=DeviceMetrics(memory_usage=3.0))
        assert validate(Heartbeat, data) == Repaired(expected, 2, 2)

    def test_names_are_those_of_the_wire(self) -> None:
        assert validate(Heartbeat, {"app_version": "1", "current_content": "c"}) == Repaired(Heartbeat(), 2, 0)

    def test_ten_thousand_unknown_fields(self) -> None:
        data = {f"field{number}": number for number in range(10_000)}
        assert validate(Heartbeat, {**data, "uptime": 1}) == Repaired(Heartbeat(uptime=1.0), 10_000, 0)


class TestRequired:
    def test_whole(self) -> None:
        assert validate(Play, PLAY) == Play("c", Phase(1))

    @pytest.mark.parametrize(
        ("data", "details"),
        [
            ({}, {"contentId": "required", "phase": "required"}),
            (None, {"contentId": "required", "phase": "required"}),
            ({"contentId": "c"}, {"phase": "required"}),
            ({**PLAY, "contentId": None}, {"contentId": "required"}),
            ({**PLAY, "contentId": 7}, {"contentId": "expected str, got int"}),
            ({**PLAY, "contentId": ""}, {"contentId": "expected str of length >= 1"}),
            ({**PLAY, "contentId": "x" * 9}, {"contentId": "expected str of length <= 8"}),
            ({**PLAY, "phase": "end"}, {"phase": "expected object, got str"}),
            ({**PLAY, "phase": {}}, {"phase.seq": "required"}),
            ({**PLAY, "phase": {"seq": 0}}, {"phase.seq": "expected int >= 1"}),
            (
                {"contentId": 7, "phase": {"seq": None, "x": 1}},
                {"contentId": "expected str, got int", "phase.seq": "required"},
            ),
        ],
    )
    def test_each_field_is_named(self, data: Any, details: dict[str, str]) -> None:
        assert validate(Play, data) == Invalid(details)

    @pytest.mark.parametrize(
        ("extra", "wrong"),
        [
            ({"lastPhase": {"seq": 0}}, 1),  # an optional field without what it requires goes as a whole
            ({"lastPhase": {"name": "end"}}, 1),
            ({"noted": {"seq": "1"}}, 1),
            ({"noted": 7}, 1),
            ({"phases": {"seq": 1}}, 1),  # one phase is no list of them
            ({"phases": [{"seq": 1}, {"seq": 0}]}, 1),
            ({"phases": [{"seq": 1}] * 3}, 1),
            ({"byName": {"seq": 1}}, 1),
            ({"timestamp": True}, 1),
            ({"timestamp": []}, 1),
            ({"volume": "loud"}, 1),
            ({"volume": None}, 0),  # null is absent, also where the schema has no null
            ({"volume": None, "timestamp": {}, "noted": []}, 2),
        ],
    )
    def test_optional_fields_go_alone(self, extra: dict[str, Any], wrong: int) -> None:
        assert validate(Play, {**PLAY, **extra}) == Repaired(Play("c", Phase(1)), 0, wrong)

    def test_structs_in_fields_are_repaired(self) -> None:
        data = {
            "contentId": "c",
            "phase": {"seq": 1, "name": 7, "x": 0},
            "lastPhase": {"seq": 2, "name": [], "x": 0},
            "noted": {"seq": 3, "x": 0, "y": 0},
            "phases": [{"seq": 4, "name": {}}, {"seq": 5, "x": 0}],
        }
        expected = Play("c", Phase(1), Phase(2), Phase(3), [Phase(4), Phase(5)])
        assert validate(Play, data) == Repaired(expected, 5, 3)

    @pytest.mark.parametrize(
        ("phases", "details"),
        [
            (None, {"phases": "required"}),
            ({}, {"phases": "expected array, got object"}),
            ([{"seq": 1}, {"seq": 0}, {}], {"phases[1].seq": "expected int >= 1", "phases[2].seq": "required"}),
            ([{"seq": 1}, 7, None], {"phases[1]": "expected an object", "phases[2]": "expected an object"}),
            ([{"seq": 1}] * 101, {"phases": "expected array of length <= 100"}),
        ],
    )
    def test_each_struct_of_a_list_is_named(self, phases: Any, details: dict[str, str]) -> None:
        assert validate(Batch, {"phases": phases}) == Invalid(details)

    def test_not_every_reason_is_told(self) -> None:
        refused = validate(Batch, {"phases": [{}] * 100})
        assert isinstance(refused, Invalid)
        assert len(refused.details) == MAX_DETAILS

    @pytest.mark.parametrize("timestamp", [1764000000000, 1764000000.5, "2026-11-23T04:00:00Z"])
    def test_a_union_takes_each_member(self, timestamp: float | str) -> None:
        assert validate(Play, {**PLAY, "timestamp": timestamp}) == Play("c", Phase(1), timestamp=timestamp)

    @pytest.mark.parametrize(
        ("schema", "data", "details"),
        [
            (
                payloads.ScreenshotResponse,
                {"requestId": "a b", "imageData": "", "width": 1, "height": 1},
                {"requestId": "expected 1 to 128 printable characters without space or braces"},
            ),
            (
                payloads.Impressions,
                {"boot": "a:b", "plays": []},
                {"boot": "expected 1 to 64 of letters, digits and . _ ~ + / = -"},
            ),
        ],
    )
    def test_no_pattern_in_the_reasons(self, schema: type[Struct], data: Any, details: dict[str, str]) -> None:
        """It tells nothing to whoever reads it."""
        assert validate(schema, data) == Invalid(details)

    def test_no_word_of_the_peer_in_the_reasons(self) -> None:
        """They go into acks and logs."""
        hostile = "<script>\r\n" * 100
        refused = validate(Play, {"contentId": hostile, hostile: 1, "phase": {hostile: 1, "seq": hostile}})
        assert isinstance(refused, Invalid)
        assert "script" not in str(refused.details)


class TestAnyPayload:
    @given(st.sampled_from(SCHEMAS), any_json)
    def test_nothing_raises(self, schema: type[Struct], data: Any) -> None:
        check(schema, data)

    @given(st.data(), st.sampled_from(SCHEMAS))
    def test_nothing_raises_on_known_names(self, data: st.DataObject, schema: type[Struct]) -> None:
        """Objects that nearly fit, which random ones never do."""
        names = st.sampled_from(names_of(schema)) | json_text
        check(schema, data.draw(st.dictionaries(names, any_json, max_size=8)))

    @pytest.mark.parametrize("schema", SCHEMAS)
    @pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), float("-inf"), float("nan")])
    def test_numbers_that_no_json_has(self, schema: type[Struct], value: float) -> None:
        validate(schema, dict.fromkeys(names_of(schema), value))
        repair(schema, dict.fromkeys(names_of(schema), value))

    @given(st.dictionaries(st.sampled_from([*WRONG_METRICS, "gpuUsage"]), any_json))
    def test_metrics_against_the_rules_written_out(self, data: dict[str, Any]) -> None:
        def fits(name: str, value: Any) -> bool:
            if type(value) not in (int, float):
                return False
            return name == "temperature" or (0 <= value <= 100 if name[:3] in ("cpu", "mem") else value >= 0)

        known = {name: value for name, value in data.items() if name != "gpuUsage" and value is not None}
        kept = {name: value for name, value in known.items() if fits(name, value)}
        result = validate(DeviceMetrics, data)
        unknown, wrong = len(data.keys() & {"gpuUsage"}), len(known) - len(kept)
        if unknown or wrong:
            assert isinstance(result, Repaired)
            assert (result.unknown, result.wrong_type) == (unknown, wrong)
            result = result.payload
        assert result == msgspec.convert(kept, DeviceMetrics)


def check(schema: type[Struct], data: Any) -> None:
    """Whatever comes out is one of three; what was taken is taken again, whole, from its own JSON."""
    result = validate(schema, data)
    again = repair(schema, data)
    if isinstance(result, Invalid):
        assert again == result
        assert result.details
        return
    if isinstance(result, Repaired):
        assert again == result
        assert result.unknown >= 0 <= result.wrong_type
        result = result.payload
    else:
        assert again == Repaired(result, 0, 0)
    assert type(result) is schema
    assert validate(schema, messages.loads(json_struct(result))) == result


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (payloads.Phase, ("start", "end")),
        (payloads.Phase | None, ("start", "end")),
        (Annotated[payloads.Phase, Meta(description="x")], ("start", "end")),
        (str, ()),
        (list[payloads.Phase], ()),
        (payloads.Sent | None, ()),
    ],
)
def test_words(kind: Any, words: tuple[str, ...]) -> None:
    assert payloads.words(kind) == words


@pytest.mark.parametrize("value", ["begin", 5, ["start"]])
def test_a_choice_says_what_it_takes(value: Any) -> None:
    class Chosen(Struct, forbid_unknown_fields=True):
        phase: payloads.Phase

    assert payloads.validate(Chosen, {"phase": value}) == Invalid({"phase": "expected one of start, end"})
