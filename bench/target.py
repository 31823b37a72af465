"""The gateway under load: one that runs already, by its URL, or one that is started for the scenario and ends with it.

One of our own has a new state directory, secrets of its own and a free port, and no limits that a load generator would
run into: hundreds of devices come from one address, and each says more than a screen does.
"""

import json
import os
import resource
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from bench.load import server, web
from vizora_rt.client.websocket import Endpoint, parse_url
from vizora_rt.service import runfile

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0

SETTINGS: Final = {
    "VIZORA_ENV": "production",
    "VIZORA_SERVER__HOST": "127.0.0.1",
    "VIZORA_LOGGING__LEVEL": "WARNING",
    "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
    "VIZORA_PLAYS__DEVICE_SHARE": "1",
    "VIZORA_LIMITS__PACKETS_PER_MINUTE": "0",
    "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0",
    "VIZORA_LIMITS__CONNECTIONS_PER_ADDRESS": "0",
    "VIZORA_LIMITS__HANDSHAKES_PER_SECOND": "0",
    "VIZORA_METRICS__MAX_DEVICE_SERIES": "20000",
}


class TargetError(Exception):
    """There is no gateway to load."""


class Target:
    """A gateway somewhere. `pids` are its processes when it runs on this machine."""

    def __init__(self, url: str, key: str, pids: Sequence[int] = ()) -> None:
        self.url = url
        self.key = key
        self.endpoint: Endpoint = parse_url(url)
        self.pids = list(pids)

    def find(self) -> None:
        """Its processes: those that were named, or those that `GET /status` names."""
        self.pids = self.pids or server.pids(self.endpoint)

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return await web.call(self.endpoint, self.key, method, path, body)


class Service(Target):
    """A gateway of our own: `with Service(...) as service`."""

    def __init__(self, workers: int, settings: Mapping[str, str], cores: Sequence[int], log: Path | None) -> None:
        # A socket's path has room for a hundred bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="vizora-bench-"))
        self.device_secret, self.user_secret = secrets.token_urlsafe(32), secrets.token_urlsafe(32)
        self._environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "VIZORA_STATE_DIR": str(self.folder / "state"),
            "VIZORA_SERVER__WORKERS": str(workers),
            "DEVICE_JWT_SECRET": self.device_secret,
            "JWT_SECRET": self.user_secret,
            "INTERNAL_API_SECRET": (key := secrets.token_urlsafe(32)),
            **SETTINGS,
            **settings,
        }
        self._cores = list(cores)
        self._log = log or self.folder / "service.log"
        self._key = key
        self._port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Service":
        try:
            self._start()
            super().__init__(f"ws://127.0.0.1:{self._port}/ws", self._key, [self.pid])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGCONT)
                self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def workers(self) -> list[int]:
        """Pids of the workers that run."""
        watch = server.Watch([self.pid])
        return sorted(pid for pid, process in watch.look().items() if process.name.startswith("worker"))

    def again(self, number: int) -> None:
        """End it by a signal, which if it is SIGKILL its workers get too, and start it on the same port and store."""
        assert self._process is not None
        for pid in self.workers() if number == signal.SIGKILL else ():
            os.kill(pid, number)
        self._process.send_signal(number)
        self._process.wait(STOP_SECONDS)
        self._start()
        self.pids.append(self.pid)

    def events(self) -> list[dict[str, Any]]:
        """What `vizora-rt events export` writes: all that happened to devices."""
        export = [sys.executable, "-m", "vizora_rt", "events", "export"]
        done = subprocess.run(export, env=self._environ, cwd=self.folder, capture_output=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _start(self) -> None:
        before = os.sched_getaffinity(0)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            if self._cores:
                os.sched_setaffinity(0, self._cores)  # which its processes inherit
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "vizora_rt", "serve", "--port", str(self._port)],
                    env=self._environ,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    process_group=0,
                )
        finally:
            os.sched_setaffinity(0, before)
        self._port = self._listening()

    def _listening(self) -> int:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            run = runfile.read(self.folder / "state")
            if run.get("pid") == self._process.pid:
                return int(run["port"])
            time.sleep(0.02)
        raise TargetError(f"the gateway did not start:\n{self._log.read_text(errors='replace')[-2000:]}")
