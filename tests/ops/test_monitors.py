"""Prometheus' and Alertmanager's files as other programs run them, and the webhook that stands for receivers."""

import json
import re
import urllib.request
from pathlib import Path
from urllib.error import HTTPError

import pytest
import yaml

from tests.tools import run, tool
from vizora_rt.errors import StartupError, UnavailableError
from vizora_rt.ops import alerts, monitors
from vizora_rt.ops.monitors import AlertNotification, Configs, Webhook

OPS = Path(__file__).parent.parent.parent / "ops"


@pytest.fixture
def files() -> Configs:
    return monitors.configs(OPS)


def checked(folder: Path, files: Configs) -> None:
    """By the programs' own tools."""
    for name, text in zip(("prometheus.yml", "alerts.yml", "alertmanager.yml"), files, strict=True):
        (folder / name).write_text(text)
    for command in (
        ("promtool", "check", "config", folder / "prometheus.yml"),
        ("amtool", "check-config", folder / "alertmanager.yml"),
    ):
        code, output = run(*map(str, command))
        assert code == 0, output


class TestFiles:
    def test_elsewhere_than_in_a_checkout(self, tmp_path: Path) -> None:
        with pytest.raises(StartupError, match="--ops"):
            monitors.configs(tmp_path)

    def test_addresses(self, files: Configs, tmp_path: Path) -> None:
        changed = monitors.addressed(files, "gateway:1", "prometheus:2", "alertmanager:3")
        made = yaml.safe_load(changed.prometheus)
        targets = [job["static_configs"][0]["targets"] for job in made["scrape_configs"]]
        assert targets == [["gateway:1"], ["prometheus:2"]]
        assert made["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["alertmanager:3"]
        checked(tmp_path, changed)

    def test_deliveries_keep_routes_and_need_no_secrets(self, files: Configs, tmp_path: Path) -> None:
        changed = monitors.delivered(files, 7)
        before, after = yaml.safe_load(files.alertmanager), yaml.safe_load(changed.alertmanager)
        assert after.pop("receivers") == [
            {"name": receiver["name"], "webhook_configs": [{"url": f"http://127.0.0.1:7/{receiver['name']}"}]}
            for receiver in before.pop("receivers")
        ]
        del before["global"]
        assert after == before
        assert "_file" not in changed.alertmanager
        checked(tmp_path, changed)

    def test_in_a_hurry_only_durations_differ(self, files: Configs, tmp_path: Path) -> None:
        changed = monitors.hurried(files)
        checked(tmp_path, changed)
        before, after = (yaml.safe_load(each.rules)["groups"][0] for each in (files, changed))
        assert after["interval"] == "1s"
        for slow, quick in zip(before["rules"], after["rules"], strict=True):
            assert quick.pop("for") == slow.pop("for").replace("m", "s")
            windows = re.findall(r"\[[^]]*\]", quick["expr"])
            assert windows == [
                each.replace("m", "s").replace("h", "m") for each in re.findall(r"\[[^]]*\]", slow["expr"])
            ]
            # All but the windows is as it was: thresholds too.
            assert re.sub(r"\[[^]]*\]", "[]", quick.pop("expr")) == re.sub(r"\[[^]]*\]", "[]", slow.pop("expr"))
            assert quick == slow
        assert yaml.safe_load(changed.prometheus)["global"]["scrape_interval"] == "1s"
        assert len(before["rules"]) == len(alerts.ALERTS)


class TestPrograms:
    def test_one_that_is_missing_says_its_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(UnavailableError, match="apt-get install prometheus-alertmanager"):
            monitors.executable("prometheus-alertmanager", "alertmanager")

    def test_one_that_ends_says_why(self, tmp_path: Path) -> None:
        tool("prometheus")
        program = monitors.start_prometheus(tmp_path, Configs("scrape: nothing", "", ""), monitors.free_port())
        try:
            with pytest.raises(UnavailableError, match="field scrape not found"):
                while not program.ready():
                    pass
            assert program.ended
        finally:
            program.stop()

    def test_a_query(self, files: Configs, tmp_path: Path) -> None:
        tool("prometheus")
        program = monitors.start_prometheus(tmp_path, monitors.hurried(files), monitors.free_port())
        try:
            while not program.ready():
                pass
            assert monitors.query(program, "scalar(vector(2))") == [({}, 2.0)]
            assert monitors.query(program, 'label_replace(vector(3), "a", "b", "", "")') == [({"a": "b"}, 3.0)]
            assert monitors.query(program, "absent_series") == []
            with pytest.raises(HTTPError) as error:
                monitors.query(program, "1 +")
            error.value.close()
        finally:
            program.stop()
        assert program.ended


class TestWebhook:
    def test_it_tells_what_each_receiver_is_told(self) -> None:
        told: list[AlertNotification] = []
        webhook = Webhook(told.append)
        try:
            alert = {
                "status": "firing",
                "labels": {"alertname": "RedisDown"},
                "annotations": {"summary": "s", "description": "d", "runbook_url": "r"},
            }
            body = json.dumps({"alerts": [alert, {**alert, "status": "resolved"}]}).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{webhook.port}/slack", body)
            with urllib.request.urlopen(request, timeout=10) as response:
                assert response.status == 200
        finally:
            webhook.stop()
        assert told == [
            AlertNotification("slack", "RedisDown", True, "s", "d", "r"),
            AlertNotification("slack", "RedisDown", False, "s", "d", "r"),
        ]
