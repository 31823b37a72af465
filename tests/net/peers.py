"""Both ends of the client port for tests: `websockets` clients, raw sockets, and a gateway in this process.

Tokens are signed by PyJWT and Redis is asked through `redis`, so that no code of the package vouches for itself. A
`Node` has the parts of a worker on the test's own loop: many configurations for little time. What needs processes
takes tests/service_process.py.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import jwt
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Origin, Subprotocol

from vizora_rt import config
from vizora_rt.net.api.operations import add_health_routes
from vizora_rt.net.gateway.gateway import Gateway
from vizora_rt.net.redis.sentinel import open_client
from vizora_rt.net.server.http import HTTPServer
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.frames import encode_masked, parse_close, parse_frame

PATIENCE = 15.0
LIFETIME_SECONDS = 6 * 3600
"""Of a token: some are made when a test file is imported, and the last test may be run half an hour later."""
TICK = 0.02
"""Of a wheel, so that tests with short limits take little more than these."""
DEVICE_SECRET = "Lh2vq7XrTz0mWc4bNf9sKd6gPy1jQe8aRu5xGo3i"
USER_SECRET = "b7Hk3Tn9Qw1Zs5Xf2Jd8Vc6Ml0Rp4Gy7Ua1Ei9Oo"
SECRETS = {"DEVICE_JWT_SECRET": DEVICE_SECRET, "JWT_SECRET": USER_SECRET}
"""For the environment of a service."""
KEY = "dGhlIHNhbXBsZSBub25jZQ=="

Json = dict[str, Any]
T = TypeVar("T")


def device_token(device: str, organization: str = "acme", secret: str = DEVICE_SECRET, **ownership_store: Any) -> str:
    expires = int(time.time()) + LIFETIME_SECONDS
    body = {"sub": device, "organizationId": organization, "type": "device", "exp": expires, **ownership_store}
    return jwt.encode({name: value for name, value in body.items() if value is not None}, secret, "HS256")


def user_token(user: str = "ann", organization: str = "acme", secret: str = USER_SECRET, **ownership_store: Any) -> str:
    now = int(time.time())
    body = {
        "sub": user,
        "organizationId": organization,
        "type": "user",
        "iat": now,
        "exp": now + LIFETIME_SECONDS,
        **ownership_store,
    }
    return jwt.encode({name: value for name, value in body.items() if value is not None}, secret, "HS256")


async def until(condition: Callable[[], T]) -> T:
    """Ask again and again for what nothing announces; the first truthy answer."""
    async with asyncio.timeout(PATIENCE):
        while not (answer := condition()):
            await asyncio.sleep(0.005)
        return answer


async def settles(value: Callable[[], T]) -> T:
    """The value, when it has not changed for a tenth of a second: what was going on has come to a halt."""
    last, same = value(), 0
    async with asyncio.timeout(PATIENCE):
        while same < 20:
            await asyncio.sleep(0.005)
            now = value()
            last, same = now, same + 1 if now == last else 0
    return last


class Client:
    """A connection of the `websockets` library."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def receive(self) -> Json:
        """The next message, whatever it is."""
        async with asyncio.timeout(PATIENCE):
            message: Json = json.loads(await self.connection.recv())
            return message

    async def next(self, event: str) -> Any:
        """The data of the next message, which must be this event."""
        message = await self.receive()
        assert message["event"] == event, message
        return message["data"]

    async def send(self, event: str, data: Any = None, ack_id: int | None = None) -> None:
        await self.connection.send(json.dumps({"event": event, "id": ack_id, "data": data}))

    async def ask(self, event: str, data: Any = None, ack_id: int = 7) -> Json:
        """The body of the ack."""
        await self.send(event, data, ack_id)
        message = await self.receive()
        assert (message["event"], message["id"]) == ("ack", ack_id), message
        body: Json = message["data"]
        return body

    async def heartbeat(self, **data: Any) -> Json:
        return await self.ask("heartbeat", data)

    async def ended(self) -> int | None:
        """The close code, when the connection has ended; messages before it are read past."""
        async with asyncio.timeout(PATIENCE):
            try:
                while True:
                    await self.connection.recv()
            except ConnectionClosed:
                pass
        return self.connection.close_code

    async def leave(self) -> None:
        await self.connection.close()


async def dial(
    port: int,
    token: str = "",
    *,
    query: str = "",
    subprotocols: list[str] | None = None,
    headers: Mapping[str, str] = {},
    origin: str | None = None,
) -> Client:
    """Connect; `token` goes into the Authorization header. Raises InvalidStatus when refused."""
    fields = {**({"Authorization": f"Bearer {token}"} if token else {}), **headers}
    connection = await connect(
        f"ws://127.0.0.1:{port}/ws{query}",
        additional_headers=fields,
        subprotocols=[Subprotocol(each) for each in subprotocols] if subprotocols else None,
        origin=Origin(origin) if origin else None,
        compression=None,
        ping_interval=None,
        close_timeout=PATIENCE,
        proxy=None,
    )
    return Client(connection)


async def dial_device(port: int, device: str, **ownership_store: Any) -> Client:
    """A device that has read its config."""
    client = await dial(port, device_token(device, **ownership_store))
    await client.next("config")
    return client


async def refusal(port: int, token: str = "", **how: Any) -> tuple[int, Json]:
    """Status and body of a handshake that is refused."""
    try:
        await dial(port, token, **how)
    except InvalidStatus as error:
        body: Json = json.loads(error.response.body or b"null")
        if error.response.status_code in (429, 503):
            assert int(error.response.headers["Retry-After"]) > 0
        assert body.keys() == {"code", "message", "retryable"}
        return error.response.status_code, body
    raise AssertionError("it was let in")


def upgrade(token: str, path: str = "/ws", **fields: str) -> bytes:
    """An opening handshake, as bytes. Fields replace those of the same name; an empty one is left out."""
    headers = {
        "Host": "gateway.test",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        "Authorization": f"Bearer {token}",
        **{name.replace("_", "-"): value for name, value in fields.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value)
    return f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode()


def request(path: str, method: str = "GET", body: str = "", **fields: str) -> bytes:
    headers = {"Host": "gateway.test", **{name.replace("_", "-"): value for name, value in fields.items()}}
    if body:
        headers["Content-Length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n{body}".encode()


def frame(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    return encode_masked(opcode, payload, b"mask", fin)


def text(event: str, data: Any = None, ack_id: int | None = None) -> bytes:
    """A message as a frame."""
    return frame(0x1, json.dumps({"event": event, "id": ack_id, "data": data}).encode())


class Wire:
    """A TCP connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._held = b""

    @classmethod
    async def open(cls, port: int, receive_buffer: int = 0) -> Self:
        """`receive_buffer`: bytes that the kernel takes for a reader that does not read."""
        stream = socket.socket()
        if receive_buffer:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        stream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stream, ("127.0.0.1", port))
        return cls(*await asyncio.open_connection(sock=stream, limit=1024 if receive_buffer else 65536))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(PATIENCE):
            await self.writer.drain()

    async def response(self, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Status, header fields and body of the next HTTP response; `head`: it answers a HEAD."""
        async with asyncio.timeout(PATIENCE):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = (line.split(": ", 1) for line in lines[1:] if line)
            fields = {name.lower(): value for name, value in pairs}
            size = 0 if head else int(fields.get("content-length", 0))
            return int(lines[0].split()[1]), fields, await self.reader.readexactly(size)

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next WebSocket frame."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = parse_frame(self._held, 0, 0, masked=False)
                if isinstance(found, tuple):
                    self._held = self._held[found[3] :]
                    return found[0], found[2]
                assert found is None
                data = await self.reader.read(65536)
                assert data, "the connection ended"
                self._held += data

    async def message(self) -> Json:
        opcode, payload = await self.frame()
        assert opcode == 0x1
        message: Json = json.loads(payload)
        return message

    async def close_code(self) -> int:
        """The code of the close frame, which must come next."""
        opcode, payload = await self.frame()
        assert opcode == 0x8, payload
        parsed = parse_close(payload)
        assert isinstance(parsed, tuple)
        return parsed[0]

    async def ends(self) -> bytes:
        """All that comes until the other side ends."""
        async with asyncio.timeout(PATIENCE):
            return self._held + await self.reader.read(-1)

    async def close(self) -> None:
        self.writer.transport.abort()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass


class Node:
    """The parts of one worker, in this process."""

    def __init__(self, url: str, index: int = 0, **sections: Json) -> None:
        environ = {**SECRETS, "VIZORA_ENV": "test", "HOME": "/nonexistent"}
        redis = {"reconnect_max_seconds": 0.1, **sections.pop("redis", {})}
        self.config = config.load(None, environ, {"redis": redis, **sections})
        self.metrics = Metrics(self.config.metrics)
        self.wheel = Wheel(asyncio.get_running_loop().time, TICK)
        self.store = open_client(self.config.redis, url, self.metrics, name=f"test-{index}")
        self.gateway = Gateway(self.config, index, "node", self.metrics, self.wheel, self.store)
        self.http = HTTPServer(self.config, self.gateway, self.metrics, self.wheel)
        add_health_routes(self.http, self.config, self.gateway, self.store, self._ask)
        self.answers: dict[str, bytes] = {}
        self.port = 0

    def _ask(
        self, what: str, openmetrics: bool, answered: Callable[[bytes | None], None], compress: bool = False
    ) -> None:
        """There is no supervisor; tests say what it answers."""
        asyncio.get_running_loop().call_soon(answered, self.answers.get(what))

    async def start(self, *, store: bool = True) -> Self:
        """With or without a connection to the store."""
        loop = asyncio.get_running_loop()
        self.wheel.start()
        self.gateway.pubsub.start()
        self._listening = await loop.create_server(self.http.exchange, "127.0.0.1", 0)
        self.port = self._listening.sockets[0].getsockname()[1]
        if store:
            self.store.start()
            await until(lambda: self.store.up)
        return self

    async def stop(self) -> None:
        self._listening.close()
        await self.gateway.drain(0)
        await until(lambda: not self.gateway.connections)
        await self.gateway.pubsub.close()
        await self.store.close(1.0)
        self.wheel.stop()

    def counter(self, name: str, *labels: str) -> int:
        return self.metrics.counter(name, *labels).value

    def gauge(self, name: str, *labels: str) -> int:
        self.metrics.snapshot()
        return self.metrics.gauge(name, *labels).value


@asynccontextmanager
async def running(url: str, index: int = 0, **sections: Json) -> AsyncIterator[Node]:
    worker = await Node(url, index, **sections).start()
    try:
        yield worker
    finally:
        await worker.stop()


def answered(node: Node, method: str, path: str, status: int) -> int:
    """How many requests were answered so; each has a duration."""
    return node.counter("http_requests_total", method, path, str(status))
