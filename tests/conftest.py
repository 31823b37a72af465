"""A real store for the tests that need one; and SIGINT as a terminal gives it to the processes that tests start."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.net.valkeys import Cluster, Guarded, Valkeys
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.blocking import ask
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer
from vizora_rt.wire.resp import pack

# How long an example takes says how busy the machine is, nothing of the code. In a fresh clone the first one also waits
# until hypothesis has made its tables of Unicode.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# A shell that runs the tests in the background has them ignore SIGINT, which is inherited (execve(2)): then
# no test can send Ctrl-C to a process of its own.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A Valkey for the whole run. Whoever kills or stops one starts one of their own."""
    store = valkey_server.start(tmp_path_factory.mktemp("valkey"))
    yield store
    store.stop()


@pytest.fixture
def redis_url(valkey: EmbeddedServer) -> str:
    """The URL of a store with nothing in it."""
    assert ask(Address.parse(valkey.url), [pack("FLUSHALL"), pack("SCRIPT", "FLUSH")], 10.0) == [b"OK", b"OK"]
    return valkey.url


@pytest.fixture(scope="session")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three masters for the whole run. Whoever kills one starts a cluster of their own."""
    with Valkeys(tmp_path_factory.mktemp("cluster")) as valkeys:
        yield valkeys.cluster()


@pytest.fixture
def cluster(masters: Cluster) -> Cluster:
    """The same with nothing in it, and the slots where they were at first."""
    masters.settle()
    return masters


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A master under a Sentinel, for the whole run. Whoever wants a failover starts their own."""
    with Valkeys(tmp_path_factory.mktemp("sentinel")) as valkeys:
        yield valkeys.guarded(sentinels=1)
