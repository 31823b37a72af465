"""New tokens for devices whose own end soon, with `auth.refresh`: minted here, sent as `token:refresh`.

A worker looks over its devices every 5 s. Which of all workers and nodes sends one, and that none comes within the
hour, a key in Redis says. The connection then counts as the new token's, so a device that stays is sent the next one
when that one ends soon. The old token is good until its own end, and both have one `jti`: revoked together.
"""

import asyncio
import time
from collections import deque
from typing import Final

from vizora_rt.app import auth
from vizora_rt.app.commands import TOKEN, key
from vizora_rt.app.state import Device, Peer, State
from vizora_rt.config import AuthSettings
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire import messages, resp

log = logs.logger("refresh")

BEFORE_END: Final = 14 * 86_400
"""Seconds. A screen that is dark over the longest holidays still comes back with a token that is good."""
EVERY: Final = 3600
"""Seconds between two tokens of one device, whoever sends them: a player that keeps none must not be a mint."""
LOOK: Final = 5.0

SLICE: Final = 100
PAUSE: Final = 0.02
"""20,000 devices in 4 s. A token takes 30 us: 15 % of a core for that time, when those of a whole fleet are due."""


class Refresher:
    """One worker's mint. An entry of the timer wheel."""

    def __init__(self, config: AuthSettings, metrics: Metrics, state: State, store: RedisClient, wheel: Wheel) -> None:
        self._config = config
        self._sent = metrics.counter("commands_total", metrics.command(TOKEN), "sent")
        self._state = state
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._round: deque[Device] = deque()
        wheel.add(self, LOOK)

    def on_timer(self, now: float) -> float:
        if not self._round:
            self._round.extend(self._state.devices.values())
            self._slice()
        return LOOK

    def _slice(self) -> None:
        now = time.time()
        for _ in range(min(SLICE, len(self._round))):
            device = self._round.popleft()
            if device.peer is not None and self._due(device, device.peer, now):
                self._ask(device, device.peer)
        if self._round:
            self._loop.call_later(PAUSE, self._slice)

    def _due(self, device: Device, peer: Peer, now: float) -> bool:
        """Who was let in unchecked, or whose organisation is suspended, gets none for the time being."""
        if not device.owned or device.organization_id in self._state.suspended:
            return False
        return now < peer.identity.expires <= now + BEFORE_END

    def _ask(self, device: Device, peer: Peer) -> None:
        def on_reply(reply: object) -> None:
            if reply == b"OK" and device.peer is peer and peer.open:
                self._send(device, peer)

        self._store.submit("set", resp.pack("SET", key(device.id, "refreshed"), 1, "NX", "EX", EVERY), on_reply)

    def _send(self, device: Device, peer: Peer) -> None:
        token, peer.identity = auth.renew(self._config, peer.identity, int(time.time()))
        peer.send("token:refresh", messages.dumps({"token": token}))
        self._sent.value += 1
        log.info(
            "token minted",
            device_id=device.id,
            organization_id=device.organization_id,
            jti=peer.identity.jti,
            expires=int(peer.identity.expires),
        )
