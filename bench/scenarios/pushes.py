"""What the gateway sends of its own: `broadcast`, to all at once; `slow-consumer`, to some who do not read."""

import asyncio
from time import perf_counter_ns
from typing import Any

from bench.load import server
from bench.load.actions import Director
from bench.load.fleet import Fleet
from bench.load.load_context import Agent
from bench.load.tokens import organization
from bench.plan import Options
from bench.scenario import OLD_SUITE, Scenario

SLOW_SHARE = 0.5
"""Of the dashboards of `slow-consumer`, that read nothing."""
NOTICES_A_SECOND = 20.0
NOTICE_BYTES = 32_768
UNSENT_SECONDS = 4
CUT = 'vizora_realtime_ws_disconnects_total{reason="slow_consumer"}'
MOST_DEVICES = 10_000
"""That one call of the control API takes."""


async def load(agent: Agent) -> None:
    fleet = Fleet(agent)
    await fleet.connect()
    await fleet.live(plays=False)
    await fleet.leave()


async def load_slow(agent: Agent) -> None:
    fleet = Fleet(agent, slow=int(len(agent.job.users) * SLOW_SHARE))
    await fleet.connect()
    await fleet.live(plays=False)
    await fleet.leave()


async def broadcast(director: Director) -> None:
    """One command to all devices, then one notice to all dashboards, again and again until the time is over.

    `command.cpu` is what the gateway used between a command's call and its answer, which waits for all acks, over those
    who acked. Heartbeats that come meanwhile are in it.
    """
    watch = server.Watch(director.target.pids)
    rounds, slowest, delivered, used = 0, 0.0, 0, 0.0
    while director.elapsed < director.options.seconds - 1:
        rounds += 1
        command: dict[str, Any] = {"type": "reload", "payload": {"sentAt": perf_counter_ns()}}
        calls: dict[str, Any] = {"deviceIds": director.devices[:MOST_DEVICES], "command": command}
        before = cpu(watch)
        seconds, answer = await timed(director, "/commands/broadcast", calls)
        used += cpu(watch) - before
        slowest = max(slowest, seconds)
        delivered += answer.get("delivered", 0)
        notice = {"title": "bench", "sentAt": perf_counter_ns()}
        calls = {"organizationId": organization(0), "notification": notice}
        await timed(director, "/notifications/broadcast", calls)
        await asyncio.sleep(1.0)
    director.figures |= {"broadcast.rounds": rounds, "broadcast.all_acked": slowest}
    if delivered and used:
        director.figures["command.cpu"] = used / delivered


def cpu(watch: server.Watch) -> float:
    """Seconds that the gateway's processes have used until now."""
    watch.look()
    return sum(watch.used())


async def timed(director: Director, path: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """The seconds that a call took, and its answer."""
    begun = perf_counter_ns()
    status, answer = await director.call("POST", path, body)
    if status not in (200, 202):
        director.notes.append(f"POST {path}: {status} {answer}")
    return (perf_counter_ns() - begun) / 1e9, answer if isinstance(answer, dict) else {}


async def flood(director: Director) -> None:
    """Large notices, more than the slow ones' buffers hold, and what is kept for them."""
    notice = {"title": "x" * NOTICE_BYTES}
    director.mark("notices begin")
    while director.elapsed < director.options.seconds - 1:
        body = {"organizationId": organization(0), "notification": {**notice, "sentAt": perf_counter_ns()}}
        await timed(director, "/notifications/broadcast", body)
        await asyncio.sleep(1 / NOTICES_A_SECOND)


async def count_cut(director: Director) -> None:
    """A client that reads nothing does not see that it was cut off: the gateway's own figures say it."""
    _, text = await director.call("GET", "/metrics")
    for line in bytes(text).decode().splitlines():
        if line.startswith(CUT):
            director.figures["slow.cut"] = float(line.rpartition(" ")[2])


SCENARIOS = (
    Scenario(
        "broadcast",
        "One command to every device and one notice to every dashboard, again and again; the last one counts",
        load,
        Options(devices=1000, dashboards=200, seconds=15.0),
        ("connected>=95%", "command.max<1500ms", "notice.max<150ms", "errors<0.1%"),
        broadcast,
        needs_key=True,
    ),
    Scenario(
        "slow-consumer",
        "Half of the dashboards read nothing while notices come: they are cut off, and nobody else notices",
        load_slow,
        Options(devices=200, dashboards=20, seconds=20.0, interval=1.0),
        (*OLD_SUITE, "heartbeat.p99<50ms", "notice.p99<150ms", "slow.cut>=10", "memory.growth<60%"),
        flood,
        count_cut,
        needs_key=True,
        settings={"VIZORA_LIMITS__UNSENT_SECONDS": str(UNSENT_SECONDS)},
    ),
)
