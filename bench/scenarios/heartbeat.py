"""`heartbeat`: as fast as they are acked, or with --rate at a fixed rate. What a message costs.

`stall` is the proof of the method: the gateway stands still for half a second, and the figures must say so.
"""

import asyncio
import os
import signal

from bench.load import server
from bench.load.actions import Director
from bench.load.engine import Engine, is_socketio
from bench.load.load_context import Agent
from bench.load.messages import heartbeats
from bench.load.schedule import ClosedLoop, OpenLoop
from bench.plan import Options
from bench.scenario import OLD_SUITE, Scenario
from vizora_rt.wire import messages, socketio

STALL_SECONDS = 0.5


async def load(agent: Agent) -> None:
    options = agent.options
    frames = heartbeats(encode=socketio.encode if is_socketio(agent.endpoint) else messages.encode)
    pace = (
        ClosedLoop(frames, options.inflight)
        if options.rate is None
        else OpenLoop(frames, options.rate * agent.job.share, lambda: agent.recorder.lateness)
    )
    agent.spins = options.rate is not None
    engine = Engine(agent.endpoint, pace, agent.recorder.tally("heartbeat"))
    await agent.connected(engine)
    pace.start(engine)
    await agent.over()
    pace.stop()
    await agent.answered(engine.tally)
    agent.recorder.counters.update({f"ended: {reason}": count for reason, count in engine.closed.items()})
    await engine.leave()


async def stall(director: Director) -> None:
    """All processes of the gateway, its store too: whoever shares their machine may take it from them like this."""
    await director.at(0.5)
    pids = list(server.family(director.service.pid))
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    director.mark(f"stopped for {STALL_SECONDS * 1e3:.0f} ms")
    await asyncio.sleep(STALL_SECONDS)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


SCENARIOS = (
    Scenario(
        "heartbeat",
        "Heartbeats as fast as they are acked (closed loop), or with --rate at a fixed rate (open loop)",
        load,
        Options(devices=50, late=0.001),
        (*OLD_SUITE, "heartbeat.p99<20ms", "errors<0.1%"),
    ),
    Scenario(
        "stall",
        "The gateway stands still for 500 ms, and the figures must show it: the proof of the method",
        load,
        Options(devices=50, rate=500.0, seconds=10.0),
        ("heartbeat.max>=450ms", "heartbeat.p99.9>=400ms", "errors<0.1%"),
        stall,
        own=True,
    ),
)
