"""Drills: do a fault to a real gateway, and see its alert fire, arrive where its severity goes, and resolve.

    vizora-rt ops drill RedisDown ServiceDown

Each drill has a gateway, a Prometheus and an Alertmanager of its own, all real; their files are those of ops/ with
minutes made seconds. Nothing leaves this machine.
"""

import asyncio
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from vizora_rt.errors import StartupError
from vizora_rt.ops import alerts, monitors
from vizora_rt.ops.alerts import Severity
from vizora_rt.ops.faults import FAULTS, Fault
from vizora_rt.ops.monitors import AlertNotification, Program, Webhook
from vizora_rt.ops.site import Sandbox, many_threads, until

CALM_SECONDS = 60.0
FIRE_SECONDS = 120.0
"""For an alert to arrive: the longest window and hold are 60 s when minutes are seconds."""
RESOLVE_SECONDS = 120.0
RECEIVERS: dict[Severity, frozenset[str]] = {
    "critical": frozenset({"pagerduty", "slack"}),
    "warning": frozenset({"slack", "email"}),
    "info": frozenset({"email"}),
}
"""Who must hear of which severity, as alertmanager.yml's header says it. Nobody else may: a warning wakes nobody."""

Say = Callable[[str], None]


class DrillError(Exception):
    """The alert did not do what it should."""


class Result(NamedTuple):
    """Seconds from the fault to the alert with all who must hear of it, and from the fault's end to its resolution.

    `alert` is a key of FAULTS: a name, or a name and the form that the fault sets off. `failure` says what went wrong
    instead; "" when nothing did.
    """

    alert: str
    severity: Severity
    fault: str
    fired: float = 0.0
    resolved: float = 0.0
    description: str = ""
    failure: str = ""


class Inbox:
    """What was notified. Filled by threads, read by the loop."""

    def __init__(self) -> None:
        self._told: list[AlertNotification] = []

    def take(self, notification: AlertNotification) -> None:
        self._told.append(notification)

    def receivers(self, alert: str, firing: bool) -> frozenset[str]:
        return frozenset(each.receiver for each in self._of(alert) if each.firing == firing)

    def description(self, alert: str) -> str:
        return next(each.description for each in self._of(alert))

    def _of(self, alert: str) -> list[AlertNotification]:
        name, _, form = alert.partition("/")
        return [each for each in self._told if each.alert == name and form in ("", each.form)]


class AlertWatch(NamedTuple):
    """A site with what watches it."""

    site: Sandbox
    prometheus: Program
    inbox: Inbox


@asynccontextmanager
async def watched(ops: Path, folder: Path, env: Mapping[str, str] = {}, workers: int = 2) -> AsyncIterator[AlertWatch]:
    """A site, then Prometheus and Alertmanager in a hurry: before the gateway they would find that it is down."""
    inbox = Inbox()
    site = Sandbox(folder, monitors.free_port(), workers)
    webhook = Webhook(inbox.take)
    started: list[Program] = []
    try:
        await site.start(env)
        ports = monitors.free_port(), monitors.free_port()
        addresses = (f"{monitors.HOST}:{port}" for port in (site.port, *ports))
        files = monitors.hurried(monitors.addressed(monitors.configs(ops), *addresses))
        files = monitors.delivered(files, webhook.port)
        started.append(monitors.start_alertmanager(folder, files, ports[1]))
        started.append(monitors.start_prometheus(folder, files, ports[0]))
        for program in started:
            await until(program.ready)
        yield AlertWatch(site, started[1], inbox)
    finally:
        await site.stop()
        for program in started:
            await asyncio.to_thread(program.stop)
        await asyncio.to_thread(webhook.stop)


async def run(names: Sequence[str], ops: Path, say: Say, jobs: int = 1) -> list[Result]:
    """Drill `names`, or all alerts, `jobs` at a time. A drill that fails does not stop the others."""
    for name in names:
        if name not in FAULTS:
            raise StartupError(f"no drill for {name}; there are {', '.join(FAULTS)}")
    monitors.configs(ops)
    for program in (("prometheus",), ("prometheus-alertmanager", "alertmanager")):
        monitors.executable(*program)
    many_threads()
    gate = asyncio.Semaphore(jobs)

    async def one(name: str) -> Result:
        async with gate:
            return await drill(name, ops, lambda text: say(f"{name}: {text}"))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(name)) for name in names or FAULTS]
    return [task.result() for task in tasks]


async def drill(name: str, ops: Path, say: Say) -> Result:
    """One drill, from nothing to the alert's resolution."""
    fault = FAULTS[name]
    severity = next(alert.severity for alert in alerts.ALERTS if alert.name == name.partition("/")[0])
    result = Result(name, severity, fault.about)
    say(fault.about)
    with tempfile.TemporaryDirectory(prefix="vizora-drill-") as folder:
        try:
            async with watched(ops, Path(folder), fault.env, fault.workers) as watch:
                watch.site.screens(fault.screens)
                await calm(watch, name, fault.screens)
                result = await _suffer(watch, result, fault, say)
        except (DrillError, StartupError, OSError) as error:
            result = result._replace(failure=str(error))
            say(f"FAILED: {error}")
    return result


async def _suffer(watch: AlertWatch, result: Result, fault: Fault, say: Say) -> Result:
    name, wanted = result.alert, RECEIVERS[result.severity]
    began = time.monotonic()
    task = asyncio.ensure_future(fault.run(watch.site))
    try:
        await heard(watch.inbox, name, True, wanted, FIRE_SECONDS, task)
        fired = time.monotonic() - began
        description = watch.inbox.description(name)
        say(f"fired after {fired:.1f} s: {description}")
    finally:
        ended = time.monotonic()
        task.cancel()
        await asyncio.wait([task])
    await heard(watch.inbox, name, False, wanted, RESOLVE_SECONDS)
    resolved = time.monotonic() - ended
    say(f"resolved {resolved:.1f} s after the fault's end")
    if others := watch.inbox.receivers(name, True) - wanted:
        raise DrillError(f"also told: {', '.join(sorted(others))}")
    if found := re.search(r"<no value>|error calling|%!", description):
        raise DrillError(f"its description has {found[0]!r}: {description}")
    return result._replace(fired=fired, resolved=resolved, description=description)


async def calm(watch: AlertWatch, name: str, screens: int) -> None:
    """Wait until Prometheus has seen the gateway and all its screens, and see that the alert is quiet and was."""

    def quiet() -> bool:
        up = monitors.query(watch.prometheus, f'up{{job="{alerts.JOB}"}} == 1')
        online = monitors.query(watch.prometheus, "sum(vizora_realtime_devices_online)")
        seen = online[0][1] if online else 0
        firing = monitors.query(watch.prometheus, f'ALERTS{{alertname="{name.partition("/")[0]}"}}')
        return bool(up) and seen >= screens and not firing

    try:
        await until(quiet, CALM_SECONDS)
    except TimeoutError:
        raise DrillError("no screens, or it fires before anything was done") from None
    if watch.inbox.receivers(name, True):
        raise DrillError("it fired before anything was done")


async def heard(
    inbox: Inbox,
    name: str,
    firing: bool,
    wanted: frozenset[str],
    patience: float,
    task: "asyncio.Future[None] | None" = None,
) -> None:
    """Wait until all who must hear of it have. A fault that ends by itself ends the drill."""

    def all_told() -> bool:
        return (task is not None and task.done()) or wanted <= inbox.receivers(name, firing)

    try:
        await until(all_told, patience)
    except TimeoutError:
        missing = ", ".join(sorted(wanted - inbox.receivers(name, firing)))
        what = "firing" if firing else "its resolution"
        raise DrillError(f"{what} did not reach {missing} within {patience:g} s") from None
    if task is not None and task.done():
        raise DrillError(f"the fault ended by itself: {task.exception()!r}")


def table(results: Sequence[Result]) -> list[str]:
    """What was seen, as Markdown."""
    lines = ["| alert | severity | fault | fired | resolved | told |", "|---|---|---|---:|---:|---|"]
    for each in results:
        times = "| | |" if each.failure else f"| {each.fired:.0f} s | {each.resolved:.0f} s |"
        last = f"**{each.failure}**" if each.failure else ", ".join(sorted(RECEIVERS[each.severity]))
        lines.append(f"| {each.alert} | {each.severity} | {each.fault} {times} {last} |")
    return lines
