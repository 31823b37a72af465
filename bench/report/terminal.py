"""What people see of a run at a terminal: a progress bar while it lasts, a table at its end, what is wrong."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from bench.hints import hint
from bench.report import schema

Progress = Callable[[str, float, str], None]

REDRAW_SECONDS = 0.4

LATENCIES = ("p50", "p90", "p99", "p999", "p9999", "max")


@contextlib.contextmanager
def progress(console: Console, name: str) -> Iterator[Progress]:
    """A bar that is drawn when it is told something, seldom, and never by a thread of its own."""
    if not console.is_terminal:
        yield lambda phase, share, word: None
        return
    columns = (
        TextColumn("[bold]{task.fields[name]:15}[/] {task.description:16}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% [dim]{task.fields[word]}"),
    )
    with Bar(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task("starting", total=1.0, name=name, word="")
        drawn, drawn_phase = 0.0, ""

        def tell(phase: str, share: float, word: str) -> None:
            nonlocal drawn, drawn_phase
            bar.update(task, description=phase, completed=share, word=word)
            if phase != drawn_phase or time.monotonic() - drawn > REDRAW_SECONDS:
                drawn, drawn_phase = time.monotonic(), phase
                bar.refresh()

        yield tell


def show(console: Console, result: schema.Scenario) -> None:
    style = {"passed": "green", "failed": "red", "invalid": "yellow"}[result.verdict]
    title = f"[bold]{result.name}[/]  [{style}]{result.verdict.upper()}[/]"
    table = Table(title=title, title_justify="left", show_edge=True, pad_edge=False)
    table.add_column("ms")
    for name in ("sent", "lost", "/s", "p50", "p90", "p99", "p99.9", "p99.99", "max"):
        table.add_column(name, justify="right")
    for kind in result.kinds:
        lost = kind.sent - kind.accepted
        latencies = [digits(getattr(kind.latency, name) * 1e3) for name in LATENCIES]
        table.add_row(kind.name, f"{kind.sent:,}", f"{lost:,}", f"{kind.rate:,.0f}", *latencies)
    console.print(table)
    console.print("  ".join(costs(result.figures)), highlight=False)
    for each in result.thresholds:
        sign = {True: "[green]ok[/]", False: "[red]FAILED[/]", None: "[yellow]not measured[/]"}[each.passed]
        value = "" if each.value is None else f"  [dim]{show_value(each.expression, each.value)}[/]"
        console.print(f"  {sign:<6} {each.expression}{value}", highlight=False)


def complain(console: Console, result: schema.Scenario) -> None:
    """Losses, refusals, doubts: a line each."""
    for kind in result.kinds:
        for code, count in kind.refused.items():
            line(console, f"{kind.name}: {count:,} refused: {code}{hint(code)}")
        if kind.lost:
            line(console, f"{kind.name}: {kind.lost:,} without an answer{hint('lost')}")
    for what, count in result.counters.items():
        line(console, f"{count:,} {what}{hint(what.removeprefix('connect failed: '))}")
    for note in result.notes:
        line(console, note)
    for reason in result.invalid:
        line(console, f"INVALID: {reason}")


def line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def costs(figures: dict[str, float]) -> Iterator[str]:
    """What a message and a connection cost the gateway."""
    if "cpu" in figures:
        cpu, user, system = (figures[name] * 1e6 for name in ("cpu", "cpu.user", "cpu.system"))
        yield f"CPU {cpu:.2f} us a message (user {user:.2f}, system {system:.2f}), {figures['cpu.cores']:.2f} cores"
    if "connect.cpu" in figures:
        yield f"{figures['connect.cpu'] * 1e6:.0f} us a connect"
    if "memory" in figures:
        yield f"{figures['memory'] / 1024:.1f} KiB a connection"


def show_value(expression: str, value: float) -> str:
    """In the unit that the threshold has."""
    for unit, factor in (("us", 1e6), ("ms", 1e3), ("KiB", 1 / 1024), ("MiB", 1 / 2**20), ("%", 100.0), ("s", 1.0)):
        if expression.endswith(unit) and not expression.endswith("/s"):
            return f"{digits(value * factor)}{unit}"
    return digits(value)


def digits(value: float) -> str:
    """Three that say something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{0 if value == int(value) else 3 if value < 1 else 2 if value < 10 else 1 if value < 100 else 0}f}"
