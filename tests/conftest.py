"""A real store for the tests that need one."""

from collections.abc import Iterator

import pytest

from vizora_rt.net import embedded
from vizora_rt.net.embedded import Embedded
from vizora_rt.net.link import Address, ask
from vizora_rt.wire.resp import pack


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """A Valkey for the whole run. Whoever kills or stops one starts one of their own."""
    store = embedded.start(tmp_path_factory.mktemp("valkey"))
    yield store
    store.stop()


@pytest.fixture
def redis_url(valkey: Embedded) -> str:
    """The URL of a store with nothing in it."""
    assert ask(Address.parse(valkey.url), [pack("FLUSHALL"), pack("SCRIPT", "FLUSH")], 10.0) == [b"OK", b"OK"]
    return valkey.url
