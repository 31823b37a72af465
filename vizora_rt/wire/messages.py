"""Dialect-neutral messages and their JSON: the native envelope, acks, events and the schema of each event.

The only `orjson`. Nothing here raises on what a peer sent: a bad message is an `errors.Refusal` or an `Invalid`.
Schemas are strict structs. A message that fits one costs one conversion; one that does not is repaired field by field
(`repair`), because an unknown field or a wrong type in an optional one is no reason to lose a heartbeat.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import Meta, Struct

from vizora_rt.errors import BAD_MESSAGE, Refusal

JSONError = orjson.JSONDecodeError

MAX_ID = 2**53
"""The largest integer that every JSON implementation keeps exact (RFC 8259 section 6)."""

Envelope = tuple[str, int | None, Any]
"""event, id (None: no ack is wanted), data"""

_encode = msgspec.json.Encoder().encode

Percent = Annotated[float, Meta(ge=0, le=100)]
NotNegative = Annotated[float, Meta(ge=0)]
Text32 = Annotated[str, Meta(max_length=32)]
Text64 = Annotated[str, Meta(max_length=64)]
Text128 = Annotated[str, Meta(max_length=128)]


class DeviceMetrics(Struct, forbid_unknown_fields=True, omit_defaults=True, rename="camel", gc=False):
    cpu_usage: Percent | None = None
    memory_usage: Percent | None = None
    disk_usage: NotNegative | None = None
    temperature: float | None = None
    network_latency: NotNegative | None = None


class Content(Struct, forbid_unknown_fields=True, omit_defaults=True, rename="camel", gc=False):
    content_id: Text128 | None = None
    playlist_id: Text128 | None = None
    status: Text32 | None = None
    playback_position: NotNegative | None = None


class Heartbeat(Struct, forbid_unknown_fields=True, omit_defaults=True, rename="camel", gc=False):
    """`heartbeat`: what a screen says of itself; every field is optional. Shipped players send a bare contentId."""

    metrics: DeviceMetrics | None = None
    current_content: Content | Text128 | None = None
    uptime: NotNegative | None = None
    app_version: Text64 | None = None
    screen_state: Text32 | None = None
    playback_source: Text32 | None = None
    content_version: Text64 | None = None


@dataclass(frozen=True, slots=True)
class Invalid:
    """A payload that must be refused: field -> why."""

    details: dict[str, str]


@dataclass(frozen=True, slots=True)
class Repaired:
    """A payload that was taken with less than it brought: fields unknown and fields of a wrong type are dropped."""

    payload: Any
    unknown: int
    wrong_type: int


def dumps(value: Any) -> bytes:
    """`value` as JSON."""
    return orjson.dumps(value)


def loads(text: bytes | str) -> Any:
    """JSON as objects. Raises JSONError: for what this service wrote itself; peers' text goes through `decode`."""
    return orjson.loads(text)


def decode(text: str) -> Envelope | Refusal:
    """One native message, `{"event":...,"id":...,"data":...}`."""
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        return BAD_MESSAGE
    if message.__class__ is not dict:
        return BAD_MESSAGE
    event = message.get("event")
    ack_id = message.get("id")
    if event.__class__ is not str:
        return BAD_MESSAGE
    if ack_id is not None and (ack_id.__class__ is not int or not 0 <= ack_id <= MAX_ID):
        return BAD_MESSAGE
    return event, ack_id, message.get("data")


def encode(event: str, body: bytes, ack_id: int | None = None) -> bytes:
    """A native message from the server; `body` is JSON already. With `ack_id` the client is asked for an ack."""
    if ack_id is None:
        return b'{"event":"%b","data":%b}' % (event.encode(), body)
    return b'{"event":"%b","id":%d,"data":%b}' % (event.encode(), ack_id, body)


def encode_ack(ack_id: int, body: bytes) -> bytes:
    """The native ack of message `ack_id`."""
    return b'{"event":"ack","id":%d,"data":%b}' % (ack_id, body)


def encode_success(ack_id: int, data: bytes, timestamp: bytes) -> bytes:
    """The native ack of a message that was taken, in one formatting: there is one per heartbeat."""
    return b'{"event":"ack","id":%d,"data":{"success":true,"data":%b,"timestamp":"%b"}}' % (ack_id, data, timestamp)


def success(data: bytes, timestamp: bytes) -> bytes:
    """The body of a positive ack; `data` is JSON already."""
    return b'{"success":true,"data":%b,"timestamp":"%b"}' % (data, timestamp)


def failure(refusal: Refusal, timestamp: bytes, extra: Mapping[str, Any] = {}) -> bytes:
    """The body of a negative ack; `extra` may hold `details` or `retryAfterMs`."""
    return orjson.dumps(
        {
            "success": False,
            "error": refusal.message,
            "code": refusal.code,
            "retryable": refusal.retryable,
            **extra,
            "timestamp": timestamp.decode(),
        }
    )


def error(refusal: Refusal, event: str | None, extra: Mapping[str, Any] = {}) -> bytes:
    """The body of the event `error`: the answer to a message that failed and asked for no ack."""
    return orjson.dumps(
        {"code": refusal.code, "message": refusal.message, "retryable": refusal.retryable, "event": event, **extra}
    )


def validate(schema: type[Any], data: Any) -> Any:
    """`data` as `schema`; else `Repaired` with what could be kept, or `Invalid`. `null` and no data are `{}`."""
    try:
        return msgspec.convert({} if data is None else data, schema)
    except msgspec.ValidationError:
        return repair(schema, data)


def repair(schema: type[Any], data: Any) -> Repaired | Invalid:
    """Take field by field what `validate` could not take whole."""
    if data is None:
        data = {}
    if data.__class__ is not dict:
        return Invalid({"data": "expected an object"})
    fields = {field.encode_name: field for field in msgspec.structs.fields(schema)}
    kept: dict[str, Any] = {}
    details: dict[str, str] = {}
    unknown = wrong = 0
    for name, value in data.items():
        field = fields.get(name)
        if field is None:
            unknown += 1
            continue
        if value is None:
            continue
        try:
            kept[field.name] = msgspec.convert(value, field.type)
            continue
        except msgspec.ValidationError as problem:
            reason = str(problem)
        nested = next((kind for kind in _members(field.type) if issubclass(kind, Struct)), None)
        inner = repair(nested, value) if nested is not None and value.__class__ is dict else None
        if isinstance(inner, Repaired):
            kept[field.name] = inner.payload
            unknown += inner.unknown
            wrong += inner.wrong_type
        elif field.required:
            details[name] = _reason(reason)
        else:
            wrong += 1
    details.update(
        {f.encode_name: "required" for f in fields.values() if f.required and data.get(f.encode_name) is None}
    )
    return Invalid(details) if details else Repaired(schema(**kept), unknown, wrong)


def _members(kind: Any) -> tuple[type[Any], ...]:
    """The classes in a field's type: the members of a union, without their constraints."""
    return tuple(member for member in getattr(kind, "__args__", (kind,)) if isinstance(member, type))


def _reason(text: str) -> str:
    return text.partition(" - at ")[0].replace("`", "").lower()


def json_struct(value: Struct) -> bytes:
    """A struct as JSON, absent fields left out."""
    return _encode(value)
