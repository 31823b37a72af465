"""`plays`: proof of play as fast as it is acked, one entry a message or --batch of them; what is acked is in Redis.

A closed loop: each device sends its next message when the last is acked. Every play is new, with a start and an end.
"""

import os
from time import perf_counter_ns

from bench.load.engine import Connection, Engine
from bench.load.load_context import Agent
from bench.load.messages import frame, play
from bench.plan import Options
from bench.scenario import Scenario
from vizora_rt.wire.messages import dumps, encode, loads

BOOT = os.urandom(8).hex()


class PlaysLoop:
    """Each connection has one message on its way, with the plays that come next of its device."""

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._next: dict[Connection, int] = {}
        self._running = False

    def start(self, engine: Engine) -> None:
        self._running = True
        for connection in engine.connections:
            self._next[connection] = 0
            self.acked(connection, 1)

    def stop(self) -> None:
        self._running = False

    def acked(self, connection: Connection, count: int) -> None:
        if self._running:
            first = self._next[connection]
            self._next[connection] = first + self._batch
            connection.send(message(first, self._batch), (perf_counter_ns(),))


def message(first: int, batch: int) -> bytes:
    """The entries from number `first` on: even ones are starts, odd ones the end of the same play."""
    entries = [play(number // 2 + 1, "end" if number % 2 else "start") for number in range(first, first + batch)]
    if batch > 1:
        body = b'{"boot":"%b","plays":[%b]}' % (BOOT.encode(), b",".join(entries))
        return frame(encode("content:impressions", body, 1))
    entry = loads(entries[0])
    numbered = {"boot": BOOT, "seq": entry.pop("seq"), "phase": entry.pop("phase")}
    return frame(encode("content:impression", dumps({**entry, "play": numbered}), 1))


async def load(agent: Agent) -> None:
    pace = PlaysLoop(agent.options.batch)
    engine = Engine(agent.endpoint, pace, agent.recorder.tally("play"))
    await agent.connected(engine)
    pace.start(engine)
    await agent.over()
    pace.stop()
    await agent.answered(engine.tally)
    await engine.leave()


SCENARIOS = (
    Scenario(
        "plays",
        "Plays as fast as they are acked, one a message or --batch of them (closed loop)",
        load,
        Options(devices=50),
        ("connected>=95%", "acked>=98%", "play.p95<100ms", "errors<0.1%"),
    ),
)
