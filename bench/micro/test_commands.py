"""What a command pays on its way through the ledger: its line written and read, its delivery decided, its ack read."""

from pytest_benchmark.fixture import BenchmarkFixture

from vizora_rt.app.commands import Action, Delivery, QueuedCommand, command_body, parse_line, verdict

AT = "2026-11-23T04:00:00.000Z"
BODY = command_body("c" * 32, "pause", {"seconds": 30}, AT, AT)
ENTRY = QueuedCommand("c" * 32, "pause", 1_764_000_300_000, 1_764_000_000_000, "host-3001-ab12 0", BODY)


def test_body(benchmark: BenchmarkFixture) -> None:
    assert benchmark(command_body, "c" * 32, "pause", {"seconds": 30}, AT, AT) == BODY


def test_line(benchmark: BenchmarkFixture) -> None:
    assert benchmark(ENTRY.line).startswith(b"c")


def test_parse_line(benchmark: BenchmarkFixture) -> None:
    assert benchmark(parse_line, ENTRY.line()) == ENTRY


def test_deliver(benchmark: BenchmarkFixture) -> None:
    """A device without a command, and one: looked for, found, sent, acked."""

    def deliver() -> Action:
        delivery = Delivery()
        delivery.look()
        delivery.found("c1")
        return delivery.acked()

    assert isinstance(benchmark(deliver), Action)


def test_verdict(benchmark: BenchmarkFixture) -> None:
    assert benchmark(verdict, {"ok": True})[0] == "acked"
