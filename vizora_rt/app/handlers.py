"""What should happen on each event: a table event -> handler(device, payload, now) -> `Outcome`.

Handlers are synchronous and decide; whoever calls them does what the outcome says.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vizora_rt.app.state import Device, State
from vizora_rt.config import Player
from vizora_rt.errors import Refusal
from vizora_rt.wire import messages
from vizora_rt.wire.messages import Content, Heartbeat


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
    how much each grew; `tallies` are counters with closed labels: family, label values, growth.
    """

    reply: bytes = b"{}"
    degraded: bytes = b""
    refusal: Refusal | None = None
    details: dict[str, str] = field(default_factory=dict)
    write: Write | None = None
    counts: tuple[tuple[str, int], ...] = ()
    tallies: tuple[tuple[str, tuple[str, ...], int], ...] = ()


Handler = Callable[[Device, Any, int], Outcome]


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the table: the payload's schema and who handles it."""

    schema: type[Any]
    handler: Handler


class Handlers:
    """The table, bound to this worker's state."""

    def __init__(self, state: State, player: Player) -> None:
        self._state = state
        # The answer to a heartbeat is the same for all screens: encode it once.
        answer = {"reconcileContent": False, "nextHeartbeatIn": player.heartbeat_interval, "commands": []}
        self._taken = Outcome(messages.dumps(answer), messages.dumps({**answer, "degraded": True}))
        self.table: dict[str, Event] = {"heartbeat": Event(Heartbeat, self.heartbeat)}

    def heartbeat(self, device: Device, payload: Heartbeat, now: int) -> Outcome:
        """Taken into memory at once; written later, coalesced: last write wins."""
        if payload.current_content.__class__ is str:
            payload.current_content = Content(content_id=payload.current_content)
        device.heartbeat = payload
        device.last_heartbeat = now
        device.heartbeats_ok += 1
        if device.status != "online":
            device.status, device.reason, device.since = "online", "heartbeat", now
        if not device.dirty:
            self._state.touch(device)
        if not device.reported:
            self._state.report(device)
        return self._taken
