"""What counts as turned down, in what words, when it is over, and that the log says each change once."""

import json

import pytest

from vizora_rt.net.redis import refusals
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.refusals import Refusals
from vizora_rt.wire.resp import ReplyError

AT = Address()


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def events(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("error", "full", "reason"),
    [
        ("OOM command not allowed", "OOM", "takes no writes: OOM, its memory is full (maxmemory)"),
        ("MISCONF Errors writing to the AOF file", "MISCONF", "takes no writes: MISCONF, it cannot save to its disk"),
        ("NOREPLICAS Not enough", "NOREPLICAS", "takes no writes: NOREPLICAS, it has fewer replicas than min-repl"),
        ("NOPERM no permissions to run set", "NOPERM", "denies commands: NOPERM, no permissions to run set"),
        # Redis 6.2, within a script.
        (
            "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -OOM command not allowed",
            "OOM",
            "takes no writes: OOM",
        ),
        ("ERR ACL failure in script: no permissions", "NOPERM", "denies commands: NOPERM"),
        ("WRONGTYPE Operation against a key", "", ""),
        ("ERR no such key", "", ""),
        ("NOSCRIPT No matching script", "", ""),
    ],
)
def test_each_error_has_its_reason(error: str, full: str, reason: str) -> None:
    found = Refusals(Clock())
    found.take(ReplyError(error), "set", AT)
    assert found.full == full
    assert found.reason.startswith(reason)
    assert bool(found.reason) is bool(reason)


def test_a_courtesy_that_is_denied_is_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    found = Refusals(Clock())
    found.take(ReplyError("NOPERM User x has no permissions to run the 'info' command"), "info", AT)
    assert (found.full, found.reason) == ("", "")
    assert events(capfd) == []


def test_a_read_that_is_denied_says_nothing_of_writes() -> None:
    found = Refusals(Clock())
    found.take(ReplyError("NOPERM No permissions to access a key"), "exists", AT)
    assert (found.full, found.reason) == ("", "denies commands: NOPERM, No permissions to access a key")


def test_the_log_says_each_change_once(capfd: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    found = Refusals(clock)
    for _ in range(1000):
        found.take(ReplyError("MISCONF no space"), "set", AT)
        clock.now += 1
        found.look(AT)
    assert events(capfd) == ["redis takes no writes"]
    clock.now += refusals.FULL_SECONDS
    for _ in range(3):
        found.look(AT)
    assert events(capfd) == ["redis turns nothing down any more"]
    found.take(ReplyError("MISCONF no space"), "set", AT)
    assert events(capfd) == ["redis takes no writes"]


def test_what_redis_says_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    Refusals(Clock()).take(ReplyError("OOM a\nb\x1b[31m" + "x" * 5000), "set", AT)
    (line,) = capfd.readouterr().err.splitlines()
    assert len(line) < 600


@pytest.mark.parametrize("code", ["OOM", "MISCONF", "NOREPLICAS"])
def test_a_write_that_is_taken_ends_it_but_not_at_once_for_an_operator(
    code: str, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    found = Refusals(clock)
    for _ in range(3):
        found.take(ReplyError(f"{code} no"), "set", AT)
        found.taken("get")
        found.taken("eval_renew")
        assert found.full == code
        found.taken("set")
        assert found.full == ""
        assert code in found.reason
        found.look(AT)
    assert events(capfd) == ["redis takes no writes"]
    clock.now += refusals.FULL_SECONDS
    found.look(AT)
    assert found.reason == ""
    assert events(capfd) == ["redis turns nothing down any more"]


def test_a_right_that_is_missing_is_not_given_by_another_command() -> None:
    found = Refusals(Clock())
    found.take(ReplyError("NOPERM no permissions to run evalsha"), "eval_status", AT)
    found.taken("set")
    assert found.full == "NOPERM"
