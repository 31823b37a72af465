"""The list of what a user of Redis must be allowed, against what the code sends and what a real service is refused."""

import re
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.net.backend import Screen, call, command, fleet
from tests.net.peers import until
from tests.net.valkeys import Cluster, Server, Valkeys
from tests.net.watching import dashboard, join
from vizora_rt.net.redis import keys
from vizora_rt.wire.resp import slot

ROOT = Path(__file__).parent.parent.parent.parent
PATTERNS = (
    r"redis\.call\('([A-Z]+)'(?:, '(GROUPS)')?",
    r"pack\(\s*b?\"([A-Z]+)\"(?:, \"([A-Z-]+)\")?",
    r"_ask\((?:\"[a-z]+\", )?\"([A-Z]+)\"()",
    r"execute_command\(\"([A-Z]+) ([A-Z]+)\"",
)
CONTAINERS = ("SCRIPT", "CLUSTER", "CLIENT", "XINFO", "XGROUP")
"""Commands whose second word is a part of their name."""
NOT_THE_SERVICE = ("ops/", "net/valkey/backup.py", "net/valkey/server.py", "net/redis/probe.py", "net/redis/keys.py")
"""What speaks to the embedded store only, and the list itself."""
BEFORE = frozenset({"AUTH", "SENTINEL"})
"""What needs no permission, or is for Sentinels."""
IN_VARIABLES = frozenset({"SUBSCRIBE", "UNSUBSCRIBE", "SSUBSCRIBE", "SUNSUBSCRIBE"})


def sent() -> set[str]:
    """The commands that stand in the code."""
    found = set()
    for path in (ROOT / "vizora_rt").rglob("*.py"):
        name = path.relative_to(ROOT / "vizora_rt").as_posix()
        if not name.startswith(NOT_THE_SERVICE):
            text = path.read_text()
            for pattern in PATTERNS:
                for word, second in re.findall(pattern, text):
                    found.add(f"{word}|{second}" if word in CONTAINERS else word)
    return found


def listed() -> set[str]:
    both = {*keys.commands(cluster=False), *keys.commands(cluster=True)}
    return both | {*keys.COURTESIES, *keys.READERS}


def test_what_the_code_sends_is_on_the_list_and_nothing_else() -> None:
    assert sent() - BEFORE == listed() - IN_VARIABLES


def test_channels_of_databases_differ() -> None:
    assert keys.organization_channel(0, "acme") == "vz:org:acme"
    assert keys.node_channel(0, "n", 1) == "vz:node:n:1"
    assert keys.organization_channel(1, "acme") == "vz:db1:org:acme"
    assert keys.node_channel(12, "n", 1) == "vz:db12:node:n:1"
    assert keys.node_channels(0, "n", 1, cluster=False) == ["vz:node:n:1"]
    of_cluster = keys.node_channels(0, "n", 1, cluster=True)
    assert of_cluster[:2] == ["vz:node:n:1", "vz:node:n:1:1"]
    assert len(set(of_cluster)) == keys.NODE_CHANNELS


def test_the_documented_user_is_that_of_the_list() -> None:
    page = (ROOT / "docs" / "redis.md").read_text()
    for cluster in (False, True):
        (block,) = [
            block
            for block in re.findall(r"```\n(ACL SETUSER .*?)\n```", page, re.DOTALL)
            if ("+ssubscribe" in block) is cluster
        ]
        assert block.replace("\\\n", " ").split()[5:] == keys.acl(cluster)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Valkeys(tmp_path_factory.mktemp("acl")) as valkeys:
        server = valkeys.server("acl", "--save", "")
        server.tell("ACL", "SETUSER", "gateway", "on", ">secret", *keys.acl(cluster=False, readers=False))
        yield server


async def everything(url: str, get: Callable[[str], Any]) -> None:
    """Use all of a gateway: two workers, devices, a dashboard, plays, commands, revocations, an erasure."""
    async with AsyncExitStack() as stack:
        quick = {"presence": {"offline_after_seconds": 0.2, "notify_after_seconds": 0.3}}
        one, other = await stack.enter_async_context(fleet(url, 2, **quick))
        board = await dashboard(one)
        await join(board)
        lobby = await Screen.dial(one, "lobby", jti="token-1")
        window = await Screen.dial(other, "window", jti="token-2")
        assert (await lobby.answer("heartbeat", {"metrics": {"cpuUsage": 1}}, 1))["success"]
        play = {"boot": "b", "plays": [{"contentId": "menu", "seq": 1, "phase": "end"}]}
        assert (await lobby.answer("content:impressions", play, 2))["success"]
        assert (await lobby.answer("content:impression", {"contentId": "menu"}, 3))["success"]
        assert (
            await lobby.answer(
                "content:error", {"contentId": "menu", "errorType": "load_failed", "errorMessage": "x"}, 4
            )
        )["success"]
        for node in (one, other):
            assert (await command(node, "lobby")).status == 200
        assert (await command(one, "dark")).status == 202
        await command(one, "lobby", "screenshot", requestId="shot")
        assert (await call(one, "GET", "/screenshots/shot")).status < 500
        for path in ("/devices/lobby", "/organizations/acme/devices", "/devices/lobby/plays", "/health"):
            assert (await call(one, "GET", path)).status < 500, path
        playlist = {"deviceId": "window", "playlist": {"items": []}}
        for _ in range(2):
            assert (await call(one, "POST", "/push/playlist", playlist, headers={"Idempotency-Key": "p"})).status < 300
        for body in (
            ("/notifications/broadcast", {"organizationId": "acme", "notification": {"text": "x"}}),
            ("/commands/broadcast", {"organizationId": "acme", "command": {"type": "reload"}}),
            ("/internal/tenant-entitlement", {"organizationId": "acme", "state": "suspended"}),
            ("/internal/tenant-entitlement", {"organizationId": "acme", "state": "resumed"}),
            ("/internal/device-revoked", {"deviceId": "window", "jti": "token-2", "reason": "x"}),
        ):
            assert (await call(one, "POST", *body)).status < 500, body
        await window.ended()
        await lobby.leave()
        await until(lambda: b"offline" in (get("vz:{d:lobby}:status") or b""))
        assert (await call(one, "DELETE", "/internal/device-revoked", {"deviceId": "window"})).status < 500
        assert (await call(one, "DELETE", "/devices/lobby")).status < 500
        await board.leave()


async def test_the_user_of_the_list_is_refused_nothing(server: Server) -> None:
    """The words of Redis itself: what it refused to a user stands in its ACL LOG."""
    with redis.Redis(port=server.port, db=2) as books:
        await everything(f"redis://gateway:secret@127.0.0.1:{server.port}/2", books.get)
    assert server.tell("ACL", "LOG") == []
    used = commands_used(server)
    assert used - THEIRS <= listed()
    # The scenario is worth something: it uses most of the list.
    assert len(set(keys.commands(cluster=False)) - used) < 25


async def test_of_a_cluster_too(cluster: Cluster) -> None:
    for master in cluster.masters:
        master.tell("ACL", "SETUSER", "gateway", "reset", "on", ">secret", *keys.acl(cluster=True, readers=False))
        master.tell("ACL", "LOG", "RESET")
        master.tell("CONFIG", "RESETSTAT")  # tests before this one moved slots
    url = cluster.url.replace("://", "://gateway:secret@")
    await everything(url, lambda key: cluster.owner(slot(key.encode())).tell("GET", key))
    assert [master.tell("ACL", "LOG") for master in cluster.masters] == [[], [], []]
    assert set().union(*map(commands_used, cluster.masters)) - THEIRS - {"CLUSTER|MYID"} <= listed()


THEIRS = {
    "ACL|SETUSER",
    "ACL|LOG",
    "AUTH",
    "CONFIG|GET",
    "CONFIG|RESETSTAT",
    "HELLO",
    "CLIENT|SETINFO",
    "INFO",
    "FLUSHALL",
}
"""Commands of the test, and of the client named `redis` before it is a user."""


def commands_used(server: Server) -> set[str]:
    lines = server.tell("INFO", "commandstats").decode().split()
    return {line.partition(":")[0][8:].upper() for line in lines if line.startswith("cmdstat_")}
