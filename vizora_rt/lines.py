"""One line for each thing that is said: JSON, or for people. Whatever a value holds, it cannot end its line (CWE-117).

What others would write to stderr comes through here too: libraries, warnings. What peers can cause is held to so many
lines a minute of a kind, so that nobody fills a disk.
"""

import json
import logging
import os
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from vizora_rt.app.limits import Window
from vizora_rt.config import Config
from vizora_rt.scrub import bounded, clean
from vizora_rt.wire import printable

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}

MAX_TRACEBACK = 32_768

PER_MINUTE: Final = 10
"""Lines of one kind that peers can cause. A traceback has up to 32 KiB: 450 MB a day is what one fault may take."""
MAX_KINDS: Final = 256
"""Kinds that are told apart in a minute: they come from code, a few dozen."""


class Settings:
    """What `configure` set for this process."""

    __slots__ = ("console", "level", "process")

    def __init__(self) -> None:
        self.level = LEVELS["INFO"]
        self.console = False
        self.process = ""


_settings = Settings()
_room = Window(PER_MINUTE, 60, MAX_KINDS)
_left_out: dict[tuple[str, ...], int] = {}


def configure(config: Config, process: str) -> None:
    """Set this process's format, level and name, and lead the standard library's log records into the same lines."""
    _settings.level = LEVELS[config.logging.level]
    _settings.console = config.logging.format == "console"
    _settings.process = process
    logging.basicConfig(level=logging.WARNING, handlers=[_Bridge()], force=True)
    logging.captureWarnings(True)


def write(level: str, name: str, event: str, fields: Mapping[str, object], error: BaseException | None = None) -> None:
    if LEVELS[level] < _settings.level:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record: dict[str, Any] = {"time": now, "level": level.lower(), "logger": name, "event": clean(event)}
    if _settings.process:
        record["process"] = _settings.process
    for key, value in fields.items():
        record[f"{key}_" if key in record or key == "traceback" else key] = clean(value, key)
    if error is not None:
        record["traceback"] = bounded("".join(traceback.format_exception(error)), MAX_TRACEBACK)
    line = (_console(record) if _settings.console else json.dumps(record).translate({0x7F: "\\u007f"})) + "\n"
    try:
        # One write call: lines of the supervisor and its workers share the pipe, and up to PIPE_BUF it is atomic.
        os.write(2, line.encode())
    except OSError:
        pass


def limited(
    kind: tuple[str, ...],
    level: str,
    name: str,
    event: str,
    fields: Mapping[str, object] = {},
    error: BaseException | None = None,
) -> None:
    """A line, unless there were enough of its kind; then the next one that is written says how many were left out."""
    if _room.take(kind, time.monotonic()):
        left_out = _left_out.pop(kind, 0)
        write(level, name, event, {**fields, "left_out": left_out} if left_out else fields, error)
    elif kind in _room:
        if len(_left_out) > MAX_KINDS:
            _left_out.clear()
        _left_out[kind] = _left_out.get(kind, 0) + 1


def _console(record: dict[str, Any]) -> str:
    """A line for people; a traceback follows it, indented, so that no line of it looks like a record."""
    lines = record.pop("traceback", "").splitlines()
    time, level, name, event = (record.pop(key) for key in ("time", "level", "logger", "event"))
    fields = " ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in record.items())
    head = f"{time[11:23]} {level.upper():7} {name:10} {event}  {fields}".rstrip()
    return "\n    ".join(printable.escaped(line) for line in (head, *lines))


class _Bridge(logging.Handler):
    """Records of libraries and of asyncio become lines like ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = next((name for name, number in reversed(LEVELS.items()) if record.levelno >= number), "DEBUG")
            error = record.exc_info[1] if record.exc_info else None
            # A library writes what it likes as often as it likes, and a peer may be the reason.
            limited((record.name, str(record.msg)[:64]), level, record.name, record.getMessage(), {}, error)
        except Exception:
            self.handleError(record)
