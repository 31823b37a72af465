"""What becomes of an impression before and after the script: its arguments, its ack, what is counted."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from vizora_rt import config
from vizora_rt.app import plays
from vizora_rt.app.handlers import Outcome, Write
from vizora_rt.app.play_script import DAY_MS, KEEP_DAYS
from vizora_rt.app.plays import Plays, describe, milliseconds
from vizora_rt.app.state import Device
from vizora_rt.errors import STORE_FULL, STORE_UNAVAILABLE
from vizora_rt.wire import payloads
from vizora_rt.wire.payloads import Impression, Impressions

NOW = 1_795_425_772_550
TODAY = NOW // DAY_MS


@pytest.fixture
def device() -> Device:
    return Device("lobby", "acme")


@pytest.fixture
def recorder() -> Plays:
    made = Plays(config.Plays(max_entries=16_000))
    made.partitions = 16
    return made


def impression(**data: Any) -> Impression:
    payload = payloads.validate(Impression, {"contentId": "spot", **data})
    assert isinstance(payload, Impression)
    return payload


def impressions(*played: dict[str, Any]) -> Impressions:
    payload = payloads.validate(Impressions, {"boot": "b", "plays": [{"contentId": "spot", **each} for each in played]})
    assert isinstance(payload, Impressions)
    return payload


def write(outcome: Outcome) -> Write:
    assert outcome.write is not None
    return outcome.write


def arguments(outcome: Outcome) -> tuple[Any, ...]:
    """Of the first play."""
    return write(outcome).args[6:14]


class TestKeys:
    def test_all_of_a_device_have_one_tag(self, device: Device, recorder: Plays) -> None:
        keys = write(recorder.impression(device, impression(), NOW)).keys
        number = plays.partition(b"lobby", 16)
        tag = b"vz:{p:%d}:" % number
        assert keys == (tag + b"seen:lobby", tag + b"plays", tag + b"legacy:lobby")

    def test_partitions_are_crc16_as_clusters_have_it(self) -> None:
        assert plays.partition(b"123456789", 65536) == 0x31C3  # the check value of CRC-16/XMODEM
        assert {plays.partition(b"d%d" % n, 16) for n in range(1000)} == set(range(16))


class TestArguments:
    def test_of_a_message(self, device: Device, recorder: Plays) -> None:
        head = write(recorder.impressions(device, impressions({"seq": 1}, {"seq": 2}), NOW)).args[:6]
        assert head == (NOW, TODAY, 1000, b"lobby", "acme", "b")

    def test_of_a_play(self, device: Device, recorder: Plays) -> None:
        played = {"playlistId": "p", "duration": 2.5, "completionPercentage": 100, "timestamp": NOW - DAY_MS}
        given = arguments(recorder.impressions(device, impressions({"seq": 7, "phase": "start", **played}), NOW))
        assert given == (7, 1, TODAY - 1, NOW - DAY_MS, "spot", "p", "2.5", "100")
        given = arguments(recorder.impression(device, impression(play={"boot": "b", "seq": 9}), NOW))
        assert given == (9, 2, TODAY, "", "spot", "", "", "")

    @pytest.mark.parametrize(
        ("fields", "phase"),
        [({}, 1), ({"duration": 0}, 2), ({"completionPercentage": 0}, 2), ({"timestamp": NOW, "playlistId": "p"}, 1)],
    )
    def test_without_a_number_the_phase_is_guessed(
        self, device: Device, recorder: Plays, fields: dict[str, Any], phase: int
    ) -> None:
        assert arguments(recorder.impression(device, impression(**fields), NOW))[1] == phase

    def test_without_a_number_content_time_and_phase_tell_it(self, device: Device, recorder: Plays) -> None:
        def digest(**data: Any) -> bytes:
            found = arguments(recorder.impression(device, impression(**data), NOW))[0]
            assert isinstance(found, bytes)
            assert len(found) == 8
            return found

        known = digest(timestamp=NOW, duration=1)
        assert digest(timestamp=float(NOW), duration=2, playlistId="p") == known
        assert digest(timestamp="2026-11-23T09:22:52.550Z", duration=1) == known
        assert digest(timestamp="2026-11-23T10:22:52.550+01:00", duration=1) == known
        others = [{"timestamp": NOW}, {"timestamp": NOW + 1, "duration": 1}, {"duration": 1}, {"duration": 1}]
        assert len({known, *(digest(**each) for each in others)}) == 5

    @pytest.mark.parametrize(
        ("at", "day"),
        [
            (NOW - KEEP_DAYS * DAY_MS, TODAY - KEEP_DAYS),
            (NOW - (KEEP_DAYS + 1) * DAY_MS, TODAY),
            (NOW + DAY_MS, TODAY + 1),
            (NOW + 2 * DAY_MS, TODAY),
            (0, TODAY),
            ("0001-01-01T00:00:00Z", TODAY),
        ],
    )
    def test_the_day_is_the_player_s_when_that_can_be(self, device: Device, recorder: Plays, at: Any, day: int) -> None:
        assert arguments(recorder.impression(device, impression(timestamp=at), NOW))[2] == day


class TestTimes:
    @pytest.mark.parametrize(
        ("given", "ms"),
        [
            (None, None),
            (5.9, 5),
            (datetime(2026, 11, 23, 9, 22, 52, 550_999, tzinfo=UTC), NOW),
            (datetime(2026, 11, 23, 9, 22, 52, 550_000), NOW),
            (datetime(2026, 11, 23, 4, 22, 52, 550_000, tzinfo=timezone(timedelta(hours=-5))), NOW),
            (datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), -1000),
        ],
    )
    def test_milliseconds(self, given: float | datetime | None, ms: int | None) -> None:
        assert milliseconds(given) == ms


class TestSettling:
    def test_before_redis_has_said_how_many_partitions_there_are(self, device: Device) -> None:
        assert Plays(config.Plays()).impression(device, impression(), NOW).refusal is STORE_UNAVAILABLE

    def test_a_single_play(self, device: Device, recorder: Plays) -> None:
        then = write(recorder.impression(device, impression(play={"boot": "b", "seq": 9}), NOW)).then
        outcome = then([1, 5, 1, 0, 1, 3, 0, 0, 0, b"[6,8]"])
        assert outcome.reply == b'{"duplicate":false,"watermark":5}'
        assert (outcome.counts, outcome.tallies) == ((("content_impressions_total", 1),), ())
        assert device.missing == 3
        outcome = then([1, 5, 0, 1, 0, 3, 0, 0, 0, b"[6,8]"])
        assert outcome.reply == b'{"duplicate":true,"watermark":5}'
        assert outcome.counts == (("content_impressions_duplicate_total", 1),)

    def test_a_play_without_a_number_leaves_what_is_missing(self, device: Device, recorder: Plays) -> None:
        device.missing = 4
        outcome = write(recorder.impression(device, impression(), NOW)).then([1, -1, 1, 0, 0, -1, 0, 0, 0, b""])
        assert (outcome.reply, outcome.counts, device.missing) == (b'{"duplicate":false}', (), 4)

    def test_a_batch(self, device: Device, recorder: Plays) -> None:
        then = write(recorder.impressions(device, impressions({"seq": 1}), NOW)).then
        outcome = then([1, 5, 7, 2, 4, 9, 1, 2, 30, b"[6,8],[10,15]"])
        assert outcome.reply == b'{"watermark":5,"accepted":7,"duplicates":2,"missing":[[6,8],[10,15]]}'
        assert outcome.counts == (("content_impressions_total", 4), ("content_impressions_duplicate_total", 2))
        assert outcome.tallies == tuple(
            ("limits_exceeded_total", (name,), times)
            for name, times in (("plays_holes", 1), ("plays_boots", 2), ("plays_entries", 30))
        )

    def test_no_room(self, device: Device, recorder: Plays) -> None:
        outcome = write(recorder.impressions(device, impressions({"seq": 1}), NOW)).then([0])
        assert (outcome.refusal, outcome.counts) == (STORE_FULL, ())
        assert outcome.tallies == (("limits_exceeded_total", ("plays_entries",), 1),)

    def test_a_batch_always_has_room(self, device: Device) -> None:
        small = Plays(config.Plays(partitions=1024, max_entries=1000))
        small.partitions = 1024
        assert write(small.impression(device, impression(), NOW)).args[2] == payloads.MAX_PLAYS


def test_a_description_leaves_out_what_is_too_old() -> None:
    seen = {
        b"b:old": b"%d 0 5 2:5" % (NOW - KEEP_DAYS * DAY_MS),
        b"b:new": b"%d 0 5 2:5" % NOW,
        b"b:older": b"%d 0 5 2:4,0:1" % (NOW - 5),
        b"missing": b"0",
        b"d:20781": b"2",
        b"d:20780": b"1",
    }
    found = describe(seen, NOW)
    assert [(boot["boot"], boot["watermark"], boot["holes"]) for boot in found["boots"]] == [
        ("new", 5, []),
        ("older", 0, [[1, 1]]),
    ]
    assert list(found["days"].items()) == [("2026-11-23", 1), ("2026-11-24", 2)]
