"""What a heartbeat pays from its text to its queued ack, and what of that is for traces that are not taken.

`without` is the same function less the lines that ask whether this message is traced, so that the difference is theirs.
"""

import asyncio
import inspect
import textwrap
import types
from collections.abc import Callable
from statistics import median
from time import perf_counter_ns
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.auth import Identity
from vizora_rt.app.handlers import Handlers
from vizora_rt.app.state import Device, State
from vizora_rt.config import Config, LimitSettings, SentrySettings
from vizora_rt.net.gateway import dispatcher as gateway_dispatcher
from vizora_rt.net.gateway.dispatcher import Dispatcher
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.server.websocket import Connection, ConnectionContext
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry import sentry
from vizora_rt.telemetry.metrics import Cell, Metrics

BEAT = '{"event":"heartbeat","id":7,"data":{"metrics":{"cpuUsage":41.5,"memoryUsage":60},"currentContent":"c-8213"}}'
ROUNDS = range(1000)
ASKS = """
if started % report.SHARES < self._traced:
    counted = self._trace(counted, connection)
"""


def without_traces() -> Callable[..., None]:
    """`Dispatcher.message` without asking."""
    source = textwrap.dedent(inspect.getsource(Dispatcher.message))
    asks = textwrap.indent(ASKS.strip("\n"), " " * 4) + "\n"
    assert source.count(asks) == 1, "the dispatcher asks in other words by now"
    found: dict[str, Any] = {}
    exec(compile(source.replace(asks, ""), "without", "exec"), vars(gateway_dispatcher) | {}, found)
    message: Callable[..., None] = found["message"]
    return message


@pytest.fixture
def heartbeats() -> Callable[[str], Callable[[], None]]:
    """A function that takes 1,000 heartbeats in one of the ways."""
    config = Config(limits=LimitSettings(messages_per_minute=0))

    async def build() -> tuple[Dispatcher, Connection]:
        metrics, state = Metrics(config.metrics), State(lambda: None)
        wheel = Wheel(asyncio.get_running_loop().time)
        store = RedisClient(config.redis, "unix:///nowhere", metrics, name="bench")
        dispatcher = Dispatcher(config, metrics, store, state, Handlers(state, config.player))
        connection = Connection(
            None,  # type: ignore[arg-type]
            ConnectionContext(config, wheel, Cell(), Cell()),
            Identity("device", "lobby-1", "acme", "", 0.0, 0.0),
        )
        connection.device = Device("lobby-1", "acme")
        return dispatcher, connection

    dispatcher, connection = asyncio.run(build())

    def way(name: str) -> Callable[[], None]:
        message: Callable[..., None] = dispatcher.message
        if name == "without":
            message = types.MethodType(without_traces(), dispatcher)
        elif name == "unsampled":
            # As with a DSN and a rate, of messages that are not of the share.
            dispatcher._traced = sentry.Sentry(Config(sentry=SentrySettings(traces_sample_rate=0.1))).share
            dispatcher._trace = lambda counted, connection: counted  # type: ignore[method-assign]

        def take() -> None:
            for _ in ROUNDS:
                message(connection, BEAT)
                connection.session.take_output()

        return take

    return way


@pytest.mark.benchmark(group="heartbeat, 1000 times")
@pytest.mark.parametrize("way", ["without", "off", "unsampled"])
def test_heartbeat(benchmark: BenchmarkFixture, heartbeats: Callable[[str], Callable[[], None]], way: str) -> None:
    benchmark(heartbeats(way))


def test_asking_costs_under_200_ns(heartbeats: Callable[[str], Callable[[], None]]) -> None:
    """The ways in turn, and the median of the differences: what else the machine does takes from all alike."""
    ways = {name: heartbeats(name) for name in ("without", "off", "unsampled")}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(600):
        for name, take in ways.items():
            began = perf_counter_ns()
            take()
            taken[name].append((perf_counter_ns() - began) / len(ROUNDS))
    costs = {
        name: median(with_it - without for with_it, without in zip(taken[name], taken["without"], strict=True))
        for name in ("off", "unsampled")
    }
    print(f"a heartbeat {median(taken['without']):.0f} ns;", {name: f"{ns:+.0f} ns" for name, ns in costs.items()})
    assert costs["unsampled"] < 200
