"""The unit file: what systemd says of it, and the service lived through under its constraints.

Where systemd is not the first process nobody applies the unit. So its constraints are put up here by other means, as
far as these go: strace refuses every system call that the unit's filter does not have, the kernel refuses writable
code (PR_SET_MDWE) and capabilities, and /proc shows processes only.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.peers import SECRETS, dial_device
from tests.service_process import Service
from tests.tools import run, tool
from vizora_rt.config import ServerSettings
from vizora_rt.net.valkey.server import STOP_SECONDS
from vizora_rt.service.supervisor import BEYOND_DRAIN_SECONDS

ROOT = Path(__file__).parent.parent.parent
UNIT = ROOT / "ops/systemd/vizora-rt.service"
MOST_EXPOSURE = 1.5

LAUNCH = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
assert libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) == 0, "this kernel cannot refuse writable code"
os.umask(0o077)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def settings(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            yield name, value


def allowed() -> set[str]:
    """The system calls that the unit's filter leaves."""
    code, listing = run("systemd-analyze", "syscall-filter")
    assert code == 0
    members: dict[str, list[str]] = {}
    for line in listing.splitlines():
        if line.startswith("@"):
            members[line.strip()] = group = []
        elif line.strip() and not line.strip().startswith("#"):
            group.append(line.strip())

    def expand(name: str) -> set[str]:
        return {each for member in members[name] for each in expand(member)} if name.startswith("@") else {name}

    calls: set[str] = set()
    for name, value in settings(UNIT.read_text()):
        if name == "SystemCallFilter":
            named = {each for group in value.removeprefix("~").split() for each in expand(group)}
            calls = calls - named if value.startswith("~") else calls | named
    return calls


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/vizora-rt/current/bin/python", str(program)))
    code, output = run("systemd-analyze", "verify", "--man=no", unit)
    assert (code, [line for line in output.splitlines() if UNIT.name in line]) == (0, [])


def test_its_exposure() -> None:
    code, output = run("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT)
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", output)
    assert code == 0 and found is not None, output
    assert float(found[1]) <= MOST_EXPOSURE


def test_it_gives_a_drain_and_a_hung_worker_the_time_they_take() -> None:
    unit = dict(settings(UNIT.read_text()))
    server = ServerSettings()
    stop = server.drain_seconds + BEYOND_DRAIN_SECONDS + STOP_SECONDS  # of the workers, and then of the store
    assert float(unit["TimeoutStopSec"]) > stop
    assert float(unit["WatchdogSec"]) > server.hang_seconds  # the supervisor is faster where it lives
    assert (unit["Type"], unit["NotifyAccess"], unit["KillMode"]) == ("notify", "main", "mixed")


def test_the_guide_names_files_that_are_there() -> None:
    guide = (ROOT / "ops/install.md").read_text()
    named = set(re.findall(r"\b(?:ops|tests)/[\w/.-]*\w", guide))
    assert {path for path in named if not (ROOT / path).exists()} == set()
    shipped = {
        path.relative_to(ROOT).as_posix()
        for folder in ("systemd", "nginx", "haproxy")
        for path in (ROOT / "ops" / folder).iterdir()
    }
    assert shipped <= named


@pytest.mark.skipif(os.geteuid() != 0, reason="files for another user are made by root")
def test_user_and_directories(tmp_path: Path) -> None:
    """Made below another root, which begins empty."""
    root = f"--root={tmp_path}"
    (tmp_path / "etc").mkdir()
    assert run("systemd-sysusers", root, ROOT / "ops/systemd/sysusers.conf")[0] == 0
    user = re.search(r"^vizora-rt:x:(\d+):(\d+):.*:/var/lib/vizora-rt:", (tmp_path / "etc/passwd").read_text(), re.M)
    assert user is not None
    config = tmp_path / "etc/vizora-rt/config.toml"
    config.parent.mkdir()
    config.touch()
    assert run("systemd-tmpfiles", root, "--create", ROOT / "ops/systemd/tmpfiles.conf")[0] == 0
    assert (config.stat().st_mode & 0o777, config.stat().st_gid) == (0o640, int(user[2]))
    assert (config.parent.stat().st_mode & 0o777, config.parent.stat().st_gid) == (0o750, int(user[2]))
    assert (tmp_path / "var/backups/vizora-rt").stat().st_mode & 0o777 == 0o700


def test_every_sysctl_is_one() -> None:
    """Of a kernel like this; what a container hides is not asked for."""
    for name, value in settings((ROOT / "ops/systemd/sysctl.conf").read_text()):
        path = Path("/proc/sys", name.strip().replace(".", "/"))
        assert path.exists() or not path.parent.exists(), name
        assert re.fullmatch(r" \d+( \d+)*", value)


def sandbox(trace: Path) -> list[str]:
    """A command that starts another one under the unit's constraints; what strace refuses is in `trace`."""
    names = ",".join(f"?{name}" for name in sorted(allowed()))
    return [
        *("unshare", "--mount", "sh", "-c", 'mount -t proc -o subset=pid,hidepid=2 proc /proc && exec "$@"', "sh"),
        *("setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"),
        *(sys.executable, "-c", LAUNCH),
        *(tool("strace"), "-f", "-qq", "-e", "signal=none", "-e", f"trace=!{names}"),
        *("-e", f"inject=!{names}:error=EPERM", "-o", str(trace)),
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to give root up")
class TestSandbox:
    @pytest.fixture(autouse=True)
    def possible(self, tmp_path: Path) -> None:
        """A container may forbid to mount or to trace, and a kernel before 6.3 cannot refuse writable code."""
        done = subprocess.run([*sandbox(tmp_path / "none"), "true"], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no sandbox on this machine: {done.stderr.strip().splitlines()[-1]}")

    @pytest.mark.parametrize(
        "deed",
        [
            "os.sched_setaffinity(0, [0])",  # @resources
            "os.chown(sys.argv[0], 0, 0)",  # @privileged
            "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)",
            "open('/proc/stat')",
        ],
    )
    def test_its_constraints_hold(self, tmp_path: Path, deed: str) -> None:
        code = [sys.executable, "-c", f"import mmap, os, sys\n{deed}"]
        done = subprocess.run([*sandbox(tmp_path / "trace"), *code], capture_output=True, text=True)
        assert done.stderr.splitlines()[-1].startswith(("PermissionError", "FileNotFoundError")), done.stderr

    async def test_the_service_lives_in_it(self, tmp_path: Path) -> None:
        """Nothing that it does is refused: the store starts, screens come, plays are kept, workers roll, it stops."""
        trace = tmp_path / "trace"
        with Service(tmp_path, SECRETS, workers=1) as service:
            service.prefix = sandbox(trace)
            await asyncio.to_thread(service.start)
            screen = await dial_device(service.port, "lobby")
            assert (await screen.heartbeat())["success"]
            play = {"contentId": "a", "play": {"boot": "b", "seq": 1}}
            assert (await screen.ask("content:impression", play))["success"]
            before = await asyncio.to_thread(service.workers)
            os.kill(service.status()["pid"], signal.SIGHUP)
            await asyncio.to_thread(service.wait, "reloaded")
            assert await screen.ended() == 1012
            assert await asyncio.to_thread(service.workers) != before
            for process in ("supervisor", "worker-0", "store"):
                series = f'process_open_fds{{process="{process}"}}'
                assert await asyncio.to_thread(service.metric, series)
            os.kill(service.status()["pid"], signal.SIGTERM)
            assert await asyncio.to_thread(service.join) == 0
        assert trace.read_text() == ""
