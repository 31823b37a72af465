"""`scrape`: devices with a series each, and a Prometheus that asks for them: heartbeats must not wait for it.

The first half of the run is without scrapes, the second with one a second, fifteen times as often as usual.
"""

import asyncio
import urllib.request
from time import perf_counter

from bench.load.actions import Director
from bench.load.fleet import Fleet
from bench.load.load_context import Agent
from bench.load.server import base
from bench.plan import Options
from bench.scenario import OLD_SUITE, Scenario

EVERY_SECONDS = 1.0


async def load(agent: Agent) -> None:
    fleet = Fleet(agent)
    await fleet.connect()
    await fleet.live(plays=False)
    await fleet.leave()


def ask(url: str) -> int:
    """As Prometheus asks: gzipped, a twentieth of the text. The bytes that came; raises OSError for an error."""
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept-Encoding": "gzip"}), timeout=10) as answer:
        return len(answer.read())


async def scrape(director: Director) -> None:
    await director.at(0.5)
    director.mark("scrapes begin")
    took, size = [], 0
    while director.elapsed < director.options.seconds - EVERY_SECONDS:
        begun = perf_counter()
        size = await asyncio.to_thread(ask, f"{base(director.target.endpoint)}/metrics")
        took.append(perf_counter() - begun)
        await asyncio.sleep(max(0.0, EVERY_SECONDS - took[-1]))
    director.figures |= {"scrapes": len(took), "scrape.longest": max(took, default=0.0), "scrape.bytes": size}
    director.split = 0.5


SCENARIOS = (
    Scenario(
        "scrape",
        "Prometheus reads a series of every device while they beat; the heartbeats' p99 may rise by 5 ms",
        load,
        Options(devices=2000, rate=1000.0, seconds=20.0, warmup=5.0),
        (*OLD_SUITE, "scrape.rise<5ms", "errors<0.1%"),
        scrape,
    ),
)
