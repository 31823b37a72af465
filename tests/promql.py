"""PromQL, read far enough to know which labels come out, and held against the registry.

    labels = Checker(series(FAMILIES)).check('sum by (type) (rate(vizora_realtime_ws_messages_total[5m]))')

`check` returns the labels of the result, None for a scalar, and raises `Wrong` for a metric, a label or a label value
that the registry lacks, for a grouping by a label that what is grouped does not have, and for two sides whose labels
never match. Syntax in full is promtool's to check.
"""

import re
from collections.abc import Iterable, Mapping

from vizora_rt.telemetry.metrics import BOUNDS, Family

Values = tuple[str, ...] | None
Series = dict[str, dict[str, Values]]
"""Sample name -> label -> its values, or None for an open label"""
Labels = frozenset[str] | None
"""Of a vector; None is a scalar"""

TARGET: dict[str, Values] = {"job": ("vizora-realtime",), "instance": None}
"""What Prometheus adds to each series."""

PROMETHEUS: Series = {
    "up": TARGET,
    "scrape_duration_seconds": TARGET,
    "scrape_samples_scraped": TARGET,
}
"""What Prometheus itself says of a target."""

TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<duration>\d+(?:ms|[smhdwy])(?:\d+(?:ms|[smhdwy]))*)
      | (?P<number>(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+))
      | (?P<name>[A-Za-z_:][\w:]*)
      | (?P<sign>=~|!~|==|!=|<=|>=|[-+*/%^<>=(){}\[\],:@])
    )""",
    re.VERBOSE,
)
AGGREGATORS = frozenset(
    {"sum", "min", "max", "avg", "count", "topk", "bottomk", "quantile", "group", "stddev", "stdvar", "count_values"}
)
KEEP = frozenset({"topk", "bottomk"})
PRECEDENCE = {"or": 1, "and": 2, "unless": 2, **dict.fromkeys(("==", "!=", "<", ">", "<=", ">="), 3)} | {
    "+": 4, "-": 4, "*": 5, "/": 5, "%": 5, "^": 6,
}  # fmt: skip
SCALARS = frozenset({"time", "scalar", "pi"})


class Wrong(Exception):
    """What an expression says that is not so."""


def series(families: Iterable[Family]) -> Series:
    """The samples of the registry."""
    found: Series = dict(PROMETHEUS)
    for family in families:
        labels = {**TARGET, **{label.name: label.values for label in family.labels}}
        if family.kind == "histogram":
            found[f"{family.full_name}_bucket"] = {**labels, "le": BOUNDS}
            found[f"{family.full_name}_sum"] = found[f"{family.full_name}_count"] = labels
        else:
            found[family.full_name] = labels
    return found


class Checker:
    """Reads one expression at a time."""

    def __init__(self, known: Mapping[str, Mapping[str, Values]]) -> None:
        self._known = known
        self.used: set[str] = set()
        """Names of the samples that were asked for."""

    def check(self, text: str) -> Labels:
        self._tokens: list[str] = []
        at = 0
        text = text.strip()
        while at < len(text):
            found = TOKEN.match(text, at)
            if found is None:
                raise Wrong(f"cannot read {text[at : at + 20]!r}")
            self._tokens.append(found.group().strip())
            at = found.end()
        self._at = 0
        labels = self._binary(1)
        if self._at != len(self._tokens):
            raise Wrong(f"{self._peek()!r} is too much")
        return labels

    # --- tokens ---

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        self._at += 1
        return token

    def _took(self, token: str) -> bool:
        if self._peek() != token:
            return False
        self._at += 1
        return True

    def _want(self, token: str) -> None:
        if not self._took(token):
            raise Wrong(f"{token!r} wanted, not {self._peek()!r}")

    def _names(self) -> list[str]:
        self._want("(")
        found = []
        while not self._took(")"):
            found.append(self._next())
            self._took(",")
        return found

    # --- grammar ---

    def _binary(self, lowest: int) -> Labels:
        left = self._unary()
        while PRECEDENCE.get(self._peek(), 0) >= lowest:
            operator = self._next()
            self._took("bool")
            on = ignoring = None
            group = ""
            if self._took("on"):
                on = self._names()
            elif self._took("ignoring"):
                ignoring = self._names()
            if self._peek() in ("group_left", "group_right"):
                group = self._next()
                if self._peek() == "(":
                    self._names()
            right = self._binary(PRECEDENCE[operator] + 1)
            left = _matched(operator, left, right, on, ignoring, group)
        return left

    def _unary(self) -> Labels:
        if self._peek() in ("-", "+"):
            self._next()
            return self._unary()
        labels = self._primary()
        while True:
            if self._took("["):
                while not self._took("]"):
                    self._next()
            elif self._took("offset"):
                self._took("-")
                self._next()
            else:
                return labels

    def _primary(self) -> Labels:
        token = self._next()
        if token == "(":
            labels = self._binary(1)
            self._want(")")
            return labels
        if not re.match(r"[A-Za-z_:]", token):
            if not re.match(r"[\d.\"']", token):
                raise Wrong(f"a value wanted, not {token!r}")
            return None
        if token in AGGREGATORS:
            return self._aggregated(token)
        if self._peek() == "(":
            return self._called(token)
        return self._selected(token)

    def _aggregated(self, name: str) -> Labels:
        how, names = self._grouping()
        labels = next((each for each in reversed(self._arguments()) if each is not None), None)
        if not how:
            how, names = self._grouping()
        if labels is None:
            raise Wrong(f"{name} of no vector")
        if missing := set(names) - labels:
            raise Wrong(f"{name} {how} {sorted(missing)}, but there is {sorted(labels)}")
        if name in KEEP:
            return labels
        return labels - set(names) if how == "without" else frozenset(names)

    def _grouping(self) -> tuple[str, list[str]]:
        if self._peek() not in ("by", "without"):
            return "", []
        return self._next(), self._names()

    def _arguments(self) -> list[Labels]:
        self._want("(")
        found = []
        while not self._took(")"):
            found.append(self._binary(1))
            self._took(",")
        return found

    def _called(self, name: str) -> Labels:
        labels = next((each for each in self._arguments() if each is not None), None)
        if name in SCALARS:
            return None
        if name == "vector":
            return frozenset()
        if labels is None:
            raise Wrong(f"{name} of no vector")
        if name == "histogram_quantile":
            if "le" not in labels:
                raise Wrong("histogram_quantile without le")
            return labels - {"le"}
        return labels

    def _selected(self, name: str) -> Labels:
        labels = self._known.get(name)
        if labels is None:
            raise Wrong(f"there is no metric {name}")
        self.used.add(name)
        if self._took("{"):
            while not self._took("}"):
                self._matcher(name, labels)
                self._took(",")
        return frozenset(labels)

    def _matcher(self, name: str, labels: Mapping[str, Values]) -> None:
        label, operator, quoted = self._next(), self._next(), self._next()
        value = quoted[1:-1].replace("\\\\", "\\")
        if label not in labels:
            raise Wrong(f"{name} has no label {label}")
        values = labels[label]
        if values is None:
            return
        alternatives = value.split("|") if operator in ("=~", "!~") and "(" not in value else [value]
        for each in alternatives:
            pattern = each if operator in ("=~", "!~") else re.escape(each)
            if not any(re.fullmatch(pattern, one) for one in values):
                raise Wrong(f"{name}: no value of {label} is {each!r}")


def _matched(
    operator: str, left: Labels, right: Labels, on: list[str] | None, ignoring: list[str] | None, group: str
) -> Labels:
    """The labels of `left operator right`."""
    if left is None or right is None:
        return left if right is None else right
    if on is not None:
        if missing := set(on) - (left & right):
            raise Wrong(f"on {sorted(missing)}, which one side lacks")
    elif left - set(ignoring or ()) != right - set(ignoring or ()) and operator != "or":
        raise Wrong(f"{sorted(left)} {operator} {sorted(right)} never match")
    if operator == "or":
        return left | right
    if operator in ("and", "unless") or group == "group_left":
        return left
    if group == "group_right":
        return right
    return frozenset(on) if on is not None else left - set(ignoring or ())
