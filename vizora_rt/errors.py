"""The one error vocabulary: why a connection ends, why a request is refused, why the service cannot start.

A fault of a peer is a value, never an exception: `Close` ends a connection, `Refusal` answers one request or
message. `StartupError` is for the operator: one line and an exit code.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Close:
    """A close code that this server chooses (RFC 6455 section 7.4).

    `name` is the value of the label `reason` in metrics. Codes 4000 to 4499 say "come back", 4500 to 4999 "don't".
    `report`: Sentry hears of it, for a player does what players of ours do not. A fault is reported as what was raised.
    """

    name: str
    code: int
    text: str
    come_back: bool = True
    report: bool = False


NORMAL = Close("normal", 1000, "")
PROTOCOL_ERROR = Close("protocol_error", 1002, "protocol error", report=True)
BINARY_FRAME = Close("binary_frame", 1003, "binary frames are not accepted", report=True)
INVALID_UTF8 = Close("invalid_utf8", 1007, "invalid UTF-8", report=True)
TOO_BIG = Close("too_big", 1009, "message too big", report=True)
FAULT = Close("fault", 1011, "internal error")
RESTARTING = Close("restarting", 1012, "service restart")
OVERLOADED_CLOSE = Close("overloaded", 1013, "try again later")
SILENT = Close("silent", 4000, "silent too long")
SLOW_CONSUMER = Close("slow_consumer", 4001, "slow consumer")
TOO_MANY_MESSAGES = Close("too_many_messages", 4002, "too many packets")
SUPERSEDED = Close("superseded", 4500, "superseded by a newer connection", come_back=False)
REVOKED = Close("revoked", 4501, "device revoked", come_back=False)
SESSION_ENDED = Close("session_ended", 4503, "session no longer valid", come_back=False)

CLOSES = (
    NORMAL,
    PROTOCOL_ERROR,
    BINARY_FRAME,
    INVALID_UTF8,
    TOO_BIG,
    FAULT,
    RESTARTING,
    OVERLOADED_CLOSE,
    SILENT,
    SLOW_CONSUMER,
    TOO_MANY_MESSAGES,
    SUPERSEDED,
    REVOKED,
    SESSION_ENDED,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal of a request, a handshake or a message.

    `code` is the word on the wire and in metrics, `message` what a Socket.IO client reads, `status` the HTTP answer.
    `retry_after`: seconds to stay away, one client's own, where that is known.
    `report`: Sentry hears of a handshake that ends so, for it is this service that cannot.
    """

    code: str
    message: str
    status: int
    retryable: bool = False
    report: bool = False
    retry_after: int = field(default=0, compare=False)


# Handshakes. Shipped players discard their pairing on some words, so a passing fault must never carry them.
AUTH_INVALID = Refusal("AUTH_INVALID", "auth_invalid", 401)
AUTH_EXPIRED = Refusal("AUTH_EXPIRED", "auth_expired", 401)
DEVICE_REVOKED = Refusal("DEVICE_REVOKED", "device_token_stale", 403)
ORIGIN_DENIED = Refusal("ORIGIN_DENIED", "origin_denied", 403)
RATE_LIMITED = Refusal("RATE_LIMITED", "rate_limited", 429, retryable=True)
OVERLOADED = Refusal("OVERLOADED", "overloaded", 503, retryable=True, report=True)
DRAINING = Refusal("DRAINING", "draining", 503, retryable=True)
STORE_UNAVAILABLE = Refusal("STORE_UNAVAILABLE", "store_unavailable", 503, retryable=True, report=True)

HANDSHAKE_REFUSALS = (
    AUTH_INVALID,
    AUTH_EXPIRED,
    DEVICE_REVOKED,
    ORIGIN_DENIED,
    RATE_LIMITED,
    OVERLOADED,
    DRAINING,
    STORE_UNAVAILABLE,
)

# The control API.
API_KEY_INVALID = Refusal("API_KEY_INVALID", "x-internal-api-key is missing or wrong", 401)
INVALID_BODY = Refusal("INVALID_BODY", "invalid body", 400)
KEY_REUSED = Refusal("IDEMPOTENCY_KEY_REUSED", "this Idempotency-Key came with another request", 409)
IN_PROGRESS = Refusal("IN_PROGRESS", "the request with this Idempotency-Key is still under way", 409, retryable=True)
COMMAND_EXISTS = Refusal("COMMAND_EXISTS", "there is another command with this commandId", 409)
LEDGER_FULL = Refusal("LEDGER_FULL", "too many commands wait for this device", 429, retryable=True)

# HTTP requests that are not even well-formed, or that no route takes.
BAD_REQUEST = Refusal("BAD_REQUEST", "bad request", 400)
FORBIDDEN = Refusal("FORBIDDEN", "forbidden", 403)
NOT_FOUND = Refusal("NOT_FOUND", "not found", 404)
METHOD_NOT_ALLOWED = Refusal("METHOD_NOT_ALLOWED", "method not allowed", 405)
REQUEST_TIMEOUT = Refusal("REQUEST_TIMEOUT", "request timeout", 408, retryable=True)
CONTENT_TOO_LARGE = Refusal("CONTENT_TOO_LARGE", "content too large", 413)
URI_TOO_LONG = Refusal("URI_TOO_LONG", "URI too long", 414)
UPGRADE_REQUIRED = Refusal("UPGRADE_REQUIRED", "upgrade required", 426)
TOO_MANY_FIELDS = Refusal("TOO_MANY_FIELDS", "too many header fields, cookies or query parameters", 431)
TOO_MANY_CHUNKS = Refusal("TOO_MANY_CHUNKS", "the body comes in too many chunks", 413)
HEADERS_TOO_LARGE = Refusal("HEADERS_TOO_LARGE", "request header fields too large", 431)
INTERNAL = Refusal("INTERNAL", "internal error", 500, retryable=True)
HTTP_VERSION = Refusal("HTTP_VERSION", "HTTP version not supported", 505)

# Messages.
BAD_MESSAGE = Refusal("BAD_MESSAGE", "not a JSON message", 400)
BINARY_EVENT = Refusal("BINARY_EVENT", "binary events are not accepted", 400)
UNKNOWN_NAMESPACE = Refusal("UNKNOWN_NAMESPACE", "there is only the root namespace", 400)
UNKNOWN_EVENT = Refusal("UNKNOWN_EVENT", "unknown event", 400)
INVALID_PAYLOAD = Refusal("INVALID_PAYLOAD", "invalid payload", 400)
STORE_FULL = Refusal("STORE_FULL", "store_full", 503, retryable=True)
PLAYS_SHARE = Refusal("PLAYS_SHARE", "plays_share_exceeded", 429, retryable=True)
NOT_ALLOWED = Refusal("NOT_ALLOWED", "not for this kind of client", 403)


class StartupError(Exception):
    """The service or a command cannot start. The text is one line for the operator."""

    exit_code = 1


class ConfigError(StartupError):
    """A configuration that cannot be used (EX_CONFIG of sysexits.h)."""

    exit_code = 78


class UnavailableError(StartupError):
    """Something outside that must be there is not: Redis, a port (EX_UNAVAILABLE of sysexits.h)."""

    exit_code = 69
