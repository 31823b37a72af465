"""`vizora-rt` as a process of its own, for tests: what it prints, and how it ends."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.service_process import PATIENCE

SECRETS = {
    "DEVICE_JWT_SECRET": "9f1c5e7a2b8d4036" + "c7e1a59b3d082f64",
    "JWT_SECRET": "e05b7d19c3a8f264" + "71d9b35c0e8a6f42",
}


def run(folder: Path, *arguments: str, env: Mapping[str, str] = {}) -> subprocess.CompletedProcess[str]:
    """`vizora-rt` in `folder`, in development, in an environment of its own."""
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "VIZORA_ENV": "development",
        "VIZORA_STATE_DIR": str(folder / "state"),
        **env,
    }
    return subprocess.run(
        [sys.executable, "-m", "vizora_rt", *arguments],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a command which cannot start writes."""
    assert done.returncode == code, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("vizora-rt: ")
    return said[0].removeprefix("vizora-rt: ")
