"""Peers side by side: all are started, each is measured in turn, and the turns are repeated.

Servers and the store share one core, the load generator has another. Every figure is the median of its rounds: what
disturbs the machine for a second disturbs one round of one peer, not its figure.
"""

import contextlib
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.peers.catalog import Peer
from bench.peers.servers import ROOT, Server, ServerError, pinned
from bench.report import schema
from bench.report.schema import Scenario
from vizora_rt.net.valkey import server as valkey_server

IN_FLIGHT: Final = (1, 8)
RAMP: Final = 500
"""Connects a second, half of what the slowest peer takes."""
LOAD_SECONDS: Final = 60.0
"""How long a load generator may take more than it measures."""
LIMITS: Final = ("--threshold", "errors==0", *("--threshold", "heartbeat.p99<60s", "--threshold", "heartbeat.p95<60s"))
"""Whoever refuses or loses a message is no comparison; how long it takes is what is to be compared."""
INVALID: Final = 3
"""Its exit code when it was the bottleneck: the figures are upper bounds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for: of `devices` that send, of `idle` ones for the memory of one; `cores`: servers', load's."""

    devices: int
    idle: int
    seconds: float
    warmup: float
    rounds: int
    cores: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Load:
    """A peer with so many messages in flight a device. `invalid` has the load generator's doubts, of any round."""

    cpu_us: float
    p50_ms: float
    p99_ms: float
    rate: float
    rounds_cpu_us: list[float]
    invalid: list[str]


@dataclass(slots=True)
class Row:
    """A peer's figures by messages in flight; `kib` is what an idle connection costs; or why there are none."""

    name: str
    lacks: tuple[str, ...]
    missing: str = ""
    kib: float | None = None
    loads: dict[int, Load] = field(default_factory=dict)


def compare(peers: Sequence[Peer], plan: Plan, scratch: Path, tell: Callable[[str], None]) -> list[Row]:
    """Measure all that can run here."""
    rows = [Row(peer.name, peer.lacks, peer.missing) for peer in peers]
    with contextlib.ExitStack() as stack:
        with pinned(plan.cores[0]):
            store = valkey_server.start(scratch / "store")
        stack.callback(store.stop)
        environ = settings(store.url, scratch)
        running: list[tuple[Row, Server]] = []
        for row, peer in zip(rows, peers, strict=True):
            if row.missing:
                continue
            tell(f"starting {peer.name}")
            try:
                server = stack.enter_context(Server(peer, plan.cores[0], environ))
                row.kib = idle(server, plan, environ)
                running.append((row, server))
            except ServerError as error:
                row.missing = str(error)
        for in_flight in IN_FLIGHT:
            measure(running, in_flight, plan, environ, tell)
    return rows


def settings(redis: str, scratch: Path) -> dict[str, str]:
    """The environment of all: no limits that a load generator would meet, and one secret."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(scratch),
        "DEVICE_JWT_SECRET": secrets.token_hex(32),
        "JWT_SECRET": secrets.token_hex(32),
        "REDIS_URL": redis,
        "VIZORA_ENV": "production",
        "VIZORA_STATE_DIR": str(scratch / "state"),
        "VIZORA_SERVER__HOST": "127.0.0.1",
        "VIZORA_LOGGING__FORMAT": "json",
        "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
        "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0",
    }


def measure(
    running: Sequence[tuple[Row, Server]],
    in_flight: int,
    plan: Plan,
    environ: Mapping[str, str],
    tell: Callable[[str], None],
) -> None:
    """All peers in turn, as often as there are rounds. A round that fails is left out, and told with the doubts."""
    rounds: dict[str, list[Scenario]] = {row.name: [] for row, _ in running}
    failed: dict[str, list[str]] = {row.name: [] for row, _ in running}
    for number in range(plan.rounds):
        for row, server in running:
            tell(f"{in_flight} in flight, round {number + 1} of {plan.rounds}: {row.name}")
            options = ("--inflight", str(in_flight), "--seconds", str(plan.seconds), "--warmup", str(plan.warmup))
            try:
                rounds[row.name].append(drive(server, plan.devices, plan, environ, *options))
            except ServerError as error:
                failed[row.name].append(f"round {number + 1}: {error}")
    for row, _ in running:
        if rounds[row.name]:
            row.loads[in_flight] = load_of(rounds[row.name], failed[row.name])
        else:
            row.missing = "; ".join(failed[row.name])


def load_of(rounds: Sequence[Scenario], failed: Sequence[str] = ()) -> Load:
    """The medians."""
    cpu = [one.figures["cpu"] * 1e6 for one in rounds]
    return Load(
        statistics.median(cpu),
        statistics.median(one.figures["heartbeat.p50"] for one in rounds) * 1e3,
        statistics.median(one.figures["heartbeat.p99"] for one in rounds) * 1e3,
        statistics.median(one.figures["rate"] for one in rounds),
        cpu,
        [*failed, *sorted({doubt for one in rounds for doubt in one.invalid})],
    )


def idle(server: Server, plan: Plan, environ: Mapping[str, str]) -> float:
    """KiB of a connection that has said nothing yet. Measured first, while the server has no freed memory to use."""
    found = drive(server, plan.idle, plan, environ, "--rate", "200", "--seconds", "1", "--warmup", "0")
    return found.figures["memory"] / 1024


def drive(server: Server, devices: int, plan: Plan, environ: Mapping[str, str], *options: str) -> Scenario:
    """One run of the load generator. Raises ServerError when it is no measurement."""
    pids = ",".join(map(str, server.pids))
    command = (sys.executable, "-m", "bench", "run", "heartbeat", "--url", server.url, "--pids", pids)
    common = ("--devices", str(devices), "--ramp", str(RAMP), "--max-late-ms", "1000")
    with tempfile.TemporaryDirectory(prefix="vizora-peers-") as folder:
        with pinned(plan.cores[1]):
            process = subprocess.Popen(
                (*command, *common, *LIMITS, *options, "--out", folder),
                cwd=ROOT,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        with process:
            try:
                _, complaints = process.communicate(timeout=LOAD_SECONDS + plan.seconds + plan.warmup)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ServerError("the load generator did not end") from None
        if process.returncode not in (0, INVALID):
            raise ServerError(complaints.strip().replace("\n", "; ") or f"exit code {process.returncode}")
        (found,) = schema.read(Path(folder) / "report.json").scenarios
    return found
