"""Messages against byte-literal vectors, and against noise."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.wire.noise import (
    any_json,
    any_text,
    heartbeats,
    json_text,
)
from vizora_rt.errors import BAD_MESSAGE, INVALID_PAYLOAD, RATE_LIMITED, STORE_UNAVAILABLE, UNKNOWN_EVENT, Refusal
from vizora_rt.wire import messages, times
from vizora_rt.wire.messages import (
    MENDED,
    decode,
    encode,
    encode_ack,
    encode_success,
    error,
    failure,
    json_struct,
)
from vizora_rt.wire.payloads import (
    MAX_ID,
    Content,
    DeviceMetrics,
    Heartbeat,
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
    "more halves than are mended": '{"event":"' + "\\ud800" * (MENDED + 1) + '"}',
    "half a pair and a NUL": '{"event":"\\ud800\0"}',
}


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

    def test_half_a_pair_in_a_message_of_any_length(self) -> None:
        text = "x" * 60_000
        assert decode(f'{{"event":"a","id":7,"data":"{text}\\ud83d"}}') == ("a", 7, text + "\ufffd")

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


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1_764_000_000_007, "2025-11-24T16:00:00.007Z"),
        (times.LAST_MS, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_iso(ms: int, text: str) -> None:
    assert messages.iso(ms) == text
