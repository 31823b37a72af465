"""A worker killed under its screens: they come back, no handshake is refused, no counter falls."""

import asyncio
import os
import signal
from pathlib import Path

from websockets.exceptions import ConnectionClosed

from tests.net.peers import SECRETS, Client, dial_device
from tests.service_process import Service

SCREENS = 24
BEATS = 'vizora_realtime_ws_messages_total{type="heartbeat",result="ok"}'
CONNECTED = 'vizora_realtime_ws_connections_total{organization_id="acme",status="connected"}'
REFUSED = 'vizora_realtime_ws_connections_total{organization_id="acme",status="rejected"}'


async def test_its_screens_come_back(tmp_path: Path) -> None:
    with Service(tmp_path, SECRETS, workers=2) as service:
        await asyncio.to_thread(service.start)
        names = [f"lobby-{number}" for number in range(SCREENS)]
        screens = {name: await dial_device(service.port, name) for name in names}
        for screen in screens.values():
            assert (await screen.heartbeat())["success"]
        before = await figures(service)
        assert before == {BEATS: SCREENS, CONNECTED: SCREENS, REFUSED: 0}

        os.kill((await asyncio.to_thread(service.workers))[0], signal.SIGKILL)
        # At once, while nobody accepts on the dead worker's socket: each of these waits there and none is refused.
        fresh = await asyncio.gather(*(dial_device(service.port, f"new-{number}") for number in range(SCREENS)))
        back = [name for name, screen in screens.items() if not await lives(screen)]
        assert 0 < len(back) < SCREENS, "the kernel gave all screens to one worker"
        for name in back:
            screens[name] = await dial_device(service.port, name)
        for screen in (*screens.values(), *fresh):
            assert (await screen.heartbeat())["success"]

        after = await figures(service)
        assert after[BEATS] >= before[BEATS] + 2 * SCREENS
        assert after[CONNECTED] == SCREENS + SCREENS + len(back)
        assert after[REFUSED] == 0
        for screen in (*screens.values(), *fresh):
            await screen.leave()


async def lives(screen: Client) -> bool:
    try:
        await screen.heartbeat()
    except ConnectionClosed:
        return False
    return True


async def figures(service: Service) -> dict[str, float]:
    values = {name: await asyncio.to_thread(service.metric, name) for name in (BEATS, CONNECTED, REFUSED)}
    return {name: value for name, value in values.items() if value is not None}
