"""Devices that live at their own pace: `fleet`, `soak`, and those that do something to the gateway under them."""

import asyncio
import os
import signal

from bench.load import server
from bench.load.actions import Director
from bench.load.fleet import Fleet
from bench.load.load_context import Agent
from bench.plan import Options
from bench.scenario import OLD_SUITE, Scenario

OUTAGE_SHARE = 0.3
"""Of the run, that Redis is away."""
NO_LOSS = ("plays.lost==0", "play.accepted>=100%")
BACK = ("connected>=95%", "reconnect.accepted>=100%", "reconnect.max<20s", "offline==0", *NO_LOSS)
RETURN = Options(devices=20_000, seconds=45.0, play=60.0, late=0.05)

BUDGET = {"VIZORA_LIMITS__HANDSHAKES_PER_SECOND": "1250"}
"""Two workers share a core, and it with their store: each has half of the default, which is for a core of its own."""

TOLD = {
    'vizora_realtime_limits_exceeded_total{limit="handshakes_per_second"}': "refused",
    "vizora_realtime_eventloop_lag_seconds_max": "lag.max",
}
"""Series of the gateway, and the figures that they become; of several the largest."""


async def load(agent: Agent) -> None:
    fleet = Fleet(agent)
    await fleet.connect()
    await fleet.live()
    await fleet.leave()


async def verify(director: Director) -> None:
    await director.verify_plays()


async def verify_all(director: Director) -> None:
    """What became of the fleet besides: screens that were said to be offline, and what the gateway says of itself."""
    body = await asyncio.to_thread(server.exposition, director.target.endpoint)
    for line in body.splitlines():
        series, _, value = line.rpartition(" ")
        for name, figure in TOLD.items():
            if series.startswith(name):
                director.figures[figure] = max(director.figures.get(figure, 0.0), float(value))
    events = await asyncio.to_thread(director.service.events)
    said = {each["deviceId"] for each in events if each["data"].get("status") == "offline"}
    director.figures["offline"] = len(said)
    await director.verify_plays()


async def stop_store(director: Director) -> None:
    """The store stands still, as one does behind a network that is gone; then it is there again."""
    await director.at((1 - OUTAGE_SHARE) / 2)
    pids = [
        pid
        for pid, process in server.Watch([director.service.pid]).look().items()
        if process.name == server.STORE
    ]  # fmt: skip
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    director.mark("Redis away")
    try:
        await director.at((1 + OUTAGE_SHARE) / 2)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    director.mark("Redis back")


async def kill_worker(director: Director) -> None:
    await director.at(0.4)
    os.kill(director.service.workers()[0], signal.SIGKILL)
    director.mark("worker killed")


async def kill_service(director: Director) -> None:
    """Nobody is told anything: all of them come at once."""
    await restart(director, signal.SIGKILL)


async def stop_service(director: Director) -> None:
    """All of them are told when to come."""
    await restart(director, signal.SIGTERM)


async def restart(director: Director, number: signal.Signals) -> None:
    await director.at(0.1)
    director.mark(f"{number.name} to the service")
    await asyncio.to_thread(director.service.again, number)
    director.mark("it accepts again")


async def roll(director: Director) -> None:
    await director.at(0.2)
    before = set(director.service.workers())
    os.kill(director.service.pid, signal.SIGHUP)
    director.mark("roll begins")
    while before & set(director.service.workers()):  # noqa: ASYNC110 - other people's processes set no event
        await asyncio.sleep(0.1)
    director.figures["roll.seconds"] = round(director.elapsed - director.marks[-1][0], 2)
    director.mark("roll is over")


SCENARIOS = (
    Scenario(
        "fleet",
        "Devices at their own interval, with plays and content errors mixed in",
        load,
        Options(devices=1000, seconds=20.0),
        (*OLD_SUITE, "heartbeat.p99<20ms", "play.p99<100ms", "errors<0.1%", *NO_LOSS),
        verify=verify,
    ),
    Scenario(
        "soak",
        "The same for a quarter of an hour, while devices come and go: nothing grows, nothing leaks, nothing is lost",
        load,
        Options(devices=5000, seconds=900.0, warmup=30.0, churn=20.0),
        (*OLD_SUITE, "errors<0.1%", *NO_LOSS, "memory.growth<5%", "descriptors.growth<=20"),
        verify=verify,
    ),
    Scenario(
        "redis-outage",
        "Redis is away for a third of the run: connections stay, heartbeats are acked, plays wait and none is lost",
        load,
        Options(devices=500, seconds=30.0, interval=2.0, play=5.0),
        (*OLD_SUITE, "errors<0.1%", "ended==0", *NO_LOSS),
        stop_store,
        verify,
        own=True,
        settings={"VIZORA_REDIS__REPLY_TIMEOUT_SECONDS": "1"},
    ),
    Scenario(
        "worker-kill",
        "A worker is killed under its devices: all come back within seconds, and no play is lost",
        load,
        Options(devices=500, seconds=20.0, interval=2.0, play=5.0),
        ("connected>=95%", "acked>=98%", "reconnect.accepted>=100%", "reconnect.max<5s", *NO_LOSS),
        kill_worker,
        verify_all,
        own=True,
        gateway_workers=2,
        settings=BUDGET,
    ),
    Scenario(
        "rolling-restart",
        "SIGHUP rolls the workers under their devices: all are told when to come back, and no play is lost",
        load,
        Options(devices=500, seconds=40.0, interval=2.0, play=5.0),
        ("connected>=95%", "acked>=98%", "reconnect.accepted>=100%", "reconnect.max<10s", *NO_LOSS),
        roll,
        verify_all,
        own=True,
        gateway_workers=2,
        settings={**BUDGET, "VIZORA_SERVER__DRAIN_SECONDS": "5"},
    ),
    Scenario(
        "service-kill",
        "The whole service is killed and started again: all come back unasked, at the rate of the budget",
        load,
        RETURN,
        BACK,
        kill_service,
        verify_all,
        own=True,
        gateway_workers=2,
        settings=BUDGET,
    ),
    Scenario(
        "service-restart",
        "The whole service is stopped and started again: all are told when to come back",
        load,
        RETURN,
        BACK,
        stop_service,
        verify_all,
        own=True,
        gateway_workers=2,
        settings=BUDGET,
    ),
)
