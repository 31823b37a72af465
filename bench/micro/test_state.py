"""What a device pays to be known: connected, changed, gone, beside 10,000 others."""

from typing import cast

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.auth import Identity
from vizora_rt.app.state import Peer, State

NOW = 1_764_000_000_000


class Silent:
    """A connection to which nothing is sent."""

    def __init__(self, number: int) -> None:
        self.identity = Identity("device", f"lobby-{number}", f"org-{number // 500}", "", 0, 0)
        self.open = True


def test_connect_and_disconnect(benchmark: BenchmarkFixture) -> None:
    state = State(lambda: None)
    peers = [Silent(number) for number in range(10_001)]
    for peer in peers[:-1]:
        state.connect(peer.identity, cast("Peer", peer), 1, NOW, NOW)
    last, epoch = peers[-1], 1

    def live() -> bool:
        nonlocal epoch
        epoch += 1
        device = state.connect(last.identity, cast("Peer", last), epoch, NOW, NOW)
        return state.disconnect(device, cast("Peer", last), "left")

    assert benchmark(live) is True
