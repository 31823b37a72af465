"""The contract: whatever asks for a figure asks for one that exists, under its name, with its labels, recorded.

Every PromQL expression of alerts, dashboards, runbooks, other pages and the owner's own document is read and held
against the registry. That this can fail is shown by renaming each metric and each label in a copy of it, one by one.
"""

import ast
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests import seed
from tests.promql import Checker, Series, Wrong, series
from vizora_rt.ops import alerts
from vizora_rt.telemetry.metrics import ALIASES, FAMILIES, PREFIX, Family, Label

ROOT = Path(__file__).parent.parent.parent
OPS = ROOT / "ops"
PACKAGE = ROOT / "vizora_rt"

FAMILY_NAMES = {family.full_name for family in FAMILIES}

NOT_RECORDED: dict[str, str] = {
    # Declared, and nobody counts it yet: why that is so for now.
}


class Use(NamedTuple):
    """An expression, where it stands, and the labels that text beside it names."""

    where: str
    expr: str
    names: frozenset[str] = frozenset()


def in_grafana(expr: str) -> str:
    """What Grafana makes of its variables."""
    return expr.replace("$__rate_interval", "5m").replace("$organization", ".*")


def of_alerts() -> list[Use]:
    """From the file that Prometheus loads, not from the table that it was made of."""
    rules = yaml.safe_load((OPS / "prometheus/alerts.yml").read_text("utf-8"))["groups"][0]["rules"]
    return [
        Use(
            f"alert {rule['alert']}",
            rule["expr"],
            frozenset(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values()))),
        )
        for rule in rules
    ]


def of_dashboards() -> list[Use]:
    found = []
    for path in sorted((OPS / "grafana/dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text("utf-8"))
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                legend = frozenset(re.findall(r"\{\{ *(\w+) *\}\}", target["legendFormat"]))
                found.append(Use(f"{path.name}: {panel['title']}", in_grafana(target["expr"]), legend))
        for variable in dashboard["templating"].get("list", ()):
            asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"])
            assert asked is not None, variable
            found.append(Use(f"{path.name}: ${variable['name']}", asked[1], frozenset({asked[2]})))
    return found


def pages() -> list[Path]:
    """All Markdown of the repository."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--", "*.md"], cwd=ROOT, capture_output=True, text=True
    )
    found = [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    return found or [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *OPS.glob("**/*.md")]


def of_pages() -> list[Use]:
    return [
        Use(path.relative_to(ROOT).as_posix(), expr)
        for path in pages()
        for expr in re.findall(r"(?ms)^```promql\n(.*?)^```", path.read_text("utf-8"))
    ]


def of_the_seed() -> list[Use]:
    written = {**seed.PANELS, **seed.QUERIES, **seed.ALERTS}
    return [Use(f"seed: {title}", expr) for title, expr in written.items()]


@cache
def uses() -> tuple[Use, ...]:
    return (*of_alerts(), *of_dashboards(), *of_pages(), *of_the_seed())


def problems(known: Series, asked: Iterable[Use]) -> list[str]:
    found = []
    for use in asked:
        try:
            labels = Checker(known).check(use.expr)
        except Wrong as wrong:
            found.append(f"{use.where}: {wrong}")
        else:
            # `absent` and scalars have no labels; what is named must come out.
            if missing := use.names - (labels or frozenset()):
                found.append(f"{use.where}: {sorted(missing)} is no label of the result")
    return found


def constants() -> set[str]:
    """Strings in code that can count: not where metrics are declared or asked for."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name == "metrics.py" or path.is_relative_to(PACKAGE / "ops"):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        found |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return found


def not_recorded(families: Iterable[Family]) -> set[str]:
    counted = constants()
    return {family.name for family in families if family.name not in counted and family.name not in ALIASES}


class TestNames:
    def test_whatever_is_asked_for_exists(self) -> None:
        assert problems(series(FAMILIES), uses()) == []

    def test_all_places_were_searched(self) -> None:
        kinds = {use.where.split(":")[0].split(" ")[0].split("/")[-1] for use in uses()}
        assert {"alert", "seed", "vizora-fleet.json", "RedisDown.md", "alerts.md"} <= kinds
        assert len(uses()) > 150

    def test_each_metric_is_asked_for(self) -> None:
        """A figure that nobody looks at need not be counted."""
        checker = Checker(series(FAMILIES))
        for use in uses():
            checker.check(use.expr)
        asked = {
            re.sub(r"_(bucket|sum|count)$", "", name) if name not in FAMILY_NAMES else name for name in checker.used
        }
        assert FAMILY_NAMES - asked == set()

    def test_the_seed_s_metrics_are_there(self) -> None:
        assert set(seed.METRICS) - FAMILY_NAMES == set()

    def test_names_in_text(self) -> None:
        """A name in a sentence has no syntax to check, but it must be one."""
        known = {*series(FAMILIES), *FAMILY_NAMES, PREFIX}
        found = {
            f"{path.name}: {name}"
            for path in pages()
            for name in re.findall(rf"\b{PREFIX}\w*", path.read_text("utf-8"))
            if name not in known
        }
        assert found == set()

    def test_inhibitions_name_alerts(self) -> None:
        text = (OPS / "alertmanager/alertmanager.yml").read_text("utf-8")
        named = {name for value in re.findall(r'alertname!?=~?"([^"]+)"', text) for name in value.split("|")}
        assert named
        assert named <= {alert.name for alert in alerts.ALERTS}


class TestRecorded:
    def test_somebody_counts_each_metric(self) -> None:
        assert not_recorded(FAMILIES) == set(NOT_RECORDED)

    def test_what_nobody_counts_is_seen(self) -> None:
        assert not_recorded([Family("ws_nothing_total", "counter", "Counts nothing.")]) == {"ws_nothing_total"}


def renamed_families() -> list[Any]:
    return [pytest.param(at, id=family.full_name) for at, family in enumerate(FAMILIES)]


def renamed_labels() -> list[Any]:
    return [
        pytest.param(at, number, id=f"{family.full_name}-{label.name}")
        for at, family in enumerate(FAMILIES)
        for number, label in enumerate(family.labels)
    ]


class TestItCanFail:
    """Each name of the registry, changed in a copy of it, breaks something that asks for it."""

    @pytest.mark.parametrize("at", renamed_families())
    def test_a_metric_is_renamed(self, at: int) -> None:
        family = FAMILIES[at]
        other = replace(family, name=re.sub(r"^([a-z]+)", r"\1_renamed", family.name))
        assert problems_without(at, other)

    @pytest.mark.parametrize(("at", "number"), renamed_labels())
    def test_a_label_is_renamed(self, at: int, number: int) -> None:
        family = FAMILIES[at]
        labels: list[Label] = list(family.labels)
        labels[number] = replace(labels[number], name=f"{labels[number].name}_renamed")
        assert problems_without(at, replace(family, labels=tuple(labels)))

    @pytest.mark.parametrize(
        "use",
        [
            Use("value", 'rate(vizora_realtime_ws_messages_total{result="fine"}[5m])'),
            Use("alternative", 'vizora_realtime_worker_restarts_total{reason=~"crash|bang"}'),
            Use("legend", "sum by (type) (vizora_realtime_ws_messages_total)", frozenset({"result"})),
            Use("grouping", "sum by (organization_id) (vizora_realtime_ws_messages_total)"),
            Use("sides", "sum by (type) (vizora_realtime_ws_messages_total) > sum(vizora_realtime_ws_bytes_total)"),
            Use("bucket", "histogram_quantile(0.9, vizora_realtime_gc_duration_seconds_sum)"),
            Use("text", "sum by (type) (vizora_realtime_ws_messages_total) )"),
        ],
        ids=lambda use: use.where,
    )
    def test_what_is_wrong_is_seen(self, use: Use) -> None:
        assert len(problems(series(FAMILIES), [use])) == 1


def problems_without(at: int, other: Family) -> list[str]:
    """With `other` in the place of a family: only what mentions the family can be wrong."""
    name = FAMILIES[at].full_name
    families = [*FAMILIES[:at], other, *FAMILIES[at + 1 :]]
    return problems(series(families), (use for use in uses() if name in use.expr))
