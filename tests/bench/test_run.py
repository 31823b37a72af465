"""`bench run` as a process: against a gateway of its own, against one at a URL, and with what goes wrong."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.report import histogram, schema
from bench.scenarios import hostile
from bench.scenarios.catalogue import SCENARIOS
from tests.service_process import Service

ROOT = Path(__file__).parents[2]
SECRETS = {
    "DEVICE_JWT_SECRET": "0123456789abcdef0123456789abcdef",
    "JWT_SECRET": "abcdef0123456789abcdef0123456789",
    "INTERNAL_API_SECRET": "fedcba9876543210fedcba9876543210",
}
UNLIMITED = {"VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0", "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0"}
ANY_LATENESS = ("--max-late-ms", "60000")
"""Other tests run beside these: that a load process waits for its core is no fault of theirs."""


def bench(*arguments: str | Path, secrets: bool = True) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in SECRETS}
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        env={**env, **(SECRETS if secrets else {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def report(folder: Path, done: subprocess.CompletedProcess[str]) -> schema.Scenario:
    """The one scenario of a run that was good enough but for the cores that it had to share."""
    file = folder / "report.json"
    assert file.exists(), done.stdout + done.stderr
    (found,) = schema.read(file).scenarios
    assert done.returncode == {"passed": 0, "invalid": 3, "failed": 4}[found.verdict], done.stdout + done.stderr
    assert done.stderr.count("INVALID: ") == len(found.invalid)
    return found


def passed(found: schema.Scenario, *figures: str) -> None:
    """Those thresholds that do not ask how fast this machine is."""
    judged = {each.expression: each.passed for each in found.thresholds}
    assert {figure: judged[figure] for figure in figures} == dict.fromkeys(figures, True)


def about(count: int) -> Any:
    """The end of a run falls between two messages."""
    return pytest.approx(count, abs=5)


def share_above(log: Path, us: int) -> float:
    """Of the latencies of a log, those above."""
    above = total = 0
    for each in histogram.read_log(log):
        for item in each.get_recorded_iterator():
            total += item.count_added_in_this_iter_step
            above += item.count_added_in_this_iter_step * (item.value_iterated_to > us)
    return above / total


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("gateway"), {**SECRETS, **UNLIMITED}, workers=1) as service:
        yield service.start()


def url(service: Service) -> str:
    return f"ws://127.0.0.1:{service.port}/ws"


class TestScenarios:
    def test_list(self) -> None:
        done = bench("list")
        assert done.returncode == 0
        for name, scenario in SCENARIOS.items():
            assert name in done.stdout
            assert scenario.about in done.stdout

    def test_a_stall_is_seen(self, tmp_path: Path) -> None:
        """The gateway is stopped for half a second: nobody waits for it, and every message of that time says so."""
        done = bench("run", "stall", "--seconds", "3", "--warmup", "0.5", "--rate", "200", "--out", tmp_path)
        found = report(tmp_path, done)
        passed(found, "heartbeat.max>=450ms", "heartbeat.p99.9>=400ms", "errors<0.1%")
        (kind,) = found.kinds
        assert kind.sent == kind.accepted == about(600)
        # A loop that waited for the gateway would have one slow message a device, 50; here are those of half a second.
        assert share_above(tmp_path / kind.log, 100_000) * 600 >= 60
        assert [mark.what for mark in found.timeline.marks] == ["stopped for 500 ms"]

    def test_attacks_are_told_apart(self, tmp_path: Path) -> None:
        """Each row has its own heartbeats; that they were not slow, no test beside others can say."""
        options = ("--devices", "20", "--rate", "100", "--seconds", "15", "--warmup", "0.2", *ANY_LATENESS)
        found = report(tmp_path, bench("run", "hostile", *options, "--out", tmp_path))
        passed(found, "connected>=100%", "workers.killed==0", "ended==0")
        assert [kind.name for kind in found.kinds] == list(hostile.ROWS)
        assert all(kind.sent == about(1500 // len(hostile.ROWS)) and kind.lost == 0 for kind in found.kinds)
        assert [mark.what for mark in found.timeline.marks] == list(hostile.ROWS[1:])
        assert found.figures["pings.closed"] + found.figures["binary.closed"] > 0

    def test_two_load_processes_and_their_sum(self, gateway: Service, tmp_path: Path) -> None:
        options = ("--devices", "21", "--rate", "200", "--seconds", "1", "--warmup", "0.3", "--workers", "2")
        found = report(tmp_path, bench("run", "heartbeat", "--url", url(gateway), *options, "--out", tmp_path))
        (kind,) = found.kinds
        assert (kind.lost, kind.refused) == (0, {})
        assert kind.sent == kind.accepted == kind.latency.count == about(200)
        assert sum(each.get_total_count() for each in histogram.read_log(tmp_path / kind.log)) == kind.sent
        assert found.generator.processes == 2
        assert found.generator.late.count == about(200)
        assert found.timeline.connections == [21, 21]
        assert {process.name for process in found.timeline.processes} == {"supervisor", "worker 0", "store"}
        assert found.figures["cpu"] > 0
        passed(found, "connected>=95%", "acked>=98%", "errors<0.1%")

    def test_a_fleet_loses_no_play(self, gateway: Service, tmp_path: Path) -> None:
        options = ("--devices", "40", "--interval", "1", "--play", "1", "--churn", "5", "--seconds", "3", *ANY_LATENESS)
        found = report(tmp_path, bench("run", "fleet", "--url", url(gateway), *options, "--out", tmp_path))
        passed(found, "plays.lost==0", "play.accepted>=100%", "errors<0.1%")
        kinds = {kind.name: kind for kind in found.kinds}
        assert kinds["heartbeat"].accepted > 60
        assert kinds["play"].accepted > 150
        assert kinds["connect"].accepted >= found.counters["left"] > 5
        assert found.figures["plays.verified"] >= 80

    @pytest.mark.soak
    def test_a_killed_worker(self, tmp_path: Path) -> None:
        options = ("--devices", "40", "--seconds", "5", "--warmup", "0.5", "--interval", "0.5", "--play", "1")
        found = report(tmp_path, bench("run", "worker-kill", *options, "--out", tmp_path))
        passed(found, "reconnect.accepted>=100%", "plays.lost==0", "play.accepted>=100%")
        assert found.counters["ended: connection lost"] > 0
        workers = [process for process in found.timeline.processes if process.name.startswith("worker")]
        assert len(workers) == 3
        assert found.timeline.marks[0].what == "worker killed"

    def test_requests_beside_devices(self, gateway: Service, tmp_path: Path) -> None:
        options = ("--devices", "5", "--rate", "100", "--interval", "0.5", "--seconds", "1.5", "--warmup", "0.2")
        found = report(tmp_path, bench("run", "combined", "--url", url(gateway), *options, "--out", tmp_path))
        kinds = {kind.name: kind for kind in found.kinds}
        assert kinds["http"].accepted + kinds["http_command"].accepted + kinds["scrape"].accepted == about(150)
        passed(found, "errors<0.1%")

    def test_one_to_all(self, gateway: Service, tmp_path: Path) -> None:
        options = ("--devices", "30", "--dashboards", "7", "--seconds", "2.5", "--warmup", "0.2")
        found = report(tmp_path, bench("run", "broadcast", "--url", url(gateway), *options, "--out", tmp_path))
        kinds, rounds = {kind.name: kind for kind in found.kinds}, int(found.figures["broadcast.rounds"])
        assert rounds >= 1
        assert kinds["command"].accepted == 30 * rounds
        assert kinds["notice"].accepted == 7 * rounds
        assert kinds["command"].latency.max > 0

    def test_a_storm(self, gateway: Service, tmp_path: Path) -> None:
        options = ("--devices", "150", "--rate", "300", "--seconds", "1")
        found = report(tmp_path, bench("run", "connect-storm", "--url", url(gateway), *options, "--out", tmp_path))
        (kind,) = found.kinds
        assert (kind.name, kind.sent, kind.accepted) == ("connect", 150, 150)
        assert found.timeline.connections[-1] == 150
        assert found.figures["connect.cpu"] > 0

    def test_plays_as_fast_as_they_go(self, gateway: Service, tmp_path: Path) -> None:
        options = ("--devices", "5", "--batch", "10", "--seconds", "0.5", "--warmup", "0.1")
        found = report(tmp_path, bench("run", "plays", "--url", url(gateway), *options, "--out", tmp_path))
        passed(found, "acked>=98%")


class TestVerdicts:
    def test_a_threshold_that_fails(self, gateway: Service, tmp_path: Path) -> None:
        options = ("--rate", "50", "--seconds", "0.5", "--warmup", "0", *ANY_LATENESS, "--out", tmp_path)
        limits = ("--threshold", "heartbeat.p50<1us", "--threshold", "connected>=10%")
        done = bench("run", "heartbeat", "--url", url(gateway), *options, *limits)
        found = report(tmp_path, done)
        assert [each.passed for each in found.thresholds if each.expression == "heartbeat.p50<1us"] == [False]
        assert "connected>=95%" not in [each.expression for each in found.thresholds]
        assert done.returncode == (3 if found.invalid else 4)

    def test_a_starved_generator_is_invalid(self, gateway: Service, tmp_path: Path) -> None:
        """Two busy loops on the one core that it has: it runs a third of the time, and must not blame the gateway."""
        core = min(os.sched_getaffinity(0))
        loops = [
            subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"])
            for _ in range(2)
        ]
        try:
            pinned = ("-c", str(core), sys.executable, "-m", "bench")
            done = subprocess.run(
                ["taskset", *pinned, "run", "heartbeat", "--url", url(gateway), "--seconds", "2", "--out", tmp_path],
                env={**os.environ, **SECRETS},
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=120,
            )
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        assert done.returncode == 3, done.stdout + done.stderr
        assert "INVALID: a load process waited for a core" in done.stderr
        assert report(tmp_path, done).generator.waited > 0.05

    def test_messages_that_wait_for_their_rate(self, tmp_path: Path) -> None:
        env = {**SECRETS, "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "1", "VIZORA_LIMITS__PACKETS_PER_MINUTE": "0"}
        with Service(tmp_path / "gateway", env, workers=1) as service:
            (tmp_path / "gateway").mkdir()
            service.start()
            options = ("--devices", "2", "--rate", "100", "--seconds", "1", "--warmup", "0", *ANY_LATENESS)
            done = bench("run", "heartbeat", "--url", url(service), *options, "--out", tmp_path)
        found = report(tmp_path, done)
        assert found.kinds[0].lost > 50
        assert found.figures["errors"] > 0.5
        assert "without an answer (a gateway reads devices late that send too much: start it with" in done.stderr


class TestWrongOptions:
    @pytest.mark.parametrize(
        ("arguments", "code", "complaint"),
        [
            (("heartbeat", "--url", "http://127.0.0.1/"), 2, "not a ws:// or wss:// URL"),
            (("worker-kill", "--url", "ws://127.0.0.1:1/ws"), 2, "hurts the gateway"),
            (("heartbeat", "--threshold", "p99 is low"), 2, "not a threshold"),
            (("nothing",), 2, "nothing"),
            (("heartbeat", "--url", "ws://127.0.0.1:1/ws", "--devices", "2"), 1, "nothing connected"),
        ],
    )
    def test_are_told(self, arguments: tuple[str, ...], code: int, complaint: str) -> None:
        done = bench("run", *arguments)
        assert done.returncode == code, done.stderr
        assert complaint in done.stderr

    @pytest.mark.parametrize(
        ("name", "variable"),
        [("heartbeat", "DEVICE_JWT_SECRET"), ("http", "INTERNAL_API_SECRET")],
    )
    def test_no_secrets(self, name: str, variable: str) -> None:
        done = bench("run", name, "--url", "ws://127.0.0.1:1/ws", secrets=False)
        assert done.returncode == 2
        assert variable in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_of_a_run_that_is_ended(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench", "run", "heartbeat", "--seconds", "60", "--out", str(tmp_path)]
    running = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)}, stderr=subprocess.DEVNULL, process_group=0
    )
    pids: dict[int, Any] = {}
    while len(pids) < 3:
        pids = dict.fromkeys(children(running.pid))
    running.send_signal(number)
    running.wait(60)
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert list(tmp_path.glob("vizora-bench-*")) == []


def children(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in file.read_text().split():
            found += [int(child), *children(int(child))]
    return found


def test_the_docs_know_every_scenario() -> None:
    table = (ROOT / "docs" / "bench.md").read_text().splitlines()
    told = [line.split("`")[1] for line in table if line.startswith("| `")]
    assert sorted(told) == sorted(SCENARIOS)


def test_the_schema_in_the_docs_is_this_one() -> None:
    assert json.loads((ROOT / "docs" / "report.schema.json").read_text()) == json.loads(schema.json_schema())


@pytest.mark.parametrize("package", ["hdrh", "rich"])
def test_without_a_package_one_line_says_what_to_run(tmp_path: Path, package: str) -> None:
    """A `sitecustomize` hides the package as if it were not installed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {package!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "bench", "list"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    line = f"python -m bench: the package {package} is missing. Run: make bench-deps\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--threshold", "heartbeat.p99<20"), "heartbeat.p99 needs a unit: us or ms or s; for example"),
        (("--url", "http://127.0.0.1:1"), "not a ws:// or wss:// URL"),
    ],
)
def test_a_wrong_option_is_named(arguments: tuple[str, ...], words: str) -> None:
    done = bench("run", "heartbeat", *arguments)
    assert done.returncode == 2
    assert words in " ".join(done.stderr.split())


class TestRefusedHandshakes:
    """Each answer that a wrong set-up gets names the way out."""

    OPTIONS = ("--devices", "2", "--rate", "10", "--seconds", "0.5", "--warmup", "0", "--workers", "1")

    def test_another_secret(self, gateway: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(SECRETS, "DEVICE_JWT_SECRET", "another-secret-of-32-characters!")
        done = bench("run", "heartbeat", "--url", url(gateway), *self.OPTIONS)
        assert "AUTH_INVALID (the gateway has another secret: export DEVICE_JWT_SECRET" in done.stderr

    def test_another_path(self, gateway: Service) -> None:
        done = bench("run", "heartbeat", "--url", f"ws://127.0.0.1:{gateway.port}/other", *self.OPTIONS)
        assert "NOT_FOUND (the gateway serves another path: give --url ws://HOST:PORT/ws)" in done.stderr

    def test_no_path_is_the_gateways(self, gateway: Service, tmp_path: Path) -> None:
        address = f"ws://127.0.0.1:{gateway.port}"
        found = report(tmp_path, bench("run", "heartbeat", "--url", address, *self.OPTIONS, "--out", tmp_path))
        passed(found, "connected>=95%")
