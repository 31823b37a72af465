"""What `ops` prints is what lies in this checkout, and what it writes too."""

import shutil
from pathlib import Path

import pytest

from tests.shell.commands import refused, run

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("command", "files"),
    [
        ("alerts", ["ops/prometheus/alerts.yml"]),
        ("metrics", ["docs/metrics.md"]),
        (
            "dashboards",
            sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("ops/grafana/dashboards/*.json")),
        ),
        ("compose", ["ops/compose/prometheus.yml"]),
    ],
)
def test_files(tmp_path: Path, command: str, files: list[str]) -> None:
    shutil.copytree(ROOT / "ops", tmp_path / "ops")
    texts = {file: (ROOT / file).read_text("utf-8") for file in files}
    done = run(tmp_path, "ops", command)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) == sum(map(len, texts.values()))
    assert all(text in done.stdout for text in texts.values())
    for file in files:
        (tmp_path / file).unlink(missing_ok=True)
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    assert sorted(run(tmp_path, "ops", command, "--write").stdout.splitlines()) == files
    assert {file: (tmp_path / file).read_text("utf-8") for file in files} == texts


def test_where_runbooks_are_read(tmp_path: Path) -> None:
    done = run(tmp_path, "ops", "alerts", "--runbooks", "https://wiki.example/")
    assert "runbook_url: https://wiki.example/RedisDown.md" in done.stdout.replace('"', "")


def test_a_drill_of_no_alert_is_one_line(tmp_path: Path) -> None:
    assert "NoSuchAlert" in refused(run(tmp_path, "ops", "drill", "NoSuchAlert", f"--ops={ROOT / 'ops'}"), 1)
