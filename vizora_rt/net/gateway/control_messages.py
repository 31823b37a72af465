"""What each doorbell means to this worker: a dict with one of the names below, whose schemas are in `wire.bells`.

look, done, revoked, kick, erased, superseded, tenant, notice. One that does not fit its schema is logged and let pass.
"""

from collections.abc import Callable
from typing import Any

from vizora_rt.app.state import Device, State
from vizora_rt.errors import NORMAL, REVOKED
from vizora_rt.net.commands.delivery import Deliveries
from vizora_rt.net.commands.requests import CommandRequests
from vizora_rt.net.gateway.broadcast import Broadcaster
from vizora_rt.net.gateway.suspension import Suspensions
from vizora_rt.telemetry import logs
from vizora_rt.telemetry import logs as telemetry_logs
from vizora_rt.wire import bells, messages

log = telemetry_logs.logger("doorbells")

AnyControlMessage = dict[str, Any]


class ControlMessageHandler:
    """One worker's answers to them."""

    def __init__(
        self,
        state: State,
        deliveries: Deliveries,
        broadcaster: Broadcaster,
        requests: CommandRequests,
        suspensions: Suspensions,
        superseded: Callable[[str, int], None],
    ) -> None:
        self._state = state
        self._deliveries = deliveries
        self._broadcaster = broadcaster
        self._requests = requests
        self._suspensions = suspensions
        self._handlers: dict[str, Callable[[Any], None]] = {
            "look": self._look,
            "done": self._done,
            "revoked": self._revoked,
            "kick": self._kick,
            "erased": self._erased,
            "superseded": lambda message: superseded(message.superseded, message.epoch),
            "tenant": self._tenant,
            "notice": self._notice,
        }

    def handle(self, control_message: AnyControlMessage) -> None:
        """Act on a bell. Other parts may know other names."""
        for name in control_message.keys() & self._handlers.keys():
            message = bells.read(name, control_message)
            if message is None:
                not_understood(name)
                continue
            try:
                self._handlers[name](message)
            except Exception as error:
                # A fault of ours. The other bells of this read are none the worse for it.
                log.exception("doorbell failed", error, name=name)

    def renewed(self, device: Device, waiting: bool, version: str | None, revoked: bool) -> None:
        """What a bell that was lost would have said: the owner key is renewed each heartbeat interval."""
        device.playlist_version = version
        if revoked:
            self._end(device, "revoked")
        elif waiting:
            self._deliveries.look(device)

    def _device(self, device_id: str) -> Device | None:
        device = self._state.devices.get(device_id)
        return device if device is not None and device.peer is not None else None

    def _look(self, message: bells.Look) -> None:
        for device_id in message.look:
            device = self._device(device_id)
            if device is not None:
                self._deliveries.look(device)

    def _done(self, message: bells.Done) -> None:
        self._requests.on_done(message.done, message.of)

    def _revoked(self, message: bells.Revoked) -> None:
        device, jti = self._device(message.revoked), message.jti
        if device is not None and device.peer is not None and (not jti or device.peer.identity.jti == jti):
            self._end(device, message.reason or "revoked")

    def _end(self, device: Device, reason: str) -> None:
        if device.peer is not None:
            device.peer.send("device:revoked", messages.dumps({"reason": reason}))
            device.peer.close(REVOKED)

    def _kick(self, message: bells.Kick) -> None:
        device = self._device(message.kick)
        if device is not None and device.peer is not None:
            device.peer.close(NORMAL)

    def _erased(self, message: bells.Erased) -> None:
        device = self._state.devices.get(message.erased)
        if device is not None:
            peer = device.peer
            self._deliveries.disconnected(device)
            self._state.forget(device)
            if peer is not None:
                peer.close(NORMAL)

    def _tenant(self, message: bells.Tenant) -> None:
        self._suspensions.refresh(message.organization_id, message.reason or "")

    def _notice(self, message: bells.Notice) -> None:
        user = message.user_id
        peers = self._state.dashboards.get(message.organization_id, ())
        receivers = [peer for peer in peers if user is None or peer.identity.id == user]
        try:
            body = messages.dumps(message.data)
        except TypeError:  # JSON is read to a depth of 1024, and written to 254
            not_understood("notice")
        else:
            self._broadcaster.send(receivers, message.notice, body)


def not_understood(name: str) -> None:
    """Log that a message is none; what it holds is not repeated."""
    logs.limited(("doorbell", name), "WARNING", "doorbells", "doorbell not understood", {"name": name})
