"""Tell operators what happened: log lines on stderr, faults and traces to Sentry. The only `sentry_sdk`.

    log = report.logger("worker")
    log.info("device refused", device_id=device, code="AUTH_EXPIRED")
    log.exception("handler failed", error, device_id=device)        # a line with its traceback, and an event
    report.issue("heartbeat failed", "store", device_id=device)     # no line: whatever peers can cause at will

Nothing here is for the hot path, except that an event past its rate costs one look-up.

Sentry gets unhandled exceptions, errors in the log, HTTP 5xx, failed connections, failed heartbeats and content errors
as events, and a share of requests, handshakes and messages as traces. It gets no timeout, reset, DNS failure or token
that is not valid, nor what has one for its cause; nothing in development unless `sentry.debug`; no credential, address,
picture, local variable or line of source. Ids
are tags.

Over 300 lines because the SDK has one place.
"""

import logging
import random
import re
import threading
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from importlib import metadata
from math import ceil
from types import TracebackType
from typing import Final, Self

import sentry_sdk
from sentry_sdk.tracing import Transaction
from sentry_sdk.transport import HttpTransport
from sentry_sdk.types import Event
from sentry_sdk.utils import BadDsn, Dsn, event_from_exception

from vizora_rt.app.limits import SlidingWindow
from vizora_rt.config import Config
from vizora_rt.errors import ConfigError
from vizora_rt.telemetry.redact import clean, tree

VERSION: Final = metadata.version("vizora-rt")

MAX_CAUSES: Final = 50
"""Causes of causes, and groups in groups, that are looked at. A chain may be a circle."""

PER_MINUTE: Final = 10
"""Events of one kind: enough to see that it goes on, and an outage does not spend the quota."""
MAX_KINDS: Final = 256
"""Kinds that are told apart in a minute. They come from code, a few dozen; a fault that makes more is one too many."""

PASSING = (TimeoutError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
"""The weather of a network with thousands of screens in it: no issue for Sentry."""

BUGS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, RecursionError, TypeError)
"""Raised while weather was handled and without `from`, these are faults of the handler."""

PASSING_NAMES = frozenset({"TimeoutError", "gaierror", "herror", "InvalidTokenError"})
"""The same, of modules that are not imported here: failures of DNS, tokens that are not valid."""

MAX_RELEASE: Final = 200
"""Characters, of Sentry."""
_NOT_IN_A_RELEASE: Final = re.compile(r"[\s/\\\x00-\x1f\x7f]")

TAGS: Final = frozenset(
    {"device_id", "organization_id", "user_id", "worker", "event", "message", "method", "path", "status", "reason",
     "name"}
)  # fmt: skip
"""Fields that issues are searched by; the others go along as they are."""

OWN: Final = frozenset(
    {"event_id", "timestamp", "start_timestamp", "platform", "release", "environment", "server_name", "sdk", "type"}
)
"""Fields of an event that the service or the SDK fills in: a version may look like an address."""

REQUEST: Final = "http.server"
HANDSHAKE: Final = "websocket.server"
MESSAGE: Final = "websocket.message"
TRACES_PER_SECOND: Final = 50
"""Of each of the three: a trace costs 0.2 ms, so that all are a few percent of a core in the worst storm."""

SHARES: Final = 1024
"""A message is looked at when `ns % SHARES < report.message_share()`, with `ns` the clock that it is timed with: the
low bits of a clock of nanoseconds are dice that are thrown already."""

LOST: Final = {"full_queue": "queue", "self_rate_limits": "quota", "status_429": "quota"}
"""What the SDK calls it when it loses an event, as label values; all else is the network's."""


class SentryState:
    """Sentry in this process, once `start_sentry` has switched it on, and what was not sent."""

    __slots__ = ("dropped", "lock", "sentry")

    def __init__(self) -> None:
        self.sentry: Sentry | None = None
        # The SDK counts in a thread of its own.
        self.lock = threading.Lock()
        self.dropped: dict[str, int] = {}


class _Transport(HttpTransport):
    """Counts what is lost on the way."""

    def on_dropped_event(self, reason: str) -> None:
        _drop(LOST.get(reason, "network"))


class _Audible(logging.Filter):
    """What the SDK says is debug output, all of it: `sentry.debug` alone shows it, whatever `logging.level` is."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        record.levelno = max(record.levelno, self._level)
        return True


class _Sampler:
    """Which of many are traced: a share, and so many a second at most."""

    __slots__ = ("_chance", "_left", "_second")

    def __init__(self, chance: float) -> None:
        self._chance = chance
        self._second = -1
        self._left = 0

    def take(self) -> bool:
        if random.random() >= self._chance:
            return False
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._left = second, TRACES_PER_SECOND
        self._left -= 1
        return self._left >= 0


class Sentry:
    """Sentry in this process. Scopes are of one event or trace, never of a connection."""

    __slots__ = ("_kinds", "_quiet", "_rate", "_samplers", "settings", "share")

    def __init__(self, config: Config) -> None:
        self.settings = config.sentry
        self._quiet = config.development and not config.sentry.debug
        self._kinds = SlidingWindow(PER_MINUTE, 60, MAX_KINDS)
        self._rate = 0.0 if self._quiet else config.sentry.traces_sample_rate
        self.share = ceil(self._rate * SHARES)
        # A message that is looked at has passed `share` of SHARES already.
        looked_at = self._rate * SHARES / self.share if self.share else 0.0
        self._samplers = {kind: _Sampler(self._rate) for kind in (REQUEST, HANDSHAKE)} | {MESSAGE: _Sampler(looked_at)}

    def send(
        self,
        kind: tuple[str, ...],
        message: str,
        level: str,
        fields: Mapping[str, object],
        error: BaseException | None = None,
        mechanism: str = "",
    ) -> None:
        """An event, unless there were enough of its kind. `mechanism`: what caught a fault that no code handled."""
        if error is not None and passing(error):
            _drop("ignored")
        elif self._quiet:
            _drop("development")
        elif self._kinds.take(kind, time.monotonic()):
            with sentry_sdk.new_scope() as scope:
                scope.fingerprint = [part for part in kind if part]
                scope.set_level(level)  # type: ignore[arg-type]
                _describe(scope, fields)
                if error is not None:
                    scope.set_extra("log", message)
                    options = sentry_sdk.get_client().options
                    event, hint = event_from_exception(error, options, {"type": mechanism, "handled": False})
                    scope.capture_event(event, hint)
                elif mechanism:
                    value = {"type": kind[0], "value": kind[-1], "mechanism": {"type": mechanism, "handled": False}}
                    scope.capture_event({"message": message, "exception": {"values": [value]}})
                else:
                    scope.capture_event({"message": message})
        else:
            _drop("rate" if kind in self._kinds else "fingerprints")

    def sampled(self, kind: str) -> bool:
        return self._samplers[kind].take()

    def begin(self, kind: str, name: str, seconds: float = 0.0) -> Transaction:
        """A transaction that began so many seconds ago, in the present scope."""
        began = time.time() - seconds
        found = sentry_sdk.start_transaction(op=kind, name=name, source="route", start_timestamp=began, sampled=True)
        assert isinstance(found, Transaction)
        found.sample_rate = self._rate
        return found


class Trace:
    """`with report.Trace(...)`: a task that is traced if it is one of the share, and may be profiled meanwhile."""

    __slots__ = ("_kind", "_name", "_stack", "_transaction", "status")

    def __init__(self, kind: str, name: str) -> None:
        self._kind = kind
        self._name = name
        self._stack = ExitStack()
        self._transaction: Transaction | None = None
        self.status = 499
        """nginx's status for a client that did not wait; to be set once there is an answer."""

    def __enter__(self) -> Self:
        sentry = STATE.sentry
        if sentry is not None and sentry.sampled(self._kind):
            self._stack.enter_context(sentry_sdk.isolation_scope())
            self._transaction = sentry.begin(self._kind, self._name)
            self._stack.enter_context(self._transaction)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._transaction is not None:
            self._transaction.set_http_status(self.status)
        self._stack.close()


STATE = SentryState()


def check(config: Config) -> None:
    """Raises ConfigError for a DSN that is none."""
    try:
        if config.sentry.dsn:
            Dsn(config.sentry.dsn)
    except BadDsn as error:
        raise ConfigError(f"sentry.dsn: {str(error).lower()}") from None


def release(config: Config) -> str:
    """The release that faults are filed under, as Sentry takes it: it drops one that holds a slash or a line break, is
    longer than 200 characters, or is only dots. What it does not take becomes a hyphen."""
    given = _NOT_IN_A_RELEASE.sub("-", config.sentry.release.strip())[:MAX_RELEASE]
    return VERSION if given in ("", ".", "..") else given


def start_sentry(config: Config, process: str) -> bool:
    """Switch Sentry on for this process, if there is a DSN. Costs 7 MiB, so it is not done without one. Called again
    with other settings, these take the place of those before.

    Integrations stay off: they patch libraries, and the one for `logging` would report each fault a second time.
    Locals stay at home because a frame's locals hold tokens. So do lines of source: the release, the file and the line
    number name them, and what was given to `python -c` or typed at a prompt may hold a secret in any syntax.
    """
    if STATE.sentry is not None:
        if STATE.sentry.settings == config.sentry:
            return True
        STATE.sentry = None
        sentry_sdk.get_client().close(timeout=0.0)
    if not config.sentry.dsn:
        return False
    # The SDK would write to stderr in a format of its own.
    own = logging.getLogger("sentry_sdk.errors")
    own.handlers.clear()
    own.filters.clear()
    own.setLevel(logging.DEBUG if config.sentry.debug else logging.CRITICAL)
    own.addFilter(_Audible(LEVELS[config.logging.level]))
    with warnings.catch_warnings():
        # Of profiles_sample_rate, which is what operators have.
        warnings.filterwarnings("ignore", "Transaction-based profiling is deprecated", DeprecationWarning)
        sentry_sdk.init(
            dsn=config.sentry.dsn,
            release=release(config),
            environment=config.environment,
            transport=_Transport,
            traces_sample_rate=config.sentry.traces_sample_rate,
            profiles_sample_rate=config.sentry.profiles_sample_rate,
            debug=config.sentry.debug,
            before_send=lambda event, _: _scrubbed(event),
            before_send_transaction=lambda event, _: _scrubbed(event),
            default_integrations=False,
            auto_enabling_integrations=False,
            auto_session_tracking=False,
            enable_backpressure_handling=False,
            include_local_variables=False,
            include_source_context=False,
            max_breadcrumbs=0,
            max_request_body_size="never",
            send_client_reports=False,
        )
    sentry_sdk.get_global_scope().set_tag("process", process)
    STATE.sentry = Sentry(config)
    return True


def issue(kind: str, why: str, level: str = "warning", /, **fields: object) -> None:
    """Tell Sentry of what is no exception, `why` of a closed set. Does nothing while Sentry is off.

    With the fields `method` and `path`, a route's pattern, each route is an issue of its own.
    """
    if STATE.sentry is not None:
        route = tuple(str(fields[name]) for name in ("method", "path") if name in fields)
        STATE.sentry.send((kind, why, *route), f"{kind}: {why}", level, fields)


def traced(kind: str, name: str, ns: int, status: int | str, **fields: object) -> None:
    """Trace what is over and took so long, if it is one of the share."""
    sentry = STATE.sentry
    if sentry is None or not sentry.sampled(kind):
        return
    with sentry_sdk.isolation_scope() as scope:
        transaction = sentry.begin(kind, name, ns / 1e9)
        _describe(scope, fields)
        if isinstance(status, int):
            transaction.set_http_status(status)
        else:
            transaction.set_status(status)
        transaction.finish()


def message_share() -> int:
    """Of SHARES messages, how many are looked at. 0 while Sentry is off."""
    return 0 if STATE.sentry is None else STATE.sentry.share


def dropped() -> dict[str, int]:
    """How many events were not sent, by reason: what `sentry_dropped_total` counts."""
    with STATE.lock:
        return dict(STATE.dropped)


def flush(seconds: float) -> None:
    """Send what waits for Sentry; returns after `seconds` at the latest."""
    if STATE.sentry is not None:
        sentry_sdk.flush(timeout=seconds)


def passing(error: BaseException) -> bool:
    """Whether it is weather, and no fault: by its kind, or by that of its cause; a group when all of it is."""
    return _passing(error, 0)


def _passing(error: BaseException, depth: int) -> bool:
    if isinstance(error, PASSING) or any(kind.__name__ in PASSING_NAMES for kind in type(error).__mro__):
        return True
    if depth == MAX_CAUSES:
        return False
    if isinstance(error, BaseExceptionGroup):
        return all(_passing(each, depth + 1) for each in error.exceptions)
    if error.__cause__ is not None:
        return _passing(error.__cause__, depth + 1)
    if error.__suppress_context__ or error.__context__ is None or isinstance(error, BUGS):
        return False
    return _passing(error.__context__, depth + 1)


def fault_of(error: BaseException) -> BaseException:
    """What an issue is named after: of a group the first that is no weather, else the error itself."""
    for _ in range(MAX_CAUSES):
        if not isinstance(error, BaseExceptionGroup):
            break
        error = next((each for each in error.exceptions if not passing(each)), error.exceptions[0])
    return error


def _drop(why: str) -> None:
    with STATE.lock:
        STATE.dropped[why] = STATE.dropped.get(why, 0) + 1


def _describe(scope: sentry_sdk.Scope, fields: Mapping[str, object]) -> None:
    for name, value in fields.items():
        if value is not None and value != "":
            (scope.set_tag if name in TAGS else scope.set_extra)(name, clean(value, name))


def innermost(error: BaseException) -> str:
    """The innermost function of ours that it went through: the same fault of a thousand screens is one issue."""
    place = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if module.startswith("vizora_rt."):
            place = f"{module}.{frame.f_code.co_qualname}"
    return place


def _scrubbed(event: Event) -> Event:
    return {name: value if name in OWN else tree(value, name) for name, value in event.items()}  # type: ignore[return-value]


LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
