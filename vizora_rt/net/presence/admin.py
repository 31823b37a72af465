"""`vizora-rt device`: show, kick, revoke and erase a device without a worker, also while the service is down."""

from contextlib import suppress
from typing import Any, Final

from vizora_rt.app.commands import key
from vizora_rt.errors import UnavailableError
from vizora_rt.net.presence.ownership import parse_owner
from vizora_rt.net.presence.record import (
    MOST_A_PAGE,
    Replies,
    erase_plays,
    erase_record,
    page,
    paged,
    revocation,
    revoked_key,
    show,
    shown,
    statuses,
    unlist,
)
from vizora_rt.net.presence.status_writer import ORGANIZATIONS
from vizora_rt.net.redis import address, keys
from vizora_rt.net.redis.blocking_client import BlockingClient
from vizora_rt.net.redis.topology import RedisTarget
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

SHELL_SECONDS: Final = 5.0


class Shell:
    """The same without a worker. Each method raises UnavailableError with one line when Redis cannot be asked."""

    def __init__(self, url: str) -> None:
        self._target = RedisTarget.parse(url)

    def members(self, organization_id: str, offset: int, limit: int) -> dict[str, Any]:
        total, rows = self._ask(page(organization_id, offset, limit))
        return paged(organization_id, total, rows, self._ask_in_part(statuses(rows)), offset)

    def show(self, device_id: str) -> dict[str, Any] | None:
        return shown(device_id, self._ask(show(device_id)))

    def kick(self, device_id: str) -> bool:
        """End the device's connection; it may come back. Whether a worker heard it."""
        return self._send_to_owner(device_id, {"kick": device_id})

    def revoke(self, device_id: str, reason: str, now: int, jti: str = "") -> bool:
        """Lock the device out, or with `jti` one token of it. Whether a worker heard it, which has the device's
        connection or had it last."""
        self._ask([resp.pack("SET", revoked_key(device_id, jti), revocation(reason, now))])
        return self._send_to_owner(device_id, {"revoked": device_id, "reason": reason, "jti": jti or None})

    def restore(self, device_id: str, jti: str = "") -> bool:
        """Undo that. Whether the device, or this token, was locked out."""
        return bool(self._ask([resp.pack("DEL", revoked_key(device_id, jti))])[0])

    def erase(self, device_id: str) -> bool:
        """Delete all that is known of the device. Whether there was anything."""
        self._send_to_owner(device_id, {"erased": device_id})
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

    def _send_to_owner(self, device_id: str, message: dict[str, Any]) -> bool:
        (owner,) = self._ask([resp.pack("GET", key(device_id, "owner"))])
        place = parse_owner(owner)
        if place is None:
            return False
        cluster = self._target.kind == "cluster"
        word, text = "SPUBLISH" if cluster else "PUBLISH", messages.dumps(message)
        channels = keys.node_channels(self._target.credentials.database, *place, cluster)
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
            raise UnavailableError(f"Redis at {self._target} cannot be used: {error.code} {error.message}")
        return found

    def _ask_in_part(self, commands: list[bytes]) -> Replies:
        """The same, but errors are in the list, also those of a shard that is away. Not all are."""
        if not commands:
            return []
        line: BlockingClient | None = None
        try:
            line = BlockingClient(self._target, "vizora-device", SHELL_SECONDS)
            return line.ask(commands, in_part=True)
        except OSError as error:
            raise UnavailableError(f"Redis at {self._target} cannot be asked: {address.explain(error)}") from None
        finally:
            if line is not None:
                line.close()
