"""The other two parties of a command, for tests: a backend that calls the control API, and a screen that acks.

async with fleet(redis_url, 2) as (one, other):
    screen = await Screen.dial(other, "lobby")
    answer = await call(one, "POST", "/internal/command", {"deviceId": "lobby", "command": {"type": "reload"}})
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple, Protocol, Self

import redis
from websockets.exceptions import ConnectionClosed

from tests.net.peers import PATIENCE, Client, Json, Node, Wire, device_token, dial
from vizora_rt.net.api.control import Control
from vizora_rt.net.api.control_routes import Routes

API_KEY = "k" * 20


class Backed(Node):
    """A worker with the control API."""

    def __init__(self, url: str, index: int = 0, **sections: Json) -> None:
        auth = {"internal_api_secret": API_KEY, **sections.pop("auth", {})}
        super().__init__(url, index, auth=auth, **sections)
        self.control = Control(self.config.auth.internal_api_secret, self.http, self.store)
        Routes(self.control, self.gateway, self.store)


@asynccontextmanager
async def fleet(url: str, workers: int, **sections: Json) -> AsyncIterator[Sequence[Backed]]:
    """Workers of one node, on the test's loop."""
    async with AsyncExitStack() as stack:
        nodes = []
        for index in range(workers):
            node = Backed(url, index, **sections)
            await node.start()
            stack.push_async_callback(node.stop)
            nodes.append(node)
        yield nodes


class Reachable(Protocol):
    """A gateway, in this process or another."""

    @property
    def port(self) -> int: ...


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]


async def call(
    node: Reachable,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str | None = API_KEY,
    headers: Mapping[str, str] = {},
) -> Answer:
    """Call the control API; `body` goes as JSON unless it is bytes."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Host": "test", "Content-Length": str(len(content)), **headers}
    if key is not None:
        fields["X-Internal-Api-Key"] = key
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    wire = await Wire.open(node.port)
    try:
        await wire.send(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content)
        status, answered, text = await wire.response()
    finally:
        await wire.close()
    is_json = answered.get("content-type") == "application/json"
    return Answer(status, json.loads(text) if is_json else text, answered)


async def command(node: Reachable, device: str, kind: str = "reload", **fields: Any) -> Answer:
    """One command to one device."""
    return await call(node, "POST", "/internal/command", {"deviceId": device, "command": {"type": kind, **fields}})


class Screen:
    """A device that notes every event and acks what wants an ack, unless told otherwise."""

    def __init__(self, client: Client, acks: bool = True) -> None:
        self.client = client
        self.acks = acks
        self.verdict: Json = {"ok": True}
        self.heard: list[Json] = []
        self.code: int | None = None
        self._news = asyncio.Condition()
        self._task = asyncio.create_task(self._run())

    @classmethod
    async def dial(cls, node: Node, device: str, acks: bool = True, **claims: Any) -> Self:
        """Connect, and read until `config`."""
        screen = cls(await dial(node.port, device_token(device, **claims)), acks)
        await screen.event("config")
        return screen

    async def _run(self) -> None:
        try:
            while True:
                message: Json = json.loads(await self.client.connection.recv())
                if self.acks and message["event"] != "ack" and "id" in message:
                    await self.ack(message, self.verdict)
                async with self._news:
                    self.heard.append(message)
                    self._news.notify_all()
        except ConnectionClosed:
            async with self._news:
                self.code = self.client.connection.close_code
                self._news.notify_all()

    async def ack(self, message: Json, data: Any = {"ok": True}) -> None:  # noqa: B006
        await self.client.send("ack", data, message["id"])

    def messages(self, event: str) -> list[Json]:
        return [message for message in self.heard if message["event"] == event]

    async def message(self, event: str, count: int = 1) -> Json:
        """The `count`-th message with this event, now or later."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: len(self.messages(event)) >= count)
        return self.messages(event)[count - 1]

    async def event(self, event: str, count: int = 1) -> Any:
        """The data of the same."""
        return (await self.message(event, count))["data"]

    async def answer(self, event: str, data: Any, ack_id: int) -> Json:
        """Send a message and return the body of its ack."""
        await self.client.send(event, data, ack_id)
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: any(each["id"] == ack_id for each in self.messages("ack")))
        body: Json = next(each for each in self.messages("ack") if each["id"] == ack_id)["data"]
        return body

    async def ended(self) -> int | None:
        """The close code, when the connection has ended."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(lambda: self.code is not None)
        return self.code

    async def leave(self) -> None:
        await self.client.leave()
        await self._task

    def commands(self) -> list[str]:
        """The commandIds that came, in order."""
        return [message["data"]["commandId"] for message in self.messages("command")]


def books(url: str) -> "redis.Redis":
    """Redis, through somebody else's client."""
    return redis.Redis.from_url(url, decode_responses=True)


def entries(client: "redis.Redis") -> list[Json]:
    """What stands in the stream of events."""
    rows: Any = client.xrange("vz:events")
    return [{**fields, "json": json.loads(fields["json"])} for _, fields in rows]
