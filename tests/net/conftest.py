"""What talks to Redis is tested on both loops: the service runs on uvloop, whose transports behave differently."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

BOTH = ("test_link.py", "test_store.py")


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.path.name in BOTH:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
