"""Proof of play: what a device says was shown, recorded once, and what an ack of it says. Pure but for its script."""

import binascii
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Final

from vizora_rt import config
from vizora_rt.app.handlers import Event, Outcome, Write, behind
from vizora_rt.app.play_script import ARGUMENTS, BUCKET_MS, BUCKETS, DAY_MS, KEEP_DAYS, LISTED_HOLES, PLAYS_A_CALL
from vizora_rt.app.state import Device
from vizora_rt.errors import PLAYS_SHARE, STORE_FULL, STORE_UNAVAILABLE
from vizora_rt.wire import messages, times
from vizora_rt.wire.payloads import MAX_PLAYS, Impression, Impressions, Phase, Play
from vizora_rt.wire.times import EPOCH

Argument = bytes | str | int

MAX_UNREAD_TEXT: Final = 65_536
"""Bytes of a time that is none, by which a play is known again: no message has more."""

SMALL_ROOM: Final = 5 * MAX_PLAYS
"""Entries of a partition below which a quarter would not hold one batch: there is no share of it."""

SINGLE_COST: Final = 0.2
"""Of a message, for a play that comes alone. A Socket.IO player that was offline sends all that it kept at once, 1,040
plays a day, and again what is not acked within 10 s. As a message each they took 400 s: it would send them for ever."""

RUN_BYTES: Final = 8

_TEXT_RUN: Final = re.compile(rb"(\d):(\d+)")


def partition(device_id: bytes, partitions: int) -> int:
    """Where the plays of a device are."""
    return binascii.crc_hqx(device_id, 0) % partitions


def seen_key(device_id: bytes, partitions: int) -> bytes:
    return b"vz:{p:%d}:seen:%b" % (partition(device_id, partitions), device_id)


def legacy_key(device_id: bytes, partitions: int) -> bytes:
    return b"vz:{p:%d}:legacy:%b" % (partition(device_id, partitions), device_id)


def stream_key(number: int) -> bytes:
    return b"vz:{p:%d}:plays" % number


def when(value: Any) -> tuple[int | None, str]:
    """A player's time since the epoch in milliseconds; else None, and the text that came instead of it."""
    if value is None:
        return None, ""
    at = times.milliseconds(value)
    if at is not None:
        return at, ""
    return None, value if isinstance(value, str) else (messages.bounded(value, MAX_UNREAD_TEXT) or b"?").decode()


def parts(data: Any) -> int:
    """How many plays a batch has, whatever it is. One that has more than it may is refused, and costs as a full one."""
    plays = data.get("plays") if data.__class__ is dict else None
    return min(len(plays), MAX_PLAYS) if plays.__class__ is list else 0


class PlayRecorder:
    """The events of proof of play, for one worker."""

    __slots__ = ("_settings", "partitions", "table")

    def __init__(self, settings: config.PlaySettings) -> None:
        self._settings = settings
        self.partitions = 0
        """How many this Redis has; 0 until it has said so, and until then no play can be taken."""
        self.table = {
            "content:impression": Event(Impression, self.impression, cost=SINGLE_COST),
            "content:impressions": Event(Impressions, self.impressions, parts=parts),
        }

    def impression(self, device: Device, payload: Impression, now: int) -> Outcome:
        """One play, with a number of its own or without."""
        (at, text), numbered = when(payload.timestamp), payload.play
        if numbered is not None:
            arguments = _arguments(payload, numbered.seq, numbered.phase, at, text, now)
            return self._record(device, numbered.boot, arguments, payload.sent_at, now, _single)
        phase: Phase = "start" if payload.duration is None and payload.completion_percentage is None else "end"
        arguments = _arguments(payload, _digest(payload, phase, at, text), phase, at, text, now)
        return self._record(device, "", arguments, payload.sent_at, now, _single, _bucket(at, text))

    def impressions(self, device: Device, payload: Impressions, now: int) -> Outcome:
        """Plays of one boot. Without any it only asks what is in."""
        arguments: list[Argument] = []
        for play in payload.plays:
            arguments += _arguments(play, play.seq, play.phase, *when(play.timestamp), now)
        return self._record(device, payload.boot, arguments, payload.sent_at, now, _batch)

    def _record(
        self,
        device: Device,
        boot: str,
        plays: list[Argument],
        sent_at: str | float | None,
        now: int,
        answer: "Answer",
        bucket: int | str = "",
    ) -> Outcome:
        """Write plays, some at a time: Redis does nothing else while its script runs. The ack comes when all are in."""
        partitions = self.partitions
        if not partitions:
            return Outcome(refusal=STORE_UNAVAILABLE)
        device_id = device.id.encode()
        # A batch has room in any case: a stream shorter than that could never take one.
        room = max(MAX_PLAYS, self._settings.max_entries // partitions)
        share = int(room * self._settings.device_share)
        share = 0 if room < SMALL_ROOM or share == room else max(MAX_PLAYS, share)
        stream = stream_key(partition(device_id, partitions))
        keys = (seen_key(device_id, partitions), stream, legacy_key(device_id, partitions))
        clock = _clock(device, sent_at, now)
        head = (now, now // DAY_MS, room, share, device_id, device.organization_id, boot, clock, bucket)
        step = PLAYS_A_CALL * ARGUMENTS
        accepted = duplicates = 0

        def write(start: int) -> Write:
            last = start + step >= len(plays)
            given = plays[start : start + step]
            unread = sum(1 for text in given[4::ARGUMENTS] if text)

            def then(reply: list[Any]) -> Outcome:
                nonlocal accepted, duplicates
                if reply[0] != 1:
                    return _refused(reply)
                accepted += reply[2]
                duplicates += reply[3]
                counts, tallies = _counted(device, reply)
                if unread and reply[2]:
                    event = "content:impressions" if answer is _batch else "content:impression"
                    ignored = min(unread, reply[2])
                    tallies = (*tallies, ("ws_fields_ignored_total", (event, "wrong_type"), ignored))
                if not last:
                    return Outcome(counts=counts, tallies=tallies, write=write(start + step))
                return Outcome(answer(reply, accepted, duplicates), counts=counts, tallies=tallies)

            listed = LISTED_HOLES if last and answer is _batch else 0
            return Write("play", keys, (*head, listed, *given), then)

        return Outcome(write=write(0))


Answer = Callable[[list[Any], int, int], bytes]
"""Makes the ack of the script's last reply, and of how many phases were accepted and duplicates in all."""


def _clock(device: Device, sent_at: str | float | None, now: int) -> int | str:
    """By how many ms the clock of the device is behind; "" when it is not known. Of two the smaller: a message that was
    held up after its client wrote the time makes it too large, never too small."""
    known = [ms for ms in (behind(sent_at, now), device.clock_ms) if ms is not None]
    return min(known) if known else ""


def _arguments(play: Play, number: int | bytes, phase: Phase, at: int | None, text: str, now: int) -> list[Argument]:
    """A play as the script takes it."""
    today = now // DAY_MS
    day = today if at is None else at // DAY_MS
    return [
        number,
        1 if phase == "start" else 2,
        # A clock that is far off does not make a day of its own.
        day if today - KEEP_DAYS <= day <= today + 1 else today,
        "" if at is None else at,
        text[: times.MAX_TEXT],
        play.content_id,
        play.playlist_id or "",
        _decimal(play.duration),
        _decimal(play.completion_percentage),
    ]


def _digest(play: Play, phase: Phase, at: int | None, text: str) -> bytes:
    """What tells a play without a number from others of its device; of one without a time, nothing does."""
    if at is None and not text:
        return secrets.token_bytes(8)
    # With the phase: a player may give the time of the start in both of its impressions.
    key = f"{at} {phase} {play.content_id}" if at is not None else f"text {phase} {play.content_id} {text}"
    return hashlib.blake2b(key.encode(), digest_size=8).digest()


def _bucket(at: int | None, text: str) -> int | str:
    """Among which plays it is looked for; "" for one that nothing tells from others."""
    if at is not None:
        return at // BUCKET_MS % BUCKETS
    return binascii.crc_hqx(text.encode(), 0) % BUCKETS if text else ""


def _decimal(value: float | None) -> str:
    return "" if value is None else repr(value).removesuffix(".0")


Counts = tuple[tuple[str, int], ...]
Tallies = tuple[tuple[str, tuple[str, ...], int], ...]


def _refused(reply: list[Any]) -> Outcome:
    if reply[0] == 2:
        return Outcome(refusal=PLAYS_SHARE, tallies=(_limit("plays_share", 1),), retry_after_ms=reply[1])
    return Outcome(refusal=STORE_FULL, tallies=(_limit("plays_entries", 1),))


def _counted(device: Device, reply: list[Any]) -> tuple[Counts, Tallies]:
    """What of the script's reply is counted."""
    _, _, _, duplicates, plays, missing, holes_lost, boots_lost, dropped, _ = reply
    if missing >= 0:
        device.missing = missing
    counts = (("content_impressions_total", plays), ("content_impressions_duplicate_total", duplicates))
    limits = (("plays_holes", holes_lost), ("plays_boots", boots_lost), ("plays_entries", dropped))
    return (
        tuple(each for each in counts if each[1]),
        tuple(_limit(name, often) for name, often in limits if often) if any(reply[6:9]) else (),
    )


def _limit(name: str, times: int) -> tuple[str, tuple[str, ...], int]:
    return "limits_exceeded_total", (name,), times


def _single(reply: list[Any], accepted: int, duplicates: int) -> bytes:
    duplicate = b"true" if duplicates else b"false"
    watermark = b',"watermark":%d' % reply[1] if reply[1] >= 0 else b""
    return b'{"duplicate":%b%b}' % (duplicate, watermark)


def _batch(reply: list[Any], accepted: int, duplicates: int) -> bytes:
    return b'{"watermark":%d,"accepted":%d,"duplicates":%d,"missing":[%b]}' % (reply[1], accepted, duplicates, reply[9])


# For those who read


def describe(seen: Mapping[bytes, bytes], now: int) -> dict[str, Any]:
    """The hash `seen` of a device for people: boots, the latest first, and plays per day."""
    boots = [_describe_boot(name[2:].decode(), value) for name, value in seen.items() if name.startswith(b"r:")]
    boots += [_describe_text(name[2:].decode(), value) for name, value in seen.items() if name.startswith(b"b:")]
    # Where both tell of a boot, the later one: in a rolling restart a worker of the release before may have it.
    latest = {boot["boot"]: boot for boot in sorted(boots, key=lambda boot: boot["lastPlay"])}
    kept = [boot for boot in latest.values() if now - boot["lastPlay"] < KEEP_DAYS * DAY_MS]
    days = sorted((int(name[2:]), int(count)) for name, count in seen.items() if name.startswith(b"d:"))
    return {
        "boots": sorted(kept, key=lambda boot: boot["lastPlay"], reverse=True),
        "days": {(EPOCH + timedelta(days=day)).date().isoformat(): count for day, count in days},
    }


def _describe_boot(boot: str, value: bytes) -> dict[str, Any]:
    last, lost, top, _, _, runs = value.split(b" ", 5)
    ends = [(int.from_bytes(runs[at : at + 7]), runs[at + 7]) for at in range(0, len(runs), RUN_BYTES)]
    return _described(boot, int(last), int(lost), int(top), ends)


def _describe_text(boot: str, value: bytes) -> dict[str, Any]:
    last, lost, top, text = value.split(b" ", 3)
    high, ends = int(top), []
    for code, length in _TEXT_RUN.findall(text):
        ends.append((high, int(code)))
        high -= int(length)
    return _described(boot, int(last), int(lost), int(top), ends[::-1])


def _described(boot: str, last: int, lost: int, top: int, runs: list[tuple[int, int]]) -> dict[str, Any]:
    """A boot whose runs are given by the last number of each, and its code."""
    low, holes = 0, []
    for high, code in runs:
        if not code:
            holes.append([low + 1, high])
        low = high
    return {
        "boot": boot,
        "watermark": holes[0][0] - 1 if holes else top,
        "newest": top,
        "missing": sum(high - low + 1 for low, high in holes),
        "holes": holes,
        "lost": lost,
        "lastPlay": last,
    }
