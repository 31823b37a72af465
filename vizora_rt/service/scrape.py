"""The figures of all workers in one place, and the exposition for whoever asks: collected, rendered once, sent to all.

Rendering runs in a thread of the supervisor, on no worker's loop. What arrives meanwhile is held back until it is done,
so the totals are never changed under it.
"""

import asyncio
import gzip
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from vizora_rt.service.channel import Message
from vizora_rt.service.process import Process
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.exposition import Totals

ANSWER_SECONDS = 0.25
"""How long a scrape waits for workers; one that hangs must not make it late."""

NICE = 5
"""Of the thread that renders: a quarter of a second for 20,000 devices, which on a busy core would be a worker's. Not
more, for on a busy machine a scrape must still be done within the seconds that a worker waits for it."""

log = logs.logger("supervisor")

Format = tuple[bool, bool]
"""OpenMetrics rather than the text format, gzip or plain"""


class Service(Protocol):
    """What is scraped."""

    def serving(self) -> Iterable[Process]:
        """The workers to collect from."""

    def pids(self) -> Mapping[str, int]:
        """The processes of the service by label."""

    def recount(self) -> None:
        """Set the gauges of the supervisor's own."""


class MetricsCollector:
    """The totals, and who waits for them."""

    def __init__(self, totals: Totals, service: Service) -> None:
        self.totals = totals
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[Process, int, Format]] = []
        self._task: asyncio.Task[None] | None = None
        self._held: list[Callable[[], None]] | None = None
        self._number = 0
        # Who has not sent all of its figures and devices for this scrape.
        self._incomplete: set[Process] = set()
        self._complete = asyncio.Event()
        self._missing = totals.gauge("scrape_workers_missing")
        self._misfits: set[Process] = set()
        self._told = 0
        self._renderer = ThreadPoolExecutor(1, "render", _stand_back)

    def take_metrics(self, process: Process, message: Message) -> None:
        """Take a beat's snapshot or rows of devices."""
        self._apply(partial(self._merge, process, message, self._loop.time()))
        if message.get("id") == self._number and message.get("last"):
            self._done(process)

    def tell(self, process: Process) -> None:
        """Tell a new worker which organisations have series of their own: else each would choose them anew."""
        if organizations := self.totals.organizations:
            process.send({"t": "organizations", "names": organizations})

    def gone(self, process: Process) -> None:
        """What it counted stays."""
        self._apply(partial(self.totals.retire, str(process.index), process.pid, self._loop.time()))
        self._misfits.discard(process)
        self._done(process)

    def expire(self) -> None:
        """Forget devices that are offline for long; to be called now and then."""
        self._apply(partial(self.totals.expire, self._loop.time()))

    def ask(self, process: Process, number: int, openmetrics: bool, compress: bool) -> None:
        """Answer `process` with the exposition. Asks that come while one is rendered share the next one."""
        self._waiting.append((process, number, (openmetrics, compress)))
        if self._task is None:
            self._task = self._loop.create_task(self._serve())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._renderer.shutdown(wait=False)

    def _apply(self, change: Callable[[], None]) -> None:
        if self._held is None:
            change()
        else:
            self._held.append(change)

    def _merge(self, process: Process, message: Message, now: float) -> None:
        worker = str(process.index)
        try:
            if "metrics" in message and (left_out := self.totals.merge(worker, message["metrics"], process.pid)):
                self._misfit(process, "figures of a worker left out", left_out[0])
            if "rows" in message:
                self.totals.devices(worker, message["rows"], now, process.pid)
            if "beats" in message:
                self.totals.beats(worker, message["beats"], now, process.pid)
        except ValueError as error:
            self._misfit(process, "figures of a worker refused", str(error))
        if "metrics" in message:
            self._tell_all()

    def _tell_all(self) -> None:
        """The organisations that have series of their own since the last time, to all workers."""
        organizations = self.totals.organizations
        if len(organizations) > self._told:
            news, self._told = organizations[self._told :], len(organizations)
            for process in self._service.serving():
                process.send({"t": "organizations", "names": news})

    def _misfit(self, process: Process, what: str, error: str) -> None:
        """Other code than ours on the disk: told once per process, not once a second."""
        if process not in self._misfits:
            self._misfits.add(process)
            log.warning(what, worker=process.index, pid=process.pid, error=error)

    def _done(self, process: Process) -> None:
        self._incomplete.discard(process)
        if not self._incomplete:
            self._complete.set()

    async def _serve(self) -> None:
        while self._waiting:
            await self._collect()
            waiting, self._waiting = self._waiting, []
            try:
                bodies = await self._render({wanted for _, _, wanted in waiting})
            except Exception as error:
                log.exception("exposition failed", error)
                for process, number, _ in waiting:
                    process.send({"t": "answer", "id": number, "error": "exposition failed"})
            else:
                for process, number, wanted in waiting:
                    process.send({"t": "answer", "id": number}, bodies[wanted])
        self._task = None

    async def _collect(self) -> None:
        """Have all workers send what is newest, and wait for them, but not for long."""
        self._number += 1
        workers = list(self._service.serving())
        self._incomplete.update(workers)
        self._complete.clear()
        for process in workers:
            process.send({"t": "collect", "id": self._number})
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._complete.wait()
        except TimeoutError:
            pass
        self._missing.value = len(self._incomplete)
        self._incomplete.clear()

    async def _render(self, formats: set[Format]) -> dict[Format, bytes]:
        self._service.recount()
        self._held = []
        try:
            return await self._loop.run_in_executor(self._renderer, self._bodies, formats, self._service.pids())
        finally:
            held, self._held = self._held, None
            for change in held:
                change()

    def _bodies(self, formats: set[Format], pids: Mapping[str, int]) -> dict[Format, bytes]:
        """In a thread: reads /proc, renders, compresses."""
        self.totals.processes(pids)
        plain = {openmetrics: self.totals.render(openmetrics) for openmetrics in {wanted[0] for wanted in formats}}
        return {
            (openmetrics, compress): gzip.compress(plain[openmetrics], 1) if compress else plain[openmetrics]
            for openmetrics, compress in formats
        }


def _stand_back() -> None:
    """Linux has a priority for each thread. Where a sandbox keeps it, a scrape still is one."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.getpriority(os.PRIO_PROCESS, 0) + NICE)
    except PermissionError:
        log.info("scrapes do not stand back: setpriority is refused")
