"""What a frame costs: parse, unmask and encode 1,000 of them. 280 bytes is a heartbeat, 90 an ack."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.wire.frames import BINARY, TEXT, apply_mask, encode_frame, encode_masked, parse_frame

ROUNDS = range(1000)
MASK = b"\x37\xfa\x21\x3d"
LIMIT = 65536


@pytest.mark.parametrize("size", [90, 280, 4096, 65536])
def test_parse_frame_1000(benchmark: BenchmarkFixture, size: int) -> None:
    data = encode_masked(TEXT, b"x" * size, MASK)

    def parse() -> None:
        for _ in ROUNDS:
            parse_frame(data, 0, LIMIT)

    benchmark(parse)
    assert parse_frame(data, 0, LIMIT) == (TEXT, True, b"x" * size, len(data))


def test_parse_frame_with_all_checks_1000(benchmark: BenchmarkFixture) -> None:
    """Not text, so not by the short way."""
    data = encode_masked(BINARY, b"x" * 280, MASK)

    def parse() -> None:
        for _ in ROUNDS:
            parse_frame(data, 0, LIMIT)

    benchmark(parse)


def test_parse_frame_of_a_server_1000(benchmark: BenchmarkFixture) -> None:
    data = encode_frame(TEXT, b"x" * 280)

    def parse() -> None:
        for _ in ROUNDS:
            parse_frame(data, 0, LIMIT, False)

    benchmark(parse)


def test_apply_mask_1000(benchmark: BenchmarkFixture) -> None:
    payload = b"x" * 280

    def mask() -> None:
        for _ in ROUNDS:
            apply_mask(payload, MASK)

    benchmark(mask)


@pytest.mark.parametrize("size", [90, 280, 65536])
def test_encode_frame_1000(benchmark: BenchmarkFixture, size: int) -> None:
    payload = b"x" * size

    def encode() -> None:
        for _ in ROUNDS:
            encode_frame(TEXT, payload)

    benchmark(encode)


def test_encode_masked_1000(benchmark: BenchmarkFixture) -> None:
    payload = b"x" * 280

    def encode() -> None:
        for _ in ROUNDS:
            encode_masked(TEXT, payload, MASK)

    benchmark(encode)
