"""The watchdog of systemd, where systemd is not there to be asked: it misses the supervisor's sign of life and acts.

What it does is written in systemd.service(5) and systemd.kill(5): SIGABRT, and when that does not end it, SIGKILL for
all that is left of the service's control group, the embedded store among it; then a start, for `Restart=on-failure`.
"""

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.adversity import Fleet
from tests.net.peers import SECRETS
from tests.net.proxy import Proxy
from tests.service_process import PATIENCE, Service, alive, kill_ours, until
from vizora_rt.net.valkey import server as valkey_server

WATCHDOG_SECONDS = 1.0
ABORT_SECONDS = 0.5
"""In place of TimeoutAbortSec: a process that is stopped does not act on SIGABRT, however long it is given."""


class Manager:
    """The part of systemd that a service talks to."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self.env = {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": str(int(WATCHDOG_SECONDS * 1e6))}

    def miss(self) -> float:
        """Wait until WATCHDOG=1 does not come in time; how many came before."""
        deadline, fed = time.monotonic() + PATIENCE, 0
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                message = self._socket.recv(4096).decode()
            except TimeoutError:
                break
            if message in ("READY=1", "WATCHDOG=1"):
                fed += 1
                deadline = time.monotonic() + WATCHDOG_SECONDS
        return fed

    def end(self, service: Service, group: list[int]) -> None:
        service.signal(signal.SIGABRT)
        time.sleep(ABORT_SECONDS)
        service.signal(signal.SIGKILL)
        for pid in group:
            kill_ours(pid)
        service.join()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


async def test_a_hung_supervisor_is_restarted(tmp_path: Path, manager: Manager) -> None:
    env = {**SECRETS, "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0", "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0"}
    with Service(tmp_path, {**env, **manager.env}, workers=2) as service:
        await asyncio.to_thread(service.start)
        gateway = Proxy(service.port)
        await gateway.open()
        try:
            async with Fleet(gateway.port, 20) as fleet:
                await fleet.online()
                await fleet.beaten()
                group = [*(await asyncio.to_thread(service.workers)), service.wait("embedded store started")["pid"]]
                watching = asyncio.create_task(asyncio.to_thread(manager.miss))
                await fleet.beaten(5)
                assert not watching.done(), "it was fed"
                service.signal(signal.SIGSTOP)
                fleet.show()
                await fleet.beaten()
                assert await watching >= 1
                hung = time.monotonic()
                await asyncio.to_thread(manager.end, service, group)
                await asyncio.to_thread(until, lambda: not any(map(alive, group)))
                await asyncio.to_thread(service.start)
                gateway.target = service.port
                await fleet.online()
                await fleet.beaten()
                fleet.show()
                await fleet.told()
                books: Any = redis.Redis.from_url(
                    valkey_server.running(Path(service.env["VIZORA_STATE_DIR"])), decode_responses=True
                )
                assert fleet.unrecorded(books) == (set(), 0)
                assert fleet.said(books, "offline") == set()
                print(
                    f"supervisor hangs, 20 screens: all back {time.monotonic() - hung:.1f} s after the watchdog barked"
                )
        finally:
            await gateway.close()
