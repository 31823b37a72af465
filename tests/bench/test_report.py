"""What a run tells: histograms and their logs, thresholds, the schema of report.json, and report.html in a browser."""

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from bench.load.counters import Interval, Recorder, Taken
from bench.load.load_context import Connects, Measured
from bench.load.server import Process
from bench.plan import Options
from bench.report import figures, histogram, html, schema, svg, terminal, thresholds
from bench.report.figures import Look, Measurement
from tests.tools import tool

MIB = 2**20


def measurement(seconds: int = 4) -> Measurement:
    """A run of two load processes: 100 heartbeats a second each, of which one is refused and one not answered."""
    looks = [
        Look(10.0 + second, {7: Process("worker 0", second * 0.5, second * 0.1, 50 * MIB, 40),
                             8: Process("store", 0.0, 0.0, 9 * MIB, 10)}, (second * 0.5, second * 0.1), (0.0, 0.0))
        for second in range(seconds + 1)
    ]  # fmt: skip
    turn = Taken(100, 98, Counter({"RATE_LIMITED": 1}), 99, {500: 97, 2000: 1, 80_000: 1})
    intervals = [Interval({"heartbeat": turn}, Counter({"ended: silent": 1}), {20: 100}, 20) for _ in range(seconds)]
    last = Interval({"heartbeat": Taken(0, 1, Counter(), 1, {900_000: 1})}, Counter(), {}, 20)
    before = Look(5.0, {7: Process("worker 0", 0.0, 0.0, 40 * MIB, 20)}, (0.0, 0.0), (0.0, 0.0))
    measured = [Measured([*intervals, last], 0.5, 0.6, 0.01, []) for _ in range(2)]
    connects = [Connects(60, Counter(), {900: 60}), Connects(50, Counter({"timeout": 10}), {900: 50})]
    marks = [(2.0, "<worker> killed")]
    return Measurement(Options(devices=120, rate=200.0), False, 120, connects, measured, before, looks[0], looks, marks)


def report(run: Measurement) -> schema.Report:
    kinds = [figures.kind(run, name, f"x.{name}.hlog") for name in run.kind_names()]
    found = figures.figures(run, kinds)
    limits = map(thresholds.parse, ("heartbeat.p99<100ms", "errors<0.1%", "plays.lost==0"))
    scenario = schema.Scenario(
        name="heartbeat",
        about="Heartbeats & more",
        verdict="failed",
        options=run.options.told(),
        invalid=["<b>late</b>"],
        notes=[],
        thresholds=[thresholds.judge(limit, found) for limit in limits],
        figures=found,
        counters=dict(figures.counters(run)),
        kinds=kinds,
        timeline=figures.timeline(run, run.kind_names()),
        generator=figures.generator(run),
    )
    machine = schema.Machine(cpu="Some CPU", cores=2, memory=2**34, kernel="Linux 6", python="3.11.7")
    return schema.Report(
        version=schema.VERSION,
        started="2026-11-23T04:00:00Z",
        command="python -m bench run heartbeat",
        gateway="ws://127.0.0.1/ws",
        machine=machine,
        verdict="failed",
        scenarios=[scenario, msgspec.structs.replace(scenario, name="fleet")],
    )


class TestFigures:
    def test_all_of_them(self) -> None:
        run = measurement()
        (kind,) = [figures.kind(run, name, "") for name in run.kind_names()]
        # The answers after the end count as answers, and for no rate.
        assert (kind.sent, kind.accepted, kind.refused, kind.lost) == (800, 786, {"RATE_LIMITED": 8}, 6)
        assert kind.rate == 196
        assert kind.latency.count == 794
        assert kind.latency.max == pytest.approx(0.9, rel=0.001)
        found = figures.figures(run, [kind])
        assert found["connected"] == pytest.approx(110 / 120, rel=1e-5)
        assert found["errors"] == pytest.approx(14 / 800)
        assert found["acked"] == pytest.approx(786 / 800)
        assert found["cpu"] == pytest.approx(2.4 / 792, rel=1e-5)
        assert found["memory"] == pytest.approx(10 * MIB / 110, rel=1e-5)
        assert found["heartbeat.p99.9"] == pytest.approx(0.9, rel=0.001)
        assert found["ended"] == 8
        assert found["descriptors.growth"] == 0

    def test_a_rise(self) -> None:
        run = measurement()
        run.split = 0.5
        slow = Taken(10, 10, Counter(), 10, {30_000: 100})
        for process in run.measured:
            for interval in process.intervals[2:]:
                interval.kinds["heartbeat"] = slow
        found = figures.figures(run, [])
        assert found["heartbeat.p99_before"] == pytest.approx(0.002, rel=0.01)
        assert found["scrape.rise"] == pytest.approx(0.028, rel=0.01)

    def test_doubts(self) -> None:
        run = measurement()
        found = figures.generator(run)
        assert list(figures.doubts(found, run.options)) == []
        starved = msgspec.structs.replace(found, waited=0.06, busy=0.99)
        assert [reason.split(" ")[3] for reason in figures.doubts(starved, run.options)] == ["waited"]
        late = list(figures.doubts(found, run.options.given(late=0.00001)))
        assert late == ["one message in a hundred left 0.02 ms late or later"]
        crowded = list(figures.doubts(msgspec.structs.replace(found, busiest=0.98), run.options))
        assert crowded == ["a load process was busy 98% of an interval: latencies are its own (--workers)"]
        closed = msgspec.structs.replace(starved, waited=0.0, late=figures.latency({}))
        assert "busy 99%" in next(figures.doubts(closed, run.options))

    def test_a_worker_that_was_replaced_did_its_work(self) -> None:
        looks = measurement(2).looks
        looks[2].processes = {9: Process("worker 1", 0.2, 0.0, MIB, 5)}
        first, _, third = figures.processes(looks)
        assert (first.pid, first.cpu, first.memory) == (7, [0.6, None], [50 * MIB, None])
        assert (third.pid, third.cpu, third.descriptors) == (9, [None, None], [None, 5])


class TestRecorder:
    def test_warm_up_counts_for_nothing(self) -> None:
        recorder = Recorder()
        result = recorder.tally("heartbeat")
        result.ask(5)
        recorder.begin(1000)
        for due in (999, 1000, 1500):
            result.ask(due)
            result.succeed(due, due + 7000)
        result.refuse(1600, 1700, "CODE")
        taken = recorder.take().kinds["heartbeat"]
        assert taken == (2, 2, {"CODE": 1}, 3, {7: 2, 0: 1})
        assert recorder.take().kinds["heartbeat"] == (0, 0, {}, 0, {})


class TestHistogram:
    def test_a_log_is_read_by_its_library(self, tmp_path: Path) -> None:
        file = tmp_path / "x.hlog"
        histogram.write_log(
            file, 1_764_000_000.0, [(0.0, 1.0, {100: 3, 5000: 1}), (1.0, 2.0, {}), (2.0, 3.0, {10**12: 2})]
        )
        read = histogram.read_log(file)
        assert [each.get_total_count() for each in read] == [4, 0, 2]
        assert read[0].get_max_value() == pytest.approx(5000, rel=0.001)
        assert read[2].get_max_value() == pytest.approx(histogram.LONGEST_US, rel=0.001)
        assert "[StartTime: 1764000000.000 (seconds since epoch)]" in file.read_text()

    def test_processes_add_up_to_one(self) -> None:
        one, other = {100: 990, 200: 5}, {100: 1, 9000: 4}
        both = figures.merged(iter((one, other)))
        assert histogram.stats(both) == histogram.stats({100: 991, 200: 5, 9000: 4})
        assert histogram.stats(both).p50 == pytest.approx(1e-4, rel=0.001)
        assert histogram.stats(both).p999 == pytest.approx(9e-3, rel=0.001)

    def test_a_curve_ends_where_its_count_does(self) -> None:
        curve = histogram.curve(dict.fromkeys(range(1, 1001), 1))
        assert curve[-1][0] == 100
        assert curve[-1][1] == pytest.approx(1e-3, rel=0.001)
        assert curve[-2][0] < 99.9
        assert [latency for _, latency in curve] == sorted(latency for _, latency in curve)
        assert histogram.curve({}) == []
        assert histogram.stats({}).count == 0


class TestThresholds:
    @pytest.mark.parametrize(
        ("text", "figure", "bound"),
        [
            ("heartbeat.p99<20ms", "heartbeat.p99", 0.02),
            ("errors < 0.1%", "errors", 0.001),
            ("heartbeat.p99.9<=500us", "heartbeat.p99.9", 0.0005),
            ("memory<6KiB", "memory", 6144.0),
            ("rate>1000/s", "rate", 1000.0),
            ("plays.lost==0", "plays.lost", 0.0),
        ],
    )
    def test_parse(self, text: str, figure: str, bound: float) -> None:
        limit = thresholds.parse(text)
        assert limit.figure == figure
        assert limit.bound == pytest.approx(bound)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("heartbeat.p99<20", "heartbeat.p99 needs a unit: us or ms or s; for example heartbeat.p99<20us"),
            ("heartbeat.p99.9<1.5", "needs a unit"),
            ("command.mean<2", "needs a unit"),
            ("reconnect.max<10", "needs a unit"),
            ("lag.max<1", "needs a unit"),
            ("scrape.rise<5", "needs a unit"),
            ("heartbeat.p99_after<5", "needs a unit"),
            ("cpu<10", "needs a unit"),
            ("store.cpu<10", "needs a unit"),
            ("connect.cpu<10", "needs a unit"),
            ("memory<6", "memory needs a unit: KiB or MiB or GiB"),
            ("memory.growth<5", "memory.growth needs a unit: %"),
            ("errors<1", "errors needs a unit: %"),
            ("play.accepted>=1", "needs a unit: %"),
            ("heartbeat.p99<20%", "heartbeat.p99 takes us or ms or s"),
            ("rate>1000ms", "rate takes /s"),
            ("plays.lost<1%", "plays.lost takes a number without unit"),
            ("cpu.cores<1s", "cpu.cores takes a number without unit"),
        ],
    )
    def test_unit_of_the_figure(self, text: str, words: str) -> None:
        with pytest.raises(ValueError, match=f"not a threshold: .*{re.escape(words)}"):
            thresholds.parse(text)

    @pytest.mark.parametrize("text", ["errors==0", "heartbeat.max>0", "memory>0", "rate>1000", "rate>1000/s"])
    def test_no_unit_needed(self, text: str) -> None:
        thresholds.parse(text)

    @pytest.mark.parametrize("text", ["", "p99", "p99<", "p99<20 parsecs", "p99=20", "<20ms", "a<1<2"])
    def test_no_threshold(self, text: str) -> None:
        with pytest.raises(ValueError, match="not a threshold"):
            thresholds.parse(text)

    @pytest.mark.parametrize(
        ("text", "passed"),
        [("x<2", True), ("x<1", False), ("x<=1", True), ("x>1", False), ("x>=1", True), ("x==1", True), ("y<1", None)],
    )
    def test_judge(self, text: str, passed: bool | None) -> None:
        assert thresholds.judge(thresholds.parse(text), {"x": 1.0}).passed is passed


class TestJson:
    def test_is_what_the_schema_says(self, tmp_path: Path) -> None:
        schema.write(report(measurement()), tmp_path / "report.json")
        found: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
        rules = json.loads(schema.json_schema())
        jsonschema.Draft202012Validator.check_schema(rules)
        jsonschema.validate(found, rules)
        assert schema.read(tmp_path / "report.json") == report(measurement())
        wrongs: list[dict[str, Any]] = [{"version": 2}, {"verdict": "fine"}, {"more": 1}, {"scenarios": [{}]}]
        for wrong in wrongs:
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate({**found, **wrong}, rules)


class TestHtml:
    def test_says_it_and_escapes_it(self) -> None:
        text = html.page(report(measurement()))
        for words in (
            "heartbeat.p99&lt;100ms",
            "&lt;b&gt;late&lt;/b&gt;",
            "&lt;worker&gt; killed",
            "Heartbeats &amp; more",
        ):
            assert words in text
        assert "<b>late" not in text
        assert text.count("<svg") == 12
        assert "http:" not in text
        assert "https:" not in text
        assert "<script" not in text

    def test_a_browser_has_nothing_to_complain_of(self, tmp_path: Path) -> None:
        """The page forbids itself every request, so that one would be an error on its console."""
        page = html.page(report(measurement()))
        assert browse(page, tmp_path / "good.html") == []
        broken = page.replace("</main>", '<img src="http://127.0.0.9/x.png"></main>')
        assert len(browse(broken, tmp_path / "bad.html")) == 1


def browse(page: str, file: Path) -> list[str]:
    """What Chromium says on its console of a page that it has drawn; it asks nobody anything."""
    file.write_text(page)
    done = subprocess.run(
        [
            *(tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *(
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-extensions",
            ),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--dump-dom"),
            *(f"--user-data-dir={file.with_suffix('')}", file.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<svg") == page.count("<svg")
    return [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


class TestCharts:
    def test_round_numbers(self) -> None:
        axis = svg.linear([0.0, 87.0], str)
        assert [value for value, _ in axis.ticks] == [0, 25, 50, 75, 100]
        assert [value for value, _ in svg.linear([90 * MIB], str, base=2.0).ticks] == [0, 32 * MIB, 64 * MIB, 96 * MIB]
        assert svg.linear([], str).place(0) == 0
        decades = svg.decades([0.003, 0.2], str)
        assert (decades.low, decades.high) == (0.001, 1.0)
        assert decades.place(0.0316227766) == pytest.approx(0.5)

    def test_a_line_is_interrupted_where_nothing_was(self) -> None:
        x = svg.linear([4.0], str)
        line = svg.Line("p99", [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 1.0)], 0, True)
        drawn = svg.chart(x, svg.linear([2.0], str), [line], "a chart", str, str, [(1.0, "mark")])
        assert (drawn.count("<polyline"), drawn.count("<circle"), drawn.count("lone")) == (1, 3, 1)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.0841, "0.084"), (1.239, "1.24"), (12.34, "12.3"), (350.7, "351"), (12345.6, "12,346")],
)
def test_digits(value: float, shown: str) -> None:
    assert terminal.digits(value) == shown
