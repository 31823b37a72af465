"""A player: one screen's end of the wire, the screen of `demo`, and the reference for those who write players.

`Player.run()` is a screen's life: connect, be online, learn why the connection ended, stay away as long as that asks
for, connect again. It returns when the server said that coming back is of no use. Three rules are what matters:

* What the server wants acked is acked before it is executed: a reboot that is executed first is never acked, so it
  comes again, and the screen reboots for ever. A command that comes again is acked again and not executed.
* Nobody comes back at once. A time that the server tells is this player's own, and kept; else the back-off is random,
  so that the screens of a restarted server do not return in one wave.
* A play is kept until it is acked, on whatever connection that happens.

Over 300 lines because it is the whole of a player, as a reference for those who write one.
"""

import asyncio
import enum
import itertools
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from vizora_rt.client.websocket import RETRY_AFTER, CloseInfo, WebSocket, is_token, parse_url, seconds
from vizora_rt.errors import BAD_MESSAGE, INVALID_PAYLOAD, Refusal
from vizora_rt.wire.messages import decode, dumps, encode, encode_ack

log = logging.getLogger(__name__)

T = TypeVar("T")

OnAck = Callable[[dict[str, Any] | None], None]
"""Is given the body of the ack, or None when the connection ended before it came."""

BATCH: Final = 200
BATCH_BYTES: Final = 49152
"""Three quarters of the server's default limit for a message."""
PLAY_BYTES: Final = 4096
COMMANDS_REMEMBERED: Final = 1000
ACKS_AWAITED: Final = 1000


class PlayerState(enum.StrEnum):
    NEW = "new"
    CONNECTING = "connecting"
    ONLINE = "online"
    WAITING = "waiting"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a player waits for what, in seconds.

    Without one byte for `silent_intervals` heartbeats, each of which is acked, a connection is dead: nobody sends a FIN
    for a router that was switched off. It is also when the server calls a screen stale.
    """

    connect: float = 10.0
    goodbye: float = 2.0
    first_beat: float = 1.0
    interval: float = 15.0  # until the event `config` names another
    least_interval: float = 1.0
    silent_intervals: float = 3.0
    backoff_first: float = 1.0
    backoff_most: float = 60.0
    plays_ack: float = 30.0
    plays_retry: float = 5.0
    plays_unknown: float = 3600.0


def backoff_seconds(ending: CloseInfo, failures: int, timing: Timing) -> float:
    """How long to stay away: as long as the server says, else full jitter under a ceiling that doubles.

    `failures`: how many connections in a row ended before this one without any work done. `retryAfterMs` and
    Retry-After are a place in a queue, different for each player: who comes later is dark for longer, and leaves the
    place empty. Retry-After counts whole seconds; those who were told the same one spread over it. Only a goodbye that
    follows another, with nothing done in between, does not shorten the back-off.
    """
    backoff = random.random() * min(timing.backoff_most, timing.backoff_first * 2.0 ** min(failures, 16))
    if not ending.wait:
        return backoff
    if ending.code in RETRY_AFTER:
        return ending.wait + random.random()
    return max(ending.wait, backoff) if failures else ending.wait


class PlayBuffer:
    """The plays that the server has not acked, oldest first. Bounded: when it is full the oldest is lost, and counted.

    `boot` names this start of the player, `seq` numbers its plays: by them the server knows a play that comes twice
    and one that is missing. A player that must not lose plays when its power is cut keeps this queue in a file.
    """

    __slots__ = ("_batch", "_in_flight", "boot", "limit", "lost", "queue", "refused", "seq", "watermark")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.boot = uuid.uuid4().hex
        self.seq = 0
        self.queue: deque[bytes] = deque()
        self.watermark = 0
        self.lost = 0
        self.refused = 0
        self._batch = BATCH
        self._in_flight = 0

    def add(self, play: dict[str, Any]) -> None:
        entry = dumps(play)
        if len(entry) > PLAY_BYTES:
            raise ValueError(f"a play of {len(entry)} bytes: {PLAY_BYTES} at most")
        if len(self.queue) >= self.limit:
            self.queue.popleft()
            self.lost += 1
            self._in_flight = max(0, self._in_flight - 1)
        self.queue.append(entry)

    def take(self) -> bytes | None:
        """The next batch, as the body of `content:impressions`. It stays in the queue."""
        size, batch = 0, []
        for entry in itertools.islice(self.queue, self._batch):
            size += len(entry)
            if size > BATCH_BYTES:
                break
            batch.append(entry)
        self._in_flight = len(batch)
        return b'{"boot":"%b","plays":[%b]}' % (self.boot.encode(), b",".join(batch)) if batch else None

    def stored(self, watermark: object) -> None:
        """The batch in flight is safe."""
        for _ in range(self._in_flight):
            self.queue.popleft()
        self._in_flight = 0
        self._batch = min(BATCH, self._batch * 2)
        if isinstance(watermark, int):
            self.watermark = watermark

    def rejected(self) -> None:
        """One play of the batch is bad and holds up all behind it: halve the batch until it stands alone."""
        if self._in_flight == 1:
            self.queue.popleft()
            self.refused += 1
        self._batch = max(1, self._in_flight // 2)
        self._in_flight = 0


class Player:
    """A screen. Override the three hooks; what they raise is logged and harms nothing."""

    __slots__ = (
        "_asked",
        "_beats",
        "_failures",
        "_hold",
        "_ids",
        "_plays_id",
        "_seen",
        "_socket",
        "ending",
        "endpoint",
        "interval",
        "plays",
        "state",
        "timing",
        "token",
        "version",
    )

    def __init__(self, url: str, token: str, *, timing: Timing = Timing(), plays_kept: int = 10_000) -> None:
        self.endpoint = parse_url(url)
        self.token = token
        self.timing = timing
        self.state = PlayerState.NEW
        self.ending: CloseInfo | None = None
        self.interval = timing.interval
        self.version: str | None = None
        self.plays = PlayBuffer(plays_kept)
        self._socket: WebSocket | None = None
        self._ids = itertools.count(1)
        self._asked: dict[int, OnAck] = {}
        self._seen: dict[str, None] = {}
        self._failures = 0
        self._beats: asyncio.TimerHandle | None = None
        self._hold: asyncio.TimerHandle | None = None
        self._plays_id = 0

    # Hooks.

    def on_state(self, state: PlayerState) -> None:
        """The state has changed; `ending` says why in WAITING and, unless it was cancelled, in STOPPED."""

    def on_event(self, event: str, data: dict[str, Any]) -> None:
        """The server sent `event`. It is acked already, and a command comes here once."""

    def heartbeat(self) -> dict[str, Any]:
        """What to tell of the screen now."""
        return {}

    # Verbs.

    async def run(self) -> CloseInfo:
        """Live until the server says that it is over. To stop earlier cancel the task: it says goodbye first."""
        try:
            while True:
                self._become(PlayerState.CONNECTING)
                socket = WebSocket(self, self.endpoint, self.token, self.timing.connect, self.timing.goodbye)
                self.ending = await socket.run()
                if self.ending.final:
                    return self.ending
                self._become(PlayerState.WAITING)
                await asyncio.sleep(self._absence(self.ending))
        finally:
            self._become(PlayerState.STOPPED)

    def send(self, event: str, data: dict[str, Any], on_ack: OnAck | None = None) -> bool:
        """Send a message now, with an id when `on_ack` wants the ack. False when not online."""
        return self._send(event, dumps(data), on_ack) is not None

    def play_started(self, content_id: str, **fields: Any) -> int:
        """A content began. Returns the play's number, for `play_ended`; `fields` are those of a content:impression."""
        self.plays.seq += 1
        self._play(self.plays.seq, "start", content_id, fields)
        return self.plays.seq

    def play_ended(self, seq: int, content_id: str, **fields: Any) -> None:
        """The content of play `seq` ended."""
        self._play(seq, "end", content_id, fields)

    # What the socket tells.

    def connected(self, socket: WebSocket) -> None:
        self._socket = socket
        loop = asyncio.get_running_loop()
        # The first heartbeat soon, the second after a random part of the interval: a fleet that came back together
        # spreads over the interval and stays spread.
        first = random.random() * self.timing.first_beat
        self._beats = loop.call_later(first, self._beat, random.random())
        self._hold = loop.call_later(first, self._send_plays)
        self._become(PlayerState.ONLINE)

    def disconnected(self, socket: WebSocket) -> None:
        self._socket = None
        for timer in (self._beats, self._hold):
            if timer is not None:
                timer.cancel()
        self._beats = self._hold = None
        asked, self._asked = self._asked, {}
        for on_ack in asked.values():
            self._call(on_ack, None)

    def received(self, socket: WebSocket, text: str) -> None:
        message = decode(text)
        if isinstance(message, Refusal):
            return
        event, ack_id, data = message
        data = data if isinstance(data, dict) else {}
        if event == "ack":
            on_ack = None if ack_id is None else self._asked.pop(ack_id, None)
            if on_ack is not None:
                self._call(on_ack, data)
            return
        if ack_id is not None:
            socket.send(encode_ack(ack_id, b'{"ok":true}'))
        if event == "command" and self._seen_before(data.get("commandId")):
            return
        react = self._REACTIONS.get(event)
        if react is not None:
            react(self, data)
        self._call(self.on_event, event, data)

    # The events that a player itself acts on.

    def _on_config(self, data: dict[str, Any]) -> None:
        interval = seconds(data.get("heartbeatInterval"))
        if interval is not None:
            self.interval = max(self.timing.least_interval, interval)

    def _on_shutdown(self, data: dict[str, Any]) -> None:
        if self._socket is not None:
            self._socket.wait = seconds(data.get("retryAfterMs"))

    def _on_token(self, data: dict[str, Any]) -> None:
        if is_token(data.get("token")):
            self.token = data["token"]

    def _on_playlist(self, data: dict[str, Any]) -> None:
        version = data.get("version")
        self.version = version if isinstance(version, str) else None

    _REACTIONS: Final[dict[str, Callable[["Player", dict[str, Any]], None]]] = {
        "config": _on_config,
        "server:shutdown": _on_shutdown,
        "token:refresh": _on_token,
        "playlist:update": _on_playlist,
    }

    # Heartbeats.

    def _beat(self, share: float) -> None:
        loop, socket = asyncio.get_running_loop(), self._socket
        assert socket is not None
        if loop.time() - socket.heard > self.timing.silent_intervals * self.interval:
            socket.abort(CloseInfo("silent", 1006))
            return
        self._beats = loop.call_later(self.interval * share, self._beat, 1.0)
        vitals = self._call(self.heartbeat) or {}
        self.send("heartbeat", {"contentVersion": self.version, **vitals}, self._beat_acked)

    def _beat_acked(self, answer: dict[str, Any] | None) -> None:
        if answer is None or answer.get("success") is not True:
            return
        # The first work done ends the back-off, not the handshake: a server that takes connections only to drop them
        # must not get one a second from each screen.
        self._failures = 0
        data = answer.get("data")
        if isinstance(data, dict) and data.get("reconcileContent") is True:
            self.send("playlist:request", {"lastKnownVersion": self.version}, self._playlist_answered)

    def _playlist_answered(self, answer: dict[str, Any] | None) -> None:
        data = answer.get("data") if answer is not None else None
        if isinstance(data, dict) and data.get("playlist") is not None:
            self._on_playlist(data)
            self._call(self.on_event, "playlist:update", data)

    # Plays: one batch in flight. The timer `_hold` runs while no other may be sent.

    def _play(self, seq: int, phase: str, content_id: str, fields: dict[str, Any]) -> None:
        play = {"contentId": content_id, "seq": seq, "phase": phase, "timestamp": time.time_ns() // 1_000_000}
        self.plays.add({**play, **fields})
        if self._socket is not None and self._hold is None:
            self._send_plays()

    def _send_plays(self) -> None:
        self._hold = None
        # An ack that comes now is too late: it may be for fewer plays than are in flight next.
        self._asked.pop(self._plays_id, None)
        body = self.plays.take()
        if body is not None:
            # With the time of now the server tells a play that comes late from a clock that is wrong.
            body = b'%b,"sentAt":%d}' % (body[:-1], time.time_ns() // 1_000_000)
            self._plays_id = self._send("content:impressions", body, self._plays_answered) or 0
            self._hold_plays(self.timing.plays_ack)

    def _hold_plays(self, delay: float) -> None:
        if self._hold is not None:
            self._hold.cancel()
        self._hold = asyncio.get_running_loop().call_later(delay, self._send_plays)

    def _plays_answered(self, answer: dict[str, Any] | None) -> None:
        if answer is None:
            return  # They are still in the queue; the next connection begins with them.
        if answer.get("success") is True:
            data = answer.get("data")
            self.plays.stored(data.get("watermark") if isinstance(data, dict) else None)
            self._hold_plays(0.0)
        elif answer.get("code") in (INVALID_PAYLOAD.code, BAD_MESSAGE.code):
            self.plays.rejected()
            self._hold_plays(0.0)
        elif answer.get("retryable") is True:
            delay = seconds(answer.get("retryAfterMs")) or self.timing.plays_retry
            self._hold_plays(delay * random.uniform(1.0, 2.0))
        else:
            # UNKNOWN_EVENT: a server that knows no plays yet. It may be replaced by one that does.
            self._hold_plays(self.timing.plays_unknown)

    # The machinery.

    def _absence(self, ending: CloseInfo) -> float:
        self._failures += 1
        return backoff_seconds(ending, self._failures - 1, self.timing)

    def _become(self, state: PlayerState) -> None:
        self.state = state
        self._call(self.on_state, state)

    def _send(self, event: str, body: bytes, on_ack: OnAck | None) -> int | None:
        """Send; returns the id that the ack will carry, 0 when none is wanted, None when not online."""
        if self._socket is None:
            return None
        if on_ack is None:
            self._socket.send(encode(event, body))
            return 0
        if len(self._asked) >= ACKS_AWAITED:
            self._call(self._asked.pop(next(iter(self._asked))), None)
        ack_id = next(self._ids)
        self._asked[ack_id] = on_ack
        self._socket.send(encode(event, body, ack_id))
        return ack_id

    def _seen_before(self, command_id: object) -> bool:
        if not isinstance(command_id, str):
            return False
        if command_id in self._seen:
            return True
        self._seen[command_id] = None
        if len(self._seen) > COMMANDS_REMEMBERED:
            del self._seen[next(iter(self._seen))]
        return False

    def _call(self, hook: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return hook(*arguments)
        except Exception:
            log.exception("a hook of the player failed")
            return None
