"""The commands: `serve`, `demo`, `check-config`, `token`, `plays`, `events`, `device`, `store`. Parsing and calling.

What cannot start says why in one line and ends with the exit code of its error, never with a traceback.
"""

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Never, TypeVar

import click

from vizora_rt import config, report
from vizora_rt.app import auth
from vizora_rt.config import Config
from vizora_rt.errors import StartupError, UnavailableError
from vizora_rt.net import backup, devices, embedded, readers, topology
from vizora_rt.net.screen import Screen
from vizora_rt.ops import alerts, drill, files, monitoring
from vizora_rt.supervisor import VERSION, Supervisor
from vizora_rt.wire import bodies, messages

DEFAULT_FILE = Path("config.toml")

INTERRUPTED = 130
"""What a shell says of a command that Ctrl-C ended: 128 + SIGINT."""

PIPE_CLOSED = 141
"""What a shell says of a command that SIGPIPE ended: 128 + SIGPIPE."""

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
Result = TypeVar("Result")

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
        return _usable(config.with_secrets(_load(file, overrides)))

    settings = load()
    report.configure(settings, "supervisor")
    asyncio.run(_serve(settings, load))


def _usable(settings: Config) -> Config:
    """Refuse what no worker could use before one is started on it: keys of tokens, where faults are reported."""
    auth.Verifier(settings.auth)
    report.check(settings)
    return settings


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
    for doubt in config.doubts(settings):
        click.echo(f"# note: {doubt}")
    if not settings.development:
        _usable(config.with_secrets(settings))
    if settings.redis.url:
        click.echo(f"# {topology.probe(settings.redis.url, settings.redis.connect_timeout_seconds)}")


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
        value = str(topology.Where.parse(value))
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
    settings = config.with_secrets(_load(file))
    click.echo(auth.mint_user(settings.auth, user_id, org, int(time.time()), ttl, email))


@command.group()
def plays() -> None:
    """Read what screens have played: a line for the start and one for the end of each, or with --fold one for both."""


@command.group()
def events() -> None:
    """Read what happened to devices: status changes, content errors, outcomes of commands."""


def reader_options(fold: bool, follow: bool) -> Callable[[Command], Command]:
    """What `tail` and `export` have in common."""
    since = "Where to begin: 15m ago, an ISO date or time, or ms since the epoch"
    options = [
        click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True),
        click.option(
            "--since", callback=_since, help=f"{since} [default: {'now' if follow else 'the oldest kept'}]. Of a group "
            "only when it is new; its default is the oldest kept.",
        ),
        click.option(
            "--group", default="", help="Consumer group: Redis remembers what was read, and delivers it at least once."
        ),
        click.option(
            "--consumer", default="reader", show_default=True, help="Name in the group, when several read at a time."
        ),
        CONFIG_OPTION,
    ]  # fmt: skip
    if fold:
        options[4:4] = [
            click.option("--fold", is_flag=True, help="Join start and end of a play into one line."),
            click.option(
                "--wait",
                default="10m",
                show_default=True,
                callback=_seconds,
                help="How long a start waits for its end.",
            ),
        ]
    if not follow:
        options.append(
            click.option(
                "--output", type=click.Path(dir_okay=False, path_type=Path),
                help="File to write instead of standard output; with --group it is appended to.",
            )
        )  # fmt: skip

    def decorate(function: Command) -> Command:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _since(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else readers.parse_since(value, time.time())
    except ValueError:
        raise click.BadParameter(
            "15m, 24h or 7d ago, 2026-11-23, 2026-11-23T04:00:00Z, or ms since the epoch"
        ) from None


@plays.command("tail")
@reader_options(fold=True, follow=True)
def plays_tail(**options: Any) -> None:
    """Print plays as they are recorded, until Ctrl-C.

    A play is acknowledged to the group after its line was flushed. One that was not acknowledged when a reader died
    comes again: take lines with the same play_id and phase for one.

    Example: vizora-rt plays tail --group billing --fold | billing-import
    """
    _read(readers.PLAYS, follow=True, **options)


@plays.command("export")
@reader_options(fold=True, follow=False)
def plays_export(**options: Any) -> None:
    """Write the plays that are kept, in order of time, and end. With --group: those since the last export.

    Example: vizora-rt plays export --since 24h --format csv --fold --output plays.csv
    """
    _read(readers.PLAYS, follow=False, **options)


@events.command("tail")
@reader_options(fold=False, follow=True)
def events_tail(**options: Any) -> None:
    """Print events as they happen, until Ctrl-C.

    Example: vizora-rt events tail --since 15m --format jsonl
    """
    _read(readers.EVENTS, follow=True, **options)


@events.command("export")
@reader_options(fold=False, follow=False)
def events_export(**options: Any) -> None:
    """Write the events that are kept and end. With --group: those since the last export.

    Example: vizora-rt events export --since 7d --format csv --output events.csv
    """
    _read(readers.EVENTS, follow=False, **options)


def _read(
    kind: readers.Kind,
    follow: bool,
    form: readers.Format,
    since: int | None,
    group: str,
    consumer: str,
    file: Path | None,
    fold: bool = False,
    wait: int = 0,
    output: Path | None = None,
) -> None:
    options = readers.Options(form, follow, since, group, consumer, wait * 1000 if fold else 0)
    url = _redis_url(_load(file))
    terminal = sys.stderr if sys.stderr.isatty() else None
    try:
        if output is None:
            readers.run(url, kind, sys.stdout.buffer, options, terminal, sys.stderr)
        else:
            with output.open("ab" if group else "wb") as out:
                readers.run(url, kind, out, options, terminal, sys.stderr)
    except BrokenPipeError:
        # Whoever read us has enough. Python would flush again at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(PIPE_CLOSED)
    except OSError as error:
        raise UnavailableError(f"{output or 'standard output'}: {error.strerror}") from None


def _redis_url(settings: Config) -> str:
    """The configured Redis, else the store that a service embeds on this machine."""
    url = settings.redis.url or embedded.running(Path(settings.state_dir))
    if not url:
        raise UnavailableError(f"there is no Redis: set REDIS_URL, or start the service that has {settings.state_dir}")
    return url


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


@command.group("store")
def store_group() -> None:
    """Back up the embedded store, and restore it."""


@store_group.command("backup")
@click.argument("target", type=click.Path(path_type=Path))
@CONFIG_OPTION
def backup_store(target: Path, file: Path | None) -> None:
    """Copy the store of the running service into the new folder TARGET. The service goes on.

    Example: vizora-rt store backup /var/backups/vizora-rt/monday
    """
    size = backup.backup(Path(_load(file).state_dir), target)
    click.echo(f"{target}: {size} bytes", err=True)


@store_group.command("restore")
@click.argument("source", type=click.Path(path_type=Path))
@CONFIG_OPTION
def restore_store(source: Path, file: Path | None) -> None:
    """Make the backup SOURCE the data of the service, which must be stopped. What was there is kept beside it.

    Example: vizora-rt store restore /var/backups/vizora-rt/monday
    """
    aside = backup.restore(Path(_load(file).state_dir), source)
    click.echo(f"restored; the data before is in {aside}" if aside else "restored", err=True)


DEVICE_ARGUMENT = click.argument("device_id", metavar="ID", callback=_id)


@command.group("device")
def device_group() -> None:
    """Look at devices, and let go of them. Asks Redis itself: works on any node, also while the service is down."""


@device_group.command("list")
@click.option("--org", required=True, help="Organisation.")
@click.option("--offset", default=0, type=click.IntRange(0), help="How many to skip.")
@click.option("--limit", default=devices.PAGE, show_default=True, type=click.IntRange(1, devices.MOST_A_PAGE))
@CONFIG_OPTION
def list_devices(org: str, offset: int, limit: int, file: Path | None) -> None:
    """Print the devices of an organisation, the last seen first, one JSON object a line.

    Example: vizora-rt device list --org acme --limit 20
    """
    page = _shell(file).members(org, offset, limit)
    for each in page["devices"]:
        click.echo(messages.dumps(each))
    click.echo(f"{len(page['devices'])} of {page['total']}", err=True)


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
    click.echo(messages.dumps(found))


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
    """Delete all that is known of a device but its revocation, and end its connection.

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
    report.configure(_load(file), "shell")
    user = os.environ.get("SUDO_USER") or os.environ.get("USER") or str(os.geteuid())
    report.logger("shell").info("audit", command=what, result=said, user=user, device_id=device_id, **more)


def _shell(file: Path | None) -> devices.Shell:
    return devices.Shell(_redis_url(_load(file)))


@command.group("ops")
def operate() -> None:
    """Alerts, dashboards and the list of metrics, as files; Prometheus and Alertmanager beside the service."""


WRITE_OPTION = click.option("--write", is_flag=True, help="Write the files into this checkout instead of printing.")


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
    """Print every metric with its labels and their values, as Markdown.

    Example: vizora-rt ops metrics | less
    """
    _give(files.metric_files(), write)


@operate.command("dashboards")
@WRITE_OPTION
def ops_dashboards(write: bool) -> None:
    """Print Grafana's dashboards, one JSON object each.

    Example: vizora-rt ops dashboards --write
    """
    _give(files.dashboard_files(), write)


PORT = click.IntRange(1, 65535)
OPS_OPTION = click.option(
    "--ops", "folder", default="ops", show_default=True, type=click.Path(path_type=Path), help="The checkout's ops/."
)


@operate.command("compose")
@OPS_OPTION
@WRITE_OPTION
def ops_compose(folder: Path, write: bool) -> None:
    """Print the file of Prometheus that ops/compose.yml mounts.

    Example: vizora-rt ops compose --write
    """
    _give(files.compose_files(folder), write)


@operate.command("drill")
@click.argument("names", metavar="[ALERT]...", nargs=-1)
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1, 8), help="Drills at a time.")
@OPS_OPTION
def ops_drill(names: tuple[str, ...], jobs: int, folder: Path) -> None:
    """Do each alert's fault to a gateway of its own; see the alert fire, arrive and resolve. Prints a table.

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
    """Run Prometheus and Alertmanager on loopback beside a gateway that runs. Ctrl-C ends both.

    Example: vizora-rt ops monitoring --gateway 127.0.0.1:3001
    """
    kept = config.state_dir(os.environ) / "monitoring"
    kept.mkdir(parents=True, exist_ok=True)
    ports = prometheus_port, alertmanager_port
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
