"""This worker's devices, organisations and dashboards; who supersedes whom.

Only memory, no I/O: what must reach Redis is left in `dirty`, and net/presence writes it.
"""

from collections.abc import Callable
from typing import Literal, Protocol

from vizora_rt.app.auth import Identity
from vizora_rt.errors import SUPERSEDED, Close
from vizora_rt.wire.messages import Dialect
from vizora_rt.wire.payloads import Heartbeat

Status = Literal["online", "stale", "offline", "revoked", "suspended"]


class Peer(Protocol):
    """A connection as this layer sees it."""

    identity: Identity
    dialect: Dialect
    acks_deliveries: bool
    """Whether the client says what it has received. Of another it is only known that something was sent to it."""

    @property
    def open(self) -> bool:
        """Whether what is sent may still arrive."""

    @property
    def stalled(self) -> bool:
        """Whether the client does not read what was written already."""

    @property
    def held(self) -> bool:
        """Whether messages of the client wait because it sent more than its rate: it is not silent."""

    def send(self, event: str, body: bytes, ack_id: int | None = None) -> None:
        """Queue an event; `body` is JSON. With `ack_id` the client is asked for an ack."""

    def notice(self, frame: bytes) -> bool:
        """Queue a frame encoded once for many; False when the client is behind, and it is dropped."""

    def set_message_limit(self, message_bytes: int) -> None:
        """Take messages of this size too; 0 for the configured limit."""

    def close(self, cause: Close) -> None:
        """Say why, then end the connection."""


class Device:
    """One screen: its connection and what it last said. Times are milliseconds since the epoch.

    `epoch` fences writers in Redis, 0 before the store gave one. Nothing is written while the device is not `owned`:
    after Redis was away another worker may have it. `connected` is in microseconds, to tell two newcomers apart.
    `left` is why its last connection ended: the reason once it is offline. Until then what it was may still be told.
    `clock_ms` is how far its clock is behind, by its last heartbeat that told the time; None: none has.
    `missing` counts the plays that it numbered and that had not come when it last sent one, or connected.
    `playlist_version` is that of the stored playlist, as far as this worker knows.
    `measured` says that the supervisor has its CPU and memory as of its last heartbeat that was counted.
    """

    __slots__ = (
        "clock_ms",
        "connected",
        "counted",
        "dirty",
        "epoch",
        "heartbeat",
        "heartbeats_failed",
        "heartbeats_ok",
        "id",
        "last_heartbeat",
        "left",
        "listed",
        "measured",
        "missing",
        "organization_id",
        "owned",
        "owner_checked",
        "peer",
        "playlist_version",
        "reason",
        "reconciled",
        "reported",
        "screenshot_until",
        "since",
        "status",
        "tat",
    )

    def __init__(self, device_id: str, organization_id: str) -> None:
        self.id = device_id
        self.organization_id = organization_id
        self.peer: Peer | None = None
        self.epoch = 0
        self.owned = False
        self.connected = 0
        self.status: Status = "offline"
        self.reason = ""
        self.left = ""
        self.since = 0
        self.last_heartbeat = 0
        self.heartbeat: Heartbeat | None = None
        self.dirty = False
        self.tat = 0.0
        self.clock_ms: int | None = None
        self.owner_checked = 0
        self.listed = 0
        self.heartbeats_ok = 0
        self.heartbeats_failed = 0
        self.reported = False
        self.counted = False
        self.measured = False
        self.missing = 0
        self.playlist_version: str | None = None
        self.reconciled = 0
        self.screenshot_until = 0


class State:
    """All that this worker holds. One entry per device: connected, or gone so lately that it may come back.

    `changed` are devices whose new status nobody has been told of yet; `suspended` are organisations, with the reason.
    `unreported` are devices whose series are behind, `counted` those with heartbeats that no series has yet.
    """

    __slots__ = (
        "_on_dirty",
        "changed",
        "counted",
        "dashboards",
        "devices",
        "dirty",
        "screens",
        "suspended",
        "unreported",
    )

    def __init__(self, on_dirty: Callable[[], None]) -> None:
        self._on_dirty = on_dirty
        self.devices: dict[str, Device] = {}
        self.screens: dict[str, set[Peer]] = {}
        self.dashboards: dict[str, set[Peer]] = {}
        self.dirty: list[Device] = []
        self.changed: dict[Device, None] = {}
        self.suspended: dict[str, str] = {}
        self.unreported: list[Device] = []
        self.counted: list[Device] = []

    def connect(self, identity: Identity, peer: Peer, epoch: int, since: int, connected: int) -> Device:
        """`peer` is now the connection of its device. An older one here is closed; its end changes nothing any more."""
        device = self.devices.get(identity.id)
        if device is None:
            device = self.devices[identity.id] = Device(identity.id, identity.organization_id)
        older, device.peer = device.peer, peer
        device.organization_id = identity.organization_id
        device.epoch, device.owned = epoch, epoch != 0
        device.connected = connected
        device.status, device.reason, device.since = "online", "connected", since
        self.report(device)
        if older is not None:
            self.leave(older)
            older.close(SUPERSEDED)
        return device

    def change(self, device: Device, status: Status, reason: str, now: int) -> None:
        """The device is something else since now. Who watches is told when it is written.

        `since` grows with each change, whatever clocks do: by it the later of two is known.
        """
        device.status, device.reason = status, reason
        device.since = max(now, device.since + 1)
        self.changed[device] = None
        self.touch(device)

    def expected(self, organization_id: str) -> tuple[Status, str]:
        """Status and reason of a device that comes in."""
        return ("suspended", "tenant_suspended") if organization_id in self.suspended else ("online", "connected")

    def disconnect(self, device: Device, peer: Peer, reason: str) -> bool:
        """The end of `peer`. False when it no longer speaks for the device."""
        if device.peer is not peer:
            return False
        device.peer = None
        device.left = reason
        self.report(device)
        return True

    def offline(self, device: Device, now: int) -> None:
        """The device did not come back in time."""
        if device.status != "revoked":
            device.status, device.reason = "offline", device.left
        device.since = max(now, device.since + 1)
        device.heartbeat = None
        self.changed.pop(device, None)
        self.report(device)

    def lose(self, device: Device) -> None:
        """Another worker has it now."""
        device.reason = SUPERSEDED.name
        self.report(device)
        self.forget(device)
        if device.peer is not None:
            self.leave(device.peer)

    def forget(self, device: Device) -> None:
        """Its end is written, or another's business.

        Whatever still waits for it, in `dirty`, on a timer or for an answer, finds it neither owned nor of the
        connection that it knew, and lets go: nothing is written over a new owner's words, nothing waits for ever.
        """
        if self.devices.get(device.id) is device:
            del self.devices[device.id]
        self.changed.pop(device, None)
        device.owned = False
        device.connected = 0

    def touch(self, device: Device) -> None:
        """The device's state in Redis is behind. Last write wins, so one entry is enough however often it changes."""
        if not device.dirty:
            device.dirty = True
            self.dirty.append(device)
            if len(self.dirty) == 1:
                self._on_dirty()

    def report(self, device: Device) -> None:
        """The device's series are behind."""
        if not device.reported:
            device.reported = True
            self.unreported.append(device)

    def count(self, device: Device) -> None:
        """The device has heartbeats that its series lacks."""
        device.counted = True
        self.counted.append(device)

    def enter(self, peer: Peer) -> None:
        """Count a connection with its organisation's."""
        self._kind(peer).setdefault(peer.identity.organization_id, set()).add(peer)

    def leave(self, peer: Peer) -> None:
        organizations = self._kind(peer)
        members = organizations.get(peer.identity.organization_id)
        if members is not None:
            members.discard(peer)
            if not members:
                del organizations[peer.identity.organization_id]

    def _kind(self, peer: Peer) -> dict[str, set[Peer]]:
        return self.screens if peer.identity.kind == "device" else self.dashboards
