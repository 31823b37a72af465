"""A worker: one event loop that builds the parts, serves a given socket, beats and drains. The only `uvloop`.

Started by the supervisor as `python -m vizora_rt.service.worker <channel fd> <listening fd>`. Its socket and its
configuration come from the supervisor; without a supervisor it ends.

Over 300 lines because it builds and ends all parts of a worker.
"""

import asyncio
import faulthandler
import gc
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter_ns
from typing import Any, Literal

import uvloop

from vizora_rt import config
from vizora_rt.app.retry_schedule import MEMORY_BYTES
from vizora_rt.errors import StartupError
from vizora_rt.net.api.control import Control
from vizora_rt.net.api.control_routes import Routes
from vizora_rt.net.api.operations import add_health_routes
from vizora_rt.net.gateway.gateway import Gateway
from vizora_rt.net.redis.sentinel import open_client
from vizora_rt.net.server.http import HTTPServer
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.service import channel
from vizora_rt.service.channel import Message
from vizora_rt.telemetry import logs, sentry
from vizora_rt.telemetry.metrics import Metrics

BEAT_SECONDS = 1.0
"""Between two reports of figures and heartbeats: what this process counted since the last one is lost when it dies."""
ROWS_PER_TURN = 250
BEATS_PER_TURN = 1_000
"""A full row takes 1 to 2 us, a row of beats a quarter of that: either turn is under 0.5 ms."""

GC_THRESHOLDS = (10_000, 20, 50)
"""A connection leaves a dozen objects that live as long as it and next to no cycles: with the defaults (700, 10, 10) a
storm of 10,000 of them spends 10 us each on being looked at again and again."""

LAG_SECONDS = 0.25
"""Between two samples of the event loop's lag: no stall of that length goes unseen."""
LAG_SAMPLES = 240
"""A minute of samples, for the gauge of the largest: longer than the usual scrape interval."""

MAX_UNSENT = 4 * 1024 * 1024
"""Bytes waiting for a supervisor that does not read. Past it reports are left out: the next one says it all again."""
MAX_ASKS = 64
"""Questions to the supervisor that wait for their answer; a few Prometheus servers and people ask."""
ASK_SECONDS = 5.0

ORPHAN_SECONDS = 1.0
"""To close connections in when the supervisor is gone. Its successor wants the port."""
BEYOND_ORPHAN_SECONDS = 10.0
"""After which an orphan that is still there does not close connections: it hangs."""
CLOSE_SECONDS = 2.0
"""For each of what it lets go at its end: the store, Sentry, the channel."""
REQUEST_SECONDS = 1.0
"""For HTTP requests under way when a drain begins; after it, what is open is idle, or asks for too much."""

log = logs.logger("worker")

Answered = Callable[[bytes | None], None]
"""Gets the supervisor's answer, or None when there is none."""


class LoopMonitor:
    """What an event loop can say of itself: how late its timers run, and how long collections stop it."""

    __slots__ = ("_collecting", "_due", "_handle", "_histogram", "_lags", "_last", "_loop", "_max", "_pauses")

    def __init__(self, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._histogram = metrics.timer("eventloop_lag_seconds")
        self._max = metrics.gauge("eventloop_lag_seconds_max")
        self._last = metrics.gauge("nodejs_eventloop_lag_seconds")
        self._lags: deque[int] = deque(maxlen=LAG_SAMPLES)
        self._pauses = [
            metrics.timer("gc_duration_seconds", str(generation)) for generation in range(len(gc.get_count()))
        ]
        self._collecting = 0
        self._due = 0
        self._handle: asyncio.TimerHandle | None = None
        metrics.on_collect(self._collect)

    def start(self) -> None:
        gc.callbacks.append(self._on_gc)
        self._schedule()

    def stop(self) -> None:
        gc.callbacks.remove(self._on_gc)
        if self._handle is not None:
            self._handle.cancel()

    def _schedule(self) -> None:
        self._due = perf_counter_ns() + int(LAG_SECONDS * 1e9)
        self._handle = self._loop.call_later(LAG_SECONDS, self._sample)

    def _sample(self) -> None:
        # libuv counts milliseconds, so a timer may run up to one too early.
        lag = max(0, perf_counter_ns() - self._due)
        self._histogram.observe(lag)
        self._lags.append(lag)
        self._schedule()

    def _collect(self) -> None:
        if self._lags:
            self._max.value = max(self._lags)
            self._last.value = self._lags[-1]

    def _on_gc(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = perf_counter_ns()
        else:
            self._pauses[info["generation"]].observe(perf_counter_ns() - self._collecting)


class Worker:
    """From hello to the last beat."""

    def __init__(self, listening: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._booted: asyncio.Future[Message] = self._loop.create_future()
        self._ended: asyncio.Future[tuple[float, bool]] = self._loop.create_future()
        self._hurried = asyncio.Event()
        self._closed = asyncio.Event()
        self._asks: dict[int, tuple[Answered, asyncio.TimerHandle]] = {}
        self._asked = 0
        self._shipping: asyncio.Task[None] | None = None
        self._collect_id = self._collected = 0
        self._beat_handle: asyncio.TimerHandle | None = None

    async def run(self, end: socket.socket) -> int:
        """The exit code of the process."""
        self._channel = await channel.connect(end, self._on_message, self._on_eof)
        self._channel.send({"t": "hello", "version": channel.VERSION, "pid": os.getpid()})
        both: list[asyncio.Future[Any]] = [self._booted, self._ended]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not self._booted.done():
            return 0
        try:
            await self._start(self._booted.result())
        except StartupError as error:
            return await self._fail(str(error))
        except Exception as error:
            log.exception("boot failed", error)
            return await self._fail(f"{type(error).__name__}: {error}")
        self._channel.send({"t": "ready"})
        self._beat()
        await self._drain(*await self._ended)
        return 0

    async def _start(self, boot: Message) -> None:
        self._config = config.decode(boot["config"])
        self._beat_seconds = min(BEAT_SECONDS, self._config.server.hang_seconds / 4)
        name = f"worker-{boot['worker']}"
        logs.configure(self._config, name)
        sentry.start_sentry(self._config, name)
        self._loop.set_exception_handler(logs.on_loop_exception)
        self._build(boot["worker"], boot["node"], boot["redis"], boot.get("turns"))
        self._wheel.start()
        self._gateway.pubsub.start()
        await self._connect_store()
        # create_server sets the backlog of a socket that listens already: to 100 unless told.
        self._server = await self._loop.create_server(
            self._http.exchange, sock=self._listening, backlog=self._config.server.backlog
        )
        self._loop.add_signal_handler(signal.SIGTERM, self._channel.send, {"t": "leaving"})
        self._loop_monitor.start()
        # What exists now lives as long as the process: no collection needs to look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)

    def _build(self, index: int, node: str, redis_url: str, turns: int | None) -> None:
        self._metrics = Metrics(self._config.metrics)
        self._loop_monitor = LoopMonitor(self._metrics)
        self._metrics.on_collect(lambda: count_dropped(self._metrics))
        self._wheel = Wheel(self._loop.time)
        self._store = open_client(self._config.redis, redis_url, self._metrics, name=f"vizora-worker-{index}")
        memory = shared_memory(turns, MEMORY_BYTES)
        self._gateway = Gateway(self._config, index, node, self._metrics, self._wheel, self._store, memory)
        self._http = HTTPServer(self._config, self._gateway, self._metrics, self._wheel)
        add_health_routes(self._http, self._config, self._gateway, self._store, self.ask)
        self._control = Control(self._config.auth.internal_api_secret, self._http, self._store)
        Routes(self._control, self._gateway, self._store)

    async def _connect_store(self) -> None:
        """Wait for Redis, so that the first clients are not refused; but not for long, it may be away."""
        up = asyncio.Event()
        self._store.on_up.append(up.set)
        self._store.start()
        try:
            async with asyncio.timeout(self._config.redis.connect_timeout_seconds):
                await up.wait()
        except TimeoutError:
            log.warning("starting without redis", reason=self._store.reason)
        self._store.on_up.remove(up.set)

    # --- what the supervisor is told ---

    def _beat(self) -> None:
        """From the loop itself: that this runs is what the supervisor wants to know."""
        self._beat_handle = self._loop.call_later(self._beat_seconds, self._beat)
        self._report()
        self._ship()

    def _report(self, collect_id: int = 0) -> None:
        if self._channel.unsent > MAX_UNSENT:
            return
        message: Message = {"t": "beat", "id": collect_id, "connections": self._gateway.connections}
        try:
            message["metrics"] = self._metrics.snapshot()
        except Exception as error:
            # Figures are missing, but the loop lives: no reason to be killed as hung.
            log.exception("snapshot failed", error)
        self._channel.send(message)

    def _ship(self) -> None:
        """Send the rows of devices that are behind. A run under way takes what a scrape asks for meanwhile."""
        if self._shipping is None and self._channel.unsent <= MAX_UNSENT:
            self._shipping = self._loop.create_task(self._send_devices())

    async def _send_devices(self) -> None:
        """Some rows per turn of the loop. Once a second only what must not be lost; for a scrape all."""
        try:
            while True:
                number = self._collect_id
                for message in self._device_messages(whole=number != self._collected):
                    self._channel.send(message)
                    await asyncio.sleep(0)
                if number != self._collected:
                    self._collected = number
                    self._channel.send({"t": "devices", "id": number, "rows": [], "last": True})
                if number == self._collect_id:
                    break
        except Exception as error:
            log.exception("device rows failed", error)
        finally:
            self._shipping = None

    def _device_messages(self, whole: bool) -> Iterator[Message]:
        """`whole`: with the CPU and memory of all devices, which only a scrape needs."""
        rows = self._gateway.rows
        # First the rows that begin a series, then what is counted in it.
        for full in self._gateway.device_rows(ROWS_PER_TURN) if whole else rows.changed(ROWS_PER_TURN):
            yield {"t": "devices", "rows": full, "last": False}
        for beats in rows.beats(BEATS_PER_TURN):
            yield {"t": "devices", "beats": beats, "last": False}

    def ask(self, what: str, openmetrics: bool, answered: Answered, compress: bool = False) -> None:
        """Have the supervisor answer: `metrics` (an exposition, gzipped on demand) or `status` (JSON)."""
        if len(self._asks) >= MAX_ASKS or self._closed.is_set():
            self._loop.call_soon(answered, None)
            return
        self._asked += 1
        timer = self._loop.call_later(ASK_SECONDS, self._answer, self._asked, None)
        self._asks[self._asked] = (answered, timer)
        self._channel.send(
            {"t": "ask", "id": self._asked, "what": what, "openmetrics": openmetrics, "compress": compress}
        )

    def _answer(self, number: int, body: bytes | None) -> None:
        waiting = self._asks.pop(number, None)
        if waiting is not None:
            answered, timer = waiting
            timer.cancel()
            answered(body)

    # --- what the supervisor says ---

    def _on_message(self, message: Message, raw: bytes) -> None:
        match message.get("t"):
            case "boot":
                self._booted.set_result(message)
            case "collect":
                self._report(message["id"])
                self._collect_id = message["id"]
                self._ship()
            case "organizations":
                self._metrics.admit(message["names"])
            case "answer":
                self._answer(message["id"], None if message.get("error") else raw)
            case "drain":
                self._end(message["seconds"], message.get("successor", False))

    def _on_eof(self) -> None:
        self._closed.set()
        if not self._ended.done():
            log.warning("supervisor is gone")
        self._end(ORPHAN_SECONDS)

    def _end(self, seconds: float, successor: bool = False) -> None:
        """Drain over `seconds`; told a second time, at once. `successor`: somebody accepts on this socket already."""
        if self._ended.done():
            self._hurried.set()
        else:
            self._ended.set_result((seconds, successor))

    async def _drain(self, seconds: float, successor: bool) -> None:
        self._server.close()
        log.info("draining", seconds=seconds, connections=self._gateway.connections)
        draining = self._loop.create_task(self._leave_clients(seconds, successor))
        hurried = self._loop.create_task(self._hurried.wait())
        await asyncio.wait([draining, hurried], return_when=asyncio.FIRST_COMPLETED)
        if not draining.done():
            draining.cancel()
            await self._gateway.drain(0)
        hurried.cancel()
        if not successor:
            self._gateway.leave()
        await self._gateway.pubsub.close()
        await self._store.close(CLOSE_SECONDS)
        self._wheel.stop()
        self._loop_monitor.stop()
        # The last figures: counters of the service must not lose what happened while draining.
        if self._shipping is not None:
            await self._shipping
        for message in self._device_messages(whole=False):
            self._channel.send(message)
        self._report()
        log.info("drained", connections=self._gateway.connections)
        await self._close()

    async def _leave_clients(self, seconds: float, successor: bool) -> None:
        """Say goodbye to all clients, and answer the calls that are under way. Without a successor no call is begun
        from now on; with one, not while its answer might be cut off."""
        if successor:
            await self._gateway.drain(seconds, successor)
            await self._control.close()
        else:
            await asyncio.gather(self._control.close(), self._gateway.drain(seconds))
        until = self._loop.time() + min(seconds, REQUEST_SECONDS)
        # A connection that was accepted just now is counted a turn of the loop later.
        await asyncio.sleep(0)
        while self._http.exchanges and self._loop.time() < until:  # noqa: ASYNC110 - once in a life
            await asyncio.sleep(0.01)
        if successor:
            # Some may have come in meanwhile, on connections that were accepted before.
            await self._gateway.drain(min(seconds, REQUEST_SECONDS))

    async def _fail(self, text: str) -> int:
        self._channel.send({"t": "failed", "error": text})
        await self._close()
        return 1

    async def _close(self) -> None:
        # In a thread: whoever watches this loop would take it for hung.
        await asyncio.to_thread(sentry.flush, CLOSE_SECONDS)
        if self._beat_handle is not None:
            self._beat_handle.cancel()
        self._channel.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._closed.wait()
        except TimeoutError:
            pass


def count_dropped(metrics: Metrics) -> None:
    for why, count in sentry.dropped().items():
        metrics.counter("sentry_dropped_total", why).value = count


def shared_memory(descriptor: int | None, size: int) -> memoryview | None:
    """What a supervisor has all its workers share, unless it is of a release that shares nothing, or something else."""
    if descriptor is None:
        return None
    try:
        return memoryview(mmap.mmap(descriptor, size)) if os.fstat(descriptor).st_size == size else None
    finally:
        os.close(descriptor)


async def serve(end: socket.socket, listening: socket.socket) -> int:
    return await Worker(listening).run(end)


def end_as_orphan(channel_fd: int) -> None:
    """Runs in a thread: ends the process some time after the supervisor is gone. A loop that hangs would not see it."""
    poll = select.poll()
    poll.register(channel_fd, select.POLLRDHUP)
    poll.poll()
    time.sleep(ORPHAN_SECONDS + BEYOND_ORPHAN_SECONDS)
    faulthandler.dump_traceback()
    os._exit(1)


def main(arguments: list[str]) -> int:
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end, listening = (socket.socket(fileno=int(argument)) for argument in arguments)
    for inherited in (end, listening):
        inherited.set_inheritable(False)
    # On a descriptor of its own: that of the channel is closed, and its number given away, before the process ends.
    threading.Thread(target=end_as_orphan, args=(os.dup(end.fileno()),), daemon=True).start()
    return uvloop.run(serve(end, listening))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
