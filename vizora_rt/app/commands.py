"""The ledger of commands and playlists, as decisions: what an entry is, how long it lives, what its delivery does next.

A device gets one entry at a time, the playlist first, then commands in their order. What was sent is awaited for 10 s,
doubled up to 5 min, and then looked up again: the ledger says whether it still stands, has expired or was replaced. So
a delivery remembers an id and a count; the letter stays in Redis until the device has acked it.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, get_args

from vizora_rt.wire import bodies, messages

TYPES: Final[tuple[str, ...]] = get_args(bodies.Type)
PLAYLIST: Final = "playlist"
"""What a playlist is called where commands are called by their type."""
TOKEN: Final = "token"  # noqa: S105

EVENTS: Final = {PLAYLIST: "playlist:update", TOKEN: "token:refresh"}
"""Event by type; all others are commands. A token is not acked: it is done when it is written to the connection."""

MAX_WAITING: Final = 1000
"""Commands that wait for one device. A backend that repeats one each minute to a dark screen fills it in a night."""
MAX_PAYLOAD: Final = 65_536
"""Bytes of a command's payload: as much as a device may send."""
DEFAULT_TTL: Final = 300
TOKEN_TTL: Final = 14 * 86_400
"""A token is replaced at the earliest 14 days before its end: it is of use that long."""
KEPT_AFTER: Final = 86_400_000
"""Milliseconds that a command's record outlives the command."""

FIRST_ACK_TIMEOUT: Final = 10.0
MAX_ACK_TIMEOUT: Final = 300.0

ERROR_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True)
class QueuedCommand:
    """A waiting command or playlist. Times are milliseconds since the epoch; `expires` is 0 for a playlist.

    `asker` is the node and worker whose HTTP call may still wait for the ack, with a space between.
    """

    id: str
    type: str
    expires: int
    created: int
    reply_to: str
    body: bytes = b""

    @property
    def event(self) -> str:
        return EVENTS.get(self.type, "command")

    def line(self) -> bytes:
        """As it stands in the ledger's list: ids and types hold no spaces, and JSON comes last."""
        head = f"{self.id} {self.expires} {self.created} {self.reply_to} {self.type} "
        return head.encode() + self.body


@lru_cache(maxsize=16)
def parse_line(line: bytes) -> QueuedCommand:
    """The inverse of `QueuedCommand.line`; the body may be missing. A broadcast is the same line for all its
    devices."""
    entry_id, expires, created, node, worker, kind, *body = line.split(b" ", 6)
    return QueuedCommand(
        entry_id.decode(),
        kind.decode(),
        int(expires),
        int(created),
        f"{node.decode()} {worker.decode()}",
        body[0] if body else b"",
    )


def command_body(command_id: str, kind: str, payload: Any, timestamp: str, expires_at: str) -> bytes:
    """The data of the event `command`. Raises TypeError when the payload is nested deeper than JSON is written."""
    body = {"type": kind, "commandId": command_id, "timestamp": timestamp, "expiresAt": expires_at}
    if payload is not None:
        body["payload"] = payload
    return messages.dumps(body)


def playlist_body(playlist: Any, version: str, source: str, timestamp: str) -> bytes:
    """The data of the event `playlist:update`, and of the answer to `playlist:request`."""
    return messages.dumps({"playlist": playlist, "version": version, "source": source, "timestamp": timestamp})


def verdict(data: Any) -> tuple[str, str]:
    """The state that a client's ack leads to, and its error: anything but `ok === false` is an ack."""
    if data.__class__ is dict and data.get("ok") is False:
        error = data.get("error")
        text = error if isinstance(error, str) else ""
        return "failed", "".join(c if c.isprintable() else " " for c in text[:ERROR_CHARACTERS])
    return "acked", ""


def key(device_id: str, name: str) -> str:
    """A key of a device. All of them carry one hash tag, so a script may touch several."""
    return f"vz:{{d:{device_id}}}:{name}"


class Action(IntEnum):
    """What the caller of a `Delivery` has to do."""

    NOTHING = 0
    LOOK = 1
    """Ask the ledger what is next, and tell `found`."""
    SEND = 2
    """Send the entry that was found."""
    RECORD = 3
    """Take the acked entry off the ledger; what is next comes back with the reply: tell `found`."""


class Phase(IntEnum):
    IDLE = 0
    LOOKING = 1
    AWAITING = 2
    RECORDING = 3


class Delivery:
    """What is under way to one connection of one device."""

    __slots__ = ("_acked", "_again", "attempt", "entry_id", "phase")

    def __init__(self) -> None:
        self.phase = Phase.IDLE
        self.entry_id = ""
        self.attempt = 0
        self._acked = False
        self._again = False

    @property
    def ack_timeout(self) -> float:
        """Seconds until an ack is overdue."""
        return min(MAX_ACK_TIMEOUT, FIRST_ACK_TIMEOUT * 2.0 ** min(self.attempt, 16))

    def look(self) -> Action:
        """Something new may wait."""
        if self.phase is Phase.IDLE:
            self.phase = Phase.LOOKING
            return Action.LOOK
        # While an ack is awaited nothing is done: the reply to its record says what is next. But a reply that is on
        # its way may be older than what is new.
        self._again = self.phase is not Phase.AWAITING
        return Action.NOTHING

    def found(self, entry_id: str | None) -> Action:
        """The ledger's answer to LOOK or RECORD: what is next."""
        again, self._again = self._again, False
        acked, self._acked = self._acked, False
        if entry_id is None:
            self.entry_id = ""
            self.phase = Phase.LOOKING if again else Phase.IDLE
            return Action.LOOK if again else Action.NOTHING
        known = entry_id == self.entry_id
        self.entry_id = entry_id
        if known and acked:
            self.phase = Phase.RECORDING
            return Action.RECORD
        self.attempt = self.attempt + 1 if known else 0
        self.phase = Phase.AWAITING
        return Action.SEND

    def acked(self) -> Action:
        """The device acked the entry."""
        if not self.entry_id or self.phase is Phase.RECORDING:
            return Action.NOTHING
        if self.phase is Phase.LOOKING:
            # It came late, while the ledger is asked whether to send the entry again.
            self._acked = True
            return Action.NOTHING
        self.phase = Phase.RECORDING
        return Action.RECORD

    def overdue(self) -> Action:
        """No ack in time: look what stands in the ledger now."""
        if self.phase is not Phase.AWAITING:
            return Action.NOTHING
        self.phase = Phase.LOOKING
        return Action.LOOK

    def failed(self) -> None:
        """The ledger could not be asked. Nothing is lost: whatever waits is found at the next look."""
        self._acked = self._acked or self.phase is Phase.RECORDING
        self._again = False
        self.phase = Phase.IDLE
