"""Thresholds as in k6: `heartbeat.p99<20ms`, `errors<0.1%`: a figure, a comparison, a number with its unit."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from bench.schema import Threshold

COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
UNITS: Final = {
    "": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "%": 0.01, "/s": 1.0, "KiB": 1024.0, "MiB": 2.0**20, "GiB": 2.0**30
}  # fmt: skip

_EXPRESSION: Final = re.compile(
    r"\s*([a-z_]+(?:\.[a-z0-9_.]+)?)\s*(<=|>=|==|<|>)\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|%|/s|KiB|MiB|GiB)?\s*"
)


class Limit(NamedTuple):
    """A threshold, read."""

    expression: str
    figure: str
    comparison: str
    bound: float


def parse(text: str) -> Limit:
    """Raises ValueError."""
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a threshold: {text!r}; for example heartbeat.p99<20ms or errors<0.1%")
    figure, comparison, number, unit = match.groups()
    return Limit(text.strip(), figure, comparison, float(number) * UNITS[unit or ""])


def judge(limit: Limit, figures: Mapping[str, float]) -> Threshold:
    value = figures.get(limit.figure)
    if value is None:
        return Threshold(expression=limit.expression, value=None, passed=None)
    return Threshold(expression=limit.expression, value=value, passed=COMPARISONS[limit.comparison](value, limit.bound))
