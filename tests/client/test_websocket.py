"""The client's side of one connection, against `websockets`' server and against servers that are none."""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus

import pytest
import uvloop
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vizora_rt import errors
from vizora_rt.client.websocket import (
    LONGEST_WAIT,
    CloseInfo,
    Endpoint,
    Handshake,
    WebSocket,
    is_token,
    parse_url,
    seconds,
)
from vizora_rt.wire.frames import TEXT, encode_frame

ENDPOINT = parse_url("ws://127.0.0.1:3001/ws")


class Owner:
    """Hears what a socket tells."""

    def __init__(self) -> None:
        self.online = asyncio.Event()
        self.texts: asyncio.Queue[str] = asyncio.Queue()
        self.offline = 0

    def connected(self, socket: WebSocket) -> None:
        self.online.set()

    def received(self, socket: WebSocket, text: str) -> None:
        self.texts.put_nowait(text)

    def disconnected(self, socket: WebSocket) -> None:
        self.offline += 1


def answer(request: bytes, *extra: str, status: str = "101 Switching Protocols", **changed: str) -> bytes:
    """A server's answer to `request`, with fields changed or added."""
    key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    fields = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec_websocket_accept": base64.b64encode(digest).decode(),
        **changed,
    }
    lines = [f"{name.replace('_', '-').title()}: {value}" for name, value in fields.items()]
    return "\r\n".join((f"HTTP/1.1 {status}", *lines, *extra, "", "")).encode()


@contextlib.asynccontextmanager
async def raw_server(reply: bytes, *, after_101: bool = False, hang: bool = False) -> AsyncIterator[Endpoint]:
    """A TCP server that sends `reply`, when told after a true 101; then it closes, or hangs until the client does."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(request) + reply if after_101 else reply)
        with contextlib.suppress(ConnectionError):
            while hang and await reader.read(65536):
                pass
        writer.close()

    async with asyncio.timeout(20), await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield parse_url(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/ws")


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "target"),
    [
        ("ws://127.0.0.1:3001/ws", "127.0.0.1", 3001, "127.0.0.1:3001", "/ws"),
        ("ws://screens.example", "screens.example", 80, "screens.example", "/ws"),
        ("ws://screens.example/", "screens.example", 80, "screens.example", "/ws"),
        ("ws://screens.example?a=1", "screens.example", 80, "screens.example", "/ws?a=1"),
        ("ws://screens.example/other/", "screens.example", 80, "screens.example", "/other/"),
        ("wss://screens.example/ws?a=1", "screens.example", 443, "screens.example", "/ws?a=1"),
        ("ws://user:secret@[::1]:7/x", "::1", 7, "[::1]:7", "/x"),
    ],
)
def test_url(url: str, host: str, port: int, authority: str, target: str) -> None:
    endpoint = parse_url(url)
    assert endpoint[:4] == (host, port, authority, target)
    assert (endpoint.tls is not None) == url.startswith("wss")


@pytest.mark.parametrize("url", ["http://a/", "ws:///ws", "127.0.0.1:3001", "ws://a/b c", "ws://a/\r\nX: y", ""])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="not a ws:// or wss:// URL"):
        parse_url(url)


@pytest.mark.parametrize("token", ["", "a b", "a\r\nX: y", "ä", None, 7])
def test_a_token_cannot_leave_its_header_line(token: object) -> None:
    assert not is_token(token)
    if isinstance(token, str):
        with pytest.raises(ValueError, match="printable"):
            Handshake(ENDPOINT, token)


def test_request() -> None:
    lines = Handshake(ENDPOINT, "a.b.c").request.decode().split("\r\n")
    assert lines[0] == "GET /ws HTTP/1.1"
    assert {"Host: 127.0.0.1:3001", "Authorization: Bearer a.b.c", "Sec-WebSocket-Version: 13"} <= set(lines)
    assert Handshake(ENDPOINT, "t").request != Handshake(ENDPOINT, "t").request


def test_agreed_whole_byte_by_byte_and_with_a_tail() -> None:
    whole = Handshake(ENDPOINT, "t")
    assert whole.feed(answer(whole.request)) == b""
    tail = Handshake(ENDPOINT, "t")
    assert tail.feed(answer(tail.request, "Sec-WebSocket-Protocol: vizora.v1") + b"\x81\x01x") == b"\x81\x01x"
    slow = Handshake(ENDPOINT, "t")
    data = answer(slow.request)
    assert {slow.feed(data[i : i + 1]) for i in range(len(data) - 1)} == {None}
    assert slow.feed(data[-1:]) == b""


@pytest.mark.parametrize(
    ("extra", "changed"),
    [
        ((), {"sec_websocket_accept": "AAAA"}),
        ((), {"upgrade": "h2c"}),
        ((), {"connection": "close"}),
        (("Sec-WebSocket-Protocol: chat",), {}),
        (("Sec-WebSocket-Extensions: permessage-deflate",), {}),
    ],
)
def test_a_101_that_does_not_agree(extra: tuple[str, ...], changed: dict[str, str]) -> None:
    handshake = Handshake(ENDPOINT, "t")
    assert handshake.feed(answer(handshake.request, *extra, **changed)) == CloseInfo("not a WebSocket server", 101)


@pytest.mark.parametrize(
    ("reply", "ending"),
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n", CloseInfo("not an HTTP/1.1 server")),
        (b"HTTP/1.0 200 OK\r\n\r\n", CloseInfo("not an HTTP/1.1 server")),
        (b"x" * 20_000, CloseInfo("HTTP answer too large")),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", CloseInfo("HTTP 404", 404)),
        (b"HTTP/1.1 401\r\n\r\n", CloseInfo("HTTP 401", 401, final=True)),
        (b"HTTP/1.1 503 x\r\nRetry-After: 7\r\n\r\n", CloseInfo("HTTP 503", 503, wait=7.0)),
        (b"HTTP/1.1 429 x\r\nretry-after:  999999999\r\n\r\n", CloseInfo("HTTP 429", 429, wait=LONGEST_WAIT)),
        (b"HTTP/1.1 503 x\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n\r\n", CloseInfo("HTTP 503", 503)),
        (b"HTTP/1.1 503 x\r\nRetry-After: -1\r\nContent-Length: \xb2\r\n\r\n", CloseInfo("HTTP 503", 503)),
        (b"HTTP/1.1 500 x\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\n[7]x", CloseInfo("HTTP 500", 500)),
        (b"HTTP/1.1 502 x\r\nno colon\r\nContent-Length: 99999999\r\n\r\n<html>", CloseInfo("HTTP 502", 502)),
        (b'HTTP/1.1 403 x\r\nContent-Length: 16\r\n\r\n{"code":"A\\nB c"}', CloseInfo("HTTP 403", 403, final=True)),
    ],
)
def test_answers_that_are_no_handshake(reply: bytes, ending: CloseInfo) -> None:
    assert Handshake(ENDPOINT, "t").feed(reply) == ending


def test_a_refusal_is_read_to_its_end() -> None:
    handshake = Handshake(ENDPOINT, "t")
    body = b'{"code":"DEVICE_REVOKED","message":"device_token_stale","retryable":false}'
    assert handshake.feed(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n" % len(body)) is None
    assert handshake.feed(body[:20]) is None
    assert handshake.feed(body[20:]) == CloseInfo("DEVICE_REVOKED", 403, final=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1500, 1.5), (0, 0.0), (0.5, 0.0005), (2**60, LONGEST_WAIT), (-1, None), (True, None), ("5", None), (None, None)],
)
def test_durations_of_the_server(value: object, expected: float | None) -> None:
    assert seconds(value) == expected


@contextlib.asynccontextmanager
async def websocket_server(handler: Callable[[ServerConnection], object]) -> AsyncIterator[Endpoint]:
    async def handle(connection: ServerConnection) -> None:
        result = handler(connection)
        if asyncio.iscoroutine(result):
            await result

    async with asyncio.timeout(20), serve(handle, "127.0.0.1", 0, compression=None) as server:
        yield parse_url(f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}/ws")


async def messages_both_ways() -> None:
    async def echo(connection: ServerConnection) -> None:
        assert connection.request is not None
        await connection.send(connection.request.headers["Authorization"])
        async for message in connection:
            await connection.send(message)

    async with websocket_server(echo) as endpoint:
        owner = Owner()
        socket = WebSocket(owner, endpoint, "a.b.c")
        running = asyncio.create_task(socket.run())
        assert await owner.texts.get() == "Bearer a.b.c"
        for text in ("x", "é" * 70_000):
            socket.send(text.encode())
            assert await owner.texts.get() == text
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert owner.offline == 1


async def test_messages_both_ways() -> None:
    await messages_both_ways()


def test_messages_both_ways_on_uvloop() -> None:
    uvloop.run(messages_both_ways())


async def test_frames_that_came_with_the_101() -> None:
    async with raw_server(encode_frame(TEXT, b"early"), after_101=True) as endpoint:
        owner = Owner()
        assert await WebSocket(owner, endpoint, "t").run() == CloseInfo("connection lost", 1006)
        assert owner.texts.get_nowait() == "early"


async def test_cancelled_it_says_goodbye() -> None:
    codes: asyncio.Queue[int | None] = asyncio.Queue()

    async def wait(connection: ServerConnection) -> None:
        await connection.wait_closed()
        codes.put_nowait(connection.close_code)

    async with websocket_server(wait) as endpoint:
        owner = Owner()
        running = asyncio.create_task(WebSocket(owner, endpoint, "t").run())
        await owner.online.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await codes.get() == 1000


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        (1000, CloseInfo("normal", 1000)),
        (1011, CloseInfo("fault", 1011)),
        (1012, CloseInfo("restarting", 1012)),
        (3999, CloseInfo("close code 3999", 3999)),
        (4001, CloseInfo("slow_consumer", 4001)),
        (4499, CloseInfo("close code 4499", 4499)),
        *(
            (close.code, CloseInfo(close.name, close.code, final=True))
            for close in errors.CLOSES
            if not close.come_back
        ),
        (4999, CloseInfo("close code 4999", 4999, final=True)),
    ],
)
async def test_close_codes(code: int, ending: CloseInfo) -> None:
    async with websocket_server(lambda connection: connection.close(code)) as endpoint:
        assert await WebSocket(Owner(), endpoint, "t").run() == ending


async def test_refused_by_http() -> None:
    def refuse(connection: ServerConnection, request: Request) -> Response:
        body = b'{"code":"AUTH_EXPIRED","message":"auth_expired","retryable":false}'
        fields = Headers({"Content-Length": str(len(body)), "Connection": "close"})
        return Response(HTTPStatus.UNAUTHORIZED, "Unauthorized", fields, body)

    async def never(connection: ServerConnection) -> None:
        raise AssertionError

    async with asyncio.timeout(20), serve(never, "127.0.0.1", 0, process_request=refuse) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        owner = Owner()
        ending = await WebSocket(owner, parse_url(f"ws://127.0.0.1:{port}/ws"), "t").run()
        assert ending == CloseInfo("AUTH_EXPIRED", 401, final=True)
        assert (owner.online.is_set(), owner.offline) == (False, 0)


async def test_nobody_listens() -> None:
    async with raw_server(b"") as endpoint:
        pass
    ending = await WebSocket(Owner(), endpoint, "t").run()
    assert "refused" in ending.reason.lower() or "connect call failed" in ending.reason.lower()
    assert not ending.final


async def test_the_server_hangs_up_during_the_handshake() -> None:
    async with raw_server(b"HTTP/1.1 101 Sw") as endpoint:
        assert await WebSocket(Owner(), endpoint, "t").run() == CloseInfo("connection lost", 1006)


async def test_the_server_never_answers() -> None:
    async with raw_server(b"", hang=True) as endpoint:
        assert await WebSocket(Owner(), endpoint, "t", connect=0.05).run() == CloseInfo("handshake timeout")


async def test_a_protocol_error_of_the_server() -> None:
    async with raw_server(b"\x81\x81mask!", after_101=True, hang=True) as endpoint:
        assert await WebSocket(Owner(), endpoint, "t", goodbye=60).run() == CloseInfo("protocol_error", 1002)


async def test_a_server_that_does_not_close_is_left() -> None:
    async with raw_server(b"\x88\x02\x0f\xa0", after_101=True, hang=True) as endpoint:
        assert await WebSocket(Owner(), endpoint, "t", goodbye=0.05).run() == CloseInfo("silent", 4000)


async def test_binary_messages_are_ignored() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send(b"\x00")
        await connection.send("text")
        with contextlib.suppress(ConnectionClosed):
            await connection.recv()

    async with websocket_server(handler) as endpoint:
        owner = Owner()
        running = asyncio.create_task(WebSocket(owner, endpoint, "t").run())
        assert await owner.texts.get() == "text"
        running.cancel()
        await asyncio.wait((running,))
