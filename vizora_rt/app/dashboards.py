"""What dashboards see of an organisation: a snapshot in pages, then changes, conflated to one a round and device.

A `Room` knows the latest status of each device by its `seq`, which only grows; what is older is ignored, however late
it comes. So pages and changes may be interleaved in any way: the last that a dashboard gets of a device is the latest.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final

from vizora_rt.app.handlers import Event, Outcome, Write
from vizora_rt.app.state import Device, Peer
from vizora_rt.errors import FORBIDDEN, NOT_ALLOWED
from vizora_rt.wire import messages
from vizora_rt.wire.messages import iso
from vizora_rt.wire.payloads import JoinOrganization, JoinRoom

PAGE: Final = 500

LISTED: Final = """
-- KEYS devices; ARGV device -> 1 when it is one of them
return redis.call('ZSCORE', KEYS[1], ARGV[1]) and 1 or 0
"""

Status = tuple[int, bytes]
"""seq, the JSON of `device:status`"""


class DashboardSubscription:
    """What one dashboard has been told and has yet to be.

    `pending` are the changes of this round, `due` those of the one that is being sent; a dashboard that does not read
    stays in its round. `waiting` are the devices of the snapshot under way, each with when it was last seen; `again`:
    it shall be told once more. `joined`: it wants a snapshot whenever changes may have been missed; `telling`: it is
    getting one. `in_part`: its snapshot lacks devices whose shard of a cluster is away.
    """

    __slots__ = (
        "due",
        "in_part",
        "joined",
        "page",
        "pages",
        "pending",
        "room",
        "snapshot_requested",
        "snapshot_running",
        "tat",
        "viewer",
        "waiting",
        "watching",
    )

    def __init__(self, room: "Room", viewer: Peer) -> None:
        self.room = room
        self.viewer = viewer
        self.tat = 0.0
        self.watching = True
        self.joined = False
        self.snapshot_running = False
        self.pending: dict[str, None] = {}
        self.due: dict[str, None] = {}
        self.waiting: list[tuple[str, int]] | None = None
        self.page = 0
        self.pages = 0
        self.snapshot_requested = False
        self.in_part = False

    def mark(self, device_id: str) -> None:
        """The device has changed."""
        if self.watching and device_id not in self.due:
            self.pending[device_id] = None

    def begin_round(self) -> None:
        """What changed until now may be sent, once the round before is sent: each device is told once a round."""
        if not self.due:
            self.due, self.pending = self.pending, self.due

    def take(self, count: int) -> list[bytes]:
        """The latest of at most `count` devices that are due."""
        taken = []
        for device_id in list(islice(self.due, count)):
            del self.due[device_id]
            taken.append(self.room.latest[device_id][1])
        return taken

    def readable(self) -> None:
        """The dashboard reads again."""
        self.room.on_readable()

    def begin_snapshot(self, devices: list[tuple[str, int]]) -> None:
        """All that is known of the organisation is told, page by page."""
        self.waiting = devices
        self.page, self.pages = 0, max(1, -(-len(devices) // PAGE))
        self.in_part = False

    def next_page(self) -> list[tuple[str, int]]:
        """Devices that the next page tells of."""
        return (self.waiting or [])[self.page * PAGE : (self.page + 1) * PAGE]

    def fill_page(
        self, found: Iterable[tuple[str, int, bytes]], timestamp: str, unavailable: Sequence[str] = ()
    ) -> bytes:
        """The next page, as the data of `device:status:batch`, with what Redis had of its devices. `unavailable` are
        those of them that Redis could not be asked for."""
        room = self.room
        for device_id, seq, body in found:
            room.learn(device_id, seq, body)
        bodies = []
        for device_id, _ in self.next_page():
            self.pending.pop(device_id, None)
            self.due.pop(device_id, None)
            status = room.latest.get(device_id)
            if status is not None:
                bodies.append(status[1])
        self.page += 1
        if self.page >= self.pages:
            self.waiting = None
        self.in_part |= bool(unavailable)
        named = b'"unavailable":%b,' % messages.dumps(list(unavailable)) if unavailable else b""
        return b'{"devices":[%b],%b"page":%d,"pages":%d,"organizationId":%b,"timestamp":"%b"}' % (
            b",".join(bodies),
            named,
            self.page,
            self.pages,
            messages.dumps(room.organization_id),
            timestamp.encode(),
        )


class Room:
    """An organisation with dashboards on this worker."""

    __slots__ = ("latest", "on_readable", "organization_id", "watches")

    def __init__(self, organization_id: str, on_readable: Callable[[], None]) -> None:
        self.organization_id = organization_id
        self.on_readable = on_readable
        self.latest: dict[str, Status] = {}
        self.watches: dict[Peer, DashboardSubscription] = {}

    def learn(self, device_id: str, seq: int, body: bytes) -> bool:
        """Remember a status unless a later one is known. Whether it is news; of the same seq, the body may be newer."""
        known = self.latest.get(device_id)
        if known is not None and known[0] > seq:
            return False
        self.latest[device_id] = (seq, body)
        return known is None or known[0] < seq

    def change(self, device_id: str, seq: int, body: bytes) -> bool:
        """A device has changed. Whether any dashboard has to be told."""
        if not self.learn(device_id, seq, body):
            return False
        for watch in self.watches.values():
            watch.mark(device_id)
        return True


class Rooms:
    """One worker's dashboards, and the events that they send."""

    __slots__ = ("on_join", "on_readable", "rooms", "table")

    def __init__(self) -> None:
        self.rooms: dict[str, Room] = {}
        self.on_join: Callable[[DashboardSubscription], None] = lambda _: None
        """Told when a dashboard wants the whole organisation."""
        self.on_readable: Callable[[], None] = lambda: None
        """Told when a dashboard reads again that did not."""
        self.table = {
            "join:organization": Event(JoinOrganization, no_organization, self.join_organization),
            "join:room": Event(JoinRoom, join_own_room, self.join_room),
            "leave:room": Event(JoinRoom, leave_own_room, self.leave_room),
        }

    def enter(self, viewer: Peer) -> DashboardSubscription:
        organization_id = viewer.identity.organization_id
        room = self.rooms.get(organization_id)
        if room is None:
            room = self.rooms[organization_id] = Room(organization_id, lambda: self.on_readable())
        watch = room.watches[viewer] = DashboardSubscription(room, viewer)
        return watch

    def leave(self, watch: DashboardSubscription) -> None:
        room = watch.room
        room.watches.pop(watch.viewer, None)
        if not room.watches:
            self.rooms.pop(room.organization_id, None)

    def join_organization(self, watch: DashboardSubscription, payload: JoinOrganization, now: int) -> Outcome:
        organization_id = watch.room.organization_id
        if payload.organization_id != organization_id:
            return Outcome(refusal=FORBIDDEN, details={"organizationId": "not yours"})
        self._join(watch)
        joined = {"organizationId": organization_id, "timestamp": iso(now)}
        reply = messages.dumps({"joined": True, "organizationId": organization_id})
        return Outcome(reply, events=(("joined:organization", messages.dumps(joined)),))

    def join_room(self, watch: DashboardSubscription, payload: JoinRoom, now: int) -> Outcome:
        if payload.room == f"org:{watch.room.organization_id}":
            self._join(watch)
        return _room(watch, payload.room, messages.dumps({"joined": True, "room": payload.room}))

    def leave_room(self, watch: DashboardSubscription, payload: JoinRoom, now: int) -> Outcome:
        """Out of its organisation's room a dashboard is told of no changes, until it joins again."""
        if payload.room == f"org:{watch.room.organization_id}":
            watch.watching = watch.joined = False
            watch.pending.clear()
            watch.due.clear()
        return _room(watch, payload.room, messages.dumps({"left": True, "room": payload.room}))

    def _join(self, watch: DashboardSubscription) -> None:
        watch.watching = watch.joined = True
        self.on_join(watch)


def _room(watch: DashboardSubscription, room: str, reply: bytes) -> Outcome:
    """The answer on a room: that of the own organisation, or of a device in it."""
    kind, _, name = room.partition(":")
    organization_id = watch.room.organization_id
    if kind == "org" and name == organization_id:
        return Outcome(reply)
    if kind != "device" or not name:
        return Outcome(refusal=FORBIDDEN, details={"room": "not yours"})

    def then(listed: int) -> Outcome:
        return Outcome(reply) if listed else Outcome(refusal=FORBIDDEN, details={"room": "not yours"})

    return Outcome(write=Write("listed", (f"vz:{{o:{organization_id}}}:devices",), (name,), then))


def join_own_room(device: Device, payload: JoinRoom, now: int) -> Outcome:
    """Players in the field join the room of their own name. It changes nothing, least of all what they are."""
    return _own_room(device, payload.room, "joined")


def leave_own_room(device: Device, payload: JoinRoom, now: int) -> Outcome:
    """Nor does it when they leave it."""
    return _own_room(device, payload.room, "left")


def _own_room(device: Device, room: str, done: str) -> Outcome:
    if room != f"device:{device.id}":
        return Outcome(refusal=NOT_ALLOWED)
    return Outcome(messages.dumps({done: True, "room": room}))


def no_organization(device: Device, payload: Any, now: int) -> Outcome:
    return Outcome(refusal=NOT_ALLOWED)


def status_body(device_id: str, status: str, since: int, last_seen: int, reason: str, now: int) -> bytes:
    """The data of the event `device:status`. `seq` tells the later of two: a device's `since` only grows."""
    return messages.dumps(
        {
            "deviceId": device_id,
            "status": status,
            "since": since,
            "lastSeen": last_seen,
            "reason": reason,
            "seq": since,
            "timestamp": iso(now),
        }
    )


def described(device_id: str, organization_id: str, value: bytes | None, seen: int, now: int) -> Status | None:
    """A device as its status key describes it, None when it is another organisation's by now.

    Of one that was last seen long ago there is no key any more.
    """
    try:
        found = messages.loads(value) if value is not None else {}
    except messages.JSONError:
        found = {}
    if not found:
        return seen, status_body(device_id, "offline", seen, seen, "unknown", now)
    if found.get("organizationId") != organization_id:
        return None
    since = found.get("since", 0)
    last_seen = max(seen, found.get("lastHeartbeat", 0))
    return since, status_body(device_id, found["status"], since, last_seen, found.get("reason", ""), now)
