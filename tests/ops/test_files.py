"""The files that are made from code: written where they belong, and only when they differ."""

import json
from pathlib import Path

import pytest

from vizora_rt.errors import StartupError
from vizora_rt.ops import alerts, files, grafana, reference
from vizora_rt.ops.dashboards import DASHBOARDS

ROOT = Path(__file__).parent.parent.parent


def test_what_is_made() -> None:
    assert files.alert_files("https://wiki/") == {files.ALERTS: alerts.render("https://wiki/")}
    assert files.metric_files() == {files.METRICS: reference.render()}


def test_the_file_of_compose_is_up_to_date() -> None:
    for path, text in files.compose_files(ROOT / "ops").items():
        assert (ROOT / path).read_text("utf-8") == text, "run: vizora-rt ops compose --write"


def test_dashboards_are_made_by_a_process_of_its_own() -> None:
    made = files.dashboard_files()
    assert {path: json.loads(text) for path, text in made.items()} == {
        files.DASHBOARDS / f"{dashboard.uid}.json": grafana.build(dashboard) for dashboard in DASHBOARDS
    }


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "SDK", "grafana_foundation_sdk_that_is_not_there")
    with pytest.raises(StartupError, match="pip install"):
        files.dashboard_files()


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    (tmp_path / "ops").mkdir()
    made = {Path("ops/a/x.yml"): "x", Path("docs/y.md"): "y"}
    assert files.write(made, tmp_path) == list(made)
    assert (tmp_path / "ops/a/x.yml").read_text() == "x"
    assert files.write(made, tmp_path) == []
    assert files.write({**made, Path("docs/y.md"): "z"}, tmp_path) == [Path("docs/y.md")]


def test_elsewhere_than_in_a_checkout_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="checkout"):
        files.write({Path("docs/y.md"): "y"}, tmp_path)
    assert list(tmp_path.iterdir()) == []
