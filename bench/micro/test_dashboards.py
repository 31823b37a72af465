"""What a change of a device's status pays for the dashboards that see it: described, kept, taken by each."""

from typing import cast

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.auth import Identity
from vizora_rt.app.dashboards import Rooms, status_body
from vizora_rt.app.state import Peer

NOW = 1_764_000_000_000
WATCHERS = 20


class Screenless:
    """A dashboard's connection, to which nothing is sent here."""

    def __init__(self) -> None:
        self.identity = Identity("dashboard", "ann", "acme", "", 0, 0)


def test_status_body(benchmark: BenchmarkFixture) -> None:
    assert b"lobby" in benchmark(status_body, "lobby-1", "online", NOW, NOW, "connected", NOW)


def test_a_round_of_1000_changes(benchmark: BenchmarkFixture) -> None:
    rooms = Rooms()
    watches = [rooms.enter(cast("Peer", Screenless())) for _ in range(WATCHERS)]
    bodies = [
        (f"lobby-{number}", status_body(f"lobby-{number}", "online", NOW, NOW, "", NOW)) for number in range(1000)
    ]
    seq = 0

    def tell() -> int:
        nonlocal seq
        seq += 1
        for name, body in bodies:
            watches[0].room.change(name, seq, body)
        for watch in watches:
            watch.begin_round()
        return sum(len(watch.take(1000)) for watch in watches)

    assert benchmark(tell) == WATCHERS * 1000
