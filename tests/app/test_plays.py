"""What becomes of an impression before and after the script: its arguments, its ack, what is counted."""

from typing import Any

import pytest

from vizora_rt import config
from vizora_rt.app import plays
from vizora_rt.app.handlers import Outcome, Write
from vizora_rt.app.play_script import ARGUMENTS, DAY_MS, HEAD, KEEP_DAYS, LISTED_HOLES, PLAYS_A_CALL
from vizora_rt.app.plays import PlayRecorder, describe, when
from vizora_rt.app.state import Device
from vizora_rt.errors import PLAYS_SHARE, STORE_FULL, STORE_UNAVAILABLE
from vizora_rt.wire import payloads
from vizora_rt.wire.payloads import Impression, Impressions

NOW = 1_795_425_772_550
TODAY = NOW // DAY_MS


@pytest.fixture
def device() -> Device:
    return Device("lobby", "acme")


@pytest.fixture
def recorder() -> PlayRecorder:
    made = PlayRecorder(config.PlaySettings(max_entries=16_000))
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
    return write(outcome).args[HEAD : HEAD + ARGUMENTS]


class TestKeys:
    def test_all_of_a_device_have_one_tag(self, device: Device, recorder: PlayRecorder) -> None:
        keys = write(recorder.impression(device, impression(), NOW)).keys
        number = plays.partition(b"lobby", 16)
        tag = b"vz:{p:%d}:" % number
        assert keys == (tag + b"seen:lobby", tag + b"plays", tag + b"legacy:lobby")

    def test_partitions_are_crc16_as_clusters_have_it(self) -> None:
        assert plays.partition(b"123456789", 65536) == 0x31C3  # the check value of CRC-16/XMODEM
        assert {plays.partition(b"d%d" % n, 16) for n in range(1000)} == set(range(16))


class TestArguments:
    def test_of_a_message(self, device: Device, recorder: PlayRecorder) -> None:
        head = write(recorder.impressions(device, impressions({"seq": 1}, {"seq": 2}), NOW)).args[:HEAD]
        assert head == (NOW, TODAY, 1000, 250, b"lobby", "acme", "b", "", "", LISTED_HOLES)

    @pytest.mark.parametrize(
        ("entries", "room", "share"),
        [(160_000, 10_000, 1_000), (16_000, 1_000, 200), (15_999, 999, 0), (1_000, 200, 0)],
    )
    def test_a_share_holds_a_batch(self, device: Device, entries: int, room: int, share: int) -> None:
        """Of a stream that has room for five, else there is none."""
        off = PlayRecorder(config.PlaySettings(max_entries=entries, device_share=1))
        off.partitions = 16
        assert write(off.impressions(device, impressions({"seq": 1}), NOW)).args[2:4] == (room, 0)
        made = PlayRecorder(config.PlaySettings(max_entries=entries, device_share=0.1))
        made.partitions = 16
        assert write(made.impressions(device, impressions({"seq": 1}), NOW)).args[2:4] == (room, share)

    @pytest.mark.parametrize(
        ("sent_at", "beat", "clock"),
        [
            (None, None, ""),
            (NOW - 5000, None, 5000),
            (None, 70, 70),
            (NOW + 5000, 70, -5000),
            # Held up on its way, or kept by the client's library until it was connected.
            (NOW - 5000, 70, 70),
            ("2026-11-23T09:22:50.550Z", None, 2000),
            ("soon", 70, 70),
            ("soon", None, ""),
        ],
    )
    def test_how_far_the_clock_is_behind(
        self, device: Device, recorder: PlayRecorder, sent_at: Any, beat: int | None, clock: int | str
    ) -> None:
        device.clock_ms = beat
        batch = payloads.validate(Impressions, {"boot": "b", "plays": [], "sentAt": sent_at})
        assert write(recorder.impressions(device, batch, NOW)).args[7] == clock
        assert write(recorder.impression(device, impression(sentAt=sent_at), NOW)).args[7] == clock

    def test_of_a_play(self, device: Device, recorder: PlayRecorder) -> None:
        played = {"playlistId": "p", "duration": 2.5, "completionPercentage": 100, "timestamp": NOW - DAY_MS}
        given = arguments(recorder.impressions(device, impressions({"seq": 7, "phase": "start", **played}), NOW))
        assert given == (7, 1, TODAY - 1, NOW - DAY_MS, "", "spot", "p", "2.5", "100")
        given = arguments(recorder.impression(device, impression(play={"boot": "b", "seq": 9}), NOW))
        assert given == (9, 2, TODAY, "", "", "spot", "", "", "")

    @pytest.mark.parametrize(
        ("fields", "phase"),
        [({}, 1), ({"duration": 0}, 2), ({"completionPercentage": 0}, 2), ({"timestamp": NOW, "playlistId": "p"}, 1)],
    )
    def test_without_a_number_the_phase_is_guessed(
        self, device: Device, recorder: PlayRecorder, fields: dict[str, Any], phase: int
    ) -> None:
        assert arguments(recorder.impression(device, impression(**fields), NOW))[1] == phase

    def test_without_a_number_content_time_and_phase_tell_it(self, device: Device, recorder: PlayRecorder) -> None:
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
    def test_the_day_is_the_player_s_when_that_can_be(
        self, device: Device, recorder: PlayRecorder, at: Any, day: int
    ) -> None:
        assert arguments(recorder.impression(device, impression(timestamp=at), NOW))[2] == day


class TestTimes:
    @pytest.mark.parametrize(
        ("given", "found"),
        [
            (None, (None, "")),
            (NOW, (NOW, "")),
            ("2026-11-23T09:22:52.550Z", (NOW, "")),
            ("yesterday", (None, "yesterday")),
            (-1, (None, "-1")),
            (True, (None, "true")),
            ({"$date": "x"}, (None, '{"$date":"x"}')),
            (["x" * 70_000], (None, "?")),
        ],
    )
    def test_when(self, given: Any, found: tuple[int | None, str]) -> None:
        assert when(given) == found

    def test_one_that_is_not_understood_tells_the_play(self, device: Device, recorder: PlayRecorder) -> None:
        def told(**data: Any) -> tuple[Any, ...]:
            made = write(recorder.impression(device, impression(**data), NOW)).args
            return (made[HEAD], made[8])

        known = told(timestamp="yesterday", duration=1)
        assert told(timestamp="yesterday", duration=2) == known
        assert isinstance(known[1], int)
        others: list[dict[str, Any]] = [
            {"timestamp": "yesterday"},
            {"timestamp": "today", "duration": 1},
            {"timestamp": -1},
        ]
        assert len({known, *(told(**each) for each in others)}) == 4

    def test_it_is_kept_cut_to_length(self, device: Device, recorder: PlayRecorder) -> None:
        given = arguments(recorder.impression(device, impression(timestamp="y" * 200), NOW))
        assert given[3:5] == ("", "y" * 128)

    def test_it_is_counted_when_the_play_is_new(self, device: Device, recorder: PlayRecorder) -> None:
        then = write(recorder.impression(device, impression(timestamp="yesterday"), NOW)).then
        ignored = ("ws_fields_ignored_total", ("content:impression", "wrong_type"), 1)
        assert then([1, -1, 1, 0, 1, -1, 0, 0, 0, b""]).tallies == (ignored,)
        assert then([1, -1, 0, 1, 0, -1, 0, 0, 0, b""]).tallies == ()


class TestParts:
    """A batch is written some plays at a time."""

    @staticmethod
    def reply(accepted: int, duplicates: int) -> list[Any]:
        return [1, 5, accepted, duplicates, accepted, 0, 0, 0, 0, b""]

    def test_each_is_counted_and_the_last_is_acked(self, device: Device, recorder: PlayRecorder) -> None:
        outcome = recorder.impressions(device, impressions(*({"seq": n} for n in range(1, 2 * PLAYS_A_CALL + 2))), NOW)
        numbers: list[int] = []
        for accepted, duplicates in ((30, 10), (40, 0), (0, 1)):
            part = write(outcome)
            numbers += part.args[HEAD::ARGUMENTS]  # type: ignore[arg-type]
            last = len(numbers) == 2 * PLAYS_A_CALL + 1
            assert part.args[HEAD - 1] == (LISTED_HOLES if last else 0)
            outcome = part.then(self.reply(accepted, duplicates))
            assert sum(count for _, count in outcome.counts) == accepted + duplicates
        assert numbers == list(range(1, 2 * PLAYS_A_CALL + 2))
        assert outcome.write is None
        assert outcome.reply == b'{"watermark":5,"accepted":70,"duplicates":11,"missing":[]}'

    def test_what_is_refused_ends_it(self, device: Device, recorder: PlayRecorder) -> None:
        batch = impressions(*({"seq": n} for n in range(1, 2 * PLAYS_A_CALL + 2)))
        second = write(recorder.impressions(device, batch, NOW)).then(self.reply(PLAYS_A_CALL, 0))
        outcome = write(second).then([0])
        assert (outcome.refusal, outcome.write) == (STORE_FULL, None)

    @pytest.mark.parametrize(
        ("data", "count"),
        [
            ({"plays": [1, 2, 3]}, 3),
            ({"plays": [{}] * 5000}, payloads.MAX_PLAYS),
            ({"plays": "x" * 100}, 0),
            ({}, 0),
            (None, 0),
            ([1, 2], 0),
        ],
    )
    def test_how_many_there_are_before_they_are_validated(self, data: Any, count: int) -> None:
        assert plays.parts(data) == count


class TestSettling:
    def test_before_redis_has_said_how_many_partitions_there_are(self, device: Device) -> None:
        assert PlayRecorder(config.PlaySettings()).impression(device, impression(), NOW).refusal is STORE_UNAVAILABLE

    def test_a_single_play(self, device: Device, recorder: PlayRecorder) -> None:
        then = write(recorder.impression(device, impression(play={"boot": "b", "seq": 9}), NOW)).then
        outcome = then([1, 5, 1, 0, 1, 3, 0, 0, 0, b"[6,8]"])
        assert outcome.reply == b'{"duplicate":false,"watermark":5}'
        assert (outcome.counts, outcome.tallies) == ((("content_impressions_total", 1),), ())
        assert device.missing == 3
        outcome = then([1, 5, 0, 1, 0, 3, 0, 0, 0, b"[6,8]"])
        assert outcome.reply == b'{"duplicate":true,"watermark":5}'
        assert outcome.counts == (("content_impressions_duplicate_total", 1),)

    def test_a_play_without_a_number_leaves_what_is_missing(self, device: Device, recorder: PlayRecorder) -> None:
        device.missing = 4
        outcome = write(recorder.impression(device, impression(), NOW)).then([1, -1, 1, 0, 0, -1, 0, 0, 0, b""])
        assert (outcome.reply, outcome.counts, device.missing) == (b'{"duplicate":false}', (), 4)

    def test_a_batch(self, device: Device, recorder: PlayRecorder) -> None:
        then = write(recorder.impressions(device, impressions({"seq": 1}), NOW)).then
        outcome = then([1, 5, 7, 2, 4, 9, 1, 2, 30, b"[6,8],[10,15]"])
        assert outcome.reply == b'{"watermark":5,"accepted":7,"duplicates":2,"missing":[[6,8],[10,15]]}'
        assert outcome.counts == (("content_impressions_total", 4), ("content_impressions_duplicate_total", 2))
        assert outcome.tallies == tuple(
            ("limits_exceeded_total", (name,), times)
            for name, times in (("plays_holes", 1), ("plays_boots", 2), ("plays_entries", 30))
        )

    def test_no_room(self, device: Device, recorder: PlayRecorder) -> None:
        outcome = write(recorder.impressions(device, impressions({"seq": 1}), NOW)).then([0])
        assert (outcome.refusal, outcome.counts) == (STORE_FULL, ())
        assert outcome.tallies == (("limits_exceeded_total", ("plays_entries",), 1),)

    def test_a_device_with_its_share(self, device: Device, recorder: PlayRecorder) -> None:
        outcome = write(recorder.impressions(device, impressions({"seq": 1}), NOW)).then([2, 60_000])
        assert (outcome.refusal, outcome.counts, outcome.retry_after_ms) == (PLAYS_SHARE, (), 60_000)
        assert outcome.tallies == (("limits_exceeded_total", ("plays_share",), 1),)

    def test_a_batch_always_has_room(self, device: Device) -> None:
        small = PlayRecorder(config.PlaySettings(partitions=1024, max_entries=1000))
        small.partitions = 1024
        assert write(small.impression(device, impression(), NOW)).args[2] == payloads.MAX_PLAYS


def value(last: int, top: int, *runs: tuple[int, int]) -> bytes:
    """A boot with these runs: the last number of each, and its code."""
    missing = sum(high - low for (low, _), (high, code) in zip([(0, 0), *runs], runs, strict=False) if not code)
    text = b"".join(high.to_bytes(7) + bytes([code]) for high, code in runs)
    return b"%d 0 %d %d %d " % (last, top, missing, sum(not code for _, code in runs)) + text


def test_a_description_leaves_out_what_is_too_old() -> None:
    seen = {
        b"r:old": value(NOW - KEEP_DAYS * DAY_MS, 5, (5, 2)),
        b"r:new": value(NOW, 5, (5, 2)),
        b"r:older": value(NOW - 5, 5, (1, 0), (5, 2)),
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


def test_a_description_of_what_the_release_before_has_written() -> None:
    seen = {
        b"b:text": b"%d 2 9007199254740992 2:1,0:1,1:1,0:9007199254740984,1:1,0:4" % NOW,
        b"b:both": b"0%d 0 5 3:5" % (NOW - 1),
        b"r:both": value(NOW - 1, 5, (5, 3)),
        b"b:none": b"%d 0 0 " % (NOW - 2),
    }
    text, both, none = describe(seen, NOW)["boots"]
    assert text == {
        "boot": "text",
        "watermark": 0,
        "newest": 2**53,
        "missing": 2**53 - 3,
        "holes": [[1, 4], [6, 2**53 - 3], [2**53 - 1, 2**53 - 1]],
        "lost": 2,
        "lastPlay": NOW,
    }
    assert (both["boot"], both["watermark"], both["lastPlay"]) == ("both", 5, NOW - 1)
    assert (none["boot"], none["watermark"], none["holes"]) == ("none", 0, [])
