"""A worker as a real process, with the test in the place of its supervisor. Redis is away: no part of this needs it."""

import asyncio
import gc
import signal
import socket
import struct
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.net.peers import SECRETS, dial_device
from tests.service_process import PATIENCE
from vizora_rt import config
from vizora_rt.config import Config, RedisSettings
from vizora_rt.service import channel, supervisor, worker
from vizora_rt.service.channel import Channel, Message
from vizora_rt.telemetry.metrics import BOUNDS, SLOTS, Metrics

RUN = "import sys; from vizora_rt.service import worker; sys.exit(worker.main(sys.argv[1:]))"

BLOCKS = """
import sys, time
from vizora_rt.service import worker
worker.BEYOND_ORPHAN_SECONDS = 0.1
worker.Worker._report = lambda self: time.sleep(3600)
sys.exit(worker.main(sys.argv[1:]))
"""
"""A worker whose loop stands still from its first beat on."""


class Seat:
    """The supervisor's seat: what the worker says, and the means to answer."""

    def __init__(self, listening: socket.socket, process: asyncio.subprocess.Process) -> None:
        self.port = listening.getsockname()[1]
        self.listening = listening.dup()
        self.process = process
        self.channel: Channel | None = None
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self.eof = asyncio.Event()

    def send(self, message: Message, raw: bytes = b"") -> None:
        assert self.channel is not None
        self.channel.send(message, raw)

    def leave(self) -> None:
        assert self.channel is not None
        self.channel.close()

    async def hear(self, kind: str, accept: Callable[[Message], bool] = lambda _: True) -> Message:
        """The next message of this kind that `accept` takes; others are skipped."""
        async with asyncio.timeout(PATIENCE):
            while True:
                message = await self.heard.get()
                if message["t"] == kind and accept(message):
                    return message

    async def ready(self, **server: float) -> None:
        """Boot the worker."""
        await self.hear("hello")
        self.send(boot(**server))
        await self.hear("ready")

    async def end(self) -> tuple[int, str]:
        """Exit code and log, when it has ended."""
        async with asyncio.timeout(PATIENCE):
            _, log = await self.process.communicate()
            assert self.process.returncode is not None
            return self.process.returncode, log.decode()

    async def get(self, path: str) -> bytes:
        """A whole HTTP response."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n".encode())
        async with asyncio.timeout(PATIENCE):
            response = await reader.read()
        writer.close()
        await writer.wait_closed()
        return response


def boot(**server: float) -> Message:
    away = RedisSettings(connect_timeout_seconds=0.1)
    auth = config.AuthSettings(device_jwt_secret=SECRETS["DEVICE_JWT_SECRET"])
    settings = Config(redis=away, auth=auth, server=config.ServerSettings(**server))  # type: ignore[arg-type]
    url = "unix:///nonexistent/redis.sock"
    return {"t": "boot", "config": config.encode(settings), "worker": 3, "node": "node-1", "redis": url}


@asynccontextmanager
async def seat(program: str = RUN) -> AsyncIterator[Seat]:
    near, far = socket.socketpair()
    listening = socket.create_server(("127.0.0.1", 0))
    with far, listening:
        listening.setblocking(False)
        fds = (far.fileno(), listening.fileno())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, *map(str, fds), pass_fds=fds, stderr=PIPE, process_group=0
        )
        opened = Seat(listening, process)
    opened.channel = await channel.connect(near, lambda message, _: opened.heard.put_nowait(message), opened.eof.set)
    try:
        yield opened
    finally:
        opened.channel.close()
        if process.returncode is None:
            process.kill()
            await process.communicate()
        await opened.eof.wait()
        opened.listening.close()


async def test_it_says_hello_boots_and_is_ready_when_it_accepts() -> None:
    async with seat() as it:
        packet = await it.hear("hello")
        assert packet == {"t": "hello", "version": channel.VERSION, "pid": it.process.pid}
        it.send(boot())
        await it.hear("ready")
        assert b" 200 " in (await it.get("/health/live")).split(b"\r\n")[0]


async def test_its_beats_carry_figures_that_only_grow() -> None:
    async with seat() as it:
        await it.ready(hang_seconds=0.4)
        first = await it.hear("beat")
        assert first["metrics"]["first"] is True
        assert first["connections"] == 0
        names = {name for name, _, _ in first["metrics"]["new"]}
        assert {"eventloop_lag_seconds", "gc_duration_seconds", "redis_up"} <= names
        second = await it.hear("beat")
        assert second["metrics"]["first"] is False
        assert len(second["metrics"]["timers"]) >= len(first["metrics"]["timers"])


async def test_a_collect_is_answered_with_its_number_and_all_devices() -> None:
    async with seat() as it:
        await it.ready()
        it.send({"t": "collect", "id": 7})
        assert "metrics" in await it.hear("beat", lambda message: message["id"] == 7)
        assert (await it.hear("devices", lambda message: message["last"]))["id"] == 7


CLOGGED = """
import os, sys
from vizora_rt.service import worker
from vizora_rt.service.channel import Channel
Channel.unsent = property(lambda self: worker.MAX_UNSENT + os.path.exists({flag!r}))
sys.exit(worker.main(sys.argv[1:]))
"""
"""A worker whose channel is full for as long as there is a file."""


def rows_and_beats(message: Message) -> bool:
    return bool(message.get("rows") or message.get("beats"))


async def counted(it: Seat, count: int) -> list[Message]:
    """What it says of devices, until so many heartbeats are in it."""
    found: list[Message] = []
    while sum(row[-2] for each in found for row in (*each.get("rows", ()), *each.get("beats", ()))) < count:
        found.append(await it.hear("devices", rows_and_beats))
    return found


async def test_it_tells_heartbeats_once_a_second_unasked_and_after_its_channel_was_full(tmp_path: Path) -> None:
    flag = tmp_path / "full"
    async with seat(CLOGGED.format(flag=str(flag))) as it:
        await it.ready(hang_seconds=0.4)
        screen = await dial_device(it.port, "lobby")
        for _ in range(3):
            await screen.heartbeat()
        first = await counted(it, 3)
        assert first[0]["rows"][0][:3] == ["lobby", "acme", 1]
        flag.touch()
        for _ in range(5):
            await screen.heartbeat()
        # A second screen, of which nothing was told yet.
        other = await dial_device(it.port, "foyer")
        await other.heartbeat()
        flag.unlink()
        later = await counted(it, 6)
        assert {row[0] for each in later for row in each.get("rows", ())} >= {"foyer"}
        it.send({"t": "collect", "id": 9})
        await it.hear("devices", lambda message: message["last"] and message["id"] == 9)


async def test_its_last_heartbeats_are_told_when_it_drains() -> None:
    async with seat() as it:
        await it.ready()
        screen = await dial_device(it.port, "lobby")
        for _ in range(4):
            await screen.heartbeat()
        it.send({"t": "drain", "seconds": 0.1})
        found = await counted(it, 4)
        assert found
        await it.hear("beat", lambda message: message["connections"] == 0)
        assert await screen.ended() == 1012


async def test_what_the_supervisor_answers_is_served() -> None:
    async with seat() as it:
        await it.ready()
        asked = asyncio.create_task(it.get("/status"))
        question = await it.hear("ask")
        assert question["what"] == "status"
        it.send({"t": "answer", "id": question["id"]}, b'{"service":"test"}')
        assert (await asked).endswith(b'\r\n\r\n{"service":"test"}')


async def test_a_supervisor_that_cannot_answer_is_a_503() -> None:
    async with seat() as it:
        await it.ready()
        asked = asyncio.create_task(it.get("/status"))
        question = await it.hear("ask")
        it.send({"t": "answer", "id": question["id"], "error": "no"})
        it.send({"t": "answer", "id": 4711}, b"nobody asked this")
        assert b" 503 " in (await asked).split(b"\r\n")[0]


async def test_it_drains_with_its_last_figures_and_ends_well() -> None:
    async with seat() as it:
        await it.ready(hang_seconds=3600)
        await it.hear("beat")
        await it.get("/health/live")
        it.send({"t": "drain", "seconds": 5})
        last = await it.hear("beat")
        answered = [new for new in last["metrics"]["new"] if new[0] == "http_requests_total"]
        assert answered == [["http_requests_total", "counter", ["GET", "/health/live", "200"]]]
        await it.eof.wait()
        code, log = await it.end()
        assert code == 0
        assert '"drained"' in log
        it.listening.close()
        with pytest.raises(ConnectionRefusedError):
            await it.get("/health/live")


def test_its_supervisor_waits_longer_than_it_takes() -> None:
    """Requests and those who came last; then the store, Sentry and the channel."""
    assert supervisor.BEYOND_DRAIN_SECONDS > 2 * worker.REQUEST_SECONDS + 3 * worker.CLOSE_SECONDS


async def test_a_request_under_way_is_answered_before_it_ends() -> None:
    async with seat() as it:
        await it.ready()
        asked = asyncio.create_task(it.get("/status"))
        question = await it.hear("ask")
        it.send({"t": "drain", "seconds": 30})
        it.send({"t": "answer", "id": question["id"]}, b'{"service":"test"}')
        assert (await asked).endswith(b'{"service":"test"}')
        assert (await it.end())[0] == 0


async def test_without_a_supervisor_it_ends() -> None:
    async with seat() as it:
        await it.ready()
        it.leave()
        code, log = await it.end()
        assert code == 0
        assert "supervisor is gone" in log


async def test_without_a_supervisor_it_does_not_even_boot() -> None:
    async with seat() as it:
        await it.hear("hello")
        it.leave()
        assert (await it.end())[0] == 0


async def test_a_boot_that_fails_says_why_in_one_line() -> None:
    async with seat() as it:
        await it.hear("hello")
        it.send({**boot(), "redis": "nonsense://"})
        failed = await it.hear("failed")
        assert failed["error"].startswith("redis.url: ")
        assert (await it.end())[0] == 1


async def test_a_fault_while_booting_has_a_traceback_in_the_log() -> None:
    async with seat() as it:
        await it.hear("hello")
        it.send({**boot(), "config": '{"server":{"port":"x"}}'})
        failed = await it.hear("failed")
        assert "\n" not in failed["error"]
        code, log = await it.end()
        assert code == 1
        assert "Traceback" in log


async def test_sigterm_asks_to_be_replaced_and_it_serves_on() -> None:
    async with seat() as it:
        await it.ready()
        it.process.send_signal(signal.SIGTERM)
        await it.hear("leaving")
        assert b" 200 " in await it.get("/health/live")


async def test_ctrl_c_is_the_supervisor_s_business() -> None:
    async with seat() as it:
        await it.ready()
        it.process.send_signal(signal.SIGINT)
        assert b" 200 " in await it.get("/health/live")


async def test_sigabrt_writes_all_stacks() -> None:
    async with seat() as it:
        await it.ready()
        it.process.send_signal(signal.SIGABRT)
        code, log = await it.end()
        assert code == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in log
        assert "worker.py" in log


async def test_a_loop_that_hangs_ends_by_itself_when_nobody_is_left_to_end_it() -> None:
    async with seat(BLOCKS) as it:
        await it.ready()
        it.leave()
        code, log = await it.end()
        assert code == 1
        assert "in _beat" in log


async def test_the_backlog_of_its_socket_is_the_configured_one() -> None:
    """Of a listening socket, tcpi_sacked of TCP_INFO is the backlog (Linux: tcp_get_info)."""
    async with seat() as it:
        with it.listening:
            await it.ready(backlog=1234)
            info = it.listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert struct.unpack_from("I", info, 28) == (1234,)


def counts(snapshot: dict[str, Any], name: str) -> int:
    """Observations of a histogram without labels."""
    timers = [new[0] for new in snapshot["new"] if new[1] == "histogram"]
    at = timers.index(name) * SLOTS
    return sum(snapshot["timers"][at : at + len(BOUNDS)])


async def test_the_pulse_measures_lag_and_collections() -> None:
    metrics = Metrics(config.MetricsSettings())
    pulse = worker.LoopMonitor(metrics)
    pulse.start()
    try:
        while not metrics.timer("eventloop_lag_seconds").slots[-1]:
            await asyncio.sleep(0)
        gc.collect()
    finally:
        pulse.stop()
    snapshot = metrics.snapshot()
    assert counts(snapshot, "eventloop_lag_seconds") >= 1
    assert metrics.gauge("eventloop_lag_seconds_max").value >= metrics.gauge("nodejs_eventloop_lag_seconds").value
    assert sum(metrics.timer("gc_duration_seconds", "2").slots[:-1]) == 1
