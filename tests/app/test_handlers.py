"""What each event does to a device, and what its sender is told."""

import base64
import json
from typing import Any, ClassVar

import pytest

from vizora_rt.app.handlers import Handlers, Outcome
from vizora_rt.app.state import Device, State
from vizora_rt.config import PlayerSettings
from vizora_rt.errors import INVALID_PAYLOAD
from vizora_rt.wire import messages
from vizora_rt.wire.messages import json_struct
from vizora_rt.wire.payloads import Content, DeviceMetrics, Heartbeat, Repaired, validate

NOW = 1_764_000_000_000

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n and the rest").decode()


class Room:
    """The handlers, their state and a device that is online."""

    def __init__(self, heartbeat_interval: int = 15_000) -> None:
        self.rung = 0
        self.state = State(self.ring)
        self.handlers = Handlers(self.state, PlayerSettings(heartbeat_interval=heartbeat_interval))
        self.device = Device("lobby-1", "acme")
        self.device.status, self.device.reason, self.device.since = "online", "connected", NOW - 60_000

    def ring(self) -> None:
        self.rung += 1

    def beat(self, data: Any = None, now: int = NOW) -> Outcome:
        """A heartbeat as it comes: validated by the table's schema."""
        event = self.handlers.table["heartbeat"]
        payload = validate(event.schema, data)
        return event.handler(self.device, payload.payload if isinstance(payload, Repaired) else payload, now)


def test_reply() -> None:
    outcome = Room(heartbeat_interval=20_000).beat()
    assert outcome.reply == b'{"reconcileContent":false,"nextHeartbeatIn":20000,"commands":[]}'
    assert json.loads(outcome.degraded) == {**json.loads(outcome.reply), "degraded": True}
    assert outcome.refusal is None
    assert outcome.details == {}


def test_one_answer_for_all() -> None:
    """It is encoded once, not once per heartbeat."""
    room = Room()
    assert room.beat({"uptime": 1}).reply is room.beat({"uptime": 2}).reply


def test_is_remembered() -> None:
    room = Room()
    room.beat({"uptime": 5, "metrics": {"cpuUsage": 12.5}, "screenState": "on"})
    assert room.device.heartbeat == Heartbeat(uptime=5.0, metrics=DeviceMetrics(cpu_usage=12.5), screen_state="on")
    assert (room.device.last_heartbeat, room.device.heartbeats_ok, room.device.heartbeats_failed) == (NOW, 1, 0)


def test_the_last_one_counts() -> None:
    room = Room()
    room.beat({"uptime": 5, "screenState": "on"})
    room.beat({"uptime": 6}, NOW + 15_000)
    assert room.device.heartbeat == Heartbeat(uptime=6.0)
    assert (room.device.last_heartbeat, room.device.heartbeats_ok) == (NOW + 15_000, 2)


def test_is_written_once_however_many() -> None:
    room = Room()
    for _ in range(5):
        room.beat()
    assert room.state.dirty == [room.device]
    assert room.rung == 1
    assert room.state.counted == [room.device]


def test_is_written_again_after_it_was() -> None:
    room = Room()
    room.beat()
    room.state.dirty, room.state.counted = [], []
    room.device.dirty = room.device.counted = False
    room.beat()
    assert room.state.dirty == [room.device]
    assert room.state.counted == [room.device]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("c-1", Content(content_id="c-1")),  # as shipped players say it
        ("", Content(content_id="")),
        ({"contentId": "c-1", "status": "playing"}, Content(content_id="c-1", status="playing")),
        ({"contentId": 7, "status": "playing"}, Content(status="playing")),
        ({}, Content()),
        (None, None),
        (7, None),
        ("x" * 129, None),
    ],
)
def test_current_content(content: Any, expected: Content | None) -> None:
    room = Room()
    room.beat({"currentContent": content})
    assert room.device.heartbeat == Heartbeat(current_content=expected)


def test_a_bare_content_id_is_written_as_content() -> None:
    """Readers of the status find one shape."""
    room = Room()
    room.beat({"currentContent": "c-1"})
    assert room.device.heartbeat is not None
    assert json_struct(room.device.heartbeat) == b'{"currentContent":{"contentId":"c-1"}}'


def test_stale_is_online_again() -> None:
    room = Room()
    room.device.status, room.device.reason, room.device.since = "stale", "no_heartbeat", NOW - 1000
    room.beat()
    assert (room.device.status, room.device.reason, room.device.since) == ("online", "heartbeat", NOW)


def test_online_stays_since_when_it_was() -> None:
    room = Room()
    room.beat()
    assert (room.device.status, room.device.reason, room.device.since) == ("online", "connected", NOW - 60_000)


def test_it_tells_how_far_the_clock_is_behind() -> None:
    room = Room()
    told = []
    for data in ({"uptime": 1}, {"sentAt": NOW - 5000}, {"uptime": 2}, {"sentAt": messages.iso(NOW + 3000)}):
        room.beat(data)
        told.append(room.device.clock_ms)
    assert told == [None, 5000, 5000, -3000]
    # When it was sent is no state of the device.
    assert room.device.heartbeat == Heartbeat()
    room.beat({"sentAt": "soon"})
    assert room.device.clock_ms is None


class TestReconcile:
    """A screen is told to ask for its playlist when it shows another one than the stored."""

    def room(self) -> Room:
        room = Room()
        room.device.playlist_version = "2"
        return room

    def told(self, room: Room, data: Any, now: int = NOW) -> bool:
        outcome = room.beat(data, now)
        reply = json.loads(outcome.reply)
        assert json.loads(outcome.degraded) == {**reply, "degraded": True}
        assert reply == {**reply, "nextHeartbeatIn": 15_000, "commands": []}
        return bool(reply["reconcileContent"])

    @pytest.mark.parametrize("version", ["1", "", "3", "02"])
    def test_another_version(self, version: str) -> None:
        assert self.told(self.room(), {"contentVersion": version})

    @pytest.mark.parametrize(
        "data", [None, {}, {"contentVersion": "2"}, {"contentVersion": None}, {"contentVersion": 1}]
    )
    def test_the_same_or_none(self, data: Any) -> None:
        assert not self.told(self.room(), data)

    def test_nothing_is_stored(self) -> None:
        assert not self.told(Room(), {"contentVersion": "1"})

    def test_once_a_minute(self) -> None:
        room = self.room()
        times = [0, 15_000, 59_999, 60_000, 60_001, 119_999, 120_000]
        assert [self.told(room, {"contentVersion": "1"}, NOW + time) for time in times] == [
            True, False, False, True, False, False, True
        ]  # fmt: skip

    def test_not_while_its_organisation_is_suspended(self) -> None:
        room = self.room()
        room.state.suspended["acme"] = "unpaid"
        assert not self.told(room, {"contentVersion": "1"})
        del room.state.suspended["acme"]
        assert self.told(room, {"contentVersion": "1"}, NOW + 1)

    def test_what_needs_none_uses_no_turn(self) -> None:
        room = self.room()
        assert not self.told(room, {"contentVersion": "2"})
        assert self.told(room, {"contentVersion": "1"}, NOW + 1)


class TestPlaylistRequest:
    STORED: ClassVar[list[bytes | None]] = [b"2", b"push", b'{"playlist":{"id":"p"},"version":"2","source":"push"}']

    def ask(self, data: Any, stored: list[bytes | None]) -> tuple[Device, Any]:
        """What is answered, once the store has."""
        room = Room()
        event = room.handlers.table["playlist:request"]
        outcome = event.handler(room.device, validate(event.schema, data), NOW)
        assert outcome.write is not None
        assert outcome.write.keys == ("vz:{d:lobby-1}:playlist",)
        return room.device, json.loads(outcome.write.then(stored).reply)

    @pytest.mark.parametrize("data", [{}, {"lastKnownVersion": "1"}, {"lastKnownVersion": "2", "forceRefresh": True}])
    def test_gets_it(self, data: Any) -> None:
        device, answer = self.ask(data, self.STORED)
        assert answer == {"playlist": {"id": "p"}, "version": "2", "source": "push"}
        assert device.playlist_version == "2"

    @pytest.mark.parametrize("refresh", [None, False])
    def test_has_it(self, refresh: bool | None) -> None:
        device, answer = self.ask({"lastKnownVersion": "2", "forceRefresh": refresh}, self.STORED)
        assert answer == {"playlist": None, "version": "2", "source": "push"}
        assert device.playlist_version == "2"

    def test_a_suspended_organisation_gets_none(self) -> None:
        room = Room()
        event = room.handlers.table["playlist:request"]
        asked = event.handler(room.device, validate(event.schema, {"forceRefresh": True}), NOW)
        room.state.suspended["acme"] = "unpaid"
        outcome = event.handler(room.device, validate(event.schema, {"forceRefresh": True}), NOW)
        assert outcome.write is None
        assert json.loads(outcome.reply) == {"playlist": None, "version": None, "source": "suspended"}
        assert asked.write is not None
        assert asked.write.then(self.STORED) == outcome  # it was suspended meanwhile
        assert room.device.playlist_version is None
        del room.state.suspended["acme"]
        assert asked.write.then(self.STORED).reply == self.STORED[2]

    def test_there_is_none(self) -> None:
        device, answer = self.ask({"lastKnownVersion": "2"}, [None, None, None])
        assert answer == {"playlist": None, "version": None, "source": "none"}
        assert device.playlist_version is None


class TestScreenshot:
    def respond(self, **data: Any) -> Outcome:
        room = Room()
        event = room.handlers.table["screenshot:response"]
        fields = {"requestId": "r/1", "imageData": PNG, "width": 1920, "height": 1080, **data}
        payload = validate(event.schema, fields)
        assert isinstance(payload, event.schema)
        return event.handler(room.device, payload, NOW)

    def test_is_kept(self) -> None:
        write = self.respond().write
        assert write is not None
        assert write.keys == ("vz:{s:r/1}",)
        assert write.args == ("lobby-1", "image/png", 1920, 1080, NOW, 600, base64.b64decode(PNG))

    def test_dashboards_are_told_where(self) -> None:
        write = self.respond().write
        assert write is not None
        outcome = write.then(1)
        assert outcome.reply == b'{"saved":true}'
        assert outcome.notice is not None
        name, body = outcome.notice
        assert name == "screenshot:ready"
        assert json.loads(body) == {
            "requestId": "r/1",
            "deviceId": "lobby-1",
            "width": 1920,
            "height": 1080,
            "url": "/screenshots/r%2F1",
            "timestamp": NOW,
        }

    def test_nobody_asked(self) -> None:
        write = self.respond().write
        assert write is not None
        outcome = write.then(0)
        assert (outcome.refusal, outcome.notice) == (INVALID_PAYLOAD, None)
        assert outcome.details == {"requestId": "this device was not asked for it"}

    @pytest.mark.parametrize("image", ["", "no base64", "R0lGODdh", "\u00e9"])
    def test_is_no_picture(self, image: str) -> None:
        outcome = self.respond(imageData=image)
        assert (outcome.refusal, outcome.write) == (INVALID_PAYLOAD, None)
        assert list(outcome.details) == ["imageData"]


def test_devices_do_not_share_what_they_say() -> None:
    room = Room()
    other = Device("lobby-2", "acme")
    room.beat({"uptime": 1})
    room.handlers.heartbeat(other, Heartbeat(uptime=2.0), NOW)
    assert (room.device.heartbeat, other.heartbeat) == (Heartbeat(uptime=1.0), Heartbeat(uptime=2.0))
    assert room.state.dirty == [room.device, other]
