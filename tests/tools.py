"""Programs that tests run and pip cannot install: there, or the test is skipped with the reason; in CI it fails."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

PACKAGES = {
    "curl": "curl",
    "chromium": "chromium",
    "promtool": "prometheus",
    "prometheus": "prometheus",
    "amtool": "prometheus-alertmanager",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "systemd-analyze": "systemd",
    "systemd-nspawn": "systemd-container",
    "systemd-sysusers": "systemd",
    "systemd-tmpfiles": "systemd",
    "strace": "strace",
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "openssl": "openssl",
    "docker-compose": "docker-compose",
}
"""Command and Debian package."""

LIBRARIES = {"libfaketimeMT.so.1": "libfaketime"}


def tool(command: str) -> str:
    """The path of `command`. Skips the test without it, or fails it where VIZORA_REQUIRE_TOOLS is set."""
    found = shutil.which(command)
    if found is None:
        missing(command, PACKAGES[command])
    return found


def library(name: str) -> str:
    """The path of a shared library that is preloaded, by the same rule."""
    for path in Path("/usr/lib").glob(f"**/{name}"):
        return str(path)
    missing(name, LIBRARIES[name])


def missing(what: str, package: str) -> NoReturn:
    reason = f"{what} is missing: apt-get install {package}"
    if os.environ.get("VIZORA_REQUIRE_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


def run(command: str, *arguments: str | Path) -> tuple[int, str]:
    """Exit code and all that it wrote."""
    done = subprocess.run([tool(command), *map(str, arguments)], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr
