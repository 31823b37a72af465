"""The bodies of the control API: a schema for each, and `read`, which says of every field what is wrong with it.

A backend is told, and can be mended at once: so unlike a player's message, a body with one wrong type is refused. So is
one with a field that the schema does not name, or with a name twice. A call whose narrowing field is misspelt would
otherwise reach every device that the field was to leave out.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from vizora_rt.wire import messages
from vizora_rt.wire.payloads import MAX_DETAILS, Id, Invalid, reason_of

MAX_REASON = 256
MAX_TTL = 30 * 86_400
Reason = Annotated[str, Meta(max_length=MAX_REASON)]
Version = Annotated[str, Meta(min_length=1, max_length=64)]
Json = dict[str, Any]

SHOWN_NAME: Final = 64
"""Characters of an unknown name that an answer repeats: as long as any field's name that is meant."""

TOKEN_RULE = "expected 1 to 8192 characters of ASCII without space"  # noqa: S105

Type = Literal[
    "reload", "restart", "update", "update_config", "clear_cache", "screenshot", "reboot", "skip_content", "pause",
    "resume", "push_content", "disable", "enable", "clear_override",
]  # fmt: skip


class Nothing(Struct, forbid_unknown_fields=True):
    """The body of a call that takes none."""


class Command(Struct, rename="camel", forbid_unknown_fields=True):
    """`ttl` is in seconds, up to 30 days."""

    type: Type
    command_id: Id | None = None
    payload: Json | None = None
    ttl: Annotated[int, Meta(ge=1, le=MAX_TTL)] | None = None


class DeviceCommand(Struct, rename="camel", forbid_unknown_fields=True):
    device_id: Id
    command: Command


class Broadcast(Struct, rename="camel", forbid_unknown_fields=True):
    command: Command
    device_ids: Annotated[list[Id], Meta(min_length=1, max_length=10_000)] | None = None
    organization_id: Id | None = None


class PushPlaylist(Struct, rename="camel", forbid_unknown_fields=True):
    device_id: Id
    playlist: Json
    version: Version | None = None


class PushContent(Struct, rename="camel", forbid_unknown_fields=True):
    """`duration` is in minutes, at most a week."""

    device_id: Id
    content: Json
    duration: Annotated[float, Meta(gt=0, le=10_080)] = 5
    command_id: Id | None = None


class Notification(Struct, rename="camel", forbid_unknown_fields=True):
    organization_id: Id
    notification: Json
    user_id: Id | None = None


class Revocation(Struct, rename="camel", forbid_unknown_fields=True):
    device_id: Id
    reason: Reason = "revoked"
    jti: Id | None = None


class Entitlement(Struct, rename="camel", forbid_unknown_fields=True):
    organization_id: Id
    state: Literal["suspended", "resumed"]
    reason: Reason = ""


class TokenRefresh(Struct, rename="camel", forbid_unknown_fields=True):
    device_id: Id
    token: Annotated[str, Meta(pattern=r"\A[!-~]{1,8192}\Z")]


def read(schema: type[Any], text: bytes, query: Mapping[str, str] = {}) -> Any:
    """The JSON object `text` as `schema`, or `Invalid` with why for each field. `query` holds fields that came as query
    parameters: the same field may not be in both."""
    try:
        data = messages.loads(text)
    except messages.JSONError:
        return Invalid({"body": "expected JSON"})
    if data.__class__ is not dict:
        return Invalid({"body": "expected an object"})
    try:
        twice = dict.fromkeys(_repeated(schema, _PAIRS.decode(text.decode()), ""), "is there more than once")
    except RecursionError:
        return Invalid({"body": "is nested too deep"})
    twice |= {name: "is in the body and in the query" for name in query if name in data}
    return Invalid(_shown(twice)) if twice else check(schema, data | dict(query))


def check(schema: type[Any], data: Any) -> Any:
    """`data` as `schema`, or `Invalid` with why for each field."""
    try:
        return msgspec.convert(data, schema)
    except msgspec.ValidationError:
        if data.__class__ is not dict:
            return Invalid({"body": "expected an object"})
        given = _without_nulls(schema, data)
        unknown = _shown(dict(_unknown(schema, given, "")))
        if unknown:
            return Invalid(unknown | _problems(schema, given, ""))
        try:
            return msgspec.convert(given, schema)
        except msgspec.ValidationError:
            return Invalid(_problems(schema, given, ""))


def variant(name: str, data: Json) -> str | None:
    """The first key of a free object that is `name` but for its case, width, punctuation or what has no width."""
    plain = _plain(name)
    return next((each for each in data if each != name and len(each) < 2 * len(name) and _plain(each) == plain), None)


_PAIRS: Final = json.JSONDecoder(object_pairs_hook=tuple, parse_int=float)
"""Reads an object as a tuple of names and values, with names that are there twice. `int` would refuse 4301 digits."""


def _repeated(schema: type[Struct], pairs: tuple[tuple[str, Any], ...], path: str) -> Iterator[str]:
    """Paths of the fields that are there more than once, in each object that the API defines."""
    nested = _nested(schema)
    yield from (path + name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    for name, value in pairs:
        if value.__class__ is not tuple:
            continue
        if name in nested:
            yield from _repeated(nested[name], value, f"{path}{name}.")
        elif schema is Notification and name == "notification" and [each for each, _ in value].count("userId") > 1:
            yield "notification.userId"  # the one field of a free object that the gateway reads


def _unknown(schema: type[Struct], data: Json, path: str) -> Iterator[tuple[str, str]]:
    """Paths of the fields that the schema does not name, each with those that it does."""
    names = {field.encode_name for field in msgspec.structs.fields(schema)}
    known = f"unknown: expected {', '.join(sorted(names))}" if names else "unknown: this call takes no body"
    yield from ((path + name, known) for name in data if name not in names)
    for name, inner in _nested(schema).items():
        if data.get(name).__class__ is dict:
            yield from _unknown(inner, data[name], f"{path}{name}.")


def _nested(schema: type[Struct]) -> dict[str, type[Struct]]:
    """The fields that are objects of the API's own, by name."""
    fields = msgspec.structs.fields(schema)
    return {
        each.encode_name: each.type for each in fields if isinstance(each.type, type) and issubclass(each.type, Struct)
    }


def _shown(details: dict[str, str]) -> dict[str, str]:
    """As much of what a body brings of its own as an answer repeats."""
    return {name[:SHOWN_NAME]: why for name, why in islice(details.items(), MAX_DETAILS)}


def _plain(name: str) -> str:
    return re.sub(r"\W|_", "", unicodedata.normalize("NFKC", name)).casefold()


def _without_nulls(schema: type[Struct], data: dict[str, Any]) -> dict[str, Any]:
    """`null` is absent, also where a field has a value of its own when it is absent."""
    names = {field.encode_name for field in msgspec.structs.fields(schema)}
    given = {name: value for name, value in data.items() if value is not None or name not in names}
    for name, inner in _nested(schema).items():
        if given.get(name).__class__ is dict:
            given[name] = _without_nulls(inner, given[name])
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
                found[path + name] = _reason(str(problem), field.type)
    return found


def _reason(text: str, kind: Any) -> str:
    return TOKEN_RULE if "[!-~]" in text else reason_of(text, kind)
