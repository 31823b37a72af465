"""ops/install.md, followed on a machine of its own: a container in which systemd is the first process.

Its root is this machine's, with a layer above it that takes what is written; its network is its own. What the guide
does with apt and pip is done by a copy of this checkout instead, everything else is the guide's own lines. The unit is
applied by systemd itself: sandbox, readiness, reload, watchdog, restart.
"""

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service_process import PATIENCE, Record, parse, until
from tests.system.test_restarts import release
from tests.tools import tool

ROOT = Path(__file__).parent.parent.parent
GUIDE = (ROOT / "ops/install.md").read_text()
PYTHON = f"python{sysconfig.get_python_version()}"
DONE_OTHERWISE = ("apt-get", "python3 -m venv", "/opt/vizora-rt/releases/", "cp -r ops")
WRAPPERS = ROOT / "ops/systemd"
UNIT = (WRAPPERS / "vizora-rt.service").read_text()
RUNBOOKS = sorted(
    {
        found
        for page in (ROOT / "ops/runbooks").glob("*.md")
        for found in re.findall(r"`vizora-rt ((?:check-config|events|plays|device list)[^`]*)`", page.read_text())
    }
)
WATCHDOG_SECONDS = 2
GROUPS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup")
LIBRARY = "LD_LIBRARY_PATH=/opt/python/lib"

BOOT = """
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o lowerdir=/,upperdir="$1/upper",workdir="$1/work" "$1/root"
cp -a "$2/." "$1/root/"
echo $$ > "$5/cgroup.procs"
exec systemd-nspawn --quiet --register=no --keep-unit --private-network --console=pipe --machine=vizora-test \
    --directory="$1/root" --bind-ro="$3":/opt/python --bind-ro="$4":/opt/vizora-rt/site-packages \
    --boot systemd.unit=vizora-test.target
"""
"""In a mount namespace of its own: with its last process all mounts are gone."""

TARGET = "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
"""Nothing else of what this machine starts."""

DROP_IN = f"""[Service]
WatchdogSec={WATCHDOG_SECONDS}
# This interpreter, where ProtectHome does not hide it.
Environment={LIBRARY}
"""


def section(title: str) -> list[str]:
    """The commands of one section of the guide."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S)
    assert found is not None
    return [line[4:] for line in found[1].splitlines() if line.startswith("    ")]


def installed(folder: Path, name: str) -> None:
    """A release for the container, at the place of pip's."""
    package = release(folder, name)
    (package.parent / "others.pth").write_text("/opt/vizora-rt/site-packages")
    config = folder / "pyvenv.cfg"
    config.write_text(re.sub(r"^home = .*$", "home = /opt/python/bin", config.read_text(), flags=re.M))
    for link in (folder / "bin").glob("python*"):
        link.unlink()
        link.symlink_to(f"/opt/python/bin/{PYTHON}")
    command = folder / "bin/vizora-rt"
    command.write_text(f'#!/bin/sh\nexport {LIBRARY}\nexec "${{0%/*}}/python" -m vizora_rt "$@"\n')
    command.chmod(0o755)


def leader(nspawn: int) -> int:
    """The first process of the container."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
        except OSError:
            continue
        if f"\nPPid:\t{nspawn}\n" in status and re.search(r"^NSpid:\t\d+\t1$", status, re.M):
            return int(folder.name)
    return 0


class Machine:
    """A container that has booted."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.pid = 0

    def boot(self) -> None:
        self.pid = until(lambda: self.process.poll() is not None or leader(self.process.pid))
        if self.process.poll() is None:
            until(lambda: self.run("systemctl is-system-running", check=False).strip() in ("running", "degraded"))

    def run(self, script: str, check: bool = True) -> str:
        """What a script of root's says in it."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root"]
        done = subprocess.run(
            [*enter, "bash", "-ec", f"cd /checkout; {script}"],
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8"},
        )
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}\n{self.log()}"
        return done.stdout

    def log(self) -> str:
        return self.run("journalctl -t vizora-rt -o cat", check=False)

    def records(self, event: str) -> list[Record]:
        return [found for line in self.log().splitlines() if (found := parse(line)) and found["event"] == event]

    def show(self, name: str) -> str:
        return self.run(f"systemctl show --property={name} --value vizora-rt").strip()

    def restarted(self, times: int) -> None:
        """Wait until systemd has started it so many times by itself."""
        try:
            until(lambda: self.show("NRestarts") == str(times) and self.show("ActiveState") == "active")
        except AssertionError:
            raise AssertionError(self.run("journalctl -u vizora-rt -o cat -n 40")) from None

    def serves(self) -> str:
        name: str = json.loads(self.run("curl -fs http://127.0.0.1:3001/health"))["service"]
        return name

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.kill(self.pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of version 2 for a container, which takes the one that it begins in for its root (cgroups(7))."""
    if os.geteuid() != 0:
        pytest.skip("takes root to make a container")
    mounts = [path for name in GROUPS if (path := Path(name) / "cgroup.procs").exists()]
    if not mounts:
        pytest.skip("no control groups of version 2")
    name = f"vizora-test-{os.getpid()}"
    made = mounts[0].with_name(name)
    made.mkdir()
    yield made
    # Beside version 2 there may be systemd's own hierarchy, which a container gets as well.
    for mount in mounts:
        for folder in sorted(mount.with_name(name).glob("**/"), reverse=True):
            folder.rmdir()


@pytest.fixture
def machine(tmp_path: Path, group: Path) -> Iterator[Machine]:
    tool("systemd-nspawn")
    tool("curl")
    files, mounted = tmp_path / "files", tmp_path / "mounted"
    mounted.mkdir()
    for name in ("0.1.0", "0.2.0"):
        installed(files / "opt/vizora-rt/releases" / name, name)
    units = files / "etc/systemd/system"
    (units / "vizora-rt.service.d").mkdir(parents=True)
    (units / "vizora-rt.service.d/test.conf").write_text(DROP_IN)
    (units / "vizora-test.target").write_text(TARGET)
    (files / "checkout").mkdir()
    subprocess.run(["cp", "-r", ROOT / "ops", ROOT / "config.toml", files / "checkout"], check=True)
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation=private", "sh", "-c", BOOT, "sh"]
        + [str(each) for each in (mounted, files, sys.base_prefix, sysconfig.get_path("purelib"), group)],
        env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        stdin=subprocess.DEVNULL,
        stdout=(output := (tmp_path / "console").open("wb")),
        stderr=subprocess.STDOUT,
    )
    made = Machine(process)
    try:
        with output:
            made.boot()
        if process.poll() is not None:
            pytest.skip(f"no container on this machine: {(tmp_path / 'console').read_text().strip()[-200:]}")
        yield made
    finally:
        made.end()


SYSTEMD_RUN = """#!/bin/sh
for each; do printf '%s\\n' "$each"; done
"""


@pytest.mark.parametrize(
    ("command", "user", "words"),
    [
        (["vizora-rt", "device", "revoke", "a b", "--reason", "it's $HOME"], "vizora-rt", 5),
        (["vizora-rt", "check-config"], "vizora-rt", 1),
        (["vizora-rt", "store", "backup", "/var/backups/x y"], "root", 3),
        (["vizora-env", "sh", "-c", 'redis-cli -u "$REDIS_URL" ping'], "vizora-rt", 3),
    ],
)
def test_a_command_runs_as_the_service_does(tmp_path: Path, command: list[str], user: str, words: int) -> None:
    """The wrappers with a systemd-run that prints what it is told: nothing of a word is lost, all is the unit's."""
    for name, text in (
        ("systemd-run", SYSTEMD_RUN),
        ("sudo", '#!/bin/sh\nshift\nexec "$@"\n'),
        ("id", "#!/bin/sh\necho 0\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SUDO_USER": "ann"}
    done = subprocess.run([WRAPPERS / command[0], *command[1:]], env=env, capture_output=True, text=True, check=True)
    options, _, ran = done.stdout.partition("\n--\n")
    given = options.splitlines()
    assert ran.splitlines()[-words:] == command[1:]
    assert (f"--uid={user}" in given, "--setenv=SUDO_USER=ann" in given) == (True, True)
    for setting, option in (
        ("User=vizora-rt", f"--uid={user}"),
        ("WorkingDirectory=/etc/vizora-rt", "--working-directory=/etc/vizora-rt"),
        ("EnvironmentFile=-/etc/vizora-rt/secrets.env", "--property=EnvironmentFile=-/etc/vizora-rt/secrets.env"),
        ("UMask=0077", "--property=UMask=0077"),
        ("Environment=PYTHONSAFEPATH=1", "--setenv=PYTHONSAFEPATH=1"),
        ("StateDirectory=vizora-rt", "--setenv=VIZORA_STATE_DIR=/var/lib/vizora-rt"),
    ):
        assert f"\n{setting}\n" in UNIT
        assert option in given
    # systemd would remove the directory with the store's socket when the command ends, and open the state directory.
    assert not any("Directory=" in each for each in given)


def test_runbooks_ask_with_the_environment_of_the_service() -> None:
    assert RUNBOOKS
    for page in (ROOT / "ops/runbooks").glob("*.md"):
        for line in page.read_text().splitlines():
            assert "$REDIS_URL" not in line or "vizora-env sh -c '" in line, f"{page.name}: {line}"


@pytest.mark.soak
def test_the_guide_installs_a_service_that_lives(machine: Machine) -> None:
    lines = [line for line in section("Install") if not line.startswith(DONE_OTHERWISE)]
    # A container may not set what is of the whole machine, and sysctl says so.
    machine.run("\n".join(lines).replace("sysctl --system", "sysctl --system || true"))
    assert machine.show("ActiveState") == "active", "systemctl start returns when it is ready"
    assert machine.serves() == "release 0.1.0"
    until(lambda: re.fullmatch(r"(\d+) of \1 workers, 0 connections", machine.show("StatusText")))
    exposure = machine.run("systemd-analyze security --no-pager vizora-rt")
    assert float(re.findall(r"exposure level for vizora-rt.service: ([\d.]+)", exposure)[0]) <= 1.5

    # A reload is over when systemctl returns, and a bad one changes nothing.
    machine.run("systemctl reload vizora-rt")
    assert len(machine.records("reloaded")) == 1
    machine.run("echo 'nonsense = 1' >> /etc/vizora-rt/config.toml; systemctl reload vizora-rt")
    assert len(machine.records("reload refused")) == 1 and machine.show("ActiveState") == "active"
    machine.run("install -m 0640 -g vizora-rt config.toml /etc/vizora-rt/config.toml")
    (checked, *_) = section("Change the configuration")
    assert 'jwt_secret = "<set>"' in machine.run(checked)
    assert machine.run("stat -c %a /var/lib/vizora-rt").strip() == "700", (
        "a command leaves the service's folder as it is"
    )
    # What the runbooks say, as it stands there; the embedded store is found as the service's own.
    for arguments in RUNBOOKS:
        machine.run(f"timeout 5 vizora-rt {arguments} || test $? = 124")
    machine.run("vizora-rt store backup /var/backups/vizora-rt/today")
    assert machine.run("vizora-env sh -c 'echo $JWT_SECRET'").strip() in machine.run("cat /etc/vizora-rt/secrets.env")

    # Upgrade, and back.
    lead = [line for line in section("Upgrade and roll back") if line.startswith("ln -sfn")]
    machine.run(f"{lead[0]}\nsystemctl reload vizora-rt")
    assert machine.serves() == "release 0.2.0"
    (back,) = re.findall(r"Back: `(.*?)`", GUIDE)
    machine.run(back)
    assert machine.serves() == "release 0.1.0"

    # A supervisor that hangs is killed by the watchdog and started again; one that lives is fed.
    assert machine.show("NRestarts") == "0"
    machine.run("systemctl kill --signal=STOP --kill-whom=main vizora-rt")
    machine.restarted(1)
    assert machine.serves() == "release 0.1.0"
    assert "Watchdog timeout" in machine.run("journalctl -u vizora-rt -o cat")

    # A store that outlives its supervisor, because somebody took it out of systemd's hands, is adopted.
    machine.run("cat /var/lib/vizora-rt/store/valkey.pid > /sys/fs/cgroup/init.scope/cgroup.procs")
    machine.run("systemctl kill --signal=KILL --kill-whom=main vizora-rt")
    machine.restarted(2)
    assert len(machine.records("embedded store adopted")) == 1

    machine.run("systemctl stop vizora-rt")
    assert (machine.show("Result"), machine.show("ActiveState")) == ("success", "inactive")
    assert len(machine.records("stopped")) == 1
    assert machine.show("ExecMainStatus") == "0"
