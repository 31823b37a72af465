"""What talks to Redis is tested on both loops: the service runs on uvloop, whose transports behave differently."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop

from tests.net.peers import Json, Node, Wire, until
from tests.net.proxy import Proxy
from tests.net.workers import Books, Two
from vizora_rt.net.gateway import dashboards
from vizora_rt.net.redis.address import Address
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer

BOTH = ("redis/test_connection.py", "redis/test_client.py")
UVLOOP = (
    "access/test_admission.py",
    "redis/test_pubsub.py",
    "presence/test_publisher.py",
    "presence/test_claim.py",
    "redis/test_cluster.py",
    "server/test_websocket.py",
    "gateway/test_dashboards.py",
    "gateway/test_dispatcher.py",
    "gateway/test_gateway.py",
    "server/test_socketio.py",
    "server/test_http.py",
    "api/test_operations.py",
    "presence/test_ownership.py",
    "presence/test_lifecycle.py",
    "access/test_session_check.py",
    "presence/test_status_writer.py",
    "redis/test_sentinel.py",
    "presence/test_reaper.py",
    "gateway/test_suspension.py",
)
"""What faces clients: both loops would double the time, and clients only ever meet the one."""


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    path = item.path.relative_to(Path(__file__).parent).as_posix()
    if path in BOTH:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    if path in UVLOOP:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def proxy(valkey: EmbeddedServer) -> AsyncIterator[Proxy]:
    """In front of the store of the run; `open` gives its URL."""
    proxy = Proxy(Address.parse(valkey.url).path)
    yield proxy
    await proxy.close()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Whatever a test starts, ended in the reverse order."""
    async with AsyncExitStack() as stack:
        yield stack


Open = Callable[..., Any]

STATUS = {"workers": [{"state": "ready"}]}


@pytest.fixture
async def opened(redis_url: str) -> AsyncIterator[Open]:
    """Starts workers, given the configuration."""
    nodes: list[Node] = []

    async def start(url: str = redis_url, **sections: Json) -> Node:
        nodes.append(await Node(url, 0, **{"server": {"workers": 1}, **sections}).start())
        nodes[-1].answers = {"metrics": b"# EOF\n", "status": json.dumps(STATUS).encode()}
        return nodes[-1]

    yield start
    for node in nodes:
        await node.stop()
        await until(lambda node=node: node.http.exchanges == 0)  # type: ignore[misc]


@pytest.fixture
async def node(opened: Open) -> Node:
    started: Node = await opened()
    return started


@pytest.fixture
async def wire(node: Node) -> AsyncIterator[Wire]:
    opened = await Wire.open(node.port)
    yield opened
    await opened.close()


@pytest.fixture
def two(stack: AsyncExitStack, redis_url: str) -> Two:
    return Two(stack, redis_url)


@pytest.fixture
async def slow(stack: AsyncExitStack, tmp_path: Path) -> tuple[Node, EmbeddedServer, Books]:
    """A worker whose queue to Redis is short, and a Redis of its own that a test may stop."""
    store = valkey_server.start(tmp_path)
    stack.callback(store.stop)
    books = Books(store.url)
    stack.callback(books.client.close)
    worker = await Node(store.url, redis={"pending_commands": 4}).start()
    stack.push_async_callback(worker.stop)
    return worker, store, books


@pytest.fixture
def books(redis_url: str) -> Iterator[Books]:
    books = Books(redis_url)
    yield books
    books.client.close()


@pytest.fixture
def client(redis_url: str) -> Any:
    """The client named `redis`, to read and write in the place of other services."""
    return redis.Redis.from_url(redis_url, decode_responses=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of changes follow each other quickly."""
    monkeypatch.setattr(dashboards, "ROUND", 0.1)
    monkeypatch.setattr(dashboards, "FIRST", 0.01)
