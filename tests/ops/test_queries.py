"""Every panel, every runbook and every query of the owner's shows something: on a real Prometheus, of a real fleet.

The fleet plays, and has all kinds of trouble, because a query about errors is empty where there are none.
"""

import asyncio
import math
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import seed
from tests.ops.test_contract import Use, of_dashboards, of_pages
from tests.tools import tool
from vizora_rt.ops import drill, faults, monitors
from vizora_rt.ops.monitors import Program
from vizora_rt.ops.site import Sandbox, many_threads, until
from vizora_rt.wire.resp import pack

OPS = Path(__file__).parent.parent.parent / "ops"

ENV = {
    **faults.NO_RATES,
    "VIZORA_LIMITS__UNSENT_SECONDS": "1",
    "VIZORA_PRESENCE__OFFLINE_AFTER_SECONDS": "2",
    # Less than there are devices.
    "VIZORA_METRICS__MAX_DEVICE_SERIES": "20",
}


class Answer(NamedTuple):
    """What a query gave: how many series, and how many of their values are numbers."""

    use: Use
    series: int
    numbers: int


def asked() -> list[Use]:
    """All but the conditions of alerts, which are empty where all is well. Each expression once."""
    of_the_owner = [Use(f"seed: {title}", expr) for title, expr in {**seed.PANELS, **seed.QUERIES}.items()]
    uses = {use.expr: use for use in (*of_pages(), *of_dashboards(), *of_the_owner)}
    return list(uses.values())


async def plays(site: Sandbox) -> None:
    """Screens of two organisations that show one content after the other; two are switched off after a while."""
    screens = [*site.screens(8), *site.screens(4, "beta")]
    for turn in range(1_000_000):
        for screen in screens:
            screen.play_ended(screen.play_started("menu"), "menu", duration=1)
        if turn == 3:
            await site.dismiss(2)
        await asyncio.sleep(1)


async def mishaps(site: Sandbox) -> None:
    """What goes wrong once a second: contents, plays that come twice, tokens, sizes, what a dashboard may not send."""
    stream = b"vz:{p:0}:plays"
    await asyncio.to_thread(site.redis, pack("XGROUP", "CREATE", stream, "billing", "0", "MKSTREAM"))
    wire = await site.wire("mishap")
    play = {"contentId": "menu", "play": {"boot": "mishap", "seq": 1}}
    while True:
        wire.say("content:error", {"contentId": "menu", "errorType": "decode_error"})
        wire.say("content:impression", play)
        wire.say("playlist:request", {})
        wire.say("no:event", {})
        big = await site.wire("big")
        big.say("heartbeat", {"appVersion": "x" * 70_000})
        await big.ended()
        await site.api("/internal/command", {"deviceId": "acme-3", "command": {"type": "reload"}})
        await site.api("/notifications/broadcast", {"organizationId": "acme", "notification": {"text": "hello"}})
        await wrong_key(site)
        await asyncio.sleep(1)


async def wrong_key(site: Sandbox) -> None:
    """A backend that was given another environment's key."""
    with suppress(OSError):
        await asyncio.to_thread(monitors.get, f"{site.url}/devices/lobby", {"x-internal-api-key": "wrong"})


async def full_store(site: Sandbox) -> None:
    """Redis refuses writes for a second, again and again."""
    while True:
        await asyncio.sleep(4)
        try:
            async with asyncio.timeout(1):
                await faults.calls_fail(site)
        except TimeoutError:
            pass


async def lose_a_worker(site: Sandbox) -> None:
    """Before there are clients, whom it would take away."""
    before = await asyncio.to_thread(site.workers)
    os.kill(before[0], signal.SIGKILL)

    def replaced() -> bool:
        now = site.workers()
        return len(now) == len(before) and now != before

    await until(replaced)


TROUBLE = (
    plays, mishaps, full_store, faults.bad_heartbeats, faults.new_fields, faults.one_identity,
    faults.plays_get_lost, faults.commands_expire, faults.nobody_reads, faults.wrong_tokens,
)  # fmt: skip


async def answers(prometheus: Program) -> list[Answer]:
    def ask() -> list[Answer]:
        found = []
        for use in asked():
            values = [value for _, value in monitors.query(prometheus, use.expr)]
            found.append(Answer(use, len(values), sum(not math.isnan(value) for value in values)))
        return found

    return await asyncio.to_thread(ask)


def table(found: list[Answer]) -> str:
    rows = [f"{each.series:5} {each.numbers:5}  {each.use.where}: {' '.join(each.use.expr.split())}" for each in found]
    return "\n".join(("series numbers  query", *rows))


async def show(folder: Path, patience: float, seconds: float) -> list[Answer]:
    """The answers after `seconds`, or as soon as all are there."""
    many_threads()
    async with drill.watched(OPS, folder, ENV) as watch:
        await lose_a_worker(watch.site)
        trouble = asyncio.ensure_future(faults.together(*(each(watch.site) for each in TROUBLE)))
        try:
            await asyncio.sleep(seconds)
            deadline = asyncio.get_running_loop().time() + patience
            while True:
                assert not trouble.done(), trouble.exception()
                found = await answers(watch.prometheus)
                if all(each.numbers for each in found) or asyncio.get_running_loop().time() > deadline:
                    return found
                await asyncio.sleep(1)
        finally:
            trouble.cancel()
            await asyncio.wait([trouble])


@pytest.mark.parametrize("seconds", [0, pytest.param(120, marks=pytest.mark.soak)])
async def test_every_query_returns_data(tmp_path: Path, seconds: float) -> None:
    tool("prometheus")
    tool("prometheus-alertmanager")
    found = await show(tmp_path, 60 if not seconds else 0, seconds)
    print(table(found))
    assert len(found) > 120
    assert [f"{each.use.where}: {each.use.expr}" for each in found if not each.numbers] == []
