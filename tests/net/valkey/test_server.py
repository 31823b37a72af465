"""The embedded Valkey, run for real: kept data, locks, adoption, death, and what an operator reads on failure."""

import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.service_process import PATIENCE, until
from vizora_rt.errors import UnavailableError
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.blocking import ask, probe
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer, runtime_directory, start
from vizora_rt.wire.resp import pack

Begin = Callable[[Path], EmbeddedServer]
Run = Callable[[], tuple[subprocess.Popen[str], int, str]]

SUPERVISOR = """
import json, os, sys, time
from pathlib import Path
from vizora_rt.net.valkey import server
store = server.start(Path(sys.argv[1]))
print(json.dumps([store.pid, store.url]), flush=True)
time.sleep(60)
"""
"""A supervisor of its own, to be killed."""


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    # What a shell, a configuration file or Valkey's own parser might stumble over.
    return tmp_path / "st\u00e4te \"dir\" 'x' \\n"


@pytest.fixture
def begin() -> Iterator[Begin]:
    """`start`, and the end of whatever it started."""
    started: list[EmbeddedServer] = []

    def run(state_dir: Path) -> EmbeddedServer:
        started.append(start(state_dir))
        return started[-1]

    yield run
    for store in started:
        store.stop()


@pytest.fixture
def store(state_dir: Path, begin: Begin) -> EmbeddedServer:
    return begin(state_dir)


@pytest.fixture
def supervisor(state_dir: Path) -> Iterator[Run]:
    """Start a process that starts the store; what either leaves behind is ended."""
    started: list[tuple[subprocess.Popen[str], int, str]] = []

    def run() -> tuple[subprocess.Popen[str], int, str]:
        process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, state_dir], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        pid, url = json.loads(process.stdout.readline())
        started.append((process, pid, url))
        return started[-1]

    yield run
    for process, pid, url in started:
        process.kill()
        process.communicate()
        kill_and_wait(pid)
        shutil.rmtree(Path(Address.parse(url).path).parent, ignore_errors=True)


def kill_and_wait(pid: int) -> None:
    """SIGKILL, and gone when this returns. Not a child of ours, so it cannot be waited for like one."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    assert poll.poll(10_000)
    os.close(descriptor)


def gone(pid: int) -> bool:
    """Ended; whether init has taken note of it is not ours to say."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def tell(store: EmbeddedServer, *commands: tuple[str, ...]) -> list[object]:
    return ask(Address.parse(store.url), [pack(*command) for command in commands], 5.0)


def setting(store: EmbeddedServer, name: str) -> object:
    (reply,) = tell(store, ("CONFIG", "GET", name))
    assert isinstance(reply, list)
    return reply[1]


def one_line(error: pytest.ExceptionInfo[UnavailableError]) -> str:
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 1000
    return line


def test_it_runs_private_and_durable(store: EmbeddedServer, state_dir: Path) -> None:
    assert store.alive()
    probe(store.url, 5.0)
    assert setting(store, "port") == b"0"
    assert setting(store, "appendonly") == b"yes"
    assert setting(store, "appendfsync") == b"always"
    assert setting(store, "save") == b""
    assert setting(store, "aof-load-truncated") == b"yes"
    assert setting(store, "dir") == os.fsencode((state_dir / "store").resolve())
    path = Path(Address.parse(store.url).path)
    assert len(os.fsencode(path)) <= valkey_server.SOCKET_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((state_dir / "store").stat().st_mode) == 0o700
    assert valkey_server.running(state_dir) == store.url


def test_it_has_a_session_of_its_own_and_none_of_our_secrets(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, begin: Begin
) -> None:
    monkeypatch.setenv("DEVICE_JWT_SECRET", "s3cret")
    store = begin(state_dir)
    assert os.getsid(store.pid) == store.pid
    assert Path(f"/proc/{store.pid}/environ").read_bytes() == b""


def test_stop_keeps_the_data_and_cleans_up(state_dir: Path, begin: Begin) -> None:
    store = begin(state_dir)
    assert tell(store, ("SET", "k", "v")) == [b"OK"]
    path, pid = Path(Address.parse(store.url).path), store.pid
    store.stop()
    assert not store.alive()
    assert gone(pid)
    assert not path.parent.exists()
    assert valkey_server.running(state_dir) == ""
    store.stop()
    assert tell(begin(state_dir), ("GET", "k")) == [b"v"]


def test_stop_of_one_that_hangs(state_dir: Path, begin: Begin) -> None:
    store = begin(state_dir)
    os.kill(store.pid, signal.SIGSTOP)
    store.stop(timeout=0.1)
    assert not store.alive()


def test_death_is_seen_and_restart_brings_everything_back(
    store: EmbeddedServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tell(store, ("SET", "k", "v")) == [b"OK"]
    pid = store.pid
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while store.alive():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    url = store.url
    store.restart()
    assert '"last": "Ready to accept connections unix", "free_bytes": ' in capfd.readouterr().err
    assert store.alive()
    assert store.pid != pid
    assert store.url == url
    assert tell(store, ("GET", "k")) == [b"v"]
    # Also instead of one that runs.
    pid = store.pid
    store.restart()
    assert "had ended" not in capfd.readouterr().err
    assert gone(pid)
    assert tell(store, ("GET", "k")) == [b"v"]


class TestTwoServices:
    def test_in_one_process(self, store: EmbeddedServer, state_dir: Path) -> None:
        with pytest.raises(UnavailableError) as raised:
            start(state_dir)
        assert one_line(raised).endswith(f"is in use by another service (pid {os.getpid()})")
        probe(store.url, 5.0)

    def test_in_two(self, state_dir: Path, supervisor: Run) -> None:
        process, pid, url = supervisor()
        with pytest.raises(UnavailableError) as raised:
            start(state_dir)
        assert one_line(raised).endswith(f"is in use by another service (pid {process.pid})")
        assert valkey_server.running(state_dir) == url
        # The same directory under another name.
        link = state_dir.parent / "link"
        link.symlink_to(state_dir)
        with pytest.raises(UnavailableError, match=f"pid {process.pid}"):
            start(link)
        assert not gone(pid)

    def test_side_by_side(self, store: EmbeddedServer, tmp_path: Path, begin: Begin) -> None:
        other = begin(tmp_path / "other")
        assert other.url != store.url
        assert tell(other, ("SET", "k", "v")) == [b"OK"]
        assert tell(store, ("GET", "k")) == [None]


class TestLeftBehind:
    def test_adopted(self, state_dir: Path, supervisor: Run, begin: Begin) -> None:
        process, pid, url = supervisor()
        process.kill()
        process.wait()
        store = begin(state_dir)
        assert (store.pid, store.url) == (pid, url)
        assert store.alive()
        # It is watched and ended like a child.
        store.restart()
        assert gone(pid)
        assert store.pid != pid
        probe(store.url, 5.0)
        store.stop()
        assert not store.alive()

    def test_adopted_under_another_runtime_directory(
        self,
        state_dir: Path,
        tmp_path: Path,
        supervisor: Run,
        monkeypatch: pytest.MonkeyPatch,
        begin: Begin,
    ) -> None:
        """Started by systemd, killed, then started from a shell: the socket is where the first one put it."""
        process, pid, url = supervisor()
        process.kill()
        process.wait()
        (tmp_path / "r").mkdir()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/self/cwd/r")
        store = begin(state_dir)
        assert (store.pid, store.url) == (pid, url)
        store.stop()
        assert not Path(Address.parse(url).path).parent.exists()
        assert list((tmp_path / "r").iterdir()) == []

    def test_one_that_hangs_is_ended(
        self,
        state_dir: Path,
        supervisor: Run,
        monkeypatch: pytest.MonkeyPatch,
        begin: Begin,
    ) -> None:
        process, pid, url = supervisor()
        assert ask(Address.parse(url), [pack("SET", "k", "v")], 5.0) == [b"OK"]
        process.kill()
        process.wait()
        os.kill(pid, signal.SIGSTOP)
        monkeypatch.setattr(valkey_server, "ADOPT_SECONDS", 0.1)
        monkeypatch.setattr(valkey_server, "STOP_SECONDS", 0.1)
        store = begin(state_dir)
        assert store.pid != pid
        assert gone(pid)
        assert tell(store, ("GET", "k")) == [b"v"]

    def test_one_whose_socket_was_removed_is_ended(
        self, state_dir: Path, supervisor: Run, monkeypatch: pytest.MonkeyPatch, begin: Begin
    ) -> None:
        process, pid, url = supervisor()
        assert ask(Address.parse(url), [pack("SET", "k", "v")], 5.0) == [b"OK"]
        process.kill()
        process.wait()
        Path(Address.parse(url).path).unlink()
        monkeypatch.setattr(valkey_server, "ADOPT_SECONDS", 0.1)
        store = begin(state_dir)
        assert store.pid != pid
        assert gone(pid)
        assert tell(store, ("GET", "k")) == [b"v"]

    def test_one_that_hangs_and_cannot_be_found(
        self, state_dir: Path, supervisor: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second Valkey on the same file would ruin it, and the process that the pid file names is not it, but us."""
        process, pid, _ = supervisor()
        process.kill()
        process.wait()
        os.kill(pid, signal.SIGSTOP)
        (state_dir / "store" / "valkey.pid").write_text(str(os.getpid()))
        monkeypatch.setattr(valkey_server, "ADOPT_SECONDS", 0.1)
        with pytest.raises(UnavailableError) as raised:
            start(state_dir)
        assert one_line(raised).startswith("another Valkey runs on ")
        assert not gone(pid)

    def test_files_of_one_that_is_dead(self, state_dir: Path, supervisor: Run, begin: Begin) -> None:
        process, pid, url = supervisor()
        assert ask(Address.parse(url), [pack("SET", "k", "v")], 5.0) == [b"OK"]
        process.kill()
        process.wait()
        kill_and_wait(pid)
        # Its number belongs to somebody else by now: to this process.
        (state_dir / "store" / "valkey.pid").write_text(str(os.getpid()))
        assert valkey_server.running(state_dir) == ""
        store = begin(state_dir)
        assert store.url == url
        assert tell(store, ("GET", "k")) == [b"v"]

    def test_a_socket_that_leads_to_another_store(self, store: EmbeddedServer, tmp_path: Path, begin: Begin) -> None:
        """A copied state directory brings the other's link along; nobody is adopted who serves other data."""
        (tmp_path / "copy" / "store").mkdir(parents=True)
        (tmp_path / "copy" / "store" / "socket").symlink_to(Address.parse(store.url).path)
        assert valkey_server.running(tmp_path / "copy") == ""
        other = begin(tmp_path / "copy")
        assert other.pid != store.pid
        other.stop()
        assert store.alive()


class TestData:
    def aof(self, state_dir: Path) -> Path:
        (path,) = (state_dir / "store" / "appendonlydir").glob("*.incr.aof")
        return path

    def filled(self, state_dir: Path, begin: Begin) -> Path:
        store = begin(state_dir)
        for number in range(3):
            assert tell(store, ("SET", f"k{number}", "v" * 100)) == [b"OK"]
        store.stop()
        return self.aof(state_dir)

    def test_cut_short_by_a_crash(self, state_dir: Path, begin: Begin) -> None:
        path = self.filled(state_dir, begin)
        os.truncate(path, path.stat().st_size - 20)
        store = begin(state_dir)
        assert tell(store, ("MGET", "k0", "k1", "k2")) == [[b"v" * 100, b"v" * 100, None]]

    def test_corrupt(self, state_dir: Path, begin: Begin) -> None:
        path = self.filled(state_dir, begin)
        data = path.read_bytes()
        path.write_bytes(data[:60] + b"garbage\r\n" + data[60:])
        with pytest.raises(UnavailableError) as raised:
            start(state_dir)
        line = one_line(raised)
        assert line.startswith("the embedded store ended at its start: Bad file format reading the append only file")
        assert line.endswith(f"(see {state_dir.resolve()}/store/valkey.log)")
        # Nothing is left of the attempt: with the file mended, the next one starts.
        runtime_directory(state_dir.resolve(), dict(os.environ)).rmdir()
        path.write_bytes(data)
        begin(state_dir).stop()

    def test_a_state_directory_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UnavailableError) as raised:
            start(tmp_path / "file")
        assert "Not a directory" in one_line(raised) or "File exists" in one_line(raised)

    def test_a_data_directory_that_valkey_cannot_use(self, state_dir: Path) -> None:
        (state_dir / "store").mkdir(parents=True)
        (state_dir / "store" / "appendonlydir").write_text("a file in its place")
        with pytest.raises(UnavailableError, match=r"the embedded store ended at its start: .*appendonlydir"):
            start(state_dir)

    def test_the_log_is_bounded(self, state_dir: Path, begin: Begin) -> None:
        log = state_dir / "store" / "valkey.log"
        log.parent.mkdir(parents=True)
        with log.open("wb") as stream:
            stream.truncate(valkey_server.LOG_BYTES + 1)
        begin(state_dir).stop()
        assert 0 < log.stat().st_size < 100_000
        assert (log.parent / "valkey.log.1").stat().st_size == valkey_server.LOG_BYTES + 1
        size = log.stat().st_size
        begin(state_dir).stop()
        assert log.stat().st_size > size


class TestRuntimeDirectory:
    def test_where(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        # Short enough wherever pytest keeps its directories.
        short = Path("/proc/self/cwd")
        monkeypatch.chdir(tmp_path)
        state = tmp_path / "state"
        both = {"RUNTIME_DIRECTORY": f"{short}/a:/elsewhere", "XDG_RUNTIME_DIR": f"{short}/b"}
        assert runtime_directory(state, both).parent == short / "a"
        assert runtime_directory(state, {"XDG_RUNTIME_DIR": f"{short}/b"}).parent == short / "b"
        assert runtime_directory(state, {"XDG_RUNTIME_DIR": f"{short}/none"}).parent == Path("/tmp")
        plain = runtime_directory(state, {})
        assert plain.parent == Path("/tmp")
        assert runtime_directory(state, {}) == plain
        assert runtime_directory(tmp_path / "other", {}) != plain
        plain.rmdir()
        runtime_directory(tmp_path / "other", {}).rmdir()

    @pytest.mark.parametrize("relative", ["run", "./run", "../run", ""])
    def test_a_path_that_is_not_absolute_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Begin, relative: str
    ) -> None:
        """It would be one directory for the service and another for the store, which runs elsewhere."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "run").mkdir()
        monkeypatch.setenv("RUNTIME_DIRECTORY", relative)
        monkeypatch.setenv("XDG_RUNTIME_DIR", relative)
        store = begin(tmp_path / "state")
        assert Path(Address.parse(store.url).path).parent.parent == Path("/tmp")
        probe(store.url, 5.0)

    def test_a_long_path_is_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: Begin) -> None:
        long = tmp_path / ("x" * 100)
        long.mkdir()
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
        store = begin(long / ("y" * 100))
        assert Path(Address.parse(store.url).path).parent.parent == Path("/tmp")
        probe(store.url, 5.0)

    @pytest.mark.parametrize("trick", ["link", "file", "open", "dangling", "another user's"])
    def test_what_somebody_put_there_before_is_left_alone(self, tmp_path: Path, trick: str, begin: Begin) -> None:
        state = tmp_path / "state"
        path = runtime_directory(state, {})
        path.rmdir()
        (tmp_path / "theirs").mkdir(mode=0o700)
        match trick:
            case "link":
                path.symlink_to(tmp_path / "theirs")
            case "dangling":
                path.symlink_to(tmp_path / "none")
            case "file":
                path.write_text("")
            case "open":
                path.mkdir()
                path.chmod(0o755)
            case "another user's":
                if os.geteuid() != 0:
                    pytest.skip("takes root to make another user's directory")
                path.mkdir(mode=0o700)
                os.chown(path, 65534, 65534)
        before = path.lstat()
        try:
            store = begin(state)
            taken = Path(Address.parse(store.url).path).parent
            found = taken.lstat()
            assert (taken != path, found.st_uid, found.st_mode & 0o777) == (True, os.geteuid(), 0o700)
            probe(valkey_server.running(state), 5.0)
            store.stop()
            assert not taken.exists()
            assert path.lstat() == before
            assert trick != "link" or not list((tmp_path / "theirs").iterdir())
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink()
        begin(state).stop()

    def test_the_other_directory_is_taken_again(self, tmp_path: Path, state_dir: Path, supervisor: Run) -> None:
        """A supervisor is killed, and its store too: the next one leaves no directory more."""
        path = runtime_directory(state_dir.resolve(), dict(os.environ))
        path.chmod(0o755)
        try:
            places = []
            for _ in range(2):
                process, pid, url = supervisor()
                places.append(Path(Address.parse(url).path).parent)
                process.kill()
                process.wait()
                os.kill(pid, signal.SIGKILL)
            assert places[0] == places[1] != path
        finally:
            path.rmdir()
            shutil.rmtree(places[0])

    @pytest.mark.parametrize(("mode", "taken"), [(0o777, False), (0o1777, True), (0o770, False), (0o755, True)])
    def test_a_base_in_which_others_may_rename_is_passed_over(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, taken: bool
    ) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a").chmod(mode)
        monkeypatch.chdir(tmp_path)
        short = Path("/proc/self/cwd/a")
        path = runtime_directory(tmp_path / "state", {"XDG_RUNTIME_DIR": str(short)})
        path.rmdir()
        assert (path.parent == short) is taken

    def test_a_start_that_nobody_wants_any_more_ends(self, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A Valkey that never answers stands for one that loads its data for minutes."""
        silent = state_dir.parent / "silent"
        silent.write_text("#!/bin/sh\nexec sleep 3600\n")
        silent.chmod(0o755)
        monkeypatch.setattr(valkey_server, "binary", lambda: silent)
        abandoned = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            starting = pool.submit(start, state_dir, abandoned)
            until((state_dir / "store/socket").is_symlink)
            abandoned.set()
            with pytest.raises(UnavailableError, match="told to stop before it was up"):
                starting.result(PATIENCE)
        monkeypatch.undo()
        start(state_dir).stop()
