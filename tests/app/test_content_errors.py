"""What a content error becomes: redacted, bounded, kept first and then told."""

import json
from typing import Any

import pytest

from vizora_rt import config
from vizora_rt.app.content_errors import ContentErrors, redact
from vizora_rt.app.handlers import Outcome
from vizora_rt.app.state import Device
from vizora_rt.wire import payloads
from vizora_rt.wire.payloads import ContentError

NOW = 1_795_425_772_550


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /a?token=abc", "GET /a?token=***"),
        ("?Token=abc&b=1", "?Token=***&b=1"),
        ("access_token=a.b-c_d failed", "access_token=*** failed"),
        ("token%3Dabc%26x", "token%3D***"),
        ('{"url":"?token=abc","next":1}', '{"url":"?token=***","next":1}'),
        (r'{"text":"say \"token=abc\" twice"}', r'{"text":"say \"token=***\" twice"}'),
        ("token=a token=b", "token=*** token=***"),
        ("token= nothing", "token= nothing"),
        ("no tokens here", "no tokens here"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown


def handle(**data: Any) -> tuple[Outcome, dict[str, Any], tuple[Any, ...]]:
    """The outcome in the end, the kept error, and the arguments of the event."""
    payload = payloads.validate(ContentError, {"contentId": "spot", "errorType": "timeout", **data})
    assert isinstance(payload, ContentError)
    kept = ContentErrors(config.PlaySettings(max_events=5000)).error(Device("lobby", "acme"), payload, NOW).write
    assert kept is not None
    assert (kept.script, kept.keys) == ("content_error", ("vz:{d:lobby}:errors",))
    told = kept.then(1).write
    assert told is not None
    assert (told.script, told.keys, told.args[0]) == ("event", (b"vz:events",), 5000)
    (text,) = kept.args
    assert isinstance(text, bytes)
    assert told.args[-1] == text
    return told.then(b"1-0"), json.loads(text), told.args


def test_what_is_kept_and_told() -> None:
    outcome, kept, told = handle(playlistId="p", errorMessage="m", errorCode="E", context={"a": 1}, timestamp=5)
    assert kept == {
        "contentId": "spot",
        "playlistId": "p",
        "errorType": "timeout",
        "errorMessage": "m",
        "errorCode": "E",
        "timestamp": 5,
        "serverTime": NOW,
        "context": {"a": 1},
    }
    names = dict(zip(told[1::2], told[2::2], strict=True))
    assert (names["type"], names["deviceId"], names["organizationId"]) == ("content:error", "lobby", "acme")
    assert (outcome.reply, outcome.refusal) == (b"{}", None)
    assert outcome.tallies[0] == ("content_errors_total", ("timeout",), 1)
    assert outcome.tallies[1][2] == 0


@pytest.mark.parametrize("context", [{"a": "x" * 4096}, json.loads('{"a":' * 300 + "1" + "}" * 300)])
def test_a_context_that_cannot_be_kept_is_counted(context: dict[str, Any]) -> None:
    outcome, kept, _ = handle(context=context)
    assert "context" not in kept
    assert outcome.tallies[1] == ("ws_fields_ignored_total", ("content:error", "wrong_type"), 1)


def test_the_largest_context() -> None:
    _, kept, _ = handle(context={"a": "x" * (4096 - len('{"a":""}'))})
    assert len(kept["context"]["a"]) == 4088


def test_an_empty_context_is_one() -> None:
    _, kept, _ = handle(context={})
    assert kept["context"] == {}


def test_other_types_are_unknown() -> None:
    outcome, kept, _ = handle(errorType="exploded")
    assert kept["errorType"] == "unknown"
    assert outcome.tallies[0][1] == ("unknown",)
