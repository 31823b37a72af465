"""The partitions of the plays: how many Redis has, the scripts that write to them, what one device has in."""

import asyncio
import time
from typing import Any, Final

from vizora_rt import config
from vizora_rt.app import content_errors, events, play_script, plays
from vizora_rt.app.plays import PlayRecorder
from vizora_rt.net.redis.client import CONNECTION_LOST, RedisClient
from vizora_rt.net.streams.gauges import BACKLOG, MISSING
from vizora_rt.telemetry import logs
from vizora_rt.wire.resp import ReplyError, pack

SCHEMA: Final = b"vz:schema"
SCHEMA_VERSION: Final = 1
AGAIN_SECONDS: Final = 1.0

log = logs.logger("plays")


class Partitions:
    """Registers the scripts, and asks Redis how many partitions it has: the first service to ask decides."""

    def __init__(self, settings: config.PlaySettings, recorder: PlayRecorder, store: RedisClient) -> None:
        self._wanted = settings.partitions
        self._recorder = recorder
        self._store = store
        scripts = (
            ("play", play_script.SCRIPT),
            ("content_error", content_errors.SCRIPT),
            ("event", events.SCRIPT),
            ("backlog", BACKLOG),
            ("missing", MISSING),
        )
        for name, source in scripts:
            store.script(name, source)
        store.on_up.append(self._ask)

    def _ask(self) -> None:
        self._store.submit("other", pack("HSETNX", SCHEMA, "version", SCHEMA_VERSION))
        self._store.submit("other", pack("HSETNX", SCHEMA, "partitions", self._wanted))
        self._store.submit("other", pack("HGET", SCHEMA, "partitions"), self._on_partitions)

    def _on_partitions(self, reply: object) -> None:
        if isinstance(reply, bytes):
            fixed = int(reply)
            if fixed not in (self._recorder.partitions, self._wanted):
                log.warning("plays.partitions was fixed before", fixed=fixed, configured=self._wanted)
            self._recorder.partitions = fixed
        elif reply is not CONNECTION_LOST:
            # It is up and refuses: full, say. Plays wait meanwhile.
            asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._ask)


async def plays_of(store: RedisClient, device_id: str, partitions: int) -> dict[str, Any] | None:
    """What GET /devices/{id}/plays answers; None when Redis cannot be asked."""
    if not partitions:
        return None
    reply = await store.request("other", pack("HGETALL", plays.seen_key(device_id.encode(), partitions)))
    if isinstance(reply, ReplyError) or not isinstance(reply, list):
        return None
    seen = dict(zip(reply[::2], reply[1::2], strict=True))
    return {"deviceId": device_id, **plays.describe(seen, time.time_ns() // 1_000_000)}
