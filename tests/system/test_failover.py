"""A master dies under the whole gateway, and Sentinels make its replica the master: nobody is disconnected, and what is
lost is what had not been replicated."""

import asyncio
import json
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.adversity import PATIENCE, Fleet, Screen, recorded
from tests.net.backend import call
from tests.net.valkeys import Guarded, Valkeys
from tests.service_process import Service
from tests.system.test_faults import current, logged, serving
from vizora_rt.client.websocket import WebSocket

COUNT = 200


class Watchful(Screen):
    """Knows for how long at most it had no ack of a heartbeat."""

    __slots__ = ("heard", "silence")

    def __init__(self, fleet: Fleet, name: str) -> None:
        super().__init__(fleet, name)
        self.heard = self.silence = 0.0

    def received(self, socket: WebSocket, text: str) -> None:
        if '"nextHeartbeatIn"' in text:
            now = time.monotonic()
            self.silence = max(self.silence, now - (self.heard or now))
            self.heard = now
        super().received(socket, text)


class Backend:
    """Gives a command to the whole fleet, and then the next one, each until the gateway says that it has it."""

    def __init__(self, service: Service, fleet: Fleet) -> None:
        self.service = service
        self.fleet = fleet
        self.taken: list[str] = []
        self.refused = 0
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self.give(uuid.uuid4().hex)
            await asyncio.sleep(0.2)

    async def give(self, command_id: str) -> None:
        command = {"type": "reload", "commandId": command_id}
        body = {"deviceIds": self.fleet.names, "command": command}
        while True:
            answer = await call(self.service, "POST", "/commands/broadcast", body)
            # A broadcast that met the failover half way says how many could not be given it.
            if answer.status in (200, 202) and not answer.body["failed"]:
                self.taken.append(command_id)
                return
            assert answer.status == 503 or set(answer.body["failures"].values()) == {"the store did not answer"}, answer
            self.refused += 1
            await asyncio.sleep(0.2)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()

    def obeyed(self, command_id: str) -> bool:
        return all(screen.commands[command_id] for screen in self.fleet.screens)


async def caught_up(guarded: Guarded) -> None:
    """What the master had when this was asked, its replica has."""
    written = int((await asyncio.to_thread(guarded.master.tell, "ROLE"))[1])
    async with asyncio.timeout(PATIENCE):
        while int((await asyncio.to_thread(guarded.replica.tell, "ROLE"))[4]) < written:
            await asyncio.sleep(0.01)


async def fall_behind(guarded: Guarded) -> None:
    """The replica loses its master and must copy all of it anew, which its master is in no hurry to give."""
    master = guarded.master
    master.tell("CONFIG", "SET", "repl-diskless-sync-delay", 3600)
    master.tell("CONFIG", "SET", "repl-backlog-size", 16_384)
    guarded.replica.signal(signal.SIGSTOP)
    master.tell("CLIENT", "KILL", "TYPE", "replica")
    start = int(master.tell("ROLE")[1])
    async with asyncio.timeout(PATIENCE):
        while int((await asyncio.to_thread(master.tell, "ROLE"))[1]) < start + 65_536:
            await asyncio.sleep(0.01)
    guarded.replica.signal(signal.SIGCONT)


def acked(fleet: Fleet) -> set[tuple[str, int]]:
    held = {(s.plays.boot, json.loads(entry)["seq"]) for s in fleet.screens for entry in s.plays.queue}
    return {play for screen in fleet.screens for play in screen.shown} - held


async def holes(service: Service, screen: Screen) -> set[tuple[str, int]]:
    """Plays that the gateway says are missing."""
    answer = await call(service, "GET", f"/devices/{screen.name}/plays")
    return {
        (boot["boot"], number)
        for boot in answer.body["boots"]
        for low, high in boot["holes"]
        for number in range(low, high + 1)
    }


@pytest.mark.soak
@pytest.mark.parametrize("behind", [False, True], ids=["replicated", "behind"])
async def test_a_master_dies_and_sentinels_promote_its_replica(tmp_path: Path, behind: bool) -> None:
    with Valkeys(tmp_path) as valkeys:
        guarded = valkeys.guarded()
        async with (
            serving(tmp_path, None, 2, REDIS_URL=guarded.url) as service,
            Fleet(service.port, COUNT, kind=Watchful) as fleet,
        ):
            await fleet.online()
            await fleet.beaten()
            backend = Backend(service, fleet)
            for _ in range(3):
                fleet.show()
                await fleet.beaten()
            safe, safe_commands = acked(fleet), list(backend.taken)
            await caught_up(guarded)
            if behind:
                await fall_behind(guarded)
                fleet.show()
                await fleet.told()
            fleet.show()
            guarded.master.kill()
            killed = time.monotonic()
            degraded = fleet.degraded
            while await asyncio.to_thread(guarded.named) != guarded.replica.port:
                fleet.show()
                await fleet.beaten()
            promoted = time.monotonic() - killed
            await logged(service, "redis is up", 4)
            up = time.monotonic() - killed
            assert fleet.degraded - degraded >= COUNT
            fleet.show()
            await fleet.told()
            told = time.monotonic() - killed
            with redis.Redis("127.0.0.1", guarded.replica.port, decode_responses=True) as books:
                await settle(service, fleet, backend, books, safe, safe_commands, behind)
                lost, _ = fleet.unrecorded(books)
            silence = max(screen.silence for screen in fleet.screens)  # type: ignore[attr-defined]
            print(
                f"failover, {COUNT} screens: promoted {promoted:.1f} s after the kill, both workers there {up:.1f} s, "
                f"all plays acked {told:.1f} s; 0 disconnected, {fleet.degraded} degraded acks, longest without one "
                f"{silence:.1f} s; {len(lost)} of {len(acked(fleet))} acked plays lost, {backend.refused} commands "
                f"given again, {len(backend.taken)} taken"
            )


async def settle(
    service: Service, fleet: Fleet, backend: Backend, books: Any, safe: set[Any], commands: list[str], behind: bool
) -> None:
    """What must be true when the new master is there."""
    back = time.monotonic()
    await backend.stop()
    await backend.give("afterwards")
    await fleet.until(lambda: backend.obeyed("afterwards"))
    assert commands and all(backend.obeyed(command_id) for command_id in commands)
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(current, books, fleet.screens, back):
            await asyncio.sleep(0.1)
    assert fleet.connects == COUNT and not fleet.endings, fleet.endings
    assert fleet.said(books, "offline") == set()
    lost, twice = fleet.unrecorded(books)
    assert twice == 0
    assert not lost & safe, "a play that was acked and replicated is lost"
    assert bool(lost) or not behind
    told = [await holes(service, screen) for screen in fleet.screens]
    there = {(boot, seq) for boot, seq, _ in recorded(books, set(fleet.names))}
    assert lost - there == set().union(*told), "what is lost is not what is told to be missing"
