"""Bring dashboards what they see: rounds of changes once a second, and snapshots read from Redis page by page.

`app.dashboards` decides what is told; here is when. There is no timer while nothing changes and nothing waits. What a
dashboard does not read is not sent: it gets the latest when it reads again.
"""

import asyncio
import time
from collections import deque
from functools import partial
from typing import Final

from vizora_rt.app.dashboards import LISTED, DashboardSubscription, Rooms, described
from vizora_rt.net.access.session_check import Sessions
from vizora_rt.net.redis.client import CONNECTION_LOST, RedisClient
from vizora_rt.net.redis.pubsub import PubSub
from vizora_rt.net.server.websocket import Connection
from vizora_rt.telemetry import logs
from vizora_rt.wire import bells, messages, resp
from vizora_rt.wire.resp import ReplyError

ROUND: Final = 1.0
"""Seconds between two changes of one device."""
FIRST: Final = 0.05
"""Seconds from the first change after a quiet time until it is sent: what changes together is sent together."""

A_WRITE: Final = 100
"""Changes, 20 KB: well below the mark at which a transport says that its client does not read."""
A_TURN: Final = 1000
"""Changes sent in one turn of the loop: some 2 ms."""
READS: Final = 2
"""Pages read at a time, whoever they are for: a wave of dashboards does not crowd out heartbeats."""


class Dashboards:
    """One worker's."""

    def __init__(self, rooms: Rooms, store: RedisClient, pubsub: PubSub, sessions: Sessions) -> None:
        self._rooms = rooms
        self._store = store
        self._pubsub = pubsub
        self._sessions = sessions
        self._loop = asyncio.get_running_loop()
        self._armed = False
        self._sent = -ROUND
        self._joining: deque[DashboardSubscription] = deque()
        self._parked: dict[DashboardSubscription, None] = {}
        self._reading = 0
        rooms.on_join = self._join
        rooms.on_readable = self._resume
        pubsub.on_status = self._on_status
        pubsub.on_subscribed = self._subscribed
        store.script("listed", LISTED)
        store.on_up.append(self._on_up)

    def enter(self, connection: Connection) -> None:
        connection.watch = self._rooms.enter(connection)
        self._sessions.watch(connection)

    def leave(self, connection: Connection) -> None:
        watch, connection.watch = connection.watch, None
        if watch is not None:
            self._rooms.leave(watch)
            watch.waiting = None
            self._parked.pop(watch, None)

    # Changes

    def _on_status(self, organization: str, message: bytes) -> None:
        room = self._rooms.rooms.get(organization)
        if room is None:
            return
        try:
            status = messages.loads(message)["status"]
            body = messages.dumps(status)
        except (messages.JSONError, TypeError):  # the latter is nested deeper than JSON is written
            status = None
        found = bells.read("status", status)
        if found is None:
            logs.limited(("doorbell", "status"), "WARNING", "dashboards", "doorbell not understood", {"name": "status"})
        elif room.change(found.device_id, found.seq, body):
            self._arm()

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._loop.call_later(max(FIRST, self._sent + ROUND - self._loop.time()), self._begin_round)

    def _begin_round(self) -> None:
        self._sent = self._loop.time()
        watches = deque(watch for room in self._rooms.rooms.values() for watch in room.watches.values())
        for watch in watches:
            watch.begin_round()
        self._resume()
        self._send(watches)

    def _send(self, watches: deque[DashboardSubscription]) -> None:
        """Send what is due, some of it per turn of the loop, to whoever reads."""
        budget = A_TURN
        while watches and budget > 0:
            watch = watches.popleft()
            viewer = watch.viewer
            assert isinstance(viewer, Connection)
            while watch.due and not viewer.stalled and budget > 0:
                bodies = watch.take(A_WRITE)
                budget -= len(bodies)
                viewer.push("device:status", bodies)
            if watch.due and not viewer.stalled:
                watches.append(watch)
        if watches:
            self._loop.call_soon(self._send, watches)
            return
        self._armed = False
        rooms = self._rooms.rooms.values()
        if self._parked or any(watch.due or watch.pending for room in rooms for watch in room.watches.values()):
            self._arm()

    # Snapshots

    def _join(self, watch: DashboardSubscription) -> None:
        """The dashboard wants all of its organisation. One that asks while it is told is told once more."""
        if watch.snapshot_running:
            watch.snapshot_requested = True
            return
        watch.snapshot_running = True
        self._joining.append(watch)
        self._read()

    def _subscribed(self, organization: str) -> None:
        """Whatever was missed until now is in the snapshot: each dashboard that wanted one gets it (again)."""
        room = self._rooms.rooms.get(organization)
        if room is not None:
            for watch in room.watches.values():
                if watch.joined:
                    self._join(watch)
        self._resume()

    def _on_up(self) -> None:
        """Redis is back, or a shard of it: who was told in part is told once more."""
        for room in self._rooms.rooms.values():
            for watch in room.watches.values():
                if watch.in_part:
                    watch.in_part = False
                    self._join(watch)
        self._resume()

    def _resume(self) -> None:
        """What could not go on may perhaps now: Redis is back, the bus hears, the dashboard reads."""
        parked, self._parked = self._parked, {}
        self._joining.extend(parked)
        self._read()

    def _read(self) -> None:
        while self._joining and self._reading < READS:
            watch = self._joining.popleft()
            if self._rooms.rooms.get(watch.room.organization_id) is not watch.room:
                continue
            viewer = watch.viewer
            if viewer not in watch.room.watches:
                continue
            ready = (
                self._store.available and self._pubsub.is_subscribed(watch.room.organization_id) and not viewer.stalled
            )
            if not ready or not (self._read_ids(watch) if watch.waiting is None else self._read_page(watch)):
                self._park(watch)

    def _park(self, watch: DashboardSubscription) -> None:
        self._parked[watch] = None
        self._arm()

    def _read_ids(self, watch: DashboardSubscription) -> bool:
        organization_id = watch.room.organization_id

        def on_reply(reply: object) -> None:
            self._reading -= 1
            if isinstance(reply, list):
                rows = zip(reply[::2], reply[1::2], strict=True)
                watch.begin_snapshot([(row.decode(), int(float(score))) for row, score in rows])
                self._joining.append(watch)
            else:
                self._park(watch)
            self._read()

        command = resp.pack("ZRANGE", f"vz:{{o:{organization_id}}}:devices", 0, -1, "WITHSCORES")
        taken = self._store.submit("zrange", command, on_reply)
        self._reading += taken
        return taken

    def _read_page(self, watch: DashboardSubscription) -> bool:
        wanted = watch.next_page()
        values: dict[str, object] = {}

        def on_reply(device_id: str, reply: object) -> None:
            values[device_id] = reply
            if len(values) == len(wanted):
                self._reading -= 1
                self._fill(watch, wanted, values)
                self._read()

        if not wanted:
            self._fill(watch, wanted, values)
            return True
        self._reading += 1
        for device_id, _ in wanted:
            # Each has its own reply: of a cluster they come in any order.
            replied = partial(on_reply, device_id)
            if not self._store.submit("get", resp.pack("GET", f"vz:{{d:{device_id}}}:status"), replied):
                replied(CONNECTION_LOST)
        return True

    def _answers(self, device_id: str) -> bool:
        """Whether Redis can be asked for a device now."""
        return self._store.is_available(f"vz:{{d:{device_id}}}:status".encode())

    def _fill(self, watch: DashboardSubscription, wanted: list[tuple[str, int]], values: dict[str, object]) -> None:
        """A page has been read."""
        viewer = watch.viewer
        if viewer not in watch.room.watches:
            return
        unavailable = [device_id for device_id, value in values.items() if isinstance(value, ReplyError)]
        if unavailable and (not self._store.available or any(map(self._answers, unavailable))):
            self._park(watch)  # but for those on a shard that is away, it is asked again soon
            return
        now, found = time.time_ns() // 1_000_000, []
        for device_id, seen in wanted:
            value = values[device_id]
            if isinstance(value, ReplyError):
                continue  # it is told when its shard is back
            assert value is None or isinstance(value, bytes)
            status = described(device_id, watch.room.organization_id, value, seen, now)
            if status is not None:
                found.append((device_id, *status))
        viewer.send("device:status:batch", watch.fill_page(found, messages.iso(now), unavailable))
        if watch.waiting is not None:
            self._joining.append(watch)
            return
        watch.snapshot_running, watch.snapshot_requested = watch.snapshot_requested, False
        if watch.snapshot_running:
            self._joining.append(watch)
