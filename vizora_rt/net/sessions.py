"""Whether a dashboard's session still holds: at the door, and every 30 s as long as it is open.

Other services write the keys: `revoked_token:<jti>`, `user_revoked:<sub>` and `pwd_changed:<sub>`.
"""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from math import inf, isfinite
from typing import Final, Literal

from vizora_rt import report
from vizora_rt.app.auth import Identity
from vizora_rt.app.state import Peer, State
from vizora_rt.errors import SESSION_ENDED
from vizora_rt.net.store import LOST, Store
from vizora_rt.net.timers import Wheel
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

Ending = Literal["", "revoked", "password_changed", "expired"]

EVERY: Final = 30.0
"""Seconds between two looks: so long at most somebody who was locked out looks on."""

TOLD_EVERY: Final = 60.0
"""Seconds between two lines about times that cannot be read: each look at each session meets them again."""

log = report.logger("sessions")


def look(store: Store, identity: Identity, done: Callable[[Ending | None], None]) -> None:
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
            on_reply(name, LOST)


class Sessions:
    """One worker's watch over its dashboards."""

    def __init__(self, state: State, store: Store, wheel: Wheel) -> None:
        self._state = state
        self._store = store
        self._wheel = wheel

    def watch(self, peer: Peer) -> None:
        """Look after a session as long as it is open."""
        self._wheel.add(Session(self, peer), _pause(peer.identity))

    def look(self, peer: Peer) -> float | None:
        """Does the session hold? Seconds until the next look, or None when there is none."""
        if not self._open(peer):
            return None
        if peer.identity.expires and peer.identity.expires <= time.time():
            self._end(peer, "expired")
            return None
        look(self._store, peer.identity, lambda why: self._end(peer, why))
        return _pause(peer.identity)

    def _open(self, peer: Peer) -> bool:
        return peer in self._state.dashboards.get(peer.identity.organization_id, ())

    def _end(self, peer: Peer, why: Ending | None) -> None:
        """Redis away is no reason to throw anybody out."""
        if why and self._open(peer):
            peer.send("session:expired", messages.dumps({"reason": why}))
            peer.close(SESSION_ENDED)


class Session:
    """One dashboard's. An entry of the timer wheel."""

    __slots__ = ("_peer", "_sessions")

    def __init__(self, sessions: Sessions, peer: Peer) -> None:
        self._sessions = sessions
        self._peer = peer

    def on_timer(self, now: float) -> float | None:
        return self._sessions.look(self._peer)


def _pause(identity: Identity) -> float:
    """Seconds until the next look: at the end of the token, if that is sooner."""
    return max(0.0, min(EVERY, identity.expires - time.time())) if identity.expires else EVERY


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
