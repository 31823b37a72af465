"""Whatever can be wrong with a message or a call, cell by cell: every event and every route, each field and each fault.

The cells come from the schemas, so a new field has its tests; what each must be answered is written here. The gateway
is a real one, in both dialects where they differ.
"""

import json
from collections.abc import AsyncIterator, Callable, Iterator
from types import UnionType
from typing import Any, Final, NamedTuple, Union, get_args, get_origin

import msgspec
import pytest
from msgspec import Meta, Struct

from tests.net.api.test_control import CALLS, CHANGING, WITH_BODY
from tests.net.backend import Backed, Screen, books, call, fleet
from tests.net.peers import Client, Json, dial, dial_device, until, user_token
from vizora_rt.wire import bodies, payloads

UNLIMITED: Final[Json] = {"messages_per_minute": 0, "packets_per_minute": 0, "message_bytes": 4_000_000}
JPEG: Final = "/9j/2Q=="
PLAY: Final[Json] = {
    "contentId": "c", "playlistId": "p", "duration": 1, "completionPercentage": 100, "timestamp": 1_795_406_400_000
}  # fmt: skip

EVENTS: dict[str, tuple[type[Struct], Json]] = {
    "heartbeat": (
        payloads.Heartbeat,
        {
            "metrics": {"cpuUsage": 1, "memoryUsage": 2, "diskUsage": 3, "networkLatency": 4, "temperature": 5},
            "currentContent": {"contentId": "c", "playlistId": "p", "status": "playing", "playbackPosition": 1},
            "uptime": 1, "appVersion": "1", "screenState": "on", "playbackSource": "cache", "contentVersion": "1",
            "sentAt": 1_795_406_400_000,
        },
    ),
    "content:impression": (
        payloads.Impression, {**PLAY, "play": {"boot": "b", "seq": 1, "phase": "end"}, "sentAt": 1_795_406_400_000}
    ),
    "content:impressions": (
        payloads.Impressions,
        {"boot": "b", "plays": [{**PLAY, "seq": 1, "phase": "start"}], "sentAt": 1_795_406_400_000},
    ),
    "content:error": (
        payloads.ContentError,
        {
            "contentId": "c", "errorType": "timeout", "playlistId": "p", "errorMessage": "m", "errorCode": "E1",
            "context": {"a": 1}, "timestamp": "2026-11-23T04:00:00Z",
        },
    ),
    "playlist:request": (payloads.PlaylistRequest, {"lastKnownVersion": "1", "forceRefresh": True}),
    "screenshot:response": (
        payloads.ScreenshotResponse,
        {"requestId": "r1", "imageData": JPEG, "width": 2, "height": 1, "timestamp": 1},
    ),
    "join:organization": (payloads.JoinOrganization, {"organizationId": "acme"}),
    "join:room": (payloads.JoinRoom, {"room": "org:acme"}),
    "leave:room": (payloads.JoinRoom, {"room": "org:acme"}),
}  # fmt: skip
"""Every event with its schema and a message that uses every field."""

NUMBERS: Final[dict[str, tuple[str | int, ...]]] = {
    "content:impression": ("play", "seq"), "content:impressions": ("plays", 0, "seq")
}  # fmt: skip
"""Where an event numbers its play."""

NO_TIMES: Final[tuple[Any, ...]] = (True, "seven", [], [7], {}, {"a": 1})
"""What a field that takes every time must drop."""

DASHBOARD: Final = ("join:organization", "join:room", "leave:room")

SCHEMAS: dict[str, type[Struct]] = {
    "/push/playlist": bodies.PushPlaylist,
    "/push/content": bodies.PushContent,
    "/commands/broadcast": bodies.Broadcast,
    "/internal/command": bodies.DeviceCommand,
    "/notifications/broadcast": bodies.Notification,
    "/internal/device-revoked": bodies.Revocation,
    "/internal/tenant-entitlement": bodies.Entitlement,
    "/internal/token-refresh": bodies.TokenRefresh,
}


class Field(NamedTuple):
    """A field of a schema: the way to it, its name in `details`, and whether the message is refused without it."""

    path: tuple[str | int, ...]
    name: str
    required: bool
    kind: Any


def fields_of(
    schema: type[Struct], path: tuple[str | int, ...] = (), name: str = "", sure: bool = True
) -> Iterator[Field]:
    """`sure`: all around it is required too, else what is wrong within only drops what is around it."""
    for each in msgspec.structs.fields(schema):
        field = Field((*path, each.encode_name), name + each.encode_name, sure and each.required, each.type)
        yield field
        inner, element = payloads._struct(each.type), payloads._element(each.type)
        if inner is not None:
            yield from fields_of(inner, field.path, f"{field.name}.", field.required)
        elif element is not None:
            yield from fields_of(element, (*field.path, 0), f"{field.name}[0].", field.required)


def metas(kind: Any) -> Iterator[tuple[Any, Meta]]:
    """The bounds of a field's type, with what they bound."""
    for meta in getattr(kind, "__metadata__", ()):
        yield get_args(kind)[0], meta
    if get_origin(kind) is not None and not hasattr(kind, "__metadata__"):
        for each in get_args(kind):
            yield from metas(each)


def beyond(kind: Any, sample: Any) -> list[Any]:
    """Values just past each bound of a field."""
    found: list[Any] = []
    for _, meta in metas(kind):
        if meta.max_length is not None:
            found.append(
                [sample[0]] * (meta.max_length + 1) if isinstance(sample, list) else "x" * (meta.max_length + 1)
            )
        if meta.min_length:
            found.append("")
        if meta.pattern is not None:
            long = 8193 if "8192" in meta.pattern else 129 if "128" in meta.pattern else 65
            found += ["x" * long, "", "a b", "a\n"]
        if meta.ge is not None:
            found.append(meta.ge - 1)
        if meta.gt is not None:
            found.append(meta.gt)
        if meta.le is not None:
            found.append(meta.le + 1)
    return found


def is_time(kind: Any) -> bool:
    """Whether the schema leaves it to `times.milliseconds` what is a time."""
    return get_origin(kind) in (Union, UnionType) and payloads.Time in get_args(kind)


def wrong_types(kind: Any, sample: Any) -> list[Any]:
    """Values of other types than the field's; those that a union takes are left out."""
    if is_time(kind):
        return list(NO_TIMES)
    candidates: list[Any] = [True, 7, "seven", [], [7], {}, {"a": 1}]

    def fits(value: Any) -> bool:
        try:
            msgspec.convert({"value": value}, msgspec.defstruct("One", [("value", kind)]))
        except msgspec.ValidationError:
            return False
        return True

    nested = payloads._struct(kind) is not None
    return [each for each in candidates if not fits(each) and not (nested and isinstance(each, dict))]


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


def put(data: Json, path: tuple[str | int, ...], value: Any) -> Json:
    """A copy of `data` with another value in one place."""
    copy: Any = json.loads(json.dumps(data))
    place = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return copy  # type: ignore[no-any-return]


def without(data: Json, path: tuple[str | int, ...]) -> Json:
    copy: Any = json.loads(json.dumps(data))
    place = copy
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return copy  # type: ignore[no-any-return]


class Bench:
    """A worker with a screen and a dashboard that may say what they like."""

    def __init__(self, node: Backed, screen: Client, dashboard: Client) -> None:
        self.node = node
        self.screen = screen
        self.dashboard = dashboard
        self._ids = 100

    async def ask(self, event: str, data: Any) -> Json:
        """The body of the ack; what else comes is passed over."""
        client = self.dashboard if event in DASHBOARD else self.screen
        self._ids += 1
        await client.send(event, data, self._ids)
        while True:
            message = await client.receive()
            if message["event"] == "ack" and message["id"] == self._ids:
                body: Json = message["data"]
                return body

    def dropped(self, event: str) -> int:
        return self.node.counter("ws_fields_ignored_total", event, "wrong_type")

    async def answered(self, event: str, field: Field, data: Json) -> None:
        """The one right answer to a message in which this field is wrong."""
        if is_time(field.kind) and event in NUMBERS:
            # A play that is in already has no field to drop.
            data = put(data, NUMBERS[event], self._ids)
        before = self.dropped(event)
        body = await self.ask(event, data)
        if field.required:
            assert (body["success"], body["code"], body["retryable"]) == (False, "INVALID_PAYLOAD", False), field.name
            assert list(body["details"]) == [field.name]
            assert_clear(body["details"][field.name])
        else:
            assert body["success"] is True, (field.name, body)
            assert self.dropped(event) == before + 1, field.name


def assert_clear(reason: str) -> None:
    """Words for people: neither a pattern nor a word of the sender. A choice of words names them all."""
    assert reason == "required" or reason.startswith("expected "), reason
    assert "regex" not in reason
    assert len(reason) < (250 if reason.startswith("expected one of ") else 100)


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    async with fleet(redis_url, 1, limits=UNLIMITED) as (node,):
        await until(lambda: node.gateway.plays.partitions)
        books(redis_url).hset("vz:{s:r1}", "device", "lobby")
        yield Bench(node, await dial_device(node.port, "lobby"), await dial(node.port, user_token()))


EVERY: Final = pytest.mark.parametrize("event", EVENTS)


class TestEvents:
    def test_all_are_here(self, redis_url: str) -> None:
        for event, (schema, sample) in EVENTS.items():
            assert msgspec.convert(sample, schema), event
            for field in fields_of(schema):
                without(sample, field.path)  # raises when the sample leaves one out

    async def test_the_table_is_whole(self, bench: Bench) -> None:
        table = bench.node.gateway._dispatcher._events
        assert {name: each.event.schema for name, each in table.items() if each.event} == {
            name: schema for name, (schema, _) in EVENTS.items()
        }

    @EVERY
    async def test_a_good_one_is_taken_whole(self, bench: Bench, event: str) -> None:
        assert (await bench.ask(event, EVENTS[event][1]))["success"] is True
        assert bench.dropped(event) == bench.node.counter("ws_fields_ignored_total", event, "unknown") == 0

    @EVERY
    async def test_a_field_is_missing(self, bench: Bench, event: str) -> None:
        schema, sample = EVENTS[event]
        for field in fields_of(schema):
            for data in (without(sample, field.path), put(sample, field.path, None)):
                body = await bench.ask(event, data)
                if field.required:
                    assert (body["code"], body["details"]) == ("INVALID_PAYLOAD", {field.name: "required"})
                else:
                    assert body["success"] is True, (field.name, body)

    @EVERY
    async def test_a_field_is_of_a_wrong_type(self, bench: Bench, event: str) -> None:
        schema, sample = EVENTS[event]
        for field in fields_of(schema):
            wrong = wrong_types(field.kind, sample)
            assert wrong, field.name
            for value in wrong:
                if event == "content:impressions" and field.name == "plays" and value == [7]:
                    continue  # the place in the list is named: see its own test
                await bench.answered(event, field, put(sample, field.path, value))

    @EVERY
    async def test_a_field_is_too_long_or_out_of_its_bounds(self, bench: Bench, event: str) -> None:
        schema, sample = EVENTS[event]
        for field in fields_of(schema):
            value: Any = sample
            for step in field.path:
                value = value[step]
            for other in beyond(field.kind, value):
                await bench.answered(event, field, put(sample, field.path, other))

    @EVERY
    async def test_a_field_is_nested_too_deep(self, bench: Bench, event: str) -> None:
        """Past what JSON is written to, below what it is read to."""
        schema, sample = EVENTS[event]
        for field in fields_of(schema):
            nested = payloads._struct(field.kind) is not None
            for value in [[deep(300)]] if nested else [deep(300), [deep(300)]]:
                if field.name == "plays" and isinstance(value, list):
                    continue  # a play is an object whose fields are not known
                await bench.answered(event, field, put(sample, field.path, value))

    @EVERY
    @pytest.mark.parametrize("levels", [1100, 30_000])
    async def test_the_message_is_nested_too_deep(self, bench: Bench, event: str, levels: int) -> None:
        client = bench.dashboard if event in DASHBOARD else bench.screen
        text = f'{{"event":"{event}","id":1,"data":' + '{"a":' * levels + "1" + "}" * levels + "}"
        await client.connection.send(text)
        error = await client.next("error")
        assert (error["code"], error["event"]) == ("BAD_MESSAGE", None)
        assert (await bench.ask(event, EVENTS[event][1]))["success"] is True

    @EVERY
    @pytest.mark.parametrize("data", ["text", 7, True, [], [{}]])
    async def test_data_is_no_object(self, bench: Bench, event: str, data: Any) -> None:
        body = await bench.ask(event, data)
        assert (body["code"], body["details"]) == ("INVALID_PAYLOAD", {"data": "expected an object"})

    @EVERY
    async def test_from_the_other_kind_of_client(self, bench: Bench, event: str) -> None:
        client = bench.screen if event in DASHBOARD else bench.dashboard
        await client.send(event, EVENTS[event][1], 5)
        body = (await client.receive())["data"]
        assert (body["success"], body["code"], body["retryable"]) == (False, "NOT_ALLOWED", False)

    @pytest.mark.parametrize(
        ("event", "data", "code", "details"),
        [
            ("join:organization", {"organizationId": "globex"}, "FORBIDDEN", {"organizationId": "not yours"}),
            *(
                (event, {"room": room}, "FORBIDDEN", {"room": "not yours"})
                for event in ("join:room", "leave:room")
                for room in ("org:globex", "device:abroad", "device:unheard-of", "device:", "abroad", "user:bob")
            ),
        ],
    )
    async def test_what_is_another_organisation_s(
        self, bench: Bench, event: str, data: Json, code: str, details: Json
    ) -> None:
        abroad = await dial_device(bench.node.port, "abroad", organization="globex")
        body = await bench.ask(event, data)
        assert (body["code"], body["details"]) == (code, details)
        assert (await abroad.heartbeat())["success"]

    @pytest.mark.parametrize("device", ["abroad", "lobby-2"])
    async def test_a_screenshot_that_was_asked_of_another(self, bench: Bench, redis_url: str, device: str) -> None:
        organization = "globex" if device == "abroad" else "acme"
        other = await dial_device(bench.node.port, device, organization=organization)
        body = await other.ask("screenshot:response", EVENTS["screenshot:response"][1])
        assert (body["code"], body["details"]) == (
            "INVALID_PAYLOAD",
            {"requestId": "this device was not asked for it"},
        )
        assert books(redis_url).hkeys("vz:{s:r1}") == ["device"]


def sample_of(method: str, path: str) -> Json:
    """A body that is right, with every field of its schema but those that exclude each other."""
    more: dict[str, Json] = {
        "/push/playlist": {"version": "v1"},
        "/push/content": {"duration": 5},
        "/notifications/broadcast": {"userId": "ann"},
        "/internal/device-revoked": {"reason": "stolen", "jti": "t1"},
        "/internal/tenant-entitlement": {"reason": "unpaid"},
    }
    body = {**(CALLS[method, path] or {}), **more.get(path, {})}
    if "command" in body:
        body["command"] = {"type": "reload", "commandId": "c1", "payload": {"a": 1}, "ttl": 60}
    return body


ROUTES: Final = pytest.mark.parametrize(("method", "path"), WITH_BODY)


class TestRoutes:
    def test_all_are_here(self) -> None:
        assert [path for _, path in WITH_BODY] == list(SCHEMAS)

    async def check(self, redis_url: str, method: str, path: str, wrong: Callable[[Field, Any], list[Any]]) -> None:
        """Every field of the route's body, wrong in turn: 400, and the field is named; nothing is done."""
        sample = sample_of(method, path)
        async with fleet(redis_url, 1) as (node,):
            count = 0
            for field in fields_of(SCHEMAS[path]):
                value: Any = sample
                for step in field.path:
                    value = value.get(step) if isinstance(value, dict) else None
                for other in wrong(field, value):
                    answer = await call(node, method, path, put(sample, field.path, other))
                    assert (answer.status, answer.body["code"]) == (400, "INVALID_BODY"), (field.name, other)
                    assert [name.partition("[")[0] for name in answer.body["details"]] == [field.name]
                    assert_clear(answer.body["details"][next(iter(answer.body["details"]))])
                    count += 1
            assert count
            assert books(redis_url).keys("vz:{*") == []

    @ROUTES
    async def test_a_field_is_of_a_wrong_type(self, redis_url: str, method: str, path: str) -> None:
        await self.check(redis_url, method, path, lambda field, value: wrong_types(field.kind, value))

    @ROUTES
    async def test_a_field_is_too_long_or_out_of_its_bounds(self, redis_url: str, method: str, path: str) -> None:
        await self.check(redis_url, method, path, lambda field, value: beyond(field.kind, value or ["a"]))

    @ROUTES
    async def test_a_field_is_nested_too_deep(self, redis_url: str, method: str, path: str) -> None:
        def wrong(field: Field, value: Any) -> list[Any]:
            return (
                [[deep(300)]] if payloads._struct(field.kind) is not None or dict in flat(field.kind) else [deep(300)]
            )

        await self.check(redis_url, method, path, wrong)

    @pytest.mark.parametrize(
        ("path", "way", "name"),
        [
            ("/push/playlist", ("playlist",), "playlist"),
            ("/push/content", ("content",), "content"),
            ("/commands/broadcast", ("command", "payload"), "command.payload"),
            ("/internal/command", ("command", "payload"), "command.payload"),
            ("/notifications/broadcast", ("notification",), "notification"),
        ],
    )
    async def test_an_object_is_nested_too_deep(
        self, redis_url: str, path: str, way: tuple[str, ...], name: str
    ) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "POST", path, put(sample_of("POST", path), way, deep(300)))
            assert (answer.status, answer.body["details"]) == (400, {name: "is nested too deep"})
            assert books(redis_url).keys("vz:{d*") == []

    @ROUTES
    async def test_the_body_is_nested_too_deep(self, redis_url: str, method: str, path: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, method, path, b'{"a":' * 1100 + b"1" + b"}" * 1100)
            assert (answer.status, answer.body["details"]) == (400, {"body": "expected JSON"})

    @pytest.mark.parametrize(
        ("method", "path", "body", "status", "part"),
        [
            ("POST", "/push/playlist", {"playlist": {}}, 202, {"queued": True, "delivered": False}),
            ("POST", "/push/content", {"content": {}}, 202, {"queued": True, "delivered": False}),
            ("POST", "/internal/command", {"command": {"type": "reload"}}, 202, {"queued": True, "delivered": False}),
            ("POST", "/internal/token-refresh", {"token": "a.b.c"}, 202, {"queued": True, "delivered": False}),
            ("POST", "/internal/device-revoked", {}, 200, {"delivered": False, "message": "device revoked"}),
            ("DELETE", "/internal/device-revoked", {}, 200, {"delivered": False, "message": "was not revoked"}),
            ("GET", "/devices/nobody", None, 404, {"code": "NOT_FOUND"}),
            ("DELETE", "/devices/nobody", None, 404, {"code": "NOT_FOUND"}),
            ("GET", "/devices/nobody/plays", None, 200, {"boots": [], "days": {}}),
            ("GET", "/commands/unknown", None, 404, {"code": "NOT_FOUND"}),
            ("GET", "/screenshots/unknown", None, 404, {"details": {"requestId": "unknown"}}),
            ("GET", "/organizations/nobody/devices", None, 404, {"code": "NOT_FOUND"}),
        ],
    )
    async def test_an_unknown_device(
        self, redis_url: str, method: str, path: str, body: Json | None, status: int, part: Json
    ) -> None:
        """One that never came may come: what is meant for it waits."""
        async with fleet(redis_url, 1) as (node,):
            await until(lambda: node.gateway.plays.partitions)
            answer = await call(node, method, path, None if body is None else {"deviceId": "nobody", **body})
            assert answer.status == status
            assert answer.body.items() >= part.items()

    async def test_a_broadcast_to_unknown_devices_and_organisations(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            command = {"command": {"type": "reload"}}
            answer = await call(node, "POST", "/commands/broadcast", {"deviceIds": ["a", "b"], **command})
            assert (answer.status, answer.body["devicesOnline"], answer.body["queued"]) == (202, 0, 2)
            answer = await call(node, "POST", "/commands/broadcast", {"organizationId": "nobody", **command})
            assert (answer.status, answer.body["details"]) == (404, {"organizationId": "has no devices"})

    async def test_other_organisations_hear_nothing(self, redis_url: str) -> None:
        """What names an organisation reaches none of another's clients and lists none of its devices."""
        async with fleet(redis_url, 1) as (node,):
            mine = await Screen.dial(node, "lobby")
            abroad = await Screen.dial(node, "abroad", organization="globex")
            bob = Screen(await dial(node.port, user_token("bob", "globex")))
            await until(
                lambda: node.gateway.pubsub.is_subscribed("acme") and node.gateway.pubsub.is_subscribed("globex")
            )
            for path, body in (
                ("/commands/broadcast", {"organizationId": "acme", "command": {"type": "reload"}}),
                ("/notifications/broadcast", {"organizationId": "acme", "notification": {}}),
                ("/internal/tenant-entitlement", {"organizationId": "acme", "state": "suspended"}),
            ):
                assert (await call(node, "POST", path, body)).status == 200
            await mine.event("tenant:suspended")
            assert (await abroad.answer("heartbeat", {}, 1))["success"] is True
            assert (await bob.answer("leave:room", {"room": "org:globex"}, 1))["success"] is True
            assert {each["event"] for each in abroad.heard} == {"config", "ack"}
            assert {each["event"] for each in bob.heard} <= {"ack", "device:status"}
            page = (await call(node, "GET", "/organizations/acme/devices")).body
            assert [each["deviceId"] for each in page["devices"]] == ["lobby"]

    @pytest.mark.parametrize(("method", "path"), CHANGING)
    async def test_an_idempotency_key_that_has_expired(self, redis_url: str, method: str, path: str) -> None:
        """It is as good as new, for another call too: 409 before, done after."""
        key, client = {"Idempotency-Key": "order-7"}, books(redis_url)
        other: Json = {"deviceId": "hall", "command": {"type": "pause"}}
        async with fleet(redis_url, 1) as (node,):
            first = await call(node, method, path, CALLS[method, path], headers=key)
            again = await call(node, method, path, CALLS[method, path], headers=key)
            assert (again.status, again.body) == (first.status, first.body)
            refused = await call(node, "POST", "/internal/command", other, headers=key)
            assert (refused.status, refused.body["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
            assert client.pexpire("vz:{i:order-7}", 1)
            await until(lambda: not client.exists("vz:{i:order-7}"))
            assert (await call(node, "POST", "/internal/command", other, headers=key)).status == 202


def flat(kind: Any) -> set[Any]:
    """The types that a field may have."""
    origin = get_origin(kind)
    if origin is None or origin is dict:
        return {origin or kind}
    return {each for argument in get_args(kind) for each in flat(argument)}
