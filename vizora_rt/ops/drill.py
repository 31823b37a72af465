"""Drills: do a fault to a real gateway, and see its alert fire, arrive where its severity goes, and resolve.

    vizora-rt ops drill RedisDown ServiceDown

Prometheus and Alertmanager are real, their files those of ops/ with minutes made seconds. Nothing leaves this machine.
"""

import asyncio
import re
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from vizora_rt.errors import StartupError
from vizora_rt.ops import alerts, monitors
from vizora_rt.ops.faults import FAULTS, Fault
from vizora_rt.ops.monitors import Notification, Program, Webhook
from vizora_rt.ops.site import Site, until

FIRE_SECONDS = 120.0
"""For an alert to arrive: the longest window and hold are 60 s when minutes are seconds."""
RESOLVE_SECONDS = 120.0

RECEIVERS = {"critical": {"pagerduty", "slack"}, "warning": {"slack", "email"}, "info": {"email"}}
"""Who must hear of which severity, as alertmanager.yml's header says it."""

Say = Callable[[str], None]


class Result(NamedTuple):
    """Seconds from the fault to the alert with all who must hear of it, and from the fault's end to its resolution."""

    alert: str
    fired: float
    resolved: float
    description: str


class Inbox:
    """What was notified. Filled by threads, read by the loop."""

    def __init__(self) -> None:
        self._told: list[Notification] = []

    def take(self, notification: Notification) -> None:
        self._told.append(notification)

    def __len__(self) -> int:
        return len(self._told)

    def receivers(self, alert: str, firing: bool, since: int) -> set[str]:
        return {each.receiver for each in self._told[since:] if each.alert == alert and each.firing == firing}

    def description(self, alert: str) -> str:
        return next(each.description for each in self._told if each.alert == alert)


class Watch(NamedTuple):
    """A site with what watches it."""

    site: Site
    prometheus: Program
    inbox: Inbox


@asynccontextmanager
async def watched(ops: Path, folder: Path) -> AsyncIterator[Watch]:
    """Prometheus and Alertmanager in a hurry, for a site that is started later."""
    inbox = Inbox()
    files = monitors.configs(ops)
    webhook = Webhook(inbox.take)
    started: list[Program] = []
    site = Site(folder, monitors.free_port())
    try:
        ports = monitors.free_port(), monitors.free_port()
        files = monitors.hurried(monitors.here(files, site.port, *ports, webhook.port))
        started.append(monitors.start_alertmanager(folder, files, ports[1]))
        started.append(monitors.start_prometheus(folder, files, ports[0]))
        for program in started:
            await until(program.ready)
        yield Watch(site, started[1], inbox)
    finally:
        await site.stop()
        for program in started:
            await asyncio.to_thread(program.stop)
        await asyncio.to_thread(webhook.stop)


async def run(names: Sequence[str], ops: Path, say: Say) -> list[Result]:
    """One drill after the other; a failed one does not stop the next. Raises StartupError at the end if any failed."""
    for name in names:
        if name not in FAULTS:
            raise StartupError(f"no drill for {name}; there are {', '.join(FAULTS)}")
    results, failed = [], []
    with tempfile.TemporaryDirectory(prefix="vizora-drill-") as folder:
        async with watched(ops, Path(folder)) as watch:
            for name in names or FAULTS:
                say(f"{name}: {FAULTS[name].about}")
                try:
                    result = await drill(watch, name, FAULTS[name])
                except StartupError as error:
                    say(f"    failed: {error}")
                    failed.append(name)
                else:
                    say(f"    fired after {result.fired:.1f} s: {result.description}")
                    say(f"    resolved {result.resolved:.1f} s after the fault's end")
                    results.append(result)
    if failed:
        raise StartupError(f"{len(failed)} of {len(failed) + len(results)} drills failed: {', '.join(failed)}")
    return results


async def drill(watch: Watch, name: str, fault: Fault) -> Result:
    """One drill, from a fresh gateway to the alert's resolution."""
    await watch.site.start(fault.env)
    try:
        watch.site.screens(fault.screens)
        await calm(watch.prometheus, name)
        return await _suffer(watch, name, fault)
    finally:
        await watch.site.stop()


async def _suffer(watch: Watch, name: str, fault: Fault) -> Result:
    inbox, before, began = watch.inbox, len(watch.inbox), time.monotonic()
    severity = next(alert.severity for alert in alerts.ALERTS if alert.name == name)
    task = asyncio.ensure_future(fault.run(watch.site))
    try:
        await heard(inbox, name, True, RECEIVERS[severity], before, FIRE_SECONDS, task)
        fired = time.monotonic() - began
    finally:
        task.cancel()
        await asyncio.wait([task])
    ended = time.monotonic()
    await heard(inbox, name, False, RECEIVERS[severity], before, RESOLVE_SECONDS)
    description = inbox.description(name)
    if found := re.search(r"<no value>|error calling|%!", description):
        raise StartupError(f"{name}: its description has {found[0]!r}: {description}")
    return Result(name, fired, time.monotonic() - ended, description)


async def calm(prometheus: Program, name: str) -> None:
    """The drill before may have set this one off too: wait until it is quiet, and the gateway scraped again."""

    def quiet() -> bool:
        up = monitors.query(prometheus, f'up{{job="{alerts.JOB}"}} == 1')
        return bool(up) and not monitors.query(prometheus, f'ALERTS{{alertname=~"{name}|ServiceDown"}}')

    try:
        await until(quiet, RESOLVE_SECONDS)
    except TimeoutError:
        raise StartupError(f"{name}: fires before anything was done") from None


async def heard(
    inbox: Inbox,
    name: str,
    firing: bool,
    wanted: set[str],
    since: int,
    patience: float,
    task: "asyncio.Future[None] | None" = None,
) -> None:
    """Wait until all who must hear of it have. A fault that fails ends the drill."""

    def all_told() -> bool:
        if task is not None and task.done():
            task.result()
            raise StartupError(f"{name}: the fault ended by itself")
        return wanted <= inbox.receivers(name, firing, since)

    try:
        await until(all_told, patience)
    except TimeoutError:
        told = inbox.receivers(name, firing, since)
        missing = ", ".join(sorted(wanted - told))
        raise StartupError(
            f"{name}: {'firing' if firing else 'resolved'} did not reach {missing} within {patience:g} s"
        ) from None
