"""The stream vz:events: what happened to devices, for the services behind. One shape for all who write to it.

Entries have `type`, `deviceId`, `organizationId`, `at` (ms) and `json`, an object. It is bounded; the oldest go.
"""

from typing import Final

STREAM: Final = b"vz:events"

SCRIPT: Final = """
-- KEYS stream; ARGV room, then names and values
return redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', unpack(ARGV, 2))
"""
"""For those whose ack waits for it. Who does not wait submits an XADD of `entry`."""


def entry(kind: str, device_id: str, organization_id: str, at: int, data: bytes) -> tuple[bytes | str | int, ...]:
    """Names and values of an entry; `data` is JSON already."""
    return ("type", kind, "deviceId", device_id, "organizationId", organization_id, "at", at, "json", data)
