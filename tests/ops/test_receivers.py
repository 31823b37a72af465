"""What Slack, a mailbox and PagerDuty get: the real Alertmanager with its real file, and sinks in their place."""

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from tests.service_process import PATIENCE, until
from tests.tools import run, tool
from vizora_rt.ops import monitors

OPS = Path(__file__).parent.parent.parent / "ops"

Sink = Queue[tuple[str, Any]]
"""Of what came: for whom, and what."""


class Mail(socketserver.StreamRequestHandler):
    """As much of SMTP (RFC 5321) as a client needs to be rid of a message."""

    def handle(self) -> None:
        self._say("220 sink")
        while line := self.rfile.readline():
            verb = line.split(b" ")[0].strip().upper()
            if verb == b"DATA":
                self._say("354 go on")
                lines = iter(lambda: self.rfile.readline(), b".\r\n")
                self.server.sink.put(("email", b"".join(lines).decode()))  # type: ignore[attr-defined]
            self._say("221 bye" if verb == b"QUIT" else "250 sink")

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


class Web(BaseHTTPRequestHandler):
    """Slack's webhook and PagerDuty's events API; the path says which."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.sink.put((self.path.strip("/"), body))  # type: ignore[attr-defined]
        self.send_response(202 if "pagerduty" in self.path else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(server: socketserver.TCPServer, sink: Sink) -> Iterator[int]:
    server.sink = sink  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_each_receiver_is_told_what_and_where_to_read_on(tmp_path: Path) -> None:
    tool("prometheus-alertmanager")
    sink: Sink = Queue()
    files = monitors.configs(OPS)
    web_server, mail_server = ThreadingHTTPServer(("127.0.0.1", 0), Web), socketserver.TCPServer(("127.0.0.1", 0), Mail)
    with serving(web_server, sink) as web, serving(mail_server, sink) as mail:
        (tmp_path / "slack-webhook-url").write_text(f"http://127.0.0.1:{web}/slack")
        (tmp_path / "pagerduty-routing-key").write_text("opaque")
        # Only where the receivers are, not what they are told.
        text = files.alertmanager
        for there, here in {
            "/etc/alertmanager/": f"{tmp_path}/",
            "'smtp.example.com:587'": f"'127.0.0.1:{mail}'\n  smtp_require_tls: false\n"
            f"  pagerduty_url: http://127.0.0.1:{web}/pagerduty",
            "  smtp_auth_username: 'alerts@example.com'\n": "",
            f"  smtp_auth_password_file: {tmp_path}/smtp-password\n": "",
            "group_wait: 10s": "group_wait: 1s",
            "group_wait: 1m": "group_wait: 1s",
        }.items():
            assert there in text
            text = text.replace(there, here)
        program = monitors.start_alertmanager(tmp_path, files._replace(alertmanager=text), monitors.free_port())
        try:
            assert until(program.ready)
            for severity in ("critical", "warning"):
                add(program.url, severity)
            told = dict(sink.get(timeout=PATIENCE) for _ in range(4))
        finally:
            program.stop()
    assert told.keys() == {"slack", "email", "pagerduty"}
    page = told["pagerduty"]
    assert page["routing_key"] == "opaque"
    assert page["payload"]["summary"] == "TestCritical: a test"
    assert page["payload"]["severity"] == "critical"
    assert page["payload"]["custom_details"]["runbook"] == "https://example.com/critical"
    (slack,) = told["slack"]["attachments"]
    assert slack["title"].startswith("Vizora Realtime Alert: Test")
    assert "a test: nothing is wrong https://example.com/" in " ".join(slack["text"].split())
    assert "To: operations@example.com" in told["email"]
    assert "TestWarning" in told["email"]


A, B = "a:3001", "b:3001"
ORGANISATION = {"organization_id": "acme"}
SAID: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("HighMemoryUsage", "warning", {"instance": A, "process": "worker-0"}),
    ("HighErrorRate", "warning", {"instance": A}),
    ("HeartbeatFailures", "warning", {"instance": A}),
    ("DeviceSeriesCapped", "info", {"instance": A}),
    ("WorkerCrashLoop", "critical", {"instance": A}),
    ("HighMemoryUsage", "warning", {"instance": B, "process": "worker-0"}),
    ("HighErrorRate", "warning", {"instance": B}),
    ("HighLatency", "warning", {"instance": B, "path": "/push/playlist"}),
    ("DevicesOffline", "warning", ORGANISATION),
    ("ConnectionDrops", "info", ORGANISATION),
    ("ConnectionDrops", "info", {"form": "fleet"}),
    ("PlaysMissing", "warning", ORGANISATION),
    ("CommandsExpiring", "warning", {"type": "reload"}),
    ("HeartbeatsRefused", "warning", {"type": "heartbeat"}),
    ("PlaysBacklog", "warning", {"group": "billing"}),
)
"""Alerts as the rules make them, of two nodes and of what all nodes share."""


@pytest.mark.parametrize(
    ("causes", "hidden"),
    [
        pytest.param((("ServiceDown", A),), {0, 1, 2, 3}, id="one-node-down"),
        pytest.param(
            (("ServiceDown", A), ("ServiceDown", B), ("ServiceDown", "")),
            set(range(len(SAID))) - {4},
            id="no-node-answers",
        ),
        pytest.param((("ServiceDown", ""),), {8, 9, 10, 11, 12, 13, 14}, id="no-target-at-all"),
        pytest.param((("RedisDown", A),), {1, 2}, id="one-node-without-redis"),
        pytest.param(
            (("RedisDown", A), ("RedisDown", B), ("RedisDown", "")), {1, 2, 6, 7, 11, 12}, id="no-node-reaches-redis"
        ),
    ],
)
def test_what_follows_from_a_cause_is_hidden_and_nothing_else(
    tmp_path: Path, causes: tuple[tuple[str, str], ...], hidden: set[int]
) -> None:
    """By the real Alertmanager, with the rules of its file. It says itself which alerts another one inhibits."""
    tool("prometheus-alertmanager")
    files = monitors.delivered(monitors.configs(OPS), 9)
    program = monitors.start_alertmanager(tmp_path, files, monitors.free_port())
    firing = [*SAID]
    firing += [(name, "critical", {"instance": instance} if instance else {}) for name, instance in causes]
    every = any(not instance for _, instance in causes)
    # "No gateway" stands for each of them.
    expected = hidden | {len(SAID) + at for at, (_, instance) in enumerate(causes) if instance and every}
    try:
        assert until(program.ready)
        alerts = [
            {
                "labels": {"alertname": name, "severity": severity, "job": "vizora-realtime", "n": str(at), **labels},
                "annotations": {"summary": "a test"},
            }
            for at, (name, severity, labels) in enumerate(firing)
        ]
        monitors.get(f"{program.url}/api/v2/alerts", body=alerts)

        def inhibited() -> set[int] | None:
            found = monitors.get(f"{program.url}/api/v2/alerts")
            if len(found) < len(firing):
                return None
            return {int(each["labels"]["n"]) for each in found if each["status"]["inhibitedBy"]}

        assert until(lambda: inhibited() == expected), inhibited()
    finally:
        program.stop()


def add(url: str, severity: str) -> None:
    """As docs/monitoring.md says it."""
    code, output = run(
        "amtool", "alert", "add", f"alertname=Test{severity.capitalize()}", f"severity={severity}",
        "job=vizora-realtime", "--annotation=summary=a test", "--annotation=description=nothing is wrong",
        f"--annotation=runbook_url=https://example.com/{severity}", f"--alertmanager.url={url}",
    )  # fmt: skip
    assert code == 0, output
