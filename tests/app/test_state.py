"""The state against a plain model under any order of coming, going and superseding."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from vizora_rt.app.auth import Identity, Kind
from vizora_rt.app.state import Device, State, Status
from vizora_rt.errors import SUPERSEDED, Close
from vizora_rt.wire.messages import NATIVE, Dialect
from vizora_rt.wire.payloads import Heartbeat


class Screen:
    """A peer that remembers how it was closed. Or a dashboard."""

    def __init__(self, device_id: str, organization: str = "acme", kind: Kind = "device") -> None:
        self.identity = Identity(kind, device_id, organization, "", 0, 0)
        self.dialect: Dialect = NATIVE
        self.acks_deliveries = True
        self.open = True
        self.causes: list[Close] = []
        self.device: Device | None = None

    def send(self, event: str, body: bytes, ack_id: int | None = None) -> None:
        raise AssertionError("the state sends nothing")

    def notice(self, frame: bytes) -> bool:
        raise AssertionError("the state sends nothing")

    @property
    def held(self) -> bool:
        return False

    @property
    def stalled(self) -> bool:
        raise AssertionError

    def set_message_limit(self, message_bytes: int) -> None:
        raise AssertionError("the state has no limits")

    def close(self, cause: Close) -> None:
        self.causes.append(cause)


def connect(state: State, peer: Screen, epoch: int = 1, since: int = 1000, connected: int = 1_000_000) -> Device:
    peer.device = state.connect(peer.identity, peer, epoch, since, connected)
    return peer.device


class Bells:
    """Counts the calls of `on_dirty`."""

    def __init__(self) -> None:
        self.rung = 0

    def __call__(self) -> None:
        self.rung += 1


class TestConnect:
    def test_first(self) -> None:
        state = State(Bells())
        peer = Screen("lobby-1")
        device = connect(state, peer, 7, 1234, 5_000_000)
        assert state.devices == {"lobby-1": device}
        assert (device.id, device.organization_id, device.peer) == ("lobby-1", "acme", peer)
        assert (device.status, device.reason, device.since) == ("online", "connected", 1234)
        assert (device.epoch, device.owned, device.connected) == (7, True, 5_000_000)
        assert list(state.unreported) == [device]

    def test_without_an_epoch_it_is_not_owned(self) -> None:
        """The store was away: nothing is written before it has confirmed."""
        assert not connect(State(Bells()), Screen("lobby-1"), epoch=0).owned

    def test_newer_supersedes_older(self) -> None:
        state, older, newer = State(Bells()), Screen("lobby-1"), Screen("lobby-1")
        device = connect(state, older)
        assert connect(state, newer, 2) is device
        assert (older.causes, newer.causes) == ([SUPERSEDED], [])
        assert not state.disconnect(device, older, "client")
        assert (device.peer, device.reason, device.owned) == (newer, "connected", True)

    def test_the_superseded_is_no_longer_counted(self) -> None:
        """It may take long to go, and there is one screen."""
        state, older, newer = State(Bells()), Screen("lobby-1"), Screen("lobby-1")
        for peer in (older, newer):
            state.enter(peer)
            connect(state, peer)
        assert state.screens == {"acme": {newer}}
        state.leave(older)
        assert state.screens == {"acme": {newer}}

    def test_what_it_said_outlives_a_reconnect(self) -> None:
        state = State(Bells())
        device = connect(state, older := Screen("lobby-1"))
        device.heartbeat, device.last_heartbeat, device.tat = Heartbeat(uptime=5), 1500, 3.5
        assert state.disconnect(device, older, "silent")
        assert connect(state, Screen("lobby-1"), 2) is device
        assert (device.heartbeat, device.last_heartbeat, device.tat) == (Heartbeat(uptime=5), 1500, 3.5)

    def test_a_device_may_change_its_organisation(self) -> None:
        state, older, newer = State(Bells()), Screen("lobby-1", "acme"), Screen("lobby-1", "globex")
        for peer in (older, newer):
            state.enter(peer)
            device = connect(state, peer)
        state.leave(older)
        assert device.organization_id == "globex"
        assert state.screens == {"globex": {newer}}


class TestLeave:
    def test_disconnect(self) -> None:
        state = State(Bells())
        device = connect(state, peer := Screen("lobby-1"))
        assert state.disconnect(device, peer, "silent")
        assert (device.peer, device.left, device.status) == (None, "silent", "online")
        assert not state.disconnect(device, peer, "again")
        assert device.left == "silent"

    def test_why_it_left_is_not_why_it_changed(self) -> None:
        """A change that nobody has been told of yet keeps its reason."""
        state = State(Bells())
        device = connect(state, peer := Screen("lobby-1"))
        state.change(device, "online", "heartbeat", 5000)
        state.disconnect(device, peer, "silent")
        assert (device.status, device.reason) == ("online", "heartbeat")
        state.offline(device, 9000)
        assert (device.status, device.reason) == ("offline", "silent")

    def test_offline(self) -> None:
        state = State(Bells())
        device = connect(state, Screen("lobby-1"))
        device.heartbeat = Heartbeat(uptime=5)
        device.reported = False
        state.offline(device, 9000)
        gone = state.devices["lobby-1"]
        assert gone is device
        assert (gone.status, gone.since) == ("offline", 9000)
        assert gone.heartbeat is None
        assert gone.reported

    def test_lost(self) -> None:
        """Another worker has it: it is neither written nor waited for here, whatever was about to."""
        state = State(Bells())
        device = connect(state, peer := Screen("lobby-1"))
        state.touch(device)
        state.lose(device)
        assert state.devices == {}
        assert (device.reason, device.owned, device.connected) == ("superseded", False, 0)
        assert not state.disconnect(device, Screen("lobby-1"), "client")
        assert connect(state, Screen("lobby-1"), 2) is not device
        assert peer.causes == []  # told by who knows why

    def test_forgotten_late(self) -> None:
        """The end of an older entry takes nothing from the one that came after it."""
        state = State(Bells())
        older = connect(state, Screen("lobby-1"))
        state.forget(older)
        newer = connect(state, Screen("lobby-1"), 2)
        state.forget(older)
        state.lose(older)
        assert state.devices == {"lobby-1": newer}
        assert newer.owned

    def test_of_no_organisation_nothing_is_left(self) -> None:
        state = State(Bells())
        state.leave(Screen("lobby-1"))
        for peer in (Screen("lobby-1"), Screen("alice", kind="dashboard")):
            state.enter(peer)
            state.leave(peer)
            state.leave(peer)
        assert (state.screens, state.dashboards) == ({}, {})

    def test_the_lost_is_no_longer_counted(self) -> None:
        state = State(Bells())
        state.enter(peer := Screen("lobby-1"))
        state.lose(connect(state, peer))
        assert state.screens == {}

    def test_the_revoked_does_not_go_offline(self) -> None:
        state = State(Bells())
        device = connect(state, Screen("lobby-1"))
        state.change(device, "revoked", "by_hand", 2000)
        state.offline(device, 9000)
        assert (device.status, device.reason, device.since) == ("revoked", "by_hand", 9000)


class TestChange:
    def test_is_told_and_written(self) -> None:
        state = State(Bells())
        device = connect(state, Screen("lobby-1"))
        state.change(device, "stale", "no_heartbeat", 5000)
        assert (device.status, device.reason, device.since) == ("stale", "no_heartbeat", 5000)
        assert list(state.changed) == state.dirty == [device]

    def test_since_grows_whatever_clocks_do(self) -> None:
        state = State(Bells())
        device = connect(state, Screen("lobby-1"), since=1000)
        for now, since in ((1000, 1001), (500, 1002), (2000, 2000)):
            state.change(device, "stale", "no_heartbeat", now)
            assert device.since == since
        state.offline(device, 100)
        assert device.since == 2001

    def test_nobody_is_told_of_who_is_gone(self) -> None:
        """Whoever has the device tells."""
        state = State(Bells())
        for name, goes in (("lobby-1", state.forget), ("lobby-2", state.lose)):
            device = connect(state, Screen(name))
            state.change(device, "stale", "no_heartbeat", 5000)
            goes(device)
        assert state.changed == {}

    def test_expected(self) -> None:
        state = State(Bells())
        state.suspended["globex"] = "unpaid"
        assert state.expected("acme") == ("online", "connected")
        assert state.expected("globex") == ("suspended", "tenant_suspended")


class TestDirty:
    def test_once_however_often(self) -> None:
        state = State(bells := Bells())
        first, second = (connect(state, Screen(name)) for name in ("lobby-1", "lobby-2"))
        for device in (first, first, second, first):
            state.touch(device)
        assert state.dirty == [first, second]
        assert bells.rung == 1

    def test_again_when_it_was_taken(self) -> None:
        state = State(bells := Bells())
        device = connect(state, Screen("lobby-1"))
        state.touch(device)
        taken, state.dirty = state.dirty, []
        state.touch(device)
        assert (taken, state.dirty) == ([device], [])  # still to be written: what changed goes with it
        device.dirty = False
        state.touch(device)
        assert state.dirty == [device]
        assert bells.rung == 2


NAMES = st.sampled_from(["lobby-1", "lobby-2", "lobby-3"])
ORGANIZATIONS = st.sampled_from(["acme", "globex"])


class Worker(RuleBasedStateMachine):
    """One worker's life as net/gateway and net/presence lead it. The model: who speaks for each device, by arrival."""

    peers = Bundle("peers")

    @initialize()
    def start(self) -> None:
        self.bells = Bells()
        self.state = State(self.bells)
        self.speakers: dict[str, Screen | None] = {}  # None: gone, and may come back
        self.present: list[Screen] = []
        self.let_go: dict[Device, Screen | None] = {}  # with the connection that will end later
        self.touched: list[Device] = []
        self.expected_bells = 0
        self.time = 0

    @rule(target=peers, name=NAMES, organization=ORGANIZATIONS, checked=st.booleans())
    def connect(self, name: str, organization: str, checked: bool) -> Screen:
        self.time += 1
        peer, older = Screen(name, organization), self.speakers.get(name)
        known = self.state.devices.get(name)
        self.state.enter(peer)
        device = connect(self.state, peer, self.time if checked else 0, self.time, self.time)
        assert (device is known) is (name in self.speakers)
        assert device.owned is checked
        if older is not None:
            assert older.causes == [SUPERSEDED]
        self.speakers[name] = peer
        self.present.append(peer)
        return peer

    @rule(target=peers, organization=ORGANIZATIONS)
    def watch(self, organization: str) -> Screen:
        peer = Screen("alice", organization, "dashboard")
        self.state.enter(peer)
        self.present.append(peer)
        return peer

    @rule(peer=consumes(peers))
    def end(self, peer: Screen) -> None:
        """The transport of a connection is gone: of one that was superseded or lost, some time after it was told."""
        self.present.remove(peer)
        self.state.leave(peer)
        device, name = peer.device, peer.identity.id
        if device is None:
            return
        spoke = self.speakers.get(name) is peer
        was_told = self.let_go.get(device) is peer
        assert self.state.disconnect(device, peer, "client") is (spoke or was_told)
        if spoke:
            self.speakers[name] = None
        if was_told:
            self.let_go[device] = None

    @rule(name=NAMES)
    def stays_away(self, name: str) -> None:
        if name in self.speakers and self.speakers[name] is None:
            device = self.state.devices[name]
            self.state.offline(device, self.time)
            self.state.forget(device)
            assert device.status == "offline"
            self.let_go[device] = self.speakers.pop(name)

    @rule(name=NAMES)
    def is_lost(self, name: str) -> None:
        if name in self.speakers:
            device = self.state.devices[name]
            self.state.lose(device)
            peer = self.let_go[device] = self.speakers.pop(name)
            if peer is not None:
                peer.close(SUPERSEDED)

    @rule(name=NAMES)
    def changes(self, name: str) -> None:
        device = self.state.devices.get(name)
        if device is not None:
            self.expected_bells += not self.touched
            if device not in self.touched:
                self.touched.append(device)
            self.state.touch(device)

    @rule(name=NAMES, status=st.sampled_from(["online", "stale"]), ahead=st.integers(-5, 5))
    def becomes(self, name: str, status: Status, ahead: int) -> None:
        """Something else, by a clock that may be wrong."""
        device = self.state.devices.get(name)
        if device is not None:
            since = device.since
            self.expected_bells += not self.touched
            if device not in self.touched:
                self.touched.append(device)
            self.state.change(device, status, "", self.time + ahead)
            assert device.since > since
            assert device in self.state.changed

    @rule()
    def tell(self) -> None:
        self.state.changed.clear()

    @rule()
    def write(self) -> None:
        due, self.state.dirty = self.state.dirty, []
        assert due == self.touched
        self.touched = []
        for device in due:
            device.dirty = False

    @rule()
    def collect(self) -> None:
        unreported, self.state.unreported = self.state.unreported, []
        for device in unreported:
            assert device.reported
            device.reported = False

    @invariant()
    def one_speaker_per_device(self) -> None:
        assert {name: device.peer for name, device in self.state.devices.items()} == self.speakers
        assert all(name == device.id for name, device in self.state.devices.items())

    @invariant()
    def only_those_superseded_were_told(self) -> None:
        for peer in self.present:
            speaks = peer.identity.kind == "dashboard" or self.speakers.get(peer.identity.id) is peer
            assert peer.causes == ([] if speaks else [SUPERSEDED])

    @invariant()
    def each_is_counted_with_its_organisation(self) -> None:
        for kind, counted in (("device", self.state.screens), ("dashboard", self.state.dashboards)):
            expected: dict[str, set[Screen]] = {}
            speaking = list(self.speakers.values())
            for peer in self.present:
                if peer.identity.kind == kind and (kind == "dashboard" or peer in speaking):
                    expected.setdefault(peer.identity.organization_id, set()).add(peer)
            assert counted == expected

    @invariant()
    def dirty_holds_each_once(self) -> None:
        assert self.state.dirty == self.touched
        assert len(set(self.state.dirty)) == len(self.state.dirty)
        assert all(device.dirty for device in self.state.dirty)
        assert self.bells.rung == self.expected_bells

    @invariant()
    def only_of_ours_is_told(self) -> None:
        assert all(self.state.devices.get(device.id) is device for device in self.state.changed)

    @invariant()
    def what_was_let_go_stays_so(self) -> None:
        assert not any(device.owned or device.connected for device in self.let_go)

    @invariant()
    def unreported_holds_whose_series_are_behind(self) -> None:
        assert all(device.reported for device in self.state.unreported)
        assert len(set(self.state.unreported)) == len(self.state.unreported)


TestWorker = Worker.TestCase
TestWorker.settings = settings(max_examples=100, stateful_step_count=40)
