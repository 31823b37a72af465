"""HTTP on the client port, byte by byte: routes, keep-alive and pipelines, limits, handshakes that are none."""

import asyncio
import json
import os
import random
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.net.peers import (
    Json,
    Node,
    Wire,
    answered,
    device_token,
    dial_device,
    frame,
    request,
    settles,
    text,
    until,
    upgrade,
)
from vizora_rt.net.api.control import Control
from vizora_rt.net.api.control_routes import Routes
from vizora_rt.net.server import http
from vizora_rt.net.server.bounded_reader import READ_BYTES
from vizora_rt.net.server.responses import Response
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.wire.http import CONTINUE
from vizora_rt.wire.proxy import SIGNATURE

SHORT = 0.15
"""Seconds of a limit that a test waits for."""

Open = Callable[..., Any]


def proxy_header(address: str, version: int) -> bytes:
    """A PROXY header that names `address` as the client."""
    if version == 1:
        return f"PROXY TCP4 {address} 192.0.2.1 4711 3001\r\n".encode()
    return SIGNATURE + b"\x21\x11\x00\x0c" + socket.inet_aton(address) + b"\xc0\x00\x02\x01\x12\x67\x0b\xb9"


def timed(node: Node, method: str, path: str) -> int:
    return sum(node.metrics.timer("http_request_duration_seconds", method, path).slots[:-1])


def limited(node: Node, limit: str) -> int:
    return node.counter("limits_exceeded_total", limit)


class TestRoutes:
    @pytest.mark.parametrize("path", ["/health/live", "/api/health/live", "/health/live?x=y", "http://any/health/live"])
    async def test_found(self, node: Node, wire: Wire, path: str) -> None:
        await wire.send(request(path))
        status, fields, body = await wire.response()
        assert (status, fields["content-type"], json.loads(body)) == (200, "application/json", {"status": "live"})
        assert (answered(node, "GET", "/health/live", 200), timed(node, "GET", "/health/live")) == (1, 1)

    @pytest.mark.parametrize("path", ["/", "/nope", "/health/", "/HEALTH", "/wsx", "/%00", "/health/live/x"])
    async def test_not_found(self, node: Node, wire: Wire, path: str) -> None:
        await wire.send(request(path))
        status, _, body = await wire.response()
        assert status == 404
        assert json.loads(body) == {"code": "NOT_FOUND", "message": "not found", "retryable": False}
        assert (answered(node, "GET", "unmatched", 404), timed(node, "GET", "unmatched")) == (1, 1)

    @pytest.mark.parametrize("path", ["/metrics", "/health", "/health/live", "/health/ready", "/status"])
    @pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "OPTIONS"])
    async def test_wrong_method(self, node: Node, wire: Wire, method: str, path: str) -> None:
        await wire.send(request(path, method))
        status, fields, body = await wire.response()
        assert (status, fields["allow"]) == (405, "GET, HEAD")
        assert json.loads(body)["code"] == "METHOD_NOT_ALLOWED"
        assert answered(node, method, path, 405) == 1

    async def test_methods_that_nobody_knows_are_one_series(self, node: Node, wire: Wire) -> None:
        for method in ("PROPFIND", "LOCK"):
            await wire.send(request("/health/live", method))
            assert (await wire.response())[0] == 405
        assert answered(node, "other", "/health/live", 405) == 2

    @pytest.mark.parametrize("path", ["/health/live", "/health", "/status", "/metrics", "/nope"])
    async def test_head_is_get_without_a_body(self, node: Node, wire: Wire, path: str) -> None:
        await wire.send(request(path))
        status, fields, body = await wire.response()
        await wire.send(request(path, "HEAD"))
        of_head = await wire.response(head=True)
        assert of_head[0] == status
        assert abs(int(of_head[1].pop("content-length")) - len(body)) < 8  # figures in it change
        fields.pop("content-length")
        assert of_head[1:] == (fields, b"")
        await wire.send(request("/health/live"))
        assert (await wire.response())[2] == b'{"status":"live"}'

    async def test_a_route_that_fails(self, node: Node, wire: Wire) -> None:
        async def later(*_: Any) -> Response:
            raise RuntimeError("broken")

        def at_once(*_: Any) -> Response:
            raise RuntimeError("broken")

        for route in (at_once, later):
            node.http.add("GET", "/health/live", route)
            await wire.send(request("/health/live"))
            status, _, body = await wire.response()
            assert (status, json.loads(body)) == (
                500,
                {"code": "INTERNAL", "message": "internal error", "retryable": True},
            )
        assert (answered(node, "GET", "/health/live", 500), timed(node, "GET", "/health/live")) == (2, 2)


class TestTargets:
    """Each form that a target may have (RFC 9112 section 3.2), in its turn among others."""

    @pytest.mark.parametrize("target", ["*", "http://any", "https://any:1", "HTTP://any", "/", "http://any/"])
    @pytest.mark.parametrize("version", ["1.0", "1.1"])
    async def test_the_server_as_a_whole(self, node: Node, wire: Wire, target: str, version: str) -> None:
        ask = f"OPTIONS {target} HTTP/{version}\r\nHost: any\r\nConnection: keep-alive\r\n\r\n".encode()
        await wire.send(request("/health") + ask + request("/nope") + ask + ask + request("/health/live"))
        assert [(await wire.response())[0] for _ in range(6)] == [200, 204, 404, 204, 204, 200]
        assert (answered(node, "OPTIONS", "*", 204), timed(node, "OPTIONS", "*")) == (3, 3)

    async def test_what_it_can(self, wire: Wire) -> None:
        await wire.send(request("*", "OPTIONS"))
        status, fields, body = await wire.response()
        assert (status, fields["allow"], body) == (204, "GET, HEAD, POST, DELETE, OPTIONS", b"")
        assert "content-length" not in fields  # RFC 9110 section 8.6

    @pytest.mark.parametrize(
        ("method", "target", "status"),
        [
            ("GET", "*", 400),
            ("POST", "*", 400),
            ("HEAD", "*", 400),
            ("PROPFIND", "*", 400),
            ("OPTIONS", "**", 400),
            ("OPTIONS", "*/health", 400),
            ("OPTIONS", "/*", 404),
            ("OPTIONS", "/?x=y", 404),
            ("OPTIONS", "//", 404),
            ("OPTIONS", "http://any?x=y", 404),
            ("OPTIONS", "http://any/health", 405),
            ("OPTIONS", "/ws", 405),
            ("CONNECT", "any:443", 405),
            ("CONNECT", "*", 405),
            ("CONNECT", "/health", 405),
            ("GET", "any:443", 400),
            ("GET", "http://", 400),
            ("GET", "http:///health", 400),
            ("GET", "ftp://any/health", 400),
            ("GET", "http://any/devices/a%2Fb", 401),
            ("GET", "http://any", 404),
            ("GET", "?x", 400),
            ("GET", "//", 404),
            ("GET", "//health", 404),
            ("GET", "/%2e%2e/health", 404),
            ("GET", "/devices/", 404),
            ("GET", "/devices//plays", 404),
            ("GET", "/devices/%", 401),
            ("GET", "/devices/{id}", 401),
            ("GET", "/api", 404),
            ("GET", "/api/*", 404),
            ("GET", "/api//", 404),
        ],
    )
    async def test_others(self, node: Node, wire: Wire, method: str, target: str, status: int) -> None:
        Routes(Control("k", node.http, node.store), node.gateway, node.store)
        await wire.send(request("/health") + request(target, method) + request("/health/live"))
        assert (await wire.response())[0] == 200
        assert (await wire.response())[0] == status
        if status in (401, 404) or (status, method) == (405, "OPTIONS"):
            assert (await wire.response())[0] == 200
        else:
            assert await wire.ends() == b""

    async def test_a_target_of_anything(self, node: Node) -> None:
        """No exception, and each is answered once."""
        chance, faults = random.Random(7), list[Any]()
        asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
        pieces = [
            "/",
            "*",
            "//",
            "devices",
            "health",
            "%2f",
            "%",
            "{id}",
            "?",
            "&",
            ":",
            "@",
            "http://",
            "api",
            "..",
            ";",
        ]
        for _ in range(200):
            wire = await Wire.open(node.port)
            target = "".join(chance.choices(pieces, k=chance.randint(1, 6)))
            await wire.send(request(target, chance.choice(("GET", "OPTIONS", "POST", "DELETE"))))
            assert (await wire.response())[0] in (200, 204, 400, 401, 404, 405)
            await wire.close()
        assert faults == []


class TestDate:
    async def test_every_answer_has_one(self, node: Node, wire: Wire) -> None:
        """RFC 9110 section 6.6.1."""
        before = int(time.time())
        await wire.send(request("/health/live") + request("/nope") + request("*", "OPTIONS") + b"nonsense\r\n\r\n")
        for status in (200, 404, 204, 400):
            found, fields, _ = await wire.response()
            assert found == status
            assert before <= parsedate_to_datetime(fields["date"]).timestamp() <= time.time()
            assert fields["date"].endswith(" GMT")

    async def test_it_is_written_once_a_second(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        now, written = 1_800_000_000.0, list[int]()

        def write(second: int, usegmt: bool) -> str:
            written.append(second)
            return str(second)

        monkeypatch.setattr("vizora_rt.net.server.http.time.time", lambda: now)
        monkeypatch.setattr(http, "formatdate", write)
        dates = [node.http.date() for _ in range(3)]
        now += 1.5
        dates += [node.http.date() for _ in range(3)]
        assert dates == ["1800000000"] * 3 + ["1800000001"] * 3
        assert written == [1_800_000_000, 1_800_000_001]


def test_a_quiet_connection_stays_longer_than_with_proxies() -> None:
    """They keep one for 60 s; who closes last never meets a request on its way."""
    assert http.KEEP_ALIVE_SECONDS >= 70


class TestConnections:
    async def test_one_request_after_the_other(self, node: Node, wire: Wire) -> None:
        for path in ("/health/live", "/health", "/nope", "/status") * 3:
            await wire.send(request(path))
            status, fields, _ = await wire.response()
            assert (status, fields["connection"]) == (404 if path == "/nope" else 200, "keep-alive")
        assert node.http.exchanges == 1

    @pytest.mark.parametrize(
        "data",
        [
            request("/health/live", Connection="close"),
            request("/health", Connection="close"),
            b"GET /health/live HTTP/1.0\r\n\r\n",
        ],
    )
    async def test_the_last_request(self, node: Node, wire: Wire, data: bytes) -> None:
        await wire.send(data)
        status, fields, _ = await wire.response()
        assert (status, fields["connection"]) == (200, "close")
        assert await wire.ends() == b""
        await until(lambda: node.http.exchanges == 0)

    async def test_a_pipeline_is_answered_in_order(self, wire: Wire) -> None:
        # Answers of /health come later than those of the others.
        paths = ["/health", "/health/live", "/nope", "/health", "/health/live", "/health", "/nope"] * 10
        await wire.send(b"".join(map(request, paths)))
        for path in paths:
            status, _, body = await wire.response()
            assert status == (404 if path == "/nope" else 200)
            assert (b"uptime" in body) is (path == "/health")

    async def test_a_pipeline_of_more_than_one_read(self, node: Node, wire: Wire) -> None:
        # What comes while the rest of a read waits for its turn may not overtake it.
        paths = [("/health/live", "/nope", "/metrics")[number * number % 3] for number in range(3000)]
        sending = asyncio.create_task(wire.send(b"".join(request(path, X="x" * 200) for path in paths)))
        for path in paths:
            assert (await wire.response())[0] == (404 if path == "/nope" else 200)
        await sending
        assert answered(node, "other", "unmatched", 400) == 0

    async def test_a_pipeline_is_read_no_faster_than_it_is_answered(self, node: Node, wire: Wire) -> None:
        """Also when each answer takes a while: one read may wait behind a request, and no more with each."""
        node.answers["status"] = b"{}"
        sending = asyncio.create_task(wire.send(request("/status", X="x" * 1000) * 2000))
        for _ in range(2000):
            assert (await wire.response())[0] == 200
            assert node.http.unfinished.unknown <= 16_384 + 2 * READ_BYTES
        await sending

    async def test_requests_in_single_bytes(self, wire: Wire) -> None:
        for byte in request("/health/live") + request("/nope"):
            await wire.send(bytes((byte,)))
        assert [(await wire.response())[0] for _ in range(2)] == [200, 404]

    async def test_a_quiet_one_is_closed(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "KEEP_ALIVE_SECONDS", SHORT)
        node = await opened()
        wire = await Wire.open(node.port)
        await wire.send(request("/health/live"))
        assert (await wire.response())[0] == 200
        assert await wire.ends() == b""
        assert (limited(node, "handshake_seconds"), answered(node, "other", "unmatched", 408)) == (0, 0)
        await wire.close()

    async def test_who_does_not_read_answers_is_not_read(self, node: Node) -> None:
        wire = await Wire.open(node.port, 4096)
        node.answers["metrics"] = b"x" * 100_000
        wire.writer.write(request("/metrics") * 100)
        await until(lambda: answered(node, "GET", "/metrics", 200))
        # What the kernel takes, and one more.
        assert await settles(lambda: answered(node, "GET", "/metrics", 200)) < 70
        for _ in range(100):
            assert (await wire.response())[0] == 200
        assert answered(node, "GET", "/metrics", 200) == 100
        await wire.close()

    async def test_who_never_reads_is_cut(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "KEEP_ALIVE_SECONDS", SHORT)
        node = await opened()
        node.answers["metrics"] = b"x" * 5_000_000
        wires = [await Wire.open(node.port, 4096) for _ in range(2)]
        for wire, connection in zip(wires, ("keep-alive", "close"), strict=True):
            await wire.send(request("/metrics", Connection=connection))
        await until(lambda: answered(node, "GET", "/metrics", 200) == 2)
        await until(lambda: node.http.exchanges == 0)
        for wire in wires:
            await wire.close()

    async def test_there_is_room_for_questions_beside_clients(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vizora_rt.net.server.places.SPARE", 2)
        node = await opened(limits={"max_connections": 1})
        await dial_device(node.port, "screen-1")
        wires = [await Wire.open(node.port) for _ in range(3)]
        for wire in wires[:2]:
            await wire.send(request("/health/live"))
            assert (await wire.response())[0] == 200
        await until(lambda: limited(node, "max_connections") == 1)
        with pytest.raises(OSError):
            await wires[2].send(request("/health/live"))
            await wires[2].ends()
            raise ConnectionError("it just ended")
        for wire in wires:
            await wire.close()


SECRET = "k" * 32


class TestBodies:
    """Path, method and key are judged before a body is read; what is kept of bodies is bounded."""

    @pytest.fixture
    async def control(self, opened: Open) -> Node:
        node: Node = await opened()
        Routes(Control(SECRET, node.http, node.store), node.gateway, node.store)
        return node

    @pytest.mark.parametrize(
        ("method", "path", "key", "status"),
        [
            ("POST", "/nope", SECRET, 404),
            ("PUT", "/internal/command", SECRET, 405),
            ("POST", "/internal/command", "", 401),
            ("POST", "/internal/command", "wrong", 401),
            ("DELETE", "/internal/device-revoked", "", 401),
            ("GET", "/devices/a", "", 401),
            ("POST", "/health", "", 405),
        ],
    )
    @pytest.mark.parametrize("framing", ["Content_Length", "Transfer_Encoding"])
    @pytest.mark.parametrize("expect", ["", "100-continue"])
    async def test_refused_before_it_comes(
        self, control: Node, wire: Wire, method: str, path: str, key: str, status: int, framing: str, expect: str
    ) -> None:
        fields = {framing: "1048576" if framing == "Content_Length" else "chunked", "X_Internal_Api_Key": key}
        await (wire := await Wire.open(control.port)).send(request(path, method, Expect=expect, **fields))
        found, headers, _ = await wire.response()
        assert (found, headers["connection"]) == (status, "close")
        assert await wire.ends() == b""
        await wire.close()
        await until(lambda: control.http.exchanges == 0)

    async def test_asked_for_when_it_is_wanted(self, control: Node) -> None:
        wire = await Wire.open(control.port)
        body = '{"deviceId":"a","command":{"type":"reload"}}'
        head = request("/internal/command", "POST", X_Internal_Api_Key=SECRET, Content_Length=str(len(body)))
        await wire.send(head.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert await wire.reader.readexactly(len(CONTINUE)) == CONTINUE
        assert control.http.unfinished.known == 0
        await wire.send(body[:10].encode())
        await until(lambda: control.http.unfinished.known == 10)
        await wire.send(body[10:].encode())
        assert (await wire.response())[0] == 202
        unfinished = control.http.unfinished
        assert (unfinished.known, unfinished.unknown) == (0, 0)
        await wire.close()

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_what_no_route_wants_is_not_kept(self, node: Node, wire: Wire, chunked: bool) -> None:
        body = b"x" * 500_000
        framing = {"Transfer_Encoding": "chunked"} if chunked else {"Content_Length": str(len(body))}
        await wire.send(request("/health", **framing))
        await wire.send(b"7a120\r\n" + body[:-1] if chunked else body[:-1])
        assert await settles(lambda: node.http.unfinished.unknown) < 100
        await wire.send(b"x\r\n0\r\n\r\n" if chunked else b"x")
        assert (await wire.response())[0] == 200
        await wire.send(request("/health/live"))
        assert (await wire.response())[0] == 200

    async def test_bodies_of_all_callers_together(self, control: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        control.http.unfinished.limit = 100_000
        head = request("/internal/command", "POST", X_Internal_Api_Key=SECRET, Content_Length="60000")
        wires = [await Wire.open(control.port) for _ in range(2)]
        for number, wire in enumerate(wires):
            await wire.send(head + b"x" * 50_000)
            await until(lambda number=number: control.http.unfinished.known == 50_000 * (number + 1))  # type: ignore[misc]
        other = await Wire.open(control.port)
        await other.send(head + b"x")
        status, fields, body = await other.response()
        assert (status, json.loads(body)["code"], fields["connection"]) == (503, "OVERLOADED", "close")
        assert int(fields["retry-after"]) > 0
        assert limited(control, "unfinished_bytes") == 1
        # Others do not wait for them.
        quick = await Wire.open(control.port)
        await quick.send(request("/health/live"))
        assert (await quick.response())[0] == 200
        await wires[0].close()
        await until(lambda: control.http.unfinished.known == 50_000)
        await wires[1].send(b"x" * 10_000)
        assert (await wires[1].response())[0] == 400
        for wire in (*wires, other, quick):
            await wire.close()
        await until(lambda: control.http.unfinished.known == control.http.unfinished.unknown == 0)

    async def test_heads_of_all_clients_together(self, node: Node) -> None:
        node.http.unfinished.limit = 25_000
        wires = [await Wire.open(node.port) for _ in range(3)]
        for wire in wires:
            await wire.send(b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 10_000)
        await until(lambda: limited(node, "unfinished_bytes") == 1)
        whole = await Wire.open(node.port)
        await whole.send(request("/health/live"))
        assert (await whole.response())[0] == 200
        for wire in (*wires, whole):
            await wire.close()
        await until(lambda: node.http.unfinished.unknown == 0)

    async def test_what_waits_behind_a_request_counts(self, node: Node) -> None:
        node.http.unfinished.limit = 25_000
        release = asyncio.Event()

        async def slow(*_: Any) -> Response:
            await release.wait()
            return Response(200)

        node.http.add("GET", "/health/live", slow)
        wires = [await Wire.open(node.port) for _ in range(3)]
        for wire in wires:
            await wire.send(request("/health/live") + b"x" * 10_000)
        await until(lambda: limited(node, "unfinished_bytes") == 1)
        release.set()
        for wire in wires:
            await wire.close()
        await until(lambda: node.http.unfinished.unknown == node.http.exchanges == 0)

    async def test_a_body_counts_until_it_is_answered(self, control: Node) -> None:
        release = asyncio.Event()

        async def slow(*_: Any) -> Response:
            await release.wait()
            return Response(200)

        control.http.add("POST", "/health/live", slow, lambda *_: None)
        wire = await Wire.open(control.port)
        await wire.send(request("/health/live", "POST", "x" * 1000))
        await until(lambda: control.http.unfinished.known == 1000)
        await wire.close()  # it is finished all the same
        other = await Wire.open(control.port)
        await other.send(request("/health/live"))
        assert (await other.response())[0] == 200
        assert control.http.unfinished.known == 1000
        release.set()
        await until(lambda: control.http.unfinished.known == 0)
        await other.close()

    async def test_chunks_of_one_byte_are_read_in_turns(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another client is answered while they are read, and there is an end to them."""
        monkeypatch.setattr("vizora_rt.wire.http.CHUNKS_AT_ONCE", 50)
        monkeypatch.setattr("vizora_rt.net.server.turn_queue.TURN_NS", 0)  # one share a turn
        flood, other = await Wire.open(node.port), await Wire.open(node.port)
        sending = asyncio.create_task(
            flood.send(request("/status", Transfer_Encoding="chunked") + b"1\r\nx\r\n" * 1_000_000)
        )
        answers = 0
        while not limited(node, "body_chunks"):
            await other.send(request("/health/live"))
            assert (await other.response())[0] == 200
            answers += 1
        assert answers > 20
        status, _, body = await flood.response()
        assert (status, json.loads(body)["code"]) == (413, "TOO_MANY_CHUNKS")
        await flood.close()
        await asyncio.wait([sending])
        sending.exception()
        await other.close()

    async def test_chunks_to_nowhere_are_not_read(self, node: Node) -> None:
        wire = await Wire.open(node.port)
        sending = asyncio.create_task(
            wire.send(request("/nope", "POST", Transfer_Encoding="chunked") + b"1\r\nx\r\n" * 1_000_000)
        )
        assert (await wire.response())[0] == 404
        assert limited(node, "body_chunks") == 0
        await wire.close()
        await asyncio.wait([sending])
        sending.exception()


class TestPlacesOfAddresses:
    """Real sockets of several addresses of this machine."""

    @staticmethod
    async def connect(node: Node, address: str) -> Wire:
        stream = socket.socket()
        stream.bind((address, 0))
        stream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stream, ("127.0.0.1", node.port))
        return Wire(*await asyncio.open_connection(sock=stream))

    async def test_who_says_nothing_makes_room(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vizora_rt.net.server.places.SPARE", 2)
        node = await opened(limits={"max_connections": 8})
        silent = [await self.connect(node, "127.0.0.9") for _ in range(30)]
        await until(lambda: limited(node, "max_connections") == 20)
        honest = [await self.connect(node, f"127.0.0.{number}") for number in range(10, 14)]
        for number, wire in enumerate(honest):
            await wire.send(upgrade(device_token(f"screen-{number}")))
            assert (await wire.response())[0] == 101
        assert node.gateway.connections == 4
        asking = await self.connect(node, "127.0.0.20")
        await asking.send(request("/health/live"))
        assert (await asking.response())[0] == 200
        for wire in (*silent, *honest, asking):
            await wire.close()

    @pytest.mark.parametrize("said", [b"", b"GET / HT", request("/health/live"), b"greet"])
    async def test_an_address_has_so_many_whatever_it_says(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch, said: bytes
    ) -> None:
        monkeypatch.setattr("vizora_rt.net.server.places.SPARE", 2)
        node = await opened(limits={"connections_per_address": 3})
        if said == b"greet":
            said = upgrade("", "/socket.io/?EIO=4&transport=websocket")
        wires = [await self.connect(node, "127.0.0.9") for _ in range(9)]
        await until(lambda: limited(node, "connections_per_address") == 4)
        assert node.http.exchanges == 5
        for wire in wires[:5]:
            await wire.send(said)
        other = await self.connect(node, "127.0.0.10")
        await other.send(upgrade(device_token("screen-1")))
        assert (await other.response())[0] == 101
        for wire in (*wires, other):
            await wire.close()

    async def test_a_proxy_is_no_address(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vizora_rt.net.server.places.SPARE", 1)
        server = {"workers": 1, "trusted_proxies": ("127.0.0.9",), "proxy_protocol": True}
        node = await opened(server=server, limits={"connections_per_address": 1})
        wires = [await self.connect(node, "127.0.0.9") for _ in range(5)]
        await until(lambda: node.http.exchanges == 5)
        for wire in wires[:3]:
            await wire.send(proxy_header("192.0.2.7", 2))
        await until(lambda: limited(node, "connections_per_address") == 1)
        await wires[3].send(proxy_header("192.0.2.8", 2) + request("/health/live"))
        assert (await wires[3].response())[0] == 200
        assert node.http.exchanges == 4
        for wire in wires:
            await wire.close()


class TestHalfClosed:
    """A client that has said all it wants to say is answered, and then the connection ends."""

    @pytest.mark.parametrize("path", ["/health", "/health/live", "/status", "/nope"])
    async def test_one_request(self, node: Node, wire: Wire, path: str) -> None:
        await wire.send(request(path))
        wire.writer.write_eof()
        assert (await wire.response())[0] == (404 if path == "/nope" else 200)
        assert await wire.ends() == b""
        await until(lambda: node.http.exchanges == 0)

    @pytest.mark.parametrize("count", [2, 5, 400])
    async def test_a_pipeline(self, node: Node, wire: Wire, count: int) -> None:
        paths = [("/health/live", "/health", "/nope")[number % 3] for number in range(count)]
        wire.writer.write(b"".join(map(request, paths)))
        wire.writer.write_eof()
        for number, path in enumerate(paths, 1):
            status, fields, _ = await wire.response()
            assert status == (404 if path == "/nope" else 200)
            assert fields["connection"] == ("close" if number == count else "keep-alive")
        assert await wire.ends() == b""
        await until(lambda: node.http.exchanges == 0)

    @pytest.mark.parametrize("before", [b"", request("/health"), request("/health/live"), request("/health") * 3])
    @pytest.mark.parametrize("part", [b"GET", b"GET /health HTTP/1.1\r\n", request("/status", body="{}")[:-1]])
    async def test_part_of_a_request(self, node: Node, wire: Wire, before: bytes, part: bytes) -> None:
        wire.writer.write(before + part)
        wire.writer.write_eof()
        for _ in range(before.count(b"GET")):
            assert (await wire.response())[0] == 200
        status, fields, _ = await wire.response()
        assert (status, fields["connection"]) == (400, "close")
        assert await wire.ends() == b""
        await until(lambda: node.http.exchanges == 0)

    @pytest.mark.parametrize("before", [b"", request("/health/live")])
    async def test_nothing_more(self, node: Node, wire: Wire, before: bytes) -> None:
        await wire.send(before)
        if before:
            assert (await wire.response())[0] == 200
        wire.writer.write_eof()
        assert await wire.ends() == b""
        await until(lambda: node.http.exchanges == 0)

    @pytest.mark.parametrize("path", ["/ws", "/socket.io/?EIO=4&transport=websocket"])
    @pytest.mark.parametrize("before", [b"", request("/health"), request("/health/live") * 2])
    async def test_a_handshake(self, node: Node, wire: Wire, before: bytes, path: str) -> None:
        """Who will not say a word is no client of a WebSocket."""
        wire.writer.write(before + upgrade(device_token("screen-1"), path))
        wire.writer.write_eof()
        for _ in range(before.count(b"GET")):
            assert (await wire.response())[0] == 200
        await wire.ends()
        await until(lambda: node.http.exchanges == node.gateway.connections == 0)


class TestCallersThatLeave:
    """What was begun is finished and counted, whoever waits for it; until then its place is taken."""

    @pytest.fixture
    def slow(self, node: Node) -> tuple[asyncio.Event, asyncio.Event, list[str]]:
        asked, release, done = asyncio.Event(), asyncio.Event(), list[str]()

        async def change(*_: Any) -> Response:
            asked.set()
            await release.wait()
            done.append("the second half")
            return Response(200, b"{}")

        node.http.add("POST", "/health/live", change)
        return asked, release, done

    @pytest.mark.parametrize("how", ["reset", "close", "half"])
    async def test_it_is_finished(
        self, node: Node, slow: tuple[asyncio.Event, asyncio.Event, list[str]], how: str
    ) -> None:
        asked, release, done = slow
        wire = await Wire.open(node.port)
        await wire.send(request("/health/live", "POST", "{}"))
        await asyncio.wait_for(asked.wait(), 10)
        if how == "reset":
            linger = b"\x01\0\0\0\0\0\0\0"  # on, for 0 seconds
            wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await wire.close()
        elif how == "close":
            await wire.close()
        else:
            wire.writer.write_eof()
        other = await Wire.open(node.port)
        await other.send(request("/health/live"))
        assert (await other.response())[0] == 200
        await other.close()
        assert node.http.exchanges >= 1
        assert answered(node, "POST", "/health/live", 200) == 0
        release.set()
        if how == "half":
            assert (await wire.response())[0] == 200
            assert await wire.ends() == b""
            await wire.close()
        await until(lambda: done == ["the second half"] and not node.http.answering)
        assert answered(node, "POST", "/health/live", 200) == 1
        await until(lambda: node.http.exchanges == 0)

    async def test_a_place_is_taken_until_it_is_finished(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        """Else who asks and leaves, again and again, has as much done at once as it likes."""
        monkeypatch.setattr("vizora_rt.net.server.places.SPARE", 2)
        node = await opened(limits={"max_connections": 1})
        release = asyncio.Event()

        async def slow(*_: Any) -> Response:
            await release.wait()
            return Response(200)

        node.http.add("GET", "/health/live", slow)
        for number in range(1, 4):
            wire = await Wire.open(node.port)
            await wire.send(request("/health/live"))
            await until(lambda number=number: len(node.http.answering) == number)  # type: ignore[misc]
            await wire.close()
        wire = await Wire.open(node.port)
        await until(lambda: limited(node, "max_connections") == 1)
        await wire.close()
        release.set()
        await until(lambda: node.http.exchanges == 0)


class TestLimits:
    async def test_a_head_that_is_too_large(self, opened: Open) -> None:
        node = await opened(limits={"header_bytes": 1000})
        wire = await Wire.open(node.port)
        fits = request("/health/live", X="")
        await wire.send(request("/health/live", X="x" * (999 - len(fits))))
        assert (await wire.response())[0] == 200
        await wire.send(request("/health/live", X="x" * 1000))
        await self.refused(node, wire, 431, "HEADERS_TOO_LARGE", "header_bytes")

    async def test_the_answer_is_not_lost_while_more_comes(self, node: Node, wire: Wire) -> None:
        # Closing a socket with unread bytes resets it, and a reset takes the answer away from the client.
        await wire.send(b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 1_000_000)
        await self.refused(node, wire, 431, "TOO_MANY_FIELDS", "header_fields")

    async def test_a_target_that_is_too_long(self, node: Node, wire: Wire) -> None:
        await wire.send(b"GET /" + b"x" * 20_000)
        await self.refused(node, wire, 414, "URI_TOO_LONG", "header_bytes")

    @pytest.mark.parametrize("expects", [{}, {"Expect": "100-continue"}])
    async def test_a_body_that_is_too_large(self, opened: Open, expects: dict[str, str]) -> None:
        node = await opened(limits={"body_bytes": 1000})
        wire = await Wire.open(node.port)
        await wire.send(request("/status", "POST", Content_Length="1001", **expects))
        await self.refused(node, wire, 413, "CONTENT_TOO_LARGE", "body_bytes", "POST", "/status")

    async def test_a_slow_request(self, opened: Open) -> None:
        node = await opened(limits={"handshake_seconds": SHORT})
        wire = await Wire.open(node.port)
        for byte in b"GET /ws HTTP/1.1\r\nHost: x":
            await wire.send(bytes((byte,)))
        await self.refused(node, wire, 408, "REQUEST_TIMEOUT", "handshake_seconds")

    @pytest.mark.parametrize(
        ("method", "path", "pattern"),
        [
            ("GET", "/status?x", "/status"),
            ("HEAD", "/health", "/health"),
            ("POST", "/ws", "/ws"),
            ("POST", "/socket.io/?EIO=4", "/socket.io/"),
        ],
    )
    async def test_a_slow_body(self, opened: Open, method: str, path: str, pattern: str) -> None:
        node = await opened(limits={"handshake_seconds": SHORT})
        wire = await Wire.open(node.port)
        await wire.send(request(path, method, Content_Length="2") + b"x")
        await self.refused(node, wire, 408, "REQUEST_TIMEOUT", "handshake_seconds", method, pattern)

    async def test_a_request_that_is_slow_although_the_first_was_not(self, opened: Open) -> None:
        node = await opened(limits={"handshake_seconds": SHORT})
        wire = await Wire.open(node.port)
        await wire.send(request("/health/live"))
        assert (await wire.response())[0] == 200
        over = node.wheel.now + 3 * SHORT
        await until(lambda: node.wheel.now > over)  # the time of the first one is over, that of the next not begun
        await wire.send(b"GET")
        await self.refused(node, wire, 408, "REQUEST_TIMEOUT", "handshake_seconds")

    async def test_not_a_word(self, opened: Open) -> None:
        node = await opened(limits={"handshake_seconds": SHORT})
        wire = await Wire.open(node.port)
        assert await wire.ends() == b""
        assert limited(node, "handshake_seconds") == 1
        await until(lambda: node.http.exchanges == 0)
        await wire.close()

    async def test_a_slow_answer_is_no_slow_request(self, opened: Open) -> None:
        node = await opened(limits={"handshake_seconds": SHORT})
        release = asyncio.Event()

        async def slow(*_: Any) -> Response:
            await release.wait()
            return Response(200, b"{}")

        node.http.add("GET", "/health/live", slow)
        wire = await Wire.open(node.port)
        await wire.send(request("/health/live"))
        over = node.wheel.now + 3 * SHORT
        await until(lambda: node.wheel.now > over)
        release.set()
        assert (await wire.response())[0] == 200
        assert limited(node, "handshake_seconds") == 0
        await wire.close()

    async def test_who_does_not_end_after_a_refusal_is_cut(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http, "CLOSE_SECONDS", SHORT)
        node = await opened(limits={"handshake_seconds": 60.0})
        wire = await Wire.open(node.port)
        await wire.send(b"nonsense\r\n\r\n")
        assert (await wire.response())[0] == 400
        assert await wire.ends() == b""
        await until(lambda: node.http.exchanges == 0)
        await wire.close()

    async def refused(
        self,
        node: Node,
        wire: Wire,
        status: int,
        code: str,
        limit: str,
        method: str = "other",
        path: str = "unmatched",
    ) -> None:
        found, fields, body = await wire.response()
        assert (found, fields["connection"], json.loads(body)["code"]) == (status, "close", code)
        assert await wire.ends() == b""
        assert limited(node, limit) == 1
        assert (answered(node, method, path, status), timed(node, method, path)) == (1, 1)
        await wire.close()
        await until(lambda: node.http.exchanges == 0)


@pytest.mark.parametrize(
    ("data", "status", "known"),
    [
        (b"nonsense\r\n\r\n", 400, False),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 10, 400, False),  # TLS
        (b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + request("/metrics"), 400, False),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, True),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, True),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, False),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400, False),
        (b"GET /health HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, True),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 405, False),
    ],
)
async def test_no_request(node: Node, wire: Wire, data: bytes, status: int, known: bool) -> None:
    await wire.send(data)
    found, fields, body = await wire.response()
    assert (found, fields["connection"]) == (status, "close")
    assert ("allow" in fields) is (status == 405)
    assert json.loads(body)["retryable"] is False
    assert await wire.ends() == b""
    assert answered(node, *(("GET", "/health") if known else ("other", "unmatched")), status) == 1


class TestHandshake:
    async def test_whole(self, node: Node, wire: Wire) -> None:
        await wire.send(upgrade(device_token("screen-1")))
        status, fields, _ = await wire.response()
        assert status == 101
        assert fields == {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",  # RFC 6455 section 1.3
        }
        assert (await wire.message())["event"] == "config"
        assert (node.http.exchanges, node.gateway.connections) == (0, 1)
        assert sum(node.metrics.timer("ws_handshake_duration_seconds").slots[:-1]) == 1

    @pytest.mark.parametrize(
        ("fields", "status"),
        [
            ({"Sec_WebSocket_Key": ""}, 400),
            ({"Sec_WebSocket_Key": "short"}, 400),
            ({"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ"}, 400),
            ({"Sec_WebSocket_Version": ""}, 426),
            ({"Sec_WebSocket_Version": "8"}, 426),
            ({"Sec_WebSocket_Version": "13, 8"}, 426),
            ({"Upgrade": ""}, 426),
            ({"Upgrade": "h2c"}, 426),
            ({"Connection": ""}, 426),
            ({"Connection": "keep-alive"}, 426),
        ],
    )
    async def test_none(self, node: Node, wire: Wire, fields: dict[str, str], status: int) -> None:
        await wire.send(upgrade(device_token("screen-1"), **fields))
        found, headers, _ = await wire.response()
        assert found == status
        if status == 426:
            assert (headers["sec-websocket-version"], headers["upgrade"]) == ("13", "websocket")
        assert (answered(node, "GET", "/ws", status), timed(node, "GET", "/ws")) == (1, 1)
        # It was HTTP, so it goes on as HTTP.
        await wire.send(request("/health/live"))
        assert (await wire.response())[0] == 200

    @pytest.mark.parametrize(
        ("offered", "status", "chosen"),
        [
            ("vizora.v1, bearer.TOKEN", 101, "vizora.v1"),
            ("bearer.TOKEN, vizora.v1", 101, "vizora.v1"),
            ("bearer.TOKEN", 400, None),
            ("bearer.TOKEN, chat", 400, None),
            ("bearer.", 400, None),
        ],
    )
    async def test_a_subprotocol_that_was_offered(
        self, wire: Wire, offered: str, status: int, chosen: str | None
    ) -> None:
        """A browser ends a connection that is answered with another one, or with none."""
        token = device_token("screen-1")
        await wire.send(upgrade(token, Authorization="", Sec_WebSocket_Protocol=offered.replace("TOKEN", token)))
        found, fields, body = await wire.response()
        assert (found, fields.get("sec-websocket-protocol")) == (status, chosen)
        if status == 400:
            assert json.loads(body)["details"] == {"Sec-WebSocket-Protocol": "offer vizora.v1 beside the token"}

    @pytest.mark.parametrize(("offered", "chosen"), [("a, b", "a"), ("a b", None), ("", None)])
    async def test_a_subprotocol_of_socketio(self, wire: Wire, offered: str, chosen: str | None) -> None:
        """As the reference server chooses it."""
        await wire.send(upgrade("", "/socket.io/?EIO=4&transport=websocket", Sec_WebSocket_Protocol=offered))
        status, fields, _ = await wire.response()
        assert (status, fields.get("sec-websocket-protocol")) == (101, chosen)

    async def test_a_refused_one_is_an_answer_like_others(self, opened: Open) -> None:
        node = await opened(limits={"connections_per_address_per_minute": 1})
        wires = [await Wire.open(node.port) for _ in range(4)]
        paths = ("/ws", "/ws", "/socket.io/?EIO=4&transport=websocket", "/ws")
        for wire, path, status in zip(wires, paths, (401, 429, 429, 429), strict=True):
            await wire.send(upgrade("nonsense", path))
            assert (await wire.response())[0] == status
            await wire.close()
        assert (answered(node, "GET", "/ws", 401), answered(node, "GET", "/ws", 429)) == (1, 2)
        assert answered(node, "GET", "/socket.io/", 429) == 1
        assert (timed(node, "GET", "/ws"), timed(node, "GET", "/socket.io/")) == (3, 1)

    @pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS"])
    async def test_another_method(self, node: Node, wire: Wire, method: str) -> None:
        await wire.send(upgrade(device_token("screen-1")).replace(b"GET", method.encode(), 1))
        status, fields, _ = await wire.response(head=method == "HEAD")
        assert (status, fields["allow"]) == (405, "GET")
        assert answered(node, method, "/ws", 405) == 1

    @pytest.mark.parametrize("path", ["/", "/wss", "/ws/", "/health/live"])
    async def test_elsewhere(self, wire: Wire, path: str) -> None:
        await wire.send(upgrade(device_token("screen-1"), path))
        assert (await wire.response())[0] == (200 if path == "/health/live" else 404)

    @pytest.mark.parametrize("path", ["/ws", "/api/ws", "/ws?a=b"])
    async def test_its_path(self, wire: Wire, path: str) -> None:
        await wire.send(upgrade(device_token("screen-1"), path))
        assert (await wire.response())[0] == 101

    async def test_on_a_connection_that_served_requests(self, node: Node, wire: Wire) -> None:
        await wire.send(request("/health/live") + request("/health") + upgrade(device_token("screen-1")))
        assert [(await wire.response())[0] for _ in range(3)] == [200, 200, 101]
        assert (await wire.message())["event"] == "config"

    async def test_frames_that_come_with_it(self, wire: Wire) -> None:
        await wire.send(upgrade(device_token("screen-1")) + text("heartbeat", {}, 1) + text("heartbeat", {}, 2)[:9])
        assert (await wire.response())[0] == 101
        assert [(await wire.message())["event"] for _ in range(2)] == ["config", "ack"]
        await wire.send(text("heartbeat", {}, 2)[9:])
        assert (await wire.message())["id"] == 2

    async def test_frames_that_come_behind_a_refusal(self, node: Node, wire: Wire) -> None:
        await wire.send(upgrade("nonsense") + frame(0x1, b"x" * 60_000) * 50)
        status, fields, body = await wire.response()
        assert (status, fields["connection"], json.loads(body)["code"]) == (401, "close", "AUTH_INVALID")
        assert await wire.ends() == b""
        await wire.close()
        await until(lambda: node.http.exchanges == 0)


class TestWhileRedisIsAsked:
    @pytest.fixture
    def frozen(self, tmp_path: Path) -> Iterator[tuple[str, Callable[[int], None]]]:
        """The URL of a store of its own, and a way to send it signals."""
        store = valkey_server.start(tmp_path)
        yield store.url, lambda number: os.kill(store.pid, number)
        os.kill(store.pid, signal.SIGCONT)
        store.stop()

    @pytest.mark.parametrize("size", [100, 60_000])
    async def test_frames_wait(self, opened: Open, frozen: tuple[str, Callable[[int], None]], size: int) -> None:
        url, kill = frozen
        node = await opened(url, limits={"messages_per_minute": 0})
        kill(signal.SIGSTOP)
        wire = await Wire.open(node.port)
        await wire.send(upgrade(device_token("screen-1")))
        await until(lambda: node.gauge("redis_pipeline_depth"))
        sent = b"".join(text("heartbeat", {"x": "x" * size}, number) for number in range(20))
        sending = asyncio.create_task(wire.send(sent))
        for _ in range(50):
            await asyncio.sleep(0)
        kill(signal.SIGCONT)
        assert (await wire.response())[0] == 101
        assert (await wire.message())["event"] == "config"
        assert [(await wire.message())["id"] for _ in range(20)] == list(range(20))
        await sending
        await wire.close()

    async def test_what_waits_is_bounded(self, opened: Open, frozen: tuple[str, Callable[[int], None]]) -> None:
        url, kill = frozen
        node = await opened(url, limits={"packets_per_minute": 0})
        kill(signal.SIGSTOP)
        wire = await Wire.open(node.port)
        wire.writer.write(upgrade(device_token("screen-1")) + frame(0xA, b"x" * 125) * 300_000)  # 39 MB
        unsent = wire.writer.transport.get_write_buffer_size
        assert await settles(unsent) > 10_000_000  # the kernel has the rest
        kill(signal.SIGCONT)
        await until(lambda: not unsent())
        assert (await wire.response())[0] == 101
        await wire.close()

    async def test_the_client_leaves(self, opened: Open, frozen: tuple[str, Callable[[int], None]]) -> None:
        url, kill = frozen
        node = await opened(url, presence={"offline_after_seconds": 0.1})
        kill(signal.SIGSTOP)
        wire = await Wire.open(node.port)
        await wire.send(upgrade(device_token("screen-1")))
        await until(lambda: node.gauge("redis_pipeline_depth"))
        await wire.close()
        await until(lambda: node.http.exchanges == 0)
        kill(signal.SIGCONT)
        # It had claimed the device, so it also says that nobody is there.
        await until(lambda: node.counter("redis_operations_total", "eval_offline", "ok") == 1)
        assert (node.gateway.connections, node.gauge("ws_connections_active", "acme", "device")) == (0, 0)
        assert node.counter("ws_connections_total", "acme", "connected") == 1
        assert node.counter("ws_connections_total", "acme", "disconnected") == 1

    async def test_the_worker_is_told_to_leave(self, opened: Open, frozen: tuple[str, Callable[[int], None]]) -> None:
        url, kill = frozen
        node = await opened(url)
        kill(signal.SIGSTOP)
        wire = await Wire.open(node.port)
        await wire.send(upgrade(device_token("screen-1")))
        await until(lambda: node.gauge("redis_pipeline_depth"))
        draining = asyncio.create_task(node.gateway.drain(5))
        await asyncio.sleep(0)
        kill(signal.SIGCONT)
        assert (await wire.response())[0] == 101
        assert [(await wire.message())["event"] for _ in range(2)] == ["config", "server:shutdown"]
        assert await wire.close_code() == 1012
        await wire.close()
        await draining


class TestProxies:
    """Who is counted as whom: `connections_per_address` tells, for it is 1."""

    LIMIT: ClassVar[Json] = {"connections_per_address": 1}
    HERE: ClassVar[Json] = {"workers": 1, "trusted_proxies": ("127.0.0.0/8",)}
    ELSEWHERE: ClassVar[Json] = {"workers": 1, "trusted_proxies": ("192.0.2.1",)}

    @pytest.fixture(autouse=True)
    async def closed(self, opened: Open) -> AsyncIterator[None]:
        self.wires: list[Wire] = []
        yield
        for wire in self.wires:
            await wire.close()

    async def enter(self, node: Node, preface: bytes = b"", **fields: str) -> int:
        """The status of a new screen's handshake; the connection stays until the test ends."""
        self.wires.append(wire := await Wire.open(node.port))
        await wire.send(preface + upgrade(device_token(f"screen-{len(self.wires)}"), **fields))
        return (await wire.response())[0]

    async def test_each_client_behind_a_proxy_is_its_own(self, opened: Open) -> None:
        node = await opened(server=self.HERE, limits=self.LIMIT)
        assert await self.enter(node, X_Forwarded_For="192.0.2.7") == 101
        assert await self.enter(node, X_Forwarded_For="198.51.100.9, 192.0.2.7") == 429
        assert await self.enter(node, Forwarded="for=192.0.2.7") == 429
        assert await self.enter(node, X_Forwarded_For="192.0.2.8") == 101
        assert await self.enter(node) == 101
        assert await self.enter(node) == 429

    async def test_nobody_else_speaks_for_others(self, opened: Open) -> None:
        node = await opened(server=self.ELSEWHERE, limits=self.LIMIT)
        assert await self.enter(node, X_Forwarded_For="198.51.100.9") == 101
        assert await self.enter(node, X_Forwarded_For="198.51.100.8") == 429

    async def test_a_socketio_client_too(self, opened: Open) -> None:
        node = await opened(server=self.HERE, limits={"connections_per_address_per_minute": 1})
        for address, status in (("192.0.2.7", 101), ("192.0.2.7", 429), ("192.0.2.8", 101)):
            wire = await Wire.open(node.port)
            await wire.send(upgrade("", "/socket.io/?EIO=4&transport=websocket", X_Forwarded_For=address))
            assert (await wire.response())[0] == status
            await wire.close()

    @pytest.mark.parametrize("version", [1, 2])
    async def test_proxy_protocol(self, opened: Open, version: int) -> None:
        node = await opened(server={**self.HERE, "proxy_protocol": True}, limits=self.LIMIT)
        assert await self.enter(node, proxy_header("192.0.2.7", version)) == 101
        assert await self.enter(node, proxy_header("192.0.2.7", version)) == 429
        assert await self.enter(node, proxy_header("192.0.2.8", version)) == 101
        # Of a client that came through no other proxy its fields count for nothing.
        assert await self.enter(node, proxy_header("192.0.2.8", version), X_Forwarded_For="198.51.100.9") == 429
        # Behind two: the outer one's address is the inner one's to tell, the client's the outer one's.
        assert await self.enter(node, proxy_header("127.0.0.9", version), X_Forwarded_For="192.0.2.9") == 101
        assert await self.enter(node, proxy_header("192.0.2.9", version)) == 429

    async def test_proxy_protocol_in_single_bytes(self, opened: Open) -> None:
        node = await opened(server={**self.HERE, "proxy_protocol": True})
        for version in (1, 2):
            wire = await Wire.open(node.port)
            for byte in proxy_header("192.0.2.7", version) + request("/health/live"):
                await wire.send(bytes((byte,)))
            assert (await wire.response())[0] == 200
            await wire.send(request("/metrics"))
            assert (await wire.response())[0] == 403
            await wire.close()

    async def test_metrics_are_not_for_who_comes_through_a_proxy(self, opened: Open) -> None:
        node = await opened(server={**self.HERE, "proxy_protocol": True})
        for preface, status in (
            (b"", 200),  # this machine's Prometheus
            (proxy_header("127.0.0.1", 1), 403),
            (proxy_header("127.0.0.1", 2), 403),
            (b"PROXY UNKNOWN\r\n", 403),
            (SIGNATURE + b"\x20\x00\x00\x00", 403),
        ):
            wire = await Wire.open(node.port)
            await wire.send(preface + request("/metrics"))
            assert (await wire.response())[0] == status
            await wire.close()

    async def test_a_proxy_that_does_not_speak_it_is_refused(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vizora_rt.net.server.http.LOOPBACK", ("no address",))
        node = await opened(server={**self.HERE, "proxy_protocol": True})
        for preface in (b"", b"PROXY TCP4 192.0.2.7\r\n", SIGNATURE + b"\xff" * 4):
            assert await self.enter(node, preface) == 400

    async def test_who_is_no_proxy_does_not_speak_it(self, opened: Open) -> None:
        for server in ({**self.ELSEWHERE, "proxy_protocol": True}, self.HERE):
            node = await opened(server=server)
            for version in (1, 2):
                assert await self.enter(node, proxy_header("192.0.2.7", version)) == 400

    async def test_a_header_that_does_not_come(self, opened: Open) -> None:
        node = await opened(server={**self.HERE, "proxy_protocol": True}, limits={"handshake_seconds": SHORT})
        wire = await Wire.open(node.port)
        await wire.send(b"PROXY ")
        assert await wire.ends() == b""
        await wire.close()
