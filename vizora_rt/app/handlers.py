"""What should happen on each event: a table event -> handler(device, payload, now) -> `Outcome`.

Handlers are synchronous and decide; whoever calls them does what the outcome says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from vizora_rt.app import commands, screenshots
from vizora_rt.app.state import Device, State
from vizora_rt.config import PlayerSettings
from vizora_rt.errors import INVALID_PAYLOAD, Refusal
from vizora_rt.wire import messages, times
from vizora_rt.wire.payloads import Content, Heartbeat, PlaylistRequest, ScreenshotResponse

RECONCILE_EVERY_MS: Final = 60_000
"""A player fetches its playlist when it is told to; one that cannot store it must not do so each heartbeat."""


@dataclass(frozen=True, slots=True)
class Write:
    """A script that must have run before the message is acked; `then` makes the outcome of its reply."""

    script: str
    keys: tuple[bytes | str, ...]
    args: tuple[bytes | str | int, ...]
    then: "Callable[[Any], Outcome]"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a handler decided.

    `reply` is the `data` of the ack, JSON already; `degraded` the same with Redis away. With `write` all else comes
    from what it makes of the store's reply, which may be another `write`. `counts` are counters of the organisation and
    how much each grew; `tallies` are counters with closed labels: family, label values, growth. `notice` is an event
    and its JSON for the dashboards of the organisation; `events` are such for the sender, behind the ack. `issue` is
    what those hear of who keep the service: a kind, a reason of a closed set, and what else is known.
    `retry_after_ms` goes with a refusal: when the client may come again, 0 when that is not known.
    """

    reply: bytes = b"{}"
    degraded: bytes = b""
    refusal: Refusal | None = None
    details: dict[str, str] = field(default_factory=dict)
    write: Write | None = None
    counts: tuple[tuple[str, int], ...] = ()
    tallies: tuple[tuple[str, tuple[str, ...], int], ...] = ()
    notice: tuple[str, bytes] | None = None
    issue: tuple[str, str, dict[str, object]] | None = None
    events: tuple[tuple[str, bytes], ...] = ()
    retry_after_ms: int = 0


SUSPENDED: Final = Outcome(b'{"playlist":null,"version":null,"source":"suspended"}')
"""No version: the device is not told that what it has is current. It asks again when it is told that it is over."""

Handler = Callable[[Device, Any, int], Outcome]


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the table: the payload's schema and who handles it.

    `viewer` handles it for dashboards, given the `Watch` of the sender; without it, it is nothing that they may send.
    `cost` is as how much of a message it counts against the rate. With `parts`, which says of its data, before that is
    validated, how many plays are in it, it counts as one message at least, and more with its plays.
    """

    schema: type[Any]
    handler: Handler
    viewer: Callable[[Any, Any, int], Outcome] | None = None
    parts: Callable[[Any], int] | None = None
    cost: float = 1.0


def behind(sent_at: str | float | None, now: int) -> int | None:
    """By how many ms a client's clock is behind ours, and its message was on its way; None when it did not tell."""
    sent = times.milliseconds(sent_at)
    return None if sent is None else now - sent


class Handlers:
    """The table, bound to this worker's state."""

    def __init__(self, state: State, player: PlayerSettings) -> None:
        self._state = state
        # The answer to a heartbeat is the same for all screens: encode it once.
        answer = {"reconcileContent": False, "nextHeartbeatIn": player.heartbeat_interval, "commands": []}
        self._taken = Outcome(messages.dumps(answer), messages.dumps({**answer, "degraded": True}))
        answer["reconcileContent"] = True
        self._reconcile = Outcome(messages.dumps(answer), messages.dumps({**answer, "degraded": True}))
        self.table: dict[str, Event] = {
            "heartbeat": Event(Heartbeat, self.heartbeat),
            "playlist:request": Event(PlaylistRequest, self.playlist_request),
            "screenshot:response": Event(ScreenshotResponse, screenshot_response),
        }

    def heartbeat(self, device: Device, payload: Heartbeat, now: int) -> Outcome:
        """Taken into memory at once; written later, coalesced: last write wins."""
        if payload.current_content.__class__ is str:
            payload.current_content = Content(content_id=payload.current_content)
        if payload.sent_at is not None:
            device.clock_ms = behind(payload.sent_at, now)
            payload.sent_at = None
        device.heartbeat = payload
        device.last_heartbeat = now
        device.heartbeats_ok += 1
        if device.status == "stale":
            self._state.change(device, "online", "heartbeat", now)
        if not device.dirty:
            self._state.touch(device)
        if not device.counted:
            self._state.count(device)
        version, stored = payload.content_version, device.playlist_version
        differs = version is not None and stored is not None and version != stored
        if differs and not 0 <= now - device.reconciled < RECONCILE_EVERY_MS and not self._suspended(device):
            device.reconciled = now
            return self._reconcile
        return self._taken

    def playlist_request(self, device: Device, payload: PlaylistRequest, now: int) -> Outcome:
        """What the device should play. It gets no playlist when it says that it has this one, nor while its
        organisation is suspended, which may have changed by the time that the store has answered."""

        def then(reply: list[bytes | None]) -> Outcome:
            version, source, body = reply
            if self._suspended(device):
                return SUSPENDED
            if version is None or body is None:
                return Outcome(b'{"playlist":null,"version":null,"source":"none"}')
            device.playlist_version = version.decode()
            if payload.last_known_version == device.playlist_version and not payload.force_refresh:
                answer = {"playlist": None, "version": device.playlist_version, "source": (source or b"").decode()}
                return Outcome(messages.dumps(answer))
            return Outcome(body)

        if self._suspended(device):
            return SUSPENDED
        return Outcome(write=Write("current", (commands.key(device.id, "playlist"),), (), then))

    def _suspended(self, device: Device) -> bool:
        return device.organization_id in self._state.suspended


def screenshot_response(device: Device, payload: ScreenshotResponse, now: int) -> Outcome:
    """Keep the picture that was asked for, and tell dashboards where it is."""
    found = screenshots.decode(payload.image_data)
    if isinstance(found, str):
        return Outcome(refusal=INVALID_PAYLOAD, details={"imageData": found})
    media_type, image = found
    detail = {
        "requestId": payload.request_id,
        "deviceId": device.id,
        "width": payload.width,
        "height": payload.height,
        "url": f"/screenshots/{quote(payload.request_id, safe='')}",
        "timestamp": now,
    }

    def then(reply: int) -> Outcome:
        if not reply:
            return Outcome(refusal=INVALID_PAYLOAD, details={"requestId": "this device was not asked for it"})
        return Outcome(b'{"saved":true}', notice=("screenshot:ready", messages.dumps(detail)))

    arguments = (device.id, media_type, payload.width, payload.height, now, screenshots.KEPT_SECONDS, image)
    return Outcome(write=Write("screenshot", (screenshots.key(payload.request_id),), arguments, then))
