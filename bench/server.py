"""The server under load, from outside: which processes it is, and what /proc says they used.

Also what /proc says of this process: a load generator that did not get its core measures itself.
"""

import json
import os
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vizora_rt.net.dial import Endpoint

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
STATUS_SECONDS = 5.0


class Usage(NamedTuple):
    """CPU seconds since they began and resident bytes of some processes together."""

    user: float
    system: float
    resident: int


class Sample(NamedTuple):
    """One look at everything: the clock, the server, and how long this process ran, and waited for a core."""

    at: float
    server: Usage
    ran: float
    waited: float


def sample(processes: Sequence[int]) -> Sample:
    return Sample(time.perf_counter(), usage(processes), time.process_time(), waited())


def pids(endpoint: Endpoint) -> list[int]:
    """Supervisor and workers by `GET /status`; none when the server is of another kind."""
    scheme = "http" if endpoint.tls is None else "https"
    try:
        with urllib.request.urlopen(f"{scheme}://{endpoint.authority}/status", timeout=STATUS_SECONDS) as answer:
            status = json.load(answer)
        return [status["pid"], *(worker["pid"] for worker in status["workers"])]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def usage(processes: Sequence[int]) -> Usage:
    """What the processes used until now. One that is gone counts as nothing."""
    user = system = resident = 0
    for pid in processes:
        try:
            # The command is in parentheses and may hold any character; see proc_pid_stat(5) for the rest.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        user += int(fields[11])
        system += int(fields[12])
        resident += int(fields[21])
    return Usage(user / TICK, system / TICK, resident * PAGE)


def waited() -> float:
    """Seconds that this process was ready to run and had to wait for a core, 0 where the kernel does not tell."""
    try:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
