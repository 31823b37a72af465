"""The command line of the load generator: `python -m bench load --devices 50`. Nothing but parsing and calling.

Exit codes: 0 a measurement; 1 none, or one of refusals and losses; 2 a wrong option; 3 INVALID, the generator was the
bottleneck.
"""

import dataclasses
import json
import os
import resource
import sys
from pathlib import Path

import click
import uvloop
from rich.console import Console

from bench import load, report, tokens
from vizora_rt.net.dial import Endpoint, parse_url

RESERVE = 64
"""Descriptors besides connections."""


def url(_: click.Context, __: click.Parameter, value: str) -> Endpoint:
    try:
        return parse_url(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def numbers(_: click.Context, __: click.Parameter, value: str | None) -> list[int]:
    try:
        return [int(pid) for pid in value.split(",")] if value else []
    except ValueError:
        raise click.BadParameter("process ids with commas between them") from None


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def command() -> None:
    """Load for the gateway, and what it costs. Give the server one core and this another (taskset)."""


@command.command("load")
@click.option("--devices", default=50, type=click.IntRange(1), help="Connections, each with a token of its own.")
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), help="Messages a second in all [default: closed loop]."
)
@click.option("--inflight", default=1, type=click.IntRange(1), help="Messages unanswered a device, in a closed loop.")
@click.option("--seconds", default=5.0, type=click.FloatRange(0, min_open=True), help="How long to measure.")
@click.option("--warmup", default=2.0, type=click.FloatRange(0), help="Seconds of load before that.")
@click.option("--ramp", default=2000.0, type=click.FloatRange(0, min_open=True), help="Connects a second.")
@click.option(
    "--url",
    "endpoint",
    default="ws://127.0.0.1:3001/ws",
    callback=url,
    help="Where; Socket.IO at /socket.io/?EIO=4&transport=websocket.",
)
@click.option("--secret-env", default="DEVICE_JWT_SECRET", help="Variable with the secret that makes tokens.")
@click.option(
    "--tokens", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Tokens, one a line."
)
@click.option("--pids", callback=numbers, help="Processes of the server [default: those in GET /status].")
@click.option(
    "--max-late-ms", default=1.0, type=click.FloatRange(0), help="Open loop: p99 of lateness that is INVALID."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON.")
def load_command(
    devices: int,
    rate: float | None,
    inflight: int,
    seconds: float,
    warmup: float,
    ramp: float,
    endpoint: Endpoint,
    secret_env: str,
    file: Path | None,
    pids: list[int],
    max_late_ms: float,
    as_json: bool,
) -> None:
    """Heartbeats of many devices: as fast as they are acked, or at a fixed rate."""
    need_descriptors(devices)
    plan = load.Plan(
        endpoint,
        device_tokens(devices, secret_env, file),
        rate,
        inflight,
        seconds,
        warmup,
        ramp,
        pids,
        max_late_ms / 1e3,
    )
    try:
        with report.progress(Console(stderr=True)) as progress:
            result = uvloop.run(load.run(plan, progress))
    except load.NothingConnectedError as error:
        click.echo(report.fault("nothing connected", error.failed), err=True)
        sys.exit(1)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(result)))
    else:
        report.show(Console(), plan, result)
    sys.exit(verdict(result))


def verdict(result: load.Result) -> int:
    """The exit code; what is wrong goes to stderr, a line each."""
    wrong = list(report.faults(result))
    for line in wrong:
        click.echo(line, err=True)
    for reason in result.invalid:
        click.echo(f"INVALID: {reason}", err=True)
    return 1 if wrong else 3 if result.invalid else 0


def device_tokens(count: int, variable: str, file: Path | None) -> list[str]:
    if file is not None:
        try:
            return tokens.read(file, count)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
    secret = os.environ.get(variable)
    if not secret:
        raise click.UsageError(f"{variable} is not set: the secret of the server, to make tokens; or --tokens FILE")
    return tokens.mint(secret, count)


def need_descriptors(devices: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = devices + RESERVE
    if wanted > hard:
        raise click.UsageError(f"{devices} devices need {wanted} descriptors and ulimit -Hn is {hard}")
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    command(prog_name="python -m bench")
