"""serve, check-config and demo. What a running service does is in test_supervisor."""

import asyncio
import json
import socket
import tomllib
from pathlib import Path

import pytest

from tests.net.peers import DEVICE_SECRET, device_token, dial
from tests.net.valkeys import Valkeys
from tests.service_process import Service, until
from tests.shell.commands import SECRETS, refused, run
from vizora_rt import config
from vizora_rt.config import Config
from vizora_rt.net.valkey import server as valkey_server
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
        store = valkey_server.start(tmp_path / "redis")
        try:
            url = store.url.replace("unix://", "unix://user:opaque@")
            line = refused(run(tmp_path, "serve", "--port", "0", env={"REDIS_URL": url}), 78)
        finally:
            store.stop()
        assert "cannot be used: wrong user or password (AUTH was answered WRONGPASS" in line
        assert "opaque" not in line

    def test_outside_development_secrets_are_not_invented(self, tmp_path: Path) -> None:
        line = refused(run(tmp_path, "serve", env={"VIZORA_ENV": "production"}), 78)
        assert "DEVICE_JWT_SECRET and JWT_SECRET must be set" in line
        line = refused(run(tmp_path, "serve", env={"VIZORA_ENV": "production", "JWT_SECRET": "u"}), 78)
        assert "DEVICE_JWT_SECRET must be set" in line
        assert not (tmp_path / "state").exists()


class TestServeWithoutRedis:
    """What time may mend does not keep the service from starting."""

    def begin(self, service: Service, reason: str) -> None:
        service.start()
        assert reason in service.wait("starting without redis", level="error")["reason"]
        assert service.get("/health/ready")[0] == 200, "devices are admitted"
        health = json.loads(service.get("/health")[1])
        assert (health["status"], health["dependencies"]["redis"]["status"]) == ("degraded", "down")
        assert health["dependencies"]["redis"]["reason"]

    def end(self, service: Service) -> None:
        """Redis is there."""
        service.wait("redis was found")
        until(lambda: json.loads(service.get("/health")[1])["status"] == "healthy")
        assert service.stop() == 0
        assert not any("Traceback" in line for line in service.lines)

    async def test_devices_are_admitted_and_it_is_ready_later(self, tmp_path: Path) -> None:
        with Valkeys(tmp_path) as valkeys:
            server = valkeys.server("late", "--save", "")
            server.kill()
            env = {**SECRETS, "DEVICE_JWT_SECRET": DEVICE_SECRET, "REDIS_URL": f"redis://127.0.0.1:{server.port}"}
            with Service(tmp_path, env, workers=1) as service:
                await asyncio.to_thread(self.begin, service, "cannot be reached: Connection refused")
                client = await dial(service.port, device_token("lobby"))
                await client.next("config")
                ack = await client.heartbeat()
                assert (ack["success"], ack["data"]["degraded"]) == (True, True)
                server.start()
                await asyncio.to_thread(until, lambda: server.tell("GET", "vz:{d:lobby}:status"))
                await client.leave()
                await asyncio.to_thread(self.end, service)
                said = [each for each in service.records if each["event"] == "redis is not up"]
                assert len(said) == 1, "an outage is one line a reason"

    def test_a_replica_that_becomes_the_master(self, tmp_path: Path) -> None:
        with Valkeys(tmp_path) as valkeys:
            server = valkeys.server("replica", "--save", "")
            server.tell("REPLICAOF", "127.0.0.1", 1)
            with Service(tmp_path, {"REDIS_URL": f"redis://127.0.0.1:{server.port}"}, workers=1) as service:
                self.begin(service, "it is a slave, not a master")
                server.tell("REPLICAOF", "NO", "ONE")
                self.end(service)

    def test_sentinels_that_name_no_master_yet(self, tmp_path: Path) -> None:
        with Valkeys(tmp_path) as valkeys:
            guarded = valkeys.guarded(1)
            url = guarded.url.replace("signage", "later")
            with Service(tmp_path, {"REDIS_URL": url}, workers=1) as service:
                self.begin(service, "No master found for 'later'")
                guarded.sentinels[0].tell("SENTINEL", "MONITOR", "later", "127.0.0.1", guarded.master.port, 1)
                self.end(service)

    def test_a_cluster_with_a_slot_that_no_shard_has(self, tmp_path: Path) -> None:
        with Valkeys(tmp_path) as valkeys:
            cluster = valkeys.cluster(2)
            cluster.masters[0].tell("CLUSTER", "DELSLOTS", 5)
            with Service(tmp_path, {"REDIS_URL": cluster.url}, workers=1) as service:
                service.start()
                reason = service.wait("starting without redis")["reason"]
                assert "nobody has 1 of its 16384 slots" in reason
                cluster.masters[0].tell("CLUSTER", "ADDSLOTS", 5)
                self.end(service)

    def test_a_name_that_is_not_known_yet(self, tmp_path: Path) -> None:
        with Service(tmp_path, {"REDIS_URL": "redis://redis.invalid"}, workers=1) as service:
            self.begin(service, "Redis at redis://redis.invalid:6379/0 cannot be reached: ")
            assert service.stop() == 0

    def test_what_one_lacks_that_comes_later_is_logged_once(self, tmp_path: Path) -> None:
        with Valkeys(tmp_path) as valkeys:
            server = valkeys.server("poor", "--user", "me", "on", ">pw", "+@all", "~*", "resetchannels")
            server.kill()
            url = f"redis://me:pw@127.0.0.1:{server.port}"
            with Service(tmp_path, {"REDIS_URL": url}, workers=1) as service:
                self.begin(service, "Connection refused")
                server.start()
                assert "permission for channels vz:*" in service.wait("redis cannot be used")["reason"]
                until(lambda: b'"degraded","latencyMs"' in service.get("/health")[1])
                assert b'"reason":"denies commands: NOPERM, ' in service.get("/health")[1]
                server.tell("ACL", "SETUSER", "me", "allchannels")
                service.wait("redis was found")
                assert len([each for each in service.records if each["event"] == "redis cannot be used"]) == 1
                assert service.stop() == 0


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

    def test_it_names_what_redis_lacks(self, tmp_path: Path) -> None:
        with Valkeys(tmp_path) as valkeys:
            server = valkeys.server("poor", "--save", "")
            server.tell("ACL", "SETUSER", "me", "on", ">opaque", "+@all", "~vz:*", "resetchannels")
            env = {"REDIS_URL": f"redis://me:opaque@127.0.0.1:{server.port}"}
            line = refused(run(tmp_path, "check-config", env=env), 78)
            assert "permission for keys revoked_token:*, user_revoked:*, pwd_changed:*" in line
            assert "permission for channels vz:*" in line
            assert line == refused(run(tmp_path, "serve", "--port", "0", env=env), 78)
            server.tell("ACL", "SETUSER", "me", "~*", "allchannels", "-info")
            done = run(tmp_path, "check-config", env=env)
            assert (done.returncode, done.stderr) == (0, "")
            assert "# note: Redis at redis://127.0.0.1" in done.stdout
            assert "denies INFO" in done.stdout

    def test_it_looks_for_redis_and_shows_no_password(self, tmp_path: Path) -> None:
        store = valkey_server.start(tmp_path / "redis")
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


async def test_a_password_that_changes_while_it_runs_is_named_until_it_is_right_again(tmp_path: Path) -> None:
    with Valkeys(tmp_path) as valkeys:
        server = valkeys.server("changed", "--save", "")
        server.tell("ACL", "SETUSER", "me", "on", ">one", "+@all", "~*", "&*")
        url = f"redis://me:one@127.0.0.1:{server.port}"
        with Service(tmp_path, {**SECRETS, "REDIS_URL": url}, workers=1) as running:
            running.start()

            def redis() -> dict[str, object]:
                found: dict[str, object] = json.loads(running.get("/health")[1])["dependencies"]["redis"]
                return found

            server.tell("ACL", "SETUSER", "me", "resetpass", ">two")
            server.tell("CLIENT", "KILL", "USER", "me")
            until(lambda: "wrong user or password (AUTH was answered WRONGPASS" in str(redis().get("reason")))
            assert running.get("/health/ready")[0] == 200
            assert any("WRONGPASS" in line for line in running.lines), "the log says it too"
            server.tell("ACL", "SETUSER", "me", ">one")
            until(lambda: redis()["status"] == "up")
            assert running.stop() == 0
