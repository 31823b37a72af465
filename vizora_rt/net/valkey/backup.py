"""A copy of the embedded store, taken while it runs; and the store of a stopped service made from such a copy.

The data is a folder of append-only files with a manifest. Files are only appended to, but for a rewrite, which replaces
them; so none is let begin while they are copied. A copy's last command may be cut short, as after a crash: the store
drops it when it loads, and nobody had its reply. Every function here blocks.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from vizora_rt.errors import UnavailableError
from vizora_rt.net.redis import address as redis_address
from vizora_rt.net.redis import blocking
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.wire.resp import ReplyError, pack

DATA = "appendonlydir"
REWRITE_SECONDS = 600.0
"""For a rewrite that is under way to end: 10 GB at 20 MB/s."""
POLL_SECONDS = 0.2
ASK_SECONDS = 10.0

GROWTH = "auto-aof-rewrite-percentage"


def backup(state_dir: Path, target: Path) -> int:
    """Copy the data of the store that runs for `state_dir` into the new folder `target`. The bytes that it has."""
    url = valkey_server.running(state_dir)
    if not url:
        raise UnavailableError(
            f"no embedded store runs for {state_dir}: a stopped one is copied as {state_dir / 'store'}"
        )
    if target.exists():
        raise UnavailableError(f"{target} is there already")
    address = redis_address.Address.parse(url)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with _no_rewrite(address):
            partial.mkdir(mode=0o700, parents=True)
            shutil.copytree(state_dir.resolve() / "store" / DATA, partial / DATA)
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        partial.rename(target)
        _sync(target.parent)
    except OSError as error:
        raise UnavailableError(f"backup to {target}: {redis_address.explain(error)}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def restore(state_dir: Path, source: Path) -> Path | None:
    """Make `source`, a backup, the data of the service of `state_dir`, which must be stopped. Where the old data is."""
    if not (source / DATA).is_dir():
        raise UnavailableError(f"{source} is no backup: there is no {DATA} in it")
    store = state_dir / "store"
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(state_dir / "lock"), _alone(store / "lock"):
            aside = store / f"{DATA}.{time.strftime('%Y%m%dT%H%M%S')}" if (store / DATA).exists() else None
            partial = store / f".{DATA}.{os.getpid()}"
            shutil.copytree(source / DATA, partial)
            # The store is its user's, whoever restores it.
            owner = state_dir.stat()
            for path in (*partial.rglob("*"), partial, store):
                os.chown(path, owner.st_uid, owner.st_gid)
                if path != store:
                    _sync(path)
            if aside is not None:
                (store / DATA).rename(aside)
            partial.rename(store / DATA)
            _sync(store)
    except OSError as error:
        raise UnavailableError(f"restore to {state_dir}: {redis_address.explain(error)}") from None
    return aside


@contextlib.contextmanager
def _no_rewrite(address: redis_address.Address) -> Iterator[None]:
    """The store rewrites nothing meanwhile. Should this process die in it, it rewrites nothing until its next start."""
    before = _asked(address, "CONFIG", "GET", GROWTH)
    usual = before[1] if isinstance(before, list) and len(before) == 2 and isinstance(before[1], bytes) else b"100"
    _asked(address, "CONFIG", "SET", GROWTH, "0")
    try:
        deadline = time.monotonic() + REWRITE_SECONDS
        while not _quiet(_asked(address, "INFO", "persistence")):
            if time.monotonic() > deadline:
                raise TimeoutError("the store rewrites its files for too long")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        _asked(address, "CONFIG", "SET", GROWTH, usual.decode("ascii", "replace"))


def _quiet(info: object) -> bool:
    fields = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
    return isinstance(info, bytes) and all(re.search(rf"^{name}:0\r?$".encode(), info, re.MULTILINE) for name in fields)


def _asked(address: redis_address.Address, *words: str) -> object:
    (reply,) = blocking.ask(address, [pack(*words)], ASK_SECONDS)
    if isinstance(reply, ReplyError):
        raise ConnectionError(str(reply))
    return reply


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock that a service holds while it runs."""
    descriptor = valkey_server.locked(lock)
    if descriptor < 0:
        raise UnavailableError(f"{lock.parent} is in use: stop the service first")
    try:
        owner = lock.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
        yield
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
