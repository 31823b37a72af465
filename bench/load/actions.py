"""What a scenario does beside the load processes: calls and faults while it is measured, questions after it."""

import asyncio
from time import perf_counter_ns
from typing import Any, Final

from bench.load import web
from bench.plan import Options
from bench.target import Service, Target

ASKED_AT_ONCE: Final = 8


class Director:
    """One run, as its scenario sees it from outside. `figures` take what it finds, `marks` tell people when what was.

    `split` is the share of the run after which something is different, and latencies are to be compared with before.
    """

    def __init__(self, target: Target, options: Options, devices: list[str]) -> None:
        self.target = target
        self.options = options
        self.devices = devices
        self.figures: dict[str, float] = {}
        self.notes: list[str] = []
        self.marks: list[tuple[float, str]] = []
        self.plays: list[tuple[str, str, int]] = []
        self.split: float | None = None
        self.since = 0
        self.until = 0

    @property
    def service(self) -> Service:
        """Of scenarios that hurt the gateway: it is their own."""
        assert isinstance(self.target, Service)
        return self.target

    @property
    def elapsed(self) -> float:
        return (perf_counter_ns() - self.since) / 1e9

    async def at(self, share: float) -> None:
        """Wait until this share of the run is over."""
        due = self.since + int((self.until - self.since) * share)
        await asyncio.sleep(max(0.0, (due - perf_counter_ns()) / 1e9))

    def mark(self, what: str) -> None:
        self.marks.append((round(self.elapsed, 3), what))

    async def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        return await self.target.call(method, path, body)

    async def verify_plays(self) -> None:
        """Ask what is stored of every play that was acked, and count what is not."""
        if not self.target.key:
            self.notes.append("plays were not verified: the key of the control API is not known (--api-key-env)")
            return
        lost, checked, waiting = 0, 0, list(self.plays)

        async def ask() -> None:
            nonlocal lost, checked
            connection = web.Connection(self.target.endpoint, self.target.key)
            await connection.connect()
            while waiting:
                device, boot, acked = waiting.pop()
                found = await web.ask_json(connection, f"/devices/{device}/plays")
                if "boots" not in found:
                    self.notes.append(f"plays of {device} could not be verified: {found.get('code')}")
                    continue
                checked += acked
                boots = {each["boot"]: each for each in found["boots"]}
                known = boots.get(boot, {"newest": 0, "missing": 0, "lost": 0})
                lost += max(0, acked - known["newest"]) + known["missing"] + known["lost"]
            connection.close()

        await asyncio.gather(*(ask() for _ in range(ASKED_AT_ONCE)))
        self.figures |= {"plays.verified": checked}
        if checked == sum(acked for _, _, acked in self.plays):
            self.figures["plays.lost"] = lost
