"""What Redis knows of a device: commands that ask for it, and what to make of their replies.

For the control API, which asks through the worker's store, and for `vizora-rt device`, which asks Redis itself and so
works while the service is down.
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from vizora_rt.app import plays
from vizora_rt.app.commands import key
from vizora_rt.errors import UnavailableError
from vizora_rt.net import keyspace, link
from vizora_rt.net.direct import Direct
from vizora_rt.net.ledger import place_of
from vizora_rt.net.statuses import ORGANIZATIONS
from vizora_rt.net.topology import Where
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

SHELL_SECONDS: Final = 5.0

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


class Shell:
    """The same without a worker. Each method raises UnavailableError with one line when Redis cannot be asked."""

    def __init__(self, url: str) -> None:
        self._where = Where.parse(url)

    def members(self, organization_id: str, offset: int, limit: int) -> dict[str, Any]:
        total, rows = self._ask(page(organization_id, offset, limit))
        return paged(organization_id, total, rows, self._ask_in_part(statuses(rows)), offset)

    def show(self, device_id: str) -> dict[str, Any] | None:
        return shown(device_id, self._ask(show(device_id)))

    def kick(self, device_id: str) -> bool:
        """End the device's connection; it may come back. Whether a worker heard it."""
        return self._ring(device_id, {"kick": device_id})

    def revoke(self, device_id: str, reason: str, now: int, jti: str = "") -> bool:
        """Lock the device out, or with `jti` one token of it. Whether a worker heard it, which has the device's
        connection or had it last."""
        self._ask([resp.pack("SET", revoked_key(device_id, jti), revocation(reason, now))])
        return self._ring(device_id, {"revoked": device_id, "reason": reason, "jti": jti or None})

    def restore(self, device_id: str, jti: str = "") -> bool:
        """Undo that. Whether the device, or this token, was locked out."""
        return bool(self._ask([resp.pack("DEL", revoked_key(device_id, jti))])[0])

    def erase(self, device_id: str) -> bool:
        """Delete all that is known of the device. Whether there was anything."""
        self._ring(device_id, {"erased": device_id})
        (partitions,) = self._ask([resp.pack("HGET", "vz:schema", "partitions")])
        organization_id = (self.show(device_id) or {}).get("organizationId")
        found = self._unlist(device_id, organization_id)
        found += sum(self._ask(erase_plays(device_id, int(partitions or 0))))
        return bool(found + self._ask([erase_record(device_id)])[0])

    def _unlist(self, device_id: str, organization_id: str | None) -> int:
        """Take the device off its organisation's list, or off every list when nobody knows whose it is."""
        if organization_id:
            return int(self._ask(unlist(device_id, [organization_id]))[0])
        found, cursor = 0, b"0"
        while True:
            ((cursor, names),) = self._ask([resp.pack("SSCAN", ORGANIZATIONS, cursor, "COUNT", MOST_A_PAGE)])
            found += sum(self._ask(unlist(device_id, names)))
            if cursor == b"0":
                return found

    def _ring(self, device_id: str, bell: dict[str, Any]) -> bool:
        (owner,) = self._ask([resp.pack("GET", key(device_id, "owner"))])
        place = place_of(owner)
        if place is None:
            return False
        cluster = self._where.kind == "cluster"
        word, text = "SPUBLISH" if cluster else "PUBLISH", messages.dumps(bell)
        channels = keyspace.node_channels(self._where.access.database, *place, cluster)
        *others, last = [[resp.pack(word, channel, text)] for channel in channels]
        for command in others:
            # In a cluster, over the first channel whose shard answers and on which the worker hears.
            with suppress(UnavailableError):
                if self._ask(command)[0]:
                    return True
        return bool(self._ask(last)[0])

    def _ask(self, commands: list[bytes]) -> Replies:
        found = self._ask_in_part(commands)
        error = next((reply for reply in found if isinstance(reply, ReplyError)), None)
        if error is not None:
            raise UnavailableError(f"Redis at {self._where} cannot be used: {error.code} {error.message}")
        return found

    def _ask_in_part(self, commands: list[bytes]) -> Replies:
        """The same, but errors are in the list, also those of a shard that is away. Not all are."""
        if not commands:
            return []
        line: Direct | None = None
        try:
            line = Direct(self._where, "vizora-device", SHELL_SECONDS)
            return line.ask(commands, in_part=True)
        except OSError as error:
            raise UnavailableError(f"Redis at {self._where} cannot be asked: {link.explain(error)}") from None
        finally:
            if line is not None:
                line.close()


def connected(status: bytes | None) -> bool:
    """Whether a status is that of a device with a connection."""
    return ((_object(status) or {}).get("status")) in ("online", "stale", "suspended")


def _object(value: bytes | ReplyError | None) -> dict[str, Any] | None:
    try:
        found = messages.loads(value) if isinstance(value, bytes) else None
    except messages.JSONError:
        return None
    return found if isinstance(found, dict) else None
