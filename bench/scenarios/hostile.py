"""`hostile`: honest devices' heartbeats while others attack, one attack after the other, each with figures of its own.

The run has as many equal parts as there are rows; in the first one nothing happens. The gateway has the limits of
`config.toml`.
"""

import itertools
from collections.abc import Callable, Sequence

from bench.load import tokens
from bench.load.actions import Director
from bench.load.attacks import ATTACKS, Attackers
from bench.load.counters import Recorder, Tally
from bench.load.engine import Connection, Engine
from bench.load.load_context import Agent
from bench.load.messages import heartbeats
from bench.load.schedule import Timetable
from bench.plan import Options
from bench.report.histogram import Latencies
from bench.scenario import Scenario

CALM = "calm"
ROWS = (CALM, *(attack.name for attack in ATTACKS))
BEGINS, ENDS = 0.1, 0.7
"""Of its part, when an attack begins and ends: what it leaves behind is not to be taken for the next one's."""
ATTACKERS = 200
"""Devices whose tokens the attackers have."""
SECONDS_A_ROW = 4.0

LIMITS = {
    "MESSAGES_PER_MINUTE": "120",
    "PACKETS_PER_MINUTE": "600",
    "CONNECTIONS_PER_MINUTE": "30",
    "CONNECTIONS_PER_ADDRESS": "20000",
    "HANDSHAKES_PER_SECOND": "2500",
}


class Row(Tally):
    """The tally of one part of the run. The ack of a message that was due before it belongs to the row before."""

    __slots__ = ("before",)

    def __init__(self, before: "Row | None") -> None:
        self.before = before
        super().__init__(2**63)

    def ack(self, payload: bytes, sent: int, now: int) -> None:
        if sent < self.since and self.before is not None:
            self.before.ack(payload, sent, now)
        else:
            super().ack(payload, sent, now)


class Rows:
    """Heartbeats at a fixed rate, one device after the other, each counted in the row in which it was due."""

    def __init__(self, recorder: Recorder, rate: float, lateness: Callable[[], Latencies]) -> None:
        self.rows: list[Row] = []
        for name in ROWS:
            row = recorder.tallies[name] = Row(self.rows[-1] if self.rows else None)
            self.rows.append(row)
        self._next = itertools.cycle(heartbeats()).__next__
        self._rate = rate
        self._timetable = Timetable(lateness)

    def divide(self, since: int, until: int) -> None:
        """Give each row its part of the run, in nanoseconds."""
        for number, row in enumerate(self.rows):
            row.reset(since + (until - since) * number // len(self.rows))

    def start(self, engine: Engine) -> None:
        rows, turns = self.rows, itertools.cycle(engine.connections).__next__
        current = 0

        def send(due: int) -> None:
            nonlocal current
            while current + 1 < len(rows) and due >= rows[current + 1].since:
                current += 1
                engine.tally = rows[current]
            turns().send(self._next(), (due,))

        engine.tally = rows[0]
        self._timetable.add(self._rate, send)
        self._timetable.start()

    def stop(self) -> None:
        self._timetable.stop()

    def acked(self, connection: Connection, count: int) -> None:
        """An open loop: the next message goes when it is due."""


async def load(agent: Agent) -> None:
    options = agent.options
    rate = (options.rate or options.devices) * agent.job.share
    pace = Rows(agent.recorder, rate, lambda: agent.recorder.lateness)
    agent.spins = True
    engine = Engine(agent.endpoint, pace, pace.rows[0])
    await agent.connected(engine)
    pace.divide(agent.recorder.since, agent.until)
    pace.start(engine)
    await agent.over()
    pace.stop()
    await agent.answered(*pace.rows)
    agent.recorder.counters.update({f"ended: {reason}": count for reason, count in engine.closed.items()})
    await engine.leave()


async def attack(director: Director) -> None:
    """Each attack in its part of the run; then whether all workers are still those of the beginning."""
    service = director.service
    workers = set(service.workers())
    # Those after the honest ones.
    stolen = tokens.mint(service.device_secret, director.options.devices + ATTACKERS)[director.options.devices :]
    length = (director.until - director.since) / 1e9 / len(ROWS)
    for number, each in enumerate(ATTACKS, 1):
        await director.at((number + BEGINS) / len(ROWS))
        director.mark(each.name)
        attackers = Attackers(each, director.target.endpoint, stolen)
        await attackers.attack(length * (ENDS - BEGINS))
        director.figures[f"{each.name}.closed"] = attackers.ended
        director.figures[f"{each.name}.refused"] = attackers.refused
    director.figures["workers.killed"] = len(workers - set(service.workers()))


def thresholds(rows: Sequence[str]) -> tuple[str, ...]:
    return ("connected>=100%", "workers.killed==0", "ended==0", "errors<0.1%", *(f"{row}.p99<20ms" for row in rows))


SCENARIOS = (
    Scenario(
        "hostile",
        "Attacks, one after the other, beside 500 devices that beat: what one client can make others wait",
        load,
        Options(devices=500, rate=500.0, seconds=SECONDS_A_ROW * len(ROWS)),
        thresholds(ROWS),
        attack,
        own=True,
        settings={f"VIZORA_LIMITS__{name}": value for name, value in LIMITS.items()},
    ),
)
