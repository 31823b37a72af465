"""What a heartbeat pays for the dialect: its packet read, its ack written."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.wire.socketio import ConnectPacket, decode, decode_connect, encode_success

BEAT = '427["heartbeat",{"metrics":{"cpuUsage":41.5,"memoryUsage":60},"currentContent":"c-8213","uptime":86400}]'


def test_decode(benchmark: BenchmarkFixture) -> None:
    assert benchmark(decode, BEAT)[:2] == ("heartbeat", 7)


def test_encode_success(benchmark: BenchmarkFixture) -> None:
    assert benchmark(encode_success, 7, b'{"commands":[]}', b"2026-11-23T04:00:00.000Z").startswith(b"437[")


def test_decode_hello(benchmark: BenchmarkFixture) -> None:
    assert isinstance(benchmark(decode_connect, '40{"token":"' + "x" * 300 + '"}'), ConnectPacket)
