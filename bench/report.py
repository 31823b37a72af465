"""What people see of a run: a progress bar while it lasts, when they sit at a terminal, and a table at its end."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bench.engine import Progress
from bench.histogram import Quantiles
from bench.load import Connects, Generator, Messages, Plan, Result, Server

REDRAW_SECONDS = 0.9
"""To draw takes a millisecond or two in which no message is sent."""

HINTS = {
    "RATE_LIMITED": "start the server with VIZORA_LIMITS__MESSAGES_PER_MINUTE=0",
    "AUTH_INVALID": "the server has another DEVICE_JWT_SECRET",
}


@contextlib.contextmanager
def progress(console: Console) -> Iterator[Progress]:
    """A bar that is drawn when it is told something, seldom, and never by a thread of its own."""
    if not console.is_terminal:
        yield lambda phase, share: None
        return
    with Bar(
        TextColumn("{task.description:12}"), BarColumn(), console=console, auto_refresh=False, transient=True
    ) as bar:
        task = bar.add_task("", total=1.0)
        drawn = 0.0

        def tell(phase: str, share: float) -> None:
            nonlocal drawn
            bar.update(task, description=phase, completed=share)
            if time.monotonic() - drawn > REDRAW_SECONDS:
                drawn = time.monotonic()
                bar.refresh()

        yield tell


def show(console: Console, plan: Plan, result: Result) -> None:
    how = f"{plan.in_flight} in flight each" if plan.rate is None else f"{plan.rate:,.0f} messages/s"
    table = Table(
        title=f"{len(plan.tokens):,} devices, {how}, {plan.seconds:g} s", show_header=False, title_justify="left"
    )
    table.add_row("connect", _connects(result.connects))
    table.add_row("messages", _messages(result.messages))
    table.add_row("latency", _quantiles(result.messages.latencies))
    table.add_row("server", _server(result.server, result.messages, result.connects))
    table.add_row("generator", _generator(result.generator))
    console.print(table)


def faults(result: Result) -> Iterator[str]:
    """Why this is no measurement of what was asked for, a line each."""
    messages = result.messages
    for what, counter in (
        ("failed to connect", result.connects.failed),
        ("messages were refused", messages.refused),
        ("connections ended", messages.closed),
    ):
        if counter:
            yield fault(what, counter)
    if messages.lost:
        yield f"{messages.lost:,} messages were not answered"
    if not messages.answered:
        yield "nothing was answered"


def fault(what: str, counter: Counter[str]) -> str:
    hints = "".join(f" ({hint})" for name, hint in HINTS.items() if name in counter)
    return f"{what}{_counted(': ', counter)}{hints}"


def _connects(connects: Connects) -> str:
    speed = connects.opened / connects.elapsed
    line = f"{connects.opened:,} opened in {connects.elapsed:.2f} s ({speed:,.0f}/s)"
    return "\n".join((line + _counted(", failed: ", connects.failed), _quantiles(connects.latencies)))


def _messages(messages: Messages) -> str:
    line = f"{messages.answered:,} answered ({messages.answered / messages.elapsed:,.0f}/s), {messages.lost:,} lost"
    return line + _counted(", refused: ", messages.refused) + _counted(", ended: ", messages.closed)


def _server(server: Server | None, messages: Messages, connects: Connects) -> str:
    if server is None:
        return "no /status: name its processes with --pids"
    cpu = (server.user + server.system) / messages.elapsed
    lines = [f"{server.processes} processes, CPU {cpu:.0%}"]
    if messages.answered:
        user, system = (seconds / messages.answered * 1e6 for seconds in (server.user, server.system))
        lines.append(f"{user + system:.2f} us a message (user {user:.2f}, system {system:.2f})")
    grown = connects.grown / connects.opened / 1024
    lines.append(f"resident {server.resident / 2**20:.1f} MiB, grown by {grown:.1f} KiB a connection")
    return "\n".join(lines)


def _generator(generator: Generator) -> str:
    line = f"busy {generator.busy:.0%}, waited for a core {generator.waited:.1%}"
    return line if generator.lateness is None else f"{line}\nlate {_quantiles(generator.lateness)}"


def _quantiles(latencies: Quantiles) -> str:
    """In milliseconds."""
    names = ("p50", "p90", "p99", "p99.9", "max")
    return "  ".join(f"{name} {_digits(value * 1e3)}" for name, value in zip(names, latencies[1:], strict=True)) + " ms"


def _digits(value: float) -> str:
    """Three that say something."""
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"


def _counted(title: str, counter: Counter[str]) -> str:
    return title + ", ".join(f"{count:,} {name}" for name, count in counter.most_common()) if counter else ""
