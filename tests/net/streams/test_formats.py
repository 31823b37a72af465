"""Entries as lines. Those of real streams are in test_readers."""

import csv
import io
import json
import random
from pathlib import Path

import pytest

from vizora_rt.net.streams import formats
from vizora_rt.net.streams.formats import EVENTS, PLAYS, Fold, Format, Output, StreamEntry, StreamKind


def entry(number: int, phase: str = "start", **fields: str) -> StreamEntry:
    told = {"play_id": f"p{number}", "phase": phase, "client_time": "1", **fields}
    return StreamEntry(b"k", b"%d-0" % number, (number, 0), told)


class TestRecord:
    def test_a_play(self) -> None:
        record = PLAYS.record(entry(7, "end", duration="2.5", completion="100", playlist_id="", offset_ms="-3"))
        assert tuple(record) == PLAYS.columns
        assert (record["client_time"], record["duration"], record["completion"], record["offset_ms"]) == (
            1,
            2.5,
            100,
            -3,
        )
        assert record["playlist_id"] is record["server_time"] is record["content_id"] is None

    @pytest.mark.parametrize(("text", "data"), [('{"a":1}', {"a": 1}), ("", None), ("{", None)])
    def test_an_event(self, text: str, data: object) -> None:
        record = EVENTS.record(StreamEntry(b"vz:events", b"5-1", (5, 1), {"type": "command", "at": "5", "json": text}))
        assert tuple(record) == EVENTS.columns
        assert (record["id"], record["type"], record["at"], record["data"]) == ("5-1", "command", 5, data)

    def test_what_is_no_number_is_nothing(self) -> None:
        assert PLAYS.record(entry(1, duration="long"))["duration"] is None


class TestFold:
    def test_an_end_finds_its_start(self) -> None:
        fold = Fold(wait=100)
        start, end = entry(1, playlist_id="p"), entry(1, "end", client_time="9")
        assert list(fold.feed([start], 1)) == []
        ((record, parts),) = fold.feed([end], 2)
        assert parts == [start, end]
        assert tuple(record) == PLAYS.folded
        assert (record["phase"], record["started"], record["ended"], record["playlist_id"]) == ("both", 1, 9, "p")

    def test_an_end_waits_for_its_start_as_well(self) -> None:
        fold = Fold(wait=100)
        end, start = entry(1, "end", client_time="9", first="1"), entry(1, playlist_id="p", first="0")
        assert list(fold.feed([end], 1)) == []
        ((record, parts),) = fold.feed([start], 2)
        assert parts == [end, start]
        assert (record["phase"], record["started"], record["ended"], record["playlist_id"]) == ("both", 1, 9, "p")
        assert fold.held == {}

    def test_entries_of_the_release_before(self) -> None:
        """They do not tell which phase was recorded first; in a rolling restart the other one may."""
        for first, second in (({}, {}), ({}, {"first": "0"}), ({"first": "1"}, {})):
            fold = Fold(wait=100)
            assert list(fold.feed([entry(1, **first)], 1)) == []
            ((record, _),) = fold.feed([entry(1, "end", client_time="9", **second)], 2)
            assert (record["phase"], record["started"], record["ended"], record["late_ms"]) == ("both", 1, 9, None)

    @pytest.mark.parametrize("fields", [{"a": "b"}, {"play_id": "p1"}, {"phase": "end"}, {"play_id": "", "phase": ""}])
    def test_what_an_operator_has_put_there(self, fields: dict[str, str]) -> None:
        stray = StreamEntry(b"s", b"1-0", (1, 0), fields)
        fold = Fold(wait=100)
        assert len([*fold.feed([stray], 1), *fold.feed([], 200)]) == 1

    def test_an_end_without_a_start_goes_alone(self) -> None:
        end = entry(1, "end", first="1")
        fold = Fold(wait=100)
        assert list(fold.feed([end], 100)) == []
        ((record, parts),) = fold.feed([], 101)
        assert (record["phase"], record["started"], record["ended"], parts) == ("end", None, 1, [end])

    def test_one_whose_other_phase_went_before_does_not_wait(self) -> None:
        end = entry(1, "end", first="0")
        ((record, parts),) = Fold(wait=100).feed([end], 1)
        assert (record["phase"], parts) == ("end", [end])

    def test_the_same_phase_again_is_acknowledged_with_it(self) -> None:
        fold = Fold(wait=100)
        start, again, end = entry(1), entry(1), entry(1, "end")
        assert list(fold.feed([start, again], 1)) == []
        ((record, parts),) = fold.feed([end], 2)
        assert (record["phase"], parts) == ("both", [start, again, end])

    def test_in_whatever_order_and_batches(self) -> None:
        """Each play is one line."""
        entries = [entry(number, phase) for number in range(300) for phase in ("start", "end")]
        random.Random(1).shuffle(entries)
        fold, lines = Fold(wait=10_000), []
        for at in range(0, len(entries), 7):
            lines += [record for record, _ in fold.feed(entries[at : at + 7], 0)]
        assert sorted(line["play_id"] for line in lines) == sorted(f"p{number}" for number in range(300))
        assert {line["phase"] for line in lines} == {"both"}

    def test_what_the_start_alone_knows(self) -> None:
        start = entry(1, duration="3", client_text="noon", client_time="")
        ((record, _),) = Fold(wait=100).feed([start, entry(1, "end", client_time="9")], 2)
        assert (record["duration"], record["client_text"], record["started"], record["ended"]) == (3, "noon", None, 9)

    def test_starts_that_wait_too_long_go_alone(self) -> None:
        fold = Fold(wait=100)
        assert list(fold.feed([entry(10), entry(50)], 109)) == []
        (line,) = fold.feed([], 110)
        assert (line[0]["play_id"], line[1]) == ("p10", [entry(10)])
        assert list(fold.held) == ["p50"]

    def test_so_many_wait_and_no_more(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(formats, "MAX_HELD", 2)
        fold = Fold(wait=100)
        ((record, _),) = fold.feed([entry(1), entry(2), entry(3)], 3)
        assert (record["play_id"], list(fold.held)) == ("p1", ["p2", "p3"])


@pytest.mark.parametrize(
    ("kind", "form", "lines"),
    [
        (EVENTS, "jsonl", ['{"id":"5-1","type":"a,b","deviceId":null,"organizationId":null,"at":5,"data":{"n":1}}']),
        (EVENTS, "csv", ["id,type,deviceId,organizationId,at,data", '5-1,"a,b",,,5,"{""n"":1}"']),
    ],
)
def test_output(tmp_path: Path, kind: StreamKind, form: Format, lines: list[str]) -> None:
    """Added to, a file keeps its one head."""
    record = kind.record(StreamEntry(b"k", b"5-1", (5, 1), {"type": "a,b", "at": "5", "json": json.dumps({"n": 1})}))
    file = tmp_path / "out"
    for _ in range(2):
        with file.open("ab") as stream:
            output = Output(stream, kind.columns, form)
            output.write(record)
            output.flush()
    assert file.read_text().splitlines() == [*lines, lines[-1]]


BAD = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    " =1",
    "\uff1d1",
    "a\x1b[2Jb",
    "a\x9bb",
    "a\u202eb",
    "a\x7fb",
    "a;=1",
]


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_what_a_device_chose_is_harmless(tmp_path: Path, form: Format, text: str) -> None:
    record = PLAYS.record(entry(1, content_id=text, offset_ms="-5", client_text=text))
    with (tmp_path / "out").open("wb") as stream:
        output = Output(stream, PLAYS.columns, form)
        output.write(record)
        output.flush()
    line = (tmp_path / "out").read_text("utf-8").splitlines()[-1]
    assert all(character.isprintable() for character in line)
    if form == "jsonl":
        assert json.loads(line)["content_id"] == text
    else:
        row = dict(zip(PLAYS.columns, next(csv.reader(io.StringIO(line))), strict=True))
        assert row["content_id"] == row["client_text"]
        assert not row["content_id"].lstrip().startswith(("=", "+", "-", "@", "\uff1d"))
        assert row["offset_ms"] == "-5"
