"""Prometheus and Alertmanager beside a gateway that runs, on loopback and with the files of ops/; no Docker.

    vizora-rt ops monitoring

What would go to Slack, email or PagerDuty is told here instead, unless it is asked for. Series are kept in the state
directory from one time to the next.
"""

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from vizora_rt.errors import UnavailableError
from vizora_rt.ops import monitors
from vizora_rt.ops.monitors import AlertNotification, Program, Webhook
from vizora_rt.ops.site import until

LOOK_SECONDS = 1.0

Say = Callable[[str], None]

GUIDE = """\

  prometheus    {prometheus}/alerts   the rules, and what fires
                {prometheus}/targets  whether the gateway is scraped
  alertmanager  {alertmanager}         who is told, silences
  gateway       http://{gateway}/metrics{note}
  {told}
  Grafana is no Debian package: docker compose -f ops/compose.yml up, or give a Grafana of yours ops/grafana.
  Ctrl-C ends both.
"""


async def run(ops: Path, folder: Path, gateway: str, ports: tuple[int, int], deliver: bool, say: Say) -> None:
    """Until it is cancelled. `ports` are Prometheus' and Alertmanager's; raises UnavailableError when one ends."""
    prometheus, alertmanager = (f"{monitors.HOST}:{port}" for port in ports)
    files = monitors.addressed(monitors.configs(ops), gateway, prometheus, alertmanager)
    with ExitStack() as stack:
        if not deliver:
            webhook = Webhook(lambda notification: say(line(notification)))
            stack.callback(webhook.stop)
            files = monitors.delivered(files, webhook.port)
        programs = []
        for start, port in ((monitors.start_prometheus, ports[0]), (monitors.start_alertmanager, ports[1])):
            programs.append(start(folder, files, port))
            stack.callback(programs[-1].stop)
        for program in programs:
            await until(program.ready)
        scraped = await asyncio.to_thread(_answers, gateway)
        say(
            GUIDE.format(
                prometheus=programs[0].url,
                alertmanager=programs[1].url,
                gateway=gateway,
                note="" if scraped else "  does not answer: make demo starts one, else ServiceDown fires",
                told=f"Logs and series are in {folder}."
                if deliver
                else f"Notifications are told here and go nowhere else. Logs and series are in {folder}.",
            )
        )
        await _watch(programs)


async def _watch(programs: list[Program]) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        for program in programs:
            if program.ended:
                raise UnavailableError(f"{program.name} ended: {program.last_words()}")


def _answers(gateway: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(monitors.get(f"http://{gateway}/metrics"))
    return False


def line(notification: AlertNotification) -> str:
    """A notification for people."""
    state = "fires" if notification.firing else "is over"
    return f"{notification.receiver}: {notification.alert} {state}: {notification.description} ({notification.runbook})"
