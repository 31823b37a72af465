"""Plays through the service: how many a second are recorded and acked, one a message or in batches, and at what cost.

    DEVICE_JWT_SECRET=... taskset -c 1 python -m bench.plays --devices 50 --batch 200

A closed loop: each device sends its next message when the last is acked. Every play is new and numbered, with a start
and an end; what is acked is in Redis. Set VIZORA_LIMITS__MESSAGES_PER_MINUTE=0 for the service.
"""

import asyncio
import os
import time
from time import perf_counter_ns
from typing import Any

import click
import uvloop

from bench import server, tokens
from bench.engine import Connection, Engine, undisturbed
from vizora_rt.net.dial import Endpoint, parse_url
from vizora_rt.wire.frames import TEXT, encode_masked
from vizora_rt.wire.messages import dumps, encode

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
    now = time.time_ns() // 1_000_000
    entries: list[dict[str, Any]] = []
    for number in range(first, first + batch):
        entry = {"contentId": "content-1", "playlistId": "playlist-1", "timestamp": now}
        if number % 2:
            entry |= {"duration": 30, "completionPercentage": 100}
        entries.append({**entry, "seq": number // 2 + 1, "phase": "end" if number % 2 else "start"})
    if batch > 1:
        text = encode("content:impressions", dumps({"boot": BOOT, "plays": entries}), 1)
    else:
        seq, phase = entries[0].pop("seq"), entries[0].pop("phase")
        text = encode(
            "content:impression", dumps({**entries[0], "play": {"boot": BOOT, "seq": seq, "phase": phase}}), 1
        )
    return encode_masked(TEXT, text, os.urandom(4))


async def run(endpoint: Endpoint, names: list[str], batch: int, seconds: float) -> str:
    pids = await asyncio.to_thread(server.pids, endpoint)
    engine = Engine(endpoint, PlaysLoop(batch))
    await engine.connect(names, 1000.0, lambda phase, share: None)
    with undisturbed():
        engine.pace.start(engine)
        await asyncio.sleep(1.0)
        engine.reset()
        before = server.sample(pids)
        await asyncio.sleep(seconds)
        after, tally = server.sample(pids), engine.tally
        answered, accepted = tally.answered, tally.accepted
        engine.pace.stop()
    await engine.leave()
    elapsed, latencies = after.at - before.at, tally.latencies.quantiles()
    cpu = after.server.user + after.server.system - before.server.user - before.server.system
    return (
        f"{len(engine.connections)} devices, {batch} entries a message: {answered / elapsed:,.0f} messages/s, "
        f"{accepted * batch / elapsed:,.0f} entries/s, refused {dict(tally.refused)}, "
        f"p50 {latencies.p50 * 1e3:.2f} ms, p99 {latencies.p99 * 1e3:.2f} ms, "
        f"server CPU {cpu / max(1, answered) * 1e6:.1f} us a message, {cpu / max(1, answered * batch) * 1e6:.2f} us "
        f"an entry, generator {(after.ran - before.ran) / elapsed:.0%} busy"
    )


@click.command()
@click.option("--url", default="ws://127.0.0.1:3001/ws", show_default=True)
@click.option("--devices", default=50, show_default=True)
@click.option("--batch", default=1, show_default=True, type=click.IntRange(1, 200), help="Starts and ends a message.")
@click.option("--seconds", default=5.0, show_default=True)
def main(url: str, devices: int, batch: int, seconds: float) -> None:
    """Example: DEVICE_JWT_SECRET=... python -m bench.plays --devices 50 --batch 200"""
    names = tokens.mint(os.environ["DEVICE_JWT_SECRET"], devices)
    click.echo(uvloop.run(run(parse_url(url), names, batch, seconds)))


if __name__ == "__main__":
    main()
