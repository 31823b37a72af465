"""What a Redis that answers turns down: writes while it is full, what its user may not do. Logged when it changes."""

from collections.abc import Callable
from typing import Final

from vizora_rt.net.redis.address import TAKES_NO_WRITES, Address, one_line
from vizora_rt.telemetry import logs
from vizora_rt.wire.resp import ReplyError

FULL_SECONDS = 15.0
"""From the last command that was turned down until it counts as mended. Three times as long as the pause between two
writes of a service that has nothing to do: a worker says every 5 s that it lives."""

DENIED: Final = "NOPERM"

REASONS: Final = {
    "OOM": "its memory is full (maxmemory)",
    "MISCONF": "it cannot save to its disk",
    "NOREPLICAS": "it has fewer replicas than min-replicas-to-write",
    DENIED: "its user is not allowed to (ACL)",
}

READS: Final = frozenset(
    {
        "get",
        "exists",
        "zrange",
        "sscan",
        "zscan",
        "publish",
        "subscribe",
        "ping",
        "eval_backlog",
        "eval_missing",
        "eval_listed",
    }
)
"""Operations that write nothing: NOPERM for one of them says nothing of writes."""
COURTESIES: Final = frozenset({"info"})
"""Operations that a user need not be allowed."""

log = logs.logger("store")


class Refusals:
    """Those of one server."""

    __slots__ = ("_clock", "_denied_at", "_denied_why", "_full_at", "_full_why", "_told", "waits")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full_at = self._denied_at = float("-inf")
        self._full_why = self._denied_why = ""
        self._told: set[str] = set()
        self.waits = False
        """Whether a write was turned down and none has been taken since."""

    def take(self, reply: ReplyError, operation: str, address: Address) -> None:
        """An error reply to a command of `operation`. Those of other kinds are no refusals."""
        code = reply.code
        if code == DENIED and operation not in COURTESIES:
            self._denied_at, self._denied_why = self._clock(), one_line(reply.message)
            self._tell(code, "redis denies a command to its user", reply, address)
        if code in TAKES_NO_WRITES or (code == DENIED and operation not in READS | COURTESIES):
            self._full_at, self._full_why = self._clock(), code
            self.waits = True
            if code in TAKES_NO_WRITES:
                self._tell(code, "redis takes no writes", reply, address)

    def taken(self, operation: str) -> None:
        """A command of `operation` was not turned down. A SET is refused by all of those that take no writes."""
        if operation == "set" and self._full_why in TAKES_NO_WRITES:
            self.waits = False

    def look(self, address: Address) -> None:
        """Say that it is over, when it is. To be called every few seconds."""
        if self._told and not self._lately and not self.reason:
            self._told.clear()
            log.info("redis turns nothing down any more", address=str(address))

    @property
    def full(self) -> str:
        """The code with which writes are turned down, "" when none was lately, or when one has been taken since."""
        return self._lately if self.waits else ""

    @property
    def _lately(self) -> str:
        """The same, also when one has been taken since: a memory that is just full turns down now and then, and that
        is one condition to an operator."""
        if self._full_why and self._clock() - self._full_at >= FULL_SECONDS:
            self._full_why, self.waits = "", False
        return self._full_why

    @property
    def reason(self) -> str:
        """What was turned down lately, and why, in words for an operator; "" when nothing was."""
        full = self._lately
        if full and full != DENIED:
            return f"takes no writes: {full}, {REASONS[full]}"
        if self._clock() - self._denied_at < FULL_SECONDS:
            return f"denies commands: {DENIED}, {self._denied_why}"
        return ""

    def _tell(self, code: str, event: str, reply: ReplyError, address: Address) -> None:
        if code not in self._told:
            self._told.add(code)
            log.error(event, address=str(address), reason=one_line(f"{reply.code} {reply.message}"))
