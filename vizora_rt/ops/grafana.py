"""Grafana's JSON of the dashboards. The only `grafana_foundation_sdk`, which is there at build time only.

    python -m vizora_rt.ops.grafana

Prints one JSON object: file name -> dashboard. It is a program of its own so that the service never loads the SDK.
"""

import json
import sys
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueGraphMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, GridPos, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from vizora_rt.ops.dashboards import DASHBOARDS, Dashboard, Panel, Query

SOURCE = DataSourceRef(type_val="prometheus", uid="vizora-prometheus")
"""The data source that ops/grafana/provisioning makes."""

COLUMNS = 24
# Two graphs or four figures stand side by side.
WIDTHS = {"graph": 12, "stat": 6, "table": 12}
HEIGHTS = {"graph": 8, "stat": 5, "table": 8}

LATEST = common.ReduceDataOptions().calcs(["lastNotNull"])

Builder = timeseries.Panel | stat.Panel | table.Panel


class Grid:
    """From left to right and from top to bottom. The SDK's own layout lets a panel stand out on the right."""

    def __init__(self) -> None:
        self._x = self._y = self._height = 0

    def place(self, width: int, height: int) -> GridPos:
        if self._x + width > COLUMNS:
            self._x, self._y, self._height = 0, self._y + self._height, 0
        x, self._x, self._height = self._x, self._x + width, max(self._height, height)
        return GridPos(h=height, w=width, x=x, y=self._y)


def build(which: Dashboard) -> dict[str, Any]:
    made = (
        dashboard.Dashboard(which.title)
        .uid(which.uid)
        .description(which.about)
        .tags(["vizora"])
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(dashboard.DashboardLink("Vizora").tags(["vizora"]).as_dropdown(True).keep_time(True))
    )
    if which.organizations:
        made.with_variable(_organizations())
    grid = Grid()
    for row in which.rows:
        made.with_row(dashboard.Row(row.title).grid_pos(grid.place(COLUMNS, 1)))
        for panel in row.panels:
            made.with_panel(_panel(panel).grid_pos(grid.place(WIDTHS[panel.kind], HEIGHTS[panel.kind])))
    return json.loads(json.dumps(made.build(), cls=JSONEncoder))  # type: ignore[no-any-return]


def _organizations() -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable("organization")
        .label("Organisation")
        .datasource(SOURCE)
        .query("label_values(vizora_realtime_devices_online, organization_id)")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> Builder:
    made: Builder
    if panel.kind == "stat":
        made = stat.Panel().graph_mode(BigValueGraphMode.AREA).reduce_options(LATEST)
    elif panel.kind == "table":
        made = table.Panel()
    else:
        made = timeseries.Panel().legend(common.VizLegendOptions().show_legend(True)).fill_opacity(10)
        made.axis_soft_min(0)
    made.title(panel.title).description(panel.about).unit(panel.unit).datasource(SOURCE)
    for number, query in enumerate(panel.queries):
        made.with_target(_target(query, panel.kind == "table", chr(ord("A") + number)))
    return made


def _target(query: Query, as_table: bool, ref_id: str) -> prometheus.Dataquery:
    made = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref_id).datasource(SOURCE)
    return made.instant().format(PromQueryFormat.TABLE) if as_table else made.range()


def main() -> None:
    made = {f"{each.uid}.json": build(each) for each in DASHBOARDS}
    json.dump(made, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
