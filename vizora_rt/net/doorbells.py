"""What each doorbell means to this worker: a dict with one of the names below, whose schemas are in `wire.bells`.

look, done, revoked, kick, erased, superseded, tenant, notice. One that does not fit its schema is logged and let pass.
"""

from collections.abc import Callable
from typing import Any

from vizora_rt import lines, report
from vizora_rt.app.state import Device, State
from vizora_rt.errors import NORMAL, REVOKED
from vizora_rt.net.delivery import Deliveries
from vizora_rt.net.notices import Notices
from vizora_rt.net.orders import Orders
from vizora_rt.net.tenants import Tenants
from vizora_rt.wire import bells, messages

log = report.logger("doorbells")

Bell = dict[str, Any]


class Doorbells:
    """One worker's answers to them."""

    def __init__(
        self,
        state: State,
        deliveries: Deliveries,
        notices: Notices,
        orders: Orders,
        tenants: Tenants,
        superseded: Callable[[str, int], None],
    ) -> None:
        self._state = state
        self._deliveries = deliveries
        self._notices = notices
        self._orders = orders
        self._tenants = tenants
        self._answers: dict[str, Callable[[Any], None]] = {
            "look": self._look,
            "done": self._done,
            "revoked": self._revoked,
            "kick": self._kick,
            "erased": self._erased,
            "superseded": lambda bell: superseded(bell.superseded, bell.epoch),
            "tenant": self._tenant,
            "notice": self._notice,
        }

    def hear(self, bell: Bell) -> None:
        """Act on a bell. Other parts may know other names."""
        for name in bell.keys() & self._answers.keys():
            message = bells.read(name, bell)
            if message is None:
                not_understood(name)
                continue
            try:
                self._answers[name](message)
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

    def _look(self, bell: bells.Look) -> None:
        for device_id in bell.look:
            device = self._device(device_id)
            if device is not None:
                self._deliveries.look(device)

    def _done(self, bell: bells.Done) -> None:
        self._orders.on_done(bell.done, bell.of)

    def _revoked(self, bell: bells.Revoked) -> None:
        device, jti = self._device(bell.revoked), bell.jti
        if device is not None and device.peer is not None and (not jti or device.peer.identity.jti == jti):
            self._end(device, bell.reason or "revoked")

    def _end(self, device: Device, reason: str) -> None:
        if device.peer is not None:
            device.peer.send("device:revoked", messages.dumps({"reason": reason}))
            device.peer.close(REVOKED)

    def _kick(self, bell: bells.Kick) -> None:
        device = self._device(bell.kick)
        if device is not None and device.peer is not None:
            device.peer.close(NORMAL)

    def _erased(self, bell: bells.Erased) -> None:
        device = self._state.devices.get(bell.erased)
        if device is not None:
            peer = device.peer
            self._deliveries.disconnected(device)
            self._state.forget(device)
            if peer is not None:
                peer.close(NORMAL)

    def _tenant(self, bell: bells.Tenant) -> None:
        self._tenants.ask(bell.organization_id, bell.reason or "")

    def _notice(self, bell: bells.Notice) -> None:
        user = bell.user_id
        peers = self._state.dashboards.get(bell.organization_id, ())
        receivers = [peer for peer in peers if user is None or peer.identity.id == user]
        try:
            body = messages.dumps(bell.data)
        except TypeError:  # JSON is read to a depth of 1024, and written to 254
            not_understood("notice")
        else:
            self._notices.send(receivers, bell.notice, body)


def not_understood(name: str) -> None:
    """Log that a message is none; what it holds is not repeated."""
    lines.limited(("doorbell", name), "WARNING", "doorbells", "doorbell not understood", {"name": name})
