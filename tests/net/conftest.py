"""What talks to Redis is tested on both loops: the service runs on uvloop, whose transports behave differently."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
import redis
import uvloop

from tests.net.proxy import Proxy
from vizora_rt.net import dashboards
from vizora_rt.net.embedded import Embedded
from vizora_rt.net.link import Address

BOTH = ("test_link.py", "test_store.py")
UVLOOP = (
    "test_admission.py",
    "test_bus.py",
    "test_changes.py",
    "test_cluster.py",
    "test_connection.py",
    "test_dashboards.py",
    "test_dispatch.py",
    "test_gateway.py",
    "test_greeting.py",
    "test_http.py",
    "test_presence.py",
    "test_sessions.py",
    "test_stores.py",
    "test_sweeper.py",
    "test_tenants.py",
)
"""What faces clients: both loops would double the time, and clients only ever meet the one."""


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name in BOTH:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    if item.path.name in UVLOOP:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


@pytest.fixture
async def proxy(valkey: Embedded) -> AsyncIterator[Proxy]:
    """In front of the store of the run; `open` gives its URL."""
    proxy = Proxy(Address.parse(valkey.url).path)
    yield proxy
    await proxy.close()


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Whatever a test starts, ended in the reverse order."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def client(redis_url: str) -> Any:
    """The client named `redis`, to read and write in the place of other services."""
    return redis.Redis.from_url(redis_url, decode_responses=True)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of changes follow each other quickly."""
    monkeypatch.setattr(dashboards, "ROUND", 0.1)
    monkeypatch.setattr(dashboards, "FIRST", 0.01)
