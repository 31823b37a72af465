"""Keeps the embedded store running for a service: starts it, watches its process, starts it again, stops it last.

`net/embedded` blocks; this is its face towards an event loop.
"""

import asyncio
import os
import threading
from pathlib import Path

from vizora_rt.errors import StartupError
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.quiet import Quiet

RETRY_SECONDS = 1.0
"""Between two starts, at least: one whose disk is full ends with its first write, each time."""

log = logs.logger("embedded")


class Keeper:
    """One store, from `start` to `stop`. Its URL stays the same however often it is started again."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._store: EmbeddedServer | None = None
        self._pidfd = -1
        self._task: asyncio.Task[None] | None = None
        self._started = self._loop.time()
        self._stopping = False
        self._quiet = Quiet()
        self._abandoned = threading.Event()

    @property
    def url(self) -> str:
        return self._store.url if self._store is not None else ""

    @property
    def pid(self) -> int:
        return self._store.pid if self._store is not None else 0

    async def start(self, state_dir: Path) -> None:
        """Start or adopt the store of `state_dir`. Raises UnavailableError."""
        self._store = await asyncio.to_thread(valkey_server.start, state_dir, self._abandoned)
        self._watch(self._store)

    def abandon(self) -> None:
        """The service is told to stop: a `start` that is under way ends with UnavailableError."""
        self._abandoned.set()

    async def stop(self) -> None:
        self._stopping = True
        self.abandon()
        self._unwatch()
        if self._task is not None:
            await asyncio.wait([self._task])
            self._unwatch()
        if self._store is not None:
            await asyncio.to_thread(self._store.stop)

    def _watch(self, store: EmbeddedServer) -> None:
        try:
            self._pidfd = os.pidfd_open(store.pid)
        except ProcessLookupError:
            self._on_exit()
        else:
            self._loop.add_reader(self._pidfd, self._on_exit)

    def _unwatch(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _on_exit(self) -> None:
        self._unwatch()
        if not self._stopping:
            # A store may load its data for long; nobody waits for it here.
            self._task = self._loop.create_task(self._restart())

    async def _restart(self) -> None:
        assert self._store is not None
        while True:
            await asyncio.sleep(max(0.0, self._started + RETRY_SECONDS - self._loop.time()))
            if self._stopping:
                return
            self._started = self._loop.time()
            if self._quiet.may_say("ended"):
                log.error("embedded store ended; starting it again", left_out=self._quiet.left_out("ended"))
            try:
                await asyncio.to_thread(self._store.restart)
            except StartupError as error:
                if self._abandoned.is_set():
                    return
                if self._quiet.may_say("failed"):
                    left_out = self._quiet.left_out("failed")
                    log.error("embedded store does not start", error=str(error), left_out=left_out)
            except Exception as error:
                log.exception("embedded store does not start", error)
            else:
                self._watch(self._store)
                return
