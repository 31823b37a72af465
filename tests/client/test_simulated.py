"""What a simulated screen tells of itself is what the gateway takes."""

from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.client.simulated import SimulatedScreen, wander
from vizora_rt.wire.messages import dumps, loads
from vizora_rt.wire.payloads import Heartbeat, validate


def test_its_heartbeats_fit_the_schema_without_repair() -> None:
    screen = SimulatedScreen("ws://127.0.0.1:1/ws", "token")
    for _ in range(100):
        assert isinstance(validate(Heartbeat, loads(dumps(screen.heartbeat()))), Heartbeat)


@given(st.floats(0, 100), st.floats(0, 1000))
def test_percentages_stay_percentages(value: float, step: float) -> None:
    assert 0 <= wander(value, step) <= 100
