"""The bodies of the control API: what fits, and what is said of what does not."""

from typing import Any

import pytest

from vizora_rt.wire import bodies
from vizora_rt.wire.bodies import TOKEN_RULE, check
from vizora_rt.wire.payloads import Invalid

ID_RULE = "expected 1 to 128 printable characters without space or braces"

COMMAND = {"type": "reload"}


def details(schema: type[Any], data: Any) -> dict[str, str]:
    found = check(schema, data)
    assert isinstance(found, Invalid)
    return found.details


def test_what_fits() -> None:
    body = check(bodies.DeviceCommand, {"deviceId": "d1", "command": {"type": "pause", "ttl": 60, "payload": {"a": 1}}})
    assert body == bodies.DeviceCommand("d1", bodies.Command("pause", None, {"a": 1}, 60))
    assert check(bodies.PushContent, {"deviceId": "d", "content": {}}).duration == 5


def test_unknown_fields_are_no_fault() -> None:
    body = check(bodies.DeviceCommand, {"deviceId": "d1", "command": {"type": "pause", "new": 1}, "newer": 2})
    assert isinstance(body, bodies.DeviceCommand)


def test_null_is_absent_where_a_field_may_be_absent() -> None:
    assert check(bodies.Command, {"type": "pause", "payload": None, "ttl": None}) == bodies.Command("pause")
    assert check(bodies.Revocation, {"deviceId": "d", "reason": None, "jti": None}) == bodies.Revocation("d")
    assert check(bodies.PushContent, {"deviceId": "d", "content": {}, "duration": None}).duration == 5
    within = {"deviceId": "d", "command": {"type": "pause", "ttl": None, "payload": {"a": None}}, "more": None}
    assert check(bodies.DeviceCommand, within).command.payload == {"a": None}


@pytest.mark.parametrize("data", [None, [], 7, "x"])
def test_no_object(data: object) -> None:
    assert details(bodies.DeviceCommand, data) == {"body": "expected an object"}


@pytest.mark.parametrize(
    ("schema", "data", "expected"),
    [
        (bodies.DeviceCommand, {}, {"deviceId": "required", "command": "required"}),
        (bodies.DeviceCommand, {"deviceId": None, "command": COMMAND}, {"deviceId": "required"}),
        (bodies.DeviceCommand, {"deviceId": "d", "command": {}}, {"command.type": "required"}),
        (bodies.DeviceCommand, {"deviceId": "d", "command": []}, {"command": "expected object, got array"}),
        (bodies.DeviceCommand, {"deviceId": 7, "command": COMMAND}, {"deviceId": "expected str, got int"}),
        (bodies.DeviceCommand, {"deviceId": "a b", "command": COMMAND}, {"deviceId": ID_RULE}),
        (bodies.DeviceCommand, {"deviceId": "a\n", "command": COMMAND}, {"deviceId": ID_RULE}),
        (bodies.DeviceCommand, {"deviceId": "{a}", "command": COMMAND}, {"deviceId": ID_RULE}),
        (bodies.DeviceCommand, {"deviceId": "a\u200b", "command": COMMAND}, {"deviceId": ID_RULE}),
        (bodies.DeviceCommand, {"deviceId": "x" * 129, "command": COMMAND}, {"deviceId": ID_RULE}),
        (bodies.Command, {"type": "explode"}, {"type": "invalid enum value 'explode'"}),
        (bodies.Command, {"type": "pause", "ttl": 0}, {"ttl": "expected int >= 1"}),
        (bodies.Command, {"type": "pause", "ttl": 2_592_001}, {"ttl": "expected int <= 2592000"}),
        (bodies.Command, {"type": "pause", "ttl": "60"}, {"ttl": "expected int | null, got str"}),
        (bodies.Command, {"type": "pause", "payload": "x"}, {"payload": "expected object | null, got str"}),
        (bodies.Command, {"type": "pause", "commandId": ""}, {"commandId": ID_RULE}),
        (bodies.Broadcast, {"command": COMMAND, "deviceIds": []}, {"deviceIds": "expected array of length >= 1"}),
        (bodies.Broadcast, {"command": COMMAND, "deviceIds": ["a", " "]}, {"deviceIds": ID_RULE}),
        (
            bodies.Broadcast,
            {"command": COMMAND, "deviceIds": ["a"] * 10_001},
            {"deviceIds": "expected array of length <= 10000"},
        ),
        (bodies.PushPlaylist, {"deviceId": "d", "playlist": []}, {"playlist": "expected object, got array"}),
        (
            bodies.PushPlaylist,
            {"deviceId": "d", "playlist": {}, "version": ""},
            {"version": "expected str of length >= 1"},
        ),
        (bodies.PushContent, {"deviceId": "d", "content": {}, "duration": 0}, {"duration": "expected float > 0.0"}),
        (
            bodies.Entitlement,
            {"organizationId": "o", "state": "gone"},
            {"state": "invalid enum value 'gone'"},
        ),
        (bodies.Revocation, {"deviceId": "d", "reason": "x" * 257}, {"reason": "expected str of length <= 256"}),
        (bodies.TokenRefresh, {"deviceId": "d", "token": "a b"}, {"token": TOKEN_RULE}),
        (bodies.Notification, {"organizationId": "o"}, {"notification": "required"}),
    ],
)  # fmt: skip
def test_what_is_wrong(schema: type[Any], data: Any, expected: dict[str, str]) -> None:
    assert details(schema, data) == expected


def test_everything_at_once() -> None:
    data = {"deviceId": "", "command": {"type": "x", "ttl": -1, "payload": 1}}
    assert set(details(bodies.DeviceCommand, data)) == {"deviceId", "command.type", "command.ttl", "command.payload"}
