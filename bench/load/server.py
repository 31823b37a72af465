"""The server under load, from outside: which processes it is, and what /proc says they used.

Also what /proc says of this process: a load generator that did not get its core measures itself.
"""

import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vizora_rt.client.websocket import Endpoint

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
STATUS_SECONDS = 5.0
STORE: Final = "store"
"""The part of a process that is not the gateway's own: its costs are told apart."""


class Process(NamedTuple):
    """One look at a process. `descriptors` is what it has open."""

    name: str
    user: float
    system: float
    resident: int
    descriptors: int


def base(endpoint: Endpoint) -> str:
    """Where HTTP is spoken, at the same port."""
    return f"{'http' if endpoint.tls is None else 'https'}://{endpoint.authority}"


def pids(endpoint: Endpoint) -> list[int]:
    """Supervisor and workers by `GET /status`; none when the server is of another kind."""
    try:
        with urllib.request.urlopen(f"{base(endpoint)}/status", timeout=STATUS_SECONDS) as answer:
            status = json.load(answer)
        return [status["pid"], *(worker["pid"] for worker in status["workers"])]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def exposition(endpoint: Endpoint) -> str:
    """The server's metrics. Raises OSError."""
    with urllib.request.urlopen(f"{base(endpoint)}/metrics", timeout=STATUS_SECONDS) as answer:
        return bytes(answer.read()).decode()


def look(pid: int, name: str = "", descriptors: bool = False) -> Process | None:
    """What a process has used until now; None when there is none."""
    try:
        # The command is in parentheses and may hold any character; see proc_pid_stat(5) for the rest.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        held = count_descriptors(pid) if descriptors else 0
    except OSError:
        return None
    return Process(name, int(fields[11]) / TICK, int(fields[12]) / TICK, int(fields[21]) * PAGE, held)


def count_descriptors(pid: int) -> int:
    """Since Linux 6.2 the size of the directory is their number; to list 10,000 takes milliseconds."""
    folder = Path(f"/proc/{pid}/fd")
    return folder.stat().st_size or sum(1 for _ in folder.iterdir())


def waited() -> float:
    """Seconds that this process was ready to run and had to wait for a core, 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


class Watch:
    """Some processes and their children, whichever they are by now, and what all of them have used.

    What a process used stays in the sums when it is gone: a worker that was replaced did its work.
    """

    def __init__(self, roots: Sequence[int]) -> None:
        """`roots` may grow: a service that is started again has another process."""
        self._roots = roots
        self._names: dict[int, str] = {}
        self._last: dict[int, Process] = {}

    def look(self) -> dict[int, Process]:
        """Those that are there now."""
        found = {}
        for pid in dict.fromkeys(each for root in self._roots for each in family(root)):
            name = self._names.get(pid) or self._name(pid)
            process = look(pid, name, descriptors=True)
            if process is not None:
                found[pid] = self._last[pid] = process
        return found

    def used(self, store: bool = False) -> tuple[float, float]:
        """User and system seconds of all that were ever seen: of the gateway's processes, or of its store."""
        mine = [process for process in self._last.values() if (process.name == STORE) is store]
        return sum(process.user for process in mine), sum(process.system for process in mine)

    def _name(self, pid: int) -> str:
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"vizora_rt.service.worker" in command:
                name = f"worker {sum(1 for known in self._names.values() if known.startswith('worker'))}"
            elif b"valkey" in command or b"redis-server" in command:
                name = STORE
            elif b"vizora" in command and pid in self._roots:
                name = "supervisor"
            else:
                # Not yet what it will become (a child has its parent's command until it executes its own), or a server
                # of another kind.
                return command.partition(b"\0")[0].decode(errors="replace").rpartition("/")[2] or "server"
            self._names[pid] = name
            return name
        return "server"


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it. Children belong to the thread that made them."""
    yield pid
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                for child in (thread / "children").read_text().split():
                    yield from family(int(child))
