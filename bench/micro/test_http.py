"""What a connect pays for HTTP: the whole budget of a connect is 120 us."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.errors import Refusal
from vizora_rt.wire.http import Request, RequestParser, check_upgrade, redact, upgrade_response

TOKEN = "x" * 280
UPGRADE = (
    "GET /ws HTTP/1.1\r\n"
    "Host: 127.0.0.1:3001\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/140.0.0.0 Safari/537.36\r\n"
    "Connection: Upgrade\r\n"
    "Upgrade: websocket\r\n"
    "Origin: http://localhost:3000\r\n"
    "Sec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    f"Sec-WebSocket-Protocol: vizora.v1, bearer.{TOKEN}\r\n\r\n"
).encode()
POST = (
    b"POST /push/playlist HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 2000\r\n\r\n"
    + b"x" * 2000
)


def parse(data: bytes) -> Request | Refusal | None:
    return RequestParser(16384, 1_048_576).feed(data)


def handshake(data: bytes) -> bytes:
    request = parse(data)
    assert isinstance(request, Request)
    accept = check_upgrade(request)
    assert isinstance(accept, str)
    return upgrade_response(accept, "vizora.v1")


def test_parse_upgrade(benchmark: BenchmarkFixture) -> None:
    assert isinstance(benchmark(parse, UPGRADE), Request)


def test_parse_post(benchmark: BenchmarkFixture) -> None:
    assert isinstance(benchmark(parse, POST), Request)


def test_handshake(benchmark: BenchmarkFixture) -> None:
    assert benchmark(handshake, UPGRADE).startswith(b"HTTP/1.1 101 ")


def test_redact(benchmark: BenchmarkFixture) -> None:
    assert TOKEN not in benchmark(redact, f"/ws?token={TOKEN}&v=1")
