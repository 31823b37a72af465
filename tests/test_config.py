"""config.toml, .env, environment, command line: which wins, and the exact line for everything that is refused."""

import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vizora_rt import config
from vizora_rt.config import ALIASES, SECTIONS, Config
from vizora_rt.errors import ConfigError

SHIPPED = Path(__file__).parent.parent / "config.toml"

KEYS = [
    (section, field.name)
    for section in SECTIONS
    for field in msgspec.structs.fields(type(getattr(Config(), section)))
]  # fmt: skip

OTHER: dict[str, tuple[str, Any]] = {
    # a value that is no default, for every alias
    "PORT": ("4000", 4000),
    "REDIS_URL": ("redis://somewhere:1/2", "redis://somewhere:1/2"),
    "DEVICE_JWT_SECRET": ("sesame", "sesame"),
    "DEVICE_JWT_SECRET_PREVIOUS": ("sesame", "sesame"),
    "JWT_SECRET": ("sesame", "sesame"),
    "JWT_SECRET_PREVIOUS": ("sesame", "sesame"),
    "INTERNAL_API_SECRET": ("sesame", "sesame"),
    "METRICS_TOKEN": ("sesame", "sesame"),
    "CORS_ORIGIN": (" https://a.example ,, http://b.example,", ("https://a.example", "http://b.example")),
    "SENTRY_DSN": ("https://key@sentry.example/1", "https://key@sentry.example/1"),
    "SENTRY_TRACES_SAMPLE_RATE": ("0.5", 0.5),
    "SENTRY_PROFILES_SAMPLE_RATE": ("1", 1.0),
    "SENTRY_DEBUG": ("true", True),
    "RELEASE_VERSION": ("1.2.3", "1.2.3"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory of the test's own: `.env` is read from there."""
    monkeypatch.chdir(tmp_path)


def get(loaded: Config, section: str, key: str) -> Any:
    return getattr(getattr(loaded, section), key)


def load_text(text: str, environ: dict[str, str] | None = None) -> Config:
    Path("config.toml").write_text(text)
    return config.load(Path("config.toml"), environ or {})


def refusal(text: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_text(text, environ)
    line = str(caught.value)
    assert "\n" not in line
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return line


class TestShippedFile:
    def test_is_the_defaults(self) -> None:
        assert config.load(SHIPPED, {"HOME": "/h"}) == config.load(None, {"HOME": "/h"})
        assert config.load(None, {"HOME": "/h"}) == Config(state_dir="/h/.local/state/vizora-rt")

    @pytest.mark.parametrize(("section", "key"), KEYS)
    def test_names_the_key_and_says_why(self, section: str, key: str) -> None:
        body = SHIPPED.read_text().split(f"\n[{section}]\n")[1].split("\n[")[0]
        found = re.findall(rf"^(?:# )?{key} = \S", body, re.MULTILINE)
        assert len(found) == 1
        above = body[: re.search(rf"^(?:# )?{key} = ", body, re.MULTILINE).start()].splitlines()  # type: ignore[union-attr]
        assert any(line.startswith("# ") for line in above[-4:])

    def test_has_the_sections_in_order(self) -> None:
        assert tuple(re.findall(r"^\[(\w+)\]$", SHIPPED.read_text(), re.MULTILINE)) == SECTIONS

    @pytest.mark.parametrize("alias", ALIASES)
    def test_names_the_alias(self, alias: str) -> None:
        assert re.search(rf"\[{alias}\b", SHIPPED.read_text())


class TestPrecedence:
    def test_environment_over_dotenv_over_file(self) -> None:
        name = "VIZORA_SERVER__PORT"
        assert load_text("").server.port == 3001
        assert load_text("[server]\nport = 1").server.port == 1
        Path(".env").write_text(f"{name}=2\n")
        assert load_text("[server]\nport = 1").server.port == 2
        assert load_text("[server]\nport = 1", {name: "3"}).server.port == 3
        loaded = config.load(Path("config.toml"), {name: "3"}, {"server": {"port": 4}})
        assert loaded.server.port == 4

    def test_the_long_name_over_the_alias(self) -> None:
        assert load_text("", {"PORT": "1", "VIZORA_SERVER__PORT": "2"}).server.port == 2

    def test_any_name_in_the_environment_over_any_in_dotenv(self) -> None:
        Path(".env").write_text("VIZORA_SERVER__PORT=2\n")
        assert config.load(None, {"PORT": "3"}).server.port == 3

    def test_only_what_is_named_changes(self) -> None:
        loaded = config.load(None, {"VIZORA_SERVER__BACKLOG": "7"}, {"server": {"port": 4}, "logging": {}})
        assert loaded.server == config.ServerSettings(port=4, backlog=7)
        assert loaded.logging == config.LoggingSettings()

    def test_without_a_file_and_dotenv(self) -> None:
        assert config.load(None, {}).server == config.ServerSettings()

    def test_dotenv_names_the_environment_and_state(self) -> None:
        Path(".env").write_text("NODE_ENV=development\nVIZORA_STATE_DIR=/s\nFLAG\n")
        loaded = config.load(None, {})
        assert (loaded.environment, loaded.state_dir) == ("development", "/s")

    @pytest.mark.parametrize(
        ("environ", "environment"),
        [
            ({}, "production"),
            ({"NODE_ENV": "staging"}, "staging"),
            ({"NODE_ENV": "staging", "VIZORA_ENV": "development"}, "development"),
            ({"NODE_ENV": "", "VIZORA_ENV": ""}, "production"),
        ],
    )
    def test_environment(self, environ: dict[str, str], environment: str) -> None:
        loaded = config.load(None, environ)
        assert loaded.environment == environment
        assert loaded.development is (environment == "development")

    @pytest.mark.parametrize(
        ("environ", "directory"),
        [
            ({"HOME": "/h"}, "/h/.local/state/vizora-rt"),
            ({"HOME": "/h", "STATE_DIRECTORY": "/var/lib/a"}, "/var/lib/a"),
            ({"HOME": "/h", "STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, "/var/lib/a"),
            ({"HOME": "/h", "STATE_DIRECTORY": "/var/lib/a", "VIZORA_STATE_DIR": "/own"}, "/own"),
            ({"HOME": "/h", "STATE_DIRECTORY": "", "VIZORA_STATE_DIR": ""}, "/h/.local/state/vizora-rt"),
        ],
    )
    def test_state_directory(self, environ: dict[str, str], directory: str) -> None:
        assert config.state_dir(environ) == Path(directory)
        assert config.load(None, environ).state_dir == directory

    def test_state_directory_without_home(self) -> None:
        assert config.state_dir({}) == Path.home() / ".local" / "state" / "vizora-rt"


class TestAliases:
    def test_all_are_tested(self) -> None:
        assert set(OTHER) == set(ALIASES)

    @pytest.mark.parametrize("alias", ALIASES)
    def test_alias(self, alias: str) -> None:
        text, value = OTHER[alias]
        section, key = ALIASES[alias]
        assert get(Config(), section, key) != value
        assert get(config.load(None, {alias: text}), section, key) == value
        assert get(config.load(None, {alias: ""}), section, key) == get(Config(), section, key)
        name = f"VIZORA_{section}__{key}".upper()
        assert get(config.load(None, {name: text}), section, key) == value

    @pytest.mark.parametrize(("section", "key"), KEYS)
    def test_every_key_has_a_variable(self, section: str, key: str) -> None:
        """The default, written as a variable, is read back as the default: no type is out of reach of a string."""
        value = get(Config(), section, key)
        text = "null" if value is None else ",".join(value) if isinstance(value, tuple) else str(value).lower()
        if isinstance(value, str):
            text = value
        assert get(config.load(None, {f"VIZORA_{section}__{key}".upper(): text}), section, key) == value


class TestRefusals:
    @pytest.mark.parametrize(
        "name", ["DEVICE_JWT_SECRET", "JWT_SECRET", "METRICS_TOKEN", "REDIS_URL", "CORS_ORIGIN", "VIZORA_SERVER__HOST"]
    )
    def test_a_variable_that_is_not_utf_8(self, name: str) -> None:
        """Latin-1, as Python gives it; it came as far as the boot message of a worker, and ended the supervisor."""
        with pytest.raises(ConfigError, match=rf"^environment: {name}: not UTF-8$"):
            config.load(None, {name: b"p\xe4ssword-and-more".decode("utf-8", "surrogateescape")})

    @pytest.mark.parametrize("name", ["VIZORA_STATE_DIR", "STATE_DIRECTORY", "HOME"])
    def test_a_state_directory_that_is_not_utf_8(self, name: str) -> None:
        with pytest.raises(ConfigError, match=r"^the state directory: not UTF-8$"):
            config.load(None, {name: "/var/\udce4"})

    def test_a_state_directory_that_is_none(self, tmp_path: Path) -> None:
        file, link = tmp_path / "file", tmp_path / "link"
        file.write_text("")
        link.symlink_to(tmp_path / "nowhere")
        for place, complaint in (
            (file, f"{file} is no directory: a file"),
            (link, f"{link} is no directory: a link that leads nowhere"),
            (file / "below", f"{file}/below cannot be made: Not a directory"),
            (Path("/proc/none"), "/proc/none cannot be made: No such file or directory"),
        ):
            with pytest.raises(ConfigError) as raised:
                config.with_secrets(config.load(None, {"VIZORA_ENV": "development", "VIZORA_STATE_DIR": str(place)}))
            assert str(raised.value) == f"the state directory {complaint}"

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("[nope]\na = 1", "config.toml:1: unknown section or key `nope`"),
            ("# a\n\nport = 1", "config.toml:3: unknown section or key `port`"),
            ("environment = 'x'", "config.toml:1: unknown section or key `environment`"),
            ("\nlimits = 5", "config.toml:2: `limits` is a section: write [limits]"),
            ("[server]\n[limits]\n\nport = 1", "config.toml:4: limits.port: unknown key"),
            ("[server.x]\ny = 1", "config.toml: server.x: unknown key"),
            ("[limits]\n[server]\nport = 'x'", "config.toml:3: server.port: expected `int`, got `str`"),
            ("[ server ]\n  'port' = 'x'", "config.toml:2: server.port: expected `int`, got `str`"),
            ("[server]\nport = 65536", "config.toml:2: server.port: expected `int` <= 65535"),
            ("[server]\nport = true", "config.toml:2: server.port: expected `int`, got `bool`"),
            ("[server]\nbacklog = 0", "config.toml:2: server.backlog: expected `int` >= 1"),
            ("[server]\nworkers = -1", "config.toml:2: server.workers: expected `int` >= 0"),
            ("[server]\ndrain_seconds = 0", "config.toml:2: server.drain_seconds: expected `float` > 0.0"),
            ("[server]\ndrain_seconds = nan", "config.toml:2: server.drain_seconds: expected `float` > 0.0"),
            ("[server]\ndrain_seconds = inf", "config.toml:2: server.drain_seconds: expected `float` <= 86400.0"),
            (
                "[server]\ntrusted_proxies = ['10.0.0.1', '10.7.0.1/16']",
                "server.trusted_proxies: 10.7.0.1/16 has host bits set",
            ),
            (
                "[server]\nproxy_protocol = true",
                "server.proxy_protocol: whose? Name the proxies in server.trusted_proxies",
            ),
            ("[limits]\nmax_connections = 0", "config.toml:2: limits.max_connections: expected `int` >= 1"),
            ("[player]\nheartbeat_interval = 999", "config.toml:2: player.heartbeat_interval: expected `int` >= 1000"),
            (
                "[player]\nauto_update = 1",
                "config.toml:2: player.auto_update: expected `bool`, got `int`; allowed: true, false",
            ),
            (
                "[auth]\nalgorithm = 'none'",
                "config.toml:2: auth.algorithm: invalid enum value 'none'; allowed: HS256, RS256, ES256",
            ),
            ("[auth]\ncors_origins = ['a', 1]", "config.toml:2: auth.cors_origins[1]: expected `str`, got `int`"),
            ("[sentry]\ntraces_sample_rate = 1.1", "config.toml:2: sentry.traces_sample_rate: expected `float` <= 1.0"),
            (
                "[logging]\nlevel = 'debug'",
                "config.toml:2: logging.level: invalid enum value 'debug'; allowed: DEBUG, INFO, WARNING, ERROR",
            ),
            (
                "[logging]\nformat = 1",
                "config.toml:2: logging.format: expected `str`, got `int`; allowed: json, console",
            ),
            (
                "[redis]\nurl = 'http://h'",
                "redis.url: must begin with redis://, rediss://, valkey://, valkeys://, unix://, redis+sentinel:// or "
                "redis+cluster://",
            ),
            (
                "[auth]\nrefresh = true\nalgorithm = 'ES256'",
                "auth.refresh: needs auth.algorithm HS256: with ES256 only the holder of the private key can make "
                "tokens",
            ),
        ],
    )
    def test_file(self, text: str, line: str) -> None:
        assert refusal(text) == line

    @pytest.mark.parametrize("text", ["x", "[server]\nport = 1\nport = 2", "[server", "a = 'b"])
    def test_not_toml(self, text: str) -> None:
        assert refusal(text).startswith("config.toml: ")

    def test_no_such_file(self) -> None:
        with pytest.raises(ConfigError, match=r"^absent\.toml: No such file or directory$"):
            config.load(Path("absent.toml"), {})

    def test_a_directory(self) -> None:
        with pytest.raises(ConfigError, match=r": Is a directory$"):
            config.load(Path(), {})

    def test_not_utf8(self) -> None:
        Path("config.toml").write_bytes(b"# \xff\n")
        with pytest.raises(ConfigError, match=r"^config\.toml: not UTF-8$"):
            config.load(Path("config.toml"), {})

    @pytest.mark.parametrize(
        ("name", "value", "line"),
        [
            (
                "VIZORA_ENV",
                "dev\nforged",
                "environment: VIZORA_ENV: invalid enum value 'dev\\nforged'; "
                "allowed: development, test, staging, production",
            ),
            (
                "NODE_ENV",
                "Production",
                "environment: NODE_ENV: invalid enum value 'Production'; "
                "allowed: development, test, staging, production",
            ),
            (
                "VIZORA_LOGGING__LEVEL",
                "loud",
                "environment: VIZORA_LOGGING__LEVEL: invalid enum value 'loud'; allowed: DEBUG, INFO, WARNING, ERROR",
            ),
            ("PORT", "x", "environment: PORT: expected `int`, got `str`"),
            ("PORT", "70000", "environment: PORT: expected `int` <= 65535"),
            ("SENTRY_DEBUG", "maybe", "environment: SENTRY_DEBUG: expected `bool`, got `str`; allowed: true, false"),
            ("VIZORA_SERVER__PORT", "", "environment: VIZORA_SERVER__PORT: expected `int`, got `str`"),
            ("VIZORA_SERVER__PROT", "1", "environment: VIZORA_SERVER__PROT: there is no key `server.prot`"),
            ("VIZORA_SEVER__PORT", "1", "environment: VIZORA_SEVER__PORT: there is no key `sever.port`"),
            ("VIZORA_ENVIRONMENT__X", "1", "environment: VIZORA_ENVIRONMENT__X: there is no key `environment.x`"),
            (
                "VIZORA_METRICS__PUBLIC",
                "yes",
                "environment: VIZORA_METRICS__PUBLIC: expected `bool`, got `str`; allowed: true, false",
            ),
            (
                "REDIS_URL",
                "sesame",
                "redis.url: must begin with redis://, rediss://, valkey://, valkeys://, unix://, redis+sentinel:// or "
                "redis+cluster://",
            ),
        ],
    )
    def test_environment(self, name: str, value: str, line: str) -> None:
        assert refusal("", {name: value}) == line

    @pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:1/2", "unix:///run/x.sock", "valkey://h"])
    def test_redis_urls(self, url: str) -> None:
        assert config.load(None, {"REDIS_URL": url}).redis.url == url

    @pytest.mark.parametrize(
        ("content", "line"),
        [
            (b"PORT=x", ".env: PORT: expected `int`, got `str`"),
            (b"VIZORA_SERVER__PROT=1", ".env: VIZORA_SERVER__PROT: there is no key `server.prot`"),
            (
                b"VIZORA_ENV=dev",
                ".env: VIZORA_ENV: invalid enum value 'dev'; allowed: development, test, staging, production",
            ),
            (b"PORT=\xff", ".env: not UTF-8"),
        ],
    )
    def test_dotenv(self, content: bytes, line: str) -> None:
        Path(".env").write_bytes(content)
        assert refusal("") == line

    def test_more_connections_than_descriptors(self) -> None:
        room = config.descriptor_room()
        assert load_text(f"[limits]\nmax_connections = {room}").max_connections == room
        assert load_text("").max_connections == room
        assert refusal(f"[limits]\nmax_connections = {room + 1}") == (
            f"limits.max_connections: {room + 1} is above {room}, what the descriptor limit of this process allows: "
            f"raise LimitNOFILE (ulimit -n) to {room + 201} or lower the key"
        )

    def test_workers(self) -> None:
        assert load_text("[server]\nworkers = 3").workers == 3
        assert load_text("").workers >= 1


class TestSecrets:
    SECRETS = ("REDIS_URL", "DEVICE_JWT_SECRET", "DEVICE_JWT_SECRET_PREVIOUS", "JWT_SECRET", "JWT_SECRET_PREVIOUS",
               "INTERNAL_API_SECRET", "METRICS_TOKEN")  # fmt: skip

    def test_no_secret_in_repr(self) -> None:
        environ = dict.fromkeys(self.SECRETS, "redis://sesame")
        loaded = config.load(None, environ)
        assert loaded.auth.jwt_secret == "redis://sesame"
        for shown in (repr(loaded), str(loaded), f"{loaded.auth} {loaded.redis} {loaded.metrics}"):
            assert "sesame" not in shown

    @pytest.mark.parametrize("name", SECRETS)
    def test_no_secret_in_a_refusal(self, name: str) -> None:
        section, key = ALIASES[name]
        for text in (f"[{section}]\n{key} = ['sesame']", f"[{section}]\n{key} = 'sesame'\nport = 1"):
            assert "sesame" not in refusal(text)

    def test_travels_to_a_worker_whole(self) -> None:
        loaded = config.load(SHIPPED, {name: text for name, (text, _) in OTHER.items()})
        assert config.decode(config.encode(loaded)) == loaded


GOOD = {name: secrets.token_hex(32) for name in ("DEVICE_JWT_SECRET", "JWT_SECRET", "INTERNAL_API_SECRET")}


class TestDevelopmentSecrets:
    """`with_secrets`: required outside development; made once, and kept private, in it."""

    KEYS = ("device_jwt_secret", "jwt_secret", "internal_api_secret")

    @staticmethod
    def development(state: Path, **environ: str) -> Config:
        return config.load(None, {"VIZORA_ENV": "development", "VIZORA_STATE_DIR": str(state), **environ})

    @pytest.mark.parametrize(
        ("environ", "missing"),
        [
            ({}, "DEVICE_JWT_SECRET and JWT_SECRET"),
            ({"JWT_SECRET": "a"}, "DEVICE_JWT_SECRET"),
            ({"DEVICE_JWT_SECRET": "a"}, "JWT_SECRET"),
        ],
    )
    def test_required(self, environ: dict[str, str], missing: str) -> None:
        for name in ("production", "staging"):
            with pytest.raises(ConfigError) as caught:
                config.with_secrets(config.load(None, {"VIZORA_ENV": name, **environ}))
            where = f"outside development (VIZORA_ENV is {name})"
            assert str(caught.value) == f"environment: {missing} must be set {where}"

    def test_taken_as_configured(self, tmp_path: Path) -> None:
        state = str(tmp_path / "state")
        given = config.load(None, {**GOOD, "VIZORA_STATE_DIR": state})
        assert config.with_secrets(given) == given
        assert not Path(state).exists()

    @pytest.mark.parametrize("environment", ["test", "staging", "production"])
    @pytest.mark.parametrize("name", config.SECRETS)
    def test_what_protects_nothing_is_refused(self, name: str, environment: str) -> None:
        for weak, reason in (("...", "has 3 bytes, and at least 16"), ("<your secret, please>", "is a template")):
            loaded = config.load(None, {**GOOD, name: weak, "VIZORA_ENV": environment})
            with pytest.raises(ConfigError, match=f"^{name} {reason}.*openssl rand -hex 32") as caught:
                config.with_secrets(loaded)
            assert weak not in str(caught.value)

    def test_all_of_them_are_named_at_once(self) -> None:
        weak = dict.fromkeys(config.SECRETS, "changeme-changeme")
        with pytest.raises(ConfigError) as caught:
            config.with_secrets(config.load(None, weak))
        assert all(f"{name} is a placeholder" in str(caught.value) for name in config.SECRETS)

    def test_a_public_key_is_no_secret(self) -> None:
        loaded = config.load(None, {**GOOD, "VIZORA_AUTH__ALGORITHM": "ES256", "JWT_SECRET": "-----BEGIN"})
        assert config.with_secrets(loaded) == loaded
        assert config.doubts(loaded) == []

    def test_in_development_any_is_taken(self, tmp_path: Path) -> None:
        weak = dict.fromkeys(config.SECRETS, "x")
        assert config.with_secrets(self.development(tmp_path, **weak)).auth.jwt_secret == "x"

    @pytest.mark.parametrize("name", config.SECRETS)
    def test_a_short_one_is_doubted(self, name: str) -> None:
        short = secrets.token_hex(8)
        loaded = config.load(None, {**GOOD, name: short})
        assert config.with_secrets(loaded) == loaded
        (doubt,) = config.doubts(loaded)
        assert doubt == f"{name} has 16 bytes: at least 32 are advised (openssl rand -hex 32)"
        assert config.doubts(config.load(None, GOOD)) == []

    @pytest.mark.parametrize(
        ("one", "other", "doubted"),
        [
            ("DEVICE_JWT_SECRET", "JWT_SECRET", True),
            ("DEVICE_JWT_SECRET_PREVIOUS", "JWT_SECRET", True),
            ("JWT_SECRET", "INTERNAL_API_SECRET", True),
            ("INTERNAL_API_SECRET", "METRICS_TOKEN", True),
            ("JWT_SECRET", "JWT_SECRET_PREVIOUS", False),
        ],
    )
    def test_two_that_are_the_same_are_doubted(self, one: str, other: str, doubted: bool) -> None:
        same = secrets.token_hex(32)
        doubts = config.doubts(config.load(None, {**GOOD, one: same, other: same}))
        assert bool(doubts) is doubted
        assert all("are the same" in doubt and one in doubt and other in doubt for doubt in doubts)

    def test_made_once(self, tmp_path: Path) -> None:
        state = tmp_path / "a" / "state"
        first = config.with_secrets(self.development(state))
        assert len({getattr(first.auth, key) for key in self.KEYS}) == 3
        assert all(len(getattr(first.auth, key)) >= 32 for key in self.KEYS)
        assert config.with_secrets(self.development(state)) == first
        assert config.with_secrets(self.development(tmp_path / "b")).auth != first.auth

    def test_the_configured_win(self, tmp_path: Path) -> None:
        made = config.with_secrets(self.development(tmp_path))
        own = config.with_secrets(self.development(tmp_path, JWT_SECRET="own"))
        assert own.auth == msgspec.structs.replace(made.auth, jwt_secret="own")

    def test_for_the_owner_only(self, tmp_path: Path) -> None:
        state = tmp_path / "state"
        config.with_secrets(self.development(state))
        assert [path.name for path in state.iterdir()] == ["secrets.json"]
        assert (state / "secrets.json").stat().st_mode & 0o077 == 0
        assert state.stat().st_mode & 0o077 == 0

    def test_made_by_several_at_once(self, tmp_path: Path) -> None:
        loaded = self.development(tmp_path / "state")
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: config.with_secrets(loaded), range(32)))
        assert all(each == found[0] for each in found)

    @pytest.mark.parametrize(
        ("content", "line"),
        [
            (b"{", "not JSON; remove it to have it made again"),
            (b"\xff", "not JSON; remove it to have it made again"),
            (b"[]", "must hold device_jwt_secret, jwt_secret, internal_api_secret; remove it to have it made again"),
            (
                b'{"jwt_secret": "sesame"}',
                "must hold device_jwt_secret, jwt_secret, internal_api_secret; remove it to have it made again",
            ),
        ],
    )
    def test_spoilt(self, tmp_path: Path, content: bytes, line: str) -> None:
        file = tmp_path / "secrets.json"
        file.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            config.with_secrets(self.development(tmp_path))
        assert str(caught.value) == f"{file}: {line}"


class TestReload:
    def test_takes_what_a_running_service_can(self) -> None:
        running = config.load(None, {"VIZORA_STATE_DIR": "/old"})
        new = load_text("[limits]\nmessages_per_minute = 7\n[server]\ndrain_seconds = 3", {"VIZORA_STATE_DIR": "/new"})
        taken, kept = config.reloaded(running, new)
        assert kept == []
        assert (taken.limits.messages_per_minute, taken.server.drain_seconds, taken.state_dir) == (7, 3.0, "/old")

    def test_keeps_what_needs_a_restart(self) -> None:
        running = load_text("[server]\nport = 1\nhost = 'a'\nworkers = 2")
        new = load_text("[server]\nport = 2\nhost = 'b'\nworkers = 3\nbacklog = 9")
        taken, kept = config.reloaded(running, new)
        assert kept == ["server.host", "server.port", "server.workers"]
        assert taken.server == config.ServerSettings(port=1, host="a", workers=2, backlog=9)

    def test_another_redis_but_not_from_or_to_the_embedded_one(self) -> None:
        none, one, other = (config.load(None, {"REDIS_URL": url}) for url in ("", "redis://a", "redis://b"))
        assert config.reloaded(one, other) == (other, [])
        assert config.reloaded(none, one) == (none, ["redis.url"])
        assert config.reloaded(one, none) == (one, ["redis.url"])


VARIABLES = [*ALIASES, *(f"VIZORA_{section}__{key}".upper() for section, key in KEYS), "VIZORA_X__Y", "VIZORA_ENV"]


class TestAnything:
    @given(
        st.dictionaries(
            st.sampled_from(VARIABLES),
            st.one_of(st.text(max_size=30), st.integers().map(str), st.floats().map(str), st.just("null")),
            max_size=5,
        )
    )
    @settings(max_examples=500, deadline=None)
    def test_environment(self, environ: dict[str, str]) -> None:
        try:
            loaded = config.load(None, environ)
        except ConfigError as error:
            assert str(error).startswith(
                (
                    "environment: ",
                    "configuration",
                    "server.",
                    "limits.",
                    "redis.",
                    "auth.refresh: ",
                    "auth.cors_origins: ",
                )
            )
        else:
            assert isinstance(loaded, Config)

    @given(st.text(alphabet="[]server.port=123'\"\n# ", max_size=60))
    @settings(max_examples=500, deadline=None)
    def test_file(self, text: str) -> None:
        try:
            loaded = load_text(text)
        except ConfigError as error:
            assert str(error).startswith("config.toml")
        else:
            assert isinstance(loaded, Config)


class TestTlsFiles:
    def test_they_become_options_of_the_url(self) -> None:
        redis = config.RedisSettings(url="rediss://h/1", ca_file="/a b.pem", cert_file="/c&d.pem", key_file="/k.pem")
        assert redis.target == ("rediss://h/1?ca_file=/a%20b.pem&cert_file=/c%26d.pem&key_file=/k.pem")
        assert (
            config.RedisSettings(url="rediss://h?ca_file=/mine", ca_file="/other").target == "rediss://h?ca_file=/mine"
        )
        assert config.RedisSettings(url="redis://h/1").target == "redis://h/1"
        assert config.RedisSettings().target == ""

    @pytest.mark.parametrize(
        ("environ", "said"),
        [
            ({"VIZORA_REDIS__CA_FILE": "/a"}, "redis.ca_file: is for TLS"),
            ({"REDIS_URL": "redis://h", "VIZORA_REDIS__CERT_FILE": "/c"}, "redis.cert_file: is for TLS"),
            ({"REDIS_URL": "rediss://h", "VIZORA_REDIS__CERT_FILE": "/c"}, "a client certificate needs both"),
            ({"REDIS_URL": "rediss://h", "VIZORA_REDIS__KEY_FILE": "/k"}, "a client certificate needs both"),
        ],
    )
    def test_what_is_half_or_without_tls_is_refused(self, environ: dict[str, str], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            config.load(None, environ)
