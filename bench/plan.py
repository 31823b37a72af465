"""What was asked for: the options of a run, and the part of it that one load process does."""

from dataclasses import dataclass, fields, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    """Of one scenario. `rate` is messages or connects a second in all; without one some scenarios are closed loops.

    `interval` is between two heartbeats of a device, `play` the length of a content; `churn` is devices a second that
    go and come back, `deaf` the share that comes back each second whatever it is told. `late` is how late the hundredth
    message may leave until the run is INVALID.
    """

    devices: int = 50
    rate: float | None = None
    seconds: float = 10.0
    warmup: float = 2.0
    ramp: float = 2000.0
    inflight: int = 1
    batch: int = 1
    dashboards: int = 0
    interval: float = 15.0
    play: float = 20.0
    churn: float = 0.0
    deaf: float = 0.0
    late: float = 0.005

    def given(self, **values: Any) -> "Options":
        """With those of `values` that are not None in place of these."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})

    def told(self) -> dict[str, float | None]:
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class Job:
    """What one load process is told. `options` are of the whole run; its share of the devices are its tokens."""

    scenario: str
    index: int
    processes: int
    url: str
    tokens: list[str]
    users: list[str]
    key: str
    options: Options
    cores: list[int]

    @property
    def share(self) -> float:
        """Its part of all load that is no device's."""
        return 1 / self.processes
