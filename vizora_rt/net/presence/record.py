"""What Redis knows of a device: commands that ask for it, and what their replies mean."""

from collections.abc import Iterable
from typing import Any, Final

from vizora_rt.app import plays
from vizora_rt.app.commands import key
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

PAGE: Final = 100
MOST_A_PAGE: Final = 500

Replies = list[Any]

ERASED: Final = ("status", "owner", "ledger", "playlist", "errors", "refreshed")
"""All but the revocation: who is locked out stays so, whatever is known of it."""


def show(device_id: str) -> list[bytes]:
    """Ask for all of one device."""
    return [
        resp.pack("GET", key(device_id, "status")),
        resp.pack("GET", key(device_id, "revoked")),
        resp.pack("LLEN", key(device_id, "ledger")),
        resp.pack("HMGET", key(device_id, "playlist"), "version", "waiting"),
        resp.pack("LRANGE", key(device_id, "errors"), 0, 9),
    ]


def shown(device_id: str, replies: Replies) -> dict[str, Any] | None:
    """One device, or None when nothing is known of it."""
    status, revoked, waiting, playlist, found_errors = replies
    if status is None and revoked is None and not waiting and playlist[0] is None:
        return None
    described = {"deviceId": device_id, **(_object(status) or {"status": "unknown"})}
    if revoked is not None:
        described |= {"status": "revoked", "revoked": _object(revoked) or {}}
    described["commandsWaiting"] = waiting
    if playlist[0] is not None:
        described["playlist"] = {"version": playlist[0].decode(), "waiting": playlist[1] == b"1"}
    described["errors"] = [error for each in found_errors if (error := _object(each)) is not None]
    return described


def page(organization_id: str, offset: int, limit: int) -> list[bytes]:
    """Ask for ids of an organisation's devices, the last seen first."""
    members = f"vz:{{o:{organization_id}}}:devices"
    return [
        resp.pack("ZCARD", members),
        resp.pack("ZREVRANGE", members, offset, offset + limit - 1, "WITHSCORES"),
    ]


def statuses(rows: Replies) -> list[bytes]:
    """Ask for the status of each device of a page."""
    return [resp.pack("GET", key(device_id.decode(), "status")) for device_id in rows[::2]]


def paged(organization_id: str, total: int, rows: Replies, replies: Replies, offset: int) -> dict[str, Any]:
    """A page of devices; `next` is the offset of the one after it. It is shorter by those that are another's by now.
    `unavailable`, where there are any, are those on a shard that did not answer."""
    found, unavailable = [], []
    for device_id, seen, status in zip(rows[::2], rows[1::2], replies, strict=True):
        if isinstance(status, ReplyError):
            unavailable.append(device_id.decode())
        if belongs(status, organization_id):
            described = _object(status) or {"status": "unknown"}
            found.append({"deviceId": device_id.decode(), "lastSeen": int(float(seen)), **described})
    end = offset + len(rows) // 2
    more = {"unavailable": unavailable} if unavailable else {}
    return {"devices": found, "total": total, "next": end if end < total and rows else None, **more}


def belongs(status: bytes | ReplyError | None, organization_id: str) -> bool:
    """Whether a device that an organisation lists is still its own: it may have come back with another's token."""
    return (_object(status) or {}).get("organizationId") in (None, organization_id)


def organization_of(status: bytes | None) -> str:
    """The organisation that a status names; "" when it names none."""
    found = (_object(status) or {}).get("organizationId")
    return found if isinstance(found, str) else ""


def unlist(device_id: str, organizations: Iterable[bytes | str]) -> list[bytes]:
    """Take a device off the lists of these organisations. The replies say on how many it was."""
    names = (name.decode() if isinstance(name, bytes) else name for name in organizations)
    return [resp.pack("ZREM", f"vz:{{o:{name}}}:devices", device_id) for name in names]


def erase_plays(device_id: str, partitions: int) -> list[bytes]:
    """Delete what plays of a device are known by. The streams keep the plays themselves."""
    name = device_id.encode()
    return (
        [resp.pack("DEL", plays.seen_key(name, partitions), plays.legacy_key(name, partitions))] if partitions else []
    )


def erase_record(device_id: str) -> bytes:
    """Delete the keys of a device. The last step of erasing it: they say in which organisation's list it stands, and so
    all of it can be repeated when a shard was away."""
    return resp.pack("DEL", *(key(device_id, name) for name in ERASED))


def revoked_key(device_id: str, jti: str | None) -> str:
    """Where a revocation stands: of one token, which other services look up by its id, else of the device."""
    return f"revoked_token:{jti}" if jti else key(device_id, "revoked")


def revocation(reason: str, now: int) -> bytes:
    """The value of the key that locks a device out."""
    return messages.dumps({"reason": reason, "at": now})


def connected(status: bytes | None) -> bool:
    """Whether a status is that of a device with a connection."""
    return ((_object(status) or {}).get("status")) in ("online", "stale", "suspended")


def _object(value: bytes | ReplyError | None) -> dict[str, Any] | None:
    try:
        found = messages.loads(value) if isinstance(value, bytes) else None
    except messages.JSONError:
        return None
    return found if isinstance(found, dict) else None
