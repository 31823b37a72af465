"""The command line of the bench suite: options, their checks, and the call."""

import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from bench import run
from bench.peers.command import peers_command
from bench.report.thresholds import Limit, parse
from bench.scenarios.catalogue import SCENARIOS
from vizora_rt.client.websocket import parse_url


def numbers(_: click.Context, __: click.Parameter, value: str | None) -> list[int]:
    try:
        return [int(pid) for pid in value.split(",")] if value else []
    except ValueError:
        raise click.BadParameter("process ids with commas between them") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def command() -> None:
    """Load for a gateway, what it costs the gateway, and a verdict."""


command.add_command(peers_command)


@command.command("list")
def list_command() -> None:
    """The scenarios, and what must come out of each."""
    for scenario in SCENARIOS.values():
        own = " Starts a gateway of its own." if scenario.own else ""
        click.echo(f"{scenario.name}\n    {scenario.about}.{own}\n    {'  '.join(scenario.thresholds)}")


def limits(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[Limit]:
    try:
        return [parse(value) for value in values]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def text_url(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    try:
        if value is not None:
            parse_url(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return value


FLOAT = click.FloatRange(0, min_open=True)


@command.command("run", context_settings={"show_default": False})
@click.argument("scenarios", nargs=-1, required=True, type=click.Choice(list(SCENARIOS)), metavar="SCENARIO...")
@click.option("--url", callback=text_url, help="The gateway [default: one is started for each scenario].")
@click.option(
    "--tokens", "token_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Of devices."
)
@click.option(
    "--secret-env",
    default="DEVICE_JWT_SECRET",
    show_default=True,
    help="Variable with the secret that makes device tokens.",
)
@click.option("--user-secret-env", default="JWT_SECRET", show_default=True, help="The same for dashboards.")
@click.option(
    "--api-key-env", default="INTERNAL_API_SECRET", show_default=True, help="Variable with the key of the control API."
)
@click.option("--devices", type=click.IntRange(1), help="Connections, each with a token of its own.")
@click.option("--dashboards", type=click.IntRange(0), help="Dashboards besides.")
@click.option("--rate", type=FLOAT, help="Messages, requests or connects a second in all.")
@click.option("--inflight", type=click.IntRange(1), help="Messages unanswered a device, in a closed loop.")
@click.option("--batch", type=click.IntRange(1, 200), help="Starts and ends of plays a message.")
@click.option("--interval", type=FLOAT, help="Seconds between two heartbeats of a device of a fleet.")
@click.option("--play", type=FLOAT, help="Seconds of a content that a device of a fleet plays.")
@click.option("--churn", type=click.FloatRange(0), help="Devices of a fleet that go and come back, a second.")
@click.option(
    "--deaf", type=click.FloatRange(0, 1), help="Share of a fleet that comes back each second, whatever it is told."
)
@click.option("--seconds", type=FLOAT, help="How long to measure.")
@click.option("--warmup", type=click.FloatRange(0), help="Seconds of load before that.")
@click.option("--ramp", type=FLOAT, help="Connects a second, before the measurement.")
@click.option("--max-late-ms", type=click.FloatRange(0), help="Open loop: p99 of lateness that is INVALID.")
@click.option("--workers", type=click.IntRange(1), help="Load processes [default: as many as the descriptors want].")
@click.option("--gateway-workers", type=click.IntRange(1), help="Workers of a gateway that is started.")
@click.option("--pids", callback=numbers, help="Processes of the gateway [default: those in GET /status].")
@click.option("--threshold", "given", multiple=True, callback=limits, help="heartbeat.p99<20ms; may be repeated.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for the report and its logs.")
def run_command(
    scenarios: tuple[str, ...],
    url: str | None,
    token_file: Path | None,
    secret_env: str,
    user_secret_env: str,
    api_key_env: str,
    max_late_ms: float | None,
    workers: int | None,
    gateway_workers: int | None,
    pids: list[int],
    given: list[Limit],
    out: Path | None,
    **options: Any,
) -> None:
    """Run scenarios, and say whether what came out is good enough. What is not said is the scenario's own.

    Exit codes: 0 passed; 1 nothing to report; 2 a wrong option; 3 INVALID, the generator was the bottleneck; 4 a
    threshold failed.

    Example: python -m bench run heartbeat --rate 5000 --devices 2000 --out report
    """
    options["late"] = None if max_late_ms is None else max_late_ms / 1e3
    request = run.Request(
        names=scenarios,
        url=url,
        token_file=token_file,
        device_secret=os.environ.get(secret_env),
        user_secret=os.environ.get(user_secret_env),
        key=os.environ.get(api_key_env, ""),
        pids=pids,
        processes=workers,
        gateway_workers=gateway_workers,
        limits=given,
        out=out,
        options=options,
    )
    try:
        sys.exit(run.run(request, Console(stderr=True)))
    except run.UsageError as error:
        raise click.UsageError(str(error)) from None
