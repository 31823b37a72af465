"""Dialect-neutral messages and their JSON: the native envelope, acks, events and the schema of each event.

The only `orjson`. Nothing here raises on what a peer sent: a bad message is an `errors.Refusal` or an `Invalid`.
Schemas are strict structs. A message that fits one costs one conversion; one that does not is repaired field by field
(`repair`), because an unknown field or a wrong type in an optional one is no reason to lose a heartbeat.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
import orjson
from msgspec import Meta, Struct

from vizora_rt.errors import BAD_MESSAGE, BINARY_FRAME, Close, Refusal

JSONError = orjson.JSONDecodeError
loads: Final = orjson.loads
"""JSON as objects. Raises JSONError; what peers sent goes through a dialect's `decode`, which does not."""

MAX_ID = 2**53
"""The largest integer that every JSON implementation keeps exact (RFC 8259 section 6)."""

MENDED = 16_384
"""The longest text in which broken characters are mended, which takes a millisecond. Events of players are shorter."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LAST_MS = 253_402_300_799_999
"""The end of the year 9999, the last that RFC 3339 can write."""

MAX_PLAYS = 200
"""Of one batch: about 40,000 bytes."""

MAX_DETAILS = 10
"""Reasons given for one refusal. A batch in which all is wrong would have six hundred."""

Envelope = tuple[str, int | None, Any]
"""event, id (None: no ack is wanted), data: as JSON has it, or what its schema makes of that already"""


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that is refused before it is one; `ack_id` where its sender waits for an ack."""

    refusal: Refusal
    ack_id: int | None


Aside = Refusal | Refused | bytes | None
"""What is no message: a refusal, a packet to send back (none when empty), or None: the client says goodbye."""


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """How messages are written on a connection. Whoever handles them does not know which one a client speaks.

    `ping` is sent at regular times, since such a client counts nothing else as life; None: a WebSocket ping, in
    silence. `goodbye` comes before a close frame, `binary` is what a binary message leads to, None when it is ignored.
    """

    name: str
    decode: Callable[[str], Envelope | Aside]
    encode: Callable[[str, bytes, int | None], bytes]
    encode_ack: Callable[[int, bytes], bytes]
    encode_success: Callable[[int, bytes, bytes], bytes]
    goodbye: Callable[[Close], tuple[bytes, ...]]
    ping: bytes | None
    binary: Close | None


_encode = msgspec.json.Encoder().encode
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

Percent = Annotated[float, Meta(ge=0, le=100)]
NotNegative = Annotated[float, Meta(ge=0)]
Text32 = Annotated[str, Meta(max_length=32)]
Text64 = Annotated[str, Meta(max_length=64)]
Text128 = Annotated[str, Meta(max_length=128)]
ID_PATTERN: Final = (
    r"\A[^\s{}\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\ud800-\uf8ff\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U00013438"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f\U000f0000-\U0010ffff]{1,128}\Z"
)
"""Without space, controls, what has no width (Unicode category Cf), surrogates and private use: two ids that look the
same are the same. In tokens, bodies and paths alike."""
Id = Annotated[str, Meta(pattern=ID_PATTERN)]
ContentId = Annotated[str, Meta(min_length=1, max_length=128)]
BOOT_PATTERN: Final = r"^[A-Za-z0-9._~+/=-]{1,64}\Z"
Boot = Annotated[str, Meta(pattern=BOOT_PATTERN)]
"""A random id as UUIDs, hex, base64 and nanoid write it; without the colon that divides a play_id."""
AckId = Annotated[int, Meta(ge=0, le=MAX_ID)]
Seq = Annotated[int, Meta(ge=1, le=MAX_ID)]
Phase = Literal["start", "end"]
Time = Annotated[float, Meta(ge=0, le=LAST_MS)] | datetime


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


class _Beat(Struct, forbid_unknown_fields=True, gc=False):
    """A heartbeat in its envelope, if nothing is wrong or new in it: to read it in one step takes a third of the time
    of objects first and their conversion then."""

    event: Literal["heartbeat"]
    data: Heartbeat
    id: AckId | None = None


class _ListedBeat(Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    """The same as the Socket.IO dialect has it."""

    id: AckId
    event: Literal["heartbeat"]
    data: Heartbeat


class Play(Struct, forbid_unknown_fields=True, rename="camel", gc=False, kw_only=True):
    """What was shown: the part that all shapes of an impression have."""

    content_id: ContentId
    playlist_id: Text128 | None = None
    duration: NotNegative | None = None
    completion_percentage: Percent | None = None
    timestamp: Time | None = None


class PlayNumber(Struct, forbid_unknown_fields=True, gc=False):
    boot: Boot
    seq: Seq
    phase: Phase = "end"


class Impression(Play):
    """`content:impression`. Players in the field do not number their plays."""

    play: PlayNumber | None = None


class NumberedPlay(Play):
    seq: Seq
    phase: Phase = "end"


class Impressions(Struct, forbid_unknown_fields=True, gc=False):
    """`content:impressions`: plays of one start of the player."""

    boot: Boot
    plays: Annotated[list[NumberedPlay], Meta(max_length=MAX_PLAYS)]


class ContentError(Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    """`content:error`. Types that are not known are counted as `unknown`; how large `context` is, its reader bounds."""

    content_id: ContentId
    error_type: Text64
    playlist_id: Text128 | None = None
    error_message: Annotated[str, Meta(max_length=512)] | None = None
    error_code: Text64 | None = None
    context: dict[str, Any] | None = None
    timestamp: Time | None = None


class PlaylistRequest(Struct, forbid_unknown_fields=True, omit_defaults=True, rename="camel", gc=False):
    """`playlist:request`: a device asks what to play."""

    last_known_version: Text128 | None = None
    force_refresh: bool | None = None


class ScreenshotResponse(Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    """`screenshot:response`: the picture that the command `screenshot` asked for."""

    request_id: Id
    image_data: Annotated[str, Meta(max_length=1_400_000)]
    width: Annotated[int, Meta(ge=1, le=65535)]
    height: Annotated[int, Meta(ge=1, le=65535)]
    timestamp: str | float | None = None


class JoinOrganization(Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    """`join:organization`: a dashboard asks for all of its organisation."""

    organization_id: Text128


class JoinRoom(Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    """`join:room` and `leave:room`: `org:<id>` or `device:<id>`."""

    room: Annotated[str, Meta(min_length=1, max_length=135)]


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


def iso(ms: int) -> str:
    """Milliseconds since the epoch as RFC 3339 text, as JavaScript writes it."""
    return (EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_decode_beat = msgspec.json.Decoder(_Beat).decode
_decode_listed_beat = msgspec.json.Decoder(_ListedBeat).decode


def dumps(value: Any) -> bytes:
    """`value` as JSON."""
    return orjson.dumps(value)


def bounded(value: Any, limit: int) -> bytes | None:
    """`value` as JSON, or None when that is longer than `limit` or nested deeper than can be written."""
    try:
        text = orjson.dumps(value)
    except orjson.JSONEncodeError:
        return None
    return text if len(text) <= limit else None


def decode(text: str) -> Envelope | Refusal:
    """One native message, `{"event":...,"id":...,"data":...}`."""
    if text.startswith('{"event":"heartbeat"'):
        try:
            beat = _decode_beat(text)
        except (msgspec.DecodeError, UnicodeError):
            pass  # what is wrong with it, or new in it, is found out below
        else:
            return "heartbeat", beat.id, beat.data
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        message = mended(text)
    if message.__class__ is not dict:
        return BAD_MESSAGE
    event = message.get("event")
    ack_id = message.get("id")
    if event.__class__ is not str:
        return BAD_MESSAGE
    if ack_id is not None and (ack_id.__class__ is not int or not 0 <= ack_id <= MAX_ID):
        return BAD_MESSAGE
    return event, ack_id, message.get("data")


def listed_heartbeat(text: str) -> Envelope | None:
    """The JSON `[id,"heartbeat",data]`, None when anything is wrong or new in it."""
    try:
        beat = _decode_listed_beat(text)
    except (msgspec.DecodeError, UnicodeError):
        return None
    return "heartbeat", beat.id, beat.data


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
    if data.__class__ is schema:
        return data
    try:
        return msgspec.convert({} if data is None else data, schema)
    except msgspec.ValidationError:
        return repair(schema, data)


def repair(schema: type[Any], data: Any) -> Repaired | Invalid:
    """Take in part what `validate` could not take whole."""
    if data is None:
        data = {}
    if data.__class__ is not dict:
        return Invalid({"data": "expected an object"})
    known, unknown = _known(schema, data)
    try:
        # The ordinary case: players of a newer release, each of whose heartbeats has a field more.
        return Repaired(msgspec.convert(known, schema), unknown, 0)
    except msgspec.ValidationError:
        return _repair_types(schema, known, unknown)


def _known(schema: type[Struct], data: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """`data` without the fields that the schema does not know, and how many there were."""
    fields = schema_fields(schema)
    known: dict[str, Any] = {}
    unknown = 0
    for name, value in data.items():
        if name not in fields:
            unknown += 1
            continue
        nested, element = fields[name].nested, fields[name].element
        if nested is not None and value.__class__ is dict:
            value, inner = _known(nested, value)
            unknown += inner
        elif element is not None and value.__class__ is list:
            pairs = [_known(element, item) if item.__class__ is dict else (item, 0) for item in value]
            value = [item for item, _ in pairs]
            unknown += sum(inner for _, inner in pairs)
        known[name] = value
    return known, unknown


def _repair_types(schema: type[Struct], data: dict[str, Any], unknown: int) -> Repaired | Invalid:
    """Field by field; of a struct in a field, again field by field. `data` has only known fields."""
    fields = schema_fields(schema)
    kept: dict[str, Any] = {}
    details: dict[str, str] = {}
    wrong = 0
    for name, value in data.items():
        field = fields[name]
        if value is None:
            continue
        try:
            kept[field.name] = msgspec.convert({"value": value}, field.alone).value
            continue
        except msgspec.ValidationError as problem:
            why = {name: reason_of(str(problem))}
            within = "[" in str(problem).rpartition(" - at ")[2]
        if field.nested is not None and value.__class__ is dict:
            inner = _repair_types(field.nested, value, 0)
            if isinstance(inner, Repaired):
                kept[field.name] = inner.payload
                wrong += inner.wrong_type
                continue
            why = {f"{name}.{part}": reason for part, reason in inner.details.items()}
        elif field.element is not None and within:
            inner = _repair_each(field.element, value)
            if isinstance(inner, Repaired):
                kept[field.name] = inner.payload
                wrong += inner.wrong_type
                continue
            why = {f"{name}{part}": reason for part, reason in inner.details.items()}
        if field.required:
            details.update(why)
        else:
            wrong += 1
    details.update({name: "required" for name, field in fields.items() if field.required and data.get(name) is None})
    return Invalid(details) if details else Repaired(schema(**kept), unknown, wrong)


def _repair_each(schema: type[Struct], items: list[Any]) -> Repaired | Invalid:
    """Every struct of a list, which is refused when one of them is."""
    kept: list[Any] = []
    details: dict[str, str] = {}
    wrong = 0
    for index, item in enumerate(items):
        if item.__class__ is not dict:
            details[f"[{index}]"] = "expected an object"
            continue
        inner = _repair_types(schema, item, 0)
        if isinstance(inner, Repaired):
            kept.append(inner.payload)
            wrong += inner.wrong_type
        else:
            details.update({f"[{index}].{part}": reason for part, reason in inner.details.items()})
        if len(details) >= MAX_DETAILS:
            break
    return Invalid(dict(islice(details.items(), MAX_DETAILS))) if details else Repaired(kept, 0, wrong)


class _Field(NamedTuple):
    """A field of a schema. `nested` is the struct that may be repaired within it, `element` that of a list.

    `alone` is a struct with this field only, as `value`: conversion to a bare type costs five times as much.
    """

    name: str
    required: bool
    nested: type[Struct] | None
    element: type[Struct] | None
    alone: Any


@cache
def schema_fields(schema: type[Struct]) -> dict[str, _Field]:
    """The fields of a schema by their name on the wire."""
    return {
        field.encode_name: _Field(
            field.name,
            field.required,
            _struct(field.type),
            _element(field.type),
            msgspec.defstruct("Alone", [("value", field.type)]),
        )
        for field in msgspec.structs.fields(schema)
    }


def _struct(kind: Any) -> type[Struct] | None:
    """The struct among the members of a field's type: itself one, not a list or a mapping of them."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _struct(kind.__origin__)
    if origin in (Union, UnionType):
        return next((found for found in map(_struct, get_args(kind)) if found is not None), None)
    return kind if isinstance(kind, type) and issubclass(kind, Struct) else None


def _element(kind: Any) -> type[Struct] | None:
    """The struct that a list in a field's type holds."""
    if get_origin(kind) is Annotated:
        kind = kind.__origin__
    return _struct(get_args(kind)[0]) if get_origin(kind) is list else None


def mended(text: str) -> Any:
    """JSON that is broken in one way only: it holds half a surrogate pair, which becomes U+FFFD. Else None.

    A player that cuts a text to length cuts an emoji in two, and JSON.stringify writes what is left (RFC 8259
    section 8.2). The message around it is whole, and its sender would wait for an ack that names no id.
    """
    if len(text) > MENDED or _SURROGATE.search(text) is None:
        return None
    try:
        lenient = json.dumps(json.loads(text), ensure_ascii=False)
        return orjson.loads(lenient.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    except (ValueError, RecursionError):
        return None


RULES: Final = {
    ID_PATTERN: "expected 1 to 128 printable characters without space or braces",
    BOOT_PATTERN: "expected 1 to 64 of letters, digits and . _ ~ + / = -",
}
"""What is said instead of a pattern, which tells nothing to who reads it."""


def reason_of(text: str) -> str:
    """What msgspec found wrong, in words for whoever sent it."""
    reason = text.partition(" - at ")[0]
    if "matching regex" in reason:
        for pattern, rule in RULES.items():
            if repr(pattern) in reason:
                return rule
    return reason.replace("`", "").lower()


def json_struct(value: Struct) -> bytes:
    """A struct as JSON, absent fields left out."""
    return _encode(value)


NATIVE: Final = Dialect(
    name="native",
    decode=decode,
    encode=encode,
    encode_ack=encode_ack,
    encode_success=encode_success,
    goodbye=lambda cause: (),
    ping=None,
    binary=BINARY_FRAME,
)
