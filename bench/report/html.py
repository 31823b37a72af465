"""report.html: the report for people, one file that needs no other, no network and no script."""

from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import count
from pathlib import Path
from typing import Final

from bench.report import schema, svg
from bench.report.histogram import STAT_NAMES
from bench.report.svg import Line
from bench.report.terminal import digits, show_value

STYLE: Final = Path(__file__).with_name("report.css")
COLOURS: Final = 6
NOTHING_FROM_OUTSIDE: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NINES: Final = ((50.0, "50%"), (90.0, "90%"), (99.0, "99%"), (99.9, "99.9%"), (99.99, "99.99%"), (99.999, "99.999%"))
SIGNS: Final = {True: ("yes", "✓"), False: ("no", "✗"), None: ("unknown", "?")}
COLUMNS: Final = ("mean", "p50", "p75", "p90", "p95", "p99", "p999", "p9999", "max")


def page(report: schema.Report) -> str:
    machine = report.machine
    where = f"{machine.cores} cores of {machine.cpu}, {size(machine.memory)}, {machine.kernel}, Python {machine.python}"
    body = "".join(map(section, report.scenarios))
    overview = summary(report) if len(report.scenarios) > 1 else ""
    names = ", ".join(scenario.name for scenario in report.scenarios)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f'<meta http-equiv="Content-Security-Policy" content="{NOTHING_FROM_OUTSIDE}">'
        f"<title>vizora-rt bench: {escape(names)}</title><style>{STYLE.read_text('utf-8')}</style></head><body>"
        f"<header><div><h1>vizora-rt bench {verdict(report.verdict)}</h1>"
        f"<p>{escape(report.started.replace('T', ' ').replace('Z', ' UTC'))} · gateway: {escape(report.gateway)}"
        f" · {escape(where)}</p><code>{escape(report.command)}</code></div></header>"
        f"<main>{overview}{body}</main></body></html>\n"
    )


def summary(report: schema.Report) -> str:
    """A line a scenario."""
    rows = []
    for each in report.scenarios:
        figures, kind = each.figures, main_kind(each)
        cells = [
            f'<a href="#{escape(each.name)}">{escape(each.name)}</a>',
            verdict(each.verdict),
            f"{figures.get('rate', 0):,.0f}",
            *((seconds(kind.latency.p50), seconds(kind.latency.p99), seconds(kind.latency.max)) if kind else ("",) * 3),
            share(figures.get("errors")),
            f"{figures['cpu'] * 1e6:.1f} µs" if "cpu" in figures else "",
            size(figures["memory"]) if "memory" in figures else "",
        ]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = ("scenario", "", "messages/s", "p50", "p99", "max", "errors", "CPU a message", "memory a connection")
    titles = "".join(f"<th>{head}</th>" for head in heads)
    return f'<section class="card scroll"><table><tr>{titles}</tr>{"".join(rows)}</table></section>'


def section(result: schema.Scenario) -> str:
    warnings = "".join(f'<p class="warning invalid">INVALID: {escape(reason)}</p>' for reason in result.invalid)
    warnings += "".join(f'<p class="warning invalid">{escape(note)}</p>' for note in result.notes)
    return (
        f'<section id="{escape(result.name)}"><div class="head"><h2>{escape(result.name)}</h2>'
        f'{verdict(result.verdict)}</div><p class="soft">{escape(result.about)}</p>{warnings}'
        f'<div class="tiles">{"".join(tiles(result))}</div>'
        f'<div class="two">{limits(result)}{latencies(result)}</div>'
        f'<div class="charts">{"".join(charts(result))}</div>{facts(result)}</section>'
    )


def tiles(result: schema.Scenario) -> Iterator[str]:
    figures, kind = result.figures, main_kind(result)
    yield tile(f"{figures.get('rate', 0):,.0f}", "/s", "messages")
    if kind is not None:
        for name, value in (("p50", kind.latency.p50), ("p99", kind.latency.p99), ("max", kind.latency.max)):
            number, _, unit = seconds(value).partition(" ")
            yield tile(number, unit, f"{kind.name.replace('_', ' ')} {name}")
    yield tile(share(figures.get("errors")).rstrip("%"), "%", "errors")
    if "cpu" in figures:
        yield tile(f"{figures['cpu'] * 1e6:.1f}", "µs", "CPU a message")
    if "memory" in figures:
        number, _, unit = size(figures["memory"]).partition(" ")
        yield tile(number, unit, "a connection")
    if "plays.lost" in figures:
        yield tile(f"{figures['plays.lost']:,.0f}", f"of {figures['plays.verified']:,.0f}", "acked plays lost")


def tile(number: str, unit: str, what: str) -> str:
    value = f"<b>{escape(number)}<small>{escape(unit)}</small></b>"
    return f'<div class="card tile">{value}<span>{escape(what)}</span></div>'


def limits(result: schema.Scenario) -> str:
    rows = []
    for each in result.thresholds:
        style, sign = SIGNS[each.passed]
        value = "not measured" if each.value is None else show_value(each.expression, each.value)
        rows.append(f'<li class="{style}"><i>{sign}</i><code>{escape(each.expression)}</code><em>{value}</em></li>')
    return f'<div class="card"><h3>Thresholds</h3><ul class="limits">{"".join(rows)}</ul></div>'


def latencies(result: schema.Scenario) -> str:
    heads = ("latency in ms", "sent", "not accepted", *(STAT_NAMES[name] for name in COLUMNS))
    rows = [f"<tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"]
    for kind in result.kinds:
        name = escape(kind.name.replace("_", " "))
        first = f'<a href="{escape(kind.log)}">{name}</a>' if kind.latency.count else name
        numbers = [digits(getattr(kind.latency, column) * 1e3) for column in COLUMNS]
        cells = (first, f"{kind.sent:,}", f"{kind.sent - kind.accepted:,}", *numbers)
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<div class="card scroll"><table>{"".join(rows)}</table></div>'


def charts(result: schema.Scenario) -> Iterator[str]:
    timeline, kind = result.timeline, main_kind(result)
    yield percentiles(result.kinds)
    marks = [(mark.at, mark.what) for mark in timeline.marks]

    def over_time(
        title: str,
        lines: Sequence[Line],
        shown: Callable[[float], str],
        scale: Callable[[Sequence[float]], svg.Axis],
    ) -> str:
        values = [value for line in lines for _, value in line.points if value is not None]
        end = timeline.seconds[-1]
        x = svg.linear([end], lambda value: f"{digits(value)} s", steps=6)._replace(high=end)
        x = x._replace(ticks=[tick for tick in x.ticks if tick[0] <= end * 1.001])
        drawing = svg.chart(x, scale(values), lines, title, lambda value: f"{digits(value)} s", shown, marks)
        return framed(title, lines, drawing)

    def points(values: Sequence[float | None]) -> list[svg.Point]:
        return list(zip(timeline.seconds, values, strict=True))

    if kind is not None and kind.name in timeline.kinds:
        series = timeline.kinds[kind.name]
        lines = [
            Line("max", points(series.max), 1),
            Line("p99", points(series.p99), 3),
            Line("p50", points(series.p50), 0),
        ]
        title = f"{kind.name.replace('_', ' ').capitalize()} latency over time"
        yield over_time(title, lines, seconds, lambda values: svg.decades(values, seconds))
    lines = [
        Line(name.replace("_", " "), points(series.rate), number % COLOURS, True)
        for number, (name, series) in enumerate(timeline.kinds.items())
    ]
    yield over_time("Answers a second", lines, digits, lambda values: svg.linear(values, compact))
    running = timeline.processes
    if running:
        colours = dict(zip((process.pid for process in running), count(), strict=False))
        cpu = [Line(each.name, points(each.cpu), colours[each.pid] % COLOURS) for each in running]
        yield over_time("CPU, in cores", cpu, digits, lambda values: svg.linear(values, digits, 0.1))
        memory = [Line(each.name, points(each.memory), colours[each.pid] % COLOURS) for each in running]
        yield over_time("Resident memory", memory, size, lambda values: svg.linear(values, size, base=2.0))
    held = [Line("connections", points([float(each) for each in timeline.connections]), 0, True)]
    yield over_time("Connections", held, digits, lambda values: svg.linear(values, compact))


def percentiles(kinds: Sequence[schema.Kind]) -> str:
    """As HdrHistogram draws them: each nine has the same width."""
    shown = [kind for kind in kinds if kind.curve]
    finest = max((point[0] for kind in shown for point in kind.curve if point[0] < 100), default=90.0)
    end = 1 / (1 - max(90.0, finest) / 100) * 1.3
    lines = [
        Line(
            kind.name.replace("_", " "),
            [(min(end, 1 / (1 - percent / 100) if percent < 100 else end), value) for percent, value in kind.curve],
            number % COLOURS,
        )
        for number, kind in enumerate(shown)
    ]
    ticks = [(1 / (1 - percent / 100), text) for percent, text in NINES if 1 / (1 - percent / 100) <= end]
    x = svg.Axis(1.0, end, [(1.0, "0%"), *ticks], True)
    y = svg.decades([value for line in lines for _, value in line.points if value is not None], seconds)
    title = "Latency by percentile"
    return framed(title, lines, svg.chart(x, y, lines, title, lambda value: f"{100 - 100 / value:.5g}%", seconds))


def framed(title: str, lines: Sequence[Line], drawing: str) -> str:
    keys = "".join(f'<span class="key"><i class="b{line.colour}"></i>{escape(line.name)}</span>' for line in lines)
    return f'<div class="card chart"><div><h3>{escape(title)}</h3>{keys if len(lines) > 1 else ""}</div>{drawing}</div>'


def facts(result: schema.Scenario) -> str:
    """Everything else that is known, for who wants to know it."""
    generator = result.generator
    rows = {
        "load processes": str(generator.processes),
        "load processes, busy": f"{generator.busy:.0%}, at most {generator.busiest:.0%}",
        "load processes, waited for a core": f"{generator.waited:.1%}",
        "sent late, p99": seconds(generator.late.p99) if generator.late.count else "",
        **{name: "none" if value is None else f"{value:g}" for name, value in result.options.items()},
        **{name: f"{value:g}" for name, value in result.figures.items()},
        **{what: f"{number:,}" for what, number in result.counters.items()},
    }
    items = "".join(f"<li><span>{escape(name)}</span><span>{escape(value)}</span></li>" for name, value in rows.items())
    return f'<details><summary>Options, all figures, the generator</summary><ul class="facts">{items}</ul></details>'


def main_kind(result: schema.Scenario) -> schema.Kind | None:
    """What the scenario is about: that of which there is most, heartbeats first."""
    measured = [kind for kind in result.kinds if kind.latency.count]
    wanted = {"connect-storm": "connect", "http": "http", "broadcast": "command"}.get(result.name, "heartbeat")
    return next((kind for kind in measured if kind.name == wanted), measured[0] if measured else None)


def verdict(value: str) -> str:
    return f'<span class="verdict {value}">{value}</span>'


def seconds(value: float) -> str:
    if value < 1e-3:
        return f"{digits(value * 1e6)} µs"
    return f"{digits(value * 1e3)} ms" if value < 1 else f"{digits(value)} s"


def size(value: float) -> str:
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= factor:
            return f"{digits(value / factor)} {unit}"
    return f"{value:.0f} B"


def share(value: float | None) -> str:
    return "" if value is None else f"{digits(value * 100)}%"


def compact(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 10_000 else digits(value)
