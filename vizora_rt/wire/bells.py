"""The messages between workers, which Redis publishes: a schema for each. What does not fit one is not acted on.

Anybody who may publish in Redis can write to these channels. So a message is judged like a client's, before any code
uses a part of it. Fields that a schema does not name are let pass: a newer release may send them.
"""

from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from vizora_rt.wire.payloads import MAX_ID, Id

Event = Annotated[str, Meta(pattern=r"\A[A-Za-z:_-]{1,64}\Z")]
Count = Annotated[int, Meta(ge=0, le=MAX_ID)]
"""Milliseconds or microseconds since 1970: an event or an epoch."""


class Look(Struct):
    """Something waits in the ledgers of these devices."""

    look: list[Id]


class Done(Struct):
    """For the worker that waits for acks of the entry `done`: device, state and error of those that have ended."""

    done: str
    of: list[tuple[Id, str, str]]


class Revoked(Struct):
    """The device, or this one token of it, is no longer let in."""

    revoked: Id
    reason: str | None = None
    jti: str | None = None


class Kick(Struct):
    """End the device's connection."""

    kick: Id


class Erased(Struct):
    """The same, and forget the device."""

    erased: Id


class Superseded(Struct):
    """Another worker owns the device since `epoch`."""

    superseded: Id
    epoch: Count


class Tenant(Struct, rename={"organization_id": "organizationId"}):
    """The organisation was suspended or resumed: its key says which."""

    tenant: str
    organization_id: Id
    reason: str | None = None


class Notice(Struct, rename={"organization_id": "organizationId", "user_id": "userId"}):
    """The event `notice` for the dashboards of the organisation, or for those of one user."""

    notice: Event
    organization_id: Id
    data: Any
    user_id: Id | None = None


class Status(Struct, rename={"device_id": "deviceId", "last_seen": "lastSeen"}):
    """A device has changed: the data of the event `device:status`."""

    device_id: Id
    status: Event
    since: Count
    last_seen: Count
    reason: str
    seq: Count
    timestamp: str


SCHEMAS: Final[dict[str, type[Struct]]] = {
    "look": Look,
    "done": Done,
    "revoked": Revoked,
    "kick": Kick,
    "erased": Erased,
    "superseded": Superseded,
    "tenant": Tenant,
    "notice": Notice,
    "status": Status,
}
"""By the field that names the message; of `status`, whose field holds it all, that is the schema of the field."""


def read(name: str, data: object) -> Any:
    """`data`, as read from JSON, as the message `name`; None when it does not fit."""
    try:
        return msgspec.convert(data, SCHEMAS[name])
    except msgspec.ValidationError:
        return None
