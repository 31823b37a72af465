"""Which rows a worker's devices make, and when: nothing is told twice, nothing is lost, and the newest word is told."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.app.test_state import Bells, Screen, connect
from vizora_rt.app.device_rows import DeviceRows, Row
from vizora_rt.app.handlers import Handlers
from vizora_rt.app.state import State
from vizora_rt.config import PlayerSettings
from vizora_rt.errors import SUPERSEDED
from vizora_rt.wire.payloads import DeviceMetrics, Heartbeat


class Office:
    """A worker's state and what it would tell of it."""

    def __init__(self) -> None:
        self.state = State(Bells())
        self.rows = DeviceRows(self.state)
        self.handlers = Handlers(self.state, PlayerSettings())
        self.now = 0

    def beat(self, name: str, cpu: float | None = None) -> None:
        self.now += 1
        payload = Heartbeat(metrics=DeviceMetrics(cpu_usage=cpu)) if cpu is not None else Heartbeat()
        self.handlers.heartbeat(self.state.devices[name], payload, self.now)

    def changed(self) -> list[Row]:
        return [row for chunk in self.rows.changed(2) for row in chunk]

    def beats(self) -> list[Row]:
        return [row for chunk in self.rows.beats(2) for row in chunk]

    def measured(self) -> list[Row]:
        return [row for chunk in self.rows.measured(2) for row in chunk]


def test_a_connect_and_a_leave_are_full_rows_and_heartbeats_are_rows_of_beats() -> None:
    office = Office()
    device = connect(office.state, peer := Screen("lobby-1"))
    assert office.changed() == [["lobby-1", "acme", 1, None, None, 0, 0]]
    for _ in range(3):
        office.beat("lobby-1", 12.5)
    assert office.changed() == []
    assert office.beats() == [["lobby-1", 3, 0]]
    assert office.beats() == []
    # The CPU is for a scrape, and only once.
    assert office.measured() == [["lobby-1", "acme", 1, 12.5, None, 0, 0]]
    assert office.measured() == []
    office.beat("lobby-1")
    office.state.disconnect(device, peer, "client")
    assert office.changed() == [["lobby-1", "acme", 0, None, None, 1, 0]]
    assert office.beats() == office.measured() == []


def test_a_device_is_offline_when_its_connection_ends_not_when_the_wait_for_it_does() -> None:
    office = Office()
    device = connect(office.state, peer := Screen("lobby-1"))
    office.changed()
    office.state.disconnect(device, peer, "client")
    assert [row[2] for row in office.changed()] == [0]
    connect(office.state, Screen("lobby-1"))
    assert [row[2] for row in office.changed()] == [1]


def test_a_device_that_another_worker_has_is_not_ours_to_tell() -> None:
    office = Office()
    device = connect(office.state, Screen("lobby-1"))
    office.changed()
    office.state.lose(device)
    assert office.changed() == [["lobby-1", "acme", None, None, None, 0, 0]]


def test_what_is_told_late_of_an_older_connection_does_not_deny_the_newer_one() -> None:
    """The device went to another worker and came back; heartbeats of the connection that it left are still counted."""
    office = Office()
    older = connect(office.state, peer := Screen("lobby-1"))
    office.state.lose(older)
    connect(office.state, Screen("lobby-1"))
    office.changed()
    assert older.reason == SUPERSEDED.name
    older.heartbeats_failed += 1
    office.state.report(older)
    assert [row[2] for row in office.changed()] == [1]
    office.state.disconnect(older, peer, "client")
    assert [row[2] for row in office.changed()] == [1]


def test_no_more_than_the_limit_at_a_time() -> None:
    office = Office()
    for number in range(5):
        connect(office.state, Screen(f"lobby-{number}"))
    assert [len(chunk) for chunk in office.rows.changed(2)] == [2, 2, 1]
    for number in range(5):
        office.beat(f"lobby-{number}")
    assert [len(chunk) for chunk in office.rows.beats(2)] == [2, 2, 1]
    assert [len(chunk) for chunk in office.rows.measured(2)] == [2, 2, 1]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["connect", "beat", "leave", "lose", "fail"]), st.integers(0, 2)),
        st.tuples(st.sampled_from(["changed", "beats", "measured"]), st.just(0)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(STEPS)
def test_every_heartbeat_is_told_once_and_the_last_word_is_true(steps: list[tuple[str, int]]) -> None:
    office = Office()
    sent, told = 0, 0
    words: dict[object, object] = {}

    def take(rows: list[Row]) -> None:
        nonlocal told
        for row in rows:
            told += int(str(row[-2])) + int(str(row[-1]))
            if len(row) == 7:
                words[row[0]] = row[2]

    for step, number in [*steps, ("changed", 0), ("beats", 0)]:
        name = f"lobby-{number}"
        device = office.state.devices.get(name)
        match step:
            case "connect":
                connect(office.state, Screen(name))
            case "beat" if device is not None and device.peer is not None:
                office.beat(name)
                sent += 1
            case "fail" if device is not None and device.peer is not None:
                device.heartbeats_failed += 1
                office.state.report(device)
                sent += 1
            case "leave" if device is not None and device.peer is not None:
                office.state.disconnect(device, device.peer, "client")
            case "lose" if device is not None:
                office.state.lose(device)
            case "changed":
                take(office.changed())
            case "beats":
                take(office.beats())
            case "measured":
                take(office.measured())
    assert told == sent
    online = {name for name, device in office.state.devices.items() if device.peer is not None}
    assert {name for name, word in words.items() if word == 1} == online
