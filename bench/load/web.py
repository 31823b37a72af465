"""HTTP as load: keep-alive connections with one request at a time each, and a single call for who only asks.

The parser is the one that the service uses on the other side; what it makes of an answer is all that is looked at.
"""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Final, cast

from httptools import HttpResponseParser

from vizora_rt.client.websocket import Endpoint

PATIENCE: Final = 60.0
KEY_HEADER: Final = "x-internal-api-key"

OnAnswer = Callable[[int, bytes], None]
"""Is told status and body; status 0 when the connection ended before there was one."""


class Connection(asyncio.Protocol):
    """One request at a time. After its end it opens no other: `open` says whether it can be used."""

    def __init__(self, endpoint: Endpoint, key: str = "") -> None:
        self._endpoint = endpoint
        fields = f"{KEY_HEADER}: {key}\r\n" if key else ""
        self._head = f"Host: {endpoint.authority}\r\n{fields}"
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._body: list[bytes] = []
        self._on_answer: OnAnswer | None = None

    @property
    def open(self) -> bool:
        return self._transport is not None

    async def connect(self) -> None:
        """Raises OSError."""
        host, port, _, _, tls = self._endpoint
        await asyncio.get_running_loop().create_connection(lambda: self, host, port, ssl=tls)

    def ask(self, method: str, path: str, body: bytes | None, on_answer: OnAnswer) -> None:
        assert self._on_answer is None, "one request at a time"
        if self._transport is None:
            on_answer(0, b"")
            return
        self._on_answer = on_answer
        fields = "" if body is None else f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self._transport.write(f"{method} {path} HTTP/1.1\r\n{self._head}{fields}\r\n".encode() + (body or b""))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # What asyncio and the parser tell.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._answer(0)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        self._answer(self._parser.get_status_code())

    def _answer(self, status: int) -> None:
        body, self._body = b"".join(self._body), []
        on_answer, self._on_answer = self._on_answer, None
        if on_answer is not None:
            on_answer(status, body)


async def ask(connection: Connection, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """One request over a connection that is open. Raises ConnectionError, TimeoutError."""
    answered: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def resolve(status: int, text: bytes) -> None:
        if not answered.done():
            answered.set_result((status, text))

    connection.ask(method, path, None if body is None else json.dumps(body).encode(), resolve)
    async with asyncio.timeout(PATIENCE):
        status, text = await answered
    if not status:
        raise ConnectionError(f"{method} {path}: the connection ended without an answer")
    return status, text


async def ask_json(connection: Connection, path: str) -> dict[str, Any]:
    """The object that a GET answers; empty when it answers something else."""
    try:
        found = json.loads((await ask(connection, "GET", path))[1])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def call(endpoint: Endpoint, key: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """One request over a connection of its own: status and the JSON of the answer. Raises OSError."""
    connection = Connection(endpoint, key)
    await connection.connect()
    try:
        status, text = await ask(connection, method, path, body)
    finally:
        connection.close()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text
