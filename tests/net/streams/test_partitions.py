"""Plays and content errors through the real service, over real sockets: acks, counters, what Redis has, Redis away."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.net.backend import Backed, books, fleet
from tests.net.backend import Screen as Client
from tests.net.peers import until as reached
from tests.service_process import Service, until
from vizora_rt import config
from vizora_rt.app import auth, plays
from vizora_rt.app.plays import PlayRecorder
from vizora_rt.app.state import Device, Peer
from vizora_rt.client.player import Player, PlayerState, Timing
from vizora_rt.config import AuthSettings
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.blocking import ask
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.streams.gauges import Backlog, Missing
from vizora_rt.net.streams.partitions import Partitions, plays_of
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.resp import pack

SECRET = "d" * 32
ENV = {
    "DEVICE_JWT_SECRET": SECRET,
    "JWT_SECRET": "u" * 32,
    "INTERNAL_API_SECRET": "i" * 32,
    "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
}
WAITED = 'vizora_realtime_limits_exceeded_total{limit="messages_per_minute"}'
"""How often a client had to wait because it was over its rate."""

Message = dict[str, Any]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), ENV) as running:
        yield running.start()


def token(device: str) -> str:
    return auth.mint_device(AuthSettings(device_jwt_secret=SECRET), device, "acme", int(time.time()), 3600)


class Screen:
    """A device's connection that waits for the ack of each message."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.number = 0

    async def tell(self, event: str, data: object) -> Message:
        """The body of the ack."""
        self.number += 1
        await self.connection.send(json.dumps({"event": event, "id": self.number, "data": data}))
        async with asyncio.timeout(20):
            while True:
                message: Message = json.loads(await self.connection.recv())
                if message["event"] == "ack" and message["id"] == self.number:
                    body: Message = message["data"]
                    return body

    async def taken(self, event: str, data: object) -> Message:
        """The `data` of a positive ack."""
        body = await self.tell(event, data)
        assert body["success"], body
        found: Message = body["data"]
        return found

    async def refused(self, event: str, data: object) -> Message:
        body = await self.tell(event, data)
        assert not body["success"], body
        return body


@asynccontextmanager
async def screen(service: Service, device: str) -> AsyncIterator[Screen]:
    async with connect(f"ws://127.0.0.1:{service.port}/ws?token={token(device)}") as connection:
        yield Screen(connection)


def redis(service: Service, *commands: tuple[Any, ...]) -> list[Any]:
    url = valkey_server.running(Path(service.env["VIZORA_STATE_DIR"]))
    return ask(Address.parse(url), [pack(*command) for command in commands], 10.0)


def stream_of(device: str) -> bytes:
    return plays.stream_key(plays.partition(device.encode(), 16))


def entries(service: Service, device: str) -> list[dict[str, str]]:
    (rows,) = redis(service, ("XRANGE", stream_of(device), "-", "+"))
    found = [{n.decode(): v.decode() for n, v in zip(f[::2], f[1::2], strict=True)} for _, f in rows]
    return [entry for entry in found if entry["device_id"] == device]


def play(seq: int, phase: str = "end", **fields: Any) -> Message:
    return {"contentId": "spot", "seq": seq, "phase": phase, **fields}


class TestImpression:
    async def test_a_numbered_play_is_acked_when_redis_has_it(self, service: Service) -> None:
        async with screen(service, "one") as it:
            started = {
                "contentId": "spot",
                "timestamp": 1795425772550,
                "play": {"boot": "b", "seq": 1, "phase": "start"},
            }
            assert await it.taken("content:impression", started) == {"duplicate": False, "watermark": 1}
            assert await it.taken("content:impression", started) == {"duplicate": True, "watermark": 1}
            ended = {**started, "play": {"boot": "b", "seq": 1}, "duration": 30, "completionPercentage": 99.5}
            assert await it.taken("content:impression", ended) == {"duplicate": False, "watermark": 1}
        first, second = entries(service, "one")
        assert first["play_id"] == second["play_id"] == "one:b:1"
        assert (first["phase"], second["phase"]) == ("start", "end")
        assert (second["client_time"], second["duration"], second["completion"]) == ("1795425772550", "30", "99.5")
        assert int(second["server_time"]) - 1795425772550 == int(second["offset_ms"])

    async def test_players_in_the_field(self, service: Service) -> None:
        """Two impressions a play, times as numbers or as text, no number of their own."""
        async with screen(service, "field") as it:
            at = int(time.time() * 1000)
            started = {"contentId": "spot", "playlistId": "p", "timestamp": at}
            ended = {**started, "timestamp": at + 30_000, "duration": 30, "completionPercentage": 100}
            for message in (
                started,
                ended,
                {"contentId": "spot", "timestamp": "2026-11-23T04:00:00.000Z", "duration": 1},
            ):
                assert await it.taken("content:impression", message) == {"duplicate": False}
                assert await it.taken("content:impression", message) == {"duplicate": True}
            same = {"contentId": "spot", "timestamp": 1795406400000.0, "duration": 1}
            assert await it.taken("content:impression", same) == {"duplicate": True}
        found = entries(service, "field")
        assert [entry["phase"] for entry in found] == ["start", "end", "end"]
        assert found[0]["play_id"] == found[1]["play_id"] != found[2]["play_id"]

    async def test_the_time_of_the_start_in_both(self, service: Service) -> None:
        async with screen(service, "same-time") as it:
            message = {"contentId": "spot", "timestamp": 1795406400000}
            assert await it.taken("content:impression", message) == {"duplicate": False}
            assert await it.taken("content:impression", {**message, "duration": 30}) == {"duplicate": False}
            assert await it.taken("content:impression", {**message, "duration": 30}) == {"duplicate": True}
        first, second = entries(service, "same-time")
        assert first["play_id"] == second["play_id"]

    async def test_without_a_time_nothing_is_a_duplicate(self, service: Service) -> None:
        async with screen(service, "timeless") as it:
            for _ in range(2):
                assert await it.taken("content:impression", {"contentId": "spot", "duration": 1}) == {
                    "duplicate": False
                }
        assert len({entry["play_id"] for entry in entries(service, "timeless")}) == 2

    @pytest.mark.parametrize(
        ("data", "details"),
        [
            (None, {"contentId": "required"}),
            ("x", {"data": "expected an object"}),
            ({}, {"contentId": "required"}),
            ({"contentId": None}, {"contentId": "required"}),
            ({"contentId": 5}, {"contentId": "expected str, got int"}),
            ({"contentId": ""}, {"contentId": "expected str of length >= 1"}),
            ({"contentId": "c" * 129}, {"contentId": "expected str of length <= 128"}),
        ],
    )
    async def test_bad_input(self, service: Service, data: object, details: Message) -> None:
        async with screen(service, "bad") as it:
            body = await it.refused("content:impression", data)
            assert (body["code"], body["retryable"], body["details"]) == ("INVALID_PAYLOAD", False, details)
        assert entries(service, "bad") == []

    @pytest.mark.parametrize(
        "fields",
        [
            {"duration": -1},
            {"duration": "30"},
            {"completionPercentage": 101},
            {"timestamp": "yesterday"},
            {"timestamp": -1},
            {"timestamp": True},
            {"playlistId": 7},
            {"play": "b:1"},
            {"play": {"boot": "b"}},
            {"play": {"boot": "b", "seq": 0}},
            {"play": {"boot": "b", "seq": "1"}},
            {"play": {"boot": "b", "seq": 2**53 + 1}},
            {"play": {"boot": "a:b", "seq": 1}},
            {"play": {"boot": "b\n", "seq": 1}},
            {"play": {"boot": "", "seq": 1}},
            {"play": {"boot": "b" * 65, "seq": 1}},
        ],
    )
    async def test_what_is_wrong_in_an_optional_field_is_dropped_and_counted(
        self, service: Service, fields: Message
    ) -> None:
        series = 'vizora_realtime_ws_fields_ignored_total{type="content:impression",why="wrong_type"}'
        before = service.metric(series)
        assert before is not None
        async with screen(service, f"odd-{time.time_ns()}") as it:
            assert await it.taken("content:impression", {"contentId": "spot", **fields}) == {"duplicate": False}
        until(lambda: service.metric(series) == before + 1)

    async def test_a_broken_phase_is_an_end(self, service: Service) -> None:
        async with screen(service, "phase") as it:
            message = {"contentId": "spot", "play": {"boot": "b", "seq": 1, "phase": "middle"}}
            assert await it.taken("content:impression", message) == {"duplicate": False, "watermark": 1}
        assert [entry["phase"] for entry in entries(service, "phase")] == ["end"]


class TestImpressions:
    async def test_a_batch_with_gaps_and_again(self, service: Service) -> None:
        async with screen(service, "batch") as it:
            batch = {"boot": "b", "plays": [play(1, "start"), play(1), play(4), play(9, "start")]}
            wanted = {"watermark": 1, "accepted": 4, "duplicates": 0, "missing": [[2, 3], [5, 8]]}
            assert await it.taken("content:impressions", batch) == wanted
            assert await it.taken("content:impressions", batch) == {**wanted, "accepted": 0, "duplicates": 4}
            rest = {"boot": "b", "plays": [play(number) for number in (2, 3, 5, 6, 7, 8)]}
            filled = {"watermark": 9, "accepted": 6, "duplicates": 0, "missing": []}
            assert await it.taken("content:impressions", rest) == filled
        assert len(entries(service, "batch")) == 10

    async def test_an_empty_batch_asks(self, service: Service) -> None:
        async with screen(service, "asks") as it:
            nothing = {"watermark": 0, "accepted": 0, "duplicates": 0, "missing": []}
            assert await it.taken("content:impressions", {"boot": "b", "plays": []}) == nothing

    async def test_unknown_fields_within_are_ignored_and_counted(self, service: Service) -> None:
        series = 'vizora_realtime_ws_fields_ignored_total{type="content:impressions",why="unknown"}'
        before = service.metric(series)
        assert before is not None
        async with screen(service, "newer") as it:
            batch = {"boot": "b", "zone": 1, "plays": [play(1, codec="av1"), play(2), play(3, codec="vp9")]}
            assert (await it.taken("content:impressions", batch))["accepted"] == 3
        until(lambda: service.metric(series) == before + 3)

    @pytest.mark.parametrize(
        ("data", "details"),
        [
            ({}, {"boot": "required", "plays": "required"}),
            ({"boot": "b"}, {"plays": "required"}),
            ({"plays": []}, {"boot": "required"}),
            ({"boot": 5, "plays": []}, {"boot": "expected str, got int"}),
            ({"boot": "b", "plays": {}}, {"plays": "expected array, got object"}),
            ({"boot": "b", "plays": [play(1)] * 201}, {"plays": "expected array of length <= 200"}),
            ({"boot": "b", "plays": [play(1), 5]}, {"plays[1]": "expected an object"}),
            ({"boot": "b", "plays": [play(1), {"seq": 2}]}, {"plays[1].contentId": "required"}),
            ({"boot": "b", "plays": [{"contentId": "spot"}]}, {"plays[0].seq": "required"}),
            ({"boot": "b", "plays": [play(0)]}, {"plays[0].seq": "expected int >= 1"}),
        ],
    )
    async def test_bad_input(self, service: Service, data: object, details: Message) -> None:
        async with screen(service, "bad-batch") as it:
            body = await it.refused("content:impressions", data)
            assert (body["code"], body["details"]) == ("INVALID_PAYLOAD", details)
        assert entries(service, "bad-batch") == []

    async def test_a_boot_that_is_no_id(self, service: Service) -> None:
        async with screen(service, "bad-boot") as it:
            body = await it.refused("content:impressions", {"boot": "a:b", "plays": []})
            assert list(body["details"]) == ["boot"]

    async def test_a_refusal_gives_ten_reasons_at_most(self, service: Service) -> None:
        async with screen(service, "worst") as it:
            body = await it.refused("content:impressions", {"boot": "b", "plays": [{"seq": "x"}] * 200})
            assert len(body["details"]) == 10

    @pytest.mark.parametrize(("plays_per_minute", "taken"), [(0, 4), (200, 2), (100, 1)])
    async def test_a_batch_counts_as_its_plays_against_the_rate(
        self, tmp_path: Path, plays_per_minute: int, taken: int
    ) -> None:
        limits = {"MESSAGES_PER_MINUTE": 2, "PLAYS_PER_MINUTE": plays_per_minute}
        env = {**ENV, **{f"VIZORA_LIMITS__{name}": str(value) for name, value in limits.items()}}
        with Service(tmp_path, env, workers=1) as limited:
            async with screen(limited.start(), "rate") as it:
                for number in range(taken):
                    batch = {"boot": "b", "plays": [play(200 * number + n) for n in range(1, 201)]}
                    assert (await it.taken("content:impressions", batch))["watermark"] == 200 * number + 200
                await it.connection.send(
                    json.dumps({"event": "content:impressions", "data": {"boot": "b", "plays": []}})
                )
                until(lambda: limited.metric(WAITED) == 1)

    async def test_what_is_refused_counts_as_well(self, tmp_path: Path) -> None:
        env = {**ENV, "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "2", "VIZORA_LIMITS__PLAYS_PER_MINUTE": "100"}
        with Service(tmp_path, env, workers=1) as limited:
            async with screen(limited.start(), "rate") as it:
                wrong = await it.refused("content:impressions", {"boot": "b", "plays": [{}] * 5000})
                assert wrong["code"] == "INVALID_PAYLOAD"
                await it.connection.send(
                    json.dumps({"event": "content:impressions", "data": {"boot": "b", "plays": []}})
                )
                until(lambda: limited.metric(WAITED) == 1)


class TestClocks:
    """A play that comes late and one of a clock that is behind have the same `client_time`, and are told apart."""

    async def test_late_or_behind(self, service: Service) -> None:
        hours = 5 * 3_600_000
        async with screen(service, "clock") as it:
            now = int(time.time() * 1000)
            batch = {"boot": "b", "plays": [play(1, timestamp=now - hours)]}
            await it.taken("content:impressions", {**batch, "sentAt": now})
            batch = {"boot": "b", "plays": [play(2, timestamp=now - hours)]}
            await it.taken("content:impressions", {**batch, "sentAt": now - hours})
            await it.taken("content:impressions", {"boot": "b", "plays": [play(3, timestamp=now)]})
            # A heartbeat tells it as well, for what comes without `sentAt`.
            await it.taken("heartbeat", {"sentAt": now - hours})
            numbered = {"contentId": "spot", "timestamp": now - hours, "play": {"boot": "b", "seq": 4}}
            await it.taken("content:impression", numbered)
        late, behind, unknown, told = entries(service, "clock")
        for entry, clock, lateness in ((late, 0, hours), (behind, hours, 0), (told, hours, 0)):
            assert clock <= int(entry["clock_ms"]) < clock + 60_000
            assert lateness - 60_000 < int(entry["late_ms"]) < lateness + 60_000
            assert hours <= int(entry["offset_ms"]) < hours + 60_000
        assert (unknown["clock_ms"], unknown["late_ms"]) == ("", "")


class TestFolded:
    async def test_a_play_is_one_line_in_whatever_order_it_came(self, service: Service) -> None:
        async with screen(service, "folded") as it:
            now = int(time.time() * 1000)
            # With numbers: in one batch, in two, and an end alone.
            for rows in ((play(1), play(2)), (play(2, "start"),), (play(1, "start"), play(3, "start"), play(4))):
                await it.taken("content:impressions", {"boot": "b", "plays": list(rows)})
            await it.taken("content:impressions", {"boot": "b", "plays": [play(3)]})
            for fields in ({"timestamp": now, "duration": 30}, {"timestamp": now - 30_000}):
                await it.taken("content:impression", {"contentId": "spot", **fields})
        command = (sys.executable, "-m", "vizora_rt", "plays", "export", "--fold")
        process = await asyncio.create_subprocess_exec(*command, env=service.env, stdout=asyncio.subprocess.PIPE)
        out, _ = await process.communicate()
        lines = [line for line in map(json.loads, out.splitlines()) if line["device_id"] == "folded"]
        ids = [line["play_id"].partition(":")[2] for line in lines]
        assert len(set(ids)) == len(ids) == 5
        assert {line["play_id"]: line["phase"] for line in lines if line["phase"] != "both"} == {"folded:b:4": "end"}


TIMES = [
    "2026-11-23T14:00Z",
    "2026-11-23T15:00:06+01",
    "20261123T140006Z",
    "1795442406000",
    1795442406,
    "Mon, 23 Nov 2026 14:00:06 GMT",
    "2026-11-23 14:00:06,5",
    "11/23/2026, 2:00:06 PM",
    "yesterday",
    -1,
    {"$date": "2026-11-23T14:00:06Z"},
]


class TestTimes:
    @pytest.mark.parametrize("timestamp", TIMES, ids=str)
    async def test_what_is_sent_again_is_the_same_play(self, service: Service, timestamp: object) -> None:
        """Whether its time is understood or not."""
        name = f"time-{TIMES.index(timestamp)}"
        async with screen(service, name) as it:
            message = {"contentId": "spot", "timestamp": timestamp, "duration": 1}
            assert [await it.taken("content:impression", message) for _ in range(3)] == [
                {"duplicate": duplicate} for duplicate in (False, True, True)
            ]
        (entry,) = entries(service, name)
        assert bool(entry["client_time"]) is (TIMES.index(timestamp) < 7)
        assert bool(entry["client_text"]) is (TIMES.index(timestamp) >= 7)

    async def test_one_that_is_not_understood_is_counted_once(self, service: Service) -> None:
        name = 'vizora_realtime_ws_fields_ignored_total{type="content:impression",why="wrong_type"}'
        before = service.metric(name) or 0
        async with screen(service, "counted") as it:
            for _ in range(3):
                await it.taken("content:impression", {"contentId": "spot", "timestamp": "counted", "duration": 1})
        until(lambda: service.metric(name) == before + 1)


class TestShare:
    async def test_one_device_does_not_push_out_what_others_sent(self, tmp_path: Path) -> None:
        """64,000 plays, as fast as they are taken, beside the plays of another organisation in the same stream."""
        env = {**ENV, "VIZORA_PLAYS__MAX_ENTRIES": "20000", "VIZORA_PLAYS__PARTITIONS": "1"}
        with Service(tmp_path, env, workers=1) as shared:
            shared.start()

            def plays_of_first() -> int:
                (rows,) = redis(shared, ("XRANGE", plays.stream_key(0), "-", "+", "COUNT", 400))
                return sum(row[1][7] == b"first" for row in rows)

            async with screen(shared, "first") as first, screen(shared, "greedy") as greedy:
                for number in range(2):
                    batch = {"boot": "b", "plays": [play(200 * number + n) for n in range(1, 201)]}
                    await first.taken("content:impressions", batch)
                refused = 0
                for number in range(320):
                    batch = {"boot": "b", "plays": [play(200 * number + n) for n in range(1, 201)]}
                    body = await greedy.tell("content:impressions", batch)
                    if not body["success"]:
                        assert (body["code"], body["retryable"]) == ("PLAYS_SHARE", True)
                        assert 0 < body["retryAfterMs"] <= 600_000
                        refused += 1
                assert refused > 200
                assert plays_of_first() == 400
                limit = 'vizora_realtime_limits_exceeded_total{limit="plays_share"}'
                until(lambda: shared.metric(limit) == refused)
                # The other goes on, in the quarter that is left.
                batch = {"boot": "b", "plays": [play(1000 + n) for n in range(1, 201)]}
                assert (await first.taken("content:impressions", batch))["accepted"] == 200


class TestFigures:
    async def test_plays_duplicates_and_what_is_missing(self, service: Service) -> None:
        names = ("total", "duplicate_total", "missing")
        series = [f'vizora_realtime_content_impressions_{name}{{organization_id="acme"}}' for name in names]

        def figures() -> list[float]:
            return [service.metric(each) or 0 for each in series]

        until(lambda: figures()[2] == 0)  # devices of other tests are gone
        plays_before, duplicates_before, _ = figures()
        async with screen(service, "figures") as it:
            await it.taken("content:impressions", {"boot": "b", "plays": [play(1, "start"), play(1), play(5)]})
            await it.taken("content:impressions", {"boot": "b", "plays": [play(1), play(5)]})
            until(lambda: figures() == [plays_before + 2, duplicates_before + 2, 3])
            await it.taken("content:impressions", {"boot": "b", "plays": [play(2), play(3), play(4)]})
            until(lambda: figures() == [plays_before + 5, duplicates_before + 2, 0])


class TestContentError:
    async def test_kept_with_the_device_and_told(self, service: Service) -> None:
        async with screen(service, "err") as it:
            message = {
                "contentId": "spot",
                "errorType": "load_failed",
                "errorMessage": "GET https://cdn.example/a.mp4?x=1&token=abc.def&y=2 failed",
                "errorCode": "E1",
                "context": {"url": "https://h/?access_TOKEN=s3cret", "nested": [1, {"a": None}]},
                "timestamp": "2026-11-23T04:00:00Z",
            }
            assert await it.taken("content:error", message) == {}
            for number in range(11):
                await it.taken("content:error", {"contentId": f"c{number}", "errorType": "exploded"})
        kept, events, left = redis(
            service,
            ("LRANGE", "vz:{d:err}:errors", 0, -1),
            ("XRANGE", "vz:events", "-", "+"),
            ("TTL", "vz:{d:err}:errors"),
        )
        assert [json.loads(each)["contentId"] for each in kept] == [f"c{number}" for number in range(10, 0, -1)]
        assert {json.loads(each)["errorType"] for each in kept} == {"unknown"}
        assert 0 < left <= 3600
        rows = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in events]
        told = [row for row in rows if (row[b"type"], row[b"deviceId"]) == (b"content:error", b"err")]
        assert len(told) == 12
        assert told[0][b"organizationId"] == b"acme"
        detail = json.loads(told[0][b"json"])
        assert detail["errorMessage"] == "GET https://cdn.example/a.mp4?x=1&token=***&y=2 failed"
        assert detail["context"] == {"url": "https://h/?access_TOKEN=***", "nested": [1, {"a": None}]}
        assert detail["timestamp"] == 1795406400000

    async def test_types_are_a_closed_set(self, service: Service) -> None:
        def count(kind: str) -> float:
            return service.metric(f'vizora_realtime_content_errors_total{{error_type="{kind}"}}') or 0

        before = count("timeout"), count("unknown")
        async with screen(service, "types") as it:
            for kind in ("timeout", "nonsense-1", "nonsense-2"):
                await it.taken("content:error", {"contentId": "spot", "errorType": kind})
        until(lambda: (count("timeout"), count("unknown")) == (before[0] + 1, before[1] + 2))
        _, body = service.get("/metrics")
        assert b"nonsense" not in body

    @pytest.mark.parametrize(
        ("data", "details"),
        [
            ({}, {"contentId": "required", "errorType": "required"}),
            ({"contentId": "spot"}, {"errorType": "required"}),
            ({"contentId": "spot", "errorType": 5}, {"errorType": "expected str, got int"}),
            ({"contentId": "spot", "errorType": "e" * 65}, {"errorType": "expected str of length <= 64"}),
        ],
    )
    async def test_bad_input(self, service: Service, data: object, details: Message) -> None:
        async with screen(service, "bad-error") as it:
            body = await it.refused("content:error", data)
            assert (body["code"], body["details"]) == ("INVALID_PAYLOAD", details)

    @pytest.mark.parametrize(
        "fields",
        [
            {"errorMessage": "m" * 513},
            {"errorCode": 404},
            {"context": "text"},
            {"context": {"text": "x" * 4096}},
            {"context": json.loads('{"a":' * 300 + "1" + "}" * 300)},
        ],
        ids=("message", "code", "no object", "too long", "too deep"),
    )
    async def test_what_is_wrong_in_an_optional_field_is_dropped_and_counted(
        self, service: Service, fields: Message
    ) -> None:
        series = 'vizora_realtime_ws_fields_ignored_total{type="content:error",why="wrong_type"}'
        before = service.metric(series)
        assert before is not None
        async with screen(service, "odd-error") as it:
            assert await it.taken("content:error", {"contentId": "spot", "errorType": "timeout", **fields}) == {}
        (kept,) = redis(service, ("LINDEX", "vz:{d:odd-error}:errors", 0))
        assert set(json.loads(kept)) == {"contentId", "errorType", "serverTime"}
        until(lambda: service.metric(series) == before + 1)


class TestRedisAway:
    async def test_refused_then_taken_and_never_twice(self, tmp_path: Path) -> None:
        with Service(tmp_path, ENV, workers=1) as service:
            service.start()
            pid = service.wait("embedded store started")["pid"]
            async with screen(service, "away") as it:
                assert (await it.taken("content:impressions", {"boot": "b", "plays": [play(1)]}))["watermark"] == 1
                os.kill(pid, signal.SIGSTOP)
                batch = {"boot": "b", "plays": [play(2), play(3)]}
                lost = asyncio.create_task(it.tell("content:impressions", batch))
                await asyncio.sleep(0)
                os.kill(pid, signal.SIGKILL)
                body = await lost
                assert (body["code"], body["retryable"]) == ("STORE_UNAVAILABLE", True)
                body = await it.tell("content:error", {"contentId": "spot", "errorType": "timeout"})
                if not body["success"]:  # it may be back by now
                    assert (body["code"], body["retryable"]) == ("STORE_UNAVAILABLE", True)
                while not (body := await it.tell("content:impressions", batch))["success"]:
                    assert (body["code"], body["retryable"]) == ("STORE_UNAVAILABLE", True)
                    await asyncio.sleep(0.05)
                assert body["data"]["watermark"] == 3
            assert [entry["play_id"] for entry in entries(service, "away")] == ["away:b:1", "away:b:2", "away:b:3"]

    async def test_a_stream_behind_a_lagging_group_is_full(self, tmp_path: Path) -> None:
        environ = {**ENV, "VIZORA_PLAYS__MAX_ENTRIES": "1000", "VIZORA_PLAYS__PARTITIONS": "2"}
        with Service(tmp_path, environ, workers=1) as service:
            service.start()
            stream = plays.stream_key(plays.partition(b"full", 2))
            redis(service, ("XGROUP", "CREATE", stream, "billing", "0", "MKSTREAM"))
            async with screen(service, "full") as it:
                for number in (0, 200):
                    await it.taken(
                        "content:impressions", {"boot": "b", "plays": [play(number + n) for n in range(1, 201)]}
                    )
                batch = {"boot": "b", "plays": [play(400 + n) for n in range(1, 201)]}
                body = await it.refused("content:impressions", batch)
                assert (body["code"], body["retryable"]) == ("STORE_FULL", True)
                until(lambda: service.metric('vizora_realtime_limits_exceeded_total{limit="plays_entries"}') == 1)
                (rows,) = redis(service, ("XREADGROUP", "GROUP", "billing", "r", "STREAMS", stream, ">"))
                redis(service, ("XACK", stream, "billing", *(row[0] for row in rows[0][1])))
                assert (await it.taken("content:impressions", batch))["watermark"] == 600


class Recorder(Player):
    """The reference player, which says when its plays are in."""

    async def settled(self) -> None:
        async with asyncio.timeout(20):
            while self.plays.queue:
                await asyncio.sleep(0.01)


async def test_the_reference_player(service: Service) -> None:
    timing = Timing(first_beat=0.0, backoff_first=0.01, backoff_most=0.05, goodbye=0.5, plays_retry=0.05)
    player = Recorder(f"ws://127.0.0.1:{service.port}/ws", token("player"), timing=timing)
    for _ in range(150):
        player.play_ended(player.play_started("offline", playlistId="p"), "offline", duration=10)
    running = asyncio.create_task(player.run())
    await player.settled()
    for _ in range(5):
        seq = player.play_started("online")
        player.play_ended(seq, "online", duration=5, completionPercentage=100)
    await player.settled()
    assert player.state is PlayerState.ONLINE
    assert (player.plays.watermark, player.plays.refused, player.plays.lost) == (155, 0, 0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    found = entries(service, "player")
    assert [entry["play_id"] for entry in found] == [
        f"player:{player.plays.boot}:{number}" for number in range(1, 156) for _ in range(2)
    ]
    assert [entry["phase"] for entry in found] == ["start", "end"] * 155


async def test_nothing_is_lost_or_counted_twice_whoever_dies(tmp_path: Path) -> None:
    """A player goes on playing while the worker is killed, then Redis, then both."""
    with Service(tmp_path, ENV, workers=1) as service:
        service.start()
        timing = Timing(
            first_beat=0.0, backoff_first=0.01, backoff_most=0.05, goodbye=0.5, plays_ack=2.0, plays_retry=0.02
        )
        player = Recorder(f"ws://127.0.0.1:{service.port}/ws", token("tough"), timing=timing)
        running = asyncio.create_task(player.run())
        stores = 1
        for victims in ((), ("worker",), ("store",), ("worker", "store")):
            for _ in range(100):
                player.play_ended(player.play_started("spot"), "spot", duration=1)
                await asyncio.sleep(0.001)
            if "worker" in victims:
                (worker,) = await asyncio.to_thread(service.workers)
                os.kill(worker, signal.SIGKILL)
            if "store" in victims:
                os.kill(service.wait("embedded store started", stores)["pid"], signal.SIGKILL)
                stores += 1
            for _ in range(100):
                player.play_ended(player.play_started("spot"), "spot", duration=1)
                await asyncio.sleep(0.001)
            await player.settled()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert (player.plays.watermark, player.plays.lost, player.plays.refused) == (800, 0, 0)
        found = [(entry["play_id"], entry["phase"]) for entry in entries(service, "tough")]
        wanted = {(f"tough:{player.plays.boot}:{n}", phase) for n in range(1, 801) for phase in ("start", "end")}
        assert set(found) == wanted
        assert len(found) == len(wanted)
        (count,) = redis(service, ("HVALS", plays.seen_key(b"tough", 16)))
        assert b"800" in count


class Bench:
    """A store with the scripts of plays, and what they say."""

    def __init__(self, url: str, partitions: int = 16) -> None:
        self.metrics = Metrics(config.MetricsSettings())
        self.store = RedisClient(config.RedisSettings(), url, self.metrics, name="test")
        settings = config.PlaySettings(partitions=partitions)
        self.plays = PlayRecorder(settings)
        Partitions(settings, self.plays, self.store)

    async def start(self) -> "Bench":
        self.store.start()
        async with asyncio.timeout(10):
            while not self.plays.partitions:
                await asyncio.sleep(0.005)
        return self


@pytest.fixture
async def bench(redis_url: str) -> AsyncIterator[Bench]:
    made = await Bench(redis_url).start()
    yield made
    await made.store.close(1)


class TestPartitions:
    async def test_the_first_to_ask_decides(self, redis_url: str, capfd: pytest.CaptureFixture[str]) -> None:
        first = await Bench(redis_url, 4).start()
        second = await Bench(redis_url, 8).start()
        assert (first.plays.partitions, second.plays.partitions) == (4, 4)
        assert "plays.partitions was fixed before" in capfd.readouterr().err
        reply = await first.store.request("other", pack("HGETALL", "vz:schema"))
        assert reply == [b"version", b"1", b"partitions", b"4"]
        for each in (first, second):
            await each.store.close(1)


class TestBacklog:
    async def test_what_no_group_has_taken(self, bench: Bench) -> None:
        wheel = Wheel(asyncio.get_running_loop().time)
        backlog = Backlog(bench.metrics, bench.plays, bench.store, wheel)
        tell = bench.store.request
        for number in (0, 5):
            key = plays.stream_key(number)
            await tell("other", pack("XGROUP", "CREATE", key, "billing", "0", "MKSTREAM"))
            for _ in range(10):
                await tell("xadd", pack("XADD", key, "*", "a", "b"))
        await tell("other", pack("XGROUP", "CREATE", plays.stream_key(0), "audit", "$"))
        await tell(
            "other", pack("XREADGROUP", "GROUP", "billing", "r", "COUNT", 4, "STREAMS", plays.stream_key(0), ">")
        )
        assert backlog.on_timer(0.0) == 15.0
        await tell("ping", pack("PING"))
        gauge = bench.metrics.gauge
        assert (gauge("plays_backlog", "billing").value, gauge("plays_backlog", "audit").value) == (20, 0)
        (rows,) = [await tell("other", pack("XRANGE", plays.stream_key(0), "-", "+", "COUNT", 3))]
        assert isinstance(rows, list)
        await tell("other", pack("XACK", plays.stream_key(0), "billing", *(row[0] for row in rows)))
        await tell("other", pack("XGROUP", "DESTROY", plays.stream_key(5), "billing"))
        backlog.on_timer(0.0)
        await tell("ping", pack("PING"))
        assert gauge("plays_backlog", "billing").value == 7


class TestMissing:
    """The gauge of devices that come back and play nothing."""

    def gauge(self, node: Backed) -> int:
        node.metrics.snapshot()
        return node.metrics.organization("content_impressions_missing", "acme").value

    async def test_it_is_read_back(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            gaps = await Client.dial(one, "gaps")
            played = await gaps.answer("content:impressions", {"boot": "b", "plays": [play(1), play(5)]}, 1)
            assert played["data"]["missing"] == [[2, 4]]
            whole = await Client.dial(one, "whole")
            await whole.answer("content:impressions", {"boot": "b", "plays": [play(1)]}, 1)
            assert self.gauge(one) == 3
            for name in ("gaps", "whole", "new"):
                await Client.dial(other, name)
            await reached(lambda: self.gauge(other) == 3)
            assert self.gauge(one) == 0

    async def test_of_many_at_once(self, redis_url: str) -> None:
        async with fleet(redis_url, 1, plays={"partitions": 2}) as (node,):
            books(redis_url).hset("vz:{p:0}:seen:s7", "missing", "4")
            books(redis_url).hset("vz:{p:1}:seen:s7", "missing", "4")
            screens = await asyncio.gather(*(Client.dial(node, f"s{number}") for number in range(50)))
            await reached(lambda: self.gauge(node) == 4)
            await reached(lambda: not node.gateway._missing._new)
            assert 0 < node.counter("redis_operations_total", "eval_missing", "ok") < 20
            assert (await screens[0].answer("heartbeat", {}, 1))["success"] is True

    async def test_redis_away(self, bench: Bench) -> None:
        """Who connects meanwhile is asked for when it is back; who has gone is not kept."""
        recorder = PlayRecorder(config.PlaySettings())
        recorder.partitions = 16
        wheel = Wheel(asyncio.get_running_loop().time)
        missing = Missing(recorder, bench.store, wheel)
        gone, here = Device("gone", "acme"), Device("here", "acme")
        here.peer = cast("Peer", object())
        await bench.store.request("other", pack("HSET", plays.seen_key(b"here", 16), "missing", 6))
        bench.store.up = False
        missing.expect(gone)
        missing.expect(here)
        missing.on_timer(0.0)
        assert list(missing._new) == [here]
        bench.store.up = True
        missing.on_timer(0.0)
        await bench.store.request("ping", pack("PING"))
        assert (here.missing, missing._new) == (6, {})


class TestPlaysOf:
    async def test_watermark_holes_and_days(self, bench: Bench) -> None:
        assert await plays_of(bench.store, "nobody", 16) == {"deviceId": "nobody", "boots": [], "days": {}}
        seen = plays.seen_key(b"lobby", 16)
        now = int(time.time() * 1000)
        runs = ((1, 1), (2, 0), (12, 3), (15, 0), (20, 2))
        value = b"%d 2 20 4 2 " % now + b"".join(high.to_bytes(7) + bytes([code]) for high, code in runs)
        await bench.store.request("other", pack("HSET", seen, "r:boot-1", value, "d:20780", 17, "missing", 4))
        assert await plays_of(bench.store, "lobby", 16) == {
            "deviceId": "lobby",
            "boots": [
                {
                    "boot": "boot-1",
                    "watermark": 1,
                    "newest": 20,
                    "missing": 4,
                    "holes": [[2, 2], [13, 15]],
                    "lost": 2,
                    "lastPlay": now,
                }
            ],
            "days": {"2026-11-23": 17},
        }

    async def test_over_http(self, service: Service) -> None:
        async with screen(service, "asked") as it:
            await it.taken("content:impressions", {"boot": "b", "plays": [play(1), play(2, "start"), play(5)]})
        status, body = service.get("/devices/asked/plays", {"x-internal-api-key": "i" * 32})
        found = json.loads(body)
        assert status == 200
        (boot,) = found["boots"]
        assert (boot["watermark"], boot["holes"], boot["missing"]) == (2, [[3, 4]], 2)
        assert list(found["days"].values()) == [3]
        assert service.get("/devices/asked/plays")[0] == 401

    async def test_what_the_release_before_has_recorded(self, service: Service) -> None:
        """Plays 1 to 20 with both phases but 5 to 7, which are missing; then the player goes on."""
        now, key = int(time.time() * 1000), {"x-internal-api-key": "i" * 32}
        seen = plays.seen_key(b"upgraded", 16)
        redis(service, ("HSET", seen, "b:b", f"{now} 0 20 3:13,0:3,3:4", "missing", 3, f"d:{now // 86_400_000}", 17))
        status, body = service.get("/devices/upgraded/plays", key)
        assert status == 200
        (boot,) = json.loads(body)["boots"]
        assert (boot["watermark"], boot["newest"], boot["holes"], boot["missing"]) == (4, 20, [[5, 7]], 3)
        async with screen(service, "upgraded") as it:
            batch = {"boot": "b", "plays": [play(number) for number in (4, 6, 20, 21)]}
            ack = await it.taken("content:impressions", batch)
        assert ack == {"watermark": 4, "accepted": 2, "duplicates": 2, "missing": [[5, 5], [7, 7]]}
        (boot,) = json.loads(service.get("/devices/upgraded/plays", key)[1])["boots"]
        assert (boot["watermark"], boot["newest"], boot["missing"]) == (4, 21, 2)

    async def test_redis_away(self, bench: Bench) -> None:
        await bench.store.close(1)
        assert await plays_of(bench.store, "lobby", 16) is None
        assert await plays_of(bench.store, "lobby", 0) is None
