"""A backup of a store that is written to, restored elsewhere: what was acked before it is there."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from vizora_rt.errors import UnavailableError
from vizora_rt.net.valkey import backup
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddedServer]:
    store = valkey_server.start(tmp_path / "state")
    yield store
    store.stop()


def test_it_is_restored_elsewhere(tmp_path: Path, store: EmbeddedServer) -> None:
    written, stop = 0, threading.Event()

    def write() -> None:
        nonlocal written
        with redis.Redis.from_url(store.url) as client:
            while not stop.is_set():
                client.set(f"key-{written}", os.urandom(1000))
                written += 1

    writer = threading.Thread(target=write)
    writer.start()
    with redis.Redis.from_url(store.url) as client:
        while written < 200:
            pass
        client.bgrewriteaof()  # one under way is waited for
        before = written
        size = backup.backup(tmp_path / "state", tmp_path / "copy")
        stop.set()
        writer.join()
        assert client.config_get("auto-aof-rewrite-percentage") == {"auto-aof-rewrite-percentage": "100"}
    assert size > before * 1000
    assert [path.name for path in (tmp_path / "copy").iterdir()] == [backup.DATA]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "state"]

    assert backup.restore(tmp_path / "other", tmp_path / "copy") is None
    restored = valkey_server.start(tmp_path / "other")
    try:
        with redis.Redis.from_url(restored.url) as client:
            assert before <= client.dbsize() <= written
            assert all(client.exists(f"key-{number}") for number in range(before))
    finally:
        restored.stop()


def test_what_was_there_is_kept_aside(tmp_path: Path, store: EmbeddedServer) -> None:
    with redis.Redis.from_url(store.url) as client:
        client.set("a", "old")
        backup.backup(tmp_path / "state", tmp_path / "copy")
        client.set("a", "new")
    with pytest.raises(UnavailableError, match="in use: stop the service first"):
        backup.restore(tmp_path / "state", tmp_path / "copy")
    store.stop()
    aside = backup.restore(tmp_path / "state", tmp_path / "copy")
    assert aside is not None and any(aside.iterdir())
    again = valkey_server.start(tmp_path / "state")
    try:
        with redis.Redis.from_url(again.url) as client:
            assert client.get("a") == b"old"
    finally:
        again.stop()


def test_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no embedded store runs"):
        backup.backup(tmp_path, tmp_path / "copy")


def test_a_backup_is_not_overwritten(tmp_path: Path, store: EmbeddedServer) -> None:
    backup.backup(tmp_path / "state", tmp_path / "copy")
    with pytest.raises(UnavailableError, match="is there already"):
        backup.backup(tmp_path / "state", tmp_path / "copy")


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, store: EmbeddedServer) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match="Not a directory"):
        backup.backup(tmp_path / "state", tmp_path / "file" / "copy")
    with redis.Redis.from_url(store.url) as client:
        assert client.config_get("auto-aof-rewrite-percentage") == {"auto-aof-rewrite-percentage": "100"}


def test_what_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="is no backup"):
        backup.restore(tmp_path / "state", tmp_path)
    assert not (tmp_path / "state").exists()
