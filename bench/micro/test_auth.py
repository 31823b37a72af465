"""What a connect pays for its token, of a budget of 120 us."""

import itertools

import msgspec
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.auth import Identity, Verifier, check_origin, mint_device, token_of
from vizora_rt.config import AuthSettings
from vizora_rt.errors import AUTH_INVALID
from vizora_rt.wire.http import Request

NOW = 1_764_000_000
KEYS = AuthSettings(device_jwt_secret="d" * 43, jwt_secret="u" * 43)
TOKEN = mint_device(KEYS, "device-0001", "organization-0001", NOW, 3600)
REQUEST = Request(
    method="GET",
    target="/ws",
    path="/ws",
    query="",
    version="1.1",
    headers={"host": "gate:3001", "authorization": f"Bearer {TOKEN}", "origin": "https://app.example"},
    keep_alive=True,
    upgrade=True,
)


def test_verify_cold(benchmark: BenchmarkFixture) -> None:
    verifier = Verifier(msgspec.structs.replace(KEYS, cache_entries=0))
    assert isinstance(benchmark(verifier.verify, TOKEN, NOW), Identity)


def test_verify_cached(benchmark: BenchmarkFixture) -> None:
    verifier = Verifier(KEYS)
    assert isinstance(benchmark(verifier.verify, TOKEN, NOW), Identity)


def test_verify_when_full(benchmark: BenchmarkFixture) -> None:
    """Each token is a new one and pushes out the oldest."""
    config = msgspec.structs.replace(KEYS, cache_entries=1000)
    verifier = Verifier(config)
    tokens = itertools.cycle([mint_device(config, f"device-{number}", "acme", NOW, 3600) for number in range(2000)])
    assert isinstance(benchmark(lambda: verifier.verify(next(tokens), NOW)), Identity)


@pytest.mark.parametrize("token", [TOKEN[:-4] + "AAAA", "x" * 8192], ids=["wrong signature", "noise"])
def test_refuse(benchmark: BenchmarkFixture, token: str) -> None:
    assert benchmark(Verifier(KEYS).verify, token, NOW) is AUTH_INVALID


def test_find_the_token(benchmark: BenchmarkFixture) -> None:
    assert benchmark(token_of, REQUEST) == (TOKEN, False)


def test_check_origin(benchmark: BenchmarkFixture) -> None:
    assert benchmark(check_origin, REQUEST, ("http://localhost:3000", "https://app.example"), False) is None
