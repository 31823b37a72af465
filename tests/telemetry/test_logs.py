"""Log lines as a reader of stderr gets them."""

import pytest

from tests.logs import output, records

HOSTILE = 'x\n{"level":"error","event":"forged"}\r\x1b[2K\x85\u2028\x7f\x00'


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
        "    loop.set_exception_handler(logs.on_loop_exception)\n"
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


def test_what_peers_can_cause_is_held_to_so_many_lines_a_minute_and_the_next_one_says_how_many() -> None:
    code = (
        "from vizora_rt.telemetry import logs, sentry\n"
        "at = [0.0]\n"
        "logs.time = type('Clock', (), {'monotonic': lambda: at[0]})\n"
        "def fail():\n"
        "    try: 1 / 0\n"
        "    except ZeroDivisionError as error: log.exception('bad', error)\n"
        "for _ in range(1000): fail()\n"
        "log.info('others are not held')\n"
        "at[0] = 61.0\n"
        "fail()\n"
    )
    lines = records(code)
    assert [line["event"] for line in lines] == [*["bad"] * 10, "others are not held", "bad"]
    assert lines[-1]["left_out"] == 990
    assert "left_out" not in lines[0]


def test_a_library_that_repeats_itself_is_held_too() -> None:
    lines = records("for n in range(100): logging.getLogger('lib').warning('again %d', n)")
    assert [line["event"] for line in lines] == [f"again {n}" for n in range(10)]
