"""`device` and `store`: what operators do to devices, and to the embedded store, without the API."""

import os
import time
from pathlib import Path

import click

from vizora_rt.app import auth
from vizora_rt.errors import StartupError
from vizora_rt.net.presence import admin as device_admin
from vizora_rt.net.presence import record as device_record
from vizora_rt.net.valkey import backup
from vizora_rt.shell.options import CONFIG_OPTION, load, redis_url
from vizora_rt.telemetry import logs
from vizora_rt.wire import bodies, messages, printable


def _id(_: click.Context, __: click.Parameter, value: str) -> str:
    if not auth.valid_id(value):
        raise click.BadParameter("an id has 1 to 128 printable characters without space or braces")
    return value


def _jti(context: click.Context, parameter: click.Parameter, value: str) -> str:
    return _id(context, parameter, value) if value else ""


def _reason(_: click.Context, __: click.Parameter, value: str) -> str:
    if len(value) > bodies.MAX_REASON:
        raise click.BadParameter(f"at most {bodies.MAX_REASON} characters")
    return value


DEVICE_ARGUMENT = click.argument("device_id", metavar="ID", callback=_id)


@click.group("device")
def device_group() -> None:
    """Look at devices, and let go of them. Asks Redis itself: works on any node, also while the service is down.

    Example: vizora-rt device list --org acme
    """


@device_group.command("list")
@click.option("--org", required=True, help="Organisation.")
@click.option("--offset", default=0, show_default=True, type=click.IntRange(0), help="How many to skip.")
@click.option(
    "--limit",
    default=device_record.PAGE,
    show_default=True,
    type=click.IntRange(1, device_record.MOST_A_PAGE),
    help="How many at most.",
)
@CONFIG_OPTION
def list_devices(org: str, offset: int, limit: int, file: Path | None) -> None:
    """Print the devices of an organisation. The last seen first, one JSON object a line.

    Example: vizora-rt device list --org acme --limit 20
    """
    page = _shell(file).members(org, offset, limit)
    for each in page["devices"]:
        click.echo(printable.json(messages.dumps(each)))
    click.echo(f"{len(page['devices'])} of {page['total']}", err=True)
    if away := page.get("unavailable"):
        click.echo(f"on a shard that does not answer: {', '.join(away)}", err=True)


@device_group.command("show")
@DEVICE_ARGUMENT
@CONFIG_OPTION
def show_device(device_id: str, file: Path | None) -> None:
    """Print what is known of a device, as JSON.

    Example: vizora-rt device show lobby-1
    """
    found = _shell(file).show(device_id)
    if found is None:
        raise StartupError(f"{device_id}: no such device")
    click.echo(printable.json(messages.dumps(found)))


@device_group.command("kick")
@DEVICE_ARGUMENT
@CONFIG_OPTION
def kick_device(device_id: str, file: Path | None) -> None:
    """End a device's connection. It may come back.

    Example: vizora-rt device kick lobby-1
    """
    heard = _shell(file).kick(device_id)
    _changed(
        file, "device kick", "told the worker that has it, or had it last" if heard else "no worker has it", device_id
    )


@device_group.command("revoke")
@DEVICE_ARGUMENT
@click.option("--reason", default="revoked", show_default=True, callback=_reason, help="What the device is told.")
@click.option("--jti", default="", callback=_jti, help="Only the token with this id.")
@click.option("--undo", is_flag=True, help="Let it in again.")
@CONFIG_OPTION
def revoke_device(device_id: str, reason: str, jti: str, undo: bool, file: Path | None) -> None:
    """Lock a device out, and end its connection.

    Example: vizora-rt device revoke lobby-1 --reason stolen
    """
    shell, more = _shell(file), {"jti": jti} if jti else {}
    if undo:
        said = "no longer revoked" if shell.restore(device_id, jti) else "was not revoked"
        _changed(file, "device revoke --undo", said, device_id, **more)
        return
    heard = shell.revoke(device_id, reason, time.time_ns() // 1_000_000, jti)
    said = "revoked, told the worker that has it, or had it last" if heard else "revoked, no worker has it"
    _changed(file, "device revoke", said, device_id, reason=reason, **more)


@device_group.command("erase")
@DEVICE_ARGUMENT
@click.option("--yes", is_flag=True, help="Do not ask.")
@CONFIG_OPTION
def erase_device(device_id: str, yes: bool, file: Path | None) -> None:
    """Delete all that is known of a device. Its connection ends; a revocation stays.

    Example: vizora-rt device erase lobby-1 --yes
    """
    if not yes:
        click.confirm(f"Delete all that is known of {device_id}?", abort=True)
    if not _shell(file).erase(device_id):
        raise StartupError(f"{device_id}: no such device")
    _changed(file, "device erase", "erased", device_id)


def _changed(file: Path | None, what: str, said: str, device_id: str, **more: str) -> None:
    """Say what was done, and leave the line of the log that the same call over HTTP leaves, on stderr."""
    click.echo(said)
    logs.configure(load(file), "shell")
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or str(os.geteuid())
    logs.logger("shell").info("audit", command=what, result=said, user=user, device_id=device_id, **more)


def _shell(file: Path | None) -> device_admin.Shell:
    return device_admin.Shell(redis_url(load(file)))


@click.group("store")
def store_group() -> None:
    """Back up the embedded store, and restore it.

    Example: vizora-rt store backup /var/backups/vizora-rt/monday
    """


@store_group.command("backup")
@click.argument("target", type=click.Path(path_type=Path))
@CONFIG_OPTION
def backup_store(target: Path, file: Path | None) -> None:
    """Copy the running store into the new folder TARGET. The service goes on.

    Example: vizora-rt store backup /var/backups/vizora-rt/monday
    """
    size = backup.backup(Path(load(file).state_dir), target)
    click.echo(f"{target}: {size} bytes", err=True)


@store_group.command("restore")
@click.argument("source", type=click.Path(path_type=Path))
@CONFIG_OPTION
def restore_store(source: Path, file: Path | None) -> None:
    """Make the backup SOURCE the data of the service. It must be stopped. What was there is kept beside it.

    Example: vizora-rt store restore /var/backups/vizora-rt/monday
    """
    aside = backup.restore(Path(load(file).state_dir), source)
    click.echo(f"restored; the data before is in {aside}" if aside else "restored", err=True)
