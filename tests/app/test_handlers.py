"""What a heartbeat does to a device, and what its sender is told."""

import json
from typing import Any

import pytest

from vizora_rt.app.handlers import Handlers, Outcome
from vizora_rt.app.state import Device, State
from vizora_rt.config import Player
from vizora_rt.wire.messages import Content, DeviceMetrics, Heartbeat, Repaired, json_struct, validate

NOW = 1_764_000_000_000


class Room:
    """The handlers, their state and a device that is online."""

    def __init__(self, heartbeat_interval: int = 15_000) -> None:
        self.rung = 0
        self.state = State(self.ring)
        self.handlers = Handlers(self.state, Player(heartbeat_interval=heartbeat_interval))
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
    assert list(room.state.unreported) == [room.device]


def test_is_written_again_after_it_was() -> None:
    room = Room()
    room.beat()
    room.state.dirty, room.state.unreported = [], {}
    room.device.dirty = room.device.reported = False
    room.beat()
    assert room.state.dirty == [room.device]
    assert list(room.state.unreported) == [room.device]


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


def test_devices_do_not_share_what_they_say() -> None:
    room = Room()
    other = Device("lobby-2", "acme")
    room.beat({"uptime": 1})
    room.handlers.heartbeat(other, Heartbeat(uptime=2.0), NOW)
    assert (room.device.heartbeat, other.heartbeat) == (Heartbeat(uptime=1.0), Heartbeat(uptime=2.0))
    assert room.state.dirty == [room.device, other]
