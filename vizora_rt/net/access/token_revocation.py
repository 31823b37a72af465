"""Whether the tokens of connected devices still hold: every 30 s, for other services revoke them by a key alone.

A revocation through the control API rings a doorbell, and that of a device is seen with each heartbeat; this is for
`revoked_token:<jti>` as others write it. That a token's `exp` is over ends no connection: see docs/protocol.md.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from vizora_rt.app.state import Device, State
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.wire import resp

EVERY: Final = 30.0
"""Seconds between two looks, as at the sessions of dashboards: so long at most a revoked token is good for."""

SLICE: Final = 100
PAUSE: Final = 0.02
"""20,000 devices in 4 s, with 200 commands. A cluster takes one for each: 0.1 ms of every turn."""


class Revocations:
    """One worker's watch over its devices. An entry of the timer wheel."""

    def __init__(self, state: State, store: RedisClient, wheel: Wheel, hear: Callable[[dict[str, Any]], None]) -> None:
        self._state = state
        self._store = store
        self._handle = hear
        self._loop = asyncio.get_running_loop()
        self._round: deque[tuple[Device, str]] = deque()
        wheel.add(self, EVERY)

    def on_timer(self, now: float) -> float:
        if not self._round:
            devices = self._state.devices.values()
            named = ((device, device.peer.identity.jti) for device in devices if device.peer is not None)
            self._round.extend((device, jti) for device, jti in named if jti)
            self._slice()
        return EVERY

    def _slice(self) -> None:
        some = [self._round.popleft() for _ in range(min(SLICE, len(self._round)))]
        if self._store.one_slot:
            self._each(some)
        elif some:
            self._ask(some, lambda found: self._each(some) if found else None)
        if self._round:
            self._loop.call_later(PAUSE, self._slice)

    def _each(self, some: Sequence[tuple[Device, str]]) -> None:
        for device, jti in some:
            self._ask([(device, jti)], partial(self._told, device, jti))

    def _ask(self, some: Sequence[tuple[Device, str]], told: Callable[[bool], None]) -> None:
        """Whether any of these is revoked. Redis away is no reason to throw anybody out."""

        def on_reply(reply: object) -> None:
            if isinstance(reply, int):
                told(reply > 0)

        self._store.submit("exists", resp.pack("EXISTS", *(f"revoked_token:{jti}" for _, jti in some)), on_reply)

    def _told(self, device: Device, jti: str, revoked: bool) -> None:
        if revoked:
            self._handle({"revoked": device.id, "jti": jti})
