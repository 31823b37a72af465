"""`connect-storm`: all devices at once, at a fixed rate: what a connect costs, and what memory a connection keeps."""

import asyncio
from collections import deque
from time import perf_counter_ns

from bench.load.engine import Connection, Engine
from bench.load.load_context import Agent, Connects
from bench.load.schedule import ClosedLoop, Timetable
from bench.plan import Options
from bench.scenario import Scenario
from vizora_rt.client.websocket import Handshake

WARM = 100
"""Connections before the storm, so that nothing is the first of its kind in it."""


async def load(agent: Agent) -> None:
    engine = Engine(agent.endpoint, ClosedLoop([b""], 0))
    result = agent.recorder.tally("connect")
    waiting = deque(Connection(engine, Handshake(agent.endpoint, token)) for token in agent.job.tokens)
    agent.recorder.connections = lambda: result.accepted - sum(engine.closed.values())
    warm = Engine(agent.endpoint, ClosedLoop([b""], 0))
    await warm.connect(agent.job.tokens[:WARM], agent.options.ramp, agent.progress)
    connects = Connects(len(warm.connections), warm.failed, warm.handshakes.counts)
    await warm.leave()
    tasks: list[asyncio.Task[None]] = []

    async def one(connection: Connection, due: int) -> None:
        ending = await engine.dial(connection)
        if ending is None:
            engine.connections.append(connection)
            result.succeed(due, perf_counter_ns())
        else:
            result.refuse(due, perf_counter_ns(), ending.reason)

    def dial(due: int) -> None:
        if waiting:
            result.ask(due)
            tasks.append(asyncio.get_running_loop().create_task(one(waiting.popleft(), due)))

    await agent.ready(connects)
    await agent.began()
    timetable = Timetable(lambda: agent.recorder.lateness, 0)
    timetable.add((agent.options.rate or 2000.0) * agent.job.share, dial)
    timetable.start()
    await agent.over()
    timetable.stop()
    if tasks:
        await asyncio.wait(tasks)
    agent.recorder.counters.update({f"ended: {reason}": count for reason, count in engine.closed.items()})
    await engine.leave()


SCENARIOS = (
    Scenario(
        "connect-storm",
        "Every device connects, --rate of them a second, and stays",
        load,
        Options(devices=5000, rate=2000.0, seconds=6.0, warmup=0.5, late=0.01),
        ("connect.accepted>=95%", "connect.p99<500ms", "connect.errors<0.1%"),
        storm=True,
    ),
)
