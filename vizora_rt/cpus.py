"""How many processors this process may use: its affinity, and the quota of the control groups that it is in.

A container with two processors of a machine of 64 sees all 64. Worker processes for each of them would share two, and
the kernel would stop all of them for most of each tenth of a second.
"""

import os
import re
from collections.abc import Iterator
from math import floor, inf
from pathlib import Path

PROC = Path("/proc/self")


def available(proc: Path = PROC) -> int:
    """At least 1. Of a quota that is no whole number the rest is left to the supervisor, which renders the scrapes."""
    return max(1, min(len(os.sched_getaffinity(0)), floor(min(quota(proc), 1e6))))


def quota(proc: Path = PROC) -> float:
    """Processors that the control groups allow, the least of all levels; `inf` when none has a limit or can be read."""
    return min((_limit(folder) for folder in _groups(proc)), default=inf)


def _groups(proc: Path) -> Iterator[Path]:
    """The folders of this process's groups that may limit it, from the innermost to the root that is mounted here."""
    paths = _paths(proc)
    for kind, root, mounted in _mounts(proc):
        path = paths.get(kind)
        if path is None:
            continue
        # Without a namespace of its own a container sees paths from the machine's root, and mounts from its own group.
        inside = path.removeprefix(root) if root != "/" and (path + "/").startswith(root + "/") else path
        folder = Path(mounted, inside.strip("/"))
        levels = [folder, *folder.parents]
        top = Path(mounted)
        # A path with `..` leads out of what is mounted: only the top of it can be read.
        yield from levels[: levels.index(top) + 1] if top in levels and ".." not in folder.parts else [top]


def _paths(proc: Path) -> dict[str, str]:
    """The process's group by version (cgroups(7)): `cgroup2`, and `cgroup` of the controller `cpu`."""
    found: dict[str, str] = {}
    for line in _lines(proc / "cgroup"):
        number, _, rest = line.partition(":")
        controllers, separator, path = rest.partition(":")
        if separator and number == "0" and not controllers:
            found["cgroup2"] = path
        elif separator and "cpu" in controllers.split(","):
            found["cgroup"] = path
    return found


def _mounts(proc: Path) -> Iterator[tuple[str, str, str]]:
    """Version, root within the hierarchy and place of each mount that may tell of it (proc_pid_mountinfo(5))."""
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, filesystem = before.split(), after.split()
        if len(fields) < 5 or len(filesystem) < 3:
            continue
        kind = filesystem[0]
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in filesystem[2].split(",")):
            yield kind, _unescaped(fields[3]), _unescaped(fields[4])


def _limit(folder: Path) -> float:
    """Processors that one group may use; `inf` without a limit."""
    words = " ".join(_lines(folder / "cpu.max")).split()
    if not words:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        words = [word for name in names for line in _lines(folder / name) for word in line.split()]
    try:
        allowed, period = (float(word) for word in words)
    except ValueError:
        return inf  # "max", or no such file
    return allowed / period if allowed > 0 and period > 0 else inf


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), path)
