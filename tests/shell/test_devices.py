"""Devices that are shown, locked out and erased; each change leaves a line."""

import json
from pathlib import Path

import pytest
import redis

from tests.shell.commands import SECRETS, refused, run


class TestDevice:
    """What the commands do to a running service is in tests/net/presence/test_admin.py."""

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

    def test_what_devices_say_of_themselves_moves_no_terminal(self, tmp_path: Path, redis_url: str) -> None:
        odd = "\x1b]0;title\x07\x9b2J\u202ename\x7f"
        status = json.dumps({"status": "offline", "organizationId": "acme", "appVersion": odd}, ensure_ascii=False)
        client = redis.Redis.from_url(redis_url)
        client.set("vz:{d:lobby}:status", status)
        client.zadd("vz:{o:acme}:devices", {"lobby": 1})
        client.close()
        for arguments in (("show", "lobby"), ("list", "--org", "acme")):
            out = run(tmp_path, "device", *arguments, env={"REDIS_URL": redis_url}).stdout
            assert out.removesuffix("\n").isprintable()
            assert json.loads(out)["appVersion"] == odd

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
