"""The service as a real process, for tests: start it, read its log, ask it, hurt it, and leave nothing behind.

    with Service(tmp_path) as service:
        service.start()
        status, body = service.get("/health")

It runs in development with an embedded store in `folder`, on a free port of 127.0.0.1, in an environment of its own, so
that nothing of the machine's gets in.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PATIENCE = 30.0
"""Seconds until a wait is given up: what is waited for takes one or two, on a busy machine a few more."""

PROCESSES = ("worker ready", "embedded store started", "embedded store adopted")
"""Log lines that name a process of the service."""

Record = dict[str, Any]


class Service:
    """One run of `vizora-rt serve`, or several one after the other on the same state."""

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str] = {},
        args: Sequence[str] = (),
        workers: int = 2,
        command: str = "serve",
    ) -> None:
        self.folder = folder
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
            "VIZORA_ENV": "development",
            "VIZORA_STATE_DIR": str(folder / "state"),
            "VIZORA_LOGGING__FORMAT": "json",
            "VIZORA_SERVER__HOST": "127.0.0.1",
            "VIZORA_SERVER__WORKERS": str(workers),
            **env,
        }
        self.args = [command, "--port", "0", *args]
        self.python = sys.executable
        self.prefix: list[str] = []
        """A command that starts the command that it is given."""
        self.port = 0
        self.lines: list[str] = []
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._news = threading.Condition()
        self._over = True
        self._pids: set[int] = set()

    # --- life ---

    def launch(self) -> Self:
        """Start the process and return at once."""
        assert self._over, "it runs already"
        self.lines = []
        self._over = False
        self._process = subprocess.Popen(
            [*self.prefix, self.python, "-m", "vizora_rt", *self.args],
            env=self.env,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        return self

    def start(self) -> Self:
        """Start the process and wait until all workers accept."""
        self.launch()
        self.port = self.wait("listening")["port"]
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end. The exit code."""
        self.signal(number)
        return self.join()

    def join(self) -> int:
        """Wait for the end. The exit code."""
        assert self._process is not None and self._reader is not None
        code = self._process.wait(PATIENCE)
        # The log is complete when no process of the service holds stderr: a worker of a killed supervisor ends later.
        self._reader.join(PATIENCE)
        assert not self._reader.is_alive(), "somebody of the service still runs"
        return code

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pid in self._pids:
            kill_ours(pid)
        if self.prefix and (run := parse_file(Path(self.env["VIZORA_STATE_DIR"], "run.json"))):
            kill_ours(run["pid"])  # what the prefix started was not ended with it
        if self._reader is not None:
            self._reader.join(PATIENCE)

    # --- log ---

    @property
    def records(self) -> list[Record]:
        """The log lines that are JSON."""
        return [record for line in list(self.lines) if (record := parse(line))]

    def wait(self, event: str, count: int = 1, **fields: Any) -> Record:
        """The `count`-th log line with this event and these fields, now or later."""

        def matches(record: Record) -> bool:
            return record["event"] == event and all(record.get(key) == value for key, value in fields.items())

        found: list[Record] = []

        def arrived() -> bool:
            found[:] = [record for record in self.records if matches(record)]
            return len(found) >= count or self._over

        with self._news:
            self._news.wait_for(arrived, PATIENCE)
        if len(found) < count:
            raise AssertionError(f"no {event!r} {fields or ''} in the log:\n" + "\n".join(self.lines))
        return found[count - 1]

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr as stream:
            for line in stream:
                record = parse(line)
                if record is not None and record["event"] in PROCESSES:
                    self._pids.add(record["pid"])
                with self._news:
                    self.lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    # --- questions ---

    def get(self, path: str, headers: Mapping[str, str] = {}, timeout: float = PATIENCE) -> tuple[int, bytes]:
        """Status and body of a GET over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path, headers={"connection": "close", **headers})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def redis_up(self) -> bool:
        """Whether all workers have Redis, by their own account."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return all(float(line.split()[-1]) for line in lines if line.startswith("vizora_realtime_redis_up"))

    def status(self) -> Record:
        """The body of /status."""
        status, body = self.get("/status")
        assert status == 200, body
        found: Record = json.loads(body)
        return found

    def workers(self) -> list[int]:
        """Pids of the workers that are ready, by index."""
        return [worker["pid"] for worker in self.status()["workers"] if worker["state"] == "ready"]

    def metric(self, series: str, timeout: float = PATIENCE) -> float | None:
        """The value of a series as written in the exposition, labels included."""
        status, body = self.get("/metrics", timeout=timeout)
        assert status == 200, body
        for line in body.decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        return None


def parse(line: str) -> Record | None:
    """A log line, or None for what is something else: a stack dump, a line for people."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "event" in record else None


def parse_file(path: Path) -> Record | None:
    try:
        found: Record = json.loads(path.read_text())
    except OSError:
        return None
    return found


def kill_ours(pid: int) -> None:
    """Kill a process of the service that was left over; never one that has its number by now."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"vizora_rt" in command or b"valkey" in command:
            os.kill(pid, signal.SIGKILL)
    except OSError:
        pass


def alive(pid: int) -> bool:
    """Whether there is such a process, zombies not counted."""
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def until(what: Callable[[], Any]) -> Any:
    """Ask again and again for what no event tells, and return the first truthy answer."""
    done = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        answer = what()
        if answer:
            return answer
        done.wait(0.02)
    raise AssertionError("it did not happen")
