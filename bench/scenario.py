"""What a scenario is: who connects, what is sent, what is done to the service meanwhile, and what must come out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from bench.load.actions import Director
from bench.load.load_context import Agent
from bench.plan import Options

OLD_SUITE: Final = ("connected>=95%", "acked>=98%", "heartbeat.p95<100ms")
"""What the suite before this one asked for. Every scenario with heartbeats keeps to it."""


class Load(Protocol):
    """Runs in every load process, with its share of the devices and of the rate."""

    async def __call__(self, agent: Agent) -> None: ...


class Direct(Protocol):
    """Runs once, beside the load processes: while it is measured, or after it."""

    async def __call__(self, director: Director) -> None: ...


async def nothing(director: Director) -> None:
    """Most scenarios only load."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`settings` are the service's, when it is started for the scenario; one that hurts it wants one of its `own`.

    A `storm` connects while it is measured, where others only begin when all are connected.
    """

    name: str
    about: str
    load: Load
    options: Options
    thresholds: tuple[str, ...]
    direct: Direct = nothing
    verify: Direct = nothing
    own: bool = False
    needs_key: bool = False
    storm: bool = False
    gateway_workers: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
