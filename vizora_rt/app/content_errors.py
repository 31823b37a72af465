"""What a device could not show: the last ten kept with the device, all told to the services behind."""

import re
from typing import Any, Final

from vizora_rt import config
from vizora_rt.app import events
from vizora_rt.app.handlers import Event, Outcome, Write
from vizora_rt.app.state import Device
from vizora_rt.wire import messages, times
from vizora_rt.wire.payloads import ContentError

TYPES: Final = ("load_failed", "playback_error", "network_error", "decode_error", "timeout")
UNKNOWN: Final = "unknown"

MAX_CONTEXT: Final = 4096
"""Bytes of JSON."""

SCRIPT: Final = """
-- KEYS errors; ARGV error: the last ten, for an hour
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, 9)
return redis.call('EXPIRE', KEYS[1], 3600)
"""

_TOKEN = re.compile(r"(token(?:=|%3d))[^&\s\"'\\<>]+", re.IGNORECASE)
"""In the URL of a content that could not be loaded. The value ends where a URL's would, or the JSON around it."""


class ContentErrors:
    """The event content:error, for one worker."""

    __slots__ = ("_room", "table")

    def __init__(self, settings: config.PlaySettings) -> None:
        self._room = settings.max_events
        self.table = {"content:error": Event(ContentError, self.error)}

    def error(self, device: Device, payload: ContentError, now: int) -> Outcome:
        """Kept with the device, then told; in this order, for what is told twice is taken for two."""
        kind = payload.error_type if payload.error_type in TYPES else UNKNOWN
        context = None if payload.context is None else messages.bounded(payload.context, MAX_CONTEXT)
        at = times.milliseconds(payload.timestamp)
        fields: dict[str, Any] = {
            "contentId": payload.content_id,
            "playlistId": payload.playlist_id,
            "errorType": kind,
            "errorMessage": payload.error_message,
            "errorCode": payload.error_code,
            "timestamp": at,
            "serverTime": now,
        }
        text = messages.dumps({name: value for name, value in fields.items() if value is not None})
        if context is not None:
            text = b'%b,"context":%b}' % (text[:-1], context)
        text = redact(text.decode()).encode()
        ignored = (payload.context is not None and context is None) + (payload.timestamp is not None and at is None)
        dropped = ("ws_fields_ignored_total", ("content:error", "wrong_type"), ignored)
        about = {"content_id": payload.content_id, "error_code": payload.error_code, "said": payload.error_message}
        tallies = (("content_errors_total", (kind,), 1), dropped)
        done = Outcome(tallies=tallies, issue=("content error", kind, dict(about)))

        def tell(_: object) -> Outcome:
            entry = events.entry("content:error", device.id, device.organization_id, now, text)
            return Outcome(write=Write("event", (events.STREAM,), (self._room, *entry), lambda _: done))

        return Outcome(write=Write("content_error", (f"vz:{{d:{device.id}}}:errors",), (text,), tell))


def redact(text: str) -> str:
    """`text` without the values of `token=`."""
    return _TOKEN.sub(r"\1***", text)
