"""Servers to compare, each a process on the core that all of them share; whoever starts them ends them."""

import contextlib
import os
import re
import subprocess
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from bench.peers.catalog import HERE, Peer

ROOT: Final = HERE.parent.parent
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0

LISTENING: Final = re.compile(r'listening(?: |".*"port": )(\d+)')
"""What every server writes, the gateway in its log."""


class ServerError(Exception):
    """It did not start, and its last words."""


class Server:
    """One server: `with Server(peer, core, environ) as server`."""

    def __init__(self, peer: Peer, core: int, environ: Mapping[str, str]) -> None:
        self._name = peer.name
        self._path = peer.path
        self._lines: deque[str] = deque(maxlen=20)
        self._port = 0
        self._news = threading.Event()
        with pinned(core):
            self._process = subprocess.Popen(
                peer.command,
                cwd=ROOT,
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        if self._news.wait(START_SECONDS) and self._port:
            return self
        self._stop()
        raise ServerError(f"{self._name} did not start: {' '.join(self._lines) or 'it said nothing'}")

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._stop()

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}{self._path}"

    @property
    def pids(self) -> list[int]:
        """It and its workers."""
        pid = self._process.pid
        return [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.strip())
            if not self._port and (found := LISTENING.search(line)):
                self._port = int(found[1])
                self._news.set()
        self._news.set()

    def _stop(self) -> None:
        """The gateway ends on a signal, the others with their stdin too."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(STOP_SECONDS)
        self._process.stdout.close()


@contextlib.contextmanager
def pinned(core: int) -> Iterator[None]:
    """What is started here runs on this core: children inherit it."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
