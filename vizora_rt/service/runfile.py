"""`run.json` in the state directory: where the running service is, for commands that look for it.

Nothing in the service depends on it, so nothing here fails: a file that cannot be written is a line in the log.
"""

import json
import os
from pathlib import Path
from typing import Any

from vizora_rt.telemetry import logs

NAME = "run.json"

log = logs.logger("supervisor")


def write(state_dir: Path, run: dict[str, Any]) -> None:
    """Write `run` and this process's pid, whole or not at all."""
    file = state_dir / NAME
    temporary = file.with_suffix(f".{os.getpid()}")
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"pid": os.getpid(), **run}), "utf-8")
        temporary.replace(file)
    except OSError as error:
        log.warning("run file not written", file=str(file), error=error.strerror)


def read(state_dir: Path) -> dict[str, Any]:
    """What the last service wrote; empty when it has stopped."""
    try:
        run = json.loads((state_dir / NAME).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def remove(state_dir: Path) -> None:
    """Remove it, if it is of this process: a later service may have the state directory by now."""
    if read(state_dir).get("pid") == os.getpid():
        (state_dir / NAME).unlink(missing_ok=True)
