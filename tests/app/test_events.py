"""The stream of events, in a real Valkey."""

import pytest

from vizora_rt.app import events
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.blocking import ask
from vizora_rt.wire.resp import pack


def test_an_entry_and_its_bound(redis_url: str) -> None:
    entry = events.entry("content:error", "lobby", "acme", 5, b'{"a":1}')
    command = pack("EVAL", events.SCRIPT, 1, events.STREAM, 200, *entry)
    *_, rows, length = ask(
        Address.parse(redis_url),
        [command] * 1000 + [pack("XREVRANGE", "vz:events", "+", "-", "COUNT", 1), pack("XLEN", "vz:events")],
        10.0,
    )
    assert isinstance(rows, list)
    assert rows[0][1] == [
        b"type", b"content:error", b"deviceId", b"lobby", b"organizationId", b"acme", b"at", b"5", b"json", b'{"a":1}',
    ]  # fmt: skip
    assert isinstance(length, int)
    assert 200 <= length < 400


@pytest.mark.parametrize("names", [("type", "deviceId", "organizationId", "at", "json")])
def test_names_are_those_that_readers_know(names: tuple[str, ...]) -> None:
    assert events.entry("k", "d", "o", 1, b"{}")[::2] == names
