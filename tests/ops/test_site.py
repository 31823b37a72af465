"""A site: the gateway is the real one, its clients are seen by it, and nothing is left behind."""

import asyncio
from pathlib import Path

import pytest

from vizora_rt.errors import UnavailableError
from vizora_rt.ops import monitors
from vizora_rt.ops.site import Sandbox, until


def series(site: Sandbox, name: str) -> float:
    """Sum of the samples that begin with `name`."""
    text = monitors.get(f"{site.url}/metrics")
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


async def test_a_day_of_a_site(tmp_path: Path) -> None:
    site = Sandbox(tmp_path, monitors.free_port(), workers=1)
    await site.start({"VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0"})
    try:
        assert len(await asyncio.to_thread(site.workers)) == 1
        site.screens(3)
        await until(lambda: series(site, "vizora_realtime_devices_online") == 3)
        await site.dismiss(2)
        await until(lambda: series(site, "vizora_realtime_devices_online") == 1)

        wire = await site.wire("talker")
        assert (await wire.ask("heartbeat", {}))["success"] is True
        assert (await wire.ask("heartbeat", "no object"))["code"] == "INVALID_PAYLOAD"
        await wire.close()
        wire.say("heartbeat", {})
        with pytest.raises(ConnectionError):
            await wire.ask("heartbeat", {})

        deaf = await site.deaf("ann")
        await until(
            lambda: series(site, 'vizora_realtime_ws_connections_active{organization_id="acme",kind="dash') == 1
        )
        deaf.close()

        assert await site.api("/devices/talker") == 200
        assert await site.api("/push/playlist", {"deviceId": "talker"}) == 400
        assert await site.api("/nowhere") == 404
        assert Path(f"/proc/{site.store_pid()}").exists()
        assert site.redis(b"*1\r\n$4\r\nPING\r\n") == [b"PONG"]
    finally:
        await site.stop()
    assert await site.api("/devices/talker") == 0


async def test_a_gateway_that_cannot_start_says_why(tmp_path: Path) -> None:
    site = Sandbox(tmp_path, monitors.free_port())
    with pytest.raises(UnavailableError, match=r"the gateway ended: .*SERVER__WORKERS"):
        await site.start({"VIZORA_SERVER__WORKERS": "some"})
    await site.stop()


async def test_patience_ends() -> None:
    with pytest.raises(TimeoutError):
        await until(lambda: False, 0.1)
