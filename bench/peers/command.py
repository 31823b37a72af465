"""`python -m bench peers`: the gateway beside servers that others would have written, in one run and one table."""

import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.peers.catalog import FLOOR, GATEWAY, Peer, peers
from bench.peers.comparison import IN_FLIGHT, Load, Plan, Row, compare

WIDTH = 132
"""Of a table that goes into a file."""


@click.command("peers")
@click.option("--devices", default=50, type=click.IntRange(1), help="Connections that send.")
@click.option("--idle", default=2000, type=click.IntRange(1), help="Connections to learn the memory of one.")
@click.option("--seconds", default=3.0, type=click.FloatRange(0, min_open=True), help="How long to measure, each time.")
@click.option("--warmup", default=1.0, type=click.FloatRange(0), help="Seconds of load before that.")
@click.option("--rounds", default=3, type=click.IntRange(1), help="Times that each is measured; medians are shown.")
@click.option("--only", multiple=True, metavar="NAME", help="Of the peers this one; may be repeated.")
@click.option("--server-core", default=0, type=click.IntRange(0), help="The core of the servers and the store.")
@click.option("--load-core", default=1, type=click.IntRange(0), help="The core of the load generator.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def peers_command(
    devices: int,
    idle: int,
    seconds: float,
    warmup: float,
    rounds: int,
    only: Sequence[str],
    server_core: int,
    load_core: int,
    as_json: bool,
) -> None:
    """The gateway beside other servers with the same heartbeats: CPU, latency, memory."""
    if not {server_core, load_core} <= os.sched_getaffinity(0):
        raise click.UsageError(f"cores here: {', '.join(map(str, sorted(os.sched_getaffinity(0))))}")
    plan = Plan(devices, idle, seconds, warmup, rounds, (server_core, load_core))
    # Short: a socket's path has room for a hundred bytes.
    scratch = Path(tempfile.mkdtemp(prefix="vizora-peers-"))
    try:
        chosen = choose(peers(scratch), only)
        console = Console(stderr=True)
        with console.status("") as status:
            rows = compare(chosen, plan, scratch, status.update)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if as_json:
        click.echo(
            json.dumps({"schema": 1, "plan": dataclasses.asdict(plan), "peers": list(map(dataclasses.asdict, rows))})
        )
    else:
        show(Console(width=None if sys.stdout.isatty() else WIDTH), plan, rows)
    for row in rows:
        if row.missing:
            click.echo(f"{row.name}: {row.missing}", err=True)
    sys.exit(0 if any(row.loads for row in rows) else 1)


def choose(found: Sequence[Peer], only: Sequence[str]) -> list[Peer]:
    unknown = set(only) - {peer.name for peer in found}
    if unknown:
        names = ", ".join(f"'{peer.name}'" for peer in found)
        raise click.UsageError(f"no peer {', '.join(sorted(unknown))}; there are {names}")
    return [peer for peer in found if not only or peer.name in only]


def show(console: Console, plan: Plan, rows: Sequence[Row]) -> None:
    """The table, cheapest first; then what its marks mean."""
    table = Table(
        title=f"CPU of a heartbeat: {plan.devices:,} devices, median of {plan.rounds} x {plan.seconds:g} s",
        title_justify="left",
    )
    table.add_column("server", no_wrap=True)
    for in_flight in IN_FLIGHT:
        for what in (f"{in_flight} in flight, us", "of floor", f"of {GATEWAY}", "p99 ms"):
            table.add_column(what, justify="right")
    table.add_column("idle, KiB", justify="right")
    table.add_column("lacks", no_wrap=True)
    by_name = {row.name: row for row in rows}
    for row in sorted(rows, key=lambda row: row.loads[1].cpu_us if 1 in row.loads else float("inf")):
        if row.missing or set(row.loads) != set(IN_FLIGHT):
            table.add_row(row.name, *("-" for _ in range(4 * len(IN_FLIGHT))), "-", "not measured")
            continue
        cells = [cell for in_flight in IN_FLIGHT for cell in load_cells(row, in_flight, by_name)]
        kib = "-" if row.kib is None else f"{row.kib:.1f}"
        table.add_row(row.name, *cells, kib, " ".join(lack[0] for lack in row.lacks) or "nothing")
    console.print(table)
    lacks = {lack: lack[0] for row in rows for lack in row.lacks}
    if lacks:
        console.print("lacks: " + ", ".join(f"{letter} {lack}" for lack, letter in lacks.items()))
    if any(load.invalid for row in rows for load in row.loads.values()):
        console.print("* the load generator was the bottleneck, or waited for its core: an upper bound")


def load_cells(row: Row, in_flight: int, rows: dict[str, Row]) -> list[str]:
    load = row.loads[in_flight]
    mark = "*" if load.invalid else ""
    ratios = [ratio(load, rows.get(name), in_flight) for name in (FLOOR, GATEWAY)]
    return [f"{load.cpu_us:.1f}{mark}", *ratios, f"{load.p99_ms:.2f}"]


def ratio(load: Load, base: Row | None, in_flight: int) -> str:
    if base is None or in_flight not in base.loads:
        return "-"
    return f"{load.cpu_us / base.loads[in_flight].cpu_us:.2f}"
