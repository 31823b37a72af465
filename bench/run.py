"""`bench run`: scenarios one after the other, each against a gateway of its own or all against the one at a URL."""

import math
import os
import platform
import resource
import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import uvloop
from rich.console import Console

from bench.load import tokens
from bench.load.coordinator import Conductor, LoadError, conduct, split_cores
from bench.plan import Options
from bench.report import html, schema, terminal, thresholds
from bench.scenario import Scenario
from bench.scenarios.catalogue import SCENARIOS
from bench.target import Service, Target, TargetError

RESERVE: Final = 64
"""Descriptors of a load process besides its connections."""
EXIT_CODES: Final = {"passed": 0, "invalid": 3, "failed": 4}


class UsageError(Exception):
    """What was asked for cannot be done."""


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line; what is None has the scenario's own value."""

    names: Sequence[str]
    url: str | None = None
    token_file: Path | None = None
    device_secret: str | None = None
    user_secret: str | None = None
    key: str = ""
    pids: Sequence[int] = ()
    processes: int | None = None
    gateway_workers: int | None = None
    limits: Sequence[thresholds.Limit] = ()
    out: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def run(request: Request, console: Console) -> int:
    """The exit code. Raises UsageError."""
    # A shell starts what runs in the background with SIGINT ignored; whoever ends this run ends its gateway too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    plans = [(SCENARIOS[name], SCENARIOS[name].options.given(**request.options)) for name in request.names]
    for scenario, options in plans:
        check(scenario, options, request)
    if request.out is not None:
        request.out.mkdir(parents=True, exist_ok=True)
    started, results = time.time(), []
    for scenario, options in plans:
        try:
            with terminal.progress(console, scenario.name) as progress:
                results.append(one(scenario, options, request, progress))
        except (LoadError, TargetError) as error:
            console.print(f"{scenario.name}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
            return 1
        terminal.show(Console(), results[-1])
        terminal.complain(console, results[-1])
    report = summary(request, started, results)
    if request.out is not None:
        schema.write(report, request.out / "report.json")
        (request.out / "report.html").write_text(html.page(report), "utf-8")
        console.print(f"{request.out / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return EXIT_CODES[report.verdict]


def one(scenario: Scenario, options: Options, request: Request, progress: terminal.Progress) -> schema.Scenario:
    """Raises LoadError, TargetError."""
    server_cores, load_cores = split_cores()
    limits = overridden(scenario.thresholds, request.limits)
    if request.url is not None:
        target = Target(request.url, request.key, request.pids)
        target.find()
        devices = found_tokens(request, options.devices)
        users = tokens.mint_users(request.user_secret, options.dashboards) if request.user_secret else []
        return drive(scenario, options, request, target, devices, users, limits, [], progress)
    workers = request.gateway_workers or scenario.gateway_workers or max(1, len(server_cores))
    settings = {**scenario.settings, "VIZORA_PLAYER__HEARTBEAT_INTERVAL": str(max(1000, int(options.interval * 1000)))}
    log = request.out / f"{scenario.name}.log" if request.out is not None else None
    with Service(workers, settings, server_cores, log) as service:
        devices = tokens.mint(service.device_secret, options.devices)
        users = tokens.mint_users(service.user_secret, options.dashboards)
        return drive(scenario, options, request, service, devices, users, limits, load_cores, progress)


def drive(
    scenario: Scenario,
    options: Options,
    request: Request,
    target: Target,
    devices: Sequence[str],
    users: Sequence[str],
    limits: Sequence[thresholds.Limit],
    cores: Sequence[int],
    progress: terminal.Progress,
) -> schema.Scenario:
    processes = request.processes or needed(len(devices) + len(users))

    async def main() -> schema.Scenario:
        conductor = Conductor(scenario, options, target, devices, users, processes, cores, progress)
        return await conduct(scenario, limits, conductor, options, request.out)

    return uvloop.run(main())


def check(scenario: Scenario, options: Options, request: Request) -> None:
    """Raises UsageError before anything is started."""
    if request.url is None:
        return
    if scenario.own:
        raise UsageError(f"{scenario.name} hurts the gateway: it runs only against one of its own, without --url")
    if scenario.needs_key and not request.key:
        raise UsageError(f"{scenario.name} calls the control API: set INTERNAL_API_SECRET, or name it by --api-key-env")
    if options.dashboards and not request.user_secret:
        raise UsageError(f"{scenario.name} has dashboards: set JWT_SECRET, or name it by --user-secret-env")
    found_tokens(request, options.devices)


def found_tokens(request: Request, count: int) -> list[str]:
    if request.token_file is not None:
        try:
            return tokens.read(request.token_file, count)
        except ValueError as error:
            raise UsageError(str(error)) from None
    if not request.device_secret:
        raise UsageError(
            "DEVICE_JWT_SECRET is not set: the gateway's secret, to make tokens (--secret-env); or --tokens"
        )
    return tokens.mint(request.device_secret, count)


def needed(connections: int) -> int:
    """As many load processes as the connections need descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, math.ceil(connections / max(1, hard - RESERVE)))


def overridden(defaults: Sequence[str], given: Sequence[thresholds.Limit]) -> list[thresholds.Limit]:
    """What was given stands in place of the scenario's own on the same figure."""
    figures = {limit.figure for limit in given}
    return [limit for limit in map(thresholds.parse, defaults) if limit.figure not in figures] + list(given)


def summary(request: Request, started: float, results: list[schema.Scenario]) -> schema.Report:
    verdicts = {result.verdict for result in results}
    return schema.Report(
        version=schema.VERSION,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        gateway=request.url or "started for each scenario",
        machine=machine(),
        verdict="invalid" if "invalid" in verdicts else "failed" if "failed" in verdicts else "passed",
        scenarios=results,
    )


def machine() -> schema.Machine:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return schema.Machine(
        cpu=model,
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
    )
