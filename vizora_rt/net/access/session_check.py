"""Whether a dashboard's session still holds: at the door, and every 30 s as long as it is open.

Other services write the keys: `revoked_token:<jti>`, `user_revoked:<sub>` and `pwd_changed:<sub>`.
"""

import time
from typing import Final

from vizora_rt.app.auth import Identity
from vizora_rt.app.state import Peer, State
from vizora_rt.errors import SESSION_ENDED
from vizora_rt.net.presence.user_session import Ending, check_session
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry import logs
from vizora_rt.wire import messages

EVERY: Final = 30.0
"""Seconds between two looks: so long at most somebody who was locked out looks on."""

log = logs.logger("sessions")


class Sessions:
    """One worker's watch over its dashboards."""

    def __init__(self, state: State, store: RedisClient, wheel: Wheel) -> None:
        self._state = state
        self._store = store
        self._wheel = wheel

    def watch(self, peer: Peer) -> None:
        """Look after a session as long as it is open."""
        self._wheel.add(SessionTimer(self, peer), _pause(peer.identity))

    def look(self, peer: Peer) -> float | None:
        """Does the session hold? Seconds until the next look, or None when there is none."""
        if not self._open(peer):
            return None
        if peer.identity.expires and peer.identity.expires <= time.time():
            self._end(peer, "expired")
            return None
        check_session(self._store, peer.identity, lambda why: self._end(peer, why))
        return _pause(peer.identity)

    def _open(self, peer: Peer) -> bool:
        return peer in self._state.dashboards.get(peer.identity.organization_id, ())

    def _end(self, peer: Peer, why: Ending | None) -> None:
        """Redis away is no reason to throw anybody out."""
        if why and self._open(peer):
            peer.send("session:expired", messages.dumps({"reason": why}))
            peer.close(SESSION_ENDED)


class SessionTimer:
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
