"""The panels: the owner's are there under their titles, and none shows a quotient of a series with itself."""

import json
from pathlib import Path

import pytest

from tests import seed
from tests.tools import run
from vizora_rt.ops.dashboards import DASHBOARDS, FLEET, INTERNALS, SERVICE, Dashboard, Panel

PANELS = [panel for dashboard in DASHBOARDS for row in dashboard.rows for panel in row.panels]


def test_three_audiences() -> None:
    assert (FLEET, SERVICE, INTERNALS) == DASHBOARDS
    assert len({dashboard.uid for dashboard in DASHBOARDS}) == 3


@pytest.mark.parametrize("title", [*seed.PANELS, *seed.QUERIES])
def test_the_seed_s_panels_have_their_titles(title: str) -> None:
    assert [panel.title for panel in PANELS].count(title) == 1


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_titles_are_told_apart(dashboard: Dashboard) -> None:
    titles = [panel.title for row in dashboard.rows for panel in row.panels]
    assert len(titles) == len(set(titles))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_each_panel(panel: Panel) -> None:
    assert panel.about.endswith(".")
    assert panel.unit
    assert panel.queries
    for query in panel.queries:
        assert query.legend
        # Sums, not series by series: rate(x{...}) / rate(x) compares each series with itself.
        assert not query.expr.startswith("rate("), query.expr
        assert "organization_id=~" not in query.expr or panel in [p for row in FLEET.rows for p in row.panels]


@pytest.mark.parametrize("title", ["Device Status", "Active Devices"])
@pytest.mark.parametrize(("series", "shown"), [("none", 0), ("offline", 0), ("online", 2)])
def test_no_screen_online_is_zero_and_not_an_empty_panel(title: str, series: str, shown: int, tmp_path: Path) -> None:
    """Whether screens were there before, or none ever was. By promtool, which evaluates as Prometheus does."""
    (panel,) = (panel for panel in PANELS if panel.title == title)
    values = {"none": None, "offline": 0, "online": 1}[series]
    rows = [] if values is None else [
        {"series": f'vizora_realtime_{name}{{instance="{node}",{labels}}}', "values": f"{values}x9"}
        for node in ("a", "b")
        for name, labels in (
            ("device_status", f'device_id="lobby-{node}",organization_id="acme"'),
            ("devices_online", 'organization_id="acme"'),
        )
    ]  # fmt: skip
    expr = panel.queries[0].expr.replace("$organization", ".*")
    sample = {"labels": "{}", "value": shown}
    test = {"input_series": rows, "promql_expr_test": [{"expr": expr, "eval_time": "5m", "exp_samples": [sample]}]}
    (tmp_path / "test.yml").write_text(json.dumps({"tests": [test]}))
    code, output = run("promtool", "test", "rules", tmp_path / "test.yml")
    assert code == 0, output
