"""What the record of a device says."""

import pytest

from vizora_rt.net.presence import record as device_record


@pytest.mark.parametrize(
    ("status", "is_connected"),
    [
        (b'{"status":"online"}', True),
        (b'{"status":"stale"}', True),
        (b'{"status":"suspended"}', True),
        (b'{"status":"offline"}', False),
        (b"{", False),
        (None, False),
    ],
)
def test_connected(status: bytes | None, is_connected: bool) -> None:
    assert device_record.connected(status) is is_connected
