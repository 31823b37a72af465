"""The payloads of events: a schema for each, and what can be kept of one that does not fit.

Schemas are strict structs. A payload that fits one costs one conversion; one that does not is repaired field by field
(`repair`), because an unknown field or a wrong type in an optional one is no reason to lose a heartbeat. Nothing here
raises on what a peer sent.

Over 300 lines because it has the schema of every event.
"""

from dataclasses import dataclass
from functools import cache
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args, get_origin

import msgspec
from msgspec import Meta, Struct

MAX_ID = 2**53
"""The largest integer that every JSON implementation keeps exact (RFC 8259 section 6)."""

MAX_PLAYS = 200
"""Of one batch: about 40,000 bytes."""

MAX_DETAILS = 10
"""Reasons given for one refusal. A batch in which all is wrong would have six hundred."""

Percent = Annotated[float, Meta(ge=0, le=100)]
NotNegative = Annotated[float, Meta(ge=0)]
Text32 = Annotated[str, Meta(max_length=32)]
Text64 = Annotated[str, Meta(max_length=64)]
Text128 = Annotated[str, Meta(max_length=128)]
ID_PATTERN: Final = (
    r"\A[^\s{}\x00-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b-\u200f"
    r"\u2028-\u202e\u2060-\u206f\ud800-\uf8ff\ufeff\ufff0-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    r"\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f\U000f0000-\U0010ffff]{1,128}\Z"
)
"""Without space, controls, what has no width (Unicode category Cf), surrogates and private use: two ids that look the
same are the same. In tokens, bodies and paths alike."""
Id = Annotated[str, Meta(pattern=ID_PATTERN)]
ContentId = Annotated[str, Meta(min_length=1, max_length=128)]
BOOT_PATTERN: Final = r"^[A-Za-z0-9._~+/=-]{1,64}\Z"
Boot = Annotated[str, Meta(pattern=BOOT_PATTERN)]
"""A random id as UUIDs, hex, base64 and nanoid write it; without the colon that divides a play_id."""
Seq = Annotated[int, Meta(ge=1, le=MAX_ID)]
Phase = Literal["start", "end"]
Time = Any
"""Whatever a player takes for a time; `times.milliseconds` says what it is."""
Sent = Text128 | float
"""The client's time as it sends a message."""


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
    sent_at: Sent | None = None


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
    sent_at: Sent | None = None


class NumberedPlay(Play):
    seq: Seq
    phase: Phase = "end"


class Impressions(Struct, forbid_unknown_fields=True, rename="camel", gc=False):
    """`content:impressions`: plays of one start of the player."""

    boot: Boot
    plays: Annotated[list[NumberedPlay], Meta(max_length=MAX_PLAYS)]
    sent_at: Sent | None = None


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
    image_data: Annotated[str, Meta(max_length=1_500_000)]
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
            why = {name: reason_of(str(problem), field.kind)}
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
    kind: Any
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
            field.type,
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


RULES: Final = {
    ID_PATTERN: "expected 1 to 128 printable characters without space or braces",
    BOOT_PATTERN: "expected 1 to 64 of letters, digits and . _ ~ + / = -",
}
"""What is said instead of a pattern, which tells nothing to who reads it."""


def words(kind: Any) -> tuple[str, ...]:
    """What a field may be whose type is a choice of words; else nothing."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    members = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
    return next((found for each in members if (found := words(each))), ()) if get_origin(kind) is not list else ()


def reason_of(text: str, kind: Any = None) -> str:
    """What msgspec found wrong with a field of type `kind`, in words for its sender."""
    allowed = words(kind)
    if allowed:
        return f"expected one of {', '.join(allowed)}"
    reason = text.partition(" - at ")[0]
    if "matching regex" in reason:
        for pattern, rule in RULES.items():
            if repr(pattern) in reason:
                return rule
    return reason.replace("`", "").lower()
