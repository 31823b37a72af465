"""One notice to many connections: encoded once a dialect, written in slices; heartbeats are answered in between.

A notice is worth nothing later: a client that is behind does not get it, and is told of the gap when it has caught up.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Final

from vizora_rt.app.state import Peer
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.frames import TEXT, encode_frame
from vizora_rt.wire.messages import Dialect

SLICE: Final = 250
"""Connections a turn of the loop: a write is a system call of some 5 us, so a turn takes about a millisecond."""


class Broadcaster:
    """One worker's sender."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[str, bytes, dict[Dialect, bytes], deque[Peer]]] = deque()

    def send(self, peers: Iterable[Peer], event: str, body: bytes) -> int:
        """Send `event` to all `peers`, in the order of the calls; `body` is JSON. Returns how many there are."""
        receivers = deque(peers)
        if receivers:
            if not self._waiting:
                self._loop.call_soon(self._turn)
            self._waiting.append((event, body, {}, receivers))
        return len(receivers)

    def _turn(self) -> None:
        try:
            self._slice()
        finally:
            if self._waiting:  # also after an error: the notices behind it are none the worse for it
                self._loop.call_soon(self._turn)

    def _slice(self) -> None:
        event, body, frames, receivers = self._waiting[0]
        dropped = 0
        for _ in range(min(SLICE, len(receivers))):
            peer = receivers.popleft()
            frame = frames.get(peer.dialect)
            if frame is None:
                frame = frames[peer.dialect] = encode_frame(TEXT, peer.dialect.encode(event, body, None))
            if not peer.notice(frame):
                dropped += 1
        if dropped:
            self._metrics.counter("ws_notices_dropped_total", self._metrics.notice(event)).value += dropped
        if not receivers:
            self._waiting.popleft()
