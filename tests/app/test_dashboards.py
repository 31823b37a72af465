"""What dashboards see, under any order of changes, pages, late bells and pauses; and what joins are answered with."""

import json
from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vizora_rt.app import dashboards
from vizora_rt.app.auth import Identity
from vizora_rt.app.dashboards import (
    PAGE,
    DashboardSubscription,
    Room,
    Rooms,
    described,
    join_own_room,
    leave_own_room,
    no_organization,
    status_body,
)
from vizora_rt.app.handlers import Outcome
from vizora_rt.app.state import Device, Peer
from vizora_rt.errors import FORBIDDEN, NOT_ALLOWED
from vizora_rt.wire.messages import iso
from vizora_rt.wire.payloads import Invalid, JoinOrganization, JoinRoom, Repaired, validate

NOW = 1_764_000_000_000
NAMES = [f"lobby-{number}" for number in range(7)]


class Screenless:
    """A dashboard's connection to which nothing is sent: what it is told is taken from the watch."""

    def __init__(self, organization: str) -> None:
        self.identity = Identity("dashboard", "ann", organization, "", 0, 0)


def viewer(organization: str = "acme") -> Peer:
    return cast("Peer", Screenless(organization))


def body(name: str, seq: int) -> bytes:
    return json.dumps({"deviceId": name, "seq": seq}).encode()


def enter(organization: str = "acme") -> tuple[Rooms, DashboardSubscription]:
    rooms = Rooms()
    return rooms, rooms.enter(viewer(organization))


class TestRounds:
    def test_the_latest_of_each_device(self) -> None:
        _, watch = enter()
        for name, seq in (("a", 1), ("b", 1), ("a", 2), ("a", 3)):
            watch.room.change(name, seq, body(name, seq))
        assert watch.take(10) == []
        watch.begin_round()
        assert watch.take(10) == [body("a", 3), body("b", 1)]
        watch.begin_round()
        assert watch.take(10) == []

    def test_some_at_a_time(self) -> None:
        _, watch = enter()
        for name in NAMES:
            watch.room.change(name, 1, body(name, 1))
        watch.begin_round()
        assert [len(watch.take(3)) for _ in range(4)] == [3, 3, 1, 0]

    def test_what_changes_while_it_is_due_is_told_once(self) -> None:
        _, watch = enter()
        watch.room.change("a", 1, body("a", 1))
        watch.begin_round()
        watch.room.change("a", 2, body("a", 2))
        assert watch.take(10) == [body("a", 2)]
        watch.begin_round()
        assert watch.take(10) == []

    def test_no_round_begins_before_the_one_before_it_is_sent(self) -> None:
        """A dashboard that reads slowly is told each device once a round."""
        _, watch = enter()
        watch.room.change("a", 1, body("a", 1))
        watch.room.change("b", 1, body("b", 1))
        watch.begin_round()
        assert watch.take(1) == [body("a", 1)]
        watch.room.change("a", 2, body("a", 2))
        watch.begin_round()
        assert watch.take(10) == [body("b", 1)]
        watch.begin_round()
        assert watch.take(10) == [body("a", 2)]

    @pytest.mark.parametrize("seq", [4, 5])
    def test_what_is_not_newer_is_no_news(self, seq: int) -> None:
        _, watch = enter()
        assert watch.room.change("a", 5, body("a", 5))
        assert not watch.room.change("a", seq, body("a", seq))

    def test_each_dashboard_has_its_own_round(self) -> None:
        rooms, first = enter()
        second = rooms.enter(viewer())
        assert second.room is first.room
        first.room.change("a", 1, body("a", 1))
        first.begin_round()
        assert first.take(10) == [body("a", 1)]
        second.begin_round()
        assert second.take(10) == [body("a", 1)]

    def test_rooms_are_apart_and_end_with_their_last_dashboard(self) -> None:
        rooms, acme = enter()
        globex, other = rooms.enter(viewer("globex")), rooms.enter(viewer("globex"))
        acme.room.change("a", 1, body("a", 1))
        assert globex.pending == {}
        rooms.leave(globex)
        assert set(rooms.rooms) == {"acme", "globex"}
        rooms.leave(other)
        rooms.leave(other)
        assert set(rooms.rooms) == {"acme"}


class TestPages:
    @pytest.mark.parametrize(("devices", "pages"), [(0, 1), (1, 1), (PAGE, 1), (PAGE + 1, 2), (3 * PAGE, 3)])
    def test_count(self, devices: int, pages: int) -> None:
        _, watch = enter()
        watch.begin_snapshot([(f"d{number}", NOW) for number in range(devices)])
        told: list[str] = []
        for page in range(1, pages + 1):
            found = [(name, 1, body(name, 1)) for name, _ in watch.next_page()]
            batch = json.loads(watch.fill_page(found, "now"))
            assert (batch["page"], batch["pages"]) == (page, pages)
            assert (batch["organizationId"], batch["timestamp"]) == ("acme", "now")
            assert len(batch["devices"]) <= PAGE
            told += [each["deviceId"] for each in batch["devices"]]
        assert watch.waiting is None
        assert told == [f"d{number}" for number in range(devices)]

    def test_a_page_has_what_came_after_it_was_read(self) -> None:
        _, watch = enter()
        watch.begin_snapshot([("a", NOW), ("b", NOW)])
        watch.room.change("a", 9, body("a", 9))
        batch = json.loads(watch.fill_page([("a", 3, body("a", 3)), ("b", 4, body("b", 4))], "now"))
        assert [(each["deviceId"], each["seq"]) for each in batch["devices"]] == [("a", 9), ("b", 4)]
        watch.begin_round()
        assert watch.take(10) == []

    def test_a_late_bell_is_older_than_the_page(self) -> None:
        _, watch = enter()
        watch.begin_snapshot([("a", NOW)])
        watch.fill_page([("a", 3, body("a", 3))], "now")
        assert not watch.room.change("a", 2, body("a", 2))

    def test_a_fresher_body_of_the_same_status(self) -> None:
        """When it was last seen is no change, but the next page says it."""
        room = Room("acme", lambda: None)
        assert room.learn("a", 3, b"old")
        assert not room.learn("a", 3, b"new")
        assert room.latest["a"] == (3, b"new")


class Wall(RuleBasedStateMachine):
    """Devices change; bells come late, doubled and in any order; pages are read at one time and filled at another;
    the dashboard reads or not. In the end it must show what is true, and never have gone back."""

    @initialize()
    def begin(self) -> None:
        self.page = dashboards.PAGE
        dashboards.PAGE = 3  # type: ignore[misc]
        self.rooms, self.watch = enter()
        self.truth = dict.fromkeys(NAMES, 1)
        self.shown: dict[str, int] = {}
        self.bells: list[tuple[str, int]] = []
        self.read: list[tuple[str, int, bytes]] | None = None
        self.told: set[str] = set()
        self.joined = False

    @rule(name=st.sampled_from(NAMES))
    def change(self, name: str) -> None:
        self.truth[name] += 1
        self.bells.append((name, self.truth[name]))

    @precondition(lambda self: self.bells)
    @rule(at=st.integers(0, 100), again=st.booleans())
    def bell(self, at: int, again: bool) -> None:
        bell = self.bells[at % len(self.bells)]
        if not again:
            self.bells.remove(bell)
        self.watch.room.change(*bell, body(*bell))

    @precondition(lambda self: self.watch.waiting is None)
    @rule()
    def join(self) -> None:
        self.joined = True
        self.watch.begin_snapshot([(name, NOW) for name in NAMES])

    @precondition(lambda self: self.watch.waiting is not None and self.read is None)
    @rule()
    def read_page(self) -> None:
        self.read = [(name, self.truth[name], body(name, self.truth[name])) for name, _ in self.watch.next_page()]

    @precondition(lambda self: self.read is not None)
    @rule()
    def fill_page(self) -> None:
        assert self.read is not None
        for each in json.loads(self.watch.fill_page(self.read, ""))["devices"]:
            self.show(each)
        self.read = None

    @rule()
    def begin_round(self) -> None:
        self.told = set() if not self.watch.due else self.told
        self.watch.begin_round()

    @rule(count=st.integers(1, 4))
    def take(self, count: int) -> None:
        for text in self.watch.take(count):
            each = json.loads(text)
            assert each["deviceId"] not in self.told, "twice in one round"
            assert each["seq"] > self.shown.get(each["deviceId"], 0), "told already"
            self.told.add(each["deviceId"])
            self.show(each)

    def show(self, each: dict[str, Any]) -> None:
        assert each["seq"] >= self.shown.get(each["deviceId"], 0), "back in time"
        self.shown[each["deviceId"]] = each["seq"]

    @invariant()
    def bounded(self) -> None:
        assert len(self.watch.pending) + len(self.watch.due) <= 2 * len(NAMES)
        assert not self.watch.pending.keys() & self.watch.due.keys() or self.watch.due

    def teardown(self) -> None:
        if not hasattr(self, "watch"):
            return
        for message in self.bells:
            self.watch.room.change(*message, body(*message))
        while self.watch.waiting is not None:
            self.read = None
            self.read_page()
            self.fill_page()
        for _ in range(2):
            self.begin_round()
            self.told = set()
            self.take(100)
        changed = {name: seq for name, seq in self.truth.items() if seq > 1}
        assert self.shown == (self.truth if self.joined else changed)
        dashboards.PAGE = self.page  # type: ignore[misc]


Wall.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWall = Wall.TestCase


class TestJoin:
    def join(
        self, event: str, data: Any, organization: str = "acme"
    ) -> tuple[Outcome, DashboardSubscription, list[DashboardSubscription]]:
        rooms, watch = enter(organization)
        wanted: list[DashboardSubscription] = []
        rooms.on_join = wanted.append
        row = rooms.table[event]
        payload = validate(row.schema, data)
        assert row.viewer is not None
        return row.viewer(watch, payload.payload if isinstance(payload, Repaired) else payload, NOW), watch, wanted

    def test_organization(self) -> None:
        outcome, watch, wanted = self.join("join:organization", {"organizationId": "acme"})
        assert json.loads(outcome.reply) == {"joined": True, "organizationId": "acme"}
        (event,) = outcome.events
        assert (event[0], json.loads(event[1])) == (
            "joined:organization",
            {"organizationId": "acme", "timestamp": iso(NOW)},
        )
        assert wanted == [watch]

    def test_another_organization(self) -> None:
        outcome, _, wanted = self.join("join:organization", {"organizationId": "globex"})
        assert (outcome.refusal, outcome.details) == (FORBIDDEN, {"organizationId": "not yours"})
        assert wanted == []

    def test_room_of_the_organization(self) -> None:
        outcome, watch, wanted = self.join("join:room", {"room": "org:acme"})
        assert json.loads(outcome.reply) == {"joined": True, "room": "org:acme"}
        assert wanted == [watch]

    def test_room_of_a_device_is_looked_up(self) -> None:
        outcome, _, wanted = self.join("join:room", {"room": "device:lobby-1"})
        assert outcome.write is not None
        assert (outcome.write.script, outcome.write.keys) == ("listed", ("vz:{o:acme}:devices",))
        assert outcome.write.args == ("lobby-1",)
        assert json.loads(outcome.write.then(1).reply) == {"joined": True, "room": "device:lobby-1"}
        assert outcome.write.then(0).refusal is FORBIDDEN
        assert wanted == []

    @pytest.mark.parametrize("room", ["org:globex", "device:", "lobby-1", "user:ann", "org:", ":", "org:acme:x"])
    @pytest.mark.parametrize("event", ["join:room", "leave:room"])
    def test_no_such_room(self, event: str, room: str) -> None:
        outcome, watch, wanted = self.join(event, {"room": room})
        assert (outcome.refusal, outcome.details) == (FORBIDDEN, {"room": "not yours"})
        assert watch.watching
        assert wanted == []

    def test_out_of_the_room_nothing_is_told_until_it_joins_again(self) -> None:
        rooms, watch = enter()
        watch.room.change("a", 1, body("a", 1))
        rooms.leave_room(watch, JoinRoom(room="org:acme"), NOW)
        watch.room.change("a", 2, body("a", 2))
        watch.begin_round()
        assert watch.take(10) == []
        assert not watch.joined
        rooms.join_room(watch, JoinRoom(room="org:acme"), NOW)
        watch.room.change("a", 3, body("a", 3))
        watch.begin_round()
        assert watch.take(10) == [body("a", 3)]

    def test_to_leave_a_device_changes_nothing(self) -> None:
        outcome, watch, _ = self.join("leave:room", {"room": "device:lobby-1"})
        assert outcome.write is not None
        assert json.loads(outcome.write.then(1).reply) == {"left": True, "room": "device:lobby-1"}
        assert watch.watching

    @pytest.mark.parametrize(
        ("schema", "data", "details"),
        [
            (JoinOrganization, {}, {"organizationId": "required"}),
            (JoinOrganization, {"organizationId": None}, {"organizationId": "required"}),
            (JoinOrganization, {"organizationId": 7}, {"organizationId": "expected str, got int"}),
            (JoinOrganization, [], {"": "expected an object"}),
            (JoinRoom, None, {"room": "required"}),
            (JoinRoom, {"room": ""}, {"room": "expected str of length >= 1"}),
            (JoinRoom, {"room": "org:" + "x" * 132}, {"room": "expected str of length <= 135"}),
            (JoinRoom, {"room": ["org:acme"]}, {"room": "expected str, got array"}),
        ],
    )
    def test_bad_input(self, schema: type[Any], data: Any, details: dict[str, str]) -> None:
        refused = validate(schema, data)
        assert isinstance(refused, Invalid)
        assert list(refused.details.values()) == list(details.values())


class TestDevices:
    """A device may name its own room; that makes nothing else of it."""

    def test_its_own_room(self) -> None:
        device, payload = Device("lobby-1", "acme"), JoinRoom(room="device:lobby-1")
        assert json.loads(join_own_room(device, payload, NOW).reply) == {"joined": True, "room": "device:lobby-1"}
        assert json.loads(leave_own_room(device, payload, NOW).reply) == {"left": True, "room": "device:lobby-1"}

    @pytest.mark.parametrize("room", ["device:lobby-2", "org:acme", "lobby-1"])
    def test_no_other(self, room: str) -> None:
        for leave_or_join in (join_own_room, leave_own_room):
            assert leave_or_join(Device("lobby-1", "acme"), JoinRoom(room=room), NOW).refusal is NOT_ALLOWED

    def test_no_organization(self) -> None:
        payload = JoinOrganization(organization_id="acme")
        assert no_organization(Device("lobby-1", "acme"), payload, NOW).refusal is NOT_ALLOWED


class TestDescribed:
    VALUE = (
        b'{"status":"stale","reason":"no_heartbeat","organizationId":"acme","node":"n","worker":0,'
        b'"lastHeartbeat":1764000000500,"since":1764000000700,"epoch":5}'
    )

    def test_status(self) -> None:
        found = described("lobby-1", "acme", self.VALUE, NOW, NOW + 1000)
        assert found is not None
        assert found[0] == 1764000000700
        assert json.loads(found[1]) == {
            "deviceId": "lobby-1",
            "status": "stale",
            "since": 1764000000700,
            "lastSeen": 1764000000500,
            "reason": "no_heartbeat",
            "seq": 1764000000700,
            "timestamp": iso(NOW + 1000),
        }

    def test_nothing_is_known(self) -> None:
        found = described("lobby-1", "acme", None, NOW, NOW + 1000)
        assert found == (NOW, status_body("lobby-1", "offline", NOW, NOW, "unknown", NOW + 1000))

    def test_not_json(self) -> None:
        assert described("lobby-1", "acme", b"{", NOW, NOW) == described("lobby-1", "acme", None, NOW, NOW)

    def test_it_moved_to_another_organization(self) -> None:
        """Its new organisation's business is not the old one's."""
        assert described("lobby-1", "globex", self.VALUE, NOW, NOW) is None
