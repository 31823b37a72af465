"""Clients that send as fast as they can, against the whole service: what others wait for, and what becomes of them."""

import asyncio
import json
import time
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect

from bench.load.attacks import ATTACKS, Attack, Attackers
from tests.net.peers import SECRETS, device_token
from tests.service_process import PATIENCE, Service, until
from vizora_rt.client.websocket import parse_url

BEATS = 10
LONGEST = 2.0
"""Seconds that a heartbeat may take on a machine that has other work. Of a loop that a flood holds up it takes more."""

CLOSED = (
    "pings_before_connect",
    "pongs_before_connect",
    "fragments_before_connect",
    "probes_before_connect",
    "namespaces_before_connect",
    "pings",
    "pongs",
    "fragments",
    "probes",
    "acks",
    "half_characters",
    "long_acks",
    "junk",
    "binary",
)
HELD = ("unknown_events", "heartbeats")
FLOODS = [attack for attack in ATTACKS if attack.name in CLOSED + HELD]
PACKETS = 'vizora_realtime_limits_exceeded_total{limit="packets_per_minute"}'
MESSAGES = 'vizora_realtime_limits_exceeded_total{limit="messages_per_minute"}'


async def heartbeats(service: Service, device: str, counted: asyncio.Task[None]) -> list[float]:
    """How long each heartbeat of an honest device took until the flood was counted, ten at least."""
    took: list[float] = []
    headers = {"Authorization": f"Bearer {device_token(device)}"}
    async with connect(f"ws://127.0.0.1:{service.port}/ws", additional_headers=headers, proxy=None) as screen:
        await screen.recv()
        while len(took) < BEATS or not counted.done():
            began = time.perf_counter()
            await screen.send(json.dumps({"event": "heartbeat", "id": 1, "data": {}}))
            assert json.loads(await screen.recv())["data"]["success"]
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.1)
    return took


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), SECRETS, workers=1) as running:
        yield running.start()


@pytest.mark.parametrize("attack", FLOODS, ids=[flood.name for flood in FLOODS])
async def test_a_flood_stops_nobody(service: Service, attack: Attack) -> None:
    limit = PACKETS if attack.name in CLOSED else MESSAGES
    before, workers = service.metric(limit) or 0, service.workers()
    tokens = [device_token(f"{attack.name}-{number}") for number in range(attack.connections)]
    attackers = Attackers(attack, parse_url(f"ws://127.0.0.1:{service.port}/ws"), tokens)
    flood = asyncio.create_task(attackers.attack(PATIENCE))
    counted = asyncio.create_task(asyncio.to_thread(until, lambda: (service.metric(limit) or 0) > before))
    took = await heartbeats(service, f"honest-{attack.name}", counted)
    await counted
    flood.cancel()
    await asyncio.wait([flood])
    assert max(took) < LONGEST
    assert attack.name in CLOSED or not attackers.ended
    assert service.workers() == workers
