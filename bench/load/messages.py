"""What devices say: heartbeats as a playing screen sends them, plays, content errors."""

import os
import random
import time
from collections.abc import Callable
from typing import Any, Final

from vizora_rt.wire.frames import TEXT, encode_masked
from vizora_rt.wire.messages import dumps, encode

HEARTBEATS: Final = 256

Encode = Callable[[str, bytes, int | None], bytes]


def vitals(number: int) -> dict[str, Any]:
    """The data of a heartbeat, no two alike."""
    return {
        "metrics": {
            "cpuUsage": round(random.uniform(0, 100), 2),
            "memoryUsage": round(random.uniform(0, 100), 2),
            "diskUsage": 33,
            "temperature": 48.5,
            "networkLatency": random.randrange(200),
        },
        "currentContent": {
            "contentId": f"content-{random.randrange(10_000)}",
            "playlistId": "playlist-1",
            "playbackPosition": round(random.uniform(0, 30), 1),
            "status": "playing",
        },
        "uptime": 86_400 + number,
        "appVersion": "1.4.2",
    }


def heartbeats(count: int = HEARTBEATS, encode: Encode = encode) -> list[bytes]:
    """Frames of heartbeats, with ids from 1 on."""
    return [frame(encode("heartbeat", dumps(vitals(number)), number + 1)) for number in range(count)]


def frame(text: bytes) -> bytes:
    return encode_masked(TEXT, text, os.urandom(4))


def play(seq: int, phase: str) -> bytes:
    """An entry of `content:impressions`."""
    entry: dict[str, Any] = {"contentId": "content-1", "playlistId": "playlist-1"}
    if phase == "end":
        entry |= {"duration": 20, "completionPercentage": 100}
    return dumps({**entry, "seq": seq, "phase": phase, "timestamp": time.time_ns() // 1_000_000})


CONTENT_ERROR: Final = dumps({"contentId": "content-1", "errorType": "load_failed", "errorMessage": "HTTP 404"})
