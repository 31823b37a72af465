"""The way out of what a wrong set-up is refused with, by the gateway's code."""

from typing import Final

HINTS: Final = {
    "RATE_LIMITED": (
        "start the gateway with VIZORA_LIMITS__CONNECTIONS_PER_MINUTE=0 and VIZORA_LIMITS__CONNECTIONS_PER_ADDRESS=0"
    ),
    "lost": "a gateway reads devices late that send too much: start it with VIZORA_LIMITS__MESSAGES_PER_MINUTE=0",
    "AUTH_INVALID": (
        "the gateway has another secret: export DEVICE_JWT_SECRET, and JWT_SECRET for dashboards, as the gateway has"
        " them, or give --tokens FILE from `vizora-rt token device NAME --count N`"
    ),
    "AUTH_EXPIRED": "make new tokens: `vizora-rt token device NAME --count N`",
    "NOT_FOUND": "the gateway serves another path: give --url ws://HOST:PORT/ws",
    "OVERLOADED": "connect slower with --ramp, or start the gateway with VIZORA_LIMITS__HANDSHAKES_PER_SECOND=0",
}


def hint(code: str) -> str:
    """` (what to do)` for a refusal's code, an empty text for a code without advice."""
    return f" ({HINTS[code]})" if code in HINTS else ""
