"""Charts as SVG: lines over an axis, with a grid, marks, and what a point is worth when the pointer rests on it."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final, NamedTuple

WIDTH: Final = 620
HEIGHT: Final = 250
LEFT: Final = 58
RIGHT: Final = 14
TOP: Final = 14
BOTTOM: Final = 30
HINTS: Final = 120
"""Points of a line that tell their worth; of more every n-th does."""

Format = Callable[[float], str]
Point = tuple[float, float | None]


class Line(NamedTuple):
    """A line of a chart. A point without a value interrupts it; `colour` is the number of a CSS colour."""

    name: str
    points: Sequence[Point]
    colour: int
    area: bool = False


class Axis(NamedTuple):
    """From `low` to `high`, evenly or by powers of ten, with ticks where they read well."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def place(self, value: float) -> float:
        """0 at its beginning, 1 at its end."""
        if self.log:
            low, high = math.log10(self.low), math.log10(self.high)
            return (math.log10(max(value, self.low)) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def linear(values: Sequence[float], shown: Format, least: float = 0.0, steps: int = 4, base: float = 10.0) -> Axis:
    """From zero to a round number above all values."""
    top = max([*values, least]) or 1.0
    step = nice(top / steps, base)
    count = math.ceil(top / step - 1e-9)
    return Axis(0.0, step * count, [(step * number, shown(step * number)) for number in range(count + 1)])


def nice(step: float, base: float = 10.0) -> float:
    """The next round number: 1, 2, 2.5 or 5 times a power of ten, or a power of two."""
    if base == 2:
        return float(2 ** math.ceil(math.log2(step) - 1e-9))
    power = 10.0 ** math.floor(math.log10(step) + 1e-9)
    return next(power * each for each in (1.0, 2.0, 2.5, 5.0, 10.0) if power * each >= step * (1 - 1e-9))


def decades(values: Sequence[float], shown: Format) -> Axis:
    """Powers of ten around all values."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)) + 1e-9)
    high = max(high, low + 1)
    return Axis(10.0**low, 10.0**high, [(10.0**power, shown(10.0**power)) for power in range(low, high + 1)], True)


def chart(
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    label: str,
    x_shown: Format,
    y_shown: Format,
    marks: Sequence[tuple[float, str]] = (),
) -> str:
    """An <svg> without size or colours of its own: the page has them."""
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for value, text in y.ticks:
        at = down(y.place(value))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in x.ticks:
        at = across(x.place(value))
        parts.append(f'<line class="grid faint" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        anchor = "end" if x.place(value) > 0.97 else "middle"
        parts.append(f'<text class="tick" x="{at:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{escape(text)}</text>')
    for number, (at_value, text) in enumerate(marks):
        at, left = across(x.place(at_value)), x.place(at_value) > 0.7
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text class="note" x="{at - 5 if left else at + 5:.1f}" y="{TOP + 11 + 14 * (number % 3)}"'
            f' text-anchor="{"end" if left else "start"}">{escape(text)}</text>'
        )
    for line in lines:
        parts += drawn(line, x, y, x_shown, y_shown)
    return "".join([*parts, "</svg>"])


def drawn(line: Line, x: Axis, y: Axis, x_shown: Format, y_shown: Format) -> list[str]:
    """Its strokes, and its points that tell what they are."""
    strokes: list[list[tuple[float, float, str]]] = [[]]
    for value, height in line.points:
        if height is None:
            strokes.append([])
        else:
            hint = f"{line.name}: {y_shown(height)} at {x_shown(value)}"
            strokes[-1].append((across(x.place(value)), down(min(1.0, max(0.0, y.place(height)))), hint))
    parts = []
    for stroke in strokes:
        path = " ".join(f"{at:.1f},{height:.1f}" for at, height, _ in stroke)
        if line.area and len(stroke) > 1:
            floor = down(0.0)
            corners = f"{stroke[-1][0]:.1f},{floor:.1f} {stroke[0][0]:.1f},{floor:.1f}"
            parts.append(f'<polygon class="a{line.colour}" points="{path} {corners}"/>')
        if len(stroke) > 1:
            parts.append(f'<polyline class="c{line.colour}" points="{path}"/>')
        every = max(1, len(stroke) // HINTS)
        for number, (at, height, hint) in enumerate(stroke):
            lone = " lone" if len(stroke) == 1 else ""
            if number % every == 0:
                spot = f'<circle class="dot d{line.colour}{lone}" cx="{at:.1f}" cy="{height:.1f}" r="4">'
                parts.append(f"{spot}<title>{escape(hint)}</title></circle>")
    return parts


def across(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def down(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
