"""The load generator as a process, against a server that was not written by us, and against the service."""

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import jwt
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from bench import engine, histogram, load, messages, pace, report, server, tally, tokens
from tests.service import Service
from vizora_rt.net.dial import parse_url
from vizora_rt.wire import socketio
from vizora_rt.wire.frames import TEXT, parse_frame
from vizora_rt.wire.messages import Heartbeat, decode, validate

SECRET = "0123456789abcdef0123456789abcdef"
SOCKETIO = "/socket.io/?EIO=4&transport=websocket"
ACK = {"success": True, "data": {"commands": []}, "timestamp": "2026-11-23T04:00:00.000Z"}
LIMITED = {"success": False, "code": "RATE_LIMITED", "error": "rate_limited", "retryable": True}
DROPPED = {"success": False, "code": "AUTH_INVALID", "message": "auth_invalid", "retryable": False}

Handler = Callable[[ServerConnection], Any]


def acking(body: dict[str, Any] = ACK, before: Callable[[int], Any] | None = None, spaces: bool = False) -> Handler:
    """Greets with `config`, answers every message with `body`; `before` is awaited before the n-th answer."""
    separators = (", ", ": ") if spaces else (",", ":")

    async def handle(connection: ServerConnection) -> None:
        await connection.send('{"event":"config","data":{"heartbeatInterval":15000}}')
        number = 0
        async for text in connection:
            message = json.loads(text)
            assert message["event"] == "heartbeat"
            if before is not None:
                await before(number)
            number += 1
            answer = {"event": "ack", "id": message["id"], "data": body}
            await connection.send(json.dumps(answer, separators=separators))

    return handle


def status(connection: ServerConnection, request: Request) -> Response | None:
    """`GET /status` as the service answers it: this process is the supervisor, and there are no workers."""
    if request.path != "/status":
        return None
    body = json.dumps({"service": "vizora-rt", "pid": os.getpid(), "workers": []}).encode()
    return Response(HTTPStatus.OK, "OK", Headers({"Content-Length": str(len(body))}), body)


def refuse(connection: ServerConnection, request: Request) -> Response | None:
    body = json.dumps(DROPPED).encode()
    return Response(HTTPStatus.UNAUTHORIZED, "Unauthorized", Headers({"Content-Length": str(len(body))}), body)


@contextlib.asynccontextmanager
async def serving(handler: Handler, process_request: Any = status) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0, compression=None, process_request=process_request) as listening:
        yield f"ws://127.0.0.1:{next(iter(listening.sockets)).getsockname()[1]}/ws"


@contextlib.contextmanager
def server_thread(handler: Handler, process_request: Any = status) -> Iterator[str]:
    """The server in a thread with a loop of its own: the test waits for the load generator's process."""
    started: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def main() -> None:
        async with serving(handler, process_request) as url:
            started.append(url)
            ready.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield started[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def bench(*arguments: str, secret: str | None = SECRET) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "DEVICE_JWT_SECRET"}
    return subprocess.run(
        [sys.executable, "-m", "bench", "load", "--devices", "20", "--seconds", "0.5", "--warmup", "0.1", *arguments],
        env=env if secret is None else {**env, "DEVICE_JWT_SECRET": secret},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The result as JSON; the machine may be busy, so a run may be INVALID, but never without a reason."""
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (3 if result["invalid"] else 0), done.stderr
    assert done.stderr.count("INVALID: ") == len(result["invalid"])
    return result


class TestLoad:
    @pytest.mark.parametrize("spaces", [False, True])
    def test_closed_loop(self, spaces: bool) -> None:
        with server_thread(acking(spaces=spaces)) as url:
            result = figures(bench("--url", url, "--json", "--inflight", "3"))
        connects, messages = result["connects"], result["messages"]
        assert (connects["opened"], connects["failed"]) == (20, {})
        assert messages["answered"] >= 20
        assert (messages["lost"], messages["refused"], messages["closed"]) == (0, {}, {})
        total, *quantiles = messages["latencies"]
        assert total >= messages["answered"]
        assert 0 < quantiles[0] <= quantiles[-1]
        assert quantiles == sorted(quantiles)
        assert result["server"]["processes"] == 1
        assert result["server"]["user"] + result["server"]["system"] > 0
        assert result["server"]["resident"] > 2**20
        assert result["generator"]["lateness"] is None

    def test_the_service(self, tmp_path: Path) -> None:
        """In both dialects."""
        env = {"DEVICE_JWT_SECRET": SECRET, "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0"}
        with Service(tmp_path, env, workers=1) as service:
            service.start()
            here = f"ws://127.0.0.1:{service.port}"
            for target in ("/ws", SOCKETIO):
                result = figures(bench("--url", here + target, "--json", "--inflight", "4"))
                assert (result["connects"]["opened"], result["messages"]["lost"]) == (20, 0)
                assert result["messages"]["answered"] >= 20
                assert result["server"]["processes"] == 2
            done = bench("--url", here + SOCKETIO, secret="another secret of thirty-two bytes")
        assert done.returncode == 1
        assert done.stderr.startswith("nothing connected: 20 AUTH_INVALID (the server has another DEVICE_JWT_SECRET)")

    def test_open_loop_sends_what_was_asked_for(self) -> None:
        with server_thread(acking()) as url:
            result = figures(bench("--url", url, "--json", "--rate", "200", "--max-late-ms", "60000"))
        messages = result["messages"]
        assert messages["latencies"][0] + messages["lost"] == pytest.approx(messages["elapsed"] * 200, abs=3)
        assert result["generator"]["lateness"][0] > 0

    def test_a_table_for_people(self) -> None:
        with server_thread(acking()) as url:
            done = bench("--url", url, "--rate", "100", "--max-late-ms", "60000")
        for words in ("20 devices", "100 messages/s", "20 opened", "answered", "p99.9", "us a message", "busy"):
            assert words in done.stdout
        assert "\x1b" not in done.stdout + done.stderr

    def test_a_generator_that_was_late_is_invalid(self) -> None:
        with server_thread(acking()) as url:
            done = bench("--url", url, "--rate", "100", "--max-late-ms", "0")
        assert done.returncode == 3
        assert "INVALID: one message in a hundred left" in done.stderr

    def test_nobody_there(self) -> None:
        with server_thread(acking()) as url:
            pass
        done = bench("--url", url)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "nothing connected: 20 Connection refused\n"

    def test_refused_handshakes(self) -> None:
        with server_thread(acking(), refuse) as url:
            done = bench("--url", url)
        assert done.returncode == 1
        assert done.stderr.startswith("nothing connected: 20 AUTH_INVALID (the server has another DEVICE_JWT_SECRET)")

    def test_refused_messages(self) -> None:
        with server_thread(acking(LIMITED)) as url:
            done = bench("--url", url, "--rate", "100")
        assert done.returncode == 1
        assert "messages were refused: " in done.stderr
        assert "RATE_LIMITED (start the server with VIZORA_LIMITS__MESSAGES_PER_MINUTE=0)" in done.stderr

    def test_answers_that_never_come(self) -> None:
        async def swallow(connection: ServerConnection) -> None:
            async for _ in connection:
                pass

        with server_thread(swallow) as url:
            done = bench("--url", url)
        assert done.returncode == 1
        assert "nothing was answered" in done.stderr

    def test_connections_that_end(self) -> None:
        async def leave(number: int) -> None:
            if number == 5:
                raise ConnectionError

        with server_thread(acking(before=leave)) as url:
            done = bench("--url", url, "--rate", "400")
        assert done.returncode == 1
        assert "connections ended: 20 close code 1011" in done.stderr
        assert "messages were not answered" in done.stderr

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (["--url", "http://127.0.0.1/"], "not a ws:// or wss:// URL"),
            (["--pids", "1,x"], "process ids"),
            (["--devices", "99999999"], "descriptors"),
            (["--rate", "0"], "--rate"),
        ],
    )
    def test_wrong_options(self, arguments: list[str], complaint: str) -> None:
        done = bench(*arguments)
        assert done.returncode == 2
        assert complaint in done.stderr

    def test_no_secret_and_too_few_tokens(self, tmp_path: Path) -> None:
        done = bench(secret=None)
        assert (done.returncode, "DEVICE_JWT_SECRET is not set" in done.stderr) == (2, True)
        file = tmp_path / "tokens"
        file.write_text("a\nb\n")
        done = bench("--tokens", str(file))
        assert (done.returncode, "2 tokens for 20 devices" in done.stderr) == (2, True)


class TestEngine:
    async def test_a_stalled_server_cannot_hide(self) -> None:
        """It stands still for half of the time. A loop that waited for it would see 20 slow messages and no more."""

        async def stall(number: int) -> None:
            if number == 0:
                time.sleep(0.5)

        beat = pace.OpenLoop(messages.heartbeats(4), 100.0)
        with server_thread(acking(before=stall)) as url:
            run = engine.Engine(parse_url(url), beat)
            await run.connect(["t"], 1000.0, lambda phase, share: None)
            run.reset()
            beat.start(run)
            await load.wait(1.0, "", lambda phase, share: None)
            beat.stop()
            await load.grace(run)
            await run.leave()
        latencies = run.tally.latencies.quantiles()
        assert latencies.total >= 95
        assert latencies.longest >= 0.45
        assert latencies.p90 >= 0.35

    async def test_socketio(self) -> None:
        """Connected when its CONNECT packet is answered; pings are answered, and acks counted as in the native one."""
        heard: list[str] = []

        async def handle(connection: ServerConnection) -> None:
            await connection.send('0{"sid":"s"}')
            heard.append(str(await connection.recv()))
            await connection.send("2")
            heard.append(str(await connection.recv()))
            await connection.send('40{"sid":"s"}')
            for body in ('{"success":true}', '{"success":false,"code":"RATE_LIMITED"}'):
                await connection.recv()
                await connection.send(f"431[{body}]")
            await connection.close()

        async with asyncio.timeout(20), serving(handle) as url:
            endpoint = parse_url(url.removesuffix("/ws") + SOCKETIO)
            run = engine.Engine(endpoint, pace.ClosedLoop(messages.heartbeats(2, socketio.encode), 1))
            await run.connect(["t"], 1000.0, lambda phase, share: None)
            run.pace.start(run)
            while not run.closed:
                await asyncio.sleep(0)
        assert heard == ['40{"token":"t"}', "3"]
        assert (run.tally.accepted, run.tally.refused) == (1, {"RATE_LIMITED": 1})

    @pytest.mark.parametrize(
        ("packet", "code"),
        [
            (b'44{"message":"auth_expired","data":{"code":"AUTH_EXPIRED"}}', "AUTH_EXPIRED"),
            (b'44{"message":"no"}', "no"),
            (b"44{}", "refused"),
            (b"44[]", "refused"),
            (b"44", "refused"),
        ],
    )
    def test_refusals_of_socketio(self, packet: bytes, code: str) -> None:
        assert engine.refusal(packet) == code

    async def test_pings_are_answered(self) -> None:
        pings: list[float] = []

        async def handle(connection: ServerConnection) -> None:
            pings.append(await (await connection.ping()))
            await connection.close()

        async with asyncio.timeout(20), serving(handle) as url:
            run = engine.Engine(parse_url(url), pace.ClosedLoop([b""], 1))
            await run.connect(["t"], 1000.0, lambda phase, share: None)
            while not run.closed:
                await asyncio.sleep(0)
        assert len(pings) == 1
        assert run.closed == {"close code 1000": 1}

    def test_quantiles(self) -> None:
        latencies = histogram.Latencies()
        assert latencies.quantiles() == (0, 0, 0, 0, 0, 0)
        for us in range(1, 1001):
            latencies.record(us * 1000)
        latencies.record(-5000)
        latencies.record(10**15)
        total, p50, p90, p99, _, longest = latencies.quantiles()
        assert total == 1002
        assert [p50, p90, p99] == pytest.approx([500e-6, 900e-6, 992e-6], rel=0.01)
        assert longest == pytest.approx(3600, rel=0.01)

    def test_messages_from_before_the_reset_do_not_count(self) -> None:
        counted = tally.Tally()
        ack = json.dumps({"event": "ack", "id": 1, "data": ACK}, separators=(",", ":")).encode()
        counted.ack(ack, counted.since - 1, counted.since + 5)
        assert counted.answered == 0
        counted.ack(ack, counted.since, counted.since + 5)
        counted.ack(b'{"event":"ack","id":1}', counted.since, counted.since + 5)
        counted.ack(b'{"event":"ack', counted.since, counted.since + 5)
        assert (counted.accepted, counted.refused) == (1, {"not an ack of ours": 2})

    def test_undisturbed(self) -> None:
        with engine.undisturbed():
            assert not gc.isenabled()
        assert gc.isenabled()


def test_heartbeats_are_what_the_server_takes_whole() -> None:
    frames = messages.heartbeats()
    assert len(set(frames)) == len(frames)
    for frame in frames:
        parsed = parse_frame(frame, 0, 65536)
        assert isinstance(parsed, tuple)
        assert parsed[:2] == (TEXT, True)
        message = decode(parsed[2].decode())
        assert isinstance(message, tuple)
        assert message[0] == "heartbeat"
        assert isinstance(validate(Heartbeat, message[2]), Heartbeat)


def test_tokens() -> None:
    made = tokens.mint(SECRET, 501)
    claims = [jwt.decode(token, SECRET, algorithms=["HS256"]) for token in made]
    assert len({each["sub"] for each in claims}) == 501
    assert {each["organizationId"] for each in claims} == {"bench-org-0", "bench-org-1"}
    assert {each["type"] for each in claims} == {"device"}


def test_usage_of_processes() -> None:
    mine = server.usage([os.getpid()])
    assert mine.user > 0
    assert mine.resident > 2**20
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert server.usage([done.pid]) == (0, 0, 0)
    assert server.waited() >= 0


def test_a_server_of_another_kind_has_no_status() -> None:
    with server_thread(acking(), lambda connection, request: None) as url:
        assert server.pids(parse_url(url)) == []
    assert server.pids(parse_url(url)) == []


@pytest.mark.parametrize(("value", "digits"), [(0.0841, "0.084"), (1.239, "1.24"), (12.34, "12.3"), (350.7, "351")])
def test_digits(value: float, digits: str) -> None:
    assert report._digits(value) == digits
