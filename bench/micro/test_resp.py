"""What a command and its reply cost in bytes in and out: the share of a heartbeat that is RESP."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.wire.resp import Replies, pack, pack_set, slot

KEY = b"vz:{d:device-000001}:status"
# A status as heartbeats write it.
VALUE = (
    b'{"status":"online","since":1795423929000,"lastHeartbeat":1795424929000,"organizationId":"org-1","node":"gw-3001-'
    b'1f2e3d","worker":1,"epoch":1795423929000000,"metrics":{"cpuUsage":12.5,"memoryUsage":48.1},"screenState":"on"}'
)


def test_pack_set(benchmark: BenchmarkFixture) -> None:
    assert benchmark(pack_set, KEY, VALUE, 60).startswith(b"*5\r\n")


def test_pack_the_same(benchmark: BenchmarkFixture) -> None:
    assert benchmark(pack, b"SET", KEY, VALUE, b"EX", 60) == pack_set(KEY, VALUE, 60)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_read_replies(benchmark: BenchmarkFixture, count: int) -> None:
    replies, data = Replies(), b"+OK\r\n" * count
    assert len(benchmark(replies.read, data)) == count


def test_slot(benchmark: BenchmarkFixture) -> None:
    assert 0 <= benchmark(slot, KEY) < 16384
