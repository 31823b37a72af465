"""Servers to compare with: each does what the table says of it; and the table itself, from end to end."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
import redis
from click.testing import CliRunner
from websockets.sync.client import ClientConnection, connect

from bench.peers import catalog, comparison
from bench.peers.catalog import BARE, SOCKETIO, Peer
from bench.peers.command import choose, peers_command
from bench.peers.comparison import Load, Row, load_of
from bench.peers.servers import Server, ServerError
from bench.report.schema import Scenario
from tests.bench.test_report import measurement, report
from tests.net.peers import device_token
from tests.service_process import PATIENCE, until

CORE = min(os.sched_getaffinity(0))
NAMES = [peer.name for peer in catalog.peers(Path())]
DATA = {"reconcileContent": False, "nextHeartbeatIn": 15000, "commands": []}


def found(name: str, scratch: Path) -> Peer:
    """The peer of this name; skips the test where it cannot run, or fails it where VIZORA_REQUIRE_TOOLS is set."""
    peer = next(peer for peer in catalog.peers(scratch) if peer.name == name)
    if peer.missing and os.environ.get("VIZORA_REQUIRE_TOOLS"):
        pytest.fail(peer.missing)
    if peer.missing:
        pytest.skip(peer.missing)
    return peer


@pytest.fixture
def environ(redis_url: str, tmp_path: Path) -> dict[str, str]:
    return comparison.settings(redis_url, tmp_path)


@pytest.fixture
def node(environ: dict[str, str], tmp_path: Path) -> Iterator[Server]:
    with Server(found("Socket.IO + ioredis", tmp_path), CORE, environ) as server:
        yield server


def ask(client: ClientConnection, packet: str) -> Any:
    """Send a Socket.IO event with the ack id 7; what it is acked with."""
    client.send(packet)
    while not (answer := str(client.recv(timeout=PATIENCE))).startswith("437"):
        pass
    return json.loads(answer[3:])[0]


@contextlib.contextmanager
def greet(server: Server, token: str) -> Iterator[tuple[ClientConnection, str]]:
    """A client, and what its CONNECT packet was answered with."""
    with connect(server.url, compression=None) as client:
        assert str(client.recv(timeout=PATIENCE)).startswith('0{"sid"')
        client.send("40" + json.dumps({"token": token}))
        yield client, str(client.recv(timeout=PATIENCE))


class TestServers:
    @pytest.mark.parametrize("name", [peer.name for peer in catalog.peers(Path()) if peer.lacks])
    def test_bare(self, name: str, environ: dict[str, str], tmp_path: Path) -> None:
        """It acks in the gateway's words, by the id, however long the message; and is gone at the end."""
        peer = found(name, tmp_path)
        assert set(BARE) <= set(peer.lacks)
        with Server(peer, CORE, environ) as server:
            (pid,) = server.pids
            with connect(server.url, compression=None) as client:
                for number, data in ((1, {}), (2, {"uptime": 1}), (4711, {"appVersion": "x" * 300})):
                    client.send(json.dumps({"event": "heartbeat", "id": number, "data": data}, separators=(",", ":")))
                    answer = json.loads(client.recv(timeout=PATIENCE))
                    assert len(answer["data"].pop("timestamp")) == len("2026-11-23T04:00:00.000Z")
                    assert answer == {"event": "ack", "id": number, "data": {"success": True, "data": DATA}}
        assert not Path(f"/proc/{pid}").exists()

    def test_the_whole_work(self, node: Server, environ: dict[str, str]) -> None:
        """Socket.IO + ioredis verifies, validates, stores, acks."""
        token = device_token("d1", secret=environ["DEVICE_JWT_SECRET"])
        with greet(node, token) as (client, answer):
            assert answer.startswith('40{"sid"')
            beat = '{"metrics":{"cpuUsage":12.5,"memoryUsage":101},"currentContent":"c1","uptime":null,"gpu":1}'
            answer = ask(client, f'427["heartbeat",{beat}]')
            assert (answer["success"], answer["data"]) == (True, DATA)
            refused = ask(client, '427["heartbeat",7]')
            assert (refused["success"], refused["code"]) == (False, "INVALID_PAYLOAD")
        with redis.Redis.from_url(environ["REDIS_URL"]) as store:
            status = json.loads(until(lambda: store.get("device:status:d1")))
        assert status.pop("lastHeartbeat") > 1.7e12
        assert status == {
            "status": "online",
            "organizationId": "acme",
            "metrics": {"cpuUsage": 12.5},
            "currentContent": {"contentId": "c1"},
        }

    def test_who_it_refuses(self, node: Server) -> None:
        for token in ("nonsense", jwt.encode({"sub": "d1"}, "x" * 40, "HS256")):
            with greet(node, token) as (_, answer):
                assert json.loads(answer[2:]) == {"message": "auth_invalid", "data": {"code": "AUTH_INVALID"}}

    def test_one_that_does_not_start(self, environ: dict[str, str]) -> None:
        with pytest.raises(ServerError, match="nobody did not start: too bad"):
            Server(Peer("nobody", "/", (), ("sh", "-c", "echo too bad; exit 1")), CORE, environ).__enter__()


class TestTable:
    def test_from_end_to_end(self) -> None:
        names = ("gateway, Socket.IO", "websockets")
        only = [word for name in names for word in ("--only", name)]
        cores = ["--server-core", str(CORE), "--load-core", str(max(os.sched_getaffinity(0)))]
        short = ["--rounds", "1", "--seconds", "0.2", "--warmup", "0.1", "--devices", "4", "--idle", "20"]
        done = subprocess.run(
            [sys.executable, "-m", "bench", "peers", "--json", *only, *cores, *short],
            cwd=Path(__file__).parent.parent.parent,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["schema"], report["plan"]["devices"]) == (1, 4)
        rows = {row["name"]: row for row in report["peers"]}
        assert tuple(rows) == names
        for row in rows.values():
            assert not row["missing"]
            assert set(row["loads"]) == {"1", "8"}
            assert all(load["rate"] > 0 for load in row["loads"].values())
        assert rows["websockets"]["lacks"] == list(BARE)

    def test_for_people(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Cheapest first, beside the floor and the gateway; a mark where the load generator was the bottleneck."""

        def load(cpu: float, *invalid: str) -> dict[int, Load]:
            return {each: Load(cpu / each, 0.4, 1.234, 1000.0, [cpu], list(invalid)) for each in comparison.IN_FLIGHT}

        rows = [
            Row("ws", BARE, "node is missing"),
            Row("gateway", (), kib=2.5, loads=load(12.0)),
            Row("C floor", ("parsing", *BARE), kib=1.0, loads=load(4.0, "the generator was busy")),
        ]
        monkeypatch.setattr("bench.peers.command.compare", lambda *_: rows)
        cores = ["--server-core", str(CORE), "--load-core", str(CORE)]
        done = CliRunner().invoke(peers_command, cores)
        assert done.exit_code == 0
        lines = [line.replace("│", " ").split() for line in done.stdout.splitlines() if line.startswith("│")]
        floor, gateway, ws = lines
        assert floor[:6] == ["C", "floor", "4.0*", "1.00", "0.33", "1.23"]
        assert gateway == ["gateway", "12.0", "3.00", "1.00", "1.23", "1.5", "3.00", "1.00", "1.23", "2.5", "nothing"]
        assert ws[-2:] == ["not", "measured"]
        assert "lacks: a auth, v validation, R Redis, m metrics, p parsing" in done.stdout
        assert "* the load generator was the bottleneck" in done.stdout
        assert done.stderr.endswith("ws: node is missing\n")

    def test_who_fails_has_no_figures(self, tmp_path: Path) -> None:
        broken = Peer("broken", "/", (), ("sh", "-c", "exit 1"))
        absent = Peer("absent", "/", (), (), "npm is missing")
        plan = comparison.Plan(1, 1, 0.1, 0.0, 1, (CORE, CORE))
        rows = comparison.compare([broken, absent], plan, tmp_path, lambda what: None)
        assert [(row.missing, row.loads) for row in rows] == [
            ("broken did not start: it said nothing", {}),
            ("npm is missing", {}),
        ]

    def test_medians(self) -> None:
        def one(cpu: float, p99: float, *invalid: str) -> Scenario:
            figures = {"cpu": cpu, "heartbeat.p50": 0.001, "heartbeat.p99": p99, "rate": 500.0}
            measured = report(measurement()).scenarios[0]
            return msgspec.structs.replace(measured, figures=figures, invalid=list(invalid))

        load = load_of([one(0.00001, 0.003), one(0.0001, 0.5, "busy"), one(0.000012, 0.004)])
        assert load.cpu_us == pytest.approx(12.0)
        assert (load.p99_ms, load.rate) == (4.0, 500.0)
        assert load.rounds_cpu_us == pytest.approx([10.0, 100.0, 12.0])
        assert load.invalid == ["busy"]

    def test_what_is_missing_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda name: None)
        missing = {peer.name: peer.missing for peer in catalog.peers(Path())}
        assert (
            missing["ws"]
            == missing["Socket.IO + ioredis"]
            == ("node is missing: apt-get install nodejs npm, then make peers")
        )
        assert missing["C floor"] == "gcc is missing: apt-get install gcc libc6-dev"
        assert catalog.python("no_such_module")[1] == "no_such_module is missing: pip install 'vizora-rt[bench]'"

    def test_options(self) -> None:
        peers = catalog.peers(Path())
        assert [peer.name for peer in choose(peers, ["ws"])] == ["ws"]
        assert [peer.name for peer in choose(peers, [])] == NAMES
        assert {peer.path for peer in peers} == {"/ws", SOCKETIO}
        done = CliRunner().invoke(peers_command, ["--only", "nobody", "--server-core", "0", "--load-core", "0"])
        assert (done.exit_code, "no peer nobody" in done.stderr) == (2, True)
        done = CliRunner().invoke(peers_command, ["--server-core", "4095"])
        assert (done.exit_code, "cores here: " in done.stderr) == (2, True)
