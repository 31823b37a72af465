"""What the supervisor is told of this worker's devices: rows for their series, made from `State` on demand.

A full row has the device's id, organisation, status, CPU and memory, and its heartbeats ok and failed since its last
row of either kind. A row of beats has the id and the two counts. Each method takes what is behind when the caller
begins to iterate, and yields lists of at most `limit` rows. No row is lost while the caller iterates to the end.
"""

from collections.abc import Iterator

from vizora_rt.app.state import Device, State
from vizora_rt.errors import SUPERSEDED

Row = list[object]


class DeviceRows:
    """The rows of one worker."""

    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state = state

    def changed(self, limit: int) -> Iterator[list[Row]]:
        """Full rows of the devices that connected, left, moved or failed a heartbeat since the last call."""
        devices, self._state.unreported = self._state.unreported, []
        for first in range(0, len(devices), limit):
            chunk = devices[first : first + limit]
            for device in chunk:
                device.reported = False
            yield [self._full(device) for device in chunk]

    def beats(self, limit: int) -> Iterator[list[Row]]:
        """Rows of beats of the devices that sent heartbeats since their last row."""
        devices, self._state.counted = self._state.counted, []
        for first in range(0, len(devices), limit):
            rows = []
            for device in devices[first : first + limit]:
                device.counted = False
                if device.heartbeats_ok or device.heartbeats_failed:
                    device.measured = False
                    rows.append([device.id, device.heartbeats_ok, device.heartbeats_failed])
                    device.heartbeats_ok = device.heartbeats_failed = 0
            if rows:
                yield rows

    def measured(self, limit: int) -> Iterator[list[Row]]:
        """Full rows of the devices that sent a heartbeat since their last full row: their CPU and memory may differ."""
        devices = list(self._state.devices.values())
        for first in range(0, len(devices), limit):
            behind = [each for each in devices[first : first + limit] if each.heartbeats_ok or not each.measured]
            if behind:
                yield [self._full(device) for device in behind]

    def _full(self, device: Device) -> Row:
        device.measured = True
        beat = device.heartbeat.metrics if device.heartbeat is not None else None
        cpu, memory = (beat.cpu_usage, beat.memory_usage) if beat is not None else (None, None)
        ok, failed = device.heartbeats_ok, device.heartbeats_failed
        device.heartbeats_ok = device.heartbeats_failed = 0
        return [device.id, device.organization_id, self._status(device), cpu, memory, ok, failed]

    def _status(self, device: Device) -> int | None:
        """1 while the device has a connection here, else 0. None: another worker has it, this one has no say."""
        # The device may have come back here after this object of it was let go.
        current = self._state.devices.get(device.id)
        if current is None:
            return None if device.reason == SUPERSEDED.name else 0
        return int(current.peer is not None)
