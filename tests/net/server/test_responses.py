"""Refusals in one shape, and paths in parts."""

import json

import pytest

from vizora_rt import errors
from vizora_rt.errors import Refusal
from vizora_rt.net.server.responses import json_response, refuse, segments
from vizora_rt.wire.http import Request


def get(target: str) -> Request:
    return Request("GET", target, target.partition("?")[0].removeprefix("/api"), "", "1.1", {}, True, False)


@pytest.mark.parametrize(
    ("refusal", "allow", "headers"),
    [
        (errors.NOT_FOUND, "", ()),
        (errors.DRAINING, "", (("Retry-After", "5"),)),
        (errors.RATE_LIMITED, "", (("Retry-After", "5"),)),
        (Refusal("BUSY", "busy", 503, retryable=True, retry_after=17), "", (("Retry-After", "17"),)),
        (errors.METHOD_NOT_ALLOWED, "", (("Allow", "GET, HEAD"),)),
        (errors.METHOD_NOT_ALLOWED, "POST", (("Allow", "POST"),)),
    ],
)
def test_refuse(refusal: Refusal, allow: str, headers: tuple[tuple[str, str], ...]) -> None:
    answer = refuse(refusal, allow)
    assert (answer.status, answer.headers, answer.content_type) == (refusal.status, headers, "application/json")
    told = {"code": refusal.code, "message": refusal.message, "retryable": refusal.retryable}
    assert json.loads(answer.body) == told


def test_refuse_says_more() -> None:
    body = json.loads(refuse(errors.INVALID_BODY, details={"body": "expected JSON"}).body)
    assert body["details"] == {"body": "expected JSON"}


def test_json() -> None:
    answer = json_response(200, {"a": 1})
    assert (answer.status, answer.body, answer.waited) == (200, b'{"a":1}', 0)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("/devices/a", ["devices", "a"]),
        ("/api/devices/a", ["devices", "a"]),
        ("/api", ["api"]),
        ("/devices/a%2Fb/plays?x=/y", ["devices", "a/b", "plays"]),
        ("/", [""]),
        ("http://any/devices/a", ["devices", "a"]),
    ],
)
def test_segments(target: str, parts: list[str]) -> None:
    request = get(target)
    if not target.startswith("/"):
        request.path = "/devices/a"  # as the parser makes it of an absolute form
    assert segments(request) == parts
