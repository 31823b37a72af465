"""Where Redis is: URLs good and bad, and what real Sentinels and a real cluster say."""

import socket

import pytest

from tests.net.valkeys import Cluster, Guarded
from vizora_rt.errors import ConfigError
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.topology import CLUSTER_FORM, SENTINEL_FORM, RedisTarget, find_master, find_shards, redirected
from vizora_rt.wire.resp import ReplyError


@pytest.mark.parametrize(
    ("url", "kind", "seeds", "access", "text"),
    [
        ("redis://h:1/2", "server", [("h", 1)], ("h", 1, 2, "", ""), "redis://h:1/2"),
        ("unix:///s", "server", [("127.0.0.1", 6379)], ("127.0.0.1", 6379, 0, "", ""), "unix:///s"),
        (
            "redis+sentinel://u:p%40@a,b:1,[::1]:2/signage/3",
            "sentinel",
            [("a", 26379), ("b", 1), ("::1", 2)],
            ("127.0.0.1", 6379, 3, "u", "p@"),
            "redis+sentinel://a:26379,b:1,[::1]:2/signage/3",
        ),
        (
            "redis+sentinel://:p@a/signage",
            "sentinel",
            [("a", 26379)],
            ("127.0.0.1", 6379, 0, "", "p"),
            "redis+sentinel://a:26379/signage",
        ),
        (
            "redis+cluster://u:p@a:7000,b",
            "cluster",
            [("a", 7000), ("b", 6379)],
            ("127.0.0.1", 6379, 0, "u", "p"),
            "redis+cluster://a:7000,b:6379",
        ),
        ("redis+cluster://a/0", "cluster", [("a", 6379)], ("127.0.0.1", 6379, 0, "", ""), "redis+cluster://a:6379"),
    ],
)
def test_a_url(
    url: str, kind: str, seeds: list[tuple[str, int]], access: tuple[str, int, int, str, str], text: str
) -> None:
    where = RedisTarget.parse(url)
    assert where.kind == kind
    assert [(seed.host, seed.port) for seed in where.seeds] == seeds
    found = where.credentials
    assert (found.host, found.port, found.database, found.user, found.password) == access
    assert str(where) == text
    assert "p@" not in repr(where)


def test_sentinels_have_a_password_of_their_own() -> None:
    where = RedisTarget.parse("redis+sentinel://:p@a/signage?sentinel_user=s&sentinel_password=q")
    assert (where.sentinel_user, where.sentinel_password, where.credentials.password) == ("s", "q", "p")
    assert "q" not in repr(where)


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("redis+sentinel://a", f"the name of the master is missing: {SENTINEL_FORM}"),
        ("redis+sentinel://a/", f"the name of the master is missing: {SENTINEL_FORM}"),
        ("redis+sentinel://a/m/x", f"behind the master's name stands a database, a number: {SENTINEL_FORM}"),
        ("redis+sentinel://a/m/1/2", f"behind the master's name stands a database, a number: {SENTINEL_FORM}"),
        ("redis+sentinel:///m", f"not a URL of the form {SENTINEL_FORM}"),
        ("redis+sentinel://a,,b/m", f"not a URL of the form {SENTINEL_FORM}"),
        ("redis+sentinel://a:x/m", f"not a URL of the form {SENTINEL_FORM}"),
        ("redis+sentinel://a/m?db=1", "unknown option 'db': there are sentinel_user and sentinel_password"),
        ("redis+cluster://", f"not a URL of the form {CLUSTER_FORM}"),
        ("redis+cluster://a:70000", f"not a URL of the form {CLUSTER_FORM}"),
        ("redis+cluster://[::1", f"not a URL of the form {CLUSTER_FORM}"),
        ("redis+cluster://a/1", "a cluster has one database only, 0"),
        ("redis+cluster://a?x=1", "unknown option 'x': a cluster has none"),
        ("rediss+cluster://a", "TLS is for one server only (rediss://); there is no rediss+cluster://"),
        ("rediss+sentinel://a/m", "TLS is for one server only (rediss://); there is no rediss+sentinel://"),
    ],
)
def test_a_bad_url(url: str, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RedisTarget.parse(url)
    assert str(refused.value) == f"redis.url: {line}"


def test_no_line_shows_a_password() -> None:
    for url in ("redis+cluster://u:s3cret@a:x", "redis+sentinel://u:s3cret@a", "redis+cluster://u:s3cret@a/9"):
        with pytest.raises(ConfigError) as refused:
            RedisTarget.parse(url)
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("reply", "host", "port"),
    [
        ("MOVED 3999 10.0.0.1:6381", "10.0.0.1", 6381),
        ("ASK 3999 ::1:6381", "::1", 6381),
        ("MOVED 3999 node-2.local:6381", "node-2.local", 6381),
        ("MOVED 3999 :6381", "asked", 6381),
    ],
)
def test_a_redirection(reply: str, host: str, port: int) -> None:
    where = RedisTarget.parse("redis+cluster://u:p@a")
    found = redirected(where, ReplyError(reply), Address(host="asked"))
    assert found is not None
    assert (found.host, found.port, found.user, found.password) == (host, port, "u", "p")


@pytest.mark.parametrize("reply", ["MOVED", "MOVED 1", "MOVED 1 a:", "ASK 1 a:x", "MOVED 1 a:1:"])
def test_a_redirection_to_nowhere(reply: str) -> None:
    assert redirected(RedisTarget.parse("redis+cluster://a"), ReplyError(reply), Address()) is None


def test_a_cluster_says_who_has_its_slots(cluster: Cluster) -> None:
    where = RedisTarget.parse(cluster.url)
    ranges = sorted((first, last, address.port) for first, last, address in find_shards(where, (), 2.0))
    assert ranges == [
        (0, 5460, cluster.masters[0].port),
        (5461, 10921, cluster.masters[1].port),
        (10922, 16383, cluster.masters[2].port),
    ]


def test_the_next_node_is_asked(cluster: Cluster) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        where = RedisTarget.parse(
            f"redis+cluster://127.0.0.1:{nobody.getsockname()[1]},127.0.0.1:{cluster.masters[1].port}"
        )
        assert len(find_shards(where, [Address(port=nobody.getsockname()[1])], 2.0)) == 3
        alone = RedisTarget.parse(f"redis+cluster://u:s3cret@127.0.0.1:{nobody.getsockname()[1]}")
        with pytest.raises(OSError, match=r"no node of the cluster says where its slots are; 127.0.0.1:") as refused:
            find_shards(alone, (), 2.0)
        assert "s3cret" not in str(refused.value)


def test_sentinels_name_the_master(guarded: Guarded) -> None:
    assert find_master(RedisTarget.parse(guarded.url), 2.0) == Address(port=guarded.master.port)
