"""`ops`: alerts, dashboards and the list of metrics as files; drills; Prometheus beside the service."""

import asyncio
import os
import signal
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import click

from vizora_rt import config
from vizora_rt.errors import StartupError
from vizora_rt.ops import alerts, drill, files, monitoring

Result = TypeVar("Result")

WRITE_OPTION = click.option("--write", is_flag=True, help="Write the files into this checkout instead of printing.")

PORT = click.IntRange(1, 65535)

OPS_OPTION = click.option(
    "--ops", "folder", default="ops", show_default=True, type=click.Path(path_type=Path), help="The checkout's ops/."
)


@click.group("ops")
def operate() -> None:
    """Alerts, dashboards, drills. All that monitoring reads as files; Prometheus and Alertmanager beside the service.

    Example: vizora-rt ops monitoring
    """


@operate.command("alerts")
@click.option("--runbooks", default=alerts.RUNBOOKS, show_default=True, help="Where the runbooks can be read.")
@WRITE_OPTION
def ops_alerts(runbooks: str, write: bool) -> None:
    """Print Prometheus' rule file.

    Example: vizora-rt ops alerts --runbooks https://wiki.example.com/vizora/ > /etc/prometheus/alerts.yml
    """
    _give(files.alert_files(runbooks), write)


@operate.command("metrics")
@WRITE_OPTION
def ops_metrics(write: bool) -> None:
    """Print every metric, as Markdown. With its labels and their values.

    Example: vizora-rt ops metrics | less
    """
    _give(files.metric_files(), write)


@operate.command("dashboards")
@WRITE_OPTION
def ops_dashboards(write: bool) -> None:
    """Print Grafana's dashboards. One JSON object each.

    Example: vizora-rt ops dashboards --write
    """
    _give(files.dashboard_files(), write)


@operate.command("compose")
@OPS_OPTION
@WRITE_OPTION
def ops_compose(folder: Path, write: bool) -> None:
    """Print Prometheus' file for ops/compose.yml.

    Example: vizora-rt ops compose --write
    """
    _give(files.compose_files(folder), write)


@operate.command("drill")
@click.argument("names", metavar="[ALERT]...", nargs=-1)
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1, 8), help="Drills at a time.")
@OPS_OPTION
def ops_drill(names: tuple[str, ...], jobs: int, folder: Path) -> None:
    """Do each alert's fault, see the alert. It fires, arrives and resolves, for a gateway of its own. Prints a table.

    Needs prometheus and alertmanager. All alerts take five minutes and 3 GiB of memory.

    Example: vizora-rt ops drill RedisDown ServiceDown
    """
    results = asyncio.run(_interruptible(drill.run(names, folder, click.echo, jobs)))
    failed = [result.alert for result in results if result.failure]
    click.echo("\n" + "\n".join(drill.table(results)) + "\n")
    if failed:
        raise StartupError(f"{len(failed)} of {len(results)} drills failed: {', '.join(failed)}")
    click.echo(f"{len(results)} alerts fired, arrived and resolved")


@operate.command("monitoring")
@click.option("--gateway", default="127.0.0.1:3001", show_default=True, help="Host and port of the gateway.")
@click.option("--prometheus-port", default=9090, show_default=True, type=PORT, help="Port of Prometheus.")
@click.option("--alertmanager-port", default=9093, show_default=True, type=PORT, help="Port of Alertmanager.")
@click.option("--deliver", is_flag=True, help="Notify the receivers of alertmanager.yml instead of telling it here.")
@OPS_OPTION
def ops_monitoring(gateway: str, prometheus_port: int, alertmanager_port: int, deliver: bool, folder: Path) -> None:
    """Run Prometheus and Alertmanager. On loopback, beside a gateway that runs. Ctrl-C ends both.

    Example: vizora-rt ops monitoring --gateway 127.0.0.1:3001
    """
    kept = config.state_dir(os.environ) / "monitoring"
    kept.mkdir(parents=True, exist_ok=True)
    ports = prometheus_port, alertmanager_port
    with suppress(KeyboardInterrupt, click.Abort):  # which is how it ends
        asyncio.run(_interruptible(monitoring.run(folder, kept, gateway, ports, deliver, click.echo)))


async def _interruptible(work: Coroutine[Any, Any, Result]) -> Result:
    """SIGTERM ends the work as Ctrl-C does: what it started is stopped."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        raise click.Abort from None


def _give(made: files.Files, write: bool) -> None:
    if write:
        for path in files.write(made, Path()):
            click.echo(path)
    else:
        for text in made.values():
            click.echo(text, nl=False)
