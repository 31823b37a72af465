"""`serve`, `demo` and `check-config`: the service in this terminal, and what it would run with."""

import asyncio
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from vizora_rt import config
from vizora_rt.app import auth
from vizora_rt.client.simulated import SimulatedScreen
from vizora_rt.config import Config
from vizora_rt.net.redis import probe, topology
from vizora_rt.service.supervisor import Supervisor
from vizora_rt.shell.options import CONFIG_OPTION, load
from vizora_rt.telemetry import logs, sentry
from vizora_rt.wire import messages

GUIDE = """
  {devices} screens connect and send heartbeats.
  metrics  {at}/metrics
  health   {at}/health
  workers  {at}/status
  Ctrl-C ends all of it.
"""

SECRET_KEYS = re.compile(r"secret|token|dsn")


@click.command()
@CONFIG_OPTION
@click.option("--host", help="Address to listen on [default: server.host].")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 for any free one [default: server.port]."
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Worker processes; 0 for one per core that it may use [default: server.workers].",
)
def serve(file: Path | None, host: str | None, port: int | None, workers: int | None) -> None:
    """Run the service until SIGTERM or Ctrl-C. SIGHUP reloads the configuration.

    Example: VIZORA_ENV=development vizora-rt serve --port 3001 --workers 2
    """
    given = {"host": host, "port": port, "workers": workers}
    overrides = {"server": {key: value for key, value in given.items() if value is not None}}

    def read() -> Config:
        return _usable(config.with_secrets(load(file, overrides)))

    settings = read()
    logs.configure(settings, "supervisor")
    asyncio.run(_serve(settings, read))


def _usable(settings: Config) -> Config:
    """Refuse what no worker could use before one is started on it: keys of tokens, where faults are reported."""
    auth.Verifier(settings.auth)
    sentry.check(settings)
    return settings


async def _serve(settings: Config, read: Callable[[], Config]) -> None:
    await Supervisor(settings, read).run()


@click.command()
@click.option(
    "--port", default=3001, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on; 0 for any."
)
@click.option("--devices", default=25, show_default=True, type=click.IntRange(1, 1000), help="Simulated screens.")
def demo(port: int, devices: int) -> None:
    """Try it: the service with simulated screens. On this machine, in development. Ctrl-C ends all of it.

    Example: vizora-rt demo --port 3001 --devices 25
    """
    environ = {"VIZORA_LOGGING__FORMAT": "console", **os.environ, "VIZORA_ENV": "development"}
    overrides = {"server": {"host": "127.0.0.1", "port": port}}

    def read() -> Config:
        return config.with_secrets(config.load(None, environ, overrides))

    settings = read()
    logs.configure(settings, "supervisor")
    asyncio.run(_demo(settings, read, devices))


async def _demo(settings: Config, read: Callable[[], Config], devices: int) -> None:
    supervisor = Supervisor(settings, read)
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
        minted = auth.mint_device(settings.auth, f"screen-{number}", organization, now, 86_400)
        tasks.append(asyncio.create_task(SimulatedScreen(url, minted).run()))
    return tasks


@click.command("check-config")
@CONFIG_OPTION
def check_config(file: Path | None) -> None:
    """Check the configuration. Print what is in effect, without secrets, and see whether Redis has what is needed.

    Example: vizora-rt check-config --config /etc/vizora-rt/config.toml
    """
    settings = load(file)
    for line in effective(settings):
        click.echo(line)
    for doubt in config.doubts(settings):
        click.echo(f"# note: {doubt}")
    if not settings.development:
        _usable(config.with_secrets(settings))
    if settings.redis.url:
        found = probe.probe(settings.redis.target, settings.redis.connect_timeout_seconds)
        for line in (found.text, *(f"note: {note}" for note in found.notes)):
            click.echo(f"# {line}")


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
        value = str(topology.RedisTarget.parse(value))
    # JSON's strings, numbers, booleans and arrays are TOML's too.
    return messages.dumps(value).decode()
