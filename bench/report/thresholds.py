"""Thresholds as in k6: `heartbeat.p99<20ms`, `errors<0.1%`: a figure, a comparison, a number with its unit."""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from bench.report.schema import Threshold

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

TIME: Final = ("us", "ms", "s")
SIZE: Final = ("KiB", "MiB", "GiB")
SHARE: Final = ("%",)
RATE: Final = ("/s", "")
NUMBER: Final = ("",)

_SHARES: Final = re.compile(r"connected|acked|memory\.growth|(?:.*\.)?(?:errors|accepted)")
_RATES: Final = re.compile(r"(?:.*\.)?(?:rate|peak)")
_SIZES: Final = re.compile(r"memory(?:\.start|\.end)?")
_TIMES: Final = re.compile(r".*\.(?:p[0-9.]+(?:_before|_after)?|min|mean|max|rise|cpu)|cpu(?:\.user|\.system)?")

_EXPRESSION: Final = re.compile(
    r"\s*([a-z_]+(?:\.[a-z0-9_.]+)?)\s*(<=|>=|==|<|>)\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|s|%|/s|KiB|MiB|GiB)?\s*"
)


class Limit(NamedTuple):
    """A threshold, read."""

    expression: str
    figure: str
    comparison: str
    bound: float


def units(figure: str) -> tuple[str, ...]:
    """The units that a threshold on `figure` may have; "" is a bare number."""
    for pattern, found in ((_SHARES, SHARE), (_RATES, RATE), (_SIZES, SIZE), (_TIMES, TIME)):
        if pattern.fullmatch(figure):
            return found
    return NUMBER


def parse(text: str) -> Limit:
    """The threshold that `text` writes. Raises ValueError, also where the unit is not one of the figure's.

    Zero needs no unit. Every other bare number of a time, a size or a share has two readings: `p99<20` would be 20 s.
    """
    match = _EXPRESSION.fullmatch(text)
    if match is None:
        raise ValueError(f"not a threshold: {text!r}; for example heartbeat.p99<20ms or errors<0.1%")
    figure, comparison, number, unit = match.groups()
    allowed = units(figure)
    if (unit or "") not in allowed and (unit or float(number)):
        wanted = " or ".join(filter(None, allowed))
        hint = f"{figure} needs a unit: {wanted}" if not unit else f"{figure} takes {wanted or 'a number without unit'}"
        example = f"; for example {figure}{comparison}{number}{allowed[0]}"
        raise ValueError(f"not a threshold: {text!r}: {hint}{example}")
    return Limit(text.strip(), figure, comparison, float(number) * UNITS[unit or ""])


def judge(limit: Limit, figures: Mapping[str, float]) -> Threshold:
    value = figures.get(limit.figure)
    if value is None:
        return Threshold(expression=limit.expression, value=None, passed=None)
    return Threshold(expression=limit.expression, value=value, passed=COMPARISONS[limit.comparison](value, limit.bound))
