"""Readers as processes against a real Valkey: formats, order, groups that lose nothing, pipes that close."""

import csv
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.service_process import PATIENCE, until
from vizora_rt.app import events, plays
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.blocking import ask
from vizora_rt.net.streams import formats
from vizora_rt.net.streams import reader as streams_reader
from vizora_rt.net.streams.reader import PAGE
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer
from vizora_rt.wire.resp import pack

NOW = 1_795_425_772_550
PARTITIONS = 4
DEVICES = ("lobby", "bar", "hall", "gate", "pool", "desk")

Line = dict[str, Any]


class Redis:
    """A store with plays in it, and the command line that reads it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.env = {"PATH": os.environ["PATH"], "HOME": str(folder), "REDIS_URL": url}
        self.tell(("HSET", "vz:schema", "version", 1, "partitions", PARTITIONS))

    def tell(self, *commands: tuple[Any, ...]) -> list[Any]:
        return ask(Address.parse(self.url), [pack(*command) for command in commands], 10.0)

    def play(
        self, number: int, phase: str = "end", at: int = 0, device: str = "lobby", **fields: Any
    ) -> tuple[Any, ...]:
        """The command that records a play at `at` ms after NOW."""
        entry = {
            "play_id": f"{device}:b:{number}", "phase": phase, "device_id": device, "organization_id": "acme",
            "content_id": "spot", "playlist_id": "", "client_time": NOW + at - 5, "server_time": NOW + at,
            "offset_ms": 5, "duration": "2.5" if phase == "end" else "", "completion": "", **fields,
        }  # fmt: skip
        names = [word for pair in entry.items() for word in pair]
        key = plays.stream_key(plays.partition(device.encode(), PARTITIONS))
        return ("XADD", key, f"{NOW + at}-*", *names)

    def add(self, *commands: tuple[Any, ...]) -> None:
        for reply in self.tell(*commands):
            assert isinstance(reply, bytes), reply

    def pending(self, group: str) -> int:
        keys = [plays.stream_key(number) for number in range(PARTITIONS)]
        return sum(reply[0] for reply in self.tell(*(("XPENDING", key, group) for key in keys)))

    def start(self, *arguments: str, **more: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [sys.executable, "-m", "vizora_rt", *arguments],
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
        )

    def run(self, *arguments: str, code: int = 0) -> bytes:
        """What a reader that ends writes."""
        process = self.start(*arguments)
        out, error = process.communicate(timeout=PATIENCE)
        assert process.returncode == code, error.decode()
        return bytes(out) if code == 0 else bytes(error)

    def lines(self, *arguments: str) -> list[Line]:
        return [json.loads(line) for line in self.run(*arguments).splitlines()]


@pytest.fixture
def redis(redis_url: str, tmp_path: Path) -> Redis:
    return Redis(redis_url, tmp_path)


def ids(lines: Sequence[Line]) -> list[str]:
    return [line["play_id"] for line in lines]


class Tail:
    """A reader that follows."""

    def __init__(self, redis: Redis, *arguments: str) -> None:
        self.process = redis.start(*arguments)
        self.lines: list[bytes] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def end(self, number: int = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._thread.join(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


@pytest.fixture
def tails() -> Iterator[list[Tail]]:
    made: list[Tail] = []
    yield made
    for each in made:
        if each.process.poll() is None:
            each.end()


class TestExport:
    def test_a_line_of_jsonl(self, redis: Redis) -> None:
        redis.add(redis.play(1, "start"), redis.play(1, at=3, playlist_id="p", completion="99.5", client_time=""))
        start, end = redis.lines("plays", "export")
        assert start == {
            "play_id": "lobby:b:1", "phase": "start", "device_id": "lobby", "organization_id": "acme",
            "content_id": "spot", "playlist_id": None, "client_time": NOW - 5, "server_time": NOW, "offset_ms": 5,
            "duration": None, "completion": None, "clock_ms": None, "late_ms": None, "client_text": None,
        }  # fmt: skip
        assert (end["playlist_id"], end["duration"], end["completion"], end["client_time"]) == ("p", 2.5, 99.5, None)

    def test_csv(self, redis: Redis) -> None:
        odd = 'comma, "quote"\nnew line \u2603'
        redis.add(redis.play(1, content_id=odd))
        rows = list(csv.reader(io.StringIO(redis.run("plays", "export", "--format", "csv").decode())))
        assert tuple(rows[0]) == formats.PLAYS.columns
        assert rows[1] == ["lobby:b:1", "end", "lobby", "acme", odd, "", str(NOW - 5), str(NOW), "5", "2.5", *[""] * 4]

    def test_partitions_are_merged_by_time(self, redis: Redis) -> None:
        """More than a page of one partition, few of the others."""
        count = 3 * PAGE
        redis.add(*(redis.play(number, at=2 * number) for number in range(count)))
        elsewhere = ("bar", "hall", "pool", "desk")
        redis.add(*(redis.play(n, at=2 * n + 1, device=elsewhere[n % 4]) for n in range(0, count, 7)))
        lines = redis.lines("plays", "export")
        times = [line["server_time"] for line in lines]
        assert times == sorted(times)
        assert len(set(ids(lines))) == len(lines) == count + len(range(0, count, 7))

    @pytest.mark.parametrize("since", [str(NOW + 100), datetime.fromtimestamp((NOW + 100) / 1000, UTC).isoformat()])
    def test_since(self, redis: Redis, since: str) -> None:
        redis.add(*(redis.play(number, at=100 * number) for number in range(3)))
        assert ids(redis.lines("plays", "export", "--since", since)) == ["lobby:b:1", "lobby:b:2"]
        assert ids(redis.lines("plays", "export", "--since", "1s")) == []

    def test_nothing_is_nothing(self, redis: Redis) -> None:
        assert redis.run("plays", "export") == b""
        assert redis.run("plays", "export", "--format", "csv").count(b"\n") == 1
        assert redis.run("events", "export") == b""

    def test_to_a_file(self, redis: Redis) -> None:
        redis.add(redis.play(1))
        for _ in range(2):
            assert redis.run("plays", "export", "--output", "plays.csv", "--format", "csv") == b""
        assert (redis.folder / "plays.csv").read_bytes().count(b"\n") == 2

    def test_a_group_s_file_is_appended_to_under_one_header(self, redis: Redis) -> None:
        for number in range(3):
            redis.add(redis.play(number, at=number))
            redis.run("plays", "export", "--output", "plays.csv", "--format", "csv", "--group", "billing")
        text = (redis.folder / "plays.csv").read_text()
        assert [row["play_id"] for row in csv.DictReader(io.StringIO(text))] == [f"lobby:b:{n}" for n in range(3)]

    def test_progress_on_a_terminal(self, redis: Redis) -> None:
        redis.add(*(redis.play(number, at=number) for number in range(1500)))
        near, far = pty.openpty()
        with redis.start("plays", "export", "--output", "plays.jsonl", stderr=far) as process:
            os.close(far)
            told = b""
            while select.select([near], [], [], PATIENCE)[0]:
                try:
                    told += os.read(near, 4096)
                except OSError:  # the other end is closed
                    break
            assert process.wait(PATIENCE) == 0
        os.close(near)
        assert told.replace(b"\r\n", b"\n").endswith(b"\r1,500 plays            \n")
        assert b"of 1,500 plays" in told

    def test_no_progress_for_a_pipe(self, redis: Redis) -> None:
        redis.add(redis.play(1))
        process = redis.start("plays", "export", "--output", "plays.jsonl")
        assert process.communicate(timeout=PATIENCE) == (b"", b"")


class TestFold:
    def test_start_and_end_become_one_line(self, redis: Redis) -> None:
        redis.add(
            redis.play(1, "start", 0, playlist_id="p"),
            redis.play(2, "start", 1),
            redis.play(1, "end", 30, completion="100"),
            redis.play(3, "end", 40),
        )
        both, start, end = redis.lines("plays", "export", "--fold")
        assert both == {
            "play_id": "lobby:b:1", "phase": "both", "device_id": "lobby", "organization_id": "acme",
            "content_id": "spot", "playlist_id": "p", "started": NOW - 5, "ended": NOW + 25, "server_time": NOW + 30,
            "offset_ms": 5, "duration": 2.5, "completion": 100, "clock_ms": None, "late_ms": None, "client_text": None,
        }  # fmt: skip
        assert (end["phase"], end["started"], end["ended"]) == ("end", None, NOW + 35)
        assert (start["phase"], start["started"], start["ended"]) == ("start", NOW - 4, None)

    def test_one_line_a_play_whatever_comes_first(self, redis: Redis) -> None:
        """Of three partitions, over several pages, hours apart."""
        for late in (False, True):
            for number in range(2 * PAGE):
                phase = "end" if bool(number % 3) is not late else "start"
                at = number + late * 3 * 3_600_000
                device = ("lobby", "bar", "hall")[number % 3]
                redis.add(redis.play(number, phase, at, device=device, first=int(not late)))
        lines = redis.lines("plays", "export", "--fold")
        assert len(set(ids(lines))) == len(lines) == 2 * PAGE
        assert {line["phase"] for line in lines} == {"both"}

    def test_of_a_group_a_young_start_waits_for_the_next_export(self, redis: Redis) -> None:
        at = int(time.time() * 1000) - NOW
        export = ("plays", "export", "--fold", "--group", "billing")
        redis.add(redis.play(1, "start", at), redis.play(2, "start", at - 3_600_000, device="bar"))
        assert ids(redis.lines(*export)) == ["bar:b:2"]
        assert redis.pending("billing") == 1
        redis.add(redis.play(1, "end", at + 1000))
        (line,) = redis.lines(*export)
        assert (line["play_id"], line["phase"]) == ("lobby:b:1", "both")
        assert redis.pending("billing") == 0
        assert redis.lines(*export) == []


class TestGroup:
    def test_each_entry_once_and_acknowledged(self, redis: Redis) -> None:
        redis.add(*(redis.play(number, at=number, device=DEVICES[number % 6]) for number in range(2000)))
        lines = redis.lines("plays", "export", "--group", "billing")
        assert len(set(ids(lines))) == len(lines) == 2000
        assert [line["server_time"] for line in lines] == list(range(NOW, NOW + 2000))
        assert redis.pending("billing") == 0
        assert redis.lines("plays", "export", "--group", "billing") == []
        redis.add(redis.play(5000, at=5000))
        assert ids(redis.lines("plays", "export", "--group", "billing")) == ["lobby:b:5000"]
        redis.add(redis.play(5001, at=5000))
        assert len(redis.lines("plays", "export", "--group", "audit", "--since", str(NOW + 5001))) == 0
        assert len(redis.lines("plays", "export", "--group", "other", "--since", str(NOW + 1990))) == 12

    def test_what_a_killed_reader_had_comes_again(self, redis: Redis) -> None:
        """It is killed while its output is stuck in a full pipe: nothing of that was acknowledged."""
        redis.add(*(redis.play(number, at=number, device=DEVICES[number % 6]) for number in range(3000)))
        process = redis.start("plays", "export", "--group", "billing")
        until(lambda: pending(redis))
        process.kill()
        process.communicate(timeout=PATIENCE)
        assert redis.pending("billing") > 0
        lines = redis.lines("plays", "export", "--group", "billing")
        assert set(ids(lines)) == {f"{DEVICES[number % 6]}:b:{number}" for number in range(3000)}
        assert redis.pending("billing") == 0

    def test_what_a_dead_reader_left_is_taken_over(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        redis.add(*(redis.play(number, at=number) for number in range(PAGE + 10)))
        key = plays.stream_key(plays.partition(b"lobby", PARTITIONS))
        redis.tell(
            ("XGROUP", "CREATE", key, "billing", "0"),
            ("XREADGROUP", "GROUP", "billing", "dead", "STREAMS", key, ">"),
        )
        assert redis.lines("plays", "export", "--group", "billing") == []
        monkeypatch.setattr(streams_reader, "STALE_MS", 0)
        out = redis.folder / "out"
        with out.open("wb") as stream:
            assert (
                streams_reader.run(redis.url, formats.PLAYS, stream, streams_reader.Options(group="billing"))
                == PAGE + 10
            )
        assert out.read_bytes().count(b"\n") == PAGE + 10

    def test_plays_that_wait_for_their_end_are_another_reader_s_for_longer(self, redis: Redis) -> None:
        key = plays.stream_key(plays.partition(b"lobby", PARTITIONS))
        redis.add(redis.play(1, "start"))
        ((_, ((entry_id, _),)),) = redis.tell(
            ("XGROUP", "CREATE", key, "billing", "0"),
            ("XREADGROUP", "GROUP", "billing", "first", "STREAMS", key, ">"),
        )[1]
        redis.tell(("XCLAIM", key, "billing", "first", 0, entry_id, "IDLE", streams_reader.STALE_MS + 5000))
        reader = ("plays", "export", "--group", "billing", "--consumer", "second")
        assert redis.lines(*reader, "--fold", "--wait", "1m") == []
        assert redis.tell(("XPENDING", key, "billing", "-", "+", 9, "first"))[0]
        assert len(redis.lines(*reader)) == 1

    def test_entries_that_were_trimmed_while_pending(self, redis: Redis) -> None:
        redis.add(*(redis.play(number, at=number) for number in range(10)))
        key = plays.stream_key(plays.partition(b"lobby", PARTITIONS))
        redis.tell(
            ("XGROUP", "CREATE", key, "billing", "0"),
            ("XREADGROUP", "GROUP", "billing", "reader", "STREAMS", key, ">"),
            ("XTRIM", key, "MAXLEN", 3),
        )
        assert ids(redis.lines("plays", "export", "--group", "billing")) == [f"lobby:b:{n}" for n in (7, 8, 9)]
        assert redis.pending("billing") == 0


class TestTail:
    def test_follows_from_now(self, redis: Redis, tails: list[Tail]) -> None:
        redis.add(redis.play(1))
        tails.append(Tail(redis, "plays", "tail"))
        at = int(time.time() * 1000) - NOW + 60_000
        numbers = iter(range(2, 1000))

        def told() -> bool:
            redis.add(redis.play(number := next(numbers), at=at + number))
            return len(tails[0].lines) >= 3

        until(told)
        assert json.loads(tails[0].lines[0])["play_id"] != "lobby:b:1"
        assert tails[0].end(signal.SIGINT) == 130

    def test_of_a_group_it_goes_on_where_it_was(self, redis: Redis, tails: list[Tail]) -> None:
        for round_ in range(3):
            redis.add(*(redis.play(number, at=number) for number in range(10 * round_, 10 * round_ + 10)))
            tails.append(Tail(redis, "plays", "tail", "--group", "billing"))
            until(lambda: len(tails[-1].lines) >= 10 and pending(redis) == 0)
            tails[-1].end()
            assert [json.loads(line)["play_id"] for line in tails[-1].lines] == [
                f"lobby:b:{number}" for number in range(10 * round_, 10 * round_ + 10)
            ]

    @pytest.mark.parametrize("group", [(), ("--group", "billing")], ids=("plain", "group"))
    def test_redis_restarts(self, tmp_path: Path, tails: list[Tail], group: tuple[str, ...]) -> None:
        own = valkey_server.start(tmp_path)
        try:
            self._restarts(Redis(own.url, tmp_path), own, tails, group)
        finally:
            own.stop()

    def _restarts(self, redis: Redis, own: EmbeddedServer, tails: list[Tail], group: tuple[str, ...]) -> None:
        redis.add(*(redis.play(number, at=number) for number in range(10)))
        tails.append(Tail(redis, "plays", "tail", "--since", "0" * 12, *group))
        until(lambda: len(tails[0].lines) == 10)
        os.kill(own.pid, signal.SIGKILL)
        until(lambda: not own.alive())
        own.restart()
        redis.add(*(redis.play(number, at=number) for number in range(10, 20)))
        until(lambda: len(tails[0].lines) >= 20)
        tails[0].end()
        told = [json.loads(line)["play_id"] for line in tails[0].lines]
        assert set(told) == {f"lobby:b:{number}" for number in range(20)}
        assert group or len(told) == 20

    def test_folds_as_they_come(self, redis: Redis, tails: list[Tail]) -> None:
        at = int(time.time() * 1000) - NOW
        redis.add(redis.play(1, "start", at))
        tails.append(Tail(redis, "plays", "tail", "--fold", "--group", "billing"))
        until(lambda: pending(redis) == 1)
        redis.add(redis.play(1, "end", at + 1))
        until(lambda: pending(redis) == 0)
        tails[0].end()
        assert [json.loads(line)["phase"] for line in tails[0].lines] == ["both"]


class TestEvents:
    def test_lines(self, redis: Redis) -> None:
        entry = events.entry("content:error", "lobby", "acme", 5, b'{"a":[1]}')
        redis.add(("XADD", events.STREAM, "7-1", *entry), ("XADD", events.STREAM, "7-2", "type", "odd", "json", "{"))
        first, second = redis.lines("events", "export")
        assert first == {
            "id": "7-1", "type": "content:error", "deviceId": "lobby", "organizationId": "acme", "at": 5,
            "data": {"a": [1]},
        }  # fmt: skip
        assert (second["type"], second["deviceId"], second["data"]) == ("odd", None, None)
        text = redis.run("events", "export", "--format", "csv").decode()
        assert list(csv.reader(io.StringIO(text)))[1] == ["7-1", "content:error", "lobby", "acme", "5", '{"a":[1]}']
        assert len(redis.lines("events", "export", "--group", "audit")) == 2
        assert redis.lines("events", "export", "--group", "audit") == []


class TestEndings:
    def test_a_pipe_that_closes(self, redis: Redis) -> None:
        redis.add(*(redis.play(number, at=number) for number in range(5000)))
        process = redis.start("plays", "export")
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        error = process.stderr.read()
        process.stderr.close()
        assert (process.wait(PATIENCE), error) == (141, b"")

    def test_a_full_disk(self, redis: Redis) -> None:
        redis.add(redis.play(1))
        error = redis.run("plays", "export", "--group", "billing", "--output", "/dev/full", code=69)
        assert error == b"vizora-rt: /dev/full: No space left on device\n"
        assert redis.pending("billing") == 1

    def test_no_redis(self, redis: Redis) -> None:
        redis.env["REDIS_URL"] = "redis://127.0.0.1:1"
        error = redis.run("plays", "export", code=69).decode()
        assert re.fullmatch(r"vizora-rt: Redis at redis://127.0.0.1:1/0 cannot be read: Connection refused\n", error)
        del redis.env["REDIS_URL"]
        assert redis.run("plays", "tail", code=69).startswith(b"vizora-rt: there is no Redis: set REDIS_URL, or ")

    def test_a_redis_without_plays(self, redis: Redis) -> None:
        redis.tell(("DEL", "vz:schema"))
        error = redis.run("plays", "export", code=69).decode()
        assert error.endswith("cannot be read: no service has used it yet\n")

    def test_bad_since(self, redis: Redis) -> None:
        error = redis.run("plays", "export", "--since", "yesterday", code=2).decode()
        assert "15m, 24h or 7d ago" in error


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("15m", 100_000),
        ("1h", 0),
        ("1795425772550", NOW),
        ("2026-11-23", 1_795_392_000_000),
        ("2026-11-23T04:00:00Z", 1_795_406_400_000),
        ("2026-11-23T04:00:00+01:00", 1_795_402_800_000),
        ("1900-01-01", 0),
    ],
)
def test_since(text: str, ms: int) -> None:
    assert streams_reader.parse_since(text, 1000.0) == ms


@pytest.mark.parametrize("text", ["", "m", "15", "15x", "-15m", "2026-13-01", "now", "1e12"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match=r"isoformat|month"):
        streams_reader.parse_since(text, 1000.0)


def pending(redis: Redis) -> int:
    """Of the group billing, which may not be there yet."""
    keys = [plays.stream_key(number) for number in range(PARTITIONS)]
    replies = redis.tell(*(("XPENDING", key, "billing") for key in keys))
    return sum(reply[0] for reply in replies if isinstance(reply, list))
