"""The files that are made from code, by their paths in the checkout; and how they get there."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from vizora_rt.errors import StartupError
from vizora_rt.ops import alerts, reference

Files = Mapping[Path, str]

ALERTS = Path("ops/prometheus/alerts.yml")
METRICS = Path("docs/metrics.md")
DASHBOARDS = Path("ops/grafana/dashboards")

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
