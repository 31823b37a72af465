"""The service as processes: what happens to it when they die, hang, fail to start, are told to stop or to reload."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.service_process import PATIENCE, Service, alive, until
from vizora_rt.config import Config, RedisSettings
from vizora_rt.errors import UnavailableError
from vizora_rt.net.redis import probe
from vizora_rt.service import channel, supervisor
from vizora_rt.service.process import Process
from vizora_rt.service.supervisor import Supervisor

SABOTAGE = """
import os, sys
if "vizora_rt.service.worker" in sys.orig_argv and os.path.exists({flag!r}):
    {fault}
"""
"""As sitecustomize of a worker's interpreter: a fault that begins when a file appears."""


def sabotaged(folder: Path, fault: str) -> tuple[dict[str, str], Path]:
    """Environment variables that bring `fault` into workers which start while the file exists."""
    flag = folder / "sabotage"
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SABOTAGE.format(flag=str(flag), fault=fault))
    return {"PYTHONPATH": str(folder / "site")}, flag


@contextmanager
def serving(folder: Path, env: Mapping[str, str] = {}, args: Sequence[str] = (), workers: int = 2) -> Iterator[Service]:
    with Service(folder, env, args, workers) as service:
        yield service.start()


def store_pid(service: Service) -> int:
    return int(service.wait("embedded store started")["pid"])


class TestLife:
    def test_it_serves_and_sigterm_ends_all_of_it_with_0(self, tmp_path: Path) -> None:
        with serving(tmp_path) as service:
            run = json.loads((tmp_path / "state" / "run.json").read_text())
            assert (run["pid"], run["port"]) == (service.pid, service.port)
            status = service.status()
            assert status["service"] == "vizora-rt"
            assert status["pid"] == service.pid
            assert [(worker["index"], worker["state"]) for worker in status["workers"]] == [(0, "ready"), (1, "ready")]
            assert service.metric('vizora_realtime_workers{state="ready"}') == 2
            pids = [*service.workers(), store_pid(service)]
            assert service.stop() == 0
            assert not any(map(alive, pids))
            assert not (tmp_path / "state" / "run.json").exists()
            assert service.records[-1]["event"] == "stopped"
            assert not any("Traceback" in line for line in service.lines)
            with pytest.raises(ConnectionRefusedError):
                service.get("/health/live")

    def test_ctrl_c_while_it_starts_is_clean(self, tmp_path: Path) -> None:
        with Service(tmp_path) as service:
            service.launch().wait("embedded store started")
            assert service.stop(signal.SIGINT) == 0
            assert not any("Traceback" in line for line in service.lines)

    def test_workers_end_when_the_supervisor_is_killed_and_the_store_is_adopted(self, tmp_path: Path) -> None:
        with serving(tmp_path) as service:
            workers, store = service.workers(), store_pid(service)
            assert service.stop(signal.SIGKILL) == -signal.SIGKILL
            until(lambda: not any(map(alive, workers)))
            assert alive(store)
            service.start()
            assert service.wait("embedded store adopted")["pid"] == store
            assert service.stop() == 0
            assert not alive(store)

    def test_it_adopts_nothing_of_a_service_that_runs(self, tmp_path: Path) -> None:
        with serving(tmp_path), Service(tmp_path) as second:
            assert second.launch().join() == UnavailableError.exit_code
            assert "in use by another service" in second.lines[-1]

    def test_a_second_signal_hurries(self, tmp_path: Path) -> None:
        """A stopped worker neither drains nor answers; with these settings it would have an hour for both."""
        env = {"VIZORA_SERVER__DRAIN_SECONDS": "3600", "VIZORA_SERVER__HANG_SECONDS": "3600"}
        with serving(tmp_path, env) as service:
            os.kill(service.workers()[0], signal.SIGSTOP)
            service.signal(signal.SIGTERM)
            service.wait("stopping")
            assert service.stop() == 0
            service.wait("worker killed: it did not end in time")

    def test_the_embedded_store_is_started_again(self, tmp_path: Path) -> None:
        with serving(tmp_path) as service:
            os.kill(store_pid(service), signal.SIGKILL)
            service.wait("embedded store started", count=2)
            until(service.redis_up)
            assert service.stop() == 0


class TestWorkers:
    def test_a_killed_worker_is_replaced_on_its_socket_and_nothing_is_forgotten(self, tmp_path: Path) -> None:
        with serving(tmp_path) as service:
            served = 'vizora_realtime_http_requests_total{method="GET",path="/health/live",status="200"}'
            for _ in range(20):
                assert service.get("/health/live")[0] == 200
            assert service.metric(served) == 20
            before = service.workers()
            os.kill(before[0], signal.SIGKILL)
            # No handshake is lost: what the dead worker's socket holds waits for its successor.
            for _ in range(20):
                assert service.get("/health/live")[0] == 200
            service.wait("worker ready", count=3)
            after = service.workers()
            assert after[1] == before[1]
            assert after[0] != before[0]
            assert service.metric('vizora_realtime_worker_restarts_total{reason="crash"}') == 1
            assert service.metric(served) == 40
            assert service.wait("worker failed")["ending"] == "signal 9 (SIGKILL)"

    def test_a_worker_that_hangs_is_replaced(self, tmp_path: Path) -> None:
        with serving(tmp_path, {"VIZORA_SERVER__HANG_SECONDS": "1"}) as service:
            hung, other = service.workers()
            os.kill(hung, signal.SIGSTOP)
            assert service.wait("worker hangs")["pid"] == hung
            service.wait("worker ready", count=3)
            assert not alive(hung)
            assert other in service.workers()
            assert service.metric('vizora_realtime_worker_restarts_total{reason="hung"}') == 1

    @pytest.mark.parametrize("all_of_it", [False, True])
    def test_a_supervisor_that_was_stopped_does_not_blame_its_workers(self, tmp_path: Path, all_of_it: bool) -> None:
        """A paused container or virtual machine goes on as if nothing had been."""
        with serving(tmp_path, {"VIZORA_SERVER__HANG_SECONDS": "1"}) as service:
            before = service.workers()
            stopped = [service.pid, *before] if all_of_it else [service.pid]
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            # Longer than `hang_seconds`: time itself is what has to pass.
            time.sleep(1.5)
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
            assert service.workers() == before
            assert service.stop() == 0
            assert not any(record["event"] == "worker hangs" for record in service.records)

    def test_a_worker_that_gets_sigterm_is_replaced_without_a_gap(self, tmp_path: Path) -> None:
        with serving(tmp_path, workers=1) as service:
            (before,) = service.workers()
            os.kill(before, signal.SIGTERM)
            assert service.wait("worker ended")["pid"] == before
            (after,) = service.workers()
            assert after != before
            assert service.metric('vizora_realtime_worker_restarts_total{reason="roll"}') == 1

    def test_five_failed_boots_end_the_service_with_one_line(self, tmp_path: Path) -> None:
        env, flag = sabotaged(tmp_path, "os._exit(3)")
        flag.touch()
        with Service(tmp_path, env, workers=1) as service:
            assert service.launch().join() == 1
            last = "vizora-rt: workers failed to boot 5 times in 30 s, the last one with: exit code 3"
            assert service.lines[-1] == last
            assert not any("Traceback" in line for line in service.lines)

    def test_the_line_tells_what_the_worker_said(self, tmp_path: Path) -> None:
        fault = "import vizora_rt.net.gateway.gateway as g; g.Gateway.__init__ = None"
        env, flag = sabotaged(tmp_path, fault)
        flag.touch()
        with Service(tmp_path, env, workers=1) as service:
            assert service.launch().join() == 1
            assert "the last one with: TypeError: 'NoneType' object is not callable" in service.lines[-1]


class TestScrape:
    def test_a_worker_that_does_not_answer_is_missing_not_waited_for(self, tmp_path: Path) -> None:
        with serving(tmp_path, {"VIZORA_SERVER__HANG_SECONDS": "3600"}) as service:
            assert service.metric("vizora_realtime_scrape_workers_missing") == 0
            stopped, _ = service.workers()
            os.kill(stopped, signal.SIGSTOP)
            try:
                # The kernel gives about half of the connections to the stopped worker: ask until the other has one.
                assert until(lambda: self.missing(service)) == 1
            finally:
                os.kill(stopped, signal.SIGCONT)

    def missing(self, service: Service) -> float | None:
        try:
            return service.metric("vizora_realtime_scrape_workers_missing", timeout=1.0)
        except TimeoutError:
            return None

    def test_scrapes_at_once_are_all_answered(self, tmp_path: Path) -> None:
        with serving(tmp_path) as service:
            answers: list[int] = []
            threads = [threading.Thread(target=lambda: answers.append(service.get("/metrics")[0])) for _ in range(20)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(PATIENCE)
            assert answers == [200] * 20

    def test_every_process_of_the_service_has_its_series(self, tmp_path: Path) -> None:
        with serving(tmp_path) as service:
            for process in ("supervisor", "worker-0", "worker-1", "store"):
                assert (service.metric(f'process_resident_memory_bytes{{process="{process}"}}') or 0) > 1e6


class TestReload:
    def test_sighup_rolls_all_workers_and_somebody_always_accepts(self, tmp_path: Path) -> None:
        with serving(tmp_path) as service:
            before = service.workers()
            service.signal(signal.SIGHUP)
            while not any(record["event"] == "reloaded" for record in service.records):
                assert service.get("/health/live")[0] == 200
            assert not set(service.workers()) & set(before)
            # A service that was rolled has not begun anew.
            health = json.loads(service.get("/health")[1])
            assert health["uptime"] > max(worker["uptime"] for worker in service.status()["workers"])
            assert service.metric('vizora_realtime_worker_restarts_total{reason="roll"}') == 2
            assert service.metric('vizora_realtime_worker_restarts_total{reason="crash"}') == 0

    def test_workers_get_the_new_configuration_and_the_port_stays(self, tmp_path: Path) -> None:
        file = tmp_path / "config.toml"
        file.write_text("[metrics]\npublic = false\n")
        with serving(tmp_path, args=("--config", str(file)), workers=1) as service:
            proxied = {"x-forwarded-for": "10.0.0.1"}
            assert service.get("/metrics", proxied)[0] == 403
            file.write_text("[metrics]\npublic = true\n[server]\nbacklog = 100\n")
            service.signal(signal.SIGHUP)
            service.wait("reloaded")
            assert service.get("/metrics", proxied)[0] == 200

    def test_what_needs_a_restart_is_named(self, tmp_path: Path) -> None:
        with serving(tmp_path, workers=1) as service:
            (tmp_path / ".env").write_text("VIZORA_REDIS__URL=redis://127.0.0.1:1\n")
            service.signal(signal.SIGHUP)
            assert service.wait("reload leaves keys that need a restart")["keys"] == ["redis.url"]
            service.wait("reloaded")
            assert service.get("/health/ready")[0] == 200

    def test_a_bad_configuration_changes_nothing(self, tmp_path: Path) -> None:
        file = tmp_path / "config.toml"
        file.write_text("")
        with serving(tmp_path, args=("--config", str(file)), workers=1) as service:
            before = service.workers()
            file.write_text("[limits]\nmessage_bites = 1\n")
            service.signal(signal.SIGHUP)
            assert "config.toml:2: limits.message_bites: unknown key" in service.wait("reload refused")["error"]
            assert service.workers() == before

    @pytest.mark.parametrize(
        ("fault", "error"),
        [
            ("os._exit(3)", None),
            (
                "import vizora_rt.service.channel as c; c.VERSION = 99",
                f"its worker protocol is version 99, the running one {channel.VERSION}: restart instead",
            ),
        ],
    )
    def test_workers_that_cannot_boot_end_the_roll_not_the_service(
        self, tmp_path: Path, fault: str, error: str | None
    ) -> None:
        env, flag = sabotaged(tmp_path, fault)
        with serving(tmp_path, env) as service:
            before = service.workers()
            flag.touch()
            service.signal(signal.SIGHUP)
            assert service.wait("roll refused")["error"] == error
            assert service.workers() == before
            flag.unlink()
            service.signal(signal.SIGHUP)
            service.wait("reloaded")
            assert not set(service.workers()) & set(before)


class TestTroubleInARoll:
    """What comes while successors boot, which takes them a second and longer here."""

    def slow(self, folder: Path, then: str = "") -> tuple[dict[str, str], Path]:
        """A sabotage: the worker sleeps for a second, `then` it does something. `begun` waits for one that does."""
        begun = str(folder / "begun")
        return sabotaged(folder, f"import time; open({begun!r}, 'w').close(); time.sleep(1); {then}")

    def begun(self, folder: Path) -> None:
        until((folder / "begun").exists)

    def proxied(self, service: Service) -> int:
        """What a proxy is answered at /metrics: 200 by `metrics.public`, else 403."""
        return service.get("/metrics", {"x-forwarded-for": "10.0.0.1"})[0]

    def publish(self, folder: Path) -> None:
        (folder / ".env").write_text("VIZORA_METRICS__PUBLIC=true\n")

    def test_a_bad_configuration_leaves_the_roll_alone(self, tmp_path: Path) -> None:
        env, flag = self.slow(tmp_path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            systemd.setblocking(False)
            with serving(tmp_path, {**env, "NOTIFY_SOCKET": str(tmp_path / "notify")}, workers=1) as service:
                flag.touch()
                self.publish(tmp_path)
                service.signal(signal.SIGHUP)
                self.begun(tmp_path)
                (tmp_path / ".env").write_text("VIZORA_METRICS__PUBIC=true\n")
                service.signal(signal.SIGHUP)
                service.wait("reload refused")
                service.wait("reloaded")
                assert self.proxied(service) == 200
                assert service.stop() == 0
            told = list(iter(partial(received, systemd), ""))
            # For the start, and for the roll: a refusal in the middle of it is not its end.
            words = [line.partition("=")[0] for line in told if not line.startswith("STATUS")]
            assert words == ["READY", "RELOADING", "RELOADING", "READY", "STOPPING"]

    def test_a_newer_configuration_is_tried_when_the_last_one_fails(self, tmp_path: Path) -> None:
        env, flag = self.slow(tmp_path, "os._exit(3)")
        with serving(tmp_path, env, workers=1) as service:
            flag.touch()
            service.signal(signal.SIGHUP)
            self.begun(tmp_path)
            self.publish(tmp_path)
            service.signal(signal.SIGHUP)
            service.wait("reloading", count=2)
            flag.unlink()
            service.wait("successor did not boot")
            service.wait("reloaded")
            assert self.proxied(service) == 200
            assert not any(record["event"] == "roll refused" for record in service.records)

    def test_a_worker_that_dies_meanwhile_is_replaced_by_one_that_boots(self, tmp_path: Path) -> None:
        env, flag = self.slow(tmp_path, "os._exit(3)")
        with serving(tmp_path, env, workers=1) as service:
            (before,) = service.workers()
            flag.touch()
            self.publish(tmp_path)
            service.signal(signal.SIGHUP)
            self.begun(tmp_path)
            os.kill(before, signal.SIGKILL)
            service.wait("roll refused")
            flag.unlink()
            service.wait("worker ready", count=2)
            assert self.proxied(service) == 403

    def test_a_refusal_names_how_many_have_rolled_and_they_stay(self, tmp_path: Path) -> None:
        boots = str(tmp_path / "boots")
        second = f"boots = open({boots!r}, 'ab', 0); boots.write(b'.'); boots.tell() == 2 and os._exit(3)"
        env, flag = sabotaged(tmp_path, second)
        with serving(tmp_path, env) as service:
            before = service.workers()
            flag.touch()
            self.publish(tmp_path)
            service.signal(signal.SIGHUP)
            assert service.wait("roll refused")["rolled"] == 1
            rolled, left = service.workers()
            assert rolled != before[0] and left == before[1]
            # Whoever dies now is replaced by the kind that was seen to boot.
            for pid in (rolled, left):
                os.kill(pid, signal.SIGKILL)
            service.wait("worker ready", count=5)
            assert self.proxied(service) == 200

    def test_a_worker_that_cannot_be_replaced_stays_and_keeps_its_configuration(self, tmp_path: Path) -> None:
        env, flag = sabotaged(tmp_path, "os._exit(3)")
        with serving(tmp_path, env, workers=1) as service:
            self.publish(tmp_path)
            service.signal(signal.SIGHUP)
            service.wait("reloaded")
            flag.touch()
            (before,) = service.workers()
            os.kill(before, signal.SIGTERM)
            service.wait("roll refused")
            assert service.workers() == [before]
            flag.unlink()
            os.kill(before, signal.SIGKILL)
            service.wait("worker ready", count=3)
            assert self.proxied(service) == 200

    def test_a_reload_while_it_starts_is_done_when_it_has_started(self, tmp_path: Path) -> None:
        env, flag = self.slow(tmp_path)
        flag.touch()
        with Service(tmp_path, env, workers=1) as service:
            service.launch().wait("embedded store started")
            self.publish(tmp_path)
            service.signal(signal.SIGHUP)
            service.port = service.wait("listening")["port"]
            service.wait("reloaded")
            assert self.proxied(service) == 200

    def test_ten_reloads_in_a_second_end_where_one_does(self, tmp_path: Path) -> None:
        with serving(tmp_path) as service:
            before = service.workers()
            for number in range(10):
                service.signal(signal.SIGHUP)
                service.wait("reloading", count=number + 1)
            service.wait("reloaded")
            after = service.workers()
            assert len(after) == 2 and not set(before) & set(after)
            assert [worker["state"] for worker in service.status()["workers"]] == ["ready", "ready"]
            # Those that came while one worker booted are one for the next.
            assert sum(record["event"] == "worker ready" for record in service.records) < 2 + 2 * 10

    def test_a_store_that_dies_meanwhile_is_back_for_the_new_workers(self, tmp_path: Path) -> None:
        with serving(tmp_path) as service:
            before = service.workers()
            service.signal(signal.SIGHUP)
            service.wait("reloading")
            os.kill(store_pid(service), signal.SIGKILL)
            service.wait("reloaded")
            assert not set(before) & set(service.workers())
            until(service.redis_up)

    def test_it_is_stopped_in_the_middle_of_one(self, tmp_path: Path) -> None:
        env, flag = self.slow(tmp_path)
        with serving(tmp_path, env) as service:
            flag.touch()
            service.signal(signal.SIGHUP)
            self.begun(tmp_path)
            pids = [worker["pid"] for worker in service.status()["workers"]]
            assert len(pids) == 3
            assert service.stop() == 0
            assert not any(map(alive, [*pids, store_pid(service)]))
            assert not any("killed" in record["event"] for record in service.records)


def received(systemd: socket.socket) -> str:
    """The next message that is there, or none."""
    try:
        return systemd.recv(4096).decode()
    except BlockingIOError:
        return ""


class TestNotify:
    @pytest.mark.parametrize("abstract", [False, True])
    def test_systemd_is_told_of_every_step(self, tmp_path: Path, abstract: bool) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.settimeout(PATIENCE)
            name = f"vizora-test-{os.getpid()}"
            systemd.bind(f"\0{name}" if abstract else str(tmp_path / "notify"))
            env = {"NOTIFY_SOCKET": f"@{name}" if abstract else str(tmp_path / "notify"), "WATCHDOG_USEC": "1000000"}

            def told(wanted: str) -> str:
                while not (message := systemd.recv(4096).decode()).startswith(wanted):
                    pass
                return message

            with serving(tmp_path, env, workers=1) as service:
                told("READY=1")
                told("STATUS=1 of 1 workers, 0 connections")
                told("WATCHDOG=1")
                told("WATCHDOG=1")
                service.signal(signal.SIGHUP)
                reloading = told("RELOADING=1").split("\n")[1]
                assert reloading.startswith("MONOTONIC_USEC=") and reloading.partition("=")[2].isdecimal()
                told("READY=1")
                assert service.stop() == 0
                # For the drain, what is beyond it, and the store.
                assert told("STOPPING=1").endswith("\nEXTEND_TIMEOUT_USEC=30000000")


class Systemd:
    """What systemd does for a unit with WatchdogSec: no WATCHDOG=1 for that long, and the main process is killed."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(folder / "notify"))
        self.seconds = seconds
        self.env = {"NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": str(int(seconds * 1e6))}

    def fed(self) -> bool:
        """Whether it is fed in time from now on: False when the time is up."""
        deadline = time.monotonic() + self.seconds
        while (left := deadline - time.monotonic()) > 0:
            self.socket.settimeout(left)
            try:
                if self.socket.recv(4096) == b"WATCHDOG=1":
                    return True
            except TimeoutError:
                break
        return False


class TestWatchdog:
    @pytest.fixture
    def systemd(self, tmp_path: Path) -> Iterator[Systemd]:
        made = Systemd(tmp_path, 2.0)
        yield made
        made.socket.close()

    def test_a_supervisor_that_hangs_is_restarted(self, tmp_path: Path, systemd: Systemd) -> None:
        with serving(tmp_path, systemd.env) as service:
            workers, store = service.workers(), store_pid(service)
            assert all(systemd.fed() for _ in range(3))
            os.kill(service.pid, signal.SIGSTOP)
            until(lambda: not systemd.fed())
            # KillMode=mixed: the workers hear it from their channel, and the store is for the next one to adopt.
            assert service.stop(signal.SIGKILL) == -signal.SIGKILL
            until(lambda: not any(map(alive, workers)))
            service.start()
            assert service.wait("embedded store adopted")["pid"] == store
            assert systemd.fed()
            assert service.get("/health/ready")[0] == 200

    @pytest.mark.soak
    def test_workers_that_all_hang_are_replaced_before_it_bites(self, tmp_path: Path, systemd: Systemd) -> None:
        env = {**systemd.env, "VIZORA_SERVER__HANG_SECONDS": "1.5"}
        with serving(tmp_path, env) as service:
            assert systemd.fed()
            before = service.workers()
            for pid in before:
                os.kill(pid, signal.SIGSTOP)
            service.wait("worker hangs", count=2)
            # It replaces them itself, which is faster: and is fed again when a new one beats.
            service.wait("worker ready", count=4)
            assert systemd.fed()
            assert not set(service.workers()) & set(before)


async def test_what_the_supervisor_slept_is_taken_from_nobody_s_time() -> None:
    made, now = Supervisor(Config(), Config), asyncio.get_running_loop().time()
    draining, ended = (Process(index, 0, {}, made) for index in range(2))
    draining.deadline = now + 5.0
    # All that is left is to read what it has said.
    ended.deadline, ended.returncode = now - 5.0, 0
    made._processes |= {draining, ended}
    made._ticked = now - 60.0
    made._tick()
    made._processes.clear()
    await made._close()
    # One that was killed has none.
    assert now + 60.0 < draining.deadline < float("inf") and ended.deadline < float("inf")
    assert min(draining.beat, ended.beat) >= now


def test_version_is_that_of_the_package() -> None:
    shown = subprocess.run([sys.executable, "-m", "vizora_rt", "--version"], capture_output=True, text=True, check=True)
    assert supervisor.VERSION in shown.stdout


async def test_a_probe_of_redis_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a resolver of names that is away, which no timeout of a connection bounds."""
    release = threading.Event()
    monkeypatch.setattr(probe, "probe", lambda *_: release.wait(PATIENCE))
    monkeypatch.setattr(supervisor, "PROBE_LONGEST_SECONDS", 0.05)
    settings = Config(redis=RedisSettings(url="redis://redis.invalid"))
    service = Supervisor(settings, lambda: settings)
    try:
        with pytest.raises(UnavailableError, match="Redis was not found within"):
            await service._probe(settings)
    finally:
        release.set()
        os.close(service._turns)
        service._notifier.close()
