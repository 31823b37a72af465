"""What several commands have in common: options, and what their words mean."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from vizora_rt import config
from vizora_rt.config import Config
from vizora_rt.errors import UnavailableError
from vizora_rt.net.streams.reader import UNITS
from vizora_rt.net.valkey import server as valkey_server

DEFAULT_FILE = Path("config.toml")

Command = TypeVar("Command", bound=Callable[..., Any])

CONFIG_OPTION = click.option(
    "--config", "file", type=click.Path(path_type=Path), help="Configuration file [default: config.toml if it exists]."
)


def seconds(_: click.Context, __: click.Parameter, value: str) -> int:
    found = re.fullmatch(r"([1-9]\d{0,9})([smhd])", value)
    if found is None:
        raise click.BadParameter("a number and one of s, m, h, d: 45s, 30m, 12h, 90d")
    return int(found[1]) * UNITS[found[2]]


def load(file: Path | None, overrides: Mapping[str, Mapping[str, Any]] = {}) -> Config:
    if file is None and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
    return config.load(file, os.environ, overrides)


def redis_url(settings: Config) -> str:
    """The configured Redis, else the store that a service embeds on this machine."""
    url = settings.redis.target or valkey_server.running(Path(settings.state_dir))
    if not url:
        raise UnavailableError(f"there is no Redis: set REDIS_URL, or start the service that has {settings.state_dir}")
    return url
