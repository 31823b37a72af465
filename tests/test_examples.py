"""The programs in examples/, each started as a reader of examples/README.md would, against a real service."""

import functools
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.net.peers import SECRETS, device_token
from tests.service_process import Service, until
from tests.tools import tool
from vizora_rt.net.valkey import server as valkey_server

EXAMPLES = Path(__file__).parents[1] / "examples"
API_KEY = "an-internal-key-of-32-characters"
PATIENCE = 30.0


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: the test's output is not a log."""


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """The origin of a web server for the files in examples/."""
    handler = functools.partial(QuietHandler, directory=str(EXAMPLES))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, pages: str) -> Iterator[Service]:
    env = {**SECRETS, "INTERNAL_API_SECRET": API_KEY, "CORS_ORIGIN": pages}
    with Service(tmp_path_factory.mktemp("service"), env, workers=1) as running:
        yield running.start()


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A program that runs until the end of the block."""
    process = subprocess.Popen([str(each) for each in arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def ws(service: Service) -> str:
    return f"ws://127.0.0.1:{service.port}/ws"


def status(service: Service, device: str) -> dict[str, object]:
    code, body = service.get(f"/devices/{device}", {"x-internal-api-key": API_KEY})
    return dict(json.loads(body)) if code == 200 else {}


def test_a_player_a_backend_that_pushes_and_one_that_reads(service: Service, tmp_path: Path) -> None:
    plays = tmp_path / "plays.json"
    store = valkey_server.running(Path(service.env["VIZORA_STATE_DIR"]))
    with started(sys.executable, EXAMPLES / "player.py", ws(service), device_token("lobby-1"), plays) as player:
        until(lambda: status(service, "lobby-1").get("status") == "online")
        push = subprocess.run(
            [sys.executable, EXAMPLES / "push.py", f"http://127.0.0.1:{service.port}", API_KEY, "lobby-1"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert push.stderr == ""
        assert push.stdout.splitlines()[-1] == "state: acked"
        assert player.stdout is not None
        assert [player.stdout.readline(), player.stdout.readline()] == ["playlist v1\n", "command clear_cache\n"]
        until(lambda: json.loads(plays.read_text())["seq"] >= 3)
    with started(sys.executable, EXAMPLES / "read_plays.py", store, "billing") as reader:
        assert reader.stdout is not None
        told = [reader.stdout.readline() for _ in range(2)]
    boot = json.loads(plays.read_text())["boot"]
    assert [f"lobby-1:{boot}:{number}" in line for number, line in enumerate(told, 1)] == [True, True]


def test_a_player_with_a_token_that_is_refused_ends(service: Service, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / "player.py", ws(service), "no.to.ken", tmp_path / "plays.json"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert "AUTH_INVALID" in done.stderr


def test_a_player_in_a_browser(service: Service, pages: str, tmp_path: Path) -> None:
    quiet = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions")
    page = f"{pages}/player.html?url={ws(service)}#{device_token('browser-1')}"
    with started(
        *(tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", *quiet),
        *("--remote-debugging-port=0", f"--user-data-dir={tmp_path / 'profile'}", page),
    ):
        until(lambda: status(service, "browser-1").get("lastHeartbeat"))
        assert status(service, "browser-1")["status"] == "online"


def test_the_list_names_every_example() -> None:
    table = (EXAMPLES / "README.md").read_text().splitlines()
    told = [line.split("`")[1] for line in table if line.startswith("| `")]
    assert sorted(told) == sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".html"))
