"""The load engine and its parts, against a server that was not written by us."""

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
from typing import Any

import jwt
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from bench.load import counters, engine, messages, schedule, server, tokens
from bench.report import histogram
from vizora_rt.client.websocket import parse_url
from vizora_rt.wire import socketio
from vizora_rt.wire.frames import TEXT, parse_frame
from vizora_rt.wire.messages import decode
from vizora_rt.wire.payloads import Heartbeat, validate

SECRET = "0123456789abcdef0123456789abcdef"
SOCKETIO = "/socket.io/?EIO=4&transport=websocket"
ACK = {"success": True, "data": {"commands": []}, "timestamp": "2026-11-23T04:00:00.000Z"}

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


class TestEngine:
    async def test_a_stalled_server_cannot_hide(self) -> None:
        """It stands still for half of the time. A loop that waited for it would see 20 slow messages and no more."""

        async def stall(number: int) -> None:
            if number == 0:
                time.sleep(0.5)

        beat = schedule.OpenLoop(messages.heartbeats(4), 100.0)
        with server_thread(acking(before=stall)) as url:
            run = engine.Engine(parse_url(url), beat)
            await run.connect(["t"], 1000.0, lambda phase, share: None)
            beat.start(run)
            await asyncio.sleep(1.0)
            beat.stop()
            while run.tally.answered < run.tally.sent:
                await asyncio.sleep(0.01)
            await run.leave()
        latencies = histogram.stats(run.tally.latencies.counts)
        assert latencies.count >= 95
        assert latencies.max >= 0.45
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
            run = engine.Engine(endpoint, schedule.ClosedLoop(messages.heartbeats(2, socketio.encode), 1))
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
            run = engine.Engine(parse_url(url), schedule.ClosedLoop([b""], 1))
            await run.connect(["t"], 1000.0, lambda phase, share: None)
            while not run.closed:
                await asyncio.sleep(0)
        assert len(pings) == 1
        assert run.closed == {"close code 1000": 1}

    def test_latencies(self) -> None:
        latencies = histogram.Latencies()
        for us in range(1, 1001):
            latencies.record(us * 1000)
        latencies.record(-5000)
        latencies.record(10**15)
        found = histogram.stats(latencies.counts)
        assert found.count == 1002
        assert [found.p50, found.p90, found.p99] == pytest.approx([500e-6, 900e-6, 992e-6], rel=0.01)
        assert found.max == pytest.approx(3600, rel=0.01)

    def test_messages_from_before_the_reset_do_not_count(self) -> None:
        counted = counters.Tally()
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
    ownership_store = [jwt.decode(token, SECRET, algorithms=["HS256"]) for token in made]
    assert len({each["sub"] for each in ownership_store}) == 501
    assert {each["organizationId"] for each in ownership_store} == {"bench-org-0", "bench-org-1"}
    assert {each["type"] for each in ownership_store} == {"device"}


def test_usage_of_processes() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watch = server.Watch([os.getpid()])
        found = watch.look()
        mine = found[os.getpid()]
        assert mine.user > 0
        assert mine.resident > 2**20
        assert mine.descriptors >= 3
        assert child.pid in found
        assert child.stdin is not None
        child.stdin.close()
    assert child.pid not in watch.look()
    assert sum(watch.used()) >= mine.user
    assert server.look(child.pid) is None
    assert server.waited() >= 0


def test_a_server_of_another_kind_has_no_status() -> None:
    with server_thread(acking(), lambda connection, request: None) as url:
        assert server.pids(parse_url(url)) == []
    assert server.pids(parse_url(url)) == []
