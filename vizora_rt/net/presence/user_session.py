"""Whether a user's session still holds, asked of Redis once.

Other services write the keys: `revoked_token:<jti>`, `user_revoked:<sub>` and `pwd_changed:<sub>`.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from math import inf, isfinite
from typing import Final, Literal

from vizora_rt.app.auth import Identity
from vizora_rt.net.redis.client import CONNECTION_LOST, RedisClient
from vizora_rt.telemetry import logs
from vizora_rt.wire import resp
from vizora_rt.wire.resp import ReplyError

Ending = Literal["", "revoked", "password_changed", "expired"]

TOLD_EVERY: Final = 60.0
"""Seconds between two lines about times that cannot be read: each look at each session meets them again."""

log = logs.logger("sessions")


def check_session(store: RedisClient, identity: Identity, done: Callable[[Ending | None], None]) -> None:
    """Why the session has ended, "" when it holds, None when Redis cannot say. `done` is called once, perhaps now."""
    names = [f"revoked_token:{identity.jti}"] if identity.jti else []
    names += [f"user_revoked:{identity.id}", f"pwd_changed:{identity.id}"]
    replies: dict[str, object] = {}

    def on_reply(name: str, reply: object) -> None:
        replies[name] = reply
        if len(replies) < len(names):
            return
        # Of a cluster they come in any order.
        *revoked, changed = (replies[name] for name in names)
        if any(isinstance(reply, ReplyError) for reply in replies.values()):
            done(None)
        elif any(reply is not None for reply in revoked):
            done("revoked")
        else:
            # `iat` is in whole seconds: a session of the same second is the one that came with the new password.
            done("password_changed" if _seconds(changed) >= identity.issued // 1 + 1 else "")

    for name in names:
        if not store.submit("get", resp.pack("GET", name), partial(on_reply, name)):
            on_reply(name, CONNECTION_LOST)


def _seconds(value: object) -> float:
    """When a password was changed, as other services write it: seconds or milliseconds since the epoch, or ISO 8601,
    in UTC if it names no zone.

    What cannot be read may have been a minute ago: the session ends. A dashboard can wait, and the log says why.
    """
    if not isinstance(value, bytes):
        return 0.0
    text = value.decode(errors="replace").strip().strip('"')  # as JSON writes a date
    try:
        number = float(text)
    except ValueError:
        return _iso_seconds(text)
    if not isfinite(number):
        return _unreadable()
    return number / 1000 if number > 1e11 else number


def _iso_seconds(text: str) -> float:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return _unreadable()
    if len(text) <= len("2026-11-23"):
        return _unreadable()  # a day alone does not say whether before or after the session began
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


def _unreadable() -> float:
    global _told
    now = time.monotonic()
    if now - _told >= TOLD_EVERY:
        _told = now
        log.error("a time in pwd_changed cannot be read: sessions of its user end", expected="seconds, ms or ISO 8601")
    return inf


_told = -TOLD_EVERY
