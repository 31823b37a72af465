"""Proof of play: what a device says was shown, recorded once, and what an ack of it says. Pure but for its script."""

import binascii
import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from vizora_rt import config
from vizora_rt.app.handlers import Event, Outcome, Write
from vizora_rt.app.play_script import DAY_MS, KEEP_DAYS
from vizora_rt.app.state import Device
from vizora_rt.errors import STORE_FULL, STORE_UNAVAILABLE
from vizora_rt.wire.messages import EPOCH
from vizora_rt.wire.payloads import MAX_PLAYS, Impression, Impressions, Phase, Play

Argument = bytes | str | int

MILLISECOND: Final = timedelta(milliseconds=1)

_RUN = re.compile(rb"(\d):(\d+)")


def partition(device_id: bytes, partitions: int) -> int:
    """Where the plays of a device are."""
    return binascii.crc_hqx(device_id, 0) % partitions


def seen_key(device_id: bytes, partitions: int) -> bytes:
    return b"vz:{p:%d}:seen:%b" % (partition(device_id, partitions), device_id)


def legacy_key(device_id: bytes, partitions: int) -> bytes:
    return b"vz:{p:%d}:legacy:%b" % (partition(device_id, partitions), device_id)


def stream_key(number: int) -> bytes:
    return b"vz:{p:%d}:plays" % number


def milliseconds(time: float | datetime | None) -> int | None:
    """A player's time since the epoch. One without a zone is taken for UTC, which is what players send."""
    if time is None or not isinstance(time, datetime):
        return None if time is None else int(time)
    return ((time if time.tzinfo is not None else time.replace(tzinfo=UTC)) - EPOCH) // MILLISECOND


def parts(data: Any) -> int:
    """How many plays a batch has, whatever it is. One that has more than it may is refused, and costs as a full one."""
    plays = data.get("plays") if data.__class__ is dict else None
    return min(len(plays), MAX_PLAYS) if plays.__class__ is list else 0


class Plays:
    """The events of proof of play, for one worker."""

    __slots__ = ("_settings", "partitions", "table")

    def __init__(self, settings: config.Plays) -> None:
        self._settings = settings
        self.partitions = 0
        """How many this Redis has; 0 until it has said so, and until then no play can be taken."""
        self.table = {
            "content:impression": Event(Impression, self.impression),
            "content:impressions": Event(Impressions, self.impressions, parts=parts),
        }

    def impression(self, device: Device, payload: Impression, now: int) -> Outcome:
        """One play, with a number of its own or without."""
        at, numbered = milliseconds(payload.timestamp), payload.play
        if numbered is not None:
            arguments = _arguments(payload, numbered.seq, numbered.phase, at, now)
            return self._record(device, numbered.boot, arguments, now, _single)
        phase: Phase = "start" if payload.duration is None and payload.completion_percentage is None else "end"
        return self._record(device, "", _arguments(payload, _digest(payload, phase, at), phase, at, now), now, _single)

    def impressions(self, device: Device, payload: Impressions, now: int) -> Outcome:
        """Plays of one boot, in one write. Without any it only asks what is in."""
        arguments: list[Argument] = []
        for play in payload.plays:
            arguments += _arguments(play, play.seq, play.phase, milliseconds(play.timestamp), now)
        return self._record(device, payload.boot, arguments, now, _batch)

    def _record(
        self, device: Device, boot: str, plays: list[Argument], now: int, answer: Callable[[list[Any]], bytes]
    ) -> Outcome:
        partitions = self.partitions
        if not partitions:
            return Outcome(refusal=STORE_UNAVAILABLE)
        device_id = device.id.encode()
        # A batch has room in any case: a stream shorter than that could never take one.
        room = max(MAX_PLAYS, self._settings.max_entries // partitions)
        stream = stream_key(partition(device_id, partitions))
        keys = (seen_key(device_id, partitions), stream, legacy_key(device_id, partitions))
        head = (now, now // DAY_MS, room, device_id, device.organization_id, boot)
        return Outcome(write=Write("play", keys, (*head, *plays), lambda reply: _settle(device, reply, answer)))


def _arguments(play: Play, number: int | bytes, phase: Phase, at: int | None, now: int) -> list[Argument]:
    """A play as the script takes it."""
    today = now // DAY_MS
    day = today if at is None else at // DAY_MS
    return [
        number,
        1 if phase == "start" else 2,
        # A clock that is far off does not make a day of its own.
        day if today - KEEP_DAYS <= day <= today + 1 else today,
        "" if at is None else at,
        play.content_id,
        play.playlist_id or "",
        _decimal(play.duration),
        _decimal(play.completion_percentage),
    ]


def _digest(play: Play, phase: Phase, at: int | None) -> bytes:
    """What tells a play without a number from others of its device; of one without a time, nothing does."""
    if at is None:
        return secrets.token_bytes(8)
    # With the phase: a player may give the time of the start in both of its impressions.
    return hashlib.blake2b(f"{at} {phase} {play.content_id}".encode(), digest_size=8).digest()


def _decimal(value: float | None) -> str:
    return "" if value is None else repr(value).removesuffix(".0")


def _settle(device: Device, reply: list[Any], answer: Callable[[list[Any]], bytes]) -> Outcome:
    """What the script says, as the ack and what is counted."""
    if not reply[0]:
        return Outcome(refusal=STORE_FULL, tallies=(_limit("plays_entries", 1),))
    _, _, _, duplicates, plays, missing, holes_lost, boots_lost, dropped, _ = reply
    if missing >= 0:
        device.missing = missing
    counts = []
    if plays:
        counts.append(("content_impressions_total", plays))
    if duplicates:
        counts.append(("content_impressions_duplicate_total", duplicates))
    limits = (("plays_holes", holes_lost), ("plays_boots", boots_lost), ("plays_entries", dropped))
    return Outcome(
        reply=answer(reply),
        counts=tuple(counts),
        tallies=tuple(_limit(name, times) for name, times in limits if times) if any(reply[6:9]) else (),
    )


def _limit(name: str, times: int) -> tuple[str, tuple[str, ...], int]:
    return "limits_exceeded_total", (name,), times


def _single(reply: list[Any]) -> bytes:
    duplicate = b"true" if reply[3] else b"false"
    watermark = b',"watermark":%d' % reply[1] if reply[1] >= 0 else b""
    return b'{"duplicate":%b%b}' % (duplicate, watermark)


def _batch(reply: list[Any]) -> bytes:
    return b'{"watermark":%d,"accepted":%d,"duplicates":%d,"missing":[%b]}' % (*reply[1:4], reply[9])


# For those who read


def describe(seen: Mapping[bytes, bytes], now: int) -> dict[str, Any]:
    """The hash `seen` of a device for people: boots, the latest first, and plays per day."""
    boots = [_describe_boot(name[2:].decode(), value) for name, value in seen.items() if name.startswith(b"b:")]
    kept = [boot for boot in boots if now - boot["lastPlay"] < KEEP_DAYS * DAY_MS]
    days = sorted((int(name[2:]), int(count)) for name, count in seen.items() if name.startswith(b"d:"))
    return {
        "boots": sorted(kept, key=lambda boot: boot["lastPlay"], reverse=True),
        "days": {(EPOCH + timedelta(days=day)).date().isoformat(): count for day, count in days},
    }


def _describe_boot(boot: str, value: bytes) -> dict[str, Any]:
    last, lost, top, runs = value.split(b" ", 3)
    high, holes = int(top), []
    for code, length in _RUN.findall(runs):
        low = high - int(length)
        if code == b"0":
            holes.append([low + 1, high])
        high = low
    holes.reverse()
    return {
        "boot": boot,
        "watermark": holes[0][0] - 1 if holes else int(top),
        "newest": int(top),
        "missing": sum(high - low + 1 for low, high in holes),
        "holes": holes,
        "lost": int(lost),
        "lastPlay": int(last),
    }
