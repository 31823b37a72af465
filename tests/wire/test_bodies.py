"""The bodies of the control API: what fits, and what is said of what does not."""

from typing import Any, get_args

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


UNKNOWN: list[tuple[type[Any], Any, set[str]]] = [
    (
        bodies.Broadcast,
        {"organizationId": "acme", "deviceIDs": ["d1"], "dryRun": True, "command": {**COMMAND, "notBefore": "x"}},
        {"deviceIDs", "dryRun", "command.notBefore"},
    ),
    (bodies.Broadcast, {"organizationId": "acme", "command": COMMAND, "deviceids": ["d1"]}, {"deviceids"}),
    (bodies.Broadcast, {"organizationId": "acme", "command": COMMAND, "device_ids": None}, {"device_ids"}),
    (bodies.Broadcast, {"organizationId": "acme", "command": COMMAND, "limit": 5}, {"limit"}),
    (bodies.DeviceCommand, {"deviceId": "d", "command": {"type": "pause", "TTL": 60}}, {"command.TTL"}),
    (bodies.DeviceCommand, {"deviceId": "d", "command": {**COMMAND, "at": "c"}, "": 1}, {"command.at", ""}),
    (bodies.PushPlaylist, {"deviceId": "d", "playlist": {}, "validFrom": 1}, {"validFrom"}),
    (bodies.PushContent, {"deviceId": "d", "content": {}, "Duration": 1}, {"Duration"}),
    (bodies.Notification, {"organizationId": "o", "notification": {}, "userID": "ann"}, {"userID"}),
    (bodies.Revocation, {"deviceId": "d", "JTI": "t"}, {"JTI"}),
    (bodies.Entitlement, {"organizationId": "o", "state": "suspended", "until": 1}, {"until"}),
    (bodies.TokenRefresh, {"deviceId": "d", "token": "t", "jti": "t"}, {"jti"}),
    (bodies.Nothing, {"dryRun": True}, {"dryRun"}),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "data", "names"), UNKNOWN)
def test_an_unknown_field_is_named(schema: type[Any], data: Any, names: set[str]) -> None:
    found = details(schema, data)
    assert set(found) == names
    assert all(why.startswith("unknown: ") for why in found.values())


def test_what_is_expected_is_named_too() -> None:
    found = details(bodies.Broadcast, {"command": {"type": "x", "at": 1}, "to": "acme"})
    assert found["to"] == "unknown: expected command, deviceIds, organizationId"
    assert found["command.at"] == "unknown: expected commandId, payload, ttl, type"
    assert "command.type" in found


def test_free_objects_stay_free() -> None:
    free = {"dryRun": True, "deviceIDs": [], "notBefore": {"a": None}}
    for schema, data in (
        (bodies.DeviceCommand, {"deviceId": "d", "command": {**COMMAND, "payload": free}}),
        (bodies.PushPlaylist, {"deviceId": "d", "playlist": free}),
        (bodies.PushContent, {"deviceId": "d", "content": free}),
        (bodies.Notification, {"organizationId": "o", "notification": free}),
    ):
        assert not isinstance(check(schema, data), Invalid)


def test_an_answer_repeats_little_of_a_body() -> None:
    found = details(bodies.DeviceCommand, {"x" * 100_000 + str(number): 1 for number in range(50)})
    assert len(found) <= 1 + 2
    found = details(bodies.DeviceCommand, {str(number): 1 for number in range(50)})
    assert len(found) == 10 + 2


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b'{"deviceId":"a","deviceId":"b","command":{"type":"reload"}}', {"deviceId"}),
        (b'{"deviceId":"a","device\\u0049d":"b","command":{"type":"reload"}}', {"deviceId"}),
        (b'{"deviceId":"a","command":{"type":"reload","ttl":5,"ttl":500}}', {"command.ttl"}),
        (b'{"deviceId":"a","command":{"type":"reload"},"command":{"type":"reboot","type":"pause"}}',
         {"command", "command.type"}),
        (b'{"deviceId":"a","x":1,"x":2,"command":{"type":"reload"}}', {"x"}),
    ],
)  # fmt: skip
def test_a_name_that_is_there_twice(text: bytes, names: set[str]) -> None:
    found = bodies.read(bodies.DeviceCommand, text)
    assert isinstance(found, Invalid)
    assert found.details == dict.fromkeys(names, "is there more than once")


def test_the_one_user_of_a_notification_is_there_twice() -> None:
    """What else a notification holds is free, and may repeat."""
    for name in (b"userId", b"user\\u0049d"):
        text = b'{"organizationId":"acme","notification":{"userId":"ann","n":1,"%b":"bob"}}' % name
        found = bodies.read(bodies.Notification, text)
        assert isinstance(found, Invalid)
        assert found.details == {"notification.userId": "is there more than once"}
    text = b'{"organizationId":"acme","notification":{"n":1,"n":2,"inner":{"userId":1,"userId":2}}}'
    assert isinstance(bodies.read(bodies.Notification, text), bodies.Notification)


@pytest.mark.parametrize(
    "name",
    [
        "userid",
        "USER_ID",
        "user-id",
        "user id",
        "user.id",
        "userId ",
        "\u200buserId",
        "\uff55serId",
    ],
)
def test_a_name_that_looks_like_the_one_that_is_meant(name: str) -> None:
    assert bodies.variant("userId", {"text": 1, name: "ann"}) == name


def test_names_that_do_not() -> None:
    assert (
        bodies.variant("userId", dict.fromkeys(("userId", "users", "user", "id", "userIdentity", "x" * 9999), 1))
        is None
    )


def test_numbers_and_depth_that_only_one_reader_takes() -> None:
    long = b'{"deviceId":"a","command":{"type":"reload","payload":{"n":%b}}}' % (b"1" * 5000)
    found = bodies.read(bodies.DeviceCommand, long)
    assert isinstance(found, bodies.DeviceCommand | Invalid)
    deep = b'{"deviceId":"a","playlist":{"a":%b1%b}}' % (b"[" * 1010, b"]" * 1010)
    found = bodies.read(bodies.PushPlaylist, deep)
    assert isinstance(found, bodies.PushPlaylist | Invalid)


def test_fields_that_came_as_a_query() -> None:
    assert bodies.read(bodies.Revocation, b"{}", {"deviceId": "d", "jti": "t"}) == bodies.Revocation("d", jti="t")
    found = bodies.read(bodies.Revocation, b'{"deviceId":"d","jti":"a"}', {"jti": "b"})
    assert found.details == {"jti": "is in the body and in the query"}


def test_a_name_that_differs_in_case_only() -> None:
    for name in ("userID", "user_id", "UserId", "user-id", "userid"):
        assert bodies.variant("userId", {name: 1}) == name
    assert bodies.variant("userId", {"userId": 1, "user": 2, "userIds": 3}) is None


def test_null_is_absent_where_a_field_may_be_absent() -> None:
    assert check(bodies.Command, {"type": "pause", "payload": None, "ttl": None}) == bodies.Command("pause")
    assert check(bodies.Revocation, {"deviceId": "d", "reason": None, "jti": None}) == bodies.Revocation("d")
    assert check(bodies.PushContent, {"deviceId": "d", "content": {}, "duration": None}).duration == 5
    within = {"deviceId": "d", "command": {"type": "pause", "ttl": None, "payload": {"a": None}}}
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
        (bodies.Command, {"type": "explode"}, {"type": f"expected one of {', '.join(get_args(bodies.Type))}"}),
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
            {"state": "expected one of suspended, resumed"},
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
