"""The files that are made from code, by their paths in the checkout; and how they get there."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from vizora_rt.errors import StartupError
from vizora_rt.ops import alerts, monitors, reference

Files = Mapping[Path, str]

ALERTS = Path("ops/prometheus/alerts.yml")
METRICS = Path("docs/metrics.md")
DASHBOARDS = Path("ops/grafana/dashboards")
COMPOSE = Path("ops/compose/prometheus.yml")
TOKEN_FILE = "/tmp/metrics-token"  # noqa: S105, S108 - a path, in a container of its own

SDK = "grafana_foundation_sdk"


def alert_files(runbooks: str = alerts.RUNBOOKS) -> Files:
    return {ALERTS: alerts.render(runbooks)}


def metric_files() -> Files:
    return {METRICS: reference.render()}


def dashboard_files() -> Files:
    """Made by a process of its own: the SDK is large, and no other command needs it."""
    if importlib.util.find_spec(SDK) is None:
        raise StartupError(f"{SDK} is missing, which makes dashboards: pip install 'vizora-rt[dev]'")
    done = subprocess.run([sys.executable, "-m", "vizora_rt.ops.grafana"], capture_output=True, check=True)
    made = json.loads(done.stdout)
    return {DASHBOARDS / name: json.dumps(dashboard, indent=2) + "\n" for name, dashboard in made.items()}


def compose_files(ops: Path) -> Files:
    """Prometheus' file with the names of ops/compose.yml's services; a token, for the gateway is another machine."""
    files = monitors.addressed(monitors.configs(ops), "gateway:3001", "prometheus:9090", "alertmanager:9093")
    # Of the blocks that are switched off, the one that names the token's file.
    text = re.sub(r"(?m)^    #: (authorization:|  type: Bearer|  credentials_file: ).*$", r"    \1", files.prometheus)
    text = text.replace("      credentials_file: ", f"      credentials_file: {TOKEN_FILE}")
    return {COMPOSE: f"# Made by `vizora-rt ops compose --write` from ops/prometheus/prometheus.yml.\n{text}"}


def write(files: Files, checkout: Path) -> list[Path]:
    """Write what differs; the paths of it."""
    if not (checkout / "ops").is_dir():
        raise StartupError(f"no folder ops in {checkout.absolute()}: run this in a checkout")
    changed = []
    for path, text in files.items():
        at = checkout / path
        if not at.exists() or at.read_text("utf-8") != text:
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_text(text, "utf-8")
            changed.append(path)
    return changed
