"""A worker process from the supervisor's side: real forks, the test listens."""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service_process import PATIENCE, alive
from vizora_rt import config
from vizora_rt.config import Config, RedisSettings
from vizora_rt.service import channel
from vizora_rt.service.channel import Message
from vizora_rt.service.process import ABORT_SECONDS, EXIT_SECONDS, Process

BOOT: Message = {
    "t": "boot",
    "config": config.encode(Config(redis=RedisSettings(connect_timeout_seconds=0.1))),
    "worker": 0,
    "node": "node-1",
    "redis": "unix:///nonexistent/redis.sock",
}


class Ear:
    """Hears one process."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.leaving = asyncio.Event()
        self.gone = asyncio.Event()
        self.figures: asyncio.Queue[Message] = asyncio.Queue()

    def on_ready(self, process: Process) -> None:
        self.ready.set()

    def on_leaving(self, process: Process) -> None:
        self.leaving.set()

    def on_gone(self, process: Process) -> None:
        assert not self.gone.is_set()
        self.gone.set()

    def on_metrics(self, process: Process, message: Message) -> None:
        self.figures.put_nowait(message)

    def on_ask(self, process: Process, message: Message) -> None:
        raise AssertionError("nobody asks here")


@pytest.fixture
async def ear() -> Ear:
    return Ear()


@pytest.fixture
async def process(ear: Ear) -> AsyncIterator[Process]:
    """A process that was started; ended at the end."""
    made = Process(0, 1, dict(BOOT), ear)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await made.start(listening)
    async with asyncio.timeout(PATIENCE):
        yield made
        made.kill()
        await ear.gone.wait()


async def test_it_becomes_ready_beats_and_drains(process: Process, ear: Ear) -> None:
    await ear.ready.wait()
    assert (process.state, process.was_ready) == ("ready", True)
    assert (await ear.figures.get())["metrics"]["first"] is True
    process.drain(1.0, 10.0)
    await ear.gone.wait()
    assert process.ending == "exit code 0"
    assert process.returncode == 0


async def test_a_killed_one_is_gone_once_and_takes_no_more_orders(process: Process, ear: Ear) -> None:
    await ear.ready.wait()
    process.kill()
    await ear.gone.wait()
    assert process.ending == "signal 9 (SIGKILL)"
    process.send({"t": "collect", "id": 1})
    process.drain(1.0, 1.0)
    process.abort()


async def test_one_that_is_not_ready_is_not_asked_to_drain(process: Process, ear: Ear) -> None:
    process.drain(3600, 3600)
    await ear.gone.wait()
    assert (process.was_ready, process.returncode) == (False, -signal.SIGKILL)


async def test_a_hung_one_is_given_the_time_to_write_its_stacks(process: Process, ear: Ear) -> None:
    await ear.ready.wait()
    process.abort()
    assert process.deadline == pytest.approx(asyncio.get_running_loop().time() + ABORT_SECONDS, abs=1.0)
    await ear.gone.wait()
    assert (process.state, process.ending) == ("hung", "signal 6 (SIGABRT)")


async def test_one_that_closes_its_channel_and_stays_is_given_the_time_to_end(
    ear: Ear, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport os, time\nos.closerange(3, 256)\ntime.sleep(3600)\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    made = Process(0, 1, dict(BOOT), ear)
    begun = asyncio.get_running_loop().time()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await made.start(listening)
    async with asyncio.timeout(PATIENCE):
        while made.deadline == float("inf"):
            await asyncio.sleep(0.01)
        assert begun + EXIT_SECONDS <= made.deadline <= asyncio.get_running_loop().time() + EXIT_SECONDS
        assert not ear.gone.is_set()
        made.kill()
        await ear.gone.wait()


async def test_it_says_when_it_is_to_be_replaced(process: Process, ear: Ear) -> None:
    await ear.ready.wait()
    os.kill(process.pid, signal.SIGTERM)
    await ear.leaving.wait()


async def test_its_last_word_is_heard_before_it_is_gone(ear: Ear) -> None:
    made = Process(0, 1, {**BOOT, "redis": "nonsense://"}, ear)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        await made.start(listening)
    async with asyncio.timeout(PATIENCE):
        await ear.gone.wait()
    assert made.error.startswith("redis.url: ")
    assert made.ending == "exit code 1"


async def test_another_version_of_the_protocol_is_not_let_in(
    process: Process, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = channel.VERSION
    monkeypatch.setattr(channel, "VERSION", 99)
    await ear.gone.wait()
    assert process.error == f"its worker protocol is version {theirs}, the running one 99: restart instead"
    assert not ear.ready.is_set()


async def test_a_machine_without_room_for_it_says_so(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    made = Process(0, 1, dict(BOOT), ear)
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(FileNotFoundError):
        await made.start(listening)
    assert (made.pid, made.ending) == (0, "not started")
    made.kill()


async def test_one_that_cannot_be_watched_is_not_left_running(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    forked: list[int] = []

    def refuse(pid: int) -> int:
        forked.append(pid)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    made = Process(0, 1, dict(BOOT), ear)
    with socket.create_server(("127.0.0.1", 0)) as listening, pytest.raises(OSError, match="Too many open files"):
        await made.start(listening)
    assert made.pid == 0
    assert not alive(forked[0])
