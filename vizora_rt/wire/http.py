"""An HTTP/1.1 request from bytes, and the bytes of an answer: RFC 9110, RFC 9112 and the handshake of RFC 6455.

httptools (llhttp) reads the request line and the header fields. Limits, Host and the framing of the body are kept
here: llhttp takes a header of any size, a request without Host, and cannot tell where a message ended. All that a
peer can do wrong comes back as a `Refusal`.

Over 300 lines because the parser is one machine of states.
"""

import base64
import hashlib
import re
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote, unquote_plus

import httptools

from vizora_rt import errors
from vizora_rt.errors import Refusal

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
MAX_FIELDS = 100
"""Fields of a head, and once more trailers: what Apache (LimitRequestFields) and HAProxy (tune.http.maxhdr) take. Each
takes some hundred bytes of memory, however short it is."""
MAX_PARAMETERS = 100
"""Of a query. No route knows more than three."""
MAX_COOKIES = 180
"""What Chrome keeps for one site, and so the most that a browser sends."""
MAX_CHUNKS = 16_384
"""Of a body: the largest one in pieces of 64 bytes. Each costs some microseconds, however small it is."""
CHUNKS_AT_ONCE = 100
"""Read before others have their turn: 0.2 ms."""

UPGRADE_HEADERS = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
"""What an answer 426 must carry (RFC 9110 section 15.5.22, RFC 6455 section 4.2.2). `response` adds them."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")  # 16 bytes in base64; the four spare bits are nobody's business
_HOST = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")  # uri-host [":" port], RFC 9110 section 7.2
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})((?:;[\t\x20-\x7e\x80-\xff]*)?)")  # RFC 9112 section 7.1
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")
_WEIGHT = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?", re.ASCII)  # RFC 9110 section 12.4.2
_CHUNK_SIZE_LINE = 18  # 16 digits, CR and LF
_CHUNK_LINE = 4096  # a size and its extensions; Go's net/http and Netty stop at 4 and 8 KiB
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SECRET_NAME = re.compile(r"token|secret|passw|auth|key|jwt|bearer|signature|session|cookie", re.IGNORECASE)
_JWT = re.compile(r"eyJ[\w-]{4,}\.[\w-]+(?:\.[\w-]*)?")  # a JOSE header begins with {" in base64
_LOGGED = 512  # characters of a target in a log line: enough to tell a route, too few to fill a disk

_START = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}

_HEAD, _LENGTH, _SIZE, _DATA, _DATA_END, _TRAILERS = range(6)


@dataclass(slots=True, repr=False)
class Request:
    """One request. `path` is decoded, without query and without a leading /api; header names are lower case."""

    method: str
    target: str
    path: str
    query: str
    version: str
    headers: dict[str, str]
    keep_alive: bool
    upgrade: bool
    body: bytes = b""

    def __repr__(self) -> str:
        return f"<Request {self.method} {redact(self.target)}>"  # header fields hold tokens

    def param(self, name: str) -> str | None:
        """The first query parameter of this name, decoded as a form would be."""
        for part in self.query.split("&"):
            key, _, value = part.partition("=")
            if key == name or ("%" in key and unquote_plus(key) == name):
                return unquote_plus(value)
        return None

    def cookie(self, name: str) -> str | None:
        """The first cookie of this name (RFC 6265 section 4.2.1)."""
        for part in self.headers.get("cookie", "").split(";"):
            key, separator, value = part.partition("=")
            if separator and key.strip(" \t") == name:
                return value.strip(" \t").removeprefix('"').removesuffix('"')
        return None


class _Fields:
    """What llhttp calls back into. Apart from the parser, so that no reference cycle outlives a connection."""

    __slots__ = ("complete", "pairs", "url")

    def __init__(self) -> None:
        self.url = b""
        self.pairs: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.pairs.append((name, value))
        if len(self.pairs) > MAX_FIELDS:
            raise ValueError("too many fields")  # ends the lexer's work; `feed` looks at the pairs

    def on_headers_complete(self) -> None:
        self.complete = True


class RequestParser:
    """Requests of one connection, one after the other.

    `header_limit` bounds the request line and header fields together, and once more chunk extensions and trailers;
    `body_limit` bounds the body, `MAX_FIELDS` and `MAX_CHUNKS` how many there are. `rest` is what came after a request:
    the next one, to be fed again, or the first frames of a WebSocket. `interim` is to be written while the body is
    awaited (Expect: 100-continue). `more`: of much that has come not all was looked at; feed it nothing to go on.
    """

    __slots__ = (
        "_body",
        "_body_limit",
        "_chunks_left",
        "_discards",
        "_failed",
        "_fields",
        "_header_limit",
        "_lexed",
        "_lexer",
        "_pending",
        "_request",
        "_spare",
        "_stage",
        "_taken",
        "_trailers_left",
        "_wanted",
        "interim",
        "more",
        "rest",
    )

    def __init__(self, header_limit: int, body_limit: int) -> None:
        self._header_limit = header_limit
        self._body_limit = body_limit
        self._pending = bytearray()
        self._failed: Refusal | None = None
        self.rest = b""
        self._reset()

    def _reset(self) -> None:
        self._stage = _HEAD
        self._fields: _Fields | None = None
        self._lexer: httptools.HttpRequestParser | None = None
        self._lexed = 0
        self._request: Request | None = None
        self._wanted = 0
        self._taken = 0
        self._discards = False
        self._chunks_left = MAX_CHUNKS
        self._trailers_left = MAX_FIELDS
        self._spare = self._header_limit
        self._body = bytearray()
        self.interim = b""
        self.more = False

    @property
    def request(self) -> Request | None:
        """The request whose head is whole and whose body is awaited, or was refused: what can be said of it."""
        return self._request

    @property
    def started(self) -> bool:
        """Whether part of a request has come: a timeout is answered, where an idle connection just ends."""
        return self._request is not None or bool(self._pending)

    @property
    def held(self) -> int:
        """Bytes that are kept until the request is whole, or its turn has come."""
        return len(self._pending) + len(self._body) + len(self.rest)

    def discard_body(self) -> None:
        """Read past the body that is awaited: nobody wants it."""
        self._discards = True
        self._body.clear()

    def feed(self, data: bytes) -> Request | Refusal | None:
        """Take bytes. A request when one is whole, a refusal (for good) when it is wrong, else None: more is needed."""
        if self._failed is not None:
            return self._failed
        self._pending += data
        self.rest = self.interim = b""
        self.more = False
        outcome: Request | Refusal | None = self._head() if self._stage == _HEAD else None
        if outcome is None and self._request is not None:
            outcome = self._content(self._request)
        if outcome is None:
            return None
        rest, request = bytes(self._pending), self._request
        self._pending.clear()
        self._reset()
        if isinstance(outcome, Refusal):
            self._failed, self._request = outcome, request
        else:
            self.rest = rest
        return outcome

    def _head(self) -> Refusal | None:
        """Give llhttp what is new, up to the empty line and no further, so that what follows the head stays known."""
        pending, limit = self._pending, self._header_limit
        if self._lexer is None or self._fields is None:
            self._fields = _Fields()
            self._lexer = httptools.HttpRequestParser(self._fields)
        lexer, fields = self._lexer, self._fields
        while not fields.complete:
            empty_line = pending.find(b"\r\n\r\n", max(0, self._lexed - 3), limit)
            end = empty_line + 4 if empty_line >= 0 else min(len(pending), limit)
            try:
                lexer.feed_data(bytes(pending[self._lexed : end]))
            except httptools.HttpParserUpgrade:
                pass  # llhttp stops at any Upgrade and at CONNECT: the head is whole, what it means is decided below
            except httptools.HttpParserError:
                if len(fields.pairs) > MAX_FIELDS:
                    return errors.TOO_MANY_FIELDS
                return errors.BAD_REQUEST if lexer.get_http_version() in ("0.0", "1.0", "1.1") else errors.HTTP_VERSION
            self._lexed = end
            if empty_line < 0:
                break
        if not fields.complete:
            return self._over_limit() if len(pending) >= limit else None
        request = _request(lexer, fields, bytes(pending[: self._lexed]))
        self._lexer = self._fields = None
        if isinstance(request, Refusal):
            return request
        del pending[: self._lexed]
        return self._framing(request)

    def _over_limit(self) -> Refusal:
        """414 when not even the request line fits, else 431."""
        seen = self._pending[: self._header_limit].lstrip(b"\r\n")
        return errors.HEADERS_TOO_LARGE if b"\r\n" in seen else errors.URI_TOO_LONG

    def _framing(self, request: Request) -> Refusal | None:
        """How long the body is (RFC 9112 section 6.3). What could be read in two ways is refused."""
        self._request = request
        headers = request.headers
        host = headers.get("host", "" if request.version == "1.0" else None)
        if host is None or _HOST.fullmatch(host) is None:
            return errors.BAD_REQUEST  # RFC 9112 section 3.2; of several there is ", " between, which no host has
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if coding is not None:
            if length is not None or request.version == "1.0" or coding.lower() != "chunked":
                return errors.BAD_REQUEST
            self._stage = _SIZE
        else:
            self._stage = _LENGTH
            if length is not None:
                if not (length.isascii() and length.isdigit()) or len(length) > 20:
                    return errors.BAD_REQUEST
                self._wanted = int(length)
                if self._wanted > self._body_limit:
                    return errors.CONTENT_TOO_LARGE
        expects = request.version == "1.1" and headers.get("expect", "").lower() == "100-continue"
        if expects and not self._pending and (coding is not None or self._wanted):
            self.interim = CONTINUE  # RFC 9110 section 10.1.1: not when part of the body has come
        return None

    def _content(self, request: Request) -> Request | Refusal | None:
        pending = self._pending
        if self._stage != _LENGTH:
            return self._chunks(request)
        if self._discards:
            past = min(len(pending), self._wanted)
            self._wanted -= past
            del pending[:past]
            return None if self._wanted else request
        if len(pending) < self._wanted:
            return None
        if self._wanted:
            request.body = bytes(pending[: self._wanted])
            del pending[: self._wanted]
        return request

    def _chunks(self, request: Request) -> Request | Refusal | None:
        """The chunked coding (RFC 9112 section 7.1). What was read is cut off once, at the end: never quadratic."""
        pending, pos, stop = self._pending, 0, max(0, self._chunks_left - CHUNKS_AT_ONCE)
        outcome: Request | Refusal | None = None
        while outcome is None:
            if self._stage == _DATA:
                piece = pending[pos : pos + self._wanted]
                if not self._discards:
                    self._body += piece
                pos += len(piece)
                self._wanted -= len(piece)
                if self._wanted:
                    break
                self._stage = _DATA_END
            if self._stage == _DATA_END:
                if len(pending) - pos < 2:
                    break
                if pending[pos : pos + 2] != b"\r\n":
                    return errors.BAD_REQUEST
                self._stage, pos = _SIZE, pos + 2
                if self._chunks_left <= stop:
                    self.more = True
                    break
            end = pending.find(b"\n", pos)
            longest = min(_CHUNK_LINE, max(0, self._spare) + _CHUNK_SIZE_LINE)
            if (end if end >= 0 else len(pending)) - pos > longest:
                return errors.HEADERS_TOO_LARGE
            if end < 0:
                break
            line = bytes(pending[pos : end + 1])
            if not line.endswith(b"\r\n"):
                return errors.BAD_REQUEST
            outcome = self._size(line[:-2]) if self._stage == _SIZE else self._trailer(line[:-2], request)
            pos = end + 1
        del pending[:pos]
        return outcome

    def _size(self, line: bytes) -> Refusal | None:
        match = _CHUNK_SIZE.fullmatch(line)
        if match is None:
            return errors.BAD_REQUEST
        self._spare -= len(match[2])
        self._wanted = int(match[1], 16)
        self._taken += self._wanted
        self._chunks_left -= 1
        if self._taken > self._body_limit:
            return errors.CONTENT_TOO_LARGE
        if self._chunks_left < 0:
            return errors.TOO_MANY_CHUNKS
        self._stage = _DATA if self._wanted else _TRAILERS
        return errors.HEADERS_TOO_LARGE if self._spare < 0 else None

    def _trailer(self, line: bytes, request: Request) -> Request | Refusal | None:
        """Trailers are read past and not merged (RFC 9110 section 6.5.1)."""
        if not line:
            request.body = bytes(self._body)
            return request
        if _TRAILER.fullmatch(line) is None:
            return errors.BAD_REQUEST
        self._spare -= len(line) + 2
        self._trailers_left -= 1
        if self._trailers_left < 0:
            return errors.TOO_MANY_FIELDS
        return errors.HEADERS_TOO_LARGE if self._spare < 0 else None


def _request(lexer: httptools.HttpRequestParser, fields: _Fields, head: bytes) -> Request | Refusal:
    version = lexer.get_http_version()
    line, _, _ = head.lstrip(b"\r\n").partition(b"\r\n")
    if version not in ("1.0", "1.1") or b" HTTP/" not in line:
        return errors.HTTP_VERSION  # llhttp also reads HTTP/0.9, HTTP/2.0, RTSP and ICE
    headers: dict[str, str] = {}
    for name, value in fields.pairs:
        key, text = name.decode("latin-1").lower(), value.strip(b" \t").decode("latin-1")
        if key not in headers:
            headers[key] = text
        else:
            headers[key] += ("; " if key == "cookie" else ", ") + text
    method, target = lexer.get_method().decode("latin-1"), fields.url.decode("latin-1")
    origin = _origin_form(method, target)
    if isinstance(origin, Refusal):
        return origin
    path, query = origin
    if query.count("&") >= MAX_PARAMETERS or headers.get("cookie", "").count(";") >= MAX_COOKIES:
        return errors.TOO_MANY_FIELDS
    options = _tokens(headers.get("connection", ""))
    return Request(
        method=method,
        target=target,
        path=path,
        query=query,
        version=version,
        headers=headers,
        keep_alive="close" not in options and (version == "1.1" or "keep-alive" in options),
        upgrade=(method, version) == ("GET", "1.1")
        and "upgrade" in options
        and "websocket" in _tokens(headers.get("upgrade", "")),
    )


def _tokens(value: str) -> list[str]:
    return [token.strip(" \t") for token in value.lower().split(",")]


def _origin_form(method: str, target: str) -> tuple[str, str] | Refusal:
    """Path and query of any form of target that a server must take (RFC 9112 section 3.2)."""
    if method == "CONNECT":
        return errors.METHOD_NOT_ALLOWED  # authority-form, and this is no proxy
    if target == "*":
        return ("*", "") if method == "OPTIONS" else errors.BAD_REQUEST
    raw = origin_form(target)
    if raw is None:
        return errors.BAD_REQUEST
    if method == "OPTIONS" and raw in ("", "/"):
        # RFC 9112 section 3.2.4: what a proxy would have made of no path. HAProxy's `option httpchk` asks for `/`.
        return "*", ""
    path, _, query = raw.partition("?")
    if "%" in path:
        path = unquote(path)
    if path == "/api" or path.startswith("/api/"):
        path = path[4:]
    return path or "/", query


def origin_form(target: str) -> str | None:
    """`target` without the scheme and authority that it may begin with; None when it has neither these nor a path."""
    if target.startswith("/"):
        return target
    scheme, separator, rest = target.partition("://")
    if not separator or scheme.lower() not in ("http", "https", "ws", "wss"):
        return None
    authority = re.split(r"[/?]", rest, maxsplit=1)[0]
    return rest[len(authority) :] if authority else None  # RFC 9110 section 4.2.1: there is always a host


def accepts_gzip(field: str) -> bool:
    """Whether an answer may be sent gzipped, and not rather as it is: Accept-Encoding (RFC 9110 section 12.5.3).

    A weight that is none counts as 0: not to compress is never wrong. Of a coding that is named twice the first counts.
    """
    weights: dict[str, float] = {}
    for member in field.lower().split(","):
        coding, _, parameter = member.partition(";")
        name, _, value = parameter.partition("=")
        weight = 1.0 if not parameter.strip(" \t") else 0.0
        if name.strip(" \t") == "q" and _WEIGHT.fullmatch(value.strip(" \t")):
            weight = float(value)
        weights.setdefault(coding.strip(" \t"), weight)
    gzip = weights.get("gzip", weights.get("x-gzip", weights.get("*")))
    if gzip is None:
        return weights.get("identity") == 0  # as it is it is not wanted
    return gzip > 0 and gzip >= weights.get("identity", 0.0)


def check_upgrade(request: Request) -> str | Refusal:
    """The value of Sec-WebSocket-Accept, or why this is no opening handshake (RFC 6455 sections 4.2.1 and 4.2.2)."""
    headers = request.headers
    if request.method != "GET":
        return errors.METHOD_NOT_ALLOWED
    if request.version != "1.1":
        return errors.HTTP_VERSION
    if not request.upgrade or headers.get("sec-websocket-version") != "13":
        return errors.UPGRADE_REQUIRED
    key = headers.get("sec-websocket-key", "")
    if _KEY.fullmatch(key) is None:
        return errors.BAD_REQUEST
    digest = hashlib.sha1(key.encode("ascii") + _GUID, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def upgrade_response(accept: str, subprotocol: str | None) -> bytes:
    """101, after which both sides speak WebSocket."""
    chosen = f"Sec-WebSocket-Protocol: {subprotocol}\r\n" if subprotocol else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{chosen}\r\n"
    ).encode("latin-1")


def response(
    status: int,
    body: bytes = b"",
    content_type: str = "application/json",
    headers: tuple[tuple[str, str], ...] = (),
    keep_alive: bool = True,
    head: bool = False,
    date: str = "",
) -> bytes:
    """An answer, given at `date` (RFC 9110 section 5.6.7; empty without a clock, section 6.6.1).

    `head` leaves the body out and keeps its length (section 9.3.2).
    """
    lines = [_START[status]]
    if date:
        lines.append(f"Date: {date}\r\n")
    if status not in (204, 304):
        if body:
            lines.append(f"Content-Type: {content_type}\r\n")
        lines.append(f"Content-Length: {len(body)}\r\n")
    options = "keep-alive" if keep_alive else "close"
    if status == 426:
        headers, options = headers + UPGRADE_HEADERS, f"{options}, Upgrade"
    for name, value in headers:
        lines.append(f"{name}: {_CONTROL.sub(' ', value)}\r\n")  # a value may repeat what a peer sent
    lines.append(f"Connection: {options}\r\n\r\n")
    start = "".join(lines).encode("latin-1", "replace")
    return start if head or status in (204, 304) else start + body


def redact(target: str) -> str:
    """`target` for a log line: no secret in it, no control character, and not long."""
    path, question, query = target.partition("?")
    path = re.sub(r"//[^/@]*@", "//***@", path, count=1)
    parts = []
    for part in query.split("&"):
        name, equals, value = (unquote_plus(piece) for piece in part.partition("="))
        if _JWT.search(name):
            part = "***"
        elif _SECRET_NAME.search(name) or _JWT.search(value):
            part = f"{name}{equals}***"
        parts.append(part)
    text = _JWT.sub("***", path) + question + "&".join(parts)
    shown = text if text.isprintable() else "".join(map(_escape, text))
    return shown if len(shown) <= _LOGGED else shown[:_LOGGED] + "..."


def _escape(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
