"""Tell operators what happened: log lines on stderr, faults to Sentry. The only `sentry_sdk`.

    log = report.logger("worker")
    log.info("device refused", device_id=device, code="AUTH_EXPIRED")

One line each, JSON or console. Whatever a value holds, it cannot end its line or begin another (CWE-117), and it is
scrubbed of credentials. Nothing here is for the hot path.
"""

import asyncio
import json
import logging
import os
import re
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import sentry_sdk
from sentry_sdk.types import Event, Hint

from vizora_rt.config import Config

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}

MAX_TEXT = 2048
"""Characters of one value. An id has 128 and a message of a fault a few hundred: more is somebody filling the disk."""

MAX_TRACEBACK = 32_768
MAX_DEPTH = 6

REMOVED = "<removed>"

SECRET_KEY = re.compile(r"token|secret|passw|authorization|cookie|api[-_]?key|dsn|imagedata", re.IGNORECASE)

# Each is linear in the text, whatever a peer put there: possessive, anchored to the start of a run, or bounded.
SECRETS = (
    (re.compile(r"(?<![\w-])(?=[\w-]*?eyJ)[\w-]++\.[\w-]++(?:\.[\w-]*+)?"), REMOVED),
    (re.compile(r"(\bbearer[ .])[^\s,;\"']+", re.IGNORECASE), rf"\1{REMOVED}"),
    (re.compile(r"((?:token|secret|passw|api[-_]?key)[\w-]{0,32}=)[^&\s;,\"']+", re.IGNORECASE), rf"\1{REMOVED}"),
    (re.compile(r"((?:authorization|cookie|api[-_]key)['\"]?: ?)[^\r\n]+", re.IGNORECASE), rf"\1{REMOVED}"),
    (re.compile(r"(://)[^/\s@]+@"), rf"\1{REMOVED}@"),
    (re.compile(r"(;base64,)[\w+/=]+"), rf"\1{REMOVED}"),
)

PASSING = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
"""The weather of a network with thousands of screens in it: no issue for Sentry."""

PASSING_NAMES = frozenset({"gaierror", "herror", "InvalidTokenError"})
"""The same, of modules that are not imported here: failures of DNS, tokens that are not valid."""

CONTROLS = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


class Settings:
    """What `configure` set for this process."""

    __slots__ = ("console", "level", "process")

    def __init__(self) -> None:
        self.level = LEVELS["INFO"]
        self.console = False
        self.process = ""


_settings = Settings()


class Logger:
    """Writes lines under one name. `event` is a fixed phrase; what varies goes into the fields."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def debug(self, event: str, /, **fields: object) -> None:
        _write("DEBUG", self.name, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        _write("INFO", self.name, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        _write("WARNING", self.name, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        _write("ERROR", self.name, event, fields)

    def exception(self, event: str, /, error: BaseException, **fields: object) -> None:
        """A fault of ours: the line carries its traceback, and Sentry gets it."""
        _write("ERROR", self.name, event, fields, error)
        capture(error, **fields)


def logger(name: str) -> Logger:
    return Logger(name)


def configure(config: Config, process: str) -> None:
    """Set this process's format, level and name, and lead the standard library's log records into the same lines."""
    _settings.level = LEVELS[config.logging.level]
    _settings.console = config.logging.format == "console"
    _settings.process = process
    logging.basicConfig(level=logging.WARNING, handlers=[_Bridge()], force=True)
    logging.captureWarnings(True)


def start_sentry(config: Config, process: str) -> bool:
    """Switch Sentry on for this process, if there is a DSN. Costs 7 MiB, so it is not done without one.

    Integrations stay off: they patch libraries, and the one for `logging` would report each fault a second time.
    Locals stay at home because a frame's locals hold tokens.
    """
    if not config.sentry.dsn:
        return False
    quiet = config.development and not config.sentry.debug
    sentry_sdk.init(
        dsn=config.sentry.dsn,
        release=config.sentry.release or None,
        environment=config.environment,
        traces_sample_rate=config.sentry.traces_sample_rate,
        profiles_sample_rate=config.sentry.profiles_sample_rate,
        debug=config.sentry.debug,
        before_send=lambda event, hint: None if quiet else before_send(event, hint),
        before_send_transaction=lambda event, _: None if quiet else _scrubbed(event),
        default_integrations=False,
        auto_enabling_integrations=False,
        auto_session_tracking=False,
        include_local_variables=False,
        send_default_pii=False,
        max_request_body_size="never",
    )
    sentry_sdk.set_tag("process", process)
    return True


def capture(error: BaseException, **tags: object) -> None:
    """Hand a fault to Sentry, with ids as tags. Does nothing while Sentry is off."""
    if sentry_sdk.is_initialized():
        with sentry_sdk.new_scope() as scope:
            for name, value in tags.items():
                scope.set_tag(name, clean(value, name))
            scope.capture_exception(error)


def flush(seconds: float) -> None:
    """Send what waits for Sentry; returns after `seconds` at the latest."""
    if sentry_sdk.is_initialized():
        sentry_sdk.flush(timeout=seconds)


def before_send(event: Event, hint: Hint) -> Event | None:
    """What Sentry may know: nothing of passing faults, no credential of any."""
    error = hint.get("exc_info", (None, None, None))[1]
    if isinstance(error, PASSING) or any(kind.__name__ in PASSING_NAMES for kind in type(error).__mro__):
        return None
    return _scrubbed(event)


def _scrubbed(event: Event) -> Event:
    # Sentry's own event fields are kept as they are: `clean` would shorten a stack trace.
    return _scrub_tree(event)  # type: ignore[no-any-return]


def on_loop_exception(_: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """For `loop.set_exception_handler`: what no one caught is a fault of ours."""
    log = Logger("asyncio")
    text = str(context.get("message", "unhandled"))
    error = context.get("exception")
    if isinstance(error, BaseException):
        log.exception("unhandled in the event loop", error, message=text)
    else:
        log.error("unhandled in the event loop", message=text)


def scrub(text: str) -> str:
    """`text` without tokens, secrets, credentials in URLs and image data."""
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


def clean(value: object, key: str = "", depth: int = MAX_DEPTH) -> Any:
    """`value` as JSON can hold it: scrubbed, bounded, no lone surrogates, no NaN (RFC 8259 section 6)."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if depth == 0:
        return "..."
    if isinstance(value, Mapping):
        return {str(k): clean(v, str(k), depth - 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [clean(item, key, depth - 1) for item in value]
    text = value if isinstance(value, str) else repr(value) if isinstance(value, bytes) else str(value)
    return _text(REMOVED if text and SECRET_KEY.search(key) else text, MAX_TEXT)


def _text(text: str, limit: int) -> str:
    """At most `limit` characters. A cut falls between words: half a token is a token that no pattern knows."""
    size = len(text)
    if size > limit:
        text = text[:limit].rpartition(" ")[0]
    text = scrub(text).encode("utf-8", "backslashreplace").decode()
    return text if size <= limit else f"{text}... ({size} characters)"


def _scrub_tree(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _scrub_tree(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_scrub_tree(item, key) for item in value]
    if isinstance(value, str):
        return REMOVED if value and SECRET_KEY.search(key) else scrub(value)
    return value


def _write(level: str, name: str, event: str, fields: Mapping[str, object], error: BaseException | None = None) -> None:
    if LEVELS[level] < _settings.level:
        return
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record: dict[str, Any] = {"time": now, "level": level.lower(), "logger": name, "event": clean(event)}
    if _settings.process:
        record["process"] = _settings.process
    for key, value in fields.items():
        record[f"{key}_" if key in record or key == "traceback" else key] = clean(value, key)
    if error is not None:
        record["traceback"] = _text("".join(traceback.format_exception(error)), MAX_TRACEBACK)
    line = (_console(record) if _settings.console else json.dumps(record).translate({0x7F: "\\u007f"})) + "\n"
    try:
        # One write call: lines of the supervisor and its workers share the pipe, and up to PIPE_BUF it is atomic.
        os.write(2, line.encode())
    except OSError:
        pass


def _console(record: dict[str, Any]) -> str:
    """A line for people; a traceback follows it, indented, so that no line of it looks like a record."""
    lines = record.pop("traceback", "").splitlines()
    time, level, name, event = (record.pop(key) for key in ("time", "level", "logger", "event"))
    fields = " ".join(f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in record.items())
    head = f"{time[11:23]} {level.upper():7} {name:10} {event}  {fields}".rstrip()
    return "\n    ".join(line.translate(CONTROLS) for line in (head, *lines))


class _Bridge(logging.Handler):
    """Records of libraries and of asyncio become lines like ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            level = next((name for name, number in reversed(LEVELS.items()) if record.levelno >= number), "DEBUG")
            error = record.exc_info[1] if record.exc_info else None
            _write(level, record.name, record.getMessage(), {}, error)
        except Exception:
            self.handleError(record)
