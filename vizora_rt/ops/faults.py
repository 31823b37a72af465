"""What can go wrong, done to a real gateway: one fault for each alert.

A fault runs until it is cancelled, and leaves the site able to recover. `env` is what the gateway needs to be started
with: a limit of the service within reach, never another threshold of an alert.

Over 300 lines because it has one fault for each alert.
"""

import asyncio
import contextlib
import os
import signal
from asyncio import StreamWriter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from vizora_rt.ops.site import Sandbox, Wire
from vizora_rt.wire.resp import pack

SECOND = 1.0
BLOCK = 512 << 20
"""The longest string that Redis keeps."""
PLAYS = 520_000
"""Over half of the default of plays.max_entries."""
PLAYERS = 8
BATCH = 200
"""Plays that a message may have."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`screens` are online before it begins."""

    about: str
    run: Callable[[Sandbox], Awaitable[None]]
    env: Mapping[str, str] = field(default_factory=dict)
    screens: int = 3
    workers: int = 2


async def forever() -> None:
    await asyncio.Event().wait()


async def redis_hangs(site: Sandbox) -> None:
    pid = await asyncio.to_thread(site.store_pid)
    os.kill(pid, signal.SIGSTOP)
    try:
        await forever()
    finally:
        os.kill(pid, signal.SIGCONT)


async def calls_fail(site: Sandbox) -> None:
    """The store is full, and backends go on calling. It is not away: RedisDown would hide what follows from it."""
    await asyncio.to_thread(site.redis, pack("CONFIG", "SET", "maxmemory", "1"))
    try:
        while True:
            await site.api("/push/playlist", {"deviceId": "acme-0", "playlist": {"items": []}})
            await asyncio.sleep(0.2)
    finally:
        await asyncio.shield(asyncio.to_thread(site.redis, pack("CONFIG", "SET", "maxmemory", "0")))


async def redis_evicts(site: Sandbox) -> None:
    await asyncio.to_thread(site.redis, pack("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"))
    try:
        await forever()
    finally:
        await asyncio.shield(asyncio.to_thread(site.redis, pack("CONFIG", "SET", "maxmemory-policy", "noeviction")))


async def calls_wait(site: Sandbox) -> None:
    """The store stands still for most of each second, and calls that need it stand with it."""
    pid = await asyncio.to_thread(site.store_pid)

    async def stutter() -> None:
        try:
            while True:
                os.kill(pid, signal.SIGSTOP)
                await asyncio.sleep(0.9)
                os.kill(pid, signal.SIGCONT)
                await asyncio.sleep(0.05)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def caller() -> None:
        while True:
            await site.api("/devices/acme-0")

    await together(stutter(), *(caller() for _ in range(8)))


async def bad_heartbeats(site: Sandbox) -> None:
    """Every second one is good: a player that is half understood."""
    wire = await site.wire("broken")
    try:
        while True:
            wire.say("heartbeat", {})
            wire.say("heartbeat", "no object")
            await asyncio.sleep(0.05)
    finally:
        await wire.close()


async def wrong_tokens(site: Sandbox) -> None:
    """A player that was given another environment's token, and does not take the answer for one."""
    while True:
        wire = Wire(site.ws, "nonsense")
        await wire.opened()
        await wire.close()
        await asyncio.sleep(0.05)


async def new_fields(site: Sandbox) -> None:
    wire = await site.wire("novel")
    try:
        while True:
            wire.say("heartbeat", {"brightness": 7})
            await asyncio.sleep(0.05)
    finally:
        await wire.close()


async def connections_drop(site: Sandbox) -> None:
    while True:
        wire = await site.wire("restless")
        await wire.close()


async def connections_drop_everywhere(site: Sandbox) -> None:
    """A few in each of many organisations: none is worth an alert alone."""

    async def restless(organization: str) -> None:
        while True:
            wire = await site.wire(f"restless-{organization}", organization)
            await wire.close()
            await asyncio.sleep(0.5 * SECOND)

    await together(*(restless(f"tenant-{number}") for number in range(20)))


async def one_identity(site: Sandbox) -> None:
    """Two screens with one token; whoever is evicted comes back at once."""

    async def stubborn() -> None:
        while True:
            wire = await site.wire("twin")
            try:
                await wire.ended()
            finally:
                await wire.close()
            await asyncio.sleep(0.2)

    await together(stubborn(), stubborn())


async def memory_grows(site: Sandbox, blocks: int) -> None:
    """Half a GiB a block in the embedded store, which is a process of the service. Zeros: its log stays small."""
    keys = [b"drill:%d" % number for number in range(blocks)]
    for key in keys:
        await asyncio.to_thread(site.redis, pack("SETRANGE", key, BLOCK - 1, "0"))
    try:
        await forever()
    finally:
        await asyncio.shield(asyncio.to_thread(site.redis, pack("DEL", *keys)))


async def service_ends(site: Sandbox) -> None:
    env = site.env
    await site.stop()
    try:
        await forever()
    finally:
        await asyncio.shield(site.start(env))


async def workers_die(site: Sandbox) -> None:
    for _ in range(5):
        await kill_one(site)
        await asyncio.sleep(SECOND)
    await forever()


async def kill_one(site: Sandbox) -> None:
    with contextlib.suppress(OSError):
        pids = await asyncio.to_thread(site.workers)
        if pids:
            os.kill(pids[0], signal.SIGKILL)


async def loop_stalls(site: Sandbox) -> None:
    pid = (await asyncio.to_thread(site.workers))[0]
    try:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.35)
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.4)
    finally:
        os.kill(pid, signal.SIGCONT)


async def screens_leave(site: Sandbox) -> None:
    await site.dismiss(8)
    try:
        await forever()
    finally:
        site.screens(8)


async def plays_get_lost(site: Sandbox) -> None:
    """The first play of a player has the number 1, the next one 200."""
    wire = await site.wire("forgetful")
    try:
        for number in (1, 200):
            play = {"boot": "drill", "seq": number, "phase": "end"}
            wire.say("content:impression", {"contentId": "menu", "play": play})
        await forever()
    finally:
        plays = [{"contentId": "menu", "seq": number, "phase": "end"} for number in range(2, 200)]
        wire.say("content:impressions", {"boot": "drill", "plays": plays})
        await asyncio.sleep(SECOND)
        await wire.close()


async def crowd(site: Sandbox) -> None:
    wires = [await site.wire(f"crowd-{number}") for number in range(19)]
    try:
        await forever()
    finally:
        for wire in wires:
            await wire.close()


async def commands_expire(site: Sandbox) -> None:
    """Commands for screens that are off, and stay so."""
    command = {"type": "reload", "ttl": 1}
    while True:
        await site.api("/commands/broadcast", {"deviceIds": [f"dark-{n}" for n in range(8)], "command": command})
        await asyncio.sleep(SECOND)


async def backlog(site: Sandbox) -> None:
    """A group that nobody reads for, and players who deliver over half a million plays."""
    stream = b"vz:{p:0}:plays"
    await asyncio.to_thread(site.redis, pack("XGROUP", "CREATE", stream, "drill", "0", "MKSTREAM"))
    await asyncio.gather(*(deliver(site, f"busy-{number}", PLAYS // PLAYERS) for number in range(PLAYERS)))
    try:
        await forever()
    finally:
        await asyncio.shield(asyncio.to_thread(site.redis, pack("XGROUP", "DESTROY", stream, "drill")))


async def deliver(site: Sandbox, device: str, count: int) -> None:
    """A player that was offline for long sends its plays."""
    wire = await site.wire(device)
    try:
        for first in range(1, count + 1, BATCH):
            plays = [{"contentId": "menu", "seq": number, "phase": "end"} for number in range(first, first + BATCH)]
            await wire.ask("content:impressions", {"boot": "drill", "plays": plays})
    finally:
        await wire.close()


async def nobody_reads(site: Sandbox) -> None:
    """Dashboards that fell asleep with their connections open, and notices as large as the API takes them."""
    notice = {"organizationId": "acme", "notification": {"text": "x" * 900_000}}
    while True:
        asleep: list[StreamWriter] = []
        try:
            for number in range(40):
                asleep += [await site.deaf(f"ann-{number}")]
            # The kernel takes some MB for each before anything waits in the gateway.
            for _ in range(12):
                await site.api("/notifications/broadcast", notice)
                await asyncio.sleep(0.2)
            await asyncio.sleep(2 * SECOND)
        finally:
            for writer in asleep:
                writer.transport.abort()
            await asyncio.gather(*(writer.wait_closed() for writer in asleep), return_exceptions=True)


async def many_screens(site: Sandbox) -> None:
    wires = [await site.wire(f"more-{number}") for number in range(3)]
    try:
        while True:
            for wire in wires:
                wire.say("heartbeat", {})
            await asyncio.sleep(0.5)
    finally:
        for wire in wires:
            await wire.close()


async def together(*all_of: Awaitable[None]) -> None:
    tasks = [asyncio.ensure_future(each) for each in all_of]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


NO_RATES = {"VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0", "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0"}
IMPATIENT = {"VIZORA_REDIS__REPLY_TIMEOUT_SECONDS": "1"}

FAULTS = {
    "HighErrorRate": Fault("the store is full while backends push playlists", calls_fail),
    "HeartbeatFailures": Fault("every second heartbeat of a player is no object", bad_heartbeats, NO_RATES),
    "HighLatency": Fault("the store stands still for most of each second", calls_wait),
    "ConnectionDrops": Fault("a screen connects and leaves, again and again", connections_drop, NO_RATES),
    "ConnectionDrops/fleet": Fault(
        "a screen of each of 20 organisations connects and leaves", connections_drop_everywhere, NO_RATES
    ),
    "HighMemoryUsage": Fault("the embedded store grows over 1 GiB", partial(memory_grows, blocks=3)),
    "ServiceDown": Fault("the service is stopped", service_ends, screens=0),
    "WorkerCrashLoop": Fault("workers are killed, one a second", workers_die),
    "RedisDown": Fault("the store hangs", redis_hangs, IMPATIENT),
    "EventLoopLag": Fault("a worker is stopped for 0.35 s, again and again", loop_stalls),
    "HeartbeatsRefused": Fault("every second heartbeat of a player is no object", bad_heartbeats, NO_RATES),
    "HandshakesRefused": Fault("a player with a wrong token comes back, again and again", wrong_tokens),
    "FieldsIgnored": Fault("a player sends a field that is new", new_fields, NO_RATES),
    "DevicesOffline": Fault("8 of 12 screens are switched off", screens_leave, screens=12),
    "PlaysMissing": Fault("a player's plays 2 to 199 do not come", plays_get_lost),
    "SlowConsumers": Fault(
        "40 dashboards do not read what they are sent", nobody_reads, {"VIZORA_LIMITS__UNSENT_SECONDS": "1"}
    ),
    "ConnectionsNearLimit": Fault(
        "19 connections where 20 fit", crowd, {"VIZORA_LIMITS__MAX_CONNECTIONS": "20"}, screens=0, workers=1
    ),
    "CommandsExpiring": Fault("commands are sent to screens that are off", commands_expire),
    "StoreMemory": Fault("the embedded store grows over 2 GiB", partial(memory_grows, blocks=5)),
    "RedisEvicts": Fault("the store's maxmemory-policy is allkeys-lru", redis_evicts),
    "PlaysBacklog": Fault(
        "half a million plays that a group does not read", backlog, {**NO_RATES, "VIZORA_PLAYS__PARTITIONS": "1"}
    ),
    "DuplicateIdentity": Fault("two screens with one token", one_identity, NO_RATES),
    "DeviceSeriesCapped": Fault(
        "more screens than series", many_screens, {"VIZORA_METRICS__MAX_DEVICE_SERIES": "2"}, screens=1
    ),
}
"""By alert, all of them. `/` is before a form that has a fault of its own."""
