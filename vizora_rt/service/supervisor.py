"""The supervisor: bind the sockets, start workers, watch their beats, respawn, roll, tell systemd. It serves no device.

Signals and what workers say only enqueue; one loop takes the events in turn, so no step ever sees another half done.

Over 300 lines because start, watch, restart and end of workers are one state machine.
"""

import asyncio
import json
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from vizora_rt import config
from vizora_rt.app.retry_schedule import MEMORY_BYTES
from vizora_rt.config import Config
from vizora_rt.errors import ConfigError, StartupError, UnavailableError
from vizora_rt.net.redis import probe
from vizora_rt.net.valkey.respawn import Keeper
from vizora_rt.net.valkey.server import STOP_SECONDS
from vizora_rt.service import runfile
from vizora_rt.service.channel import Message
from vizora_rt.service.listeners import bind
from vizora_rt.service.orphans import Orphans
from vizora_rt.service.process import Process
from vizora_rt.service.scrape import MetricsCollector
from vizora_rt.service.systemd import Notifier
from vizora_rt.telemetry import build, logs, sentry
from vizora_rt.telemetry.exposition import Totals
from vizora_rt.telemetry.metrics import WORKER_STATES

VERSION = metadata.version("vizora-rt")

TICK = 0.25
"""Seconds between two looks at beats and deadlines."""
BOOT_SECONDS = 30.0
"""A boot takes a second; one that takes this long waits for something that does not come."""
BOOT_FAILURES = 5
BOOT_FAILURES_SECONDS = 30.0
BEYOND_DRAIN_SECONDS = 10.0
"""For a worker to end when its connections are closed: it allows itself 8 s for what does not answer (worker.py)."""
HURRY_SECONDS = 1.0
RETRY_SECONDS = 1.0
"""Before the next attempt at a fork that the machine refused."""
EXPIRE_SECONDS = 30.0
PROBE_LONGEST_SECONDS = 10.0
"""For all servers together: a resolver of names that is away takes longer, and screens must not wait for it."""
PROBE_SECONDS = 5.0
"""Between two looks whether a Redis that was away at the start is there, and has what is needed."""

log = logs.logger("supervisor")


def shared_memory(name: str, size: int) -> int:
    """A descriptor of memory that processes share which inherit it; it is gone with the last of them."""
    descriptor = os.memfd_create(name)
    os.ftruncate(descriptor, size)
    return descriptor


class Slot:
    """A listening socket and who serves it. During a roll there is a successor, which is not ready yet."""

    __slots__ = ("current", "index", "listening", "successor")

    def __init__(self, index: int, listening: socket.socket) -> None:
        self.index = index
        self.listening = listening
        self.current: Process | None = None
        self.successor: Process | None = None


class Supervisor:
    """Runs the service until it is told to stop. `reload` reads the configuration again."""

    def __init__(self, settings: Config, reload: Callable[[], Config]) -> None:
        self._config = settings
        self._previous = settings
        self._reload_config = reload
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._notifier = Notifier(os.environ)
        self._slots: list[Slot] = []
        self._processes: set[Process] = set()
        self._generation = 0
        self._rolling = False
        self._reload_late = False
        self.listening = asyncio.Event()
        """Set once all workers accept, on `port`."""
        self._stopping = False
        self._stop_asked = asyncio.Event()
        self._fatal: StartupError | None = None
        self._boot_failures: deque[float] = deque(maxlen=BOOT_FAILURES)
        self._store = Keeper()
        self._probing: asyncio.Task[None] | None = None
        self._turns = shared_memory("turns", MEMORY_BYTES)
        self._started = self._ticked = self._fed = self._expired = self._loop.time()
        self._tick_handle: asyncio.TimerHandle | None = None
        self._status = ""
        self._orphans = Orphans()
        totals = Totals(settings.metrics, VERSION, build.commit(settings.sentry.release))
        self._collector = MetricsCollector(totals, self)

    async def run(self) -> None:
        """Returns when the service was stopped; raises StartupError when it could not start or go on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_stop_signal)
        self._loop.add_signal_handler(signal.SIGHUP, self._post, self._reload)
        self._loop.set_exception_handler(logs.on_loop_exception)
        try:
            await self._open()
            while not self._stopping or self._processes:
                await (await self._events.get())()
        except StartupError:
            raise
        except Exception as error:
            log.exception("supervisor failed", error)
            self._fatal = StartupError(f"a fault in the supervisor: {type(error).__name__}: {error}")
        finally:
            await self._close()
        if self._fatal is not None:
            raise self._fatal

    def _on_stop_signal(self) -> None:
        self._stop_asked.set()
        self._post(self._stop)

    def _post(self, handler: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        self._events.put_nowait(partial(handler, *arguments))

    # --- open and close ---

    async def _open(self) -> None:
        if not sentry.start_sentry(self._config, "supervisor"):
            log.info("sentry is off: no DSN")
        self._doubt()
        server = self._config.server
        sockets = bind(server.host, server.port, self._config.workers)
        self._slots = [Slot(index, listening) for index, listening in enumerate(sockets)]
        self.port = sockets[0].getsockname()[1]
        self._node = f"{socket.gethostname()}-{self.port}-{secrets.token_hex(3)}"
        if not await self._unless_stopped(self._open_store()):
            return
        for listening in sockets:
            listening.listen(server.backlog)
        self._tick()
        for slot in self._slots:
            await self._spawn(slot)

    def _doubt(self) -> None:
        """Say what in the configuration is hardly meant. In development nothing is."""
        for doubt in () if self._config.development else config.doubts(self._config):
            log.warning("doubtful configuration", doubt=doubt)

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do `work`, which may raise StartupError. False: the service was told to stop meanwhile."""
        opening, asked = self._loop.create_task(work), self._loop.create_task(self._stop_asked.wait())
        await asyncio.wait([opening, asked], return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            # A store may load its data for minutes, and a Redis be slow to answer. A thread cannot be cancelled.
            self._store.abandon()
            await asyncio.wait([opening])
            opening.exception()
            return False
        asked.cancel()
        opening.result()
        return True

    async def _open_store(self) -> None:
        """Raises StartupError. A Redis that is away is waited for while workers serve without it."""
        if not self._config.redis.url:
            await self._store.start(Path(self._config.state_dir))
            return
        try:
            await self._probe(self._config)
        except UnavailableError as error:
            log.error("starting without redis", reason=str(error))
            self._probing = self._loop.create_task(self._probe_again())

    async def _probe(self, settings: Config) -> None:
        """See that Redis can be used, and log what is wrong with one that can. Raises StartupError."""
        redis = settings.redis
        try:
            async with asyncio.timeout(PROBE_LONGEST_SECONDS):
                found = await asyncio.to_thread(probe.probe, redis.target, redis.connect_timeout_seconds)
        except TimeoutError:
            raise UnavailableError(f"Redis was not found within {PROBE_LONGEST_SECONDS:g} s") from None
        for note in found.notes:
            log.warning("redis is not as it should be", reason=note)

    async def _probe_again(self) -> None:
        """Until Redis is there. What it lacks is logged once: the service runs by now, and goes on."""
        said = ""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                await self._probe(self._config)
            except UnavailableError:
                continue
            except ConfigError as error:
                if str(error) != said:
                    said = str(error)
                    log.error("redis cannot be used", reason=said)
            except Exception as error:
                log.exception("redis was not probed", error)
            else:
                log.info("redis was found")
                return

    async def _close(self) -> None:
        self._stopping = True
        if self._probing is not None:
            self._probing.cancel()
        for process in self._processes:
            process.kill()
        while self._processes:
            await (await self._events.get())()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        await self._collector.close()
        # Last: the workers' final writes are in it.
        await self._store.stop()
        for slot in self._slots:
            slot.listening.close()
        os.close(self._turns)
        runfile.remove(Path(self._config.state_dir))
        self._notifier.close()
        if self.listening.is_set():
            log.info("stopped")
        sentry.flush(2.0)

    # --- workers ---

    async def _spawn(self, slot: Slot, successor: bool = False) -> None:
        boot: Message = {
            "t": "boot",
            "config": config.encode(self._config),
            "worker": slot.index,
            "node": self._node,
            "redis": self._config.redis.target or self._store.url,
            "turns": self._turns,
        }
        process = Process(slot.index, self._generation, boot, self)
        if successor:
            slot.successor = process
        else:
            slot.current = process
        self._processes.add(process)
        try:
            await process.start(slot.listening, self._turns)
        except OSError as error:
            process.error = f"no process: {error.strerror}"
            self._loop.call_later(RETRY_SECONDS, self._post, self._gone, process)

    def on_ready(self, process: Process) -> None:
        self._post(self._ready, process)

    def on_leaving(self, process: Process) -> None:
        self._post(self._leaving, process)

    def on_gone(self, process: Process) -> None:
        self._post(self._gone, process)

    def on_metrics(self, process: Process, message: Message) -> None:
        self._collector.take_metrics(process, message)

    def on_ask(self, process: Process, message: Message) -> None:
        if message["what"] == "metrics":
            self._collector.ask(process, message["id"], message["openmetrics"], message["compress"])
        else:
            process.send({"t": "answer", "id": message["id"]}, json.dumps(self.status()).encode())

    async def _ready(self, process: Process) -> None:
        if self._stopping:
            return
        log.info("worker ready", worker=process.index, pid=process.pid)
        self._collector.tell(process)
        slot = self._slots[process.index]
        if slot.successor is process:
            old, slot.current, slot.successor = slot.current, process, None
            self._collector.totals.counter("worker_restarts_total", "roll").value += 1
            if old is not None:
                self._drain(old, successor=True)
        if not self.listening.is_set() and all(
            s.current is not None and s.current.state == "ready" for s in self._slots
        ):
            self.listening.set()
            self._announce()
            if self._reload_late:
                self._post(self._reload)
        await self._advance()

    async def _leaving(self, process: Process) -> None:
        """Somebody sent SIGTERM to the worker itself: it is replaced as in a roll, without a gap."""
        process.generation = -1
        await self._advance()

    async def _gone(self, process: Process) -> None:
        self._processes.discard(process)
        self._collector.gone(process)
        slot = self._slots[process.index]
        if self._stopping:
            return
        if slot.successor is process:
            slot.successor = None
            self._abandon_roll(process)
        elif slot.current is process:
            slot.current = None
            await self._replace(slot, process)
        else:
            log.info("worker ended", worker=process.index, pid=process.pid, ending=process.ending)
        await self._advance()

    async def _replace(self, slot: Slot, process: Process) -> None:
        """A worker ended that should not have: another one takes its socket, with the handshakes that wait there."""
        reason = "boot" if not process.was_ready else "hung" if process.state == "hung" else "crash"
        log.crash(
            "worker failed" if process.was_ready else "worker failed to boot",
            worker=process.index,
            pid=process.pid,
            reason=reason,
            ending=process.ending,
            error=process.error or None,
        )
        if not process.was_ready:
            if self._rolling and process.generation == self._generation:
                self._abandon_roll(process)
            if self._fail_too_often():
                self._fatal = StartupError(
                    f"workers failed to boot {BOOT_FAILURES} times in {BOOT_FAILURES_SECONDS:g} s, "
                    f"the last one with: {process.error or process.ending}"
                )
                await self._stop()
                return
        self._collector.totals.counter("worker_restarts_total", reason).value += 1
        if slot.successor is not None:
            slot.current, slot.successor = slot.successor, None
        else:
            await self._spawn(slot)

    def _fail_too_often(self) -> bool:
        """Count a boot that failed."""
        failures, now = self._boot_failures, self._loop.time()
        failures.append(now)
        return len(failures) == BOOT_FAILURES and failures[0] > now - BOOT_FAILURES_SECONDS

    def _drain(self, process: Process, successor: bool = False) -> None:
        seconds = self._config.server.drain_seconds
        process.drain(seconds, seconds + BEYOND_DRAIN_SECONDS, successor)

    # --- stop, reload, roll ---

    async def _stop(self) -> None:
        if self._stopping:
            for process in self._processes:
                process.drain(0, HURRY_SECONDS)
            return
        self._stopping = True
        log.info("stopping", connections=self._connections())
        # TimeoutStopSec of the unit knows nothing of `drain_seconds` (sd_notify(3)).
        usec = int((self._config.server.drain_seconds + BEYOND_DRAIN_SECONDS + STOP_SECONDS) * 1e6)
        self._notifier.send("STOPPING=1", "STATUS=stopping", f"EXTEND_TIMEOUT_USEC={usec}")
        for slot in self._slots:
            # Workers have it too: once they close it, nobody can connect to a service that nobody serves.
            slot.listening.close()
        for process in self._processes:
            self._drain(process)

    async def _reload(self) -> None:
        """Take what can be taken of a good configuration; keep running on the present one beside a bad one."""
        self._reload_late = not self.listening.is_set()
        if self._stopping or self._reload_late:
            return
        self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            new, kept = config.reloaded(self._config, self._reload_config())
            if new.redis.target != self._config.redis.target:
                await self._probe(new)
        except StartupError as error:
            log.error("reload refused", error=str(error))
        except Exception as error:
            log.exception("reload failed", error)
        else:
            await self._take(new, kept)
        if not self._rolling:
            self._notifier.send("READY=1")

    async def _take(self, new: Config, kept: list[str]) -> None:
        if kept:
            log.warning("reload leaves keys that need a restart", keys=kept)
        if not self._rolling:
            self._previous = self._config
        self._config = new
        self._generation += 1
        self._rolling = True
        logs.configure(new, "supervisor")
        sentry.start_sentry(new, "supervisor")
        self._doubt()
        log.info("reloading", workers=len(self._slots))
        await self._advance()

    async def _advance(self) -> None:
        """The next step of a roll: one worker at a time, its successor ready before it is drained and gone after."""
        if self._stopping or any(slot.successor is not None for slot in self._slots):
            return
        if any(process.state == "draining" for process in self._processes):
            return
        waiting = [slot for slot in self._slots if slot.current and slot.current.generation != self._generation]
        for slot in waiting:
            if slot.current is not None and slot.current.state == "ready":
                await self._spawn(slot, successor=True)
                return
        if self._rolling and not waiting and all(slot.current and slot.current.was_ready for slot in self._slots):
            self._rolling = False
            log.info("reloaded")
            self._notifier.send("READY=1")

    def _abandon_roll(self, process: Process) -> None:
        """A worker of the new kind cannot boot: those of the old kind go on as they are."""
        if process.generation != self._generation:
            log.warning("successor did not boot", worker=process.index, ending=process.ending, error=process.error)
            return  # There is a newer kind by now, which is tried in its turn.
        current = [slot.current for slot in self._slots if slot.current is not None]
        rolled = sum(other.was_ready and other.generation == self._generation for other in current)
        log.error(
            "roll refused",
            worker=process.index,
            ending=process.ending,
            error=process.error or None,
            rolled=rolled or None,
        )
        for other in current:
            other.generation = self._generation
        if self._rolling:
            self._rolling = False
            if not rolled:
                self._config = self._previous
            self._notifier.send("READY=1")

    # --- watch ---

    def _tick(self) -> None:
        now = self._loop.time()
        self._tick_handle = self._loop.call_later(TICK, self._tick)
        # What this process slept or was stopped for is no silence of its workers: their beats wait in their channels.
        slept = max(0.0, now - self._ticked - TICK)
        self._ticked = now
        for process in tuple(self._processes):
            process.beat = min(now, process.beat + slept)
            process.deadline += slept
            self._check(process, now)
        if os.getpid() == 1:
            self._orphans.reap({process.pid for process in self._processes} | {self._store.pid}, now)
        self._feed(now)
        if now - self._expired > EXPIRE_SECONDS:
            self._expired = now
            self._collector.expire()

    def _check(self, process: Process, now: float) -> None:
        silent = now - process.beat
        if process.returncode is not None:
            return  # it has ended: what it said is still being read
        if now > process.deadline:
            log.error("worker killed: it did not end in time", worker=process.index, pid=process.pid)
            process.kill()
        elif process.state in ("ready", "draining") and silent > self._config.server.hang_seconds:
            log.error("worker hangs", worker=process.index, pid=process.pid, silent_seconds=round(silent, 1))
            process.abort()
        elif process.state == "starting" and silent > BOOT_SECONDS:
            process.error = f"not ready after {BOOT_SECONDS:g} s"
            process.abort()

    def _feed(self, now: float) -> None:
        """Tell systemd that the service lives: this loop runs, and so does at least one worker's."""
        if self._stopping or not self.listening.is_set():
            return
        alive = [p for p in self._processes if p.was_ready and now - p.beat < self._config.server.hang_seconds]
        # At half of the time, as sd_watchdog_enabled(3) advises, less a tick.
        due = self._fed + self._notifier.watchdog_seconds / 2 - TICK
        if alive and self._notifier.watchdog_seconds and now >= due:
            self._fed = now
            self._notifier.send("WATCHDOG=1")
        status = f"STATUS={len(alive)} of {len(self._slots)} workers, {self._connections()} connections"
        if status != self._status:
            self._status = status
            self._notifier.send(status)

    # --- say ---

    def _announce(self) -> None:
        host = self._config.server.host
        run = {"port": self.port, "host": host, "node": self._node, "version": VERSION, "started": time.time()}
        runfile.write(Path(self._config.state_dir), run)
        log.info("listening", host=host, port=self.port, workers=len(self._slots), node=self._node, version=VERSION)
        self._notifier.send("READY=1")

    def _connections(self) -> int:
        return sum(process.connections for process in self._processes)

    def serving(self) -> list[Process]:
        return [process for process in self._processes if process.state in ("ready", "draining")]

    def pids(self) -> dict[str, int]:
        store = {"store": self._store.pid} if self._store.pid else {}
        workers = {f"worker-{slot.index}": slot.current.pid for slot in self._slots if slot.current is not None}
        return {"supervisor": os.getpid()} | workers | store

    def recount(self) -> None:
        states: list[str] = [process.state for process in self._processes]
        for state in WORKER_STATES:
            self._collector.totals.gauge("workers", state).value = states.count(state)
        for why, count in sentry.dropped().items():
            self._collector.totals.counter("sentry_dropped_total", why).value = count

    def status(self) -> dict[str, Any]:
        """The body of `GET /status`."""
        now = self._loop.time()
        return {
            "service": "vizora-rt",
            "version": VERSION,
            "node": self._node,
            "pid": os.getpid(),
            "uptime": round(now - self._started, 3),
            "workers": [
                {
                    "index": process.index,
                    "pid": process.pid,
                    "connections": process.connections,
                    "uptime": round(now - process.started, 3),
                    "state": process.state,
                }
                for process in sorted(self._processes, key=lambda process: (process.index, process.started))
            ],
        }
