"""The Socket.IO v4 dialect: Engine.IO 4 and Socket.IO 5 packets on the root namespace <-> dialect-neutral messages.

A text message is one packet: `42["event",data]`, `427[...]` with an ack id, `437[data]` an ack; `2` and `3` are ping
and pong. Nothing here raises on what a peer sent. What is no packet, of another namespace or binary is refused, which
is answered and changes nothing: shipped clients take the end of a connection for a fault and come back.
"""

from typing import Any, Final, NamedTuple

from vizora_rt.errors import BAD_MESSAGE, BINARY_EVENT, NORMAL, UNKNOWN_EVENT, UNKNOWN_NAMESPACE, Close, Refusal
from vizora_rt.wire.messages import (
    ControlPacket,
    Dialect,
    Envelope,
    JSONError,
    Refused,
    dumps,
    listed_heartbeat,
    loads,
    mended,
)
from vizora_rt.wire.payloads import MAX_ID

PATHS: Final = ("/socket.io", "/socket.io/")

MAX_DIGITS: Final = len(str(MAX_ID))
MAX_NAMESPACE: Final = 64
"""Characters of a namespace that are said back to who asked for it."""
MAX_PROBE: Final = 125
"""Characters of a ping that are said back, as many as of a WebSocket ping (RFC 6455 section 5.5)."""


class ConnectPacket(NamedTuple):
    """A CONNECT packet. `token` is None when none was brought: then there may be a cookie."""

    token: str | None
    acks_deliveries: bool


def handshake_error(version: str | None, transport: str | None, session: str | None, upgrade: bool) -> bytes | None:
    """Why a request at `/socket.io/` cannot become a connection, as Engine.IO 4 says it; None when it can.

    Who is told that a transport is unknown tries the next one; there is only WebSocket.
    """
    if transport != "websocket":
        return b'{"code":0,"message":"Transport unknown"}'
    if version != "4":
        return b'{"code":5,"message":"Unsupported protocol version"}'
    if session:
        return b'{"code":1,"message":"Session ID unknown"}'  # the upgrade of a polling session, of which there are none
    if not upgrade:
        return b'{"code":3,"message":"Bad request"}'
    return None


def open_packet(session: str, ping_after: float, ping_timeout: float, message_bytes: int) -> bytes:
    """The first packet of a connection; times are in seconds."""
    return b"0" + dumps(
        {
            "sid": session,
            "upgrades": [],
            "pingInterval": round(ping_after * 1000),
            "pingTimeout": round(ping_timeout * 1000),
            "maxPayload": message_bytes,
        }
    )


def connected(session: str) -> bytes:
    """The answer to a CONNECT packet."""
    return b'40{"sid":"%b"}' % session.encode()


def refused(refusal: Refusal) -> tuple[bytes, ...]:
    """A refusal after which clients stay away: CONNECT_ERROR says why. socket.io-client before 4.4 would come back each
    second for ever all the same; it takes a DISCONNECT for the last word, which newer ones do not hear any more."""
    return b"44" + dumps({"message": refusal.message, "data": {"code": refusal.code}}), b"41"


def decode_connect(text: str) -> ConnectPacket | ControlPacket:
    """A packet before the client is connected."""
    text = _short(text)
    if not text.startswith("40"):
        return _control_packet(text)
    if text[2:3] == "/":
        return _other_namespace(text)
    if len(text) == 2:
        return ConnectPacket(None, False)
    try:
        auth = loads(text[2:])
    except JSONError:
        auth = mended(text[2:]) or ""
    if auth is None:
        return ConnectPacket(None, False)
    if auth.__class__ is not dict:
        return ConnectPacket("", False)
    token = auth.get("token")
    if token == "":
        token = None  # of a page that knows none, for its script may not read the cookie
    elif token is not None and token.__class__ is not str:
        token = ""
    return ConnectPacket(token, _acks_deliveries(auth.get("capabilities")))


def _acks_deliveries(capabilities: Any) -> bool:
    """Players name what they can do in two shapes: an object of flags, and a list."""
    if capabilities.__class__ is dict:
        return capabilities.get("deliveryAck") is True
    return capabilities.__class__ is list and "deliveryAck" in capabilities


def decode(text: str) -> Envelope | ControlPacket:
    """A packet of a client that is connected."""
    if not text.startswith("42"):
        text = _short(text)
        return _ack(text) if text.startswith("43") else _control_packet(text)
    head, _, rest = text.partition("[")
    digits = head[2:]
    if digits.isdecimal():
        # An event with an ack id and data, in the fewest steps, for there is one per heartbeat: the id is read as JSON
        # along with the rest. What is broken anywhere, or is less or more than that, `_event` tells apart.
        listed = f"[{digits},{rest}"
        if rest.startswith('"heartbeat"') and (beat := listed_heartbeat(listed)) is not None:
            return beat
        try:
            ack_id, event, data = loads(listed)
            if event.__class__ is str and ack_id <= MAX_ID and event != "ack":
                return event, ack_id, data
        except ValueError:
            pass
    return _event(text)


def _event(text: str) -> Envelope | ControlPacket:
    text = _short(text)
    head = text.partition("[")[0]
    ack_id = None
    if head != "42":
        ack_id = _id(head[2:])
        if ack_id is None:
            return _unreadable(text)
    arguments = _arguments(text[len(head) :])
    if not arguments or arguments[0].__class__ is not str:
        return BAD_MESSAGE if ack_id is None else Refused(BAD_MESSAGE, ack_id)
    if arguments[0] == "ack":
        # An ack has a packet type of its own here; the envelope's name for it is no event that a client may emit.
        return UNKNOWN_EVENT if ack_id is None else Refused(UNKNOWN_EVENT, ack_id)
    return arguments[0], ack_id, arguments[1] if len(arguments) > 1 else None


def _short(text: str) -> str:
    """A packet of the root namespace without its name, which clients leave out: `42/,7[...]` is `427[...]`."""
    return text[:2] + text[4:] if text[2:4] in ("/,", "/") and text[0] == "4" else text


def _arguments(text: str) -> list[Any] | None:
    try:
        arguments = loads(text)
    except JSONError:
        arguments = mended(text)
    return arguments if arguments.__class__ is list else None


def _id(digits: str) -> int | None:
    """An ack id; None when it is none."""
    if len(digits) > MAX_DIGITS or not digits.isdecimal() or not digits.isascii():
        return None
    number = int(digits)
    return number if number <= MAX_ID else None


def _ack(text: str) -> Envelope | ControlPacket:
    digits, bracket, _ = text[2:].partition("[")
    ack_id = _id(digits)
    if ack_id is None or not bracket:
        return _unreadable(text)
    arguments = _arguments(text[2 + len(digits) :])
    if arguments is None:
        return BAD_MESSAGE
    return "ack", ack_id, arguments[0] if arguments else None


def _control_packet(text: str) -> ControlPacket:
    """What is no message: life, goodbyes, and what is refused."""
    if text in ("3", "6"):
        return b""
    if text[:1] == "2":
        return b"3" + text[1 : 1 + MAX_PROBE].encode("utf-8", "replace")
    if text in ("1", "41"):
        return None
    if text[:2] in ("45", "46"):
        return _binary(text)
    if text[:3] == "40/":
        return _other_namespace(text)
    return _unreadable(text)


def _unreadable(text: str) -> Refusal:
    return UNKNOWN_NAMESPACE if text[:1] == "4" and text[2:3] == "/" else BAD_MESSAGE


def _binary(text: str) -> ControlPacket:
    """`451-7["event",{"_placeholder":true,"num":0}]`: its sender may wait for the ack. Attachments are passed over."""
    attachments, dash, rest = text[2:].partition("-")
    if not dash or _id(attachments) is None:
        return _unreadable(text)
    ack_id = _id(rest.partition("[")[0]) if text[1] == "5" else None
    return BINARY_EVENT if ack_id is None else Refused(BINARY_EVENT, ack_id)


def _other_namespace(text: str) -> ControlPacket:
    """A CONNECT to a namespace that is not there concerns that namespace only, on the same connection."""
    namespace = text[2:].partition(",")[0].partition("?")[0]
    if len(namespace) > MAX_NAMESPACE or not namespace.isprintable() or namespace == "/":
        return UNKNOWN_NAMESPACE
    return f'44{namespace},{{"message":"Invalid namespace"}}'.encode("utf-8", "replace")


def encode(event: str, body: bytes, ack_id: int | None = None) -> bytes:
    """An event from the server; `body` is JSON already. With `ack_id` the client is asked for an ack."""
    if ack_id is None:
        return b'42["%b",%b]' % (event.encode(), body)
    return b'42%d["%b",%b]' % (ack_id, event.encode(), body)


def encode_ack(ack_id: int, body: bytes) -> bytes:
    """The ack of event `ack_id`."""
    return b"43%d[%b]" % (ack_id, body)


def encode_success(ack_id: int, data: bytes, timestamp: bytes) -> bytes:
    """The ack of an event that was taken, in one formatting: there is one per heartbeat."""
    return b'43%d[{"success":true,"data":%b,"timestamp":"%b"}]' % (ack_id, data, timestamp)


def goodbye(cause: Close) -> tuple[bytes, ...]:
    """What a client is sent before its connection ends. A DISCONNECT keeps shipped players away, so only who must stay
    away gets one; for all others the transport ends, which they take for a fault of the network. Where nothing is
    wrong, as when the client itself said goodbye, nothing is said."""
    if cause is NORMAL:
        return ()
    body = {"code": cause.name.upper(), "message": cause.text, "retryable": cause.come_back, "closeCode": cause.code}
    error = encode("error", dumps(body))
    return (error,) if cause.come_back else (error, b"41")


DIALECT: Final = Dialect(
    name="socketio",
    decode=decode,
    encode=encode,
    encode_ack=encode_ack,
    encode_success=encode_success,
    goodbye=goodbye,
    ping=b"2",
    binary=None,
    overtakes=lambda text: text.startswith(("43", "2", "3")),
)
