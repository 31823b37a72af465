"""One WebSocket connection from the client's side: a URL, the opening handshake, messages, and why it ended.

`WebSocket.run()` is the whole of it; players (`client.py`) and load generators stand on this file. What a server sends
never raises: an answer that is no handshake, a refusal and a close frame all become an `CloseInfo`.
"""

import asyncio
import base64
import hashlib
import os
import re
import ssl
import urllib.parse
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, cast

from vizora_rt.errors import CLOSES, NORMAL
from vizora_rt.wire.messages import JSONError, loads
from vizora_rt.wire.session import OPEN, Session

MESSAGE_LIMIT: Final = 16 * 1024 * 1024
"""No playlist comes near it: the HTTP request that brings one to the gateway has 1 MiB."""
HEAD_LIMIT: Final = 16384
BODY_LIMIT: Final = 65536
LONGEST_WAIT: Final = 3600.0
"""Whatever a server or a proxy asks for, a client comes back within the hour."""
RETRY_AFTER: Final = (429, 503)
"""The refusals whose Retry-After is honoured (RFC 9110 section 10.2.3): too many requests, service unavailable."""

PATH: Final = "/ws"
"""The gateway's path for WebSocket, for a URL that names none."""

_VISIBLE: Final = re.compile(r"[!-~]+")


class CloseInfo(NamedTuple):
    """Why a connection ended and what follows: never come back (`final`), in `wait` seconds, or by one's own back-off.

    `code` is the close code, or the HTTP status of a refusal, or 0 when there was neither.
    """

    reason: str
    code: int = 0
    final: bool = False
    wait: float | None = None


class Endpoint(NamedTuple):
    """Where a ws:// or wss:// URL leads."""

    host: str
    port: int
    authority: str
    target: str
    tls: ssl.SSLContext | None


def parse_url(url: str) -> Endpoint:
    """The endpoint of a ws:// or wss:// URL; without a path it is the gateway's own, `/ws`. Raises ValueError."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or not _VISIBLE.fullmatch(url):
        raise ValueError(f"not a ws:// or wss:// URL: {url!r}")
    secure = parts.scheme == "wss"
    return Endpoint(
        host=parts.hostname,
        port=parts.port or (443 if secure else 80),
        authority=parts.netloc.rpartition("@")[2],
        target=urllib.parse.urlunsplit(("", "", PATH if parts.path in ("", "/") else parts.path, parts.query, "")),
        tls=ssl.create_default_context() if secure else None,
    )


def is_token(value: object) -> bool:
    """Whether `value` can be sent as a bearer token: it must not end the header line it stands in."""
    return isinstance(value, str) and _VISIBLE.fullmatch(value) is not None


class Handshake:
    """The opening handshake as a client does it (RFC 6455 section 4.1): `request`, and what to make of the answer."""

    __slots__ = ("_accept", "_received", "request")

    def __init__(self, endpoint: Endpoint, token: str) -> None:
        if not is_token(token):
            raise ValueError("a token is printable ASCII without spaces")
        key = base64.b64encode(os.urandom(16)).decode()
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode(), usedforsecurity=False)
        self._accept = base64.b64encode(digest.digest()).decode()
        self._received = b""
        self.request = (
            f"GET {endpoint.target} HTTP/1.1\r\nHost: {endpoint.authority}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: vizora.v1\r\nAuthorization: Bearer {token}\r\n\r\n"
        ).encode()

    def feed(self, data: bytes) -> bytes | CloseInfo | None:
        """The first bytes of the WebSocket, an ending when there will be none, or None: more is needed."""
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return CloseInfo("HTTP answer too large") if len(head) > HEAD_LIMIT else None
        first, *lines = head.decode("latin-1").split("\r\n")
        status = re.match(r"HTTP/1\.1 ([1-5][0-9]{2})( |$)", first)
        if status is None:
            return CloseInfo("not an HTTP/1.1 server")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if status[1] == "101":
            return body if self._agreed(headers) else CloseInfo("not a WebSocket server", 101)
        if len(body) < (_number(headers.get("content-length", "")) or 0) <= BODY_LIMIT:
            return None
        return _refusal(int(status[1]), body, _number(headers.get("retry-after", "")))

    def _agreed(self, headers: dict[str, str]) -> bool:
        return (
            headers.get("sec-websocket-accept") == self._accept
            and headers.get("upgrade", "").lower() == "websocket"
            and "upgrade" in headers.get("connection", "").lower()
            and headers.get("sec-websocket-protocol", "vizora.v1") == "vizora.v1"
            and "sec-websocket-extensions" not in headers
        )


class Owner(Protocol):
    """Whose socket it is."""

    def connected(self, socket: "WebSocket") -> None: ...
    def received(self, socket: "WebSocket", text: str) -> None: ...
    def disconnected(self, socket: "WebSocket") -> None: ...


class WebSocket(asyncio.Protocol):
    """One connection, from the first SYN to the last FIN. `owner` hears of it between the upgrade and the end."""

    __slots__ = (
        "_connect",
        "_ended",
        "_ending",
        "_endpoint",
        "_goodbye",
        "_handshake",
        "_loop",
        "_owner",
        "_session",
        "_timer",
        "_transport",
        "heard",
        "wait",
    )

    def __init__(
        self, owner: Owner, endpoint: Endpoint, token: str, connect: float = 10.0, goodbye: float = 2.0
    ) -> None:
        """`connect` seconds for TCP and TLS, and again for the upgrade; `goodbye` for the server's end of a close."""
        self._owner = owner
        self._endpoint = endpoint
        self._connect = connect
        self._goodbye = goodbye
        self._loop = asyncio.get_running_loop()
        self._handshake: Handshake | None = Handshake(endpoint, token)
        self._session = Session(MESSAGE_LIMIT, client=True)
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ending: CloseInfo | None = None
        self._ended: asyncio.Future[CloseInfo] = self._loop.create_future()
        self.heard = self._loop.time()
        self.wait: float | None = None

    async def run(self) -> CloseInfo:
        """Connect, live, end; returns when TCP is gone. Cancelled, it says goodbye first."""
        host, port, _, _, tls = self._endpoint
        try:
            async with asyncio.timeout(self._connect):
                await self._loop.create_connection(lambda: self, host, port, ssl=tls)
            # Unlike `await future`, wait() leaves the future alone when it is cancelled.
            await asyncio.wait((self._ended,))
            return self._ended.result()
        except TimeoutError:
            return CloseInfo("connect timeout")
        except OSError as error:
            return CloseInfo(str(error))
        finally:
            if self._transport is not None and not self._ended.done():
                self._leave()
                await asyncio.wait((self._ended,))

    def send(self, payload: bytes) -> None:
        """Send a text message; it is with the kernel, or in the transport's buffer, when this returns."""
        self._session.send(payload)
        self._flush()

    def abort(self, ending: CloseInfo) -> None:
        """End the connection at once and without a close frame: nobody is at its other end."""
        self._ending = ending
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self._handshake is not None
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._arm(self._connect, self.abort, CloseInfo("handshake timeout"))
        self._transport.write(self._handshake.request)

    def data_received(self, data: bytes) -> None:
        self.heard = self._loop.time()
        if self._ending is not None:
            return
        if self._handshake is not None:
            answer = self._handshake.feed(data)
            if answer is None:
                return
            if isinstance(answer, CloseInfo):
                self.abort(answer)
                return
            data, self._handshake = answer, None
            self._disarm()
            self._owner.connected(self)
        for message in self._session.receive(data):
            if isinstance(message, str):
                self._owner.received(self, message)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._ended.set_result(self._ending or self._explain())
        if self._handshake is None:
            self._owner.disconnected(self)

    def _flush(self) -> None:
        """Write what the session has to say. After a close frame, whosever, the server has `goodbye` seconds to go."""
        assert self._transport is not None
        output = self._session.take_output()
        if output:
            self._transport.write(output)
        if self._session.ended:
            self._transport.close()
        if self._session.state != OPEN and self._timer is None:
            self._arm(self._goodbye, self._transport.abort)

    def _leave(self) -> None:
        if self._handshake is None:
            self._session.close(NORMAL)
            self._flush()
        else:
            self.abort(CloseInfo("left"))

    def _explain(self) -> CloseInfo:
        theirs, ours = self._session.close_received, self._session.closed_by
        if theirs is not None:
            reason = next((close.name for close in CLOSES if close.code == theirs), f"close code {theirs}")
            return CloseInfo(reason, theirs, final=4500 <= theirs < 5000, wait=self.wait)
        return CloseInfo("connection lost", 1006, wait=self.wait) if ours is None else CloseInfo(ours.name, ours.code)

    def _arm(self, delay: float, callback: Callable[..., None], *arguments: Any) -> None:
        self._timer = self._loop.call_later(delay, callback, *arguments)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def seconds(milliseconds: object) -> float | None:
    """A duration as the server sends it, or None when it makes no sense."""
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float) or milliseconds < 0:
        return None
    return min(float(milliseconds) / 1000, LONGEST_WAIT)


def _refusal(status: int, body: bytes, retry_after: int | None) -> CloseInfo:
    """An answer other than 101. Only 401 and 403 are final: a proxy's 404 may be gone in a minute."""
    try:
        answer = loads(body)
    except JSONError:
        answer = None
    code = answer.get("code") if isinstance(answer, dict) else None
    reason = code if isinstance(code, str) and re.fullmatch(r"[A-Z_]{1,64}", code) else f"HTTP {status}"
    wait = min(float(retry_after), LONGEST_WAIT) if retry_after is not None and status in RETRY_AFTER else None
    return CloseInfo(reason, status, final=status in (401, 403), wait=wait)


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None
