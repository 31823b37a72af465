"""The commands as processes: what they print, and how they end."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

import jwt
import pytest
import redis

from tests.service import PATIENCE, Service, until
from vizora_rt import cli, config
from vizora_rt.app.auth import Verifier
from vizora_rt.config import Config
from vizora_rt.net import embedded

COMMANDS = [
    [], ["serve"], ["demo"], ["check-config"], ["token"], ["token", "device"], ["token", "user"],
    ["plays"], ["plays", "tail"], ["plays", "export"], ["events"], ["events", "tail"], ["events", "export"],
    ["device"], ["device", "list"], ["device", "show"], ["device", "kick"], ["device", "revoke"], ["device", "erase"],
    ["ops"], ["ops", "alerts"], ["ops", "metrics"], ["ops", "dashboards"], ["ops", "drill"],
    ["ops", "monitoring"], ["ops", "compose"],
]  # fmt: skip

SECRETS = {"DEVICE_JWT_SECRET": "d" * 32, "JWT_SECRET": "u" * 32}


def run(folder: Path, *arguments: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """`vizora-rt` in `folder`, in development, in an environment of its own."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "VIZORA_ENV": "development",
        "VIZORA_STATE_DIR": str(folder / "state"),
        **env,
    }
    return subprocess.run(
        [sys.executable, "-m", "vizora_rt", *arguments],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a command which cannot start writes."""
    assert done.returncode == code, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("vizora-rt: ")
    return said[0].removeprefix("vizora-rt: ")


class TestHelp:
    @pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
    def test_every_command_explains_itself(self, tmp_path: Path, arguments: list[str]) -> None:
        done = run(tmp_path, *arguments, "--help")
        assert done.returncode == 0
        assert "Usage: " in done.stdout
        assert "Example: vizora-rt" in done.stdout.replace("VIZORA_ENV=development ", "") or arguments in (
            [],
            ["token"],
            ["plays"],
            ["events"],
            ["device"],
            ["ops"],
        )

    def test_a_wrong_option_is_a_matter_of_usage(self, tmp_path: Path) -> None:
        done = run(tmp_path, "serve", "--prot", "1")
        assert done.returncode == 2
        assert "--port" in done.stderr
        assert "Traceback" not in done.stderr


class TestServe:
    """What needs no running service. The rest is in test_supervisor."""

    def test_a_port_in_use_is_one_line(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            line = refused(run(tmp_path, "serve", "--host", "127.0.0.1", "--port", str(port)), 69)
        assert line == f"cannot listen on 127.0.0.1:{port}: Address already in use"

    def test_a_bad_configuration_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text("[server]\nprot = 3001\n")
        assert refused(run(tmp_path, "serve"), 78) == "config.toml:2: server.prot: unknown key"

    def test_a_redis_that_is_away_is_one_line(self, tmp_path: Path) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            url = f"redis://user:opaque@127.0.0.1:{nobody.getsockname()[1]}/1"
            line = refused(run(tmp_path, "serve", "--port", "0", env={"REDIS_URL": url}), 69)
        assert re.fullmatch(r"Redis at redis://127\.0\.0\.1:\d+/1 cannot be reached: Connection refused", line)

    def test_outside_development_secrets_are_not_invented(self, tmp_path: Path) -> None:
        line = refused(run(tmp_path, "serve", env={"VIZORA_ENV": "production"}), 78)
        assert "DEVICE_JWT_SECRET and JWT_SECRET must be set" in line
        line = refused(run(tmp_path, "serve", env={"VIZORA_ENV": "production", "JWT_SECRET": "u"}), 78)
        assert "DEVICE_JWT_SECRET must be set" in line
        assert not (tmp_path / "state").exists()


class TestCheckConfig:
    def test_it_prints_toml_of_what_is_in_effect_without_secrets(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text("[server]\nport = 4000\n")
        env = {**SECRETS, "METRICS_TOKEN": "opaque", "CORS_ORIGIN": "https://a.example", "VIZORA_SERVER__WORKERS": "3"}
        done = run(tmp_path, "check-config", env=env)
        assert (done.returncode, done.stderr) == (0, "")
        shown = tomllib.loads(done.stdout)
        assert (shown["server"]["port"], shown["server"]["workers"]) == (4000, 3)
        assert shown["auth"]["cors_origins"] == ["https://a.example"]
        assert shown["auth"]["jwt_secret"] == shown["metrics"]["token"] == "<set>"
        assert shown["auth"]["internal_api_secret"] == ""
        assert not any(secret in done.stdout for secret in (*SECRETS.values(), "opaque"))
        assert set(shown) == set(config.SECTIONS)

    def test_it_notes_what_is_hardly_meant(self, tmp_path: Path) -> None:
        def notes(**env: str) -> list[str]:
            done = run(tmp_path, "check-config", env={"VIZORA_ENV": "production", **env})
            assert (done.returncode, done.stderr) == (0, "")
            return [line for line in done.stdout.splitlines() if line.startswith("# note: ")]

        good = {"DEVICE_JWT_SECRET": "d" * 32, "JWT_SECRET": "u" * 32, "INTERNAL_API_SECRET": "k"}
        assert notes(**good) == []
        assert notes(**{**good, "INTERNAL_API_SECRET": ""}) == [
            "# note: INTERNAL_API_SECRET is not set: the control API refuses every call with 401"
        ]
        short, same = notes(**{**good, "DEVICE_JWT_SECRET": "s", "JWT_SECRET": "s"})[1:]
        assert short == "# note: auth.jwt_secret has 1 bytes: fewer than 32 can be guessed from one token"
        assert "are the same" in same

    @pytest.mark.parametrize("origin", ["dash.example", "https://*.example", "https://dash.example/app", "//dash"])
    def test_an_origin_that_no_browser_sends_is_one_line(self, tmp_path: Path, origin: str) -> None:
        line = refused(run(tmp_path, "check-config", env={**SECRETS, "CORS_ORIGIN": origin}), 78)
        assert f"{origin!r} is no origin" in line

    def test_what_it_prints_is_taken_again(self, tmp_path: Path) -> None:
        file = tmp_path / "printed.toml"
        file.write_text("\n".join(cli.effective(Config())))
        assert config.load(file, {}, {}) == config.load(None, {}, {})

    def test_it_names_what_is_missing(self, tmp_path: Path) -> None:
        assert "JWT_SECRET must be set" in refused(run(tmp_path, "check-config", env={"VIZORA_ENV": "production"}), 78)

    def test_it_makes_nothing(self, tmp_path: Path) -> None:
        assert run(tmp_path, "check-config").returncode == 0
        assert list(tmp_path.iterdir()) == []

    def test_it_looks_for_redis_and_shows_no_password(self, tmp_path: Path) -> None:
        store = embedded.start(tmp_path / "redis")
        try:
            done = run(tmp_path, "check-config", env={"REDIS_URL": store.url})
            assert done.returncode == 0
            assert "# Redis can be reached and used" in done.stdout
        finally:
            store.stop()
        assert "cannot be reached" in refused(run(tmp_path, "check-config", env={"REDIS_URL": store.url}), 69)
        done = run(tmp_path, "check-config", env={"REDIS_URL": "redis://me:opaque@127.0.0.1:1"})
        assert 'url = "redis://127.0.0.1:1/0"' in done.stdout
        assert "opaque" not in done.stdout + done.stderr


class TestToken:
    def test_a_device_token_is_one_that_serve_takes(self, tmp_path: Path) -> None:
        done = run(tmp_path, "token", "device", "lobby-1", "--org", "acme")
        assert done.returncode == 0, done.stderr
        file = tmp_path / "state" / "secrets.json"
        assert file.stat().st_mode & 0o777 == 0o600
        settings = config.with_secrets(
            config.load(None, {"VIZORA_ENV": "development", "VIZORA_STATE_DIR": str(tmp_path / "state")})
        )
        identity = Verifier(settings.auth).verify(done.stdout.strip(), time.time())
        assert (getattr(identity, "id", None), getattr(identity, "kind", None)) == ("lobby-1", "device")

    def test_many_are_one_a_line_and_the_secrets_are_made_once(self, tmp_path: Path) -> None:
        lines = run(tmp_path, "token", "device", "d", "--org", "o", "--count", "3", "--ttl", "1h").stdout.split("\n")
        lines += run(tmp_path, "token", "device", "e", "--org", "o").stdout.split("\n")
        secret = json.loads((tmp_path / "state" / "secrets.json").read_text())["device_jwt_secret"]
        claims = [jwt.decode(line, secret, algorithms=["HS256"]) for line in lines if line]
        assert [claim["sub"] for claim in claims] == ["d-00001", "d-00002", "d-00003", "e"]
        assert [claim["exp"] - claim["iat"] for claim in claims] == [3600, 3600, 3600, 90 * 86400]

    def test_a_reader_that_has_enough_is_no_fault(self, tmp_path: Path) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        command = [sys.executable, "-m", "vizora_rt", "token", "device", "d", "--org", "o", "--count", "9"]
        env = {**os.environ, "VIZORA_ENV": "development", "VIZORA_STATE_DIR": str(tmp_path)}
        done = subprocess.run(command, env=env, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")

    def test_a_user_s_token_is_signed_with_the_other_secret(self, tmp_path: Path) -> None:
        done = run(tmp_path, "token", "user", "alice", "--org", "acme", "--email", "a@b.example", env=SECRETS)
        claims = jwt.decode(done.stdout.strip(), SECRETS["JWT_SECRET"], algorithms=["HS256"])
        assert (claims["sub"], claims["email"], claims["exp"] - claims["iat"]) == ("alice", "a@b.example", 12 * 3600)

    @pytest.mark.parametrize("ttl", ["soon", "0d", "-1h", "5", "1w", "99999999999d"])
    def test_a_life_that_is_none_is_a_matter_of_usage(self, tmp_path: Path, ttl: str) -> None:
        done = run(tmp_path, "token", "device", "d", "--org", "o", f"--ttl={ttl}")
        assert done.returncode == 2
        assert "45s, 30m, 12h, 90d" in done.stderr

    def test_an_id_that_is_none_is_one_line(self, tmp_path: Path) -> None:
        assert "an id has" in refused(run(tmp_path, "token", "device", "a b", "--org", "o"), 78)

    def test_outside_development_it_signs_with_configured_secrets_only(self, tmp_path: Path) -> None:
        env = {"VIZORA_ENV": "production"}
        assert "must be set" in refused(run(tmp_path, "token", "device", "d", "--org", "o", env=env), 78)
        assert run(tmp_path, "token", "device", "d", "--org", "o", env=env | SECRETS).returncode == 0


class TestDevice:
    """What the commands do to a running service is in tests/net/test_devices.py."""

    def test_a_device_is_locked_out_let_in_and_erased(self, tmp_path: Path, redis_url: str) -> None:
        env = {"REDIS_URL": redis_url}
        assert run(tmp_path, "device", "revoke", "lobby", "--reason", "stolen", env=env).stdout == (
            "revoked, no worker has it\n"
        )
        shown = json.loads(run(tmp_path, "device", "show", "lobby", env=env).stdout)
        assert (shown["deviceId"], shown["status"], shown["revoked"]["reason"]) == ("lobby", "revoked", "stolen")
        assert run(tmp_path, "device", "revoke", "lobby", "--undo", env=env).stdout == "no longer revoked\n"
        assert run(tmp_path, "device", "revoke", "lobby", "--undo", env=env).stdout == "was not revoked\n"
        assert run(tmp_path, "device", "kick", "lobby", env=env).stdout == "no worker has it\n"
        for command in (("show", "lobby"), ("erase", "lobby", "--yes")):
            assert refused(run(tmp_path, "device", *command, env=env), 1) == "lobby: no such device"

    @pytest.mark.parametrize(
        ("arguments", "fields"),
        [
            (("kick", "lobby"), {"command": "device kick", "result": "no worker has it"}),
            (
                ("revoke", "lobby", "--reason", "stolen"),
                {"command": "device revoke", "result": "revoked, no worker has it", "reason": "stolen"},
            ),
            (
                ("revoke", "lobby", "--jti", "t1"),
                {"command": "device revoke", "result": "revoked, no worker has it", "reason": "revoked", "jti": "t1"},
            ),
            (("revoke", "lobby", "--undo"), {"command": "device revoke --undo", "result": "was not revoked"}),
            (("erase", "lobby", "--yes"), {"command": "device erase", "result": "erased"}),
        ],
    )
    def test_what_changes_something_leaves_one_line(
        self, tmp_path: Path, redis_url: str, arguments: tuple[str, ...], fields: dict[str, str]
    ) -> None:
        redis.Redis.from_url(redis_url).set("vz:{d:lobby}:status", b'{"status":"offline"}')
        env = {"REDIS_URL": redis_url, "USER": "ops", **SECRETS, "INTERNAL_API_SECRET": "k" * 20}
        done = run(tmp_path, "device", *arguments, env=env)
        (line,) = done.stderr.splitlines()
        record = json.loads(line)
        for name in ("time", "level", "logger", "process"):
            record.pop(name)
        assert record == {"event": "audit", "user": "ops", "device_id": "lobby", **fields}
        assert done.stdout == fields["result"] + "\n"

    @pytest.mark.parametrize("arguments", [("list", "--org", "acme"), ("show", "lobby")])
    def test_what_only_looks_leaves_none(self, tmp_path: Path, redis_url: str, arguments: tuple[str, ...]) -> None:
        redis.Redis.from_url(redis_url).set("vz:{d:lobby}:status", b'{"status":"offline"}')
        assert "audit" not in run(tmp_path, "device", *arguments, env={"REDIS_URL": redis_url}).stderr

    def test_a_reason_is_as_long_as_over_http(self, tmp_path: Path, redis_url: str) -> None:
        env = {"REDIS_URL": redis_url}
        done = run(tmp_path, "device", "revoke", "lobby", "--reason", "x" * 257, env=env)
        assert (done.returncode, redis.Redis.from_url(redis_url).keys("*")) == (2, [])
        assert run(tmp_path, "device", "revoke", "lobby", "--reason", "x" * 256, env=env).returncode == 0

    def test_a_list_is_one_object_a_line(self, tmp_path: Path, redis_url: str) -> None:
        client = redis.Redis.from_url(redis_url)
        client.zadd("vz:{o:acme}:devices", {"a": 1, "b": 3, "c": 2})
        client.set("vz:{d:b}:status", b'{"status":"online"}')
        client.set("vz:{d:a}:owner", "x")
        done = run(tmp_path, "device", "list", "--org", "acme", "--limit", "2", env={"REDIS_URL": redis_url})
        assert [json.loads(line) for line in done.stdout.splitlines()] == [
            {"deviceId": "b", "lastSeen": 3, "status": "online"},
            {"deviceId": "c", "lastSeen": 2, "status": "unknown"},
        ]
        assert done.stderr == "2 of 3\n"

    def test_an_erasure_is_confirmed(self, tmp_path: Path, redis_url: str) -> None:
        client = redis.Redis.from_url(redis_url)
        client.set("vz:{d:lobby}:status", b'{"status":"offline"}')
        assert run(tmp_path, "device", "erase", "lobby", env={"REDIS_URL": redis_url}).returncode != 0
        assert client.exists("vz:{d:lobby}:status")
        assert run(tmp_path, "device", "erase", "lobby", "--yes", env={"REDIS_URL": redis_url}).stdout == "erased\n"
        assert not client.exists("vz:{d:lobby}:status")

    def test_what_is_no_id_is_a_matter_of_usage(self, tmp_path: Path) -> None:
        assert run(tmp_path, "device", "show", "a b").returncode == 2

    def test_without_redis_it_is_one_line(self, tmp_path: Path) -> None:
        assert "there is no Redis" in refused(run(tmp_path, "device", "show", "lobby"), 69)
        env = {"REDIS_URL": f"unix://{tmp_path}/none.sock"}
        assert "cannot be asked" in refused(run(tmp_path, "device", "show", "lobby", env=env), 69)


class TestDemo:
    def test_screens_are_online_at_metrics(self, tmp_path: Path) -> None:
        with Service(tmp_path, command="demo", args=("--devices", "7")) as service:
            service.start()
            online = 'vizora_realtime_devices_online{organization_id="north"}'
            until(lambda: service.metric(online) == 4)
            until(lambda: (service.metric('vizora_realtime_ws_messages_total{type="heartbeat",result="ok"}') or 0) >= 7)
            assert service.stop() == 0
            assert not any("Traceback" in line for line in service.lines)
