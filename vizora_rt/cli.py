"""The commands: `serve`, `demo`, `check-config`, `token`. Nothing but parsing and calling.

What cannot start says why in one line and ends with the exit code of its error, never with a traceback.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Never, TypeVar

import click

from vizora_rt import config, report
from vizora_rt.app import auth
from vizora_rt.config import Config
from vizora_rt.errors import StartupError
from vizora_rt.net import link
from vizora_rt.net.screen import Screen
from vizora_rt.supervisor import VERSION, Supervisor
from vizora_rt.wire import messages

DEFAULT_FILE = Path("config.toml")

INTERRUPTED = 130
"""What a shell says of a command that Ctrl-C ended: 128 + SIGINT."""

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

GUIDE = """
  {devices} screens connect and send heartbeats.
  metrics  {at}/metrics
  health   {at}/health
  workers  {at}/status
  Ctrl-C ends all of it.
"""

SECRET_KEYS = re.compile(r"secret|token|dsn")

Command = TypeVar("Command", bound=Callable[..., Any])

CONFIG_OPTION = click.option(
    "--config", "file", type=click.Path(path_type=Path), help="Configuration file [default: config.toml if it exists]."
)
ORG_OPTION = click.option("--org", required=True, help="Organisation that the token is for.")


def ttl_option(default: str) -> Callable[[Command], Command]:
    return click.option(
        "--ttl", default=default, show_default=True, callback=_seconds, help="Life: 45s, 30m, 12h, 90d."
    )


def _seconds(_: click.Context, __: click.Parameter, value: str) -> int:
    found = re.fullmatch(r"([1-9]\d{0,9})([smhd])", value)
    if found is None:
        raise click.BadParameter("a number and one of s, m, h, d: 45s, 30m, 12h, 90d")
    return int(found[1]) * UNITS[found[2]]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="vizora-rt")
def command() -> None:
    """Realtime gateway of a digital-signage platform."""


@command.command()
@CONFIG_OPTION
@click.option("--host", help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 for any free one.")
@click.option("--workers", type=click.IntRange(0), help="Worker processes; 0 for one per core.")
def serve(file: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Run the service until SIGTERM or Ctrl-C. SIGHUP reloads the configuration.

    Example: VIZORA_ENV=development vizora-rt serve --port 3001 --workers 2
    """
    given = {"host": host, "port": port, "workers": workers}
    overrides = {"server": {key: value for key, value in given.items() if value is not None}}

    def load() -> Config:
        return config.with_secrets(_load(file, overrides))

    settings = load()
    report.configure(settings, "supervisor")
    asyncio.run(_serve(settings, load))


async def _serve(settings: Config, load: Callable[[], Config]) -> None:
    await Supervisor(settings, load).run()


@command.command()
@click.option("--port", default=3001, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option("--devices", default=25, show_default=True, type=click.IntRange(1, 1000), help="Simulated screens.")
def demo(port: int, devices: int) -> None:
    """Run the service on this machine, in development, with simulated screens. Ctrl-C ends all of it.

    Example: vizora-rt demo --port 3001 --devices 25
    """
    environ = {"VIZORA_LOGGING__FORMAT": "console", **os.environ, "VIZORA_ENV": "development"}
    overrides = {"server": {"host": "127.0.0.1", "port": port}}

    def load() -> Config:
        return config.with_secrets(config.load(None, environ, overrides))

    settings = load()
    report.configure(settings, "supervisor")
    asyncio.run(_demo(settings, load, devices))


async def _demo(settings: Config, load: Callable[[], Config], devices: int) -> None:
    supervisor = Supervisor(settings, load)
    service = asyncio.create_task(supervisor.run())
    listening = asyncio.create_task(supervisor.listening.wait())
    await asyncio.wait([service, listening], return_when=asyncio.FIRST_COMPLETED)
    listening.cancel()
    screens = []
    if not service.done():
        screens = _screens(settings, supervisor.port, devices)
        click.echo(GUIDE.format(devices=devices, at=f"http://127.0.0.1:{supervisor.port}"))
    await asyncio.wait([service])
    for screen in screens:
        screen.cancel()
    await asyncio.gather(*screens, return_exceptions=True)
    service.result()


def _screens(settings: Config, port: int, devices: int) -> list[asyncio.Task[Any]]:
    """Screens of two organisations, each a task that ends when it is cancelled."""
    now, url = int(time.time()), f"ws://127.0.0.1:{port}/ws"
    tasks = []
    for number in range(1, devices + 1):
        organization = "north" if number % 2 else "south"
        minted = auth.mint_device(settings.auth, f"screen-{number}", organization, now, UNITS["d"])
        tasks.append(asyncio.create_task(Screen(url, minted).run()))
    return tasks


@command.command("check-config")
@CONFIG_OPTION
def check_config(file: Path | None) -> None:
    """Check the configuration, print what is in effect without secrets, and see whether Redis can be reached.

    Example: vizora-rt check-config --config /etc/vizora-rt/config.toml
    """
    settings = _load(file)
    for line in effective(settings):
        click.echo(line)
    if not settings.development:
        config.with_secrets(settings)
    if settings.redis.url:
        link.probe(settings.redis.url, settings.redis.connect_timeout_seconds)
        click.echo("# Redis can be reached and used")


def effective(settings: Config) -> list[str]:
    """The configuration as TOML. Of secrets it says only whether they are set."""
    lines = [f"# environment {settings.environment}, state in {settings.state_dir}"]
    for section in config.SECTIONS:
        lines += ["", f"[{section}]"]
        struct = getattr(settings, section)
        for key in struct.__struct_fields__:
            value = getattr(struct, key)
            # TOML has no null: what is not set follows something else.
            lines.append(f"{key} = {_shown(section, key, value)}" if value is not None else f"# {key} is not set")
    return lines


def _shown(section: str, key: str, value: Any) -> str:
    if SECRET_KEYS.search(key):
        value = "<set>" if value else ""
    elif (section, key) == ("redis", "url") and value:
        value = str(link.Address.parse(value))
    # JSON's strings, numbers, booleans and arrays are TOML's too.
    return messages.dumps(value).decode()


@command.group()
def token() -> None:
    """Make a token, as the backend would, for tests and development."""


@token.command()
@click.argument("device_id", metavar="ID")
@ORG_OPTION
@click.option("--count", type=click.IntRange(1, 1_000_000), help="That many, for ID-1, ID-2 and so on; one a line.")
@ttl_option("90d")
@CONFIG_OPTION
def device(device_id: str, org: str, count: int | None, ttl: int, file: Path | None) -> None:
    """Print the token of a device.

    Example: vizora-rt token device lobby-1 --org acme
    """
    settings = config.with_secrets(_load(file))
    ids = [device_id] if count is None else [f"{device_id}-{number}" for number in range(1, count + 1)]
    now = int(time.time())
    for each in ids:
        click.echo(auth.mint_device(settings.auth, each, org, now, ttl))


@token.command()
@click.argument("user_id", metavar="ID")
@ORG_OPTION
@click.option("--email", default="", help="Claim `email` of the token.")
@ttl_option("12h")
@CONFIG_OPTION
def user(user_id: str, org: str, email: str, ttl: int, file: Path | None) -> None:
    """Print the token of a dashboard user.

    Example: vizora-rt token user alice --org acme --email alice@example.com
    """
    settings = config.with_secrets(_load(file))
    click.echo(auth.mint_user(settings.auth, user_id, org, int(time.time()), ttl, email))


def _load(file: Path | None, overrides: Mapping[str, Mapping[str, Any]] = {}) -> Config:
    if file is None and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
    return config.load(file, os.environ, overrides)


def main() -> Never:
    try:
        command(standalone_mode=False)
    except StartupError as error:
        click.echo(f"vizora-rt: {' '.join(str(error).split())}", err=True)
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
