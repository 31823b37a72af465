"""Dialect-neutral messages and their JSON: the native envelope, acks and events. The only `orjson`.

Nothing here raises on what a peer sent: a bad message is an `errors.Refusal`. What events carry is in `payloads`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
import orjson
from msgspec import Meta, Struct

from vizora_rt.errors import BAD_MESSAGE, BINARY_FRAME, Close, Refusal
from vizora_rt.wire.payloads import MAX_ID, Heartbeat
from vizora_rt.wire.times import EPOCH

JSONError = orjson.JSONDecodeError
loads: Final = orjson.loads
"""JSON as objects. Raises JSONError; what peers sent goes through a dialect's `decode`, which does not."""


MENDED: Final = 16_384
"""Broken characters that are mended in one message, 0.1 us each. A message of 64 KiB has room for fewer."""

Envelope = tuple[str, int | None, Any]
"""event, id (None: no ack is wanted), data: as JSON has it, or what its schema makes of that already"""


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that is refused before it is one; `ack_id` where its sender waits for an ack."""

    refusal: Refusal
    ack_id: int | None


ControlPacket = Refusal | Refused | bytes | None
"""What is no message: a refusal, a packet to send back (none when empty), or None: the client says goodbye."""


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """How messages are written on a connection. Whoever handles them does not know which one a client speaks.

    `ping` is sent at regular times, since such a client counts nothing else as life; None: a WebSocket ping, in
    silence. `goodbye` comes before a close frame, `binary` is what a binary message leads to, None when it is ignored.
    `overtakes` tells acks and signs of life, which are taken at once while events wait for their turn.
    """

    name: str
    decode: Callable[[str], Envelope | ControlPacket]
    encode: Callable[[str, bytes, int | None], bytes]
    encode_ack: Callable[[int, bytes], bytes]
    encode_success: Callable[[int, bytes, bytes], bytes]
    goodbye: Callable[[Close], tuple[bytes, ...]]
    ping: bytes | None
    binary: Close | None
    overtakes: Callable[[str], bool]


_encode = msgspec.json.Encoder().encode
_LONE = re.compile(
    r"\\u[dD](?:[89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD])[c-fC-F][0-9a-fA-F]{2})"
)
"""Half of a surrogate pair, in text without escaped backslashes."""

_ACK = re.compile(r'\s*\{\s*(?:"id"\s*:\s*\d+\s*,\s*)?"event"\s*:\s*"ack"')

AckId = Annotated[int, Meta(ge=0, le=MAX_ID)]


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


def mended(text: str) -> Any:
    """JSON that is broken in one way only: it holds half a surrogate pair, which becomes U+FFFD. Else None.

    A player that cuts a text to length cuts an emoji in two, and JSON.stringify writes what is left (RFC 8259
    section 8.2). The message around it is whole, and its sender would wait for an ack that names no id.
    """
    # An escaped backslash before a `u` begins no character; NUL stands for it, which JSON does not allow in a text.
    marked, count = _LONE.subn(r"\\ufffd", text.replace("\\\\", "\0"), MENDED)
    if not count or "\0" in text:
        return None
    try:
        return orjson.loads(marked.replace("\0", "\\\\"))
    except orjson.JSONDecodeError:
        return None


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
    overtakes=lambda text: _ACK.match(text) is not None,
)
