"""Control groups of both versions, as files; and those that this machine has."""

import os
from math import inf
from pathlib import Path

import pytest

from vizora_rt import cpus
from vizora_rt.config import Config, ServerSettings

V2 = "30 23 0:26 / {mount} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 23 0:27 / {mount} rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"
MEMORY = "32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


def machine(folder: Path, groups: str, mounts: str, files: dict[str, str]) -> Path:
    """A /proc/self of a process in `groups`, with `files` below the mount."""
    (folder / "mount").mkdir()
    (folder / "proc").mkdir()
    (folder / "proc/cgroup").write_text(groups)
    root = "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
    (folder / "proc/mountinfo").write_text(root + mounts.format(mount=folder / "mount"))
    for name, text in files.items():
        file = folder / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "proc"


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        ("0::/\n", V2, {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/\n", V2, {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", V2, {"cpu.max": "max 100000\n"}, inf),
        ("0::/\n", V2, {}, inf),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "100000 50000", "a/cpu.max": "300000 100000", "cpu.max": "9000 1000"}, 2.0),
        ("0::/a/b\n", V2, {"a/b/cpu.max": "800000 100000", "a/cpu.max": "300000 100000"}, 3.0),
        ("0::/../outside\n", V2, {"cpu.max": "400000 100000"}, 4.0),
        ("0::/docker/x\n", V2.replace(" / {", " /docker/x {"), {"cpu.max": "200000 100000"}, 2.0),
        ("0::/docker/x/y\n", V2.replace(" / {", " /docker/x {"), {"y/cpu.max": "200000 100000"}, 2.0),
        ("0::/docker/xy\n", V2.replace(" / {", " /docker/x {"), {"cpu.max": "200000 100000"}, 2.0),
        ("5:cpu,cpuacct:/\n4:memory:/\n", V1 + MEMORY, {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"},
         2.5),
        ("5:cpu,cpuacct:/\n", V1, {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, inf),
        ("5:cpu,cpuacct:/\n", V1, {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "0"}, inf),
        ("5:cpuset:/\n", V1, {"cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"}, inf),
        (
            "5:cpu:/a/b\n0::/\n",
            V1,
            {"a/b/cpu.cfs_quota_us": "-1", "a/b/cpu.cfs_period_us": "100000", "a/cpu.cfs_quota_us": "300000",
             "a/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        ("0::/\n", V2, {"cpu.max": "some words of another kernel"}, inf),
        ("nonsense\n", "nonsense\n", {}, inf),
    ],
)  # fmt: skip
def test_quotas(tmp_path: Path, groups: str, mounts: str, files: dict[str, str], quota: float) -> None:
    assert cpus.quota(machine(tmp_path, groups, mounts, files)) == quota


@pytest.mark.parametrize(("allowed", "count"), [(0.5, 1), (1.0, 1), (1.9, 1), (2.0, 2), (3.5, 3), (64.0, 4), (inf, 4)])
def test_the_rest_of_a_quota_and_the_affinity(monkeypatch: pytest.MonkeyPatch, allowed: float, count: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 5, 7})
    monkeypatch.setattr(cpus, "quota", lambda proc: allowed)
    assert cpus.available() == count


def test_a_mount_with_a_space(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    proc = machine(folder, "0::/\n", V2, {"cpu.max": "200000 100000"})
    text = (proc / "mountinfo").read_text()
    (proc / "mountinfo").write_text(text.replace("a b", "a\\040b"))
    assert cpus.quota(proc) == 2.0


def test_this_machine() -> None:
    assert 1 <= cpus.available() <= len(os.sched_getaffinity(0))
    assert cpus.quota(Path("/nonexistent")) == inf


def test_workers_of_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "available", lambda: 3)
    assert Config().workers == 3
    assert Config(server=ServerSettings(workers=5)).workers == 5
