"""Sentry events and traces as a sink on loopback gets them from a process, and what never gets there."""

import json
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import pytest

from tests.logs import output, records
from tests.sink import Sink
from vizora_rt import config
from vizora_rt.config import Config
from vizora_rt.errors import ConfigError
from vizora_rt.telemetry import sentry as telemetry_sentry
from vizora_rt.telemetry.credentials import REMOVED

STAGING = {"RELEASE_VERSION": "1.2.3", "VIZORA_ENV": "staging"}

START = "assert sentry.start_sentry(settings, 'worker-0')\n"
END = "\nsentry.flush(5)\nlog.info('dropped', **sentry.dropped())\n"
FAIL = """
def fail(kind, *args, **fields):
    try: raise kind(*args)
    except Exception as e: log.exception('bad', e, **fields)
"""


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


def run(sink: Sink, code: str, **env: str) -> list[dict[str, Any]]:
    """The log lines of a process with Sentry."""
    return records(START + FAIL + code + END, env={"SENTRY_DSN": sink.dsn, **STAGING, **env})


def dropped(lines: list[dict[str, Any]]) -> dict[str, int]:
    own = ("time", "level", "logger", "event", "process")
    return {name: value for name, value in lines[-1].items() if name not in own}


def test_a_fault_arrives_with_ids_as_tags_and_without_secrets(sink: Sink) -> None:
    lines = run(
        sink,
        "fail(ValueError, 'GET /ws?token=opaque-SECRET', device_id='d1', organization_id='o1', token='opaque-SECRET',"
        " rows=7)",
    )
    assert [line["event"] for line in lines] == ["bad", "dropped"]
    (event,) = sink.of("event")
    assert event["exception"]["values"][0]["type"] == "ValueError"
    assert (event["release"], event["environment"], event["level"]) == ("1.2.3", "staging", "error")
    assert event["tags"] == {"process": "worker-0", "device_id": "d1", "organization_id": "o1"}
    assert event["extra"] == {"log": "bad", "rows": 7, "token": REMOVED}
    assert event["fingerprint"] == ["ValueError"]
    assert b"opaque-SECRET" not in sink.text
    assert dropped(lines) == {}


def test_frames_have_no_lines_of_source(sink: Sink) -> None:
    """Of a file, and of code that has none: a prompt, `python -c`, what was compiled in memory."""
    code = (
        "import linecache\nsource = 'def made():  # opaque-SECRET\\n    raise KeyError\\n'\n".replace(
            "opaque", "opa' 'que"
        )
        + "linecache.cache['<made>'] = len(source), None, source.splitlines(True), '<made>'\n"
        "exec(compile(source, '<made>', 'exec'))\n"
        "from vizora_rt.client.websocket import parse_url\n"
        "for call in (made, lambda: parse_url('nowhere')):\n"
        "    try: call()\n"
        "    except Exception as e: log.exception('bad', e)\n"
    )
    run(sink, code)
    found = [event["exception"]["values"][0]["stacktrace"]["frames"] for event in sink.of("event")]
    assert [frames[-1]["function"] for frames in found] == ["made", "parse_url"]
    assert not any("context" in name for frames in found for frame in frames for name in frame)
    assert b"opaque-SECRET" not in sink.text


def test_frames_have_no_variables(sink: Sink) -> None:
    run(sink, "def hold(value):\n    fail(KeyError, 'x')\nhold('opaque-SECRET')".replace("'opaque", "'opa' 'que"))
    frames = sink.of("event")[0]["exception"]["values"][0]["stacktrace"]["frames"]
    assert frames and not any("vars" in frame for frame in frames)
    assert b"opaque-SECRET" not in sink.text


def test_the_same_fault_of_many_screens_is_one_issue_and_ten_events(sink: Sink) -> None:
    code = (
        "from vizora_rt.client.websocket import parse_url\n"
        "for n in range(1000):\n"
        "    try: parse_url(f'nowhere{n}')\n"
        "    except Exception as e: log.exception('bad', e, device_id=f'd{n}')\n"
    )
    lines = run(sink, code)
    assert len(sink.of("event")) == 10
    assert {tuple(event["fingerprint"]) for event in sink.of("event")} == {
        ("ValueError", "vizora_rt.client.websocket.parse_url")
    }
    assert dropped(lines) == {"rate": 990}
    assert len(lines) == 11, "nor does it fill the log"


def test_another_error_is_another_issue(sink: Sink) -> None:
    run(sink, "for kind in (ValueError, KeyError):\n    for _ in range(20): fail(kind)")
    kinds = [event["exception"]["values"][0]["type"] for event in sink.of("event")]
    assert {kind: kinds.count(kind) for kind in kinds} == {"ValueError": 10, "KeyError": 10}


def test_kinds_have_an_end(sink: Sink) -> None:
    lines = run(sink, "for n in range(1000): sentry.issue('new each time', str(n))")
    taken = len(sink.of("event")) + dropped(lines).get("queue", 0)
    assert taken == telemetry_sentry.MAX_KINDS
    assert dropped(lines)["fingerprints"] == 1000 - telemetry_sentry.MAX_KINDS


def test_an_issue_has_a_reason_and_no_line(sink: Sink) -> None:
    lines = run(sink, "sentry.issue('heartbeat failed', 'invalid_payload', device_id='d1', said='a b')")
    assert [line["event"] for line in lines] == ["dropped"]
    (event,) = sink.of("event")
    assert event["message"] == "heartbeat failed: invalid_payload"
    assert event["fingerprint"] == ["heartbeat failed", "invalid_payload"]
    assert (event["level"], event["tags"]["device_id"], event["extra"]["said"]) == ("warning", "d1", "a b")


def test_an_error_in_the_log_is_an_event_and_a_warning_is_none(sink: Sink) -> None:
    run(sink, "log.error('worker failed', worker=1, reason='crash'); log.warning('redis is not up')")
    (event,) = sink.of("event")
    assert (event["message"], event["fingerprint"]) == ("worker failed", ["worker failed", "crash"])
    assert (str(event["tags"]["worker"]), event["tags"]["reason"]) == ("1", "crash")


PASSING = """
import socket
class InvalidTokenError(Exception): pass
class ExpiredSignatureError(InvalidTokenError): pass
for kind in (TimeoutError, ConnectionResetError, BrokenPipeError, socket.gaierror, ExpiredSignatureError):
    fail(kind)
"""


def test_weather_is_no_event_but_a_line(sink: Sink) -> None:
    lines = run(sink, PASSING)
    assert sink.items == []
    assert len(lines) == 6
    assert dropped(lines) == {"ignored": 5}


CAUSED = """
def raises(error, cause=None, context=None):
    try:
        if context is None: raise error from cause
        try: raise context
        except Exception: raise error
    except Exception as e: return e
reset = ConnectionResetError()
def sent(*errors):
    before = sentry.dropped().get('ignored', 0)
    for error in errors: log.exception('bad', error)
    return len(errors) - (sentry.dropped().get('ignored', 0) - before)
circle = RuntimeError(); circle.__context__ = other = RuntimeError(); other.__context__ = circle
"""


@pytest.mark.parametrize(
    ("errors", "sent"),
    [
        ("raises(RuntimeError(), reset)", 0),
        ("raises(RuntimeError(), raises(ValueError(), raises(OSError(), TimeoutError())))", 0),
        ("raises(RuntimeError(), context=reset)", 0),
        ("raises(KeyError(), reset)", 0),
        ("ExceptionGroup('g', [reset, TimeoutError()])", 0),
        ("ExceptionGroup('g', [ExceptionGroup('h', [reset]), raises(RuntimeError(), reset)])", 0),
        ("raises(RuntimeError(), ExceptionGroup('g', [reset]))", 0),
        ("raises(RuntimeError(), ValueError())", 1),
        ("raises(KeyError(), context=reset)", 1),
        ("ExceptionGroup('g', [reset, ValueError()])", 1),
        ("ExceptionGroup('g', [reset, ExceptionGroup('h', [reset, raises(OSError(), KeyError())])])", 1),
        ("circle", 1),
    ],
)
def test_an_error_is_judged_by_its_cause(sink: Sink, errors: str, sent: int) -> None:
    run(sink, CAUSED + f"assert sent({errors}) == {sent}")
    assert len(sink.of("event")) == sent


def test_a_cause_that_is_cut_off_does_not_count(sink: Sink) -> None:
    run(sink, CAUSED + "error = raises(RuntimeError(), context=reset); error.__suppress_context__ = True; sent(error)")
    assert len(sink.of("event")) == 1


def test_a_group_is_named_after_its_fault(sink: Sink) -> None:
    run(sink, "fail(ExceptionGroup, 'g', [TimeoutError(), ExceptionGroup('h', [LookupError('x')])])")
    assert sink.of("event")[0]["fingerprint"] == ["LookupError"]


def test_a_request_that_failed_is_an_issue_of_its_route(sink: Sink) -> None:
    code = (
        "for path in ('/a', '/b/{id}'):\n"
        "    sentry.issue('request failed', '503', 'error', method='GET', path=path, status=503)"
    )
    run(sink, code)
    assert [event["fingerprint"] for event in sink.of("event")] == [
        ["request failed", "503", "GET", "/a"],
        ["request failed", "503", "GET", "/b/{id}"],
    ]


UNHANDLED = {
    "excepthook": "import sys\nsys.excepthook(LookupError, LookupError(), None)",
    "thread": "import threading\nt = threading.Thread(target=lambda: {}[1]); t.start(); t.join()",
    "unraisable": "class Bad:\n    def __del__(self): raise LookupError\nBad()",
    "loop": (
        "loop = asyncio.new_event_loop(); loop.set_exception_handler(logs.on_loop_exception)\n"
        "loop.call_soon(lambda: {}[1]); loop.call_soon(loop.stop); loop.run_forever(); loop.close()"
    ),
    "a boundary of ours": "fail(LookupError)",
    "with a cause": (
        "try:\n    try: {}[1]\n    except KeyError as e: raise LookupError from e\n"
        "except LookupError as e: log.exception('a', e)"
    ),
    "a crash": "log.crash('worker failed', reason='crash')",
}


@pytest.mark.parametrize("how", UNHANDLED)
def test_what_no_code_expected_is_unhandled(sink: Sink, how: str) -> None:
    run(sink, UNHANDLED[how])
    (event,) = sink.of("event")
    assert {value["mechanism"]["handled"] for value in event["exception"]["values"]} == {False}


def test_what_was_expected_is_no_exception(sink: Sink) -> None:
    run(sink, "log.error('roll refused'); sentry.issue('heartbeat failed', 'store')")
    assert len(sink.of("event")) == 2
    assert not any("exception" in event for event in sink.of("event"))


def test_the_release_is_the_version_unless_it_is_given(sink: Sink) -> None:
    run(sink, "fail(ValueError)", RELEASE_VERSION="")
    assert sink.of("event")[0]["release"] == metadata.version("vizora-rt")


@pytest.mark.parametrize(
    ("given", "release"),
    [
        ("1.0.0", "1.0.0"),
        (" 1.0.0\n", "1.0.0"),
        ("feature/x", "feature-x"),
        ("a\\b\nc\td e", "a-b-c-d-e"),
        ("v" * 300, "v" * 200),
        ("ünï", "ünï"),
        *((nothing, telemetry_sentry.VERSION) for nothing in ("", " ", ".", "..")),
    ],
)
def test_a_release_is_one_that_sentry_takes(given: str, release: str) -> None:
    assert telemetry_sentry.release(Config(sentry=config.SentrySettings(release=given))) == release


@pytest.mark.parametrize("level", ["INFO", "ERROR"])
def test_debugging_shows_what_the_sdk_says_at_any_level(sink: Sink, level: str) -> None:
    code = START + "fail(ValueError)\nsentry.flush(5)"
    env = {"SENTRY_DSN": sink.dsn, **STAGING, "VIZORA_LOGGING__LEVEL": level}
    said = [
        line
        for line in records(FAIL + code, env={**env, "SENTRY_DEBUG": "true"})
        if line["logger"].startswith("sentry")
    ]
    assert any("envelope" in line["event"] for line in said)
    assert not [line for line in records(FAIL + code, env=env) if line["logger"].startswith("sentry")]


@pytest.mark.parametrize("version", ["10.1.2.3", "vizora-rt@1.2.3"])
def test_a_release_that_looks_like_an_address_stays(sink: Sink, version: str) -> None:
    run(sink, "fail(ValueError, 'from 10.9.8.7 and ann@mail.example')", RELEASE_VERSION=version)
    assert sink.of("event")[0]["release"] == version
    assert b"10.9.8.7" not in sink.text and b"ann@" not in sink.text


@pytest.mark.parametrize(("debug", "sent"), [("false", 0), ("true", 1)])
def test_development_sends_nothing_unless_debugging(sink: Sink, debug: str, sent: int) -> None:
    lines = run(
        sink,
        "fail(ValueError)\nfor _ in range(20): sentry.traced(sentry.REQUEST, 'GET /', 1, 200)",
        VIZORA_ENV="development",
        SENTRY_DEBUG=debug,
        SENTRY_TRACES_SAMPLE_RATE="1",
        VIZORA_LOGGING__LEVEL="WARNING",
    ) or [{}]
    assert len(sink.of("event")) == sent
    assert bool(sink.of("transaction")) is bool(sent)
    assert all("[sentry]" not in line.get("event", "") for line in lines), "what the SDK says is a line like others"


@pytest.mark.parametrize(("status", "why"), [(500, "network"), (429, "quota")])
def test_what_the_sink_refuses_is_counted(sink: Sink, status: int, why: str) -> None:
    sink.status = status
    assert dropped(run(sink, "fail(ValueError)")) == {why: 1}


def test_while_nobody_takes_them_events_are_counted_and_the_end_is_bounded() -> None:
    code = START + "for n in range(200): sentry.issue('a', str(n))\nimport time\nat = time.monotonic()" + END
    code += "assert time.monotonic() - at < 6"
    lines = records(code, env={"SENTRY_DSN": "http://public@127.0.0.1:9/1", **STAGING})
    counts = dropped(lines)
    assert set(counts) <= {"network", "queue"} and sum(counts.values()) > 0


def test_without_a_dsn_sentry_is_off() -> None:
    assert telemetry_sentry.start_sentry(Config(), "worker-0") is False
    telemetry_sentry.issue("nobody", "gets this")
    telemetry_sentry.traced(telemetry_sentry.MESSAGE, "heartbeat", 1, "ok")
    with telemetry_sentry.Trace(telemetry_sentry.REQUEST, "GET /") as trace:
        trace.status = 200
    telemetry_sentry.flush(1)
    assert telemetry_sentry.message_share() == 0
    assert telemetry_sentry.dropped() == {}


def test_a_dsn_that_is_none_is_an_error_of_the_configuration() -> None:
    telemetry_sentry.check(Config())
    telemetry_sentry.check(Config(sentry=config.SentrySettings(dsn="https://key@sentry.example/1")))
    for dsn in ("not a dsn", "http://sentry.example/1", "ftp://key@sentry.example/1"):
        with pytest.raises(ConfigError, match=r"^sentry\.dsn: "):
            telemetry_sentry.check(Config(sentry=config.SentrySettings(dsn=dsn)))


def test_other_settings_take_the_place_of_those_before(sink: Sink) -> None:
    with Sink() as other:
        code = (
            "import msgspec\n"
            "fail(ValueError)\n"
            "first = sentry.STATE.sentry\n"
            "assert sentry.start_sentry(settings, 'worker-0') and sentry.STATE.sentry is first\n"
            "def changed(dsn):\n"
            "    new = msgspec.structs.replace(settings.sentry, dsn=dsn)\n"
            "    return sentry.start_sentry(msgspec.structs.replace(settings, sentry=new), 'worker-0')\n"
            "sentry.flush(5)\n"
            f"assert changed({other.dsn!r})\n"
            "fail(KeyError); sentry.flush(5)\n"
            "assert not changed('')\n"
            "fail(IndexError)"
        )
        run(sink, code)
        kinds = [[event["exception"]["values"][0]["type"] for event in each.of("event")] for each in (sink, other)]
        assert kinds == [["ValueError"], ["KeyError"]]


def test_profiling_warns_of_nothing_and_other_warnings_are_lines(sink: Sink) -> None:
    lines = run(sink, "warnings.warn('careful')", SENTRY_PROFILES_SAMPLE_RATE="1")
    assert ["careful" in line["event"] for line in lines] == [True, False]


class TestTraces:
    def test_what_is_over(self, sink: Sink) -> None:
        code = "sentry.traced(sentry.MESSAGE, 'heartbeat', 5_000_000, 'ok', device_id='d1')"
        run(sink, code, SENTRY_TRACES_SAMPLE_RATE="1")
        (trace,) = sink.of("transaction")
        assert trace["transaction"] == "heartbeat"
        context = trace["contexts"]["trace"]
        assert (context["op"], context["status"]) == ("websocket.message", "ok")
        assert (trace["tags"]["process"], trace["tags"]["device_id"]) == ("worker-0", "d1")

    def test_a_task_with_its_status_and_a_fault_within_it(self, sink: Sink) -> None:
        code = (
            "async def serve(n):\n"
            "    with sentry.Trace(sentry.REQUEST, f'GET /{n}') as trace:\n"
            "        await asyncio.sleep(0.1)\n"
            "        if n: fail(ValueError, device_id='d1')\n"
            "        trace.status = 500 if n else 200\n"
            "async def main(): await asyncio.gather(serve(0), serve(1))\n"
            "asyncio.run(main())"
        )
        run(sink, code, SENTRY_TRACES_SAMPLE_RATE="1", SENTRY_PROFILES_SAMPLE_RATE="1")
        traces = {trace["transaction"]: trace for trace in sink.of("transaction")}
        assert [traces[name]["contexts"]["trace"]["status"] for name in ("GET /0", "GET /1")] == [
            "ok",
            "internal_error",
        ]
        (event,) = sink.of("event")
        assert event["contexts"]["trace"]["trace_id"] == traces["GET /1"]["contexts"]["trace"]["trace_id"]
        assert not any("device_id" in trace["tags"] for trace in traces.values()), "a scope is of one event"
        assert len(sink.of("profile")) == 2

    def test_a_client_that_does_not_wait(self, sink: Sink) -> None:
        code = (
            "async def main():\n"
            "    async def serve():\n"
            "        with sentry.Trace(sentry.REQUEST, 'GET /'): await asyncio.sleep(9)\n"
            "    task = asyncio.create_task(serve())\n"
            "    await asyncio.sleep(0)\n"
            "    task.cancel()\n"
            "asyncio.run(main())"
        )
        run(sink, code, SENTRY_TRACES_SAMPLE_RATE="1")
        assert sink.of("transaction")[0]["contexts"]["trace"]["status"] == "invalid_argument"

    def test_at_most_so_many_a_second(self, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        sentry = telemetry_sentry.Sentry(Config(sentry=config.SentrySettings(traces_sample_rate=1.0)))
        for kind in (telemetry_sentry.REQUEST, telemetry_sentry.HANDSHAKE, telemetry_sentry.MESSAGE):
            taken = []
            for second in range(3):
                now = second + 0.5
                taken.append(sum(sentry.sampled(kind) for _ in range(1000)))
            assert taken == [telemetry_sentry.TRACES_PER_SECOND] * 3

    @pytest.mark.parametrize("rate", [0.0, 0.0001, 0.1, 0.25, 1.0])
    def test_the_share(self, rate: float) -> None:
        """What the dispatcher looks at, times what of it is taken, is the rate: exactly, whatever it is."""
        sentry = telemetry_sentry.Sentry(Config(sentry=config.SentrySettings(traces_sample_rate=rate)))
        chance = sentry._samplers[telemetry_sentry.MESSAGE]._chance
        assert sentry.share / telemetry_sentry.SHARES * chance == pytest.approx(rate)
        assert 0 <= chance <= 1


def test_the_faults_that_nobody_caught(sink: Sink) -> None:
    code = (
        "import threading, gc\n"
        "class Bad:\n    def __del__(self): raise LookupError('in a finalizer')\n"
        "Bad()\n"
        "thread = threading.Thread(target=lambda: 1 / 0)\nthread.start(); thread.join()\n"
        "async def main():\n"
        "    loop = asyncio.get_running_loop()\n"
        "    loop.set_exception_handler(logs.on_loop_exception)\n"
        "    loop.call_soon(lambda: {}['in the loop'])\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(main())\n"
    )
    lines = run(sink, code)
    assert [line["level"] for line in lines[:-1]] == ["error"] * 3
    kinds = [event["exception"]["values"][0]["type"] for event in sink.of("event")]
    assert sorted(kinds) == ["KeyError", "LookupError", "ZeroDivisionError"]


def test_what_ends_the_process_is_a_line_and_an_event(sink: Sink) -> None:
    """Sent before the process is gone."""
    text = output(
        START + "import atexit, os\nsys = __import__('sys')\n"
        "atexit.register(lambda: os._exit(0))\n"
        "raise ValueError('token=opaque-SECRET')",
        env={"SENTRY_DSN": sink.dsn, **STAGING},
    )
    (line,) = [json.loads(each) for each in text.splitlines()]
    assert (line["event"], line["level"]) == ("uncaught", "error")
    assert sink.wait("event")["exception"]["values"][0]["type"] == "ValueError"
    assert b"opaque-SECRET" not in text + sink.text
