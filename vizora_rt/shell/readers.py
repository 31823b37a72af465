"""`plays` and `events`: what the streams hold, as lines on standard output or in a file."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vizora_rt.errors import UnavailableError
from vizora_rt.net.streams import formats, reader
from vizora_rt.shell.options import CONFIG_OPTION, Command, load, redis_url, seconds

PIPE_CLOSED = 141
"""What a shell says of a command that SIGPIPE ended: 128 + SIGPIPE."""


@click.group()
def plays() -> None:
    """Read what screens have played. A line for the start and one for the end of each, or with --fold one for both.

    Example: vizora-rt plays tail --fold
    """


@click.group()
def events() -> None:
    """Read what happened to devices. Status changes, content errors, outcomes of commands.

    Example: vizora-rt events tail
    """


def _since(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else reader.parse_since(value, time.time())
    except ValueError:
        raise click.BadParameter(
            "15m, 24h or 7d ago, 2026-11-23, 2026-11-23T04:00:00Z, or ms since the epoch"
        ) from None


def _wait(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else seconds(context, parameter, value)


FORMAT = click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True,
    help="Objects, one a line, or columns.",
)  # fmt: skip
GROUP = click.option(
    "--group", default="", help="Consumer group: Redis remembers what was read, and delivers it at least once."
)
CONSUMER = click.option(
    "--consumer", default="reader", show_default=True, help="Name in the group, when several read at a time."
)
FOLD = click.option("--fold", is_flag=True, help="Join start and end of a play into one line.")
WAIT = click.option(
    "--wait", callback=_wait,
    help="How long a phase of a play waits for the other [default: 10m; of an export without a group, to its end].",
)  # fmt: skip
WAIT_SECONDS = 600
OUTPUT = click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path),
    help="File to write instead of standard output; with --group it is appended to.",
)  # fmt: skip


def reader_options(fold: bool, follow: bool) -> Callable[[Command], Command]:
    """What `tail` and `export` have in common."""
    begin = "Where to begin: 15m ago, an ISO date or time, or ms since the epoch"
    default = f"[default: {'now' if follow else 'the oldest kept'}]"
    more = "Of a group only when it is new; its default is the oldest kept."
    since = click.option("--since", callback=_since, help=f"{begin} {default}. {more}")
    folding, output = (FOLD, WAIT) if fold else (), () if follow else (OUTPUT,)

    def decorate(function: Command) -> Command:
        for option in reversed((FORMAT, since, GROUP, CONSUMER, *folding, CONFIG_OPTION, *output)):
            function = option(function)
        return function

    return decorate


@plays.command("tail")
@reader_options(fold=True, follow=True)
def plays_tail(**options: Any) -> None:
    """Print plays as they are recorded, until Ctrl-C.

    A play is acknowledged to the group after its line was flushed. One that was not acknowledged when a reader died
    comes again: take lines with the same play_id and phase for one.

    Example: vizora-rt plays tail --group billing --fold | billing-import
    """
    _read(formats.PLAYS, follow=True, **options)


@plays.command("export")
@reader_options(fold=True, follow=False)
def plays_export(**options: Any) -> None:
    """Write the plays that are kept, and end. In order of time. With --group: those since the last export.

    Example: vizora-rt plays export --since 24h --format csv --fold --output plays.csv
    """
    _read(formats.PLAYS, follow=False, **options)


@events.command("tail")
@reader_options(fold=False, follow=True)
def events_tail(**options: Any) -> None:
    """Print events as they happen, until Ctrl-C.

    Example: vizora-rt events tail --since 15m --format jsonl
    """
    _read(formats.EVENTS, follow=True, **options)


@events.command("export")
@reader_options(fold=False, follow=False)
def events_export(**options: Any) -> None:
    """Write the events that are kept and end. With --group: those since the last export.

    Example: vizora-rt events export --since 7d --format csv --output events.csv
    """
    _read(formats.EVENTS, follow=False, **options)


def _read(
    kind: formats.StreamKind,
    follow: bool,
    form: formats.Format,
    since: int | None,
    group: str,
    consumer: str,
    file: Path | None,
    fold: bool = False,
    wait: int | None = None,
    output: Path | None = None,
) -> None:
    if wait is None:
        wait = WAIT_SECONDS if follow or group else reader.TO_THE_END
    options = reader.Options(form, follow, since, group, consumer, wait * 1000 if fold else 0)
    url = redis_url(load(file))
    terminal = sys.stderr if sys.stderr.isatty() else None
    try:
        if output is None:
            reader.run(url, kind, sys.stdout.buffer, options, terminal, sys.stderr)
        else:
            with output.open("ab" if group else "wb") as out:
                reader.run(url, kind, out, options, terminal, sys.stderr)
    except BrokenPipeError:
        # Whoever read us has enough. Python would flush again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        raise UnavailableError(f"{output or 'standard output'}: {error.strerror}") from None
