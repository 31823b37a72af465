"""What a session adds to its frames: a read with one message or eight, one cut in two, the reply, a large message."""

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.wire.frames import CONTINUATION, PING, TEXT, encode_masked
from vizora_rt.wire.session import Session

ROUNDS = range(1000)
MASK = b"\x37\xfa\x21\x3d"
LIMIT = 65536
HEARTBEAT = encode_masked(TEXT, b"x" * 280, MASK)


@pytest.mark.parametrize("messages", [1, 8])
def test_receive_1000_reads(benchmark: BenchmarkFixture, messages: int) -> None:
    session, data = Session(LIMIT), HEARTBEAT * messages

    def receive() -> None:
        for _ in ROUNDS:
            session.receive(data)

    benchmark(receive)
    assert session.receive(data) == ["x" * 280] * messages


def test_receive_short_1000(benchmark: BenchmarkFixture) -> None:
    session, data = Session(LIMIT), encode_masked(TEXT, b"x" * 90, MASK)

    def receive() -> None:
        for _ in ROUNDS:
            session.receive(data)

    benchmark(receive)


def test_receive_cut_in_two_1000(benchmark: BenchmarkFixture) -> None:
    """Header and payload in two reads, as some clients write them."""
    session, head, rest = Session(LIMIT), HEARTBEAT[:8], HEARTBEAT[8:]

    def receive() -> None:
        for _ in ROUNDS:
            session.receive(head)
            session.receive(rest)

    benchmark(receive)


def test_receive_two_fragments_1000(benchmark: BenchmarkFixture) -> None:
    session = Session(LIMIT)
    data = encode_masked(TEXT, b"x" * 140, MASK, False) + encode_masked(CONTINUATION, b"x" * 140, MASK)

    def receive() -> None:
        for _ in ROUNDS:
            session.receive(data)

    benchmark(receive)


def test_answer_1000(benchmark: BenchmarkFixture) -> None:
    """Read one message, queue an ack, take the output: all that a session does for a heartbeat."""
    session, ack = Session(LIMIT), b"x" * 90

    def answer() -> None:
        for _ in ROUNDS:
            for _message in session.receive(HEARTBEAT):
                session.send(ack)
            session.take_output()

    benchmark(answer)


def test_answer_pings_1000(benchmark: BenchmarkFixture) -> None:
    session, data = Session(LIMIT), encode_masked(PING, b"12345678", MASK)

    def answer() -> None:
        for _ in ROUNDS:
            session.receive(data)
            session.take_output()

    benchmark(answer)


def test_new_1000(benchmark: BenchmarkFixture) -> None:
    benchmark(lambda: [Session(LIMIT) for _ in ROUNDS])


@pytest.mark.parametrize(("size", "piece"), [(1 << 14, 1), (1 << 20, 1024), (1 << 20, 65536)])
def test_receive_in_pieces(benchmark: BenchmarkFixture, size: int, piece: int) -> None:
    """One text message in reads of `piece` bytes: linear, however small they are."""
    data = encode_masked(TEXT, b"x" * size, MASK)
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]

    def receive() -> list[str | bytes]:
        session, messages = Session(0), list[str | bytes]()
        for part in pieces:
            messages += session.receive(part)
        return messages

    assert benchmark(receive) == ["x" * size]
