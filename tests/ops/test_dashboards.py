"""The panels: the owner's are there under their titles, and none shows a quotient of a series with itself."""

import pytest

from tests import seed
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
