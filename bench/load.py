"""The scenario `load`: heartbeats, in a closed or an open loop, and what they cost the server.

Connect, warm up, measure, wait for what is unanswered. CPU per message is the figure to compare; throughput and
latencies also depend on what else the machine does. A run in which the generator itself was short of CPU is INVALID.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import server
from bench.engine import Engine, Progress, is_socketio, undisturbed
from bench.histogram import Quantiles
from bench.messages import heartbeats
from bench.pace import ClosedLoop, OpenLoop
from vizora_rt.net.dial import Endpoint
from vizora_rt.wire import socketio
from vizora_rt.wire.messages import encode

SETTLE_SECONDS = 0.3
GRACE_SECONDS = 2.0
"""How long answers are waited for when the last message is sent."""
SATURATED = 0.97
STARVED = 0.05
"""Shares of the time: of the generator on its core, and of the generator waiting for one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for. Without a rate it is a closed loop with `in_flight` messages a device."""

    endpoint: Endpoint
    tokens: Sequence[str]
    rate: float | None
    in_flight: int
    seconds: float
    warmup: float
    ramp: float
    pids: Sequence[int]
    max_lateness: float


@dataclass(frozen=True, slots=True)
class Connects:
    """The connect phase. `grown` is what the server's resident memory grew by."""

    opened: int
    failed: Counter[str]
    elapsed: float
    latencies: Quantiles
    grown: int


@dataclass(frozen=True, slots=True)
class Server:
    """What the server's processes used while it was measured: CPU in seconds, memory in bytes at the end."""

    processes: int
    user: float
    system: float
    resident: int


@dataclass(frozen=True, slots=True)
class Generator:
    """Shares of the time that this process ran, and waited for a core; how late it sent, in an open loop."""

    busy: float
    waited: float
    lateness: Quantiles | None


@dataclass(frozen=True, slots=True)
class Messages:
    """`answered` is counted to the last second, as the server's CPU is; all else includes the answers after it."""

    elapsed: float
    answered: int
    lost: int
    refused: Counter[str]
    closed: Counter[str]
    latencies: Quantiles


@dataclass(frozen=True, slots=True)
class Result:
    """All of it; no `server` when its processes are not known. `invalid`: why the figures are the generator's."""

    connects: Connects
    messages: Messages
    server: Server | None
    generator: Generator
    invalid: tuple[str, ...]


class NothingConnectedError(Exception):
    """There was nobody to send a message."""

    def __init__(self, failed: Counter[str]) -> None:
        self.failed = failed


async def run(plan: Plan, progress: Progress) -> Result:
    frames = heartbeats(encode=socketio.encode if is_socketio(plan.endpoint) else encode)
    engine = Engine(
        plan.endpoint, ClosedLoop(frames, plan.in_flight) if plan.rate is None else OpenLoop(frames, plan.rate)
    )
    pids = plan.pids or await asyncio.to_thread(server.pids, plan.endpoint)
    connects = await connect(plan, engine, pids, progress)
    if not connects.opened:
        raise NothingConnectedError(connects.failed)
    with undisturbed():
        engine.pace.start(engine)
        await wait(plan.warmup, "warming up", progress)
        engine.reset()
        before = server.sample(pids)
        await wait(plan.seconds, "measuring", progress)
        after, answered = server.sample(pids), engine.tally.answered
        engine.pace.stop()
        await grace(engine)
    await engine.leave()
    tally, elapsed = engine.tally, after.at - before.at
    messages = Messages(
        elapsed, answered, tally.sent - tally.answered, tally.refused, engine.closed, tally.latencies.quantiles()
    )
    used = Server(
        len(pids),
        after.server.user - before.server.user,
        after.server.system - before.server.system,
        after.server.resident,
    )
    generator = Generator(
        (after.ran - before.ran) / elapsed,
        (after.waited - before.waited) / elapsed,
        None if plan.rate is None else engine.lateness.quantiles(),
    )
    return Result(connects, messages, used if pids else None, generator, tuple(doubts(plan, generator)))


async def connect(plan: Plan, engine: Engine, pids: Sequence[int], progress: Progress) -> Connects:
    before = server.sample(pids)
    await engine.connect(plan.tokens, plan.ramp, progress)
    elapsed = time.perf_counter() - before.at
    await asyncio.sleep(SETTLE_SECONDS)
    grown = server.usage(pids).resident - before.server.resident
    return Connects(len(engine.connections), engine.failed, elapsed, engine.handshakes.quantiles(), grown)


async def wait(seconds: float, phase: str, progress: Progress) -> None:
    """Let time pass."""
    begun = time.perf_counter()
    while (left := begun + seconds - time.perf_counter()) > 0:
        progress(phase, 1 - left / seconds)
        await asyncio.sleep(min(left, 1.0))


async def grace(engine: Engine) -> None:
    """Wait for the answers that are still on their way."""
    tally, end = engine.tally, time.perf_counter() + GRACE_SECONDS
    # An event would cost every message what this costs once.
    while tally.answered < tally.sent and time.perf_counter() < end:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def doubts(plan: Plan, generator: Generator) -> Iterator[str]:
    """Why the figures are the generator's and not the server's."""
    if generator.waited > STARVED:
        yield f"the generator waited for a core {generator.waited:.0%} of the time: give it one of its own (taskset)"
    if generator.lateness is None:
        if generator.busy > SATURATED:
            yield f"the generator was busy {generator.busy:.0%} of the time: the server could have done more"
    elif generator.lateness.p99 > plan.max_lateness:
        yield f"one message in a hundred left {generator.lateness.p99 * 1e3:.2f} ms late or later"
