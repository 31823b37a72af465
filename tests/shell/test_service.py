"""serve, check-config and demo. What a running service does is in test_supervisor."""

import socket
import tomllib
from pathlib import Path

import pytest

from tests.service import Service, until
from tests.shell.commands import SECRETS, refused, run
from vizora_rt import config
from vizora_rt.config import Config
from vizora_rt.net import embedded
from vizora_rt.shell import service


class TestServe:
    def test_a_port_in_use_is_one_line(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            line = refused(run(tmp_path, "serve", "--host", "127.0.0.1", "--port", str(port)), 69)
        assert line == f"cannot listen on 127.0.0.1:{port}: Address already in use"

    def test_a_bad_configuration_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").write_text("[server]\nprot = 3001\n")
        assert refused(run(tmp_path, "serve"), 78) == "config.toml:2: server.prot: unknown key"

    def test_a_redis_url_of_a_wrong_form_is_one_line(self, tmp_path: Path) -> None:
        line = refused(run(tmp_path, "serve", env={"REDIS_URL": "redis://:opa#que@127.0.0.1:1"}), 78)
        assert line == "redis.url: a # in the user or password must be written %23"

    def test_a_redis_that_refuses_us_is_one_line(self, tmp_path: Path) -> None:
        store = embedded.start(tmp_path / "redis")
        try:
            url = store.url.replace("unix://", "unix://user:opaque@")
            line = refused(run(tmp_path, "serve", "--port", "0", env={"REDIS_URL": url}), 78)
        finally:
            store.stop()
        assert "cannot be used: wrong user or password: AUTH was answered WRONGPASS" in line
        assert "opaque" not in line

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

        good = {**SECRETS, "INTERNAL_API_SECRET": "4c81f7d20b6e93a5" + "d82f60b1e7c4935a"}
        assert notes(**good) == []
        assert notes(**{**good, "INTERNAL_API_SECRET": ""}) == [
            "# note: INTERNAL_API_SECRET is not set: the control API refuses every call with 401"
        ]
        half = "9f1c5e7a2b8d4036"
        *short, same = notes(**{**good, "DEVICE_JWT_SECRET": half, "JWT_SECRET": half})
        advice = "has 16 bytes: at least 32 are advised (openssl rand -hex 32)"
        assert short == [f"# note: {name} {advice}" for name in SECRETS]
        assert "are the same" in same

    def test_a_placeholder_is_refused_and_not_shown(self, tmp_path: Path) -> None:
        env = {**SECRETS, "VIZORA_ENV": "production", "METRICS_TOKEN": "changeme-changeme"}
        for command in ("check-config", "serve"):
            line = refused(run(tmp_path, command, env=env), 78)
            assert line.startswith("METRICS_TOKEN is a placeholder: refused outside development")
            assert "changeme" not in line

    @pytest.mark.parametrize("origin", ["dash.example", "https://*.example", "https://dash.example/app", "//dash"])
    def test_an_origin_that_no_browser_sends_is_one_line(self, tmp_path: Path, origin: str) -> None:
        line = refused(run(tmp_path, "check-config", env={**SECRETS, "CORS_ORIGIN": origin}), 78)
        assert f"{origin!r} is no origin" in line

    def test_what_it_prints_is_taken_again(self, tmp_path: Path) -> None:
        file = tmp_path / "printed.toml"
        file.write_text("\n".join(service.effective(Config())))
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


class TestDemo:
    def test_screens_are_online_at_metrics(self, tmp_path: Path) -> None:
        with Service(tmp_path, command="demo", args=("--devices", "7")) as gateway:
            gateway.start()
            online = 'vizora_realtime_devices_online{organization_id="north"}'
            until(lambda: gateway.metric(online) == 4)
            until(lambda: (gateway.metric('vizora_realtime_ws_messages_total{type="heartbeat",result="ok"}') or 0) >= 7)
            assert gateway.stop() == 0
            assert not any("Traceback" in line for line in gateway.lines)
