"""Every vector is parsed whole, byte by byte, cut in two anywhere, and with a tail: the outcome is the same."""

import gc
import random
import weakref

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizora_rt import errors
from vizora_rt.errors import Refusal
from vizora_rt.wire.http import (
    CHUNKS_AT_ONCE,
    CONTINUE,
    MAX_CHUNKS,
    Request,
    RequestParser,
    accepts_gzip,
    check_upgrade,
    redact,
    response,
    upgrade_response,
)

HEADER_LIMIT = 512
BODY_LIMIT = 64

UPGRADE = (
    b"GET /ws?v=1 HTTP/1.1\r\n"
    b"Host: gateway.example:3001\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\n\r\n"
)


def lines(*parts: bytes) -> bytes:
    return b"\r\n".join((*parts, b"", b""))


def post(*fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return lines(b"POST /p HTTP/" + version, b"Host: h", *fields) + body


CHUNKED = b"Transfer-Encoding: chunked"

GOOD: dict[str, tuple[bytes, str, str, bytes]] = {
    # name: bytes, method, path, body
    "get": (lines(b"GET / HTTP/1.1", b"Host: h"), "GET", "/", b""),
    "upgrade": (UPGRADE, "GET", "/ws", b""),
    "http 1.0": (lines(b"GET /health HTTP/1.0"), "GET", "/health", b""),
    "empty host": (lines(b"GET / HTTP/1.1", b"Host:"), "GET", "/", b""),
    "ipv6 host": (lines(b"GET / HTTP/1.1", b"Host: [::1]:3001"), "GET", "/", b""),
    "empty lines first": (b"\r\n\r\n" + lines(b"GET / HTTP/1.1", b"Host: h"), "GET", "/", b""),
    "api prefix": (lines(b"GET /api/health HTTP/1.1", b"Host: h"), "GET", "/health", b""),
    "api alone": (lines(b"GET /api HTTP/1.1", b"Host: h"), "GET", "/", b""),
    "not the api prefix": (lines(b"GET /apiary HTTP/1.1", b"Host: h"), "GET", "/apiary", b""),
    "percent path": (lines(b"GET /devices/a%20%C3%A9%ff HTTP/1.1", b"Host: h"), "GET", "/devices/a \u00e9\ufffd", b""),
    "absolute form": (lines(b"GET http://other:1/api/x?y HTTP/1.1", b"Host: h"), "GET", "/x", b""),
    "absolute form, no path": (lines(b"GET HTTP://other HTTP/1.1", b"Host: h"), "GET", "/", b""),
    "absolute form, query only": (lines(b"GET http://other?y=/z HTTP/1.1", b"Host: h"), "GET", "/", b""),
    "asterisk": (lines(b"OPTIONS * HTTP/1.1", b"Host: h"), "OPTIONS", "*", b""),
    "length": (post(b"Content-Length: 5", body=b"hello"), "POST", "/p", b"hello"),
    "length 0": (post(b"Content-Length: 0"), "POST", "/p", b""),
    "no length": (post(), "POST", "/p", b""),
    "length at the limit": (post(b"Content-Length: 64", body=b"x" * 64), "POST", "/p", b"x" * 64),
    "body of CRLF": (post(b"Content-Length: 8", body=b"\r\n" * 4), "POST", "/p", b"\r\n" * 4),
    "length, 1.0": (post(b"Content-Length: 2", body=b"ok", version=b"1.0"), "POST", "/p", b"ok"),
    "chunked": (post(CHUNKED, body=b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"), "POST", "/p", b"hello!"),
    "chunked, nothing": (post(CHUNKED, body=b"0\r\n\r\n"), "POST", "/p", b""),
    "chunked, any case": (
        post(b"tRansfer-encoding: Chunked", body=b"0A\r\n\r\n\r\n\r\n\r\n\r\n\r\n0\r\n\r\n"),
        "POST",
        "/p",
        b"\r\n" * 5,
    ),
    "chunk extensions": (post(CHUNKED, body=b'2;a=b;c="d e"\r\nok\r\n0;z\r\n\r\n'), "POST", "/p", b"ok"),
    "trailers": (post(CHUNKED, body=b"2\r\nok\r\n0\r\nChecksum: x\r\nb:\r\n\r\n"), "POST", "/p", b"ok"),
    "chunks at the limit": (
        post(CHUNKED, body=b"20\r\n" + b"x" * 32 + b"\r\n20\r\n" + b"y" * 32 + b"\r\n0\r\n\r\n"),
        "POST",
        "/p",
        b"x" * 32 + b"y" * 32,
    ),
    "h2c is ignored": (
        lines(
            b"GET /x HTTP/1.1",
            b"Host: h",
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAAQAAP__",
        ),
        "GET",
        "/x",
        b"",
    ),
    "h2c with a body": (
        post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 2", body=b"ok"),
        "POST",
        "/p",
        b"ok",
    ),
    "upgrade with a body": (UPGRADE[:-2] + b"Content-Length: 3\r\n\r\nabc", "GET", "/ws", b"abc"),
    "fields at the limit": (b"GET / HTTP/1.1\r\nHost:\r\n" + b"a:\r\n" * 99 + b"\r\n", "GET", "/", b""),
    "parameters at the limit": (lines(b"GET /?" + b"&" * 99 + b" HTTP/1.1", b"Host: h"), "GET", "/", b""),
    "cookies at the limit": (lines(b"GET / HTTP/1.1", b"Host: h", b"Cookie: " + b";" * 179), "GET", "/", b""),
    "trailers at the limit": (post(CHUNKED, body=b"0\r\n" + b"a:\r\n" * 100 + b"\r\n"), "POST", "/p", b""),
    "head at the limit": (
        b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"a" * (HEADER_LIMIT - 32) + b"\r\n\r\n",
        "GET",
        "/",
        b"",
    ),
}

BAD: dict[str, tuple[bytes, Refusal]] = {
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", errors.BAD_REQUEST),
    "not HTTP": (b"hello world\r\n\r\n", errors.BAD_REQUEST),
    "an answer": (b"HTTP/1.1 200 OK\r\n\r\n", errors.BAD_REQUEST),
    "small letters": (lines(b"get / HTTP/1.1", b"Host: h"), errors.BAD_REQUEST),
    "no host": (lines(b"GET / HTTP/1.1"), errors.BAD_REQUEST),
    "two hosts": (lines(b"GET / HTTP/1.1", b"Host: h", b"hOST: h"), errors.BAD_REQUEST),
    "two hosts, 1.0": (lines(b"GET / HTTP/1.0", b"Host: h", b"Host: h"), errors.BAD_REQUEST),
    "bad host": (lines(b"GET / HTTP/1.1", b"Host: a/b"), errors.BAD_REQUEST),
    "host with space": (lines(b"GET / HTTP/1.1", b"Host: a b"), errors.BAD_REQUEST),
    "bare LF": (b"GET / HTTP/1.1\nHost: h\n\n", errors.BAD_REQUEST),
    "bare LF in fields": (b"GET / HTTP/1.1\r\nHost: h\nA: b\r\n\r\n", errors.BAD_REQUEST),
    "bare CR": (lines(b"GET / HTTP/1.1", b"Host: h\rA: b"), errors.BAD_REQUEST),
    "obs-fold": (lines(b"GET / HTTP/1.1", b"Host: h", b"A: b", b" c"), errors.BAD_REQUEST),
    "NUL": (lines(b"GET / HTTP/1.1", b"Host: h", b"A: b\x00c"), errors.BAD_REQUEST),
    "control character": (lines(b"GET / HTTP/1.1", b"Host: h", b"A: b\x1bc"), errors.BAD_REQUEST),
    "space before colon": (lines(b"GET / HTTP/1.1", b"Host : h"), errors.BAD_REQUEST),
    "empty name": (lines(b"GET / HTTP/1.1", b"Host: h", b": a"), errors.BAD_REQUEST),
    "no colon": (lines(b"GET / HTTP/1.1", b"Host: h", b"a"), errors.BAD_REQUEST),
    "name not ASCII": (lines(b"GET / HTTP/1.1", b"Host: h", b"\xe9: a"), errors.BAD_REQUEST),
    "target not ASCII": (lines(b"GET /\xe9 HTTP/1.1", b"Host: h"), errors.BAD_REQUEST),
    "control in target": (lines(b"GET /\x1b HTTP/1.1", b"Host: h"), errors.BAD_REQUEST),
    "relative target": (lines(b"GET x HTTP/1.1", b"Host: h"), errors.BAD_REQUEST),
    "asterisk of GET": (lines(b"GET * HTTP/1.1", b"Host: h"), errors.BAD_REQUEST),
    "other scheme": (lines(b"GET ftp://h/ HTTP/1.1", b"Host: h"), errors.BAD_REQUEST),
    "empty authority": (lines(b"GET http:///x HTTP/1.1", b"Host: h"), errors.BAD_REQUEST),
    "connect": (lines(b"CONNECT other:443 HTTP/1.1", b"Host: other"), errors.METHOD_NOT_ALLOWED),
    "0.9": (b"GET /\r\n\r\n", errors.HTTP_VERSION),
    "0.9 named": (lines(b"GET / HTTP/0.9"), errors.HTTP_VERSION),
    "1.2": (lines(b"GET / HTTP/1.2", b"Host: h"), errors.HTTP_VERSION),
    "2.0": (lines(b"GET / HTTP/2.0", b"Host: h"), errors.HTTP_VERSION),
    "3.0": (lines(b"GET / HTTP/3.0", b"Host: h"), errors.HTTP_VERSION),
    "h2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", errors.HTTP_VERSION),
    "rtsp": (lines(b"OPTIONS * RTSP/1.0", b"CSeq: 1"), errors.HTTP_VERSION),
    "ice": (lines(b"SOURCE /x ICE/1.0"), errors.HTTP_VERSION),
    "length and coding": (post(b"Content-Length: 5", CHUNKED, body=b"0\r\n\r\n"), errors.BAD_REQUEST),
    "coding and length": (post(CHUNKED, b"Content-Length: 5", body=b"0\r\n\r\n"), errors.BAD_REQUEST),
    "two lengths": (post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"), errors.BAD_REQUEST),
    "length list": (post(b"Content-Length: 5, 5", body=b"hello"), errors.BAD_REQUEST),
    "length signed": (post(b"Content-Length: +5", body=b"hello"), errors.BAD_REQUEST),
    "length negative": (post(b"Content-Length: -5"), errors.BAD_REQUEST),
    "length hexadecimal": (post(b"Content-Length: 0x5", body=b"hello"), errors.BAD_REQUEST),
    "length empty": (post(b"Content-Length: "), errors.BAD_REQUEST),
    "length beyond 64 bits": (post(b"Content-Length: 99999999999999999999"), errors.BAD_REQUEST),
    "coding gzip": (post(b"Transfer-Encoding: gzip"), errors.BAD_REQUEST),
    "coding gzip, chunked": (post(b"Transfer-Encoding: gzip, chunked"), errors.BAD_REQUEST),
    "coding twice": (post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"), errors.BAD_REQUEST),
    "coding in 1.0": (post(CHUNKED, body=b"0\r\n\r\n", version=b"1.0"), errors.BAD_REQUEST),
    "chunk size missing": (post(CHUNKED, body=b"\r\n"), errors.BAD_REQUEST),
    "chunk size word": (post(CHUNKED, body=b"xyz\r\n"), errors.BAD_REQUEST),
    "chunk size signed": (post(CHUNKED, body=b"+5\r\nhello\r\n"), errors.BAD_REQUEST),
    "chunk size 0x": (post(CHUNKED, body=b"0x5\r\nhello\r\n"), errors.BAD_REQUEST),
    "chunk size underscore": (post(CHUNKED, body=b"1_0\r\n"), errors.BAD_REQUEST),
    "chunk size of 17 digits": (post(CHUNKED, body=b"00000000000000005\r\nhello\r\n"), errors.BAD_REQUEST),
    "chunk size and space": (post(CHUNKED, body=b"5 \r\nhello\r\n"), errors.BAD_REQUEST),
    "chunk bare LF": (post(CHUNKED, body=b"5\nhello\n"), errors.BAD_REQUEST),
    "chunk bare CR": (post(CHUNKED, body=b"5;a\rb\r\nhello\r\n"), errors.BAD_REQUEST),
    "chunk longer than told": (post(CHUNKED, body=b"5\r\nhello!\r\n"), errors.BAD_REQUEST),
    "chunk without its CRLF": (post(CHUNKED, body=b"5\r\nhelloXX0\r\n\r\n"), errors.BAD_REQUEST),
    "chunk size and LF": (post(CHUNKED, body=b"5x\nhello\r\n0\r\n\r\n"), errors.BAD_REQUEST),
    "chunk size LF alone": (post(CHUNKED, body=b"\n"), errors.BAD_REQUEST),
    "trailers end in LF": (post(CHUNKED, body=b"0\r\n\n"), errors.BAD_REQUEST),
    "trailer folded": (post(CHUNKED, body=b"0\r\na: b\r\n c\r\n\r\n"), errors.BAD_REQUEST),
    "trailer with NUL": (post(CHUNKED, body=b"0\r\na: \x00\r\n\r\n"), errors.BAD_REQUEST),
    "length over": (post(b"Content-Length: 65"), errors.CONTENT_TOO_LARGE),
    "length far over": (post(b"Content-Length: 18446744073709551615"), errors.CONTENT_TOO_LARGE),
    "length over, expecting": (post(b"Expect: 100-continue", b"Content-Length: 65"), errors.CONTENT_TOO_LARGE),
    "chunk over": (post(CHUNKED, body=b"41\r\n"), errors.CONTENT_TOO_LARGE),
    "chunk far over": (post(CHUNKED, body=b"ffffffffffffffff\r\n"), errors.CONTENT_TOO_LARGE),
    "chunks over": (post(CHUNKED, body=b"40\r\n" + b"x" * 64 + b"\r\n1\r\n"), errors.CONTENT_TOO_LARGE),
    "extensions over": (post(CHUNKED, body=b"1;" + b"x" * HEADER_LIMIT + b"\r\n"), errors.HEADERS_TOO_LARGE),
    "many extensions": (post(CHUNKED, body=(b"1;" + b"x" * 99 + b"\r\nx\r\n") * 6), errors.HEADERS_TOO_LARGE),
    "chunk line without end": (post(CHUNKED, body=b"1;" + b"x" * 5000), errors.HEADERS_TOO_LARGE),
    "trailers over": (post(CHUNKED, body=b"0\r\n" + b"a: b\r\n" * 100), errors.HEADERS_TOO_LARGE),
    "fields over": (lines(b"GET / HTTP/1.1", b"Host: h", b"A: " + b"a" * HEADER_LIMIT), errors.HEADERS_TOO_LARGE),
    "one byte over": (
        b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"a" * (HEADER_LIMIT - 31) + b"\r\n\r\n",
        errors.HEADERS_TOO_LARGE,
    ),
    "many fields": (lines(b"GET / HTTP/1.1", b"Host: h", *[b"a: b"] * 200), errors.HEADERS_TOO_LARGE),
    "one field too many": (b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 101 + b"\r\n", errors.TOO_MANY_FIELDS),
    "one field too many, then none": (b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 102 + b"\0", errors.TOO_MANY_FIELDS),
    "none, and many": (b"GET / HTTP/1.1\r\na:\r\n\0:\r\n" + b"a:\r\n" * 110, errors.BAD_REQUEST),
    "many parameters": (lines(b"GET /?" + b"&" * 100 + b" HTTP/1.1", b"Host: h"), errors.TOO_MANY_FIELDS),
    "many cookies": (lines(b"GET / HTTP/1.1", b"Host: h", b"Cookie: " + b";" * 180), errors.TOO_MANY_FIELDS),
    "cookies in many fields": (
        lines(b"GET / HTTP/1.1", b"Host: h", *[b"Cookie: " + b";" * 59] * 3 + [b"Cookie:;"]),
        errors.TOO_MANY_FIELDS,
    ),
    "one trailer too many": (post(CHUNKED, body=b"0\r\n" + b"a:\r\n" * 101), errors.TOO_MANY_FIELDS),
    "target over": (lines(b"GET /" + b"a" * HEADER_LIMIT + b" HTTP/1.1", b"Host: h"), errors.URI_TOO_LONG),
    "target without end": (b"GET /" + b"a" * HEADER_LIMIT, errors.URI_TOO_LONG),
    "empty lines for ever": (b"\r\n" * HEADER_LIMIT, errors.URI_TOO_LONG),
}


def parser() -> RequestParser:
    return RequestParser(HEADER_LIMIT, BODY_LIMIT)


def run(pieces: list[bytes]) -> tuple[Request | Refusal | None, bytes]:
    """The first outcome of feeding `pieces`, and what is left: `rest` and the pieces that were not fed."""
    machine = parser()
    for index, piece in enumerate(pieces):
        outcome = machine.feed(piece)
        if outcome is not None:
            return outcome, machine.rest + b"".join(pieces[index + 1 :])
    return None, b""


def one_by_one(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def request(data: bytes) -> Request:
    outcome, _ = run([data])
    assert isinstance(outcome, Request), outcome
    return outcome


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("tail", [b"", b"\x81\x85\x00\x00\x00\x00hello", b"GET / HTTP/1.1\r\n", b"\r\n\r\n", b"0"])
def test_good(name: str, tail: bytes) -> None:
    data, method, path, body = GOOD[name]
    first, rest = run([data + tail])
    assert isinstance(first, Request), first
    assert (first.method, first.path, first.body, rest) == (method, path, body, tail)
    assert run(one_by_one(data + tail)) == (first, tail)


@pytest.mark.parametrize("name", GOOD)
def test_good_cut_in_two(name: str) -> None:
    data = GOOD[name][0]
    whole, _ = run([data])
    for cut in range(1, len(data)):
        assert run([data[:cut], data[cut:]]) == (whole, b"")


@pytest.mark.parametrize("name", GOOD)
def test_nothing_before_the_end(name: str) -> None:
    data = GOOD[name][0]
    for end in range(len(data)):
        assert run([data[:end]]) == (None, b"")


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    data, refusal = BAD[name]
    assert run([data]) == (refusal, b"")
    assert run([data + b"tail" * 9]) == (refusal, b"")
    assert run(one_by_one(data))[0] == refusal
    for cut in range(1, len(data)):
        assert run([data[:cut], data[cut:]])[0] == refusal


def test_the_same_refusal_for_good() -> None:
    machine = parser()
    assert machine.feed(b"\x00") is errors.BAD_REQUEST
    assert machine.feed(GOOD["get"][0]) is errors.BAD_REQUEST


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("no host", ("GET", "/")),
        ("coding in 1.0", ("POST", "/p")),
        ("length over", ("POST", "/p")),
        ("chunk over", ("POST", "/p")),
        ("chunk size word", ("POST", "/p")),
        ("trailers over", ("POST", "/p")),
        ("connect", None),
        ("fields over", None),
        ("target over", None),
        ("2.0", None),
        ("two lengths", None),
        ("not HTTP", None),
    ],
)
def test_what_is_known_of_what_is_refused(name: str, known: tuple[str, str] | None) -> None:
    for pieces in ([BAD[name][0]], one_by_one(BAD[name][0])):
        machine = parser()
        assert any(machine.feed(piece) is BAD[name][1] for piece in pieces)
        assert (machine.request and (machine.request.method, machine.request.path)) == known


def test_what_is_known_while_the_body_is_awaited() -> None:
    machine = parser()
    seen = []
    for piece in (b"POST /p HTTP/1.1\r\n", b"Host: h\r\nContent-Length: 1\r\n\r\n", b"x", b"GET"):
        machine.feed(piece)
        seen.append(machine.request and machine.request.path)
    assert seen == [None, "/p", None, None]


def test_pipelined() -> None:
    machine = parser()
    data = b"".join(GOOD[name][0] for name in ("get", "length", "chunked", "api prefix")) + UPGRADE + b"\x81\x00"
    seen = []
    while isinstance(outcome := machine.feed(data), Request):
        seen.append((outcome.path, outcome.body, outcome.upgrade))
        data = machine.rest
        if outcome.upgrade:
            break
    assert seen == [
        ("/", b"", False),
        ("/p", b"hello", False),
        ("/p", b"hello!", False),
        ("/health", b"", False),
        ("/ws", b"", True),
    ]
    assert data == b"\x81\x00"


def test_the_head_limit_is_of_each_request() -> None:
    machine = parser()
    for _ in range(9):
        assert isinstance(machine.feed(GOOD["head at the limit"][0]), Request)


def test_started() -> None:
    machine = parser()
    seen = [machine.started]
    for piece in (b"POST /p HTTP/1.1\r\n", b"Host: h\r\nContent-Length: 1\r\n\r\n", b"x"):
        machine.feed(piece)
        seen.append(machine.started)
    assert seen == [False, True, True, False]


def test_fields() -> None:
    got = request(
        lines(
            b"GET /x HTTP/1.1",
            b"HOST: h",
            b"Accept: a",
            b"accept:  b\t ",
            b"X-Empty:",
            b"X-Latin: \xe9\xa0",
            b"Cookie: a=1",
            b'Cookie: b="2"; c=x=y',
        )
    )
    assert got.headers == {
        "host": "h",
        "accept": "a, b",
        "x-empty": "",
        "x-latin": "\u00e9\u00a0",
        "cookie": 'a=1; b="2"; c=x=y',
    }
    assert [got.cookie(name) for name in ("a", "b", "c", "A", "")] == ["1", "2", "x=y", None, None]
    assert request(GOOD["get"][0]).cookie("a") is None


def test_query() -> None:
    got = request(lines(b"GET /x?a=1&b=%C3%A9+%2B&a=2&%63=3&d&e=&?=y HTTP/1.1", b"Host: h"))
    assert got.target == "/x?a=1&b=%C3%A9+%2B&a=2&%63=3&d&e=&?=y"
    assert got.query == "a=1&b=%C3%A9+%2B&a=2&%63=3&d&e=&?=y"
    assert [got.param(name) for name in "abcdef?"] == ["1", "\u00e9 +", "3", "", "", None, "y"]
    assert request(GOOD["get"][0]).param("a") is None
    assert request(GOOD["absolute form"][0]).query == "y"
    assert request(GOOD["absolute form, query only"][0]).query == "y=/z"


@pytest.mark.parametrize(
    ("version", "connection", "expected"),
    [
        (b"1.1", b"", True),
        (b"1.1", b"close", False),
        (b"1.1", b"foo, CLOSE", False),
        (b"1.1", b"closed", True),
        (b"1.0", b"", False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_keep_alive(version: bytes, connection: bytes, expected: bool) -> None:
    got = request(lines(b"GET / HTTP/" + version, b"Host: h", b"Connection: " + connection))
    assert got.keep_alive is expected
    assert got.version == version.decode()


def test_repr_shows_no_secret() -> None:
    shown = repr(request(lines(b"GET /ws?token=sesame HTTP/1.1", b"Host: h", b"Authorization: Bearer sesame")))
    assert "sesame" not in shown
    assert "GET /ws" in shown


class TestChunks:
    def test_a_body_of_many_is_read_in_turns(self) -> None:
        machine = RequestParser(HEADER_LIMIT, 100_000)
        count = 3 * CHUNKS_AT_ONCE + 7
        outcome = machine.feed(post(CHUNKED, body=b"1\r\nx\r\n" * count + b"0\r\n\r\n" + UPGRADE))
        turns = 0
        while outcome is None:
            assert machine.more
            assert len(machine._body) <= (turns + 1) * CHUNKS_AT_ONCE
            outcome, turns = machine.feed(b""), turns + 1
        assert isinstance(outcome, Request)
        assert (outcome.body, machine.rest, machine.more, turns) == (b"x" * count, UPGRADE, False, 3)

    def test_no_more_than_the_limit(self) -> None:
        for count, refusal in ((MAX_CHUNKS - 1, None), (MAX_CHUNKS, errors.TOO_MANY_CHUNKS)):
            machine = RequestParser(HEADER_LIMIT, 100_000)
            outcome = machine.feed(post(CHUNKED, body=b"1\r\nx\r\n" * count + b"0\r\n\r\n"))
            while outcome is None:
                outcome = machine.feed(b"")
            assert outcome is refusal if refusal else isinstance(outcome, Request)

    @pytest.mark.parametrize("size", [1, 7, 1000])
    @pytest.mark.parametrize(
        "body",
        [
            post(b"Content-Length: 3000", body=b"x" * 3000),
            post(CHUNKED, body=b"3e8\r\n" + b"x" * 1000 + b"\r\n5dc\r\n" + b"y" * 1500 + b"\r\n0\r\na: b\r\n\r\n"),
        ],
    )
    def test_a_body_that_nobody_wants_is_not_kept(self, body: bytes, size: int) -> None:
        machine = RequestParser(HEADER_LIMIT, 3000)
        head = body.index(b"\r\n\r\n") + 4
        assert machine.feed(body[: head + 1]) is None
        machine.discard_body()
        outcome, rest = None, (body + UPGRADE)[head + 1 :]
        while outcome is None:
            outcome, rest = machine.feed(rest[:size]), rest[size:]
            assert machine.held <= size + 5  # the line of a chunk
        assert isinstance(outcome, Request)
        assert (outcome.body, machine.rest + rest) == (b"", UPGRADE)

    def test_too_large_is_too_large_also_when_nobody_wants_it(self) -> None:
        machine = parser()
        assert machine.feed(post(CHUNKED)) is None
        machine.discard_body()
        assert machine.feed(b"40\r\n" + b"x" * 64 + b"\r\n1\r\n") is errors.CONTENT_TOO_LARGE


class TestExpect:
    HEAD = post(b"Expect: 100-Continue", b"Content-Length: 2")

    def test_answered_once_while_the_body_is_awaited(self) -> None:
        machine = parser()
        assert machine.feed(self.HEAD) is None
        assert machine.interim == CONTINUE
        assert machine.feed(b"o") is None
        assert machine.interim == b""
        assert isinstance(machine.feed(b"k"), Request)
        assert machine.interim == b""

    def test_chunked(self) -> None:
        machine = parser()
        assert machine.feed(post(b"Expect: 100-continue", CHUNKED)) is None
        assert machine.interim == CONTINUE

    @pytest.mark.parametrize(
        "data",
        [
            HEAD + b"o",  # RFC 9110 section 10.1.1: part of the content has come
            post(b"Expect: 100-continue", b"Content-Length: 2", version=b"1.0"),
            post(b"Expect: 200-ok", b"Content-Length: 2"),
            post(b"Content-Length: 2"),
        ],
    )
    def test_not_answered(self, data: bytes) -> None:
        machine = parser()
        assert machine.feed(data) is None
        assert machine.interim == b""

    def test_without_a_body(self) -> None:
        machine = parser()
        assert isinstance(machine.feed(post(b"Expect: 100-continue")), Request)
        assert machine.interim == b""


class TestUpgrade:
    @staticmethod
    def check(old: bytes = b"", new: bytes = b"") -> str | Refusal:
        assert old in UPGRADE
        return check_upgrade(request(UPGRADE.replace(old, new) if old else UPGRADE))

    def test_the_example_of_the_rfc(self) -> None:
        assert self.check() == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            (b"Upgrade: websocket", b"uPGRADE: WebSocket"),
            (b"Upgrade: websocket", b"Upgrade: h2c, websocket"),
            (b"keep-alive, Upgrade", b"UPGRADE"),
            (b"keep-alive, Upgrade", b"upgrade\r\nConnection: keep-alive"),
        ],
    )
    def test_taken(self, old: bytes, new: bytes) -> None:
        assert self.check(old, new) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

    @pytest.mark.parametrize(
        ("old", "new", "refusal"),
        [
            (b"GET", b"POST", errors.METHOD_NOT_ALLOWED),
            (b"GET", b"HEAD", errors.METHOD_NOT_ALLOWED),
            (b"HTTP/1.1", b"HTTP/1.0", errors.HTTP_VERSION),
            (b"Upgrade: websocket\r\n", b"", errors.UPGRADE_REQUIRED),
            (b"Upgrade: websocket", b"Upgrade: websockets", errors.UPGRADE_REQUIRED),
            (b"Upgrade: websocket", b"Upgrade: h2c", errors.UPGRADE_REQUIRED),
            (b"keep-alive, Upgrade", b"keep-alive", errors.UPGRADE_REQUIRED),
            (b"keep-alive, Upgrade", b"keep-alive Upgrade", errors.UPGRADE_REQUIRED),
            (b"Version: 13", b"Version: 8", errors.UPGRADE_REQUIRED),
            (b"Version: 13", b"Version: 8, 13", errors.UPGRADE_REQUIRED),
            (b"Version: 13", b"Version: 013", errors.UPGRADE_REQUIRED),
            (b"Sec-WebSocket-Version: 13\r\n", b"", errors.UPGRADE_REQUIRED),
            (b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"", errors.BAD_REQUEST),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"", errors.BAD_REQUEST),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZQ", errors.BAD_REQUEST),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZSE=", errors.BAD_REQUEST),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25j*Q==", errors.BAD_REQUEST),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhlIHNhbXBsZSBub25jZ===", errors.BAD_REQUEST),
            (b"dGhlIHNhbXBsZSBub25jZQ==", b"dGhl\xe9HNhbXBsZSBub25jZQ==", errors.BAD_REQUEST),
            (
                b"Sec-WebSocket-Version",
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version",
                errors.BAD_REQUEST,
            ),
        ],
    )
    def test_refused(self, old: bytes, new: bytes, refusal: Refusal) -> None:
        assert self.check(old, new) == refusal

    def test_only_a_websocket_is_an_upgrade(self) -> None:
        assert request(UPGRADE).upgrade
        for name in ("get", "h2c is ignored", "h2c with a body"):
            assert not request(GOOD[name][0]).upgrade
        assert not request(UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0")).upgrade  # RFC 9110 section 7.8

    def test_early_frames_are_kept(self) -> None:
        machine = parser()
        early = b"\x82\xfe" + bytes(range(256)) * 40
        assert isinstance(machine.feed(UPGRADE + early), Request)
        assert machine.rest == early
        assert machine.feed(b"") is None
        assert machine.rest == b""

    def test_llhttp_goes_with_the_head(self) -> None:
        def lexers() -> int:
            return sum(isinstance(each, httptools.HttpRequestParser) for each in gc.get_objects())

        gc.collect()
        before, machine, seen = lexers(), parser(), []
        for piece in (UPGRADE[:-2], b"Content-Length: 1\r\n\r\n", b"x"):
            machine.feed(piece)
            seen.append(lexers() - before)
        assert seen == [1, 0, 0]

    def test_no_cycle_keeps_a_parser_alive(self) -> None:
        class Watched(RequestParser):
            __slots__ = ("__weakref__",)

        gc.collect()
        gc.disable()
        try:
            for data in (UPGRADE, UPGRADE[:60], b"\x00", GOOD["chunked"][0][:-1]):
                machine = Watched(HEADER_LIMIT, BODY_LIMIT)
                machine.feed(data)
                alive = weakref.ref(machine)
                del machine
                assert alive() is None
        finally:
            gc.enable()


class Answer:
    """Reads our own answers with llhttp."""

    def __init__(self, data: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.body = b""
        self.complete = False
        self.parser = httptools.HttpResponseParser(self)
        self.parser.feed_data(data)
        self.status = self.parser.get_status_code()

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields[name.decode()] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


@pytest.mark.parametrize(
    ("field", "accepted"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("gzip ; Q = 0.001", True),
        ("gzip;q=1.", True),
        ("*", True),
        ("*;q=0", False),
        ("*;q=0, gzip", True),
        ("gzip;q=0, *", False),
        ("br, deflate", False),
        ("identity", False),
        ("identity;q=0", True),
        ("identity;q=0, *;q=0", False),
        ("identity;q=0, gzip;q=0", False),
        ("identity, gzip;q=0.5", False),
        ("identity;q=0.5, gzip;q=0.5", True),
        ("gzip;q=0, gzip", False),
        ("gzip;q=2", False),
        ("gzip;q=1.1", False),
        ("gzip;q=-1", False),
        ("gzip;q=nan", False),
        ("gzip;q=", False),
        ("gzip;q", False),
        ("gzip;x=1", False),
        ("gzip;q=0;q=1", False),
        ("gzipped", False),
        ("not-gzip", False),
        (",,;;,=", False),
    ],
)
def test_accepts_gzip(field: str, accepted: bool) -> None:
    """RFC 9110 section 12.5.3."""
    assert accepts_gzip(field) is accepted


class TestResponse:
    def test_date(self) -> None:
        date = "Mon, 30 Nov 2026 14:00:00 GMT"
        assert response(204, date=date).startswith(b"HTTP/1.1 204 No Content\r\nDate: %b\r\n" % date.encode())
        assert b"Date" not in response(204)

    def test_body(self) -> None:
        answer = Answer(response(200, b'{"a":1}', headers=(("Retry-After", "3"),)))
        assert (answer.status, answer.body, answer.complete) == (200, b'{"a":1}', True)
        assert answer.fields == {
            "Content-Type": "application/json",
            "Content-Length": "7",
            "Retry-After": "3",
            "Connection": "keep-alive",
        }

    def test_closing(self) -> None:
        answer = Answer(response(503, b"x", "text/plain", keep_alive=False))
        assert (answer.status, answer.fields["Connection"], answer.fields["Content-Type"]) == (
            503,
            "close",
            "text/plain",
        )
        assert not answer.parser.should_keep_alive()

    def test_head_keeps_the_length(self) -> None:
        data = response(200, b"12345", head=True)
        assert b"Content-Length: 5\r\n" in data
        assert data.endswith(b"\r\n\r\n")

    def test_empty(self) -> None:
        answer = Answer(response(404))
        assert (answer.body, answer.complete, answer.fields["Content-Length"]) == (b"", True, "0")
        assert "Content-Type" not in answer.fields

    @pytest.mark.parametrize("status", [204, 304])
    def test_never_a_body(self, status: int) -> None:
        data = response(status, b"nothing")
        assert b"Content-Length" not in data
        assert data.endswith(b"\r\n\r\n")

    def test_every_refusal_has_a_status_line(self) -> None:
        for refusal in vars(errors).values():
            if isinstance(refusal, Refusal):
                assert Answer(response(refusal.status)).status == refusal.status

    def test_426_says_which_version(self) -> None:
        answer = Answer(response(426, b"{}", keep_alive=False))
        assert answer.fields["Sec-WebSocket-Version"] == "13"
        assert answer.fields["Upgrade"] == "websocket"
        assert answer.fields["Connection"] == "close, Upgrade"

    def test_a_value_cannot_split_the_answer(self) -> None:
        answer = Answer(response(200, b"", headers=(("Access-Control-Allow-Origin", "a\r\nSet-Cookie: b\r\n\r\nc"),)))
        assert "Set-Cookie" not in answer.fields
        assert answer.fields["Access-Control-Allow-Origin"] == "a  Set-Cookie: b    c"

    def test_a_value_beyond_latin_1_does_not_raise(self) -> None:
        assert b"X: ?\r\n" in response(200, headers=(("X", "\u2028"),))

    def test_switching(self) -> None:
        assert upgrade_response("abc=", None) == (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: abc=\r\n\r\n"
        )
        assert b"\r\nSec-WebSocket-Protocol: vizora.v1\r\n\r\n" in upgrade_response("abc=", "vizora.v1")


JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkIn0.c2lnbmF0dXJl"


class TestRedact:
    @pytest.mark.parametrize(
        ("target", "shown"),
        [
            ("/ws", "/ws"),
            ("/ws?", "/ws?"),
            ("/socket.io/?EIO=4&transport=websocket", "/socket.io/?EIO=4&transport=websocket"),
            ("/ws?token=sesame", "/ws?token=***"),
            ("/ws?a=1&TOKEN=sesame&b=2", "/ws?a=1&TOKEN=***&b=2"),
            ("/ws?%74oken=sesame", "/ws?token=***"),
            ("/ws?access_token=sesame&api-key=sesame&password=sesame", "/ws?access_token=***&api-key=***&password=***"),
            ("/ws?token=a=sesame", "/ws?token=***"),
            (f"/ws?x={JWT}", "/ws?x=***"),
            (f"/ws?{JWT}", "/ws?***"),
            (f"/ws?{JWT}=1", "/ws?***"),
            (f"/ws/{JWT}/x", "/ws/***/x"),
            ("http://user:sesame@host/ws", "http://***@host/ws"),
            ("/ws\r\n\x1b[31m\u202e\u00e9", "/ws\\r\\n\\x1b[31m\\u202e\u00e9"),
            ("/" + "a" * 600, "/" + "a" * 511 + "..."),
        ],
    )
    def test_shown(self, target: str, shown: str) -> None:
        assert redact(target) == shown

    @given(st.text())
    def test_one_printable_line(self, target: str) -> None:
        shown = redact(target)
        assert shown.isprintable()
        assert len(shown) <= 515

    @given(st.text(alphabet="abc&=?%2", max_size=20), st.sampled_from(["token", "%74oken", "Token", "t%6Fken"]))
    def test_what_param_finds_is_hidden(self, noise: str, name: str) -> None:
        target = f"/ws?{noise}&{name}=sesame"
        assert "sesame" not in redact(target)


PIECES = st.sampled_from(
    [
        b"GET ",
        b"POST ",
        b"/",
        b"*",
        b"?",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b": ",
        b" ",
        b"Host: h\r\n",
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: Upgrade\r\n",
        b"Upgrade: websocket\r\n",
        b"Expect: 100-continue\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"\x00",
        b"\xff",
        b";",
        b"POST /p HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n",
        b"a" * 300,
    ]
)
BYTES = st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=30).map(b"".join)


def drain(machine: RequestParser, data: bytes) -> list[Request | Refusal]:
    found: list[Request | Refusal] = []
    while True:
        outcome = machine.feed(data)
        if outcome is not None:
            found.append(outcome)
        if not isinstance(outcome, Request) or not machine.rest:
            return found
        data = machine.rest


class TestAnything:
    @given(BYTES, st.integers(0, 2**32))
    @settings(max_examples=1000, deadline=None)
    def test_random_bytes_cut_anyhow(self, data: bytes, seed: int) -> None:
        """Never raises or hangs, holds no more than the limits, and how the bytes were cut changes nothing."""
        whole = drain(parser(), data)
        chance, machine = random.Random(seed), parser()
        pieces: list[Request | Refusal] = []
        position = 0
        while position < len(data) and not (pieces and isinstance(pieces[-1], Refusal)):
            size = chance.randint(1, 40)
            pieces += drain(machine, data[position : position + size])
            position += size
            assert held(machine) <= HEADER_LIMIT + BODY_LIMIT + 40
        assert pieces == whole

    @given(st.sampled_from(sorted(GOOD)), st.integers(0, 300), st.integers(0, 255))
    @settings(max_examples=1000, deadline=None)
    def test_one_byte_wrong(self, name: str, position: int, value: int) -> None:
        data = bytearray(GOOD[name][0])
        data[position % len(data)] = value
        assert run(one_by_one(bytes(data)))[0] == run([bytes(data)])[0]

    def test_a_peer_that_never_ends_is_held_to_the_limits(self) -> None:
        for start, piece in [
            (b"", b"GET /aaaa"),
            (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
            (post(b"Content-Length: 64"), b"x" * 7),
            (post(CHUNKED), b"1\r\nx\r\n"),
            (post(CHUNKED), b"1;x"),
            (post(CHUNKED) + b"0\r\n", b"a: b\r\n"),
        ]:
            machine, most = parser(), 0
            outcome = machine.feed(start)
            for _ in range(2000):
                if outcome is not None:
                    break
                outcome = machine.feed(piece)
                most = max(most, held(machine))
            assert outcome is not None
            assert most <= max(HEADER_LIMIT + BODY_LIMIT, 4096 + len(piece))


def held(machine: RequestParser) -> int:
    return machine.held
