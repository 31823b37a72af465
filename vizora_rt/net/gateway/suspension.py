"""Which organisations are suspended, as this worker knows: their screens are told, and get nothing until it is over.

The truth is the key `vz:{o:<org>}:suspended`. It is read with the first claim of an organisation on this worker, when
its doorbell rings, and every 15 s, for a bell may be lost.
"""

import time
from collections.abc import Callable
from typing import Final

from vizora_rt.app.state import Device, State
from vizora_rt.net.gateway.broadcast import Broadcaster
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.redis.pubsub import PubSub
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

LOOK_AGAIN: Final = 15.0
"""Seconds: the usual heartbeat interval, by which a lost doorbell may delay."""


def key(organization: str) -> str:
    return f"vz:{{o:{organization}}}:suspended"


class Suspensions:
    """One worker's organisations: those that have clients here are heard on the bus and looked up again and again."""

    def __init__(
        self,
        state: State,
        store: RedisClient,
        pubsub: PubSub,
        broadcaster: Broadcaster,
        wheel: Wheel,
        on_resumed: Callable[[Device], None],
    ) -> None:
        self._state = state
        self._store = store
        self._pubsub = pubsub
        self._broadcaster = broadcaster
        self._on_resumed = on_resumed
        self._known: set[str] = set()
        store.on_up.append(self._refresh_all)
        wheel.add(self, LOOK_AGAIN)

    def track(self, organization: str) -> None:
        """A client of the organisation is about to come in: what is asked here is answered before its claim."""
        if organization not in self._known:
            self._known.add(organization)
            self._pubsub.watch(organization)
            self.refresh(organization)

    def refresh(self, organization: str, said: str = "") -> None:
        """Look what the key says now. `said` is a doorbell's reason, for a key that is gone cannot give one."""

        def on_reply(reply: object) -> None:
            if not isinstance(reply, ReplyError):
                self._apply(organization, reply, said)

        self._store.submit("get", resp.pack("GET", key(organization)), on_reply)

    def on_timer(self, now: float) -> float | None:
        for organization in list(self._known):
            if organization not in self._state.screens and organization not in self._state.dashboards:
                self._known.discard(organization)
                self._state.suspended.pop(organization, None)
                self._pubsub.unwatch(organization)
        self._refresh_all()
        return LOOK_AGAIN

    def _refresh_all(self) -> None:
        for organization in self._known:
            self.refresh(organization)

    def _apply(self, organization: str, value: object, said: str) -> None:
        suspended = self._state.suspended
        if organization not in self._known or (value is not None) is (organization in suspended):
            return
        if value is not None:
            word, reason = "suspended", _reason(value) or said
            suspended[organization] = reason
        else:
            word, reason = "resumed", said
            del suspended[organization]
        screens = list(self._state.screens.get(organization, ()))
        self._broadcaster.send(screens, f"tenant:{word}", messages.dumps({"reason": reason}))
        now = time.time_ns() // 1_000_000
        for peer in screens:
            device = self._state.devices.get(peer.identity.id)
            if device is None or device.peer is not peer:
                continue
            if value is not None:
                self._state.change(device, "suspended", "tenant_suspended", now)
            else:
                self._state.change(device, "online", "tenant_resumed", now)
                self._on_resumed(device)


def _reason(value: object) -> str:
    """Why, from the value of the key: an object with `reason`. Whatever else stands there suspends too."""
    try:
        found = messages.loads(value) if isinstance(value, bytes) else None
    except messages.JSONError:
        found = None
    reason = found.get("reason") if isinstance(found, dict) else None
    return reason if isinstance(reason, str) else ""
