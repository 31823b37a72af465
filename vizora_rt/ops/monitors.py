"""Prometheus and Alertmanager as programs on loopback, and somebody who is notified.

Their files are those of ops/, with addresses of this machine; for a drill also with short intervals, in which minutes
become seconds and nothing else changes.
"""

import json
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

from vizora_rt.errors import StartupError, UnavailableError

HOST = "127.0.0.1"
CHECKOUT_FILES = ("prometheus/prometheus.yml", "prometheus/alerts.yml", "alertmanager/alertmanager.yml")
PACKAGES = {"prometheus": "prometheus", "alertmanager": "prometheus-alertmanager"}
STOP_SECONDS = 10.0
ANSWER_SECONDS = 10.0
GATEWAY, PROMETHEUS, ALERTMANAGER = "localhost:3001", "localhost:9090", "localhost:9093"
"""The addresses in the files."""

_OPENER = build_opener(ProxyHandler({}))


class AlertNotification(NamedTuple):
    """One alert in one call of one receiver."""

    receiver: str
    alert: str
    firing: bool
    summary: str
    description: str
    runbook: str
    form: str = ""


class Program:
    """A process with its output in a file."""

    def __init__(self, name: str, arguments: Sequence[str], folder: Path, port: int) -> None:
        self.name = name
        self.url = f"http://{HOST}:{port}"
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as output:
            self._popen = subprocess.Popen(  # noqa: S603 - our own arguments
                arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    @property
    def ended(self) -> bool:
        return self._popen.poll() is not None

    def ready(self) -> bool:
        """Whether it answers. Raises UnavailableError when it never will."""
        if self.ended:
            raise UnavailableError(f"{self.name} ended: {self.last_words()}")
        try:
            return get(f"{self.url}/-/ready") is not None
        except OSError:
            return False

    def last_words(self) -> str:
        """The last line that it wrote; both programs say there why they end."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return lines[-1][-300:] if lines else "without a word"

    def stop(self) -> None:
        self._popen.terminate()
        try:
            self._popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


class Configs(NamedTuple):
    """The texts of the three files."""

    prometheus: str
    rules: str
    alertmanager: str


def configs(ops: Path) -> Configs:
    try:
        return Configs(*((ops / name).read_text("utf-8") for name in CHECKOUT_FILES))
    except OSError as error:
        raise StartupError(f"{error.filename}: {error.strerror}: run this in a checkout, or say --ops") from None


def addressed(files: Configs, gateway: str, prometheus: str, alertmanager: str) -> Configs:
    """With other addresses than those of ops/prometheus/prometheus.yml."""
    text = files.prometheus
    for standard, other in {GATEWAY: gateway, PROMETHEUS: prometheus, ALERTMANAGER: alertmanager}.items():
        text = text.replace(f"'{standard}'", f"'{other}'")
    return files._replace(prometheus=text)


def delivered(files: Configs, port: int) -> Configs:
    """What would go to Slack, email and PagerDuty goes to a webhook on `port`, whose path is the receiver's name."""
    routes, _, receivers = files.alertmanager.partition("\nreceivers:\n")
    names = re.findall(r"(?m)^  - name: (\S+)$", receivers)
    hooks = "".join(
        f"  - name: {name}\n    webhook_configs:\n      - url: http://{HOST}:{port}/{name}\n" for name in names
    )
    # What mentions files with secrets belongs to the receivers that are replaced.
    routes = re.sub(r"(?ms)^global:\n.*?(?=^\S)", "", routes)
    return files._replace(alertmanager=f"{routes}\nreceivers:\n{hooks}")


def hurried(files: Configs) -> Configs:
    """Minutes become seconds: windows, holds and groups. Expressions and thresholds stay as they are."""
    text = re.sub(r"_interval: \d+s", "_interval: 1s", files.prometheus)
    rules = re.sub(r"\binterval: \d+s", "interval: 1s", files.rules)
    rules = re.sub(r"(?<=\[)\d+[mh](?::\d+m)?(?=\])", lambda found: _shorter(found[0]), rules)
    rules = re.sub(r"(?<=for: )\d+m", lambda found: _shorter(found[0]), rules)
    # Whoever is told again each hour is told again each minute.
    routes = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", files.alertmanager)
    return Configs(text, rules, routes)


def _shorter(duration: str) -> str:
    return duration.replace("m", "s").replace("h", "m")


def start_prometheus(folder: Path, files: Configs, port: int) -> Program:
    (folder / "prometheus.yml").write_text(files.prometheus)
    (folder / "alerts.yml").write_text(files.rules)
    arguments = [
        executable("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address={HOST}:{port}",
    ]
    return Program("prometheus", arguments, folder, port)


def start_alertmanager(folder: Path, files: Configs, port: int) -> Program:
    (folder / "alertmanager.yml").write_text(files.alertmanager)
    arguments = [
        executable("prometheus-alertmanager", "alertmanager"),
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alerts'}",
        f"--web.listen-address={HOST}:{port}",
        # One of them needs no cluster, and no port for it.
        "--cluster.listen-address=",
    ]
    return Program("alertmanager", arguments, folder, port)


def executable(*names: str) -> str:
    """The path of a program, by the first of its names that is there. Debian's of Alertmanager is not its project's."""
    for name in names:
        found = shutil.which(name)
        if found is not None:
            return found
    raise UnavailableError(f"{names[-1]} is missing: apt-get install {PACKAGES[names[-1]]}, or see ops/compose.yml")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def get(url: str, headers: Mapping[str, str] = {}, body: object = None) -> Any:
    """JSON, or text that is none; a POST when there is a body. Raises OSError, of which urllib's HTTPError is one."""
    data = None if body is None else json.dumps(body).encode()
    request = Request(url, data, {**headers, **({"content-type": "application/json"} if data else {})})  # noqa: S310
    with _OPENER.open(request, timeout=ANSWER_SECONDS) as response:
        text = response.read().decode()
    try:
        return json.loads(text)
    except ValueError:
        return text


def query(prometheus: Program, expr: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each series that `expr` gives now."""
    answer = get(f"{prometheus.url}/api/v1/query?{urlencode({'query': expr})}")["data"]
    if answer["resultType"] == "scalar":
        return [({}, float(answer["result"][1]))]
    return [(each["metric"], float(each["value"][1])) for each in answer["result"]]


class Webhook:
    """Stands for Slack, email and PagerDuty: the path says for which. `notified` is called in a thread of its own."""

    def __init__(self, notified: Callable[[AlertNotification], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                told = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for alert in told["alerts"]:
                    notified(_notification(self.path.strip("/"), alert))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
                pass

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _notification(receiver: str, alert: dict[str, Any]) -> AlertNotification:
    said = alert["annotations"]
    return AlertNotification(
        receiver,
        alert["labels"]["alertname"],
        alert["status"] == "firing",
        said["summary"],
        said["description"],
        said["runbook_url"],
        alert["labels"].get("form", ""),
    )
