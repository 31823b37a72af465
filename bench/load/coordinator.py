"""Runs one scenario: starts the load processes, gives them a common start and end, looks at the gateway meanwhile,
lets the scenario do its part beside them, and puts together what all of them say.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from time import perf_counter_ns
from typing import Final

from bench.hints import hint
from bench.load import server
from bench.load.actions import Director
from bench.load.load_context import Connects, Measured
from bench.load.tokens import subject
from bench.plan import Job, Options
from bench.report import figures, histogram, schema, thresholds
from bench.report.figures import Look, Measurement
from bench.report.thresholds import Limit
from bench.scenario import Scenario
from bench.target import Target

LEAD_NS: Final = 200_000_000
"""Between the word to begin and the beginning, so that all processes have heard it."""
SETTLE_SECONDS: Final = 0.3
STEP_SECONDS: Final = 0.5
MOST_STEPS: Final = 300
HOST: Final = Path(__file__).parent.parent.parent

Progress = Callable[[str, float, str], None]
"""Is told the phase, which share of it is over, and a word about it."""


class LoadError(Exception):
    """A load process failed, or nothing could connect: there is nothing to report."""


class LoadProcess:
    """One load process from outside."""

    def __init__(self, job: Job, news: Callable[[], None]) -> None:
        near, far = socket.socketpair()
        with far:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "bench.load.load_process", str(far.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(far.fileno(),),
                cwd=HOST,
            )
        self._pipe = Pipe(near.detach())
        self._news = news
        self._loop = asyncio.get_running_loop()
        self._pipe.send(job)
        self._loop.add_reader(self._pipe.fileno(), self._hear)
        os.set_blocking(self._pipe.fileno(), True)  # libuv has it not block, and a message comes in several parts
        loop = self._loop
        self.ready: asyncio.Future[Connects] = loop.create_future()
        self.done: asyncio.Future[Measured] = loop.create_future()
        self.share = 0.0
        self.connections = 0
        self.messages = 0

    def go(self, since: int, until: int, step: int) -> None:
        self._pipe.send(("go", since, until, step))

    def end(self) -> None:
        """It has said all, or nobody wants to hear it any more."""
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        try:
            self._popen.wait(5.0)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        for future in (self.ready, self.done):
            future.cancel()

    def _hear(self) -> None:
        try:
            what, *said = self._pipe.recv()
        except (EOFError, OSError):
            self._loop.remove_reader(self._pipe.fileno())
            self._fail("a load process ended before it was done")
            return
        match what:
            case "progress":
                self.share = said[1]
            case "ready":
                self.ready.set_result(said[0])
            case "tick":
                self.connections, self.messages = said[0], sum(said[1].values())
            case "done":
                self.done.set_result(said[0])
            case "failed":
                self._fail(said[0])
        self._news()

    def _fail(self, why: str) -> None:
        for future in (self.ready, self.done):
            if not future.done():
                future.set_exception(LoadError(why))
                future.exception()  # whoever waits for the other one hears it there


class Conductor:
    """One scenario against one gateway."""

    def __init__(
        self,
        scenario: Scenario,
        options: Options,
        target: Target,
        tokens: Sequence[str],
        users: Sequence[str],
        processes: int,
        cores: Sequence[int],
        progress: Progress,
    ) -> None:
        self._scenario = scenario
        self._options = options
        self._progress = progress
        self._watch = server.Watch(target.pids)
        self._director = Director(target, options, [subject(token) for token in tokens])
        self._step = max(STEP_SECONDS, options.seconds / MOST_STEPS)
        self._loads: list[LoadProcess] = []
        self._jobs = [
            Job(
                scenario.name,
                index,
                processes,
                target.url,
                list(tokens[index::processes]),
                list(users[index::processes]),
                target.key,
                options,
                list(cores),
            )
            for index in range(processes)
        ]
        self._asked = len(tokens) + len(users)

    async def run(self) -> tuple[Measurement, Director]:
        """Raises LoadError."""
        before = self._look()
        try:
            self._loads = [LoadProcess(job, self._connecting) for job in self._jobs]
            connects = await asyncio.gather(*(each.ready for each in self._loads))
            if not sum(each.opened for each in connects):
                failed = sum((each.failed for each in connects), start=type(connects[0].failed)())
                reasons = ", ".join(f"{count:,} {reason}{hint(reason)}" for reason, count in failed.most_common())
                raise LoadError(f"nothing connected: {reasons}")
            await asyncio.sleep(SETTLE_SECONDS)
            connected = self._look()
            looks = await self._measure()
            self._progress("the last answers", 1.0, "")
            measured = await asyncio.gather(*(each.done for each in self._loads))
        finally:
            for each in self._loads:
                each.end()
        director = self._director
        director.plays = [play for each in measured for play in each.plays]
        if self._scenario.storm:
            self._asked = sum(each.opened + each.failed.total() for each in connects)
        self._progress("verifying", 1.0, "")
        await self._scenario.verify(director)
        run = Measurement(
            self._options,
            self._scenario.storm,
            self._asked,
            connects,
            measured,
            before,
            connected,
            looks,
            director.marks,
            director.split,
            director.figures,
        )
        return run, director

    async def _measure(self) -> list[Look]:
        """From the word to begin until the end of the last interval: a look at each of their ends."""
        director, options = self._director, self._options
        director.since = perf_counter_ns() + LEAD_NS + int(options.warmup * 1e9)
        director.until = director.since + int(options.seconds * 1e9)
        for each in self._loads:
            each.go(director.since, director.until, int(self._step * 1e9))
        while (left := (director.since - perf_counter_ns()) / 1e9) > 0:
            self._progress("warming up", 1 - left / (options.warmup + LEAD_NS / 1e9), "")
            await asyncio.sleep(min(left, STEP_SECONDS))
        looks, turn = [self._look()], director.since
        direct = asyncio.ensure_future(self._scenario.direct(director))
        while turn < director.until:
            turn = min(turn + int(self._step * 1e9), director.until)
            await asyncio.sleep(max(0.0, (turn - perf_counter_ns()) / 1e9))
            looks.append(self._look())
            self._measuring(director)
        try:
            async with asyncio.timeout(options.seconds):
                await direct
        except TimeoutError:
            director.notes.append("what was done to the gateway was not over in time")
        return looks

    def _connecting(self) -> None:
        if not all(each.ready.done() for each in self._loads):
            share = sum(each.share for each in self._loads) / max(1, len(self._loads))
            self._progress("connecting", share, f"{int(share * self._asked):,} of {self._asked:,}")

    def _measuring(self, director: Director) -> None:
        connections = sum(each.connections for each in self._loads)
        rate = sum(each.messages for each in self._loads) / self._step
        word = f"{connections:,} connections, {rate:,.0f} messages/s"
        self._progress("measuring", min(1.0, director.elapsed / self._options.seconds), word)

    def _look(self) -> Look:
        found = self._watch.look()
        return Look(time.perf_counter(), found, self._watch.used(), self._watch.used(store=True))


async def conduct(
    scenario: Scenario, limits: Sequence[Limit], conductor: Conductor, options: Options, folder: Path | None
) -> schema.Scenario:
    """Run it, judge it, and write the logs of its latencies into `folder`."""
    started = time.time()
    run, director = await conductor.run()
    names = run.kind_names()
    kinds = [figures.kind(run, name, f"{scenario.name}.{name}.hlog") for name in names]
    if folder is not None:
        for kind in kinds:
            if kind.latency.count:
                histogram.write_log(folder / kind.log, started, figures.logs(run, kind.name))
    found = figures.figures(run, kinds)
    judged = [thresholds.judge(limit, found) for limit in limits]
    generator = figures.generator(run)
    invalid = list(figures.doubts(generator, options))
    failed = any(each.passed is False for each in judged)
    return schema.Scenario(
        name=scenario.name,
        about=scenario.about,
        verdict="invalid" if invalid else "failed" if failed else "passed",
        options=options.told(),
        invalid=invalid,
        notes=director.notes,
        thresholds=judged,
        figures=found,
        counters=dict(figures.counters(run).most_common()),
        kinds=kinds,
        timeline=figures.timeline(run, names),
        generator=generator,
    )


def split_cores() -> tuple[list[int], list[int]]:
    """The gateway's cores and the load's: half each, so that neither is measured in place of the other."""
    cores = sorted(os.sched_getaffinity(0))
    half = len(cores) // 2
    return (cores[:half], cores[half:]) if half else ([], [])
