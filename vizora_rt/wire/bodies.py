"""The bodies of the control API: a schema for each, and `check`, which says of every field what is wrong with it.

A backend is told, and can be mended at once: so unlike a player's message, a body with one wrong type is refused.
Unknown fields are no fault in either.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from vizora_rt.wire.payloads import Id, Invalid, reason_of

MAX_REASON = 256
MAX_TTL = 30 * 86_400
Reason = Annotated[str, Meta(max_length=MAX_REASON)]
Version = Annotated[str, Meta(min_length=1, max_length=64)]
Json = dict[str, Any]

TOKEN_RULE = "expected 1 to 8192 characters of ASCII without space"  # noqa: S105

Type = Literal[
    "reload", "restart", "update", "update_config", "clear_cache", "screenshot", "reboot", "skip_content", "pause",
    "resume", "push_content", "disable", "enable", "clear_override",
]  # fmt: skip


class Command(Struct, rename="camel"):
    """`ttl` is in seconds, up to 30 days."""

    type: Type
    command_id: Id | None = None
    payload: Json | None = None
    ttl: Annotated[int, Meta(ge=1, le=MAX_TTL)] | None = None


class DeviceCommand(Struct, rename="camel"):
    device_id: Id
    command: Command


class Broadcast(Struct, rename="camel"):
    command: Command
    device_ids: Annotated[list[Id], Meta(min_length=1, max_length=10_000)] | None = None
    organization_id: Id | None = None


class PushPlaylist(Struct, rename="camel"):
    device_id: Id
    playlist: Json
    version: Version | None = None


class PushContent(Struct, rename="camel"):
    """`duration` is in minutes, at most a week."""

    device_id: Id
    content: Json
    duration: Annotated[float, Meta(gt=0, le=10_080)] = 5


class Notification(Struct, rename="camel"):
    organization_id: Id
    notification: Json
    user_id: Id | None = None


class Revocation(Struct, rename="camel"):
    device_id: Id
    reason: Reason = "revoked"
    jti: Id | None = None


class Entitlement(Struct, rename="camel"):
    organization_id: Id
    state: Literal["suspended", "resumed"]
    reason: Reason = ""


class TokenRefresh(Struct, rename="camel"):
    device_id: Id
    token: Annotated[str, Meta(pattern=r"\A[!-~]{1,8192}\Z")]


def check(schema: type[Any], data: Any) -> Any:
    """`data` as `schema`, or `Invalid` with why for each field."""
    try:
        return msgspec.convert(data, schema)
    except msgspec.ValidationError:
        if data.__class__ is not dict:
            return Invalid({"body": "expected an object"})
        given = _without_nulls(schema, data)
        try:
            return msgspec.convert(given, schema)
        except msgspec.ValidationError:
            return Invalid(_problems(schema, given, ""))


def _without_nulls(schema: type[Struct], data: dict[str, Any]) -> dict[str, Any]:
    """`null` is absent, also where a field has a value of its own when it is absent."""
    given = {name: value for name, value in data.items() if value is not None}
    for field in msgspec.structs.fields(schema):
        value = given.get(field.encode_name)
        if value.__class__ is dict and isinstance(field.type, type) and issubclass(field.type, Struct):
            given[field.encode_name] = _without_nulls(field.type, value)
    return given


def _problems(schema: type[Struct], data: dict[str, Any], path: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for field in msgspec.structs.fields(schema):
        name = field.encode_name
        value = data.get(name)
        if value is None:
            if field.required:
                found[path + name] = "required"
        elif value.__class__ is dict and isinstance(field.type, type) and issubclass(field.type, Struct):
            found.update(_problems(field.type, value, f"{path}{name}."))
        else:
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as problem:
                found[path + name] = _reason(str(problem))
    return found


def _reason(text: str) -> str:
    return TOKEN_RULE if "[!-~]" in text else reason_of(text)
