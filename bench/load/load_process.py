"""A load process: `python -m bench.load.load_process FD`, started by the conductor, which it hears on that socket.

It runs its share of a scenario and ends; it also ends when the conductor does.
"""

import asyncio
import contextlib
import os
import resource
import sys
from multiprocessing.connection import Connection as Pipe

import uvloop

from bench.load.engine import undisturbed
from bench.load.load_context import Agent
from bench.plan import Job
from bench.scenarios import catalogue


async def run(job: Job, pipe: Pipe) -> None:
    agent = Agent(job, pipe)
    with undisturbed():
        load = asyncio.ensure_future(catalogue.SCENARIOS[job.scenario].load(agent))
        try:
            await load
            agent.finish()
        except Exception as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}"))
            raise


def main() -> None:
    pipe = Pipe(int(sys.argv[1]))
    job: Job = pipe.recv()
    if job.cores:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, job.cores)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(run(job, pipe))


if __name__ == "__main__":
    main()
