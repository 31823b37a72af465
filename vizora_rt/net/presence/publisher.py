"""Tell of changes: to dashboards by the organisation's doorbell, to services behind by the stream of events.

Who is offline for two minutes, and who comes back after that, is worth a notification to people.
"""

import time
from functools import partial
from typing import Final

from vizora_rt.app import events
from vizora_rt.app.dashboards import status_body
from vizora_rt.app.state import Device
from vizora_rt.net.redis import keys
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.redis.pubsub import STATUS
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.wire import messages, resp
from vizora_rt.wire.resp import ReplyError

NOTIFICATION: Final = "notification:new"


class StatusPublisher:
    """One worker's crier."""

    def __init__(self, store: RedisClient, wheel: Wheel, max_events: int, notify_after: float) -> None:
        self._store = store
        self._channel = partial(keys.organization_channel, store.database)
        self._wheel = wheel
        self._max_events = max_events
        self._notify_after = notify_after

    def changed(self, device: Device) -> None:
        """The status of a device of this worker is another; Redis has it already."""
        last_seen = max(device.last_heartbeat, device.connected // 1000, device.listed)
        self.publish(device.id, device.organization_id, device.status, device.since, last_seen, device.reason)

    def moved(self, device: Device, left: str) -> None:
        """A device is another organisation's now: those that it has left do not see it any more."""
        now = time.time_ns() // 1_000_000
        self.publish(device.id, left, "offline", now, now, "moved")

    def publish(
        self, device_id: str, organization_id: str, status: str, since: int, last_seen: int, reason: str
    ) -> None:
        body = status_body(device_id, status, since, last_seen, reason, time.time_ns() // 1_000_000)
        message = b'%b%b,"organizationId":%b}' % (STATUS, body, messages.dumps(organization_id))
        self._store.publish(self._channel(organization_id), message)
        entry = events.entry("device:status", device_id, organization_id, since, body)
        self._store.submit("xadd", resp.pack("XADD", events.STREAM, "MAXLEN", "~", self._max_events, "*", *entry))
        if status == "offline":
            reminder = OfflineReminder(self, device_id, organization_id, since, last_seen, reason)
            self._wheel.add(reminder, self._notify_after)

    def returned(self, device: Device, gone: int) -> None:
        """A device is back that was offline since `gone`."""
        if device.since - gone >= self._notify_after * 1000:
            about = {"since": device.since, "offlineSince": gone, "reason": device.reason}
            self._notify("device_online", device.id, device.organization_id, about)

    def remind(self, reminder: "OfflineReminder") -> bool:
        """Notify people of a device that is still offline. False: Redis is away."""

        def on_reply(reply: object) -> None:
            if isinstance(reply, ReplyError):
                self._wheel.add(reminder, 1.0)
            elif _still(reply, reminder.since):
                about = {"since": reminder.since, "lastSeen": reminder.last_seen, "reason": reminder.reason}
                self._notify("device_offline", reminder.device_id, reminder.organization_id, about)

        return self._store.submit("get", resp.pack("GET", f"vz:{{d:{reminder.device_id}}}:status"), on_reply)

    def _notify(self, kind: str, device_id: str, organization_id: str, about: dict[str, object]) -> None:
        now = messages.iso(time.time_ns() // 1_000_000)
        notification = {"type": kind, "deviceId": device_id, **about, "timestamp": now}
        message = {
            "notice": NOTIFICATION,
            "organizationId": organization_id,
            "data": {"notification": notification},
        }
        self._store.publish(self._channel(organization_id), messages.dumps(message))


class OfflineReminder:
    """A device that went offline: is it still, after two minutes? An entry of the timer wheel."""

    __slots__ = ("device_id", "last_seen", "organization_id", "publisher", "reason", "since")

    def __init__(
        self, publisher: StatusPublisher, device_id: str, organization_id: str, since: int, last_seen: int, reason: str
    ) -> None:
        self.publisher = publisher
        self.device_id = device_id
        self.organization_id = organization_id
        self.since = since
        self.last_seen = last_seen
        self.reason = reason

    def on_timer(self, now: float) -> float | None:
        return None if self.publisher.remind(self) else 1.0


def _still(value: object, since: int) -> bool:
    """Whether a status key says offline since then."""
    return (
        isinstance(value, bytes)
        and value.startswith(b'{"status":"offline"')
        and b'"since":%d,"epoch":' % since in value
    )
