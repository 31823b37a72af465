"""`vizora-rt`: the commands of `shell`, and how each ends.

What cannot start says why in one line and ends with the exit code of its error, never with a traceback.
"""

import os
import sys
from typing import Never

import click

from vizora_rt.errors import StartupError
from vizora_rt.service.supervisor import VERSION
from vizora_rt.shell import devices, operations, readers, service, tokens
from vizora_rt.wire import printable

INTERRUPTED = 130
"""What a shell says of a command that Ctrl-C ended: 128 + SIGINT."""


@click.group(
    commands=(
        service.serve, service.demo, service.check_config, tokens.token, readers.plays, readers.events,
        devices.device_group, devices.store_group, operations.operate,
    ),
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
@click.version_option(VERSION)
def command() -> None:
    """Realtime gateway of a digital-signage platform.

    Example: vizora-rt demo
    """


def main() -> Never:
    try:
        command(prog_name="vizora-rt", standalone_mode=False)
    except StartupError as error:
        click.echo(f"vizora-rt: {printable.escaped(' '.join(str(error).split()))}", err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # Whoever read stdout has enough. What is left in its buffer must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    sys.exit(0)
