"""`vizora-rt ops monitoring` as a process beside a real gateway: it scrapes, tells what fires, and ends cleanly."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.service_process import PATIENCE, Service, until
from tests.tools import tool
from vizora_rt.errors import UnavailableError
from vizora_rt.ops import monitoring, monitors
from vizora_rt.ops.monitors import AlertNotification

ROOT = Path(__file__).parent.parent.parent


def test_beside_a_gateway(tmp_path: Path) -> None:
    tool("prometheus")
    tool("prometheus-alertmanager")
    ports = [monitors.free_port(), monitors.free_port()]
    ops = quicker(tmp_path / "ops")
    with Service(tmp_path, workers=1).start() as service:
        process = subprocess.Popen(
            [sys.executable, "-m", "vizora_rt", "ops", "monitoring", f"--gateway=127.0.0.1:{service.port}",
             f"--prometheus-port={ports[0]}", f"--alertmanager-port={ports[1]}", f"--ops={ops}"],
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "VIZORA_STATE_DIR": str(tmp_path / "own")},
        )  # fmt: skip
        assert process.stdout is not None
        # A line that never comes would be waited for without end.
        guard = threading.Timer(PATIENCE, process.kill)
        guard.start()
        try:
            said = ""
            while "Ctrl-C ends both.\n\n" not in said:
                read = process.stdout.readline()
                assert read, said
                said += read
            assert f"http://127.0.0.1:{ports[0]}/alerts" in said
            assert f"http://127.0.0.1:{ports[1]}" in said
            assert "does not answer" not in said
            assert until(lambda: _rules(ports[0]))
            # Somebody fires an alert by hand: who is told, is told here.
            monitors.get(f"http://127.0.0.1:{ports[1]}/api/v2/alerts", {}, [_alert("RedisDown", "critical")])
            told = {process.stdout.readline().split(":")[0] for _ in range(2)}
            assert told == {"slack", "pagerduty"}
        finally:
            guard.cancel()
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
            process.stdout.close()
    for port in ports:
        with pytest.raises(OSError, match="refused"):
            monitors.get(f"http://127.0.0.1:{port}/-/ready")
    assert (tmp_path / "own/monitoring/series").is_dir()


def quicker(folder: Path) -> Path:
    """The files of ops/, with a second's wait before a notification."""
    for name in monitors.CHECKOUT_FILES:
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / "ops" / name).read_text("utf-8").replace("group_wait: 10s", "group_wait: 1s"))
    return folder


def _rules(port: int) -> int:
    return len(monitors.get(f"http://127.0.0.1:{port}/api/v1/rules")["data"]["groups"][0]["rules"])


def _alert(name: str, severity: str) -> dict[str, dict[str, str]]:
    said = {"summary": "s", "description": "d", "runbook_url": "r"}
    return {"labels": {"alertname": name, "severity": severity}, "annotations": said}


async def test_one_that_cannot_start_ends_it(tmp_path: Path) -> None:
    tool("prometheus")
    tool("prometheus-alertmanager")
    port = monitors.free_port()
    with pytest.raises(UnavailableError, match=r"ended: .*address already in use"):
        await monitoring.run(ROOT / "ops", tmp_path, "127.0.0.1:1", (port, port), True, print)


def test_a_notification_is_a_line() -> None:
    told = AlertNotification("slack", "RedisDown", True, "s", "no Redis", "https://r")
    assert monitoring.line(told) == "slack: RedisDown fires: no Redis (https://r)"
    assert monitoring.line(told._replace(firing=False)) == "slack: RedisDown is over: no Redis (https://r)"
