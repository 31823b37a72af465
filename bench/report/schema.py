"""report.json: what a run says of itself. Times are seconds, sizes bytes, shares 0 to 1; a null was not measured.

A change that a reader would notice raises VERSION. docs/report.schema.json is made from these structs.
"""

import inspect
import json
import math
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

VERSION: Final = 1

Verdict = Literal["passed", "failed", "invalid"]
NotNegative = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0)]


class Latency(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of an HDR histogram with three significant digits."""

    count: NotNegative
    min: float
    mean: float
    p50: float
    p75: float
    p90: float
    p95: float
    p99: float
    p999: float
    p9999: float
    max: float


class Kind(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of message. `lost` had no answer; `curve` is percentile and latency; `log` a file beside this one."""

    name: str
    sent: NotNegative
    accepted: NotNegative
    refused: dict[str, int]
    lost: NotNegative
    rate: float
    latency: Latency
    curve: list[tuple[float, float]]
    log: str


class Threshold(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`passed` is null when the figure was not measured."""

    expression: str
    value: float | None
    passed: bool | None


class Series(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One kind of message, interval by interval; latencies are null where none was answered."""

    rate: list[float]
    p50: list[float | None]
    p99: list[float | None]
    max: list[float | None]


class Process(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One process of the gateway, interval by interval; null where it was not there. `cpu` is in cores."""

    pid: int
    name: str
    cpu: list[float | None]
    memory: list[int | None]
    descriptors: list[int | None]


class Mark(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What was done to the gateway, and when."""

    at: float
    what: str


class Timeline(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`seconds` are the ends of the intervals, from the end of the warm-up."""

    seconds: list[float]
    connections: list[int]
    kinds: dict[str, Series]
    processes: list[Process]
    marks: list[Mark]


class Generator(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The load processes: shares of the time of the one that was worst off; `busiest` is that of one interval, 0 for
    those that spin so as to be on time."""

    processes: int
    busy: Share
    busiest: Share
    waited: Share
    late: Latency


class Scenario(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One scenario of the run. `invalid` says why its figures are the generator's and not the gateway's."""

    name: str
    about: str
    verdict: Verdict
    options: dict[str, float | None]
    invalid: list[str]
    notes: list[str]
    thresholds: list[Threshold]
    figures: dict[str, float]
    counters: dict[str, int]
    kinds: list[Kind]
    timeline: Timeline
    generator: Generator


class Machine(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where it ran."""

    cpu: str
    cores: int
    memory: int
    kernel: str
    python: str


class Report(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of it."""

    version: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    started: str
    command: str
    gateway: str
    machine: Machine
    verdict: Verdict
    scenarios: list[Scenario]


def write(report: Report, file: Path) -> None:
    file.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))


def read(file: Path) -> Report:
    """Raises msgspec.ValidationError."""
    return msgspec.json.decode(file.read_bytes(), type=Report)


def json_schema() -> str:
    """The schema as text. Descriptions are docstrings without indentation, whatever Python or msgspec leave of it."""
    (reference,), components = msgspec.json.schema_components((Report,), ref_template="#/$defs/{name}")
    for component in components.values():
        if "description" in component:
            component["description"] = inspect.cleandoc(component["description"])
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "report.json of the bench suite",
        **reference,
        "$defs": components,
    }
    return json.dumps(schema, indent=1) + "\n"


def rounded(value: float) -> float:
    """To six significant digits, so that a report can be read."""
    return value if not value or not math.isfinite(value) else round(value, 5 - math.floor(math.log10(abs(value))))
