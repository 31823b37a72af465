"""`token`: what the backend would sign, for tests and development."""

import time
from collections.abc import Callable
from pathlib import Path

import click

from vizora_rt import config
from vizora_rt.app import auth
from vizora_rt.shell.options import CONFIG_OPTION, Command, load, seconds

ORG_OPTION = click.option("--org", required=True, help="Organisation that the token is for.")


def ttl_option(default: str) -> Callable[[Command], Command]:
    return click.option("--ttl", default=default, show_default=True, callback=seconds, help="Life: 45s, 30m, 12h, 90d.")


@click.group()
def token() -> None:
    """Make a token, as the backend would. For tests and development.

    Example: vizora-rt token device lobby-1 --org acme
    """


@token.command()
@click.argument("device_id", metavar="ID")
@ORG_OPTION
@click.option(
    "--count", type=click.IntRange(1, 1_000_000), help="Make so many, for ID-00001, ID-00002 and so on; one a line."
)
@ttl_option("90d")
@CONFIG_OPTION
def device(device_id: str, org: str, count: int | None, ttl: int, file: Path | None) -> None:
    """Print the token of a device.

    Example: vizora-rt token device lobby-1 --org acme
    """
    settings = config.with_secrets(load(file))
    ids = [device_id] if count is None else [f"{device_id}-{number:05d}" for number in range(1, count + 1)]
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
    settings = config.with_secrets(load(file))
    click.echo(auth.mint_user(settings.auth, user_id, org, int(time.time()), ttl, email))
