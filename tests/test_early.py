"""Signals in the first second, of an ordinary process and of the first process of a container (PID 1)."""

import os
import re
import signal
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest

from tests.service_process import PATIENCE, Service, until

CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal by now."""
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return found is not None and bool(int(found[1], 16) >> (number - 1) & 1)


def begun(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`vizora-rt` that obeys signals already, and has hardly begun to import the rest."""
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), "VIZORA_ENV": "development"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vizora_rt", *arguments],
        cwd=folder,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: catches(process.pid, signal.SIGTERM) or process.poll() is not None)
    return process


def contained(folder: Path) -> Service:
    """A service that is the first process of a container."""
    if subprocess.run([*CONTAINER, "true"], capture_output=True).returncode != 0:
        pytest.skip("no process namespaces for this user")
    service = Service(folder, workers=1)
    service.prefix = CONTAINER
    return service


def first(service: Service) -> int:
    """The process id outside of the container of its first process, once it is Python."""

    def find() -> int:
        children = Path(f"/proc/{service.pid}/task/{service.pid}/children").read_text().split()
        return int(children[0]) if children and Path(f"/proc/{children[0]}/exe").resolve().name.startswith("py") else 0

    return int(until(find))


def test_it_is_imported_before_anything_slow() -> None:
    command = [sys.executable, "-X", "importtime", "-c", "import vizora_rt.__main__"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    names = [line.rpartition("|")[2].strip() for line in lines]
    imported = [name for name in names if name.startswith("vizora_rt")]
    assert imported[:2] == ["vizora_rt", "vizora_rt.early"]
    assert "asyncio" in names[names.index("vizora_rt.early") :], "and what is slow comes after"


def test_the_command_of_the_package_begins_with_it() -> None:
    scripts = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"vizora-rt": "vizora_rt.__main__:main"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("arguments", [("serve",), ("demo",), ("check-config",), ("plays", "tail")], ids=" ".join)
def test_a_command_ends_while_it_is_imported(tmp_path: Path, arguments: tuple[str, ...], number: int) -> None:
    process = begun(tmp_path, *arguments)
    process.send_signal(number)
    said, complained = process.communicate(timeout=PATIENCE)
    assert process.returncode == (0 if arguments[0] in ("serve", "demo") else 128 + number)
    assert (said, complained) == ("", "")


def test_a_reload_before_there_is_a_configuration_ends_nothing(tmp_path: Path) -> None:
    with Service(tmp_path, workers=1) as service:
        service.launch()
        until(lambda: catches(service.pid, signal.SIGHUP))
        service.signal(signal.SIGHUP)
        service.wait("listening")
        assert service.stop() == 0


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    code = "import vizora_rt.early, signal; print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "True\n"


class TestFirstProcess:
    def test_it_is_told_to_stop_while_it_is_imported(self, tmp_path: Path) -> None:
        with contained(tmp_path) as service:
            service.launch()
            pid = first(service)
            until(lambda: catches(pid, signal.SIGTERM))
            os.kill(pid, signal.SIGTERM)
            assert service.join() == 0
            assert not service.records

    def test_it_is_told_to_stop_while_it_starts(self, tmp_path: Path) -> None:
        with contained(tmp_path) as service:
            service.launch()
            service.wait("sentry is off: no DSN")
            os.kill(first(service), signal.SIGTERM)
            assert service.join() == 0
            assert not any(record["event"] in ("worker ready", "listening") for record in service.records)

    def test_it_serves_stops_and_reaps_what_has_lost_its_parent(self, tmp_path: Path) -> None:
        with contained(tmp_path) as service:
            service.start()
            pid = first(service)
            orphan = "sleep 0.1 & exec true"
            entered = ["nsenter", f"--target={pid}", "--user", "--pid", "--mount", "--preserve-credentials"]
            for _ in range(3):
                subprocess.run([*entered, "sh", "-c", orphan], check=True)

            def states() -> dict[str, str]:
                """The state of each of its children, by name and process id."""
                found = {}
                for stat in Path("/proc").glob("[0-9]*/stat"):
                    with suppress(OSError):
                        before, _, after = stat.read_text().rpartition(")")
                        state, parent, *_ = after.split()
                        if int(parent) == pid:
                            found[before.partition("(")[2] + stat.parent.name] = state
                return found

            until(lambda: not any(name.startswith("sleep") for name in states()))
            assert "Z" not in states().values()
            assert len(states()) == 2, "the worker and the store"
            # A worker that is killed is the supervisor's own, whatever reaps orphans.
            (worker,) = (int(name[6:]) for name in states() if name.startswith("python"))
            os.kill(worker, signal.SIGKILL)
            assert service.wait("worker failed")["ending"] == "signal 9 (SIGKILL)"
            service.wait("worker ready", 2)
            os.kill(pid, signal.SIGTERM)
            assert service.join() == 0
