"""Log lines on stderr, JSON or for people. No value can end its line (CWE-117).

    log = logs.logger("worker")
    log.info("device refused", device_id=device, code="AUTH_EXPIRED")
    log.exception("handler failed", error, device_id=device)        # a line with its traceback, and a Sentry event

Lines of libraries and warnings come through here too. Lines that peers can cause have a limit per minute and kind.
"""

import asyncio
import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from vizora_rt.app.limits import SlidingWindow
from vizora_rt.config import Config
from vizora_rt.telemetry import redact
from vizora_rt.telemetry.redact import bounded, clean
from vizora_rt.telemetry.sentry import LEVELS, STATE, fault_of, flush, innermost
from vizora_rt.wire import printable

MAX_TRACEBACK = 32_768

PER_MINUTE: Final = 10
"""Lines of one kind that peers can cause. A traceback has up to 32 KiB: 450 MB a day is what one fault may take."""
MAX_KINDS: Final = 256
"""Kinds that are told apart in a minute: they come from code, a few dozen."""


class LineSettings:
    """What `set_format` set for this process."""

    __slots__ = ("console", "level", "process")

    def __init__(self) -> None:
        self.level = LEVELS["INFO"]
        self.console = False
        self.process = ""


_settings = LineSettings()
_room = SlidingWindow(PER_MINUTE, 60, MAX_KINDS)
_left_out: dict[tuple[str, ...], int] = {}


def set_format(config: Config, process: str) -> None:
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


class Logger:
    """Writes lines under one name. `event` is a fixed phrase; what varies goes into the fields."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, event: str, /, **fields: object) -> None:
        write("DEBUG", self.name, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        write("INFO", self.name, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        write("WARNING", self.name, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Somebody must look. Not for what peers can cause."""
        write("ERROR", self.name, event, fields)
        if STATE.sentry is not None:
            STATE.sentry.send((event, str(fields.get("reason", ""))), event, "error", fields)

    def crash(self, event: str, /, **fields: object) -> None:
        """`error`, of a process that a fault ended: for Sentry an unhandled exception, though it has no traceback."""
        write("ERROR", self.name, event, fields)
        if STATE.sentry is not None:
            kind = event, str(fields.get("reason", ""))
            STATE.sentry.send(kind, event, "error", fields, None, self.name)

    def exception(self, event: str, /, error: BaseException, **fields: object) -> None:
        """A fault of ours, which no code expected: the line carries its traceback, and Sentry gets it as unhandled.

        Past so many a minute of a kind the next line says how many there were.
        """
        kind = (self.name, event, type(error).__name__)
        limited(kind, "ERROR", self.name, event, fields, error)
        if STATE.sentry is not None:
            fault = fault_of(error)
            place = innermost(fault) or innermost(error)
            STATE.sentry.send((type(fault).__name__, place), event, "error", fields, error, self.name)


def logger(name: str) -> Logger:
    return Logger(name)


def configure(config: Config, process: str) -> None:
    """Set this process's format, level and name, and lead whatever else would write to stderr into the same lines."""
    redact.learn(config)
    set_format(config, process)
    sys.excepthook = _on_uncaught
    threading.excepthook = lambda fault: _on_uncaught(fault.exc_type, fault.exc_value, fault.exc_traceback)
    sys.unraisablehook = _on_unraisable


def on_loop_exception(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """For `loop.set_exception_handler`: what no one caught is a fault of ours."""
    log = Logger("asyncio")
    text = str(context.get("message", "unhandled"))
    error = context.get("exception")
    # A connection knows whose it is.
    identity = getattr(context.get("protocol"), "identity", None)
    ids = {} if identity is None else {f"{identity.kind}_id": identity.id, "organization_id": identity.organization_id}
    if isinstance(error, BaseException):
        log.exception("unhandled in the event loop", error, message=text, **ids)
    else:
        log.error("unhandled in the event loop", message=text, **ids)


def _on_uncaught(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
    if error is None or not issubclass(kind, Exception):
        return  # Ctrl-C, or an exit
    Logger("python").exception("uncaught", error)
    flush(2.0)


def _on_unraisable(fault: "sys.UnraisableHookArgs") -> None:
    if isinstance(fault.exc_value, Exception):
        Logger("python").exception("uncaught where nobody can catch", fault.exc_value, message=str(fault.err_msg or ""))
