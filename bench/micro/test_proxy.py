"""What a connection behind a proxy pays for its client's address, of a budget of 120 us."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.wire.proxy import Proxied, client_address, networks, parse_proxy

LINE = b"PROXY TCP4 192.0.2.7 192.0.2.1 36428 3001\r\n"
TRUSTED = networks(("10.0.0.0/8", "127.0.0.0/8"))


def test_a_header_of_version_1(benchmark: BenchmarkFixture) -> None:
    assert isinstance(benchmark(parse_proxy, LINE), Proxied)


def test_a_list_of_addresses(benchmark: BenchmarkFixture) -> None:
    headers = {"x-forwarded-for": "203.0.113.9, 192.0.2.7, 10.0.0.3"}
    assert benchmark(client_address, "10.0.0.1", headers, TRUSTED) == "192.0.2.7"
