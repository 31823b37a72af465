"""The calls of the control API, each a few lines between a checked body and the ledger, a key or a doorbell.

Past 300 lines because docs/protocol.md has nineteen routes.
"""

import uuid
from collections.abc import Sequence
from functools import partial
from hashlib import sha256
from typing import Any, Final

from vizora_rt import errors
from vizora_rt.app import commands, screenshots
from vizora_rt.app.auth import valid_id
from vizora_rt.app.commands import DEFAULT_TTL, MAX_PAYLOAD, PLAYLIST, TOKEN, TOKEN_TTL, QueuedCommand, key
from vizora_rt.net.api.control import Call, Control, RefusedError, now_ms
from vizora_rt.net.commands.queue import command_key
from vizora_rt.net.commands.requests import DeliveryResult
from vizora_rt.net.gateway.gateway import Gateway
from vizora_rt.net.presence import record as device_record
from vizora_rt.net.presence.ownership import parse_owner
from vizora_rt.net.presence.status_writer import ORGANIZATIONS
from vizora_rt.net.redis import keys
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.server.responses import Response
from vizora_rt.net.streams.partitions import plays_of
from vizora_rt.wire import bodies, messages, resp
from vizora_rt.wire.messages import iso

MOST_DEVICES: Final = 10_000
SHOWN_FAILURES: Final = 100
ID_TRIES: Final = 64
"""Ids that are thought up until one's shard answers: with a tenth of a cluster up, one in 800 calls finds none."""


class Routes:
    """Registers the calls of one worker, and answers them."""

    def __init__(self, control: Control, gateway: Gateway, store: RedisClient) -> None:
        self._gateway = gateway
        self._store = store
        self._ask = control.redis.ask
        self._ask_in_part = control.redis.ask_in_part
        self._publish_to = control.redis.publish
        self._channel = partial(keys.organization_channel, store.database)
        add = control.add
        add("POST", "/push/playlist", self.push_playlist, bodies.PushPlaylist)
        add("POST", "/push/content", self.push_content, bodies.PushContent)
        add("POST", "/commands/broadcast", self.broadcast, bodies.Broadcast)
        add("POST", "/internal/command", self.command, bodies.DeviceCommand)
        add("GET", "/commands/{commandId}", self.command_states)
        add("POST", "/notifications/broadcast", self.notify, bodies.Notification)
        add("POST", "/internal/device-revoked", self.revoke, bodies.Revocation)
        add("DELETE", "/internal/device-revoked", self.restore, bodies.Revocation, ("deviceId", "jti", "reason"))
        add("POST", "/internal/tenant-entitlement", self.entitle, bodies.Entitlement)
        add("POST", "/internal/token-refresh", self.refresh_token, bodies.TokenRefresh)
        add("GET", "/devices/{id}", self.device)
        add("DELETE", "/devices/{id}", self.erase)
        add("GET", "/organizations/{id}/devices", self.devices, query=("limit", "offset"))
        add("GET", "/devices/{id}/plays", self.plays)
        add("GET", "/screenshots/{requestId}", self.screenshot)

    # Commands and playlists

    async def push_playlist(self, call: Call) -> Response:
        body: bodies.PushPlaylist = call.body
        now = now_ms()
        version = body.version or iso(now)
        data = written("playlist", commands.playlist_body, body.playlist, version, "push", iso(now))
        entry = QueuedCommand(
            call.derived_id or uuid.uuid4().hex, PLAYLIST, 0, now, self._gateway.requests.reply_to, data
        )
        call.audit = {"device_id": body.device_id, "version": version}
        result = await self._gateway.requests.playlist(body.device_id, entry, version)
        return outcome(result, body.device_id, version=version)

    async def push_content(self, call: Call) -> Response:
        body: bodies.PushContent = call.body
        payload = {"content": body.content, "duration": body.duration}
        command = bodies.Command("push_content", body.command_id, payload)
        return await self._one(call, body.device_id, command, "content")

    async def command(self, call: Call) -> Response:
        body: bodies.DeviceCommand = call.body
        return await self._one(call, body.device_id, body.command, "command.payload")

    async def broadcast(self, call: Call) -> Response:
        body: bodies.Broadcast = call.body
        if (body.device_ids is None) is (body.organization_id is None):
            raise RefusedError(errors.INVALID_BODY, details={"deviceIds": "expected this or organizationId"})
        targets = list(dict.fromkeys(body.device_ids or ())) or await self._members(body.organization_id or "")
        if body.command.type == "screenshot" and len(targets) > 1:
            why = "a picture is asked of one device: POST /internal/command"
            raise RefusedError(errors.INVALID_BODY, details={"command.type": why})
        entry, result = await self._issue(call, targets, body.command, "command.payload")
        call.audit |= {"organization_id": body.organization_id, "devices": len(targets)}
        failed = len(result.failures)
        if len(result.unavailable) == len(targets):
            raise RefusedError(errors.STORE_UNAVAILABLE)
        answer: dict[str, Any] = {
            "success": not failed,
            "devicesOnline": result.online,
            "delivered": result.delivered,
            "queued": result.queued,
            "failed": failed,
            "commandIds": [entry.id],
            "message": f"{result.delivered} of {len(targets)} devices acked",
        }
        if failed:
            answer["failures"] = dict(list(result.failures.items())[:SHOWN_FAILURES])
        if result.unavailable:
            answer["unavailable"] = result.unavailable
        return Response(202 if result.queued else 200, messages.dumps(answer), waited=result.waited)

    async def _one(self, call: Call, device_id: str, command: bodies.Command, where: str) -> Response:
        entry, result = await self._issue(call, [device_id], command, where)
        call.audit |= {"device_id": device_id}
        return outcome(result, device_id, commandId=entry.id)

    async def _issue(
        self, call: Call, targets: Sequence[str], command: bodies.Command, where: str
    ) -> tuple[QueuedCommand, DeliveryResult]:
        """Put a command before devices. One with an id of the caller's, or of a repeated call, is put once."""
        now = now_ms()
        command_id = command.command_id or call.derived_id
        known, command_id = bool(command_id), command_id or self._new_id()
        payload, expires = command.payload, now + (command.ttl or DEFAULT_TTL) * 1000
        if command.type == "screenshot":
            payload = await self._expect_screenshot(targets[0], payload or {}, command_id, expires - now)
        fingerprint = sha256(written(where, messages.dumps, [command.type, payload])).hexdigest()
        record = await self._record(command_id, fingerprint) if known else {}
        before = {name[2:]: value.split(" ")[0] for name, value in record.items() if name.startswith("d:")}
        created = now
        if record:
            # One command has one life, however often it is sent.
            created, expires = int(record["created"]), int(record["expires"])
        if expires <= now:
            ended = {each: state for each, state in before.items() if state not in ("queued", "sent")}
            before = dict.fromkeys(targets, "expired") | ended
        data = written(where, commands.command_body, command_id, command.type, payload, iso(created), iso(expires))
        if len(data) > MAX_PAYLOAD:
            raise RefusedError(errors.INVALID_BODY, details={where: f"expected at most {MAX_PAYLOAD} bytes"})
        reply_to = self._gateway.requests.reply_to
        entry = QueuedCommand(command_id, command.type, expires, now, reply_to, data)
        call.audit = {"command": command.type, "command_id": command_id}
        return entry, await self._gateway.requests.command(targets, entry, known, before, fingerprint)

    def _new_id(self) -> str:
        """The id of a command that its caller gave none. Of a cluster, one whose record is on a shard that answers."""
        ids = (uuid.uuid4().hex for _ in range(ID_TRIES))
        return next((each for each in ids if self._store.is_available(command_key(each).encode())), uuid.uuid4().hex)

    async def _record(self, command_id: str, fingerprint: str) -> dict[str, str]:
        """What is known of a command with this id."""
        (reply,) = await self._ask(resp.pack("HGETALL", command_key(command_id)))
        record = fields(reply)
        if record and record.get("fingerprint") != fingerprint:
            raise RefusedError(errors.COMMAND_EXISTS, commandId=command_id)
        return record

    async def _members(self, organization_id: str) -> list[str]:
        _, rows = await self._ask(*device_record.page(organization_id, 0, MOST_DEVICES + 1))
        members = [
            member.decode()
            for member, status in zip(rows[::2], await self._ask_in_part(*device_record.statuses(rows)), strict=True)
            if device_record.belongs(status, organization_id)
        ]
        if not members:
            raise RefusedError(errors.NOT_FOUND, details={"organizationId": "has no devices"})
        if len(members) > MOST_DEVICES:
            why = f"has more than {MOST_DEVICES} devices: name them in deviceIds"
            raise RefusedError(errors.INVALID_BODY, details={"organizationId": why})
        return members

    async def _expect_screenshot(
        self, device_id: str, payload: dict[str, Any], command_id: str, life: int
    ) -> dict[str, Any]:
        """A picture is taken from the device that was asked for it, under the id that it was asked with."""
        request_id = payload.setdefault("requestId", command_id)
        if not valid_id(request_id):
            raise RefusedError(errors.INVALID_BODY, details={"command.payload.requestId": "expected an id"})
        name = screenshots.key(request_id)
        (old,) = await self._ask(resp.pack("HGET", name, "device"))
        if old is not None and old != device_id.encode():
            details = {"command.payload.requestId": "is another device's"}
            raise RefusedError(errors.INVALID_BODY, details=details)
        seconds = life // 1000 + screenshots.KEPT_SECONDS
        await self._ask(resp.pack("HSET", name, "device", device_id), resp.pack("EXPIRE", name, seconds))
        return payload

    async def command_states(self, call: Call) -> Response:
        (reply,) = await self._ask(resp.pack("HGETALL", command_key(call.argument)))
        record = fields(reply)
        if not record:
            raise RefusedError(errors.NOT_FOUND)
        expires, now = int(record["expires"]), now_ms()
        found: dict[str, dict[str, Any]] = {}
        for name, value in record.items():
            if name.startswith("d:"):
                state, at, error = (*value.split(" ", 2), "", "")[:3]
                if state in ("queued", "sent") and expires <= now:
                    state, at = "expired", str(expires)
                found[name[2:]] = {"state": state, "at": iso(int(at)), **({"error": error} if error else {})}
        answer = {
            "commandId": call.argument,
            "type": record["type"],
            "timestamp": iso(int(record["created"])),
            "expiresAt": iso(expires),
            "devices": found,
        }
        return Response(200, messages.dumps(answer))

    async def refresh_token(self, call: Call) -> Response:
        body: bodies.TokenRefresh = call.body
        now = now_ms()
        data = messages.dumps({"token": body.token})
        # A call that is repeated has the same id: the same token waits once.
        entry_id = call.derived_id or sha256(f"{body.device_id} {body.token}".encode()).hexdigest()[:32]
        entry = QueuedCommand(entry_id, TOKEN, now + TOKEN_TTL * 1000, now, self._gateway.requests.reply_to, data)
        call.audit = {"device_id": body.device_id}
        result = await self._gateway.requests.token(body.device_id, entry, True)
        return outcome(result, body.device_id)

    # Dashboards and organisations

    async def notify(self, call: Call) -> Response:
        body: bodies.Notification = call.body
        misspelt = bodies.variant("userId", body.notification)
        if misspelt is not None:
            raise RefusedError(errors.INVALID_BODY, details={f"notification.{misspelt}": "expected userId"})
        inner = body.notification.get("userId")
        user = inner if body.user_id is None else body.user_id
        if inner not in (None, user):
            raise RefusedError(errors.INVALID_BODY, details={"userId": "is not that of the notification"})
        if user is not None and not valid_id(user):
            raise RefusedError(errors.INVALID_BODY, details={"notification.userId": "expected an id"})
        call.audit = {"organization_id": body.organization_id, "user_id": user}
        message: dict[str, Any] = {
            "notice": "notification:new",
            "organizationId": body.organization_id,
            "userId": user,
            "data": body.notification,
        }
        receivers = await self._publish(body.organization_id, message, "notification")
        answer = {"success": True, "delivered": receivers > 0, "queued": False, "message": "sent to who is connected"}
        return Response(200, messages.dumps(answer))

    async def entitle(self, call: Call) -> Response:
        body: bodies.Entitlement = call.body
        call.audit = {"organization_id": body.organization_id, "state": body.state, "reason": body.reason}
        name = f"vz:{{o:{body.organization_id}}}:suspended"
        if body.state == "suspended":
            await self._ask(resp.pack("SET", name, device_record.revocation(body.reason, now_ms())))
        else:
            await self._ask(resp.pack("DEL", name))
        message: dict[str, Any] = {
            "tenant": body.state,
            "organizationId": body.organization_id,
            "reason": body.reason,
        }
        receivers = await self._publish(body.organization_id, message, "reason")
        answer = {"success": True, "delivered": receivers > 0, "queued": False, "message": body.state}
        return Response(200, messages.dumps(answer))

    async def _publish(self, organization_id: str, message: dict[str, Any], where: str) -> int:
        """Ring an organisation's doorbell on all nodes; how many workers heard it."""
        text = written(where, messages.dumps, message)
        return int(await self._publish_to(self._channel(organization_id), text))

    # Devices

    async def revoke(self, call: Call) -> Response:
        """With `jti` one token of a device, else the device. What is connected with it goes."""
        body: bodies.Revocation = call.body
        call.audit = {"device_id": body.device_id, "jti": body.jti, "reason": body.reason}
        value = device_record.revocation(body.reason, now_ms())
        await self._ask(resp.pack("SET", device_record.revoked_key(body.device_id, body.jti), value))
        control_message = {"revoked": body.device_id, "reason": body.reason, "jti": body.jti}
        delivered = await self._send_to_owner(body.device_id, control_message)
        message = "token revoked" if body.jti else "device revoked"
        answer = {"success": True, "delivered": delivered, "queued": False, "message": message}
        return Response(200, messages.dumps(answer))

    async def restore(self, call: Call) -> Response:
        """Undo a revocation, with `jti` that of one token. Clients may send no body with DELETE (RFC 9110 section
        9.3.5): a query will do."""
        body: bodies.Revocation = call.body
        call.audit = {"device_id": body.device_id, "jti": body.jti}
        (undone,) = await self._ask(resp.pack("DEL", device_record.revoked_key(body.device_id, body.jti)))
        message = "no longer revoked" if undone else "was not revoked"
        answer = {"success": True, "delivered": False, "queued": False, "message": message}
        return Response(200, messages.dumps(answer))

    async def _send_to_owner(self, device_id: str, message: dict[str, Any]) -> bool:
        """Ring whoever has the device, or had it last. Whether it is connected."""
        owner, status = await self._ask(
            resp.pack("GET", key(device_id, "owner")), resp.pack("GET", key(device_id, "status"))
        )
        place = parse_owner(owner)
        if place is not None:
            self._gateway.send_to_worker(*place, message)
        return place is not None and device_record.connected(status)

    async def device(self, call: Call) -> Response:
        described = device_record.shown(call.argument, await self._ask(*device_record.show(call.argument)))
        if described is None:
            raise RefusedError(errors.NOT_FOUND)
        return Response(200, messages.dumps(described))

    async def erase(self, call: Call) -> Response:
        """What lies on other shards goes first, the device's record last: see `devices.erase_record`."""
        device_id = call.argument
        call.audit = {"device_id": device_id}
        described = device_record.shown(device_id, await self._ask(*device_record.show(device_id)))
        delivered = await self._send_to_owner(device_id, {"erased": device_id})
        erased = await self._unlist(device_id, (described or {}).get("organizationId"))
        erased += sum(await self._ask(*device_record.erase_plays(device_id, self._gateway.plays.partitions)))
        erased += sum(await self._ask(device_record.erase_record(device_id)))
        if not erased:
            raise RefusedError(errors.NOT_FOUND)
        answer = {"success": True, "delivered": delivered, "queued": False, "message": "erased"}
        return Response(200, messages.dumps(answer))

    async def _unlist(self, device_id: str, organization_id: str | None) -> int:
        """Take a device off its organisation's list, or off every list when nobody knows whose it is: a device that was
        away for a day has no record any more, and is still listed."""
        if organization_id:
            return int(sum(await self._ask(*device_record.unlist(device_id, [organization_id]))))
        found: int = 0
        cursor = b"0"
        while True:
            ((cursor, names),) = await self._ask(
                resp.pack("SSCAN", ORGANIZATIONS, cursor, "COUNT", device_record.MOST_A_PAGE)
            )
            found += sum(await self._ask(*device_record.unlist(device_id, names)))
            if cursor == b"0":
                return found

    async def devices(self, call: Call) -> Response:
        offset = number(call, "offset", 0, 0, 1_000_000_000)
        limit = number(call, "limit", device_record.PAGE, 1, device_record.MOST_A_PAGE)
        total, rows = await self._ask(*device_record.page(call.argument, offset, limit))
        if not total:
            raise RefusedError(errors.NOT_FOUND)
        replies = await self._ask_in_part(*device_record.statuses(rows))
        return Response(200, messages.dumps(device_record.paged(call.argument, total, rows, replies, offset)))

    async def plays(self, call: Call) -> Response:
        found = await plays_of(self._store, call.argument, self._gateway.plays.partitions)
        if found is None:
            raise RefusedError(errors.STORE_UNAVAILABLE)
        return Response(200, messages.dumps(found))

    async def screenshot(self, call: Call) -> Response:
        (reply,) = await self._ask(resp.pack("HMGET", screenshots.key(call.argument), "device", "type", "image"))
        device_id, media_type, image = reply
        if image is None:
            waiting = device_id is not None
            raise RefusedError(errors.NOT_FOUND, details={"requestId": "not taken yet" if waiting else "unknown"})
        return Response(200, image, media_type.decode(), (("Cache-Control", "no-store"),))


def outcome(result: DeliveryResult, device_id: str, **more: object) -> Response:
    """The answer to a call for one device."""
    if result.unavailable:
        raise RefusedError(errors.STORE_UNAVAILABLE)
    if result.full:
        raise RefusedError(errors.LEDGER_FULL)
    error = result.failures.get(device_id)
    if result.expired:
        message = "expired before the device acked it"
    elif error is not None:
        message = f"the device could not: {error}" if error != "failed" else "the device could not"
    elif result.sent:
        message = "sent to a device that does not ack"
    else:
        message = "acked by the device" if result.delivered else "waits for the device"
    answer = {
        "success": error is None,
        "delivered": not (result.queued or result.sent or result.expired),
        "queued": bool(result.queued),
        "message": message,
        **more,
    }
    return Response(202 if result.queued else 200, messages.dumps(answer), waited=result.waited)


def written(where: str, write: Any, *values: Any) -> bytes:
    """`write(*values)`; JSON is written to a depth of 254, and read to 1024."""
    try:
        text: bytes = write(*values)
    except TypeError:
        raise RefusedError(errors.INVALID_BODY, details={where: "is nested too deep"}) from None
    return text


def fields(reply: list[bytes]) -> dict[str, str]:
    """A hash, as RESP 2 lists it."""
    return {name.decode(): value.decode() for name, value in zip(reply[::2], reply[1::2], strict=True)}


def number(call: Call, name: str, default: int, least: int, most: int) -> int:
    text = call.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 11 and least <= int(text) <= most):
        raise RefusedError(errors.INVALID_BODY, details={name: f"expected a number from {least} to {most}"})
    return int(text)
