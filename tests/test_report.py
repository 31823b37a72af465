"""Log lines as a reader of stderr gets them, and Sentry events as a sink on loopback gets them."""

import gzip
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt import report
from vizora_rt.config import Config, Logging
from vizora_rt.report import REMOVED

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJkIn0.c2lnbmF0dXJl-_"

HOSTILE = 'x\n{"level":"error","event":"forged"}\r\x1b[2K\x85\u2028\x7f\x00'


def output(
    code: str,
    style: str = "json",
    level: str = "INFO",
    env: dict[str, str] | None = None,
) -> bytes:
    """Stderr of a process that ran `code` after `configure`."""
    program = (
        "import asyncio, logging, warnings\n"
        "from vizora_rt import config, report\n"
        "settings = config.load(None, __import__('os').environ)\n"
        "report.configure(settings, 'worker-0')\n"
        "log = report.logger('test')\n" + code
    )
    variables = {**os.environ, "VIZORA_LOGGING__FORMAT": style, "VIZORA_LOGGING__LEVEL": level, **(env or {})}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stderr


def records(code: str, **options: Any) -> list[dict[str, Any]]:
    """The same, as JSON lines; split as a log reader splits."""
    return [json.loads(line) for line in output(code, **options).split(b"\n")[:-1]]


def test_a_line_has_time_level_logger_event_process_and_ids() -> None:
    (line,) = records("log.info('device refused', device_id='d1', code='AUTH_EXPIRED', tries=3, ok=None)")
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "test",
        "event": "device refused",
        "process": "worker-0",
        "device_id": "d1",
        "code": "AUTH_EXPIRED",
        "tries": 3,
        "ok": None,
    }


def test_levels_below_the_configured_one_are_silent() -> None:
    code = "log.debug('a'); log.info('b'); log.warning('c'); log.error('d')"
    assert [line["event"] for line in records(code, level="WARNING")] == ["c", "d"]
    assert [line["event"] for line in records(code, level="DEBUG")] == ["a", "b", "c", "d"]


def test_a_field_cannot_replace_the_line_s_own() -> None:
    (line,) = records("log.info('real', **{'event': 'forged', 'level': 'error', 'time': 1, 'traceback': 'x'})")
    assert (line["event"], line["level"], line["event_"], line["traceback_"]) == ("real", "info", "forged", "x")


@pytest.mark.parametrize("style", ["json", "console"])
def test_no_value_can_end_a_line_or_move_a_terminal(style: str) -> None:
    text = output(f"log.info('event', device_id={HOSTILE!r})", style=style).decode()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    assert "forged" in text


@given(st.text())
def test_any_text_becomes_one_printable_line(text: str) -> None:
    line = json.dumps(report.clean({"key": text}))
    assert json.loads(line).keys() == {"key"}
    json.loads(line)["key"].encode()


def test_an_exception_carries_its_traceback_as_a_field() -> None:
    code = "try: 1/0\nexcept ZeroDivisionError as error: log.exception('broken', error, device_id='d1')"
    (line,) = records(code)
    assert (line["event"], line["level"], line["device_id"]) == ("broken", "error", "d1")
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["traceback"].endswith("ZeroDivisionError: division by zero\n")


def test_on_a_console_a_traceback_follows_indented() -> None:
    code = f"try: raise ValueError({HOSTILE!r})\nexcept ValueError as error: log.exception('broken', error)"
    head, *rest = output(code, style="console").decode().split("\n")[:-1]
    assert "ERROR" in head and "broken" in head
    assert rest and all(line.startswith("    ") and line.isprintable() for line in rest)


def test_records_of_libraries_become_the_same_lines() -> None:
    code = "logging.getLogger('lib').warning('a\\nb %s', 1); warnings.warn('careful')"
    first, second = records(code)
    assert (first["logger"], first["event"], first["level"]) == ("lib", "a\nb 1", "warning")
    assert second["logger"] == "py.warnings" and "careful" in second["event"]


def test_what_nobody_caught_in_the_loop_is_a_line_with_a_traceback() -> None:
    code = (
        "async def main():\n"
        "    loop = asyncio.get_running_loop()\n"
        "    loop.set_exception_handler(report.on_loop_exception)\n"
        "    loop.call_soon(lambda: 1/0)\n"
        "    await asyncio.sleep(0)\n"
        "    loop.call_exception_handler({'message': 'odd'})\n"
        "asyncio.run(main())\n"
    )
    first, second = records(code)
    assert first["event"] == "unhandled in the event loop" and "ZeroDivisionError" in first["traceback"]
    assert second["message"] == "odd"


def test_a_closed_stderr_is_no_fault() -> None:
    assert output("import os\nos.close(2)\nlog.error('nobody reads this')") == b""


@pytest.mark.parametrize(
    "text",
    [
        JWT,
        f"GET /ws?a=1&token={JWT} HTTP/1.1",
        "GET /ws?token=opaque-SECRET&b=2",
        "access_token=opaque-SECRET; next",
        "Authorization: Bearer opaque-SECRET",
        "'authorization': 'opaque-SECRET'",
        "Cookie: vizora_auth_token=opaque-SECRET; other=opaque-SECRET",
        "x-internal-api-key: opaque-SECRET",
        "DEVICE_JWT_SECRET=opaque-SECRET",
        f"vizora.v1, bearer.{JWT}",
        f"prefix-{JWT}",
        "redis://user:opaque-SECRET@10.0.0.1:6379/0",
        "redis://:opaque-SECRET@10.0.0.1:6379/0",
        "data:image/png;base64,opaqueSECRET==",
    ],
)
def test_credentials_are_scrubbed_from_text(text: str) -> None:
    cleaned = report.scrub(text)
    assert REMOVED in cleaned
    assert "SECRET" not in cleaned.removeprefix("DEVICE_JWT_SECRET")
    assert "eyJ" not in cleaned


@pytest.mark.parametrize("text", ["10.0.0.1:6379", "redis://10.0.0.1:6379/0", "v1.2.3", "a token of love", "x=1&y=2"])
def test_ordinary_text_stays(text: str) -> None:
    assert report.scrub(text) == text


def test_fields_named_like_secrets_are_removed_at_any_depth() -> None:
    value = {"token": "a", "headers": {"Authorization": "b", "Host": "c"}, "imageData": "d", "jwt_secrets": ["e"]}
    assert report.clean(value) == {
        "token": REMOVED,
        "headers": {"Authorization": REMOVED, "Host": "c"},
        "imageData": REMOVED,
        "jwt_secrets": [REMOVED],
    }


def test_a_value_is_bounded_and_the_cut_leaves_no_half_token() -> None:
    assert len(report.clean("word " * 100_000)) < report.MAX_TEXT + 50
    assert report.clean("x " * 1020 + "y" * 4 + JWT) == "x " * 1019 + "x... (2095 characters)"
    nested: list[Any] = []
    for _ in range(50):
        nested = [nested]
    assert "..." in json.dumps(report.clean(nested))


def test_numbers_that_json_lacks_become_text() -> None:
    assert report.clean([float("nan"), float("inf"), 1.5]) == ["nan", "inf", 1.5]


@pytest.mark.parametrize(
    "text", ["eyJ-" * 100_000, "token" * 100_000, "a" * 400_000, "eyJ" + "a." * 200_000, "://" * 100_000]
)
def test_scrubbing_is_linear(text: str) -> None:
    """A quadratic pattern would not come back from these for minutes."""
    report.scrub(text)


class Sink(http.server.BaseHTTPRequestHandler):
    """Takes Sentry envelopes."""

    events: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        lines = body.split(b"\n")
        for header, payload in zip(lines[1::2], lines[2::2], strict=False):
            if json.loads(header)["type"] == "event":
                self.events.append(json.loads(payload))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def sink() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A DSN, and the events that arrive at it."""
    events: list[dict[str, Any]] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Taker", (Sink,), {"events": events}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://key@127.0.0.1:{server.server_address[1]}/1", events
    server.shutdown()
    thread.join()
    server.server_close()


RAISING = """
import socket
assert report.start_sentry(settings, 'worker-0')
class InvalidTokenError(Exception): pass
class ExpiredSignatureError(InvalidTokenError): pass
for error in (TimeoutError(), ConnectionResetError(), socket.gaierror(), ExpiredSignatureError(),
              ValueError('GET /ws?token=opaque-SECRET')):
    try: raise error
    except Exception as caught: log.exception('broken', caught, device_id='d1', token='opaque-SECRET')
report.flush(5)
"""


def test_sentry_gets_faults_scrubbed_and_nothing_of_passing_ones(sink: tuple[str, list[dict[str, Any]]]) -> None:
    dsn, events = sink
    variables = {"SENTRY_DSN": dsn, "RELEASE_VERSION": "1.2.3", "VIZORA_ENV": "staging"}
    assert len(records(RAISING, env=variables)) == 5
    (event,) = events
    assert event["exception"]["values"][0]["type"] == "ValueError"
    assert (event["release"], event["environment"]) == ("1.2.3", "staging")
    assert event["tags"] == {"process": "worker-0", "device_id": "d1", "token": REMOVED}
    assert "opaque-SECRET" not in json.dumps(event)


@pytest.mark.parametrize(("debug", "sent"), [("false", 0), ("true", 1)])
def test_development_sends_nothing_unless_debugging(
    sink: tuple[str, list[dict[str, Any]]], debug: str, sent: int
) -> None:
    dsn, events = sink
    output(RAISING, env={"SENTRY_DSN": dsn, "VIZORA_ENV": "development", "SENTRY_DEBUG": debug})
    assert len(events) == sent


def test_without_a_dsn_sentry_is_off() -> None:
    assert report.start_sentry(Config(logging=Logging()), "worker-0") is False
    report.capture(ValueError("nobody gets this"))
    report.flush(1)
