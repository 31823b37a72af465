"""Messages against byte-literal vectors, schemas against every wrong type, and both against noise."""

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from vizora_rt.errors import BAD_MESSAGE, INVALID_PAYLOAD, RATE_LIMITED, STORE_UNAVAILABLE, UNKNOWN_EVENT, Refusal
from vizora_rt.wire import messages
from vizora_rt.wire.messages import (
    MAX_DETAILS,
    MAX_ID,
    MENDED,
    Content,
    DeviceMetrics,
    Heartbeat,
    Invalid,
    Repaired,
    decode,
    encode,
    encode_ack,
    encode_success,
    error,
    failure,
    json_struct,
    repair,
    validate,
)

NOON = b"2026-11-23T04:00:00.000Z"

ENVELOPES = [
    ('{"event":"heartbeat","id":7,"data":{"uptime":1}}', ("heartbeat", 7, Heartbeat(uptime=1))),
    ('{"event":"heartbeat","data":{}}', ("heartbeat", None, Heartbeat())),
    ('{"id":7,"event":"heartbeat","data":{"uptime":1}}', ("heartbeat", 7, {"uptime": 1})),
    ('{"event":"heartbeat","id":7,"data":{"battery":1}}', ("heartbeat", 7, {"battery": 1})),
    ('{"event":"heartbeat","data":{},"event":"a"}', ("a", None, {})),
    ('{"event":"heartbeat"}', ("heartbeat", None, None)),
    ('{"event":"heartbeat","id":null,"data":null}', ("heartbeat", None, None)),
    ('{"event":"heartbeat","id":0}', ("heartbeat", 0, None)),
    ('{"event":"heartbeat","id":9007199254740992}', ("heartbeat", MAX_ID, None)),
    ('{"event":"ack","id":7,"data":{"ok":true}}', ("ack", 7, {"ok": True})),
    ('{"event":"","data":[1,"two",null]}', ("", None, [1, "two", None])),
    ('{"event":"heartbeat","data":"text"}', ("heartbeat", None, "text")),
    ('{"event":"heartbeat","extra":1}', ("heartbeat", None, None)),
    ('\r\n\t {"event" : "heartbeat"} \n', ("heartbeat", None, None)),
    ('{"event":"a","event":"b","id":1,"id":2}', ("b", 2, None)),  # the last one counts
    ('{"event":"\\u0000\\n"}', ("\0\n", None, None)),
    ('{"event":"a","data":"\\ud83d\\ude00"}', ("a", None, "\U0001f600")),
    ('{"event":"a","data":1e-999}', ("a", None, 0.0)),
    ('{"event":"a","data":18446744073709551616}', ("a", None, 2.0**64)),
]

REFUSED = {
    "nothing": "",
    "blank": " \n",
    "no JSON": "heartbeat",
    "a byte order mark": '\ufeff{"event":"a"}',
    "a part": '{"event":"heartbeat"',
    "more behind it": '{"event":"a"}{"event":"a"}',
    "a comma too many": '{"event":"a",}',
    "an array": '["heartbeat",{}]',
    "a string": '"heartbeat"',
    "a number": "7",
    "null": "null",
    "no event": '{"id":1,"data":{}}',
    "event null": '{"event":null}',
    "event number": '{"event":1}',
    "event array": '{"event":["heartbeat"]}',
    "id negative": '{"event":"a","id":-1}',
    "id past 2^53": '{"event":"a","id":9007199254740993}',
    "id past 2^64": '{"event":"a","id":18446744073709551616}',
    "id fraction": '{"event":"a","id":1.5}',
    "id whole float": '{"event":"a","id":1.0}',
    "id text": '{"event":"a","id":"1"}',
    "id true": '{"event":"a","id":true}',
    "id object": '{"event":"a","id":{}}',
    "NaN": '{"event":"a","data":NaN}',
    "Infinity": '{"event":"a","data":-Infinity}',
    "1e999": '{"event":"a","data":1e999}',
    "5,000 digits": '{"event":"a","data":' + "9" * 5000 + "}",
    "10,000 levels": '{"event":"a","data":' + "[" * 10_000 + "]" * 10_000 + "}",
    "10,000 levels, open": '{"a":' * 10_000,
    "a million characters": "x" * 1_000_000,
    "a control character": '{"event":"a\n"}',
    "a surrogate": '{"event":"\ud800"}',
    "half a pair in broken JSON": '{"event":"\\ud800",}',
    "half a pair beside NaN": '{"event":"\\ud800","data":NaN}',
    "half a pair beside 1e999": '{"event":"\\ud800","data":1e999}',
    "half a pair beside 5,000 digits": '{"event":"\\ud800","data":' + "9" * 5000 + "}",
    "half a pair below 5,000 levels": '{"event":"a","data":' + "[" * 5000 + '"\\ud800"' + "]" * 5000 + "}",
    "half a pair in a long text": '{"event":"\\ud800","data":"' + "x" * MENDED + '"}',
}

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


class Phase(Struct, forbid_unknown_fields=True):
    seq: Annotated[int, Meta(ge=1)]
    name: str | None = None


class Play(Struct, forbid_unknown_fields=True, rename="camel"):
    """What no heartbeat has: fields that are required, in each way that a struct may stand in a field."""

    content_id: Annotated[str, Meta(min_length=1, max_length=8)]
    phase: Phase
    last_phase: Phase | None = None
    noted: Annotated[Phase | str | None, Meta(description="either")] = None
    phases: Annotated[list[Phase], Meta(max_length=2)] = []
    by_name: dict[str, Phase] = {}
    timestamp: str | float | None = None
    volume: int = 5


class Batch(Struct, forbid_unknown_fields=True):
    phases: Annotated[list[Phase], Meta(max_length=100)]


PLAY = {"contentId": "c", "phase": {"seq": 1}}

SCHEMAS: list[type[Struct]] = [
    Play,
    Phase,
    Batch,
    *(
        kind
        for name, kind in vars(messages).items()
        if isinstance(kind, type) and issubclass(kind, Struct) and not name.startswith("_")
    ),
]
SCHEMAS.remove(Struct)


def names_of(schema: type[Struct]) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(schema)]


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
json_text = st.text(max_size=140)
any_text = st.text(st.characters(), max_size=140)
"""Also what no UTF-8 has: halves of surrogate pairs."""

any_name = st.sampled_from(sorted({name for schema in SCHEMAS for name in names_of(schema)})) | json_text
any_json = st.recursive(
    scalars | json_text | st.datetimes().map(lambda time: f"{time.isoformat()}Z"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_name, inner, max_size=6),
    max_leaves=20,
)

heartbeats = st.dictionaries(
    st.sampled_from(names_of(Heartbeat)) | any_name,
    scalars | json_text | st.dictionaries(st.sampled_from(names_of(DeviceMetrics) + names_of(Content)), scalars),
)


def strings_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in strings_in(part)]
    if isinstance(value, list):
        return [text for item in value for text in strings_in(item)]
    return [value] if isinstance(value, str) else []


class TestDecode:
    @pytest.mark.parametrize(("text", "envelope"), ENVELOPES, ids=[text[:40] for text, _ in ENVELOPES])
    def test_vectors(self, text: str, envelope: messages.Envelope) -> None:
        assert decode(text) == envelope

    @pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED.keys())
    def test_refused(self, text: str) -> None:
        assert decode(text) is BAD_MESSAGE

    def test_deep_but_not_too_deep(self) -> None:
        decoded = decode('{"event":"a","data":' + "[" * 1000 + "]" * 1000 + "}")
        assert not isinstance(decoded, Refusal)

    @pytest.mark.parametrize(
        ("text", "mended"),
        [
            (r"\ud83d", "\ufffd"),
            (r"\uDE00", "\ufffd"),
            (r"cut \ud83d", "cut \ufffd"),
            (r"\ude00\ud83d", "\ufffd\ufffd"),
            (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"),
            (r"\ud83d\\ude00", "\ufffd\\ude00"),
            (r"\\ud83d \ud83d é 😀", "\\ud83d \ufffd é 😀"),
        ],
    )
    def test_half_a_surrogate_pair(self, text: str, mended: str) -> None:
        """A player that cuts a text to length cuts an emoji in two."""
        assert decode(f'{{"event":"a","id":7,"data":{{"error":"{text}"}}}}') == ("a", 7, {"error": mended})

    @given(any_text | st.text(alphabet='{}[]":,\\ud8c0eE+-.1null'))
    @example("\ud800")
    @example('"\\ud800"')
    def test_noise(self, text: str) -> None:
        assert decode(text) is BAD_MESSAGE  # nobody's noise is a message

    @given(st.dictionaries(st.sampled_from(["event", "id", "data"]) | any_text, any_json | any_text))
    @example({"event": "\ud800", "id": 1, "data": {"\udfff": ["\ud800"]}})
    def test_any_object(self, message: dict[str, Any]) -> None:
        """Also of texts that no UTF-8 has: what comes out can be written to Redis and to a log."""
        decoded = decode(json.dumps(message))
        if isinstance(decoded, Refusal):
            event, ack_id = message.get("event"), message.get("id")
            good_id = ack_id is None or (type(ack_id) is int and 0 <= ack_id <= MAX_ID)
            assert decoded is BAD_MESSAGE
            assert type(event) is not str or not good_id
        else:
            assert decoded[1] == message.get("id")
            for text in strings_in([decoded[0], decoded[2]]):
                text.encode()

    @given(heartbeats, any_json, st.integers(-1, MAX_ID + 1) | st.none(), st.integers(21, 400), st.text(max_size=3))
    @example({"uptime": 1}, None, 7, 400, "")
    @example({"appVersion": "x"}, None, 7, 51, "\\ud83d")
    @example({"appVersion": "x"}, None, 7, 51, "\ud800")
    @example({"uptime": 1}, None, 7, 45, "e999")
    def test_a_heartbeat_in_one_step_means_the_same(
        self, data: dict[str, Any], odd: Any, ack_id: int | None, at: int, inserted: str
    ) -> None:
        """A space in front makes it one like any other."""

        def meaning(text: str) -> object:
            decoded = decode(text)
            return (*decoded[:2], validate(Heartbeat, decoded[2])) if isinstance(decoded, tuple) else decoded

        for each in (data, odd):
            whole = encode("heartbeat", messages.dumps(each), ack_id).decode()
            text = whole[:at] + inserted + whole[at:]
            assert meaning(text) == meaning(" " + text)

    @given(any_json, st.integers(0, MAX_ID) | st.none())
    def test_returns_what_was_encoded(self, data: Any, ack_id: int | None) -> None:
        assert decode(encode("a", messages.dumps(data), ack_id).decode()) == ("a", ack_id, data)

    @pytest.mark.parametrize("text", [text for text, _ in ENVELOPES])
    def test_every_part_is_refused(self, text: str) -> None:
        whole = text.rstrip()
        assert {decode(whole[:end]) for end in range(len(whole))} == {BAD_MESSAGE}


class TestEncode:
    def test_event(self) -> None:
        assert encode("config", b'{"cacheSize":1}') == b'{"event":"config","data":{"cacheSize":1}}'

    def test_event_that_wants_an_ack(self) -> None:
        assert encode("command", b"{}", 0) == b'{"event":"command","id":0,"data":{}}'
        assert encode("command", b"{}", MAX_ID) == b'{"event":"command","id":9007199254740992,"data":{}}'

    def test_ack(self) -> None:
        assert encode_ack(7, b'{"ok":true}') == b'{"event":"ack","id":7,"data":{"ok":true}}'

    def test_success(self) -> None:
        body = b'{"success":true,"data":{"duplicate":false},"timestamp":"2026-11-23T04:00:00.000Z"}'
        assert encode_success(7, b'{"duplicate":false}', NOON) == encode_ack(7, body)

    def test_failure(self) -> None:
        assert failure(INVALID_PAYLOAD, NOON, {"details": {"contentId": "required"}}) == (
            b'{"success":false,"error":"invalid payload","code":"INVALID_PAYLOAD","retryable":false,'
            b'"details":{"contentId":"required"},"timestamp":"2026-11-23T04:00:00.000Z"}'
        )

    def test_failure_that_passes(self) -> None:
        assert failure(RATE_LIMITED, NOON, {"retryAfterMs": 500}) == (
            b'{"success":false,"error":"rate_limited","code":"RATE_LIMITED","retryable":true,'
            b'"retryAfterMs":500,"timestamp":"2026-11-23T04:00:00.000Z"}'
        )
        assert json.loads(failure(STORE_UNAVAILABLE, NOON))["retryable"] is True

    def test_error(self) -> None:
        assert error(UNKNOWN_EVENT, "dance") == (
            b'{"code":"UNKNOWN_EVENT","message":"unknown event","retryable":false,"event":"dance"}'
        )
        assert error(INVALID_PAYLOAD, "heartbeat", {"details": {"data": "expected an object"}}) == (
            b'{"code":"INVALID_PAYLOAD","message":"invalid payload","retryable":false,"event":"heartbeat",'
            b'"details":{"data":"expected an object"}}'
        )

    def test_error_of_no_event(self) -> None:
        assert json.loads(error(BAD_MESSAGE, None))["event"] is None

    @given(json_text)
    def test_error_of_any_event(self, event: str) -> None:
        """What a peer called its event is a string in our JSON, whatever is in it."""
        assert json.loads(error(UNKNOWN_EVENT, event))["event"] == event


class TestPlainJSON:
    @given(any_json)
    def test_round_trip(self, value: Any) -> None:
        assert messages.loads(messages.dumps(value)) == value

    @pytest.mark.parametrize("text", [b"", b"{", b"NaN", b'"\xff"', b"[" * 10_000])
    def test_bad(self, text: bytes) -> None:
        with pytest.raises(messages.JSONError):
            messages.loads(text)

    def test_absent_fields_are_left_out(self) -> None:
        beat = Heartbeat(metrics=DeviceMetrics(cpu_usage=12.5), current_content=Content(content_id="c"))
        assert json_struct(beat) == b'{"metrics":{"cpuUsage":12.5},"currentContent":{"contentId":"c"}}'
        assert json_struct(Heartbeat()) == b"{}"


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
                messages.ScreenshotResponse,
                {"requestId": "a b", "imageData": "", "width": 1, "height": 1},
                {"requestId": "expected 1 to 128 printable characters without space or braces"},
            ),
            (
                messages.Impressions,
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
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_764_000_000_007, "2025-11-24T16:00:00.007Z"),
        (messages.LAST_MS, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_iso(ms: int, text: str) -> None:
    assert messages.iso(ms) == text
