"""Configuration: config.toml, then .env, then the environment, into frozen structs that were validated once.

The only place with defaults. Every key can be set as VIZORA_<SECTION>__<KEY>; the names in `ALIASES` are those that
operators know from the service before this one. Unknown keys are refused with the line they stand on.

Over 300 lines because each setting has its unit, bounds and error beside it.
"""

import ipaddress
import json
import os
import re
import resource
import secrets
import tempfile
import tomllib
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import quote

import dotenv
import msgspec
from msgspec import Meta, Struct

from vizora_rt import cpus, secret_strength
from vizora_rt.errors import ConfigError

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]  # a day: `inf` is a TOML float too
Share = Annotated[float, Meta(ge=0, le=1)]
Port = Annotated[int, Meta(ge=0, le=65535)]

FD_RESERVE = 200
"""Descriptors kept for Redis, channels, logs and HTTP when `limits.max_connections` follows the descriptor limit."""


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    host: str = "0.0.0.0"  # noqa: S104 - a gateway listens to the world
    port: Port = 3001
    workers: NotNegative = 0
    backlog: Positive = 4096
    drain_seconds: Seconds = 10.0
    hang_seconds: Seconds = 10.0
    trusted_proxies: tuple[str, ...] = ()
    proxy_protocol: bool = False


class LimitSettings(Struct, frozen=True, forbid_unknown_fields=True):
    message_bytes: NotNegative = 65536
    messages_per_minute: NotNegative = 120
    plays_per_minute: NotNegative = 2_400
    packets_per_minute: NotNegative = 600
    handshakes_per_second: NotNegative = 2_500
    unidentified_per_address: NotNegative = 1_000
    handshake_wait_seconds: Annotated[float, Meta(ge=0, le=60)] = 5.0
    connections_per_minute: NotNegative = 30
    connections_per_address_per_minute: NotNegative = 0
    connections_per_address: NotNegative = 20_000
    max_connections: Positive | None = None
    header_bytes: Positive = 16384
    body_bytes: Positive = 1_048_576
    handshake_seconds: Seconds = 10.0
    unsent_bytes: Positive = 1_048_576
    unsent_seconds: Seconds = 30.0


class PlayerSettings(Struct, frozen=True, forbid_unknown_fields=True):
    heartbeat_interval: Annotated[int, Meta(ge=1000)] = 15_000
    cache_size: NotNegative = 1024
    auto_update: bool = True


class PresenceSettings(Struct, frozen=True, forbid_unknown_fields=True):
    ping_after_seconds: Seconds = 25.0
    ping_timeout_seconds: Seconds = 20.0
    offline_after_seconds: Seconds = 20.0
    notify_after_seconds: Seconds = 120.0
    worker_lost_after_seconds: Seconds = 20.0
    write_within_ms: Positive = 100


class PlaySettings(Struct, frozen=True, forbid_unknown_fields=True):
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 16
    max_entries: Annotated[int, Meta(ge=1000)] = 1_000_000
    device_share: Annotated[float, Meta(gt=0, le=1)] = 0.25
    max_events: Annotated[int, Meta(ge=1000)] = 100_000


TLS_FILES = ("ca_file", "cert_file", "key_file")
"""Keys of [redis] that a rediss:// URL may also have as options."""


class RedisSettings(Struct, frozen=True, forbid_unknown_fields=True):
    url: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    pending_commands: Positive = 200_000
    pending_bytes: Positive = 67_108_864
    connect_timeout_seconds: Seconds = 2.0
    reply_timeout_seconds: Seconds = 10.0
    reconnect_max_seconds: Seconds = 2.0

    @property
    def target(self) -> str:
        """`url`, and as its options the files of TLS that it does not name itself. Empty when `url` is."""
        given = {name: getattr(self, name) for name in TLS_FILES if f"{name}=" not in self.url}
        options = "&".join(f"{name}={quote(path)}" for name, path in given.items() if path)
        return f"{self.url}{'&' if '?' in self.url else '?'}{options}" if options else self.url

    def __repr__(self) -> str:
        return "Redis(<url>)"


class AuthSettings(Struct, frozen=True, forbid_unknown_fields=True):
    algorithm: Literal["HS256", "RS256", "ES256"] = "HS256"
    device_jwt_secret: str = ""
    device_jwt_secret_previous: str = ""
    jwt_secret: str = ""
    jwt_secret_previous: str = ""
    internal_api_secret: str = ""
    fail_open_devices: bool = True
    fail_open_dashboards: bool = False
    cache_entries: NotNegative = 20_000
    refresh: bool = False
    cors_origins: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "Auth(<secrets>)"


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    public: bool = False
    token: str = ""
    max_device_series: NotNegative = 10_000
    max_organization_series: NotNegative = 1_000
    nodejs_aliases: bool = True

    def __repr__(self) -> str:
        return "Metrics(<token>)"


class LoggingSettings(Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal["json", "console"] = "json"
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class SentrySettings(Struct, frozen=True, forbid_unknown_fields=True):
    dsn: str = ""
    traces_sample_rate: Share = 0.1
    profiles_sample_rate: Share = 0.1
    release: str = ""
    debug: bool = False


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """All that a process of the service needs to know. Sections are those of config.toml."""

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    player: PlayerSettings = PlayerSettings()
    presence: PresenceSettings = PresenceSettings()
    plays: PlaySettings = PlaySettings()
    redis: RedisSettings = RedisSettings()
    auth: AuthSettings = AuthSettings()
    metrics: MetricsSettings = MetricsSettings()
    logging: LoggingSettings = LoggingSettings()
    sentry: SentrySettings = SentrySettings()
    environment: str = "production"
    state_dir: str = ""

    @property
    def development(self) -> bool:
        return self.environment == "development"

    @property
    def workers(self) -> int:
        """How many workers to start: as configured, else one per core that this process may use (cpus.py)."""
        return self.server.workers or cpus.available()

    @property
    def max_connections(self) -> int:
        """Connections that one worker takes: as configured, else what the descriptor limit allows less 200."""
        return self.limits.max_connections or descriptor_room()


SECTIONS = ("server", "limits", "player", "presence", "plays", "redis", "auth", "metrics", "logging", "sentry")

SECRETS = {
    "DEVICE_JWT_SECRET": ("auth", "device_jwt_secret"),
    "DEVICE_JWT_SECRET_PREVIOUS": ("auth", "device_jwt_secret_previous"),
    "JWT_SECRET": ("auth", "jwt_secret"),
    "JWT_SECRET_PREVIOUS": ("auth", "jwt_secret_previous"),
    "INTERNAL_API_SECRET": ("auth", "internal_api_secret"),
    "METRICS_TOKEN": ("metrics", "token"),
}
"""What a stranger must not guess, by its variable."""

ALIASES = {
    "PORT": ("server", "port"),
    "REDIS_URL": ("redis", "url"),
    **SECRETS,
    "CORS_ORIGIN": ("auth", "cors_origins"),
    "SENTRY_DSN": ("sentry", "dsn"),
    "SENTRY_TRACES_SAMPLE_RATE": ("sentry", "traces_sample_rate"),
    "SENTRY_PROFILES_SAMPLE_RATE": ("sentry", "profiles_sample_rate"),
    "SENTRY_DEBUG": ("sentry", "debug"),
    "RELEASE_VERSION": ("sentry", "release"),
}

LISTS = ("cors_origins", "trusted_proxies")
"""Keys with several values, which a variable separates by commas."""

DEVELOPMENT_SECRETS = ("device_jwt_secret", "jwt_secret", "internal_api_secret")

GOOD_SECRET_BYTES = 32
"""Of a secret (RFC 7518 section 3.2, for HS256). A shorter one is taken, with a warning."""

GENERATE = "openssl rand -hex 32"

ENVIRONMENTS = ("development", "test", "staging", "production")
"""Values of VIZORA_ENV. All but the first are taken for open to strangers."""

_ORIGIN = re.compile(r"\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^/*\s]*/?")
"""RFC 6454 section 7: scheme, host and port; nothing else is ever sent. Shells of players send `file://` and `null`."""

NOT_KEYS = frozenset({"VIZORA_ENV", "VIZORA_STATE_DIR", "VIZORA_REQUIRE_TOOLS"})

RETIRED = (("limits", "refusals_in_a_row"),)
"""Keys of earlier versions that say nothing any more. They are passed over, so that an older file still starts."""


def load(file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Mapping[str, Any]] = {}) -> Config:
    """Read `file` (TOML), `.env` of the working directory and `environ`; `overrides` are the command line's.

    Raises ConfigError with one line that names the file and line, or the variable.
    """
    text, tables = _read(file)
    local = _dotenv()
    env = {**local, **environ}
    named = (*_from_environment(local, ".env"), *_from_environment(environ, "environment"))
    for section, keys in (*named, *((s, dict(k)) for s, k in overrides.items())):
        tables.setdefault(section, {}).update(keys)
    for section, key in RETIRED:
        tables.get(section, {}).pop(key, None)
    tables["environment"] = _environment(local, environ)
    tables["state_dir"] = str(state_dir(env))
    _check_utf8("the state directory", tables["state_dir"])
    try:
        config = msgspec.convert(tables, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), file, text)) from None
    _check(config)
    return config


def encode(config: Config) -> str:
    """The configuration as JSON, for a worker's boot message. Holds secrets: it never leaves a private pipe."""
    return msgspec.json.encode(config).decode()


def decode(text: str) -> Config:
    """The inverse of `encode`."""
    return msgspec.json.decode(text, type=Config)


def state_dir(environ: Mapping[str, str]) -> Path:
    """Where the embedded store and development secrets live. systemd's $STATE_DIRECTORY may list several."""
    own = environ.get("VIZORA_STATE_DIR") or environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(own) if own else Path(environ.get("HOME") or Path.home()) / ".local" / "state" / "vizora-rt"


def with_secrets(config: Config) -> Config:
    """`config` with secrets that tokens may be signed with.

    In development they are made once and kept in `<state_dir>/secrets.json`, so that `token` signs what `serve` trusts;
    there one that is set may be any. Elsewhere it raises ConfigError naming the variables that are missing, and those
    whose value protects nothing.
    """
    if not config.development:
        _check_secrets(config)
        return config
    found = _development_secrets(Path(config.state_dir) / "secrets.json")
    own = {key: found[key] for key in DEVELOPMENT_SECRETS if not getattr(config.auth, key)}
    return msgspec.structs.replace(config, auth=msgspec.structs.replace(config.auth, **own))


def doubts(config: Config) -> list[str]:
    """What can be run, and is hardly meant."""
    secrets, found = _secrets(config), []
    if not config.auth.internal_api_secret and not config.development:
        found.append("INTERNAL_API_SECRET is not set: the control API refuses every call with 401")
    for name, secret in secrets.items():
        size = len(secret.encode())
        if size < GOOD_SECRET_BYTES:
            found.append(f"{name} has {size} bytes: at least {GOOD_SECRET_BYTES} are advised ({GENERATE})")
    for one, other in combinations(secrets, 2):
        # The one before may be the present one: then nothing has been replaced yet.
        if secrets[one] == secrets[other] and other != f"{one}_PREVIOUS":
            found.append(f"{one} and {other} are the same: what knows the one has the power of the other")
    return found


def reloaded(running: Config, new: Config) -> tuple[Config, list[str]]:
    """What a running service can take of `new`, and the keys that it can only take by a restart."""
    fixed = [("server", key) for key in ("host", "port", "workers")]
    if bool(running.redis.url) is not bool(new.redis.url):
        fixed.append(("redis", "url"))
    kept: list[str] = []
    for section, key in fixed:
        old, wanted = getattr(running, section), getattr(new, section)
        if getattr(old, key) != getattr(wanted, key):
            kept.append(f"{section}.{key}")
            wanted = msgspec.structs.replace(wanted, **{key: getattr(old, key)})
            new = msgspec.structs.replace(new, **{section: wanted})
    return msgspec.structs.replace(new, state_dir=running.state_dir), kept


def descriptor_room() -> int:
    """Connections that the soft descriptor limit of this process allows, less the reserve."""
    return max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FD_RESERVE)


def _secrets(config: Config) -> dict[str, str]:
    """The secrets that are set, by their variable. A public key is none."""
    found = {name: getattr(getattr(config, section), key) for name, (section, key) in SECRETS.items()}
    public = config.auth.algorithm != "HS256"
    return {name: secret for name, secret in found.items() if secret and not (public and "JWT" in name)}


def _check_secrets(config: Config) -> None:
    missing = [name for name in ("DEVICE_JWT_SECRET", "JWT_SECRET") if not getattr(config.auth, name.lower())]
    where = f"outside development (VIZORA_ENV is {config.environment})"
    if missing:
        raise ConfigError(f"environment: {' and '.join(missing)} must be set {where}")
    faults = {name: fault for name, secret in _secrets(config).items() if (fault := secret_strength.fault(secret))}
    if faults:
        said = "; ".join(f"{name} {fault}" for name, fault in faults.items())
        raise ConfigError(f"{said}: refused {where}. `{GENERATE}` prints one that is good")


def _environment(local: Mapping[str, str], environ: Mapping[str, str]) -> str:
    env = {**local, **environ}
    name = "VIZORA_ENV" if env.get("VIZORA_ENV") else "NODE_ENV"
    value = env.get(name) or "production"
    if value not in ENVIRONMENTS:
        source = "environment" if name in environ else ".env"
        raise ConfigError(f"{source}: {name}: invalid enum value {value[:64]!r}; allowed: {', '.join(ENVIRONMENTS)}")
    return value


def _development_secrets(file: Path) -> dict[str, str]:
    """Those of `file`, which is made when it is not there. Two processes that start at once get the same ones."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"the state directory {file.parent} is no directory: {_kind(file.parent)}") from None
    except OSError as error:
        raise ConfigError(f"the state directory {file.parent} cannot be made: {error.strerror}") from None
    try:
        if not file.exists():
            # Readable by the owner only, and complete when it appears under its name.
            with tempfile.NamedTemporaryFile("w", dir=file.parent, encoding="utf-8") as temporary:
                json.dump({key: secrets.token_urlsafe(32) for key in DEVELOPMENT_SECRETS}, temporary)
                temporary.flush()
                try:
                    os.link(temporary.name, file)
                except FileExistsError:
                    pass
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{file}: not JSON; remove it to have it made again") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in DEVELOPMENT_SECRETS):
        raise ConfigError(f"{file}: must hold {', '.join(DEVELOPMENT_SECRETS)}; remove it to have it made again")
    return found


def _kind(path: Path) -> str:
    """What stands where a directory should."""
    return "a link that leads nowhere" if path.is_symlink() and not path.exists() else "a file"


def _read(file: Path | None) -> tuple[str, dict[str, Any]]:
    if file is None:
        return "", {}
    try:
        text = file.read_text("utf-8")
        tables = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{file}: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from None
    for name, table in tables.items():
        if name not in SECTIONS:
            raise ConfigError(f"{file}{_line(text, '', name)}: unknown section or key `{name}`")
        if not isinstance(table, dict):
            raise ConfigError(f"{file}{_line(text, '', name)}: `{name}` is a section: write [{name}]")
    return text, tables


def _dotenv() -> dict[str, str]:
    path = Path(".env")
    if not path.is_file():
        return {}
    try:
        values = dotenv.dotenv_values(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f".env: {error.strerror if isinstance(error, OSError) else 'not UTF-8'}") from None
    return {name: value for name, value in values.items() if value is not None}


def _from_environment(environ: Mapping[str, str], source: str) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    for name, (section, key) in ALIASES.items():
        if environ.get(name):
            found.append((section, {key: _typed(f"{source}: {name}", section, key, environ[name])}))
    for name, value in environ.items():
        if not name.startswith("VIZORA_") or name in NOT_KEYS:
            continue
        section, separator, key = name.removeprefix("VIZORA_").lower().partition("__")
        if not separator or (section, key) in RETIRED:
            continue
        if section not in SECTIONS or key not in _fields(section):
            raise ConfigError(f"{source}: {name}: there is no key `{section}.{key}`")
        found.append((section, {key: _typed(f"{source}: {name}", section, key, value)}))
    return found


def _check_utf8(name: str, value: str) -> None:
    """Raises ConfigError for bytes of another encoding, which Python shows as lone surrogates (PEP 383)."""
    if not value.isascii() and any("\ud800" <= each <= "\udfff" for each in value):
        raise ConfigError(f"{name}: not UTF-8")


def _fields(section: str) -> dict[str, Any]:
    struct = type(getattr(Config(), section))
    return {field.name: field.type for field in msgspec.structs.fields(struct)}


def _typed(name: str, section: str, key: str, value: str) -> Any:
    """`value` as the type of its key; the message never shows the value, it may be a secret."""
    _check_utf8(name, value)
    kind = _fields(section)[key]
    raw: Any = tuple(part.strip() for part in value.split(",") if part.strip()) if key in LISTS else value
    try:
        return msgspec.to_builtins(msgspec.convert(raw, kind, strict=False))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {str(error)[0].lower()}{str(error)[1:]}{_allowed(section, key)}") from None


def _allowed(section: str, key: str) -> str:
    """What may stand there, when it is one of a few words."""
    kind = _fields(section).get(key) if section in SECTIONS else None
    words = ("true", "false") if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
    return f"; allowed: {', '.join(words)}" if words else ""


def _explain(message: str, file: Path | None, text: str) -> str:
    reason, _, path = message.partition(" - at `")
    path = path.rstrip("`").removeprefix("$").lstrip(".")
    unknown = re.match(r"Object contains unknown field `(.+)`", reason)
    if unknown:
        path, reason = f"{path}.{unknown[1]}", "unknown key"
    section, _, key = path.partition(".")
    reason = reason[0].lower() + reason[1:]
    where = f"{file or 'configuration'}{_line(text, section, key.split('[')[0])}"
    return f"{where}: {path}: {reason}{'' if unknown else _allowed(section, key)}"


def _line(text: str, section: str, key: str) -> str:
    """`:N`, the line of `key` in `section`, or nothing when it did not come from the file."""
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*([\w.-]+)\s*\]", line)
        if header:
            current = header[1]
            if not section and current == key:
                return f":{number}"
        elif current == section and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return f":{number}"
    return ""


def _check(config: Config) -> None:
    wanted, room = config.limits.max_connections, descriptor_room()
    if wanted is not None and wanted > room:
        raise ConfigError(
            f"limits.max_connections: {wanted} is above {room}, what the descriptor limit of this process allows: "
            f"raise LimitNOFILE (ulimit -n) to {wanted + FD_RESERVE} or lower the key"
        )
    for proxy in config.server.trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError as error:
            raise ConfigError(f"server.trusted_proxies: {error}") from None
    for origin in config.auth.cors_origins:
        if _ORIGIN.fullmatch(origin) is None:
            raise ConfigError(
                f"auth.cors_origins: {origin!r} is no origin: expected one like https://dash.example, or *"
            )
    if config.server.proxy_protocol and not config.server.trusted_proxies:
        raise ConfigError("server.proxy_protocol: whose? Name the proxies in server.trusted_proxies")
    if config.redis.url and not re.match(r"(rediss?|valkeys?|unix|rediss?\+(sentinel|cluster))://", config.redis.url):
        raise ConfigError(
            "redis.url: must begin with redis://, rediss://, valkey://, valkeys://, unix://, redis+sentinel:// or "
            "redis+cluster://"
        )
    for name in TLS_FILES:
        if getattr(config.redis, name) and not config.redis.url.startswith(("rediss://", "valkeys://")):
            raise ConfigError(f"redis.{name}: is for TLS: redis.url must begin with rediss://")
    if bool(config.redis.cert_file) is not bool(config.redis.key_file):
        raise ConfigError("redis.cert_file and redis.key_file: a client certificate needs both")
    if config.auth.refresh and config.auth.algorithm != "HS256":
        raise ConfigError(
            f"auth.refresh: needs auth.algorithm HS256: with {config.auth.algorithm} only the holder of the private "
            "key can make tokens"
        )
