"""The alerts: the file is that of the table, the seed's are as the owner wrote them, and promtool sees each fire."""

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tests.tools import run
from vizora_rt import cli, config
from vizora_rt.ops import alerts
from vizora_rt.telemetry.metrics import PATH

ROOT = Path(__file__).parent.parent.parent
OPS = ROOT / "ops"
PROMETHEUS = OPS / "prometheus"
ALERTMANAGER = OPS / "alertmanager/alertmanager.yml"
NAMES = tuple(dict.fromkeys(alert.name for alert in alerts.ALERTS))

SEED = {
    # name -> (severity, for, what the expression must compare with), as the owner wrote them.
    "HighErrorRate": ("warning", "5m", "> 0.05"),
    "HeartbeatFailures": ("warning", "5m", "> 0.1"),
    "HighLatency": ("warning", "5m", "> 0.5"),
    "ConnectionDrops": ("info", "5m", "> 1"),
    "HighMemoryUsage": ("warning", "10m", "> 1073741824"),
}
ADDED = (
    "ServiceDown", "WorkerCrashLoop", "RedisDown", "EventLoopLag", "HeartbeatsRefused",
    "HandshakesRefused", "FieldsIgnored",
    "DevicesOffline", "PlaysMissing", "SlowConsumers", "ConnectionsNearLimit", "CommandsExpiring", "StoreMemory",
    "RedisEvicts", "PlaysBacklog", "DuplicateIdentity", "DeviceSeriesCapped",
)  # fmt: skip
SEED_SUMMARIES = (
    "High error rate detected", "High heartbeat failure rate", "P95 latency above 500ms", "High connection drop rate",
    "Memory usage above 1GB",
)  # fmt: skip


@cache
def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def switched_on(path: Path) -> str:
    """A configuration with its commented blocks in use."""
    return re.sub(r"(?m)^( *)#: ?", r"\1", path.read_text("utf-8"))


@cache
def said_in_logs() -> set[str]:
    """First arguments of calls on `log`."""
    found = set()
    for path in (ROOT / "vizora_rt").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log."):
                texts = ast.walk(node.args[0])
                found |= {
                    each.value for each in texts if isinstance(each, ast.Constant) and isinstance(each.value, str)
                }
    return found


class TestTable:
    def test_the_file_is_up_to_date(self) -> None:
        assert (PROMETHEUS / "alerts.yml").read_text("utf-8") == alerts.render(), "run: vizora-rt ops alerts --write"

    def test_all_are_there_and_no_others(self) -> None:
        assert (*SEED, *ADDED) == NAMES

    @pytest.mark.parametrize("name", SEED)
    def test_the_seed_s_names_thresholds_and_severities(self, name: str) -> None:
        severity, hold, threshold = SEED[name]
        rules = [alert for alert in alerts.ALERTS if alert.name == name]
        assert {rule.severity for rule in rules} == {severity}
        assert {rule.hold for rule in rules} == {hold}
        assert rules[0].summary in SEED_SUMMARIES
        assert re.search(re.escape(threshold) + r"(?![\d.])", rules[0].expr)

    def test_a_rate_has_a_ratio_too(self) -> None:
        """`> number` of a bare rate depends on the fleet's size: another form of the same alert must not."""
        forms: dict[str, set[str]] = {}
        for alert in alerts.ALERTS:
            forms.setdefault(alert.name, set()).add(alert.form)
        assert {name: kinds for name, kinds in forms.items() if kinds != {""}} == {
            "HighErrorRate": {"rate", "ratio"},
            "HeartbeatFailures": {"rate", "ratio"},
            "ConnectionDrops": {"rate", "ratio", "fleet"},
        }

    @pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: f"{alert.name}-{alert.form}")
    def test_each_says_all(self, alert: alerts.Alert) -> None:
        assert alert.reason.endswith(".")
        assert alert.summary and alert.description
        assert "/" not in re.sub('"[^"]*"', "", alert.expr), "a product on the other side does not divide by zero"

    def test_another_place_for_runbooks(self) -> None:
        rules = yaml.safe_load(alerts.render("https://wiki/x/"))["groups"][0]["rules"]
        assert {rule["annotations"]["runbook_url"] for rule in rules} == {f"https://wiki/x/{name}.md" for name in NAMES}

    @pytest.mark.parametrize("name", NAMES)
    def test_each_has_a_runbook(self, name: str) -> None:
        text = (OPS / f"runbooks/{name}.md").read_text("utf-8")
        headings = re.findall(r"(?m)^#+ (.+)$", text)
        assert headings == [
            name, "What it means", "What the user feels", "How to look", "What to do", "When to wake whom",
        ]  # fmt: skip
        assert "```promql" in text
        severity = next(alert.severity for alert in alerts.ALERTS if alert.name == name)
        assert text.startswith(f"# {name}\n\n**{severity}**: ")

    @pytest.mark.parametrize("name", NAMES)
    def test_what_a_runbook_names_exists(self, name: str) -> None:
        """Links, keys of config.toml, commands, routes, log lines: nobody looks for a new name at 3 a.m."""
        text = (OPS / f"runbooks/{name}.md").read_text("utf-8")
        for link in re.findall(r"\]\((\w+\.md)\)", text):
            assert (OPS / "runbooks" / link).is_file(), link
        for section, key in re.findall(rf"`({'|'.join(config.SECTIONS)})\.(\w+)`", text):
            assert key in getattr(config.Config(), section).__struct_fields__, key
        for route in re.findall(r"`(?:GET|POST|DELETE) (/[\w/{}-]+)`", text):
            assert route in (PATH.values or ()), route
        for words in re.findall(r"`vizora-rt ([a-z -]+)`", text):
            found: click.Command = cli.command
            for word in words.split():
                assert isinstance(found, click.Group), words
                found = found.commands[word]
        for event in re.findall(r'"event": "([\w :]+)"', text) + re.findall(r"grep '\"([\w ]+)\"'", text):
            assert event in said_in_logs(), event

    def test_no_runbook_without_an_alert(self) -> None:
        assert sorted(path.stem for path in (OPS / "runbooks").glob("*.md")) == sorted(NAMES)


class TestPrometheus:
    def test_rules(self) -> None:
        code, output = run("promtool", "check", "rules", PROMETHEUS / "alerts.yml")
        assert code == 0, output
        assert f"{len(alerts.ALERTS)} rules found" in output

    def test_config(self) -> None:
        code, output = run("promtool", "check", "config", PROMETHEUS / "prometheus.yml")
        assert code == 0, output

    def test_blocks_that_are_switched_off(self, tmp_path: Path) -> None:
        text = switched_on(PROMETHEUS / "prometheus.yml")
        on = yaml.safe_load(text)
        job = on["scrape_configs"][0]
        assert {"remote_write"} <= on.keys()
        assert {"file_sd_configs", "dns_sd_configs", "authorization", "scheme", "tls_config"} <= job.keys()
        assert on["global"]["external_labels"]["replica"]
        (tmp_path / "prometheus.yml").write_text(text)
        code, output = run("promtool", "check", "config", "--syntax-only", tmp_path / "prometheus.yml")
        assert code == 0, output

    def test_web(self, tmp_path: Path) -> None:
        on = yaml.safe_load(switched_on(PROMETHEUS / "web.yml"))
        assert on.keys() == {"tls_server_config", "basic_auth_users"}
        # The certificate's files are not here.
        (tmp_path / "web.yml").write_text(yaml.safe_dump({"basic_auth_users": on["basic_auth_users"]}))
        for path in (tmp_path / "web.yml", PROMETHEUS / "web.yml"):
            code, output = run("promtool", "check", "web-config", path)
            assert code == 0, output

    def test_unit_tests(self) -> None:
        code, output = run("promtool", "test", "rules", PROMETHEUS / "alerts_test.yml")
        assert code == 0, output

    @pytest.mark.parametrize(("seconds", "fires"), [(20, True), (120, False)])
    def test_a_fleet_of_small_organisations(self, seconds: int, fires: bool, tmp_path: Path) -> None:
        """400 of 50 screens on two nodes. In each a connection drops every so many seconds: 30 %, or 5 %, in 5 minutes.
        No organisation alone is told of, and the fleet is, once."""
        series = []
        for number in range(400):
            labels = f'job="vizora-realtime",instance="{number % 2}",organization_id="o-{number}"'
            counts = [(at * 15 + number) // seconds for at in range(61)]
            series += [
                {"series": f'vizora_realtime_ws_connections_total{{{labels},status="disconnected"}}',
                 "values": " ".join(map(str, counts))},
                {"series": f'vizora_realtime_ws_connections_active{{{labels},kind="device"}}', "values": "50x60"},
            ]  # fmt: skip
        series.append({"series": 'up{job="vizora-realtime",instance="0"}', "values": "1x60"})
        labels = (
            'ALERTS{alertname="ConnectionDrops",alertstate="firing",form="fleet",job="vizora-realtime",severity="info"}'
        )
        firing = {"expr": "ALERTS", "eval_time": "14m", "exp_samples": [{"labels": labels, "value": 1}] * fires}
        test = {"interval": "15s", "input_series": series, "promql_expr_test": [firing]}
        files = {"rule_files": [str(PROMETHEUS / "alerts.yml")], "evaluation_interval": "30s", "tests": [test]}
        (tmp_path / "test.yml").write_text(json.dumps(files))
        code, output = run("promtool", "test", "rules", tmp_path / "test.yml")
        assert code == 0, output

    @pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: f"{alert.name}-{alert.form}")
    def test_unit_tests_see_what_no_longer_fires(self, alert: alerts.Alert, tmp_path: Path) -> None:
        """Each rule, made unable to fire, fails its test; made to fire at anything, its quiet one."""
        test = load(PROMETHEUS / "alerts_test.yml")
        mine = [each for each in test["tests"] if each["name"].split()[0] == alert.name]
        # JSON is YAML, and read and written many times as fast.
        (tmp_path / "alerts_test.yml").write_text(json.dumps({**test, "tests": mine}))
        (group,) = load(PROMETHEUS / "alerts.yml")["groups"]
        for broken in (f"({alert.expr}) < -1", "vector(1)"):
            rules = [
                {**rule, "expr": broken}
                if (rule["alert"], rule["labels"].get("form", "")) == (alert.name, alert.form)
                else rule
                for rule in group["rules"]
            ]
            assert rules != group["rules"]
            (tmp_path / "alerts.yml").write_text(json.dumps({"groups": [{**group, "rules": rules}]}))
            code, output = run("promtool", "test", "rules", tmp_path / "alerts_test.yml")
            assert code != 0, output
            assert "FAILED" in output and "got:" in output

    @pytest.mark.parametrize("name", NAMES)
    def test_each_has_a_test_that_fires_and_one_that_is_quiet(self, name: str) -> None:
        forms = {alert.form for alert in alerts.ALERTS if alert.name == name}
        fired, quiet = set(), 0
        for test in load(PROMETHEUS / "alerts_test.yml")["tests"]:
            if test["name"].split()[0] != name:
                continue
            samples = [sample for expr in test["promql_expr_test"] for sample in expr["exp_samples"]]
            quiet += not samples
            for sample in samples:
                labels = dict(re.findall(r'(\w+)="([^"]*)"', sample["labels"]))
                assert labels["alertname"] == name
                fired.add(labels.get("form", ""))
        assert fired == forms
        assert quiet


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("prometheus/prometheus.default", "prometheus"),
        ("alertmanager/alertmanager.default", "prometheus-alertmanager"),
    ],
)
def test_flags_exist(name: str, program: str) -> None:
    """Those in use and those that are switched off."""
    text = (OPS / name).read_text("utf-8")
    lines = re.findall(r'(?m)^(?:# )?ARGS="(.*)"$', text)
    assert len(lines) > 1
    known = set(re.findall(r"--(?:\[no-\])?([\w.-]+)", run(program, "--help")[1]))
    assert {flag.split("=")[0].removeprefix("--") for line in lines for flag in line.split()} <= known


class TestAlertmanager:
    def test_config(self) -> None:
        code, output = run("amtool", "check-config", ALERTMANAGER)
        assert code == 0, output

    def test_blocks_that_are_switched_off(self, tmp_path: Path) -> None:
        text = switched_on(ALERTMANAGER)
        assert "time_intervals" in yaml.safe_load(text)
        (tmp_path / "alertmanager.yml").write_text(text)
        code, output = run("amtool", "check-config", tmp_path / "alertmanager.yml")
        assert code == 0, output

    @pytest.mark.parametrize(
        ("severity", "receivers"),
        [("critical", "pagerduty,slack"), ("warning", "slack,email"), ("info", "email"), ("", "slack")],
    )
    def test_routes(self, severity: str, receivers: str) -> None:
        code, output = run(
            "amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}",
            f"--verify.receivers={receivers}", "alertname=X", f"severity={severity}",
        )  # fmt: skip
        assert code == 0, output

    @pytest.mark.parametrize("alert", alerts.ALERTS, ids=lambda alert: f"{alert.name}-{alert.form}")
    def test_each_alert_has_receivers(self, alert: alerts.Alert) -> None:
        code, output = run(
            "amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}",
            f"alertname={alert.name}", f"severity={alert.severity}", "job=vizora-realtime",
        )  # fmt: skip
        assert code == 0, output
        named = {receiver["name"] for receiver in load(ALERTMANAGER)["receivers"]}
        reached = set(output.splitlines()[0].split(","))
        assert reached and reached <= named

    def test_receivers_of_all_three_kinds(self) -> None:
        kinds = {kind for receiver in load(ALERTMANAGER)["receivers"] for kind in receiver if kind != "name"}
        assert kinds == {"slack_configs", "email_configs", "pagerduty_configs"}
