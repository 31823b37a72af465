"""The JSON of the dashboards: what is committed is what the code makes, and Grafana's rules for it hold."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from vizora_rt.ops import grafana
from vizora_rt.ops.dashboards import DASHBOARDS, Dashboard

OPS = Path(__file__).parent.parent.parent / "ops/grafana"


def committed(dashboard: Dashboard) -> Any:
    return json.loads((OPS / f"dashboards/{dashboard.uid}.json").read_text("utf-8"))


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
class TestDashboard:
    def test_the_file_is_up_to_date(self, dashboard: Dashboard) -> None:
        assert committed(dashboard) == grafana.build(dashboard), "run: vizora-rt ops dashboards --write"

    def test_every_panel_is_there_and_none_covers_another(self, dashboard: Dashboard) -> None:
        panels = committed(dashboard)["panels"]
        assert [panel["title"] for panel in panels] == [
            title for row in dashboard.rows for title in (row.title, *(panel.title for panel in row.panels))
        ]
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            at = panel["gridPos"]
            cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
            assert at["x"] + at["w"] <= 24
            assert not cells & taken, panel["title"]
            taken |= cells

    def test_every_query_asks_the_provisioned_source(self, dashboard: Dashboard) -> None:
        source = yaml.safe_load((OPS / "provisioning/datasources/prometheus.yml").read_text("utf-8"))["datasources"][0]
        made = committed(dashboard)
        uids = set(re.findall(r"'uid': '([^']+)'", str(made["panels"])))
        assert uids == {source["uid"]}
        assert source["type"] == "prometheus"

    def test_variables_that_queries_use_are_declared(self, dashboard: Dashboard) -> None:
        made = committed(dashboard)
        declared = {variable["name"] for variable in made["templating"].get("list", ())}
        used = set(re.findall(r"\$(\w+)", json.dumps([panel.get("targets") for panel in made["panels"]])))
        assert used - {"__rate_interval"} == declared


def test_dashboards_are_provisioned() -> None:
    provider = yaml.safe_load((OPS / "provisioning/dashboards/vizora.yml").read_text("utf-8"))["providers"][0]
    assert provider["type"] == "file"
    assert {path.stem for path in (OPS / "dashboards").iterdir()} == {dashboard.uid for dashboard in DASHBOARDS}
