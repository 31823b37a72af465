"""What a scenario's load works with in a load process: its job, its recorder, and the common clock.

Times are the machine's monotonic clock, which all processes share: their intervals are the same ones.
"""

import asyncio
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from time import perf_counter_ns
from typing import Any, Final

from bench.load import server
from bench.load.counters import Interval, Recorder, Tally
from bench.load.engine import Engine
from bench.plan import Job
from bench.report.histogram import Counts, Latencies
from vizora_rt.client.websocket import parse_url

GRACE_SECONDS: Final = 2.0
"""How long answers are waited for when the last message is sent."""
TOLD_SECONDS: Final = 0.5


@dataclass(slots=True)
class Connects:
    """The connect phase of one process. Latencies count from the time at which each connect was due."""

    opened: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    counts: Counts = field(default_factory=dict)


@dataclass(slots=True)
class Measured:
    """All of one process. The last interval is that of the answers after the end. `plays` are (device, boot, acked).

    `busy` is the share of all the time, `busiest` that of one interval: 0 for who spins so as to be on time.
    """

    intervals: list[Interval]
    busy: float
    busiest: float
    waited: float
    plays: list[tuple[str, str, int]]


class Agent:
    """One load process, as its scenario sees it."""

    def __init__(self, job: Job, pipe: Pipe) -> None:
        self.job = job
        self.options = job.options
        self.endpoint = parse_url(job.url)
        self.recorder = Recorder()
        self.plays: list[tuple[str, str, int]] = []
        self.until = 0
        self.spins = False
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._going: asyncio.Future[tuple[int, int, int]] = self._loop.create_future()
        self._intervals: list[Interval] = []
        self._told = 0.0
        self._loop.add_reader(pipe.fileno(), self._hear)
        os.set_blocking(pipe.fileno(), True)  # libuv has it not block, and a message comes in several parts
        self._measuring: asyncio.Task[None] | None = None

    # What a load does, in this order.

    def progress(self, phase: str, share: float) -> None:
        if time.monotonic() - self._told > TOLD_SECONDS:
            self._told = time.monotonic()
            self._pipe.send(("progress", phase, share))

    async def ready(self, connects: Connects) -> None:
        """Tell what has connected; returns when the load is to begin, which is the warm-up."""
        self._pipe.send(("ready", connects))
        since, self.until, step = await self._going
        self.recorder.begin(since)
        self._measuring = self._loop.create_task(self._measure(since, step))

    async def connected(self, engine: Engine) -> None:
        """The connect phase of who only needs connections: all at the ramp's rate, then `ready`."""
        self.recorder.connections = lambda: sum(1 for each in engine.connections if not each.gone.done())
        await engine.connect(self.job.tokens, self.options.ramp * self.job.share, self.progress)
        await self.ready(Connects(len(engine.connections), engine.failed, engine.handshakes.counts))

    async def began(self) -> None:
        """Returns when the warm-up is over, for who needs none."""
        await asyncio.sleep(max(0.0, (self.recorder.since - perf_counter_ns()) / 1e9))

    async def over(self) -> None:
        """Returns when the last message is to be sent, and the last interval is taken."""
        assert self._measuring is not None
        await self._measuring

    async def answered(self, *tallies: Tally, seconds: float = GRACE_SECONDS) -> None:
        """Wait for the answers that are still on their way."""
        end = time.monotonic() + seconds
        # An event would cost every message what this costs once.
        while any(each.answered < each.sent for each in tallies) and time.monotonic() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def finish(self) -> None:
        """Hand over what was measured."""
        self._intervals.append(self.recorder.take())
        self._pipe.send(("done", Measured(self._intervals, self._busy, self._busiest, self._waited, self.plays)))

    # The machinery.

    def _hear(self) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            raise SystemExit(1) from None
        if message[0] == "go" and not self._going.done():
            self._going.set_result(message[1:])

    async def _measure(self, since: int, step: int) -> None:
        """Take an interval at each step from the common start to the common end."""
        await asyncio.sleep((since - perf_counter_ns()) / 1e9)
        self.recorder.lateness = Latencies()
        ran, waited, begun = time.process_time(), server.waited(), time.perf_counter()
        turn, self._busiest = since, 0.0
        while turn < self.until:
            turn = min(turn + step, self.until)
            before, at = time.process_time(), time.perf_counter()
            await asyncio.sleep((turn - perf_counter_ns()) / 1e9)
            busy = (time.process_time() - before) / max(1e-3, time.perf_counter() - at)
            self._busiest = 0.0 if self.spins else max(self._busiest, busy)
            interval = self.recorder.take()
            self._intervals.append(interval)
            elapsed = time.perf_counter() - begun
            self._busy = (time.process_time() - ran) / elapsed
            self._waited = (server.waited() - waited) / elapsed
            self._pipe.send(("tick", interval.connections, told(interval)))


def told(interval: Interval) -> dict[str, Any]:
    """What the progress bar shows of an interval."""
    return {name: taken.messages for name, taken in interval.kinds.items() if taken.messages}
