"""Tokens that a service in the same environment takes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest

from tests.service_process import PATIENCE
from tests.shell.commands import SECRETS, refused, run
from vizora_rt import config
from vizora_rt.app.auth import Verifier


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
        ownership_store = [jwt.decode(line, secret, algorithms=["HS256"]) for line in lines if line]
        assert [grant["sub"] for grant in ownership_store] == ["d-00001", "d-00002", "d-00003", "e"]
        assert [grant["exp"] - grant["iat"] for grant in ownership_store] == [3600, 3600, 3600, 90 * 86400]

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
        ownership_store = jwt.decode(done.stdout.strip(), SECRETS["JWT_SECRET"], algorithms=["HS256"])
        assert (ownership_store["sub"], ownership_store["email"], ownership_store["exp"] - ownership_store["iat"]) == (
            "alice",
            "a@b.example",
            12 * 3600,
        )

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
