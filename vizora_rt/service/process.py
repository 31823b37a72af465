"""One worker process as the supervisor sees it: start it, hear it, ask it to end, end it.

It decides nothing. What it hears goes to a `Listener`, the supervisor.
"""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Literal, Protocol

from vizora_rt.service import channel
from vizora_rt.service.channel import Channel, Message
from vizora_rt.telemetry import logs

State = Literal["starting", "ready", "hung", "draining"]
"""The values of the label `state` in the metric `workers`."""

ABORT_SECONDS = 2.0
"""Between SIGABRT and SIGKILL: faulthandler writes all stacks in milliseconds, on a machine without a free core in some
hundred; a stopped process never would. Its screens wait all the while."""

EXIT_SECONDS = 5.0
"""Between the end of the channel and SIGKILL. It ends with the process, unless the stream was torn: then a worker has a
second to say goodbye (its ORPHAN_SECONDS) and some for the store and Sentry."""

log = logs.logger("supervisor")


class Listener(Protocol):
    """Who hears a process."""

    def on_ready(self, process: "Process") -> None: ...
    def on_leaving(self, process: "Process") -> None: ...
    def on_gone(self, process: "Process") -> None: ...
    def on_metrics(self, process: "Process", message: Message) -> None: ...
    def on_ask(self, process: "Process", message: Message) -> None: ...


class Process:
    """A worker from fork to funeral. Times are the loop's clock.

    `deadline` is when it is killed for not having ended; `error` is its own last word when it could not boot.
    """

    __slots__ = (
        "_boot",
        "_channel",
        "_ended",
        "_listener",
        "_loop",
        "_pidfd",
        "_popen",
        "beat",
        "connections",
        "deadline",
        "error",
        "generation",
        "index",
        "returncode",
        "started",
        "state",
        "was_ready",
    )

    def __init__(self, index: int, generation: int, boot: Message, listener: Listener) -> None:
        self.index = index
        self.generation = generation
        self.state: State = "starting"
        self.was_ready = False
        self.connections = 0
        self.deadline = float("inf")
        self.error = ""
        self.returncode: int | None = None
        self._boot = boot
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self.started = self.beat = self._loop.time()
        self._popen: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._pidfd = -1
        self._ended = False

    @property
    def pid(self) -> int:
        return self._popen.pid if self._popen is not None else 0

    @property
    def ending(self) -> str:
        """How it ended, for people."""
        code = self.returncode
        if code is None:
            return "not started"
        return f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.Signals(-code).name})"

    async def start(self, listening: socket.socket, *shared: int) -> None:
        """Fork a worker that serves `listening` and has the descriptors `shared` too. Raises OSError when the machine
        has no room for one.

        A process group of its own keeps a terminal's Ctrl-C from the worker: the supervisor drains it.
        """
        near, far = socket.socketpair()
        with far:
            try:
                self._popen = self._fork(far.fileno(), listening.fileno(), shared)
                self._pidfd = os.pidfd_open(self._popen.pid)
            except OSError:
                near.close()
                self._unfork()
                raise
        self._loop.add_reader(self._pidfd, self._on_exit)
        self._channel = await channel.connect(near, self._on_message, self._on_eof)

    def _fork(self, channel_fd: int, listening_fd: int, shared: tuple[int, ...]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - this interpreter with a module of ours and two numbers
            [sys.executable, "-m", "vizora_rt.service.worker", str(channel_fd), str(listening_fd)],
            stdin=subprocess.DEVNULL,
            pass_fds=(channel_fd, listening_fd, *shared),
            process_group=0,
        )

    def _unfork(self) -> None:
        """Without a descriptor to watch it by, a process is none of ours."""
        if self._popen is not None:
            self._popen.kill()
            self._popen.wait()
            self._popen = None

    def send(self, message: Message, raw: bytes = b"") -> None:
        if self._channel is not None:
            self._channel.send(message, raw)

    def drain(self, seconds: float, within: float, successor: bool = False) -> None:
        """Ask it to close its connections over `seconds` and end; it is killed after `within`. `successor`: somebody
        accepts on its socket already."""
        if self.state == "starting":
            self.kill()
        elif self.state != "hung":
            self.state = "draining"
            self.deadline = min(self.deadline, self._loop.time() + within)
            self.send({"t": "drain", "seconds": seconds, "successor": successor})

    def abort(self) -> None:
        """Its loop hangs: have it write all its stacks (faulthandler), and kill it if even that does not end it."""
        self.state = "hung"
        self.deadline = self._loop.time() + ABORT_SECONDS
        self._signal(signal.SIGABRT)

    def kill(self) -> None:
        self.deadline = float("inf")
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        # Safe against a reused pid: it is ours until `wait`, and Popen signals nothing after it.
        if self._popen is not None and self.returncode is None:
            self._popen.send_signal(number)

    def _on_message(self, message: Message, _: bytes) -> None:
        match message.get("t"):
            case "beat" | "devices":
                self._on_metrics(message)
            case "ask":
                self._listener.on_ask(self, message)
            case "hello":
                self._on_hello(message)
            case "ready":
                self._on_ready()
            case "leaving":
                self._listener.on_leaving(self)
            case "failed":
                self.error = str(message.get("error"))

    def _on_hello(self, message: Message) -> None:
        version = message.get("version")
        if version == channel.VERSION:
            self.send(self._boot)
        else:
            self.error = f"its worker protocol is version {version}, the running one {channel.VERSION}: restart instead"
            self.kill()

    def _on_ready(self) -> None:
        self.beat = self._loop.time()
        if self.state == "starting":
            self.state = "ready"
            self.was_ready = True
            self._listener.on_ready(self)

    def _on_metrics(self, message: Message) -> None:
        self.beat = self._loop.time()
        self.connections = message.get("connections", self.connections)
        self._listener.on_metrics(self, message)

    def _on_exit(self) -> None:
        assert self._popen is not None
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.returncode = self._popen.wait()
        self._gone()

    def _on_eof(self) -> None:
        """All that it said was read. A worker that closed its channel and lives on is of no use."""
        self._ended = True
        self._channel = None
        self.deadline = min(self.deadline, self._loop.time() + EXIT_SECONDS)
        self._gone()

    def _gone(self) -> None:
        if self._ended and self.returncode is not None:
            self._listener.on_gone(self)
