"""The JSON of the dashboards: what is committed is what the code makes, and Grafana's rules for it hold."""

import configparser
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from vizora_rt.ops import grafana
from vizora_rt.ops.dashboards import DASHBOARDS, Dashboard

UNITS = frozenset({"short", "percent", "percentunit", "s", "bytes", "mbytes", "Bps", "ops"})
"""Grafana's names of the units that are used; one that it does not know would be shown as text behind the figure."""

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


def test_settings_can_be_read_with_their_blocks_on_and_off() -> None:
    text = (OPS / "grafana.ini").read_text("utf-8")
    off = settings(text)
    assert off == {
        "users": {"allow_sign_up": "false", "auto_assign_org_role": "Viewer"},
        "auth.anonymous": {"enabled": "false"},
    }
    on = settings(re.sub(r"(?m)^;: ", "", text))
    assert on.keys() == off.keys() | {"server", "security", "auth.generic_oauth"}
    assert on["server"]["protocol"] == "https"
    # A secret is named by its file.
    assert on["auth.generic_oauth"]["client_secret"].startswith("$__file{")


def settings(text: str) -> dict[str, dict[str, str]]:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=(";",))
    parser.read_string(text)
    return {name: dict(parser[name]) for name in parser.sections()}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_grafana_s_own_types_take_what_is_committed(dashboard: Dashboard) -> None:
    """Read by the SDK's decoder and written again, nothing is lost: each member is one that Grafana 11.6 knows."""
    text = committed(dashboard)
    again = json.loads(json.dumps(models.Dashboard.from_json(text), cls=JSONEncoder))
    assert again == text


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_each_panel_has_a_title_a_unit_and_a_description(dashboard: Dashboard) -> None:
    panels = [panel for panel in committed(dashboard)["panels"] if panel["type"] != "row"]
    assert panels
    for panel in panels:
        assert panel["title"] and panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"]
