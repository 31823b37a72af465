"""What a heartbeat pays for its JSON, of a budget of 8 us."""

import json
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.errors import BAD_MESSAGE, INVALID_PAYLOAD
from vizora_rt.wire.messages import decode, encode, encode_success, failure, json_struct
from vizora_rt.wire.payloads import Heartbeat, validate

DATA: dict[str, Any] = {
    "metrics": {"cpuUsage": 41.5, "memoryUsage": 63.2, "diskUsage": 17.0, "temperature": 51.0, "networkLatency": 23.4},
    "currentContent": {"contentId": "content-8213", "playlistId": "playlist-77", "status": "playing"},
    "uptime": 86400,
    "appVersion": "2.14.1",
    "screenState": "on",
}
TEXT = json.dumps({"event": "heartbeat", "id": 4711, "data": DATA}, separators=(",", ":"))
REPLY = b'{"reconcileContent":false,"nextHeartbeatIn":15000,"commands":[]}'
NOON = b"2026-11-23T04:00:00.000Z"


def heartbeat(text: str) -> bytes:
    """From the text to the ack."""
    decoded = decode(text)
    assert isinstance(decoded, tuple)
    assert isinstance(validate(Heartbeat, decoded[2]), Heartbeat)
    return encode_success(decoded[1] or 0, REPLY, NOON)


def test_decode(benchmark: BenchmarkFixture) -> None:
    assert benchmark(decode, TEXT) == ("heartbeat", 4711, validate(Heartbeat, DATA))


def test_decode_noise(benchmark: BenchmarkFixture) -> None:
    assert benchmark(decode, TEXT[:-1]) is BAD_MESSAGE


def test_decode_half_a_surrogate_pair(benchmark: BenchmarkFixture) -> None:
    assert isinstance(benchmark(decode, TEXT.replace("playing", r"\ud83d")), tuple)


def test_encode_ack(benchmark: BenchmarkFixture) -> None:
    assert benchmark(encode_success, 4711, REPLY, NOON).startswith(b'{"event":"ack","id":4711,')


def test_encode_refusal(benchmark: BenchmarkFixture) -> None:
    assert b'"success":false' in benchmark(failure, INVALID_PAYLOAD, NOON, {"details": {"contentId": "required"}})


def test_encode_event(benchmark: BenchmarkFixture) -> None:
    assert benchmark(encode, "config", REPLY).startswith(b'{"event":"config",')


def test_struct_as_json(benchmark: BenchmarkFixture) -> None:
    assert benchmark(json_struct, validate(Heartbeat, DATA)).startswith(b'{"metrics":{')


def test_whole_heartbeat(benchmark: BenchmarkFixture) -> None:
    assert benchmark(heartbeat, TEXT).endswith(b"}}")
