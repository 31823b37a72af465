"""What is said of a Redis that lacks what is needed: one server, a master of Sentinels, a shard of a cluster."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.valkeys import Cluster, Guarded, Server, Valkeys, cannot_save
from vizora_rt.errors import ConfigError, UnavailableError
from vizora_rt.net.redis import keys
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.probe import Found, Report, _of_info, probe

ALL = ("+@all", "~*", "allchannels")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Valkeys(tmp_path_factory.mktemp("probe")) as valkeys:
        yield valkeys.server("probe", "--save", "")


def allow(server: Server, *rules: str) -> str:
    """The URL of a user with these rules."""
    server.tell("ACL", "SETUSER", "me", "reset", "on", ">s3cret", *rules)
    return f"redis://me:s3cret@127.0.0.1:{server.port}"


def refused(url: str) -> str:
    with pytest.raises(ConfigError) as raised:
        probe(url, 5.0)
    line = str(raised.value)
    assert "\n" not in line
    assert "s3cret" not in line
    return line


_OTHERS = " ".join(f"~{pattern}" for pattern in (*keys.REVOKED, *keys.SESSIONS))


GOOD = Report("Redis can be reached and used")


@pytest.mark.parametrize("database", [0, 3])
def test_the_user_of_the_list_is_enough(server: Server, database: int) -> None:
    assert probe(f"{allow(server, *keys.acl(cluster=False, readers=False))}/{database}", 5.0) == GOOD
    assert server.tell("DBSIZE") == 0
    assert server.tell("ACL", "LOG") == []


@pytest.mark.parametrize(
    "rules",
    [
        ("-@all", "+@all", "allkeys", "allchannels"),
        ("+@all", "-@admin", "-@dangerous", "+info", "~*", "&*"),
        ("+@all", "-script", "+script|load", "~*", "&*"),
        ("+@all", "-@transaction", "-@keyspace", "+@all", "~*", "resetchannels", "&vz:*"),
        ("(+@all allkeys allchannels)",),
        ("+@all", "~*", "resetchannels", "(+@pubsub allchannels)"),
        ("+@all", "allchannels", "~vz:*", f"(+@all {_OTHERS})"),
    ],
    ids=" ".join,
)
def test_a_user_that_may_do_all_of_it_in_another_way(server: Server, rules: tuple[str, ...]) -> None:
    assert probe(allow(server, *rules), 5.0) == GOOD


@pytest.mark.parametrize("name", sorted({*keys.commands(cluster=False)}))
def test_each_command_that_is_denied_is_named(server: Server, name: str) -> None:
    url = allow(server, *keys.acl(cluster=False), f"-{name.lower()}") + "/1"
    assert f"permission for commands {name}." in refused(url)


@pytest.mark.parametrize("pattern", [*keys.KEYS, *keys.REVOKED, *keys.SESSIONS])
def test_each_key_pattern_that_is_denied_is_named(server: Server, pattern: str) -> None:
    patterns = {*keys.KEYS, *keys.REVOKED, *keys.SESSIONS} - {pattern}
    url = allow(server, "+@all", "allchannels", *(f"~{each}" for each in patterns))
    assert f"permission for keys {pattern}." in refused(url)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (("+@all", "~*", "resetchannels"), "permission for channels vz:*."),
        (("+@all", "~*", "resetchannels", "&vz:org:*"), "permission for channels vz:*."),
        (("+@all", "~*", "resetchannels", "&vz:node:*"), "permission for channels vz:*."),
        (("+@all", "~vz:*", "allchannels"), "permission for keys revoked_token:*, user_revoked:*, pwd_changed:*."),
        (("+@all", "~vz:{d:*", "~revoked_token:*", "allchannels"), "permission for keys vz:*, user_revoked:*"),
        (("+@all", "%R~*", "allchannels"), "permission for keys vz:*, revoked_token:*."),
        (("+@read", "+@connection", "~*", "allchannels"), "permission for commands SET, EXPIRE, HDEL"),
        (("+@all", "-@scripting", "~*", "allchannels"), "permission for commands EVAL, EVALSHA, SCRIPT|LOAD."),
        (("-@all",), "permission for commands PING, SET, EXISTS"),
        (("+@all", "-@connection", "~*", "allchannels"), "permission for commands PING."),
        (("+@all", "%W~*", "allchannels"), "permission for keys vz:*, user_revoked:*, pwd_changed:*."),
        (("+@all", "~vz:*", "allchannels", f"(+@read {_OTHERS})"), "permission for keys revoked_token:*."),
        (("(+@all ~vz:*)", f"(+@all {_OTHERS})", "allchannels"), "permission for channels vz:*."),
        (("+@all", "-xadd", "~*", "resetchannels"), "permission for commands XADD; permission for channels vz:*."),
    ],
)
def test_what_is_missing_is_named_together(server: Server, rules: tuple[str, ...], said: str) -> None:
    assert said in refused(allow(server, *rules))


def test_a_courtesy_that_is_denied_is_a_note(server: Server) -> None:
    found = probe(allow(server, *ALL, "-info", "-client", "-role", "-config"), 5.0)
    assert found.text == GOOD.text
    (note,) = found.notes
    assert "denies INFO: its memory and maxmemory-policy are not watched" in note


def test_a_policy_that_evicts_is_a_note(server: Server) -> None:
    server.tell("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        (note,) = probe(allow(server, *ALL), 5.0).notes
    finally:
        server.tell("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert "has maxmemory-policy allkeys-lru" in note
    assert "set maxmemory-policy noeviction" in note


@pytest.mark.parametrize(
    ("name", "value", "code"), [("maxmemory", "1", "OOM"), ("min-replicas-to-write", "1", "NOREPLICAS")]
)
def test_one_that_takes_no_writes_is_a_note(server: Server, name: str, value: str, code: str) -> None:
    url = allow(server, *ALL)
    server.tell("CONFIG", "SET", name, value)
    try:
        (note,) = probe(url, 5.0).notes
    finally:
        server.tell("CONFIG", "SET", name, "0")
    assert f"takes no writes: {code} " in note


def test_one_that_cannot_save_is_a_note(tmp_path: Path) -> None:
    with Valkeys(tmp_path) as valkeys:
        server = cannot_save(valkeys, tmp_path)
        (note,) = probe(f"redis://127.0.0.1:{server.port}", 5.0).notes
    assert "takes no writes: MISCONF " in note


def test_commands_that_are_renamed_are_named(tmp_path: Path) -> None:
    with Valkeys(tmp_path) as valkeys:
        server = valkeys.server("renamed", "--rename-command", "XADD", "", "--rename-command", "EVAL", "hidden")
        line = refused(f"redis://127.0.0.1:{server.port}")
    assert "commands that it does not know (renamed, or an old version) XADD, EVAL." in line


@pytest.mark.parametrize(
    ("info", "missing"),
    [
        ("redis_version:6.0.16\r\nredis_mode:standalone", ["version 6.2 or newer (it is 6.0.16)"]),
        ("redis_version:5.0.7", ["version 6.2 or newer (it is 5.0.7)"]),
        ("redis_version:6.2.0", []),
        ("redis_version:10.0.0", []),
        ("redis_version:6.2.14\r\nredis_mode:cluster", ["version 7.0 or newer (it is 6.2.14)"]),
        ("redis_version:7.2.4\r\nvalkey_version:9.1.2\r\nredis_mode:cluster", []),
        ("redis_version:unstable", []),
        ("", []),
    ],
)
def test_the_version_is_checked(info: str, missing: list[str]) -> None:
    found = Found(Address())
    assert _of_info(found, info.encode()) == []
    assert found.missing == missing


@pytest.mark.parametrize(
    ("credentials", "said"),
    [
        ("me:other@", "cannot be used: wrong user or password (AUTH was answered WRONGPASS"),
        ("nobody@", "cannot be used: wrong user or password (AUTH was answered WRONGPASS"),
        (":s3cret@", "cannot be used: it has no such password (AUTH was answered ERR"),
    ],
)
def test_wrong_credentials_are_no_outage(server: Server, credentials: str, said: str) -> None:
    allow(server, *ALL)
    assert said in refused(f"redis://{credentials}127.0.0.1:{server.port}")


def test_a_password_that_is_missing(tmp_path: Path) -> None:
    with Valkeys(tmp_path) as valkeys:
        server = valkeys.server("locked")
        server.tell("CONFIG", "SET", "requirepass", "s3cret")
        assert "a password is needed" in refused(f"redis://127.0.0.1:{server.port}")


def test_a_database_that_is_not_there(server: Server) -> None:
    assert "there is no database 99" in refused(f"redis://127.0.0.1:{server.port}/99")


def test_nobody_there_is_an_outage() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        for url in (f"redis://127.0.0.1:{port}", f"redis+sentinel://127.0.0.1:{port}/m", "redis://no.such.invalid"):
            with pytest.raises(UnavailableError):
                probe(url, 2.0)


class TestCluster:
    def test_each_shard_is_asked(self, cluster: Cluster) -> None:
        names = ", ".join(sorted(f"127.0.0.1:{master.port}" for master in cluster.masters))
        text = f"the cluster has 3 shards ({names}); all can be reached and used"
        assert probe(cluster.url, 5.0) == Report(text)
        url = self.allow(cluster, *keys.acl(cluster=True, readers=False))
        assert probe(url, 5.0) == Report(text)
        assert [master.tell("DBSIZE") for master in cluster.masters] == [0, 0, 0]
        # One shard forgot a rule.
        cluster.masters[1].tell("ACL", "SETUSER", "me", "-xtrim")
        line = refused(url)
        assert f"127.0.0.1:{cluster.masters[1].port}" in line
        assert "permission for commands XTRIM." in line

    @pytest.mark.parametrize(
        ("rules", "said"),
        [
            ((*ALL, "-ssubscribe"), "permission for commands SSUBSCRIBE."),
            ((*ALL, "-spublish", "-sunsubscribe"), "permission for commands SPUBLISH, SUNSUBSCRIBE."),
            (("+@all", "~*", "resetchannels"), "permission for channels vz:*."),
            (("+@all", "~vz:*", "allchannels"), "permission for keys revoked_token:*, user_revoked:*, pwd_changed:*."),
            ((*ALL, "-cluster|slots"), "permission denied: NOPERM"),
            ((*ALL, "-cluster|info"), "permission for commands CLUSTER|INFO."),
        ],
    )
    def test_what_is_missing_is_named(self, cluster: Cluster, rules: tuple[str, ...], said: str) -> None:
        assert said in refused(self.allow(cluster, *rules))

    def test_a_wrong_password(self, cluster: Cluster) -> None:
        url = self.allow(cluster, *ALL).replace("s3cret", "other")
        assert "wrong user or password (AUTH was answered WRONGPASS" in refused(url)

    def test_a_url_of_one_server_to_a_node_of_a_cluster(self, cluster: Cluster) -> None:
        for master in cluster.masters:
            for user, rules in (("", ALL), ("me:s3cret@", (*ALL, "-info"))):
                self.allow(cluster, *rules)
                line = refused(f"redis://{user}127.0.0.1:{master.port}")
                assert "redis.url must begin with redis+cluster://" in line

    def test_a_url_of_a_cluster_to_one_server(self, server: Server) -> None:
        assert "it is no node of a cluster" in refused(f"redis+cluster://127.0.0.1:{server.port}")

    def test_slots_that_nobody_has(self, tmp_path: Path) -> None:
        with Valkeys(tmp_path) as valkeys:
            own = valkeys.cluster(1)
            own.masters[0].tell("CLUSTER", "DELSLOTS", 5)
            with pytest.raises(UnavailableError, match="nobody has 1 of its 16384 slots"):
                probe(own.url, 5.0)

    def allow(self, cluster: Cluster, *rules: str) -> str:
        for master in cluster.masters:
            master.tell("ACL", "SETUSER", "me", "reset", "on", ">s3cret", *rules)
        return cluster.url.replace("://", "://me:s3cret@")


class TestSentinel:
    def test_the_master_is_asked(self, guarded: Guarded) -> None:
        text = f"Sentinels name 127.0.0.1:{guarded.master.port} as signage; it can be reached and used"
        assert probe(guarded.url, 5.0) == Report(text)
        guarded.master.tell("ACL", "SETUSER", "me", "reset", "on", ">s3cret", *ALL, "-eval")
        assert "permission for commands EVAL." in refused(guarded.url.replace("://", "://me:s3cret@"))

    def test_a_name_that_they_do_not_know_may_come(self, guarded: Guarded) -> None:
        with pytest.raises(UnavailableError, match="cannot be found: Sentinels: No master found for 'other'"):
            probe(guarded.url.replace("signage", "other"), 2.0)

    def test_a_wrong_password_of_the_sentinels(self, guarded: Guarded) -> None:
        line = refused(f"{guarded.url}?sentinel_user=me&sentinel_password=s3cret")
        assert "wrong user or password" in line

    def test_one_server_is_no_sentinel(self, server: Server, guarded: Guarded) -> None:
        assert "it is no Sentinel" in refused(f"redis+sentinel://127.0.0.1:{server.port}/signage")
        assert "it is a Sentinel: redis.url must begin with redis+sentinel://" in refused(
            f"redis://127.0.0.1:{guarded.sentinels[0].port}"
        )
