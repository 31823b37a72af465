"""Asking without a loop: one server, a master that Sentinels name, and a cluster while a slot is on its way."""

import threading
import time

import pytest

from tests.net.valkeys import Cluster, Guarded
from vizora_rt.net.redis.blocking_client import BlockingClient
from vizora_rt.net.redis.topology import RedisTarget
from vizora_rt.wire.resp import pack, slot


def test_one_server(redis_url: str) -> None:
    direct = BlockingClient(RedisTarget.parse(redis_url), "test", 5.0)
    assert direct.ask([pack("SET", "a", 1), pack("GET", "a"), pack("CLIENT", "GETNAME")]) == [b"OK", b"1", b"test"]
    direct.close()


def test_the_master_of_sentinels(guarded: Guarded) -> None:
    direct = BlockingClient(RedisTarget.parse(guarded.url), "test", 5.0)
    assert direct.ask([pack("ROLE")])[0][0] == b"master"  # type: ignore[index]
    direct.close()


def test_a_cluster(cluster: Cluster) -> None:
    direct = BlockingClient(RedisTarget.parse(cluster.url), "test", 5.0)
    names = [f"k{number}" for number in range(50)]
    assert direct.ask([pack("SET", name, name) for name in names]) == [b"OK"] * 50
    assert direct.ask([pack("GET", name) for name in names]) == [name.encode() for name in names]
    assert direct.ask([pack("PING")]) == [b"PONG"]
    assert [master.tell("DBSIZE") > 5 for master in cluster.masters] == [True] * 3
    direct.close()


def test_a_cluster_whose_slot_moves(cluster: Cluster) -> None:
    """ASK for the key that has gone, MOVED when all have, TRYAGAIN for keys at both ends."""
    direct = BlockingClient(RedisTarget.parse(cluster.url), "test", 5.0)
    number = slot(b"{t}a")
    assert direct.ask([pack("SET", "{t}a", 1), pack("SET", "{t}b", 2)]) == [b"OK", b"OK"]
    target = cluster.other(number)
    source = cluster.begin_move(number, target)
    cluster.move_keys(number, source, target, 1)
    assert direct.ask([pack("GET", "{t}a"), pack("GET", "{t}b")]) == [b"1", b"2"]

    def finish() -> None:
        while b"errorstat_TRYAGAIN" not in source.tell("INFO", "errorstats"):
            time.sleep(0.01)
        while cluster.move_keys(number, source, target):
            pass
        cluster.end_move(number, target)

    source.tell("CONFIG", "RESETSTAT")
    finishing = threading.Thread(target=finish)
    finishing.start()
    assert direct.ask([pack("DEL", "{t}a", "{t}b")]) == [2]
    finishing.join()
    assert direct.ask([pack("GET", "{t}a")]) == [None]
    direct.close()


def test_nobody_there() -> None:
    for url in ("redis://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/m", "redis+cluster://127.0.0.1:1"):
        with pytest.raises(OSError, match=r"."):
            BlockingClient(RedisTarget.parse(url), "test", 1.0)
