"""What hostile peers can make the running service write: little, however many they are, and nothing that is secret."""

import asyncio
import random
import struct
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.net.peers import PATIENCE, SECRETS, Wire, device_token, frame, text, upgrade
from tests.service_process import Service, until
from tests.system.test_sentry import SABOTAGE
from vizora_rt.config import LimitSettings

PEERS = 300

API_KEY = "internal-w7Kp2Zr9Tn4Xb6"
ENV = {**SECRETS, "INTERNAL_API_SECRET": API_KEY, "VIZORA_ENV": "staging", "VIZORA_LOGGING__LEVEL": "DEBUG"}

FELT = (
    'http_requests_total{method="other",path="unmatched",status="400"}',
    'http_requests_total{method="other",path="unmatched",status="431"}',
    'http_requests_total{method="GET",path="unmatched",status="404"}',
    'http_requests_total{method="POST",path="/internal/command",status="401"}',
    'ws_handshakes_rejected_total{code="AUTH_INVALID"}',
    'ws_handshakes_rejected_total{code="AUTH_EXPIRED"}',
    'ws_disconnects_total{reason="protocol_error"}',
    'ws_disconnects_total{reason="invalid_utf8"}',
    'ws_disconnects_total{reason="too_many_messages"}',
    'ws_messages_total{type="unknown",result="refused"}',
    'ws_messages_total{type="error",result="refused"}',
    'ws_messages_total{type="heartbeat",result="ok"}',
    'ws_messages_total{type="content:error",result="ok"}',
)

FORGERY = '"},\n{"level":"error","event":"forged"}\r\n\x1b[2K'


def attacks(number: int) -> list[bytes]:
    """What a peer sends on a connection of its own; each of these would be a line in many a log."""
    token = device_token(f"lobby-{number}")
    entered = upgrade(token)
    return [
        b"\x16\x03\x01 not HTTP " + token.encode() + b"\r\n\r\n",
        f"GET /{number}?token={token} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        f"GET /metrics?{number} HTTP/9.9\r\nHost: x\r\nCookie: vizora_auth_token={token}\r\n\r\n".encode(),
        f"POST /internal/command HTTP/1.1\r\nHost: x\r\nX-Internal-Api-Key: {API_KEY[:-1]}{number}\r\n\r\n".encode(),
        b"GET / HTTP/1.1\r\nX-Long: " + b"x" * 40_000,
        upgrade(token[:-4] + "AAAA"),
        upgrade(device_token(f"lobby-{number}", exp=1)),
        upgrade("", path=f"/ws?token={token}&x={number}"),
        entered + frame(0x3, token.encode()),
        entered + frame(0x1, b"\xff\xfe" + token.encode()),
        entered + frame(0x1, f'{{"event":"{token}'.encode()),
        entered + text(f"event-{number}{FORGERY}", {"token": token}) * 20,
        entered + text("heartbeat", {"currentContent": FORGERY, token: token}) * 20,
        entered + text("heartbeat", [token], 1) * 250,
        entered
        + text(
            "content:error",
            {"contentId": "c", "errorType": FORGERY, "errorMessage": f"?token={token}{FORGERY}", "timestamp": 1},
        ),
        entered + text("screenshot:response", {"requestId": str(number), "imageData": "iVBORw0KGgo" * 400}),
        upgrade("", path="/socket.io/?EIO=4&transport=websocket") + frame(0x1, f'40{{"token":"{token}"}}'.encode()),
        upgrade("", path="/socket.io/?EIO=4&transport=websocket") + frame(0x1, b"40" + b"{" * 5000),
    ]


async def attack(port: int, data: bytes, reset: bool) -> None:
    try:
        wire = await Wire.open(port)
        await wire.send(data)
        try:
            async with asyncio.timeout(PATIENCE):
                await wire.reader.read(65536)
        except TimeoutError:
            pass
        if reset:
            wire.writer.get_extra_info("socket").setsockopt(1, 13, struct.pack("ii", 1, 0))
        await wire.close()
    except OSError:
        pass  # it was cut


async def flood(port: int) -> None:
    """Twice the pings of a burst, for some come back meanwhile, from a client that stays until it is closed."""
    wire = await Wire.open(port)
    await wire.send(upgrade(device_token("flood")) + frame(0x9, b"") * 4 * LimitSettings().packets_per_minute)
    while await wire.reader.read(65536):
        pass
    await wire.close()


async def assail(service: Service, peers: int) -> Counter[str]:
    """The lines that a hostile fleet leaves, by event."""
    before = len(service.records)
    dice = random.Random(peers)
    waiting = [(data, dice.random() < 0.5) for number in range(peers) for data in attacks(number)]
    dice.shuffle(waiting)
    for start in range(0, len(waiting), 200):
        await asyncio.gather(*(attack(service.port, *each) for each in waiting[start : start + 200]))
    await flood(service.port)
    await asyncio.to_thread(until, lambda: not service.status()["workers"][0]["connections"])
    for felt in FELT:
        assert await asyncio.to_thread(until, partial(service.metric, f"vizora_realtime_{felt}"))
    left = Counter(record["event"] for record in service.records[before:])
    # An operator must see that keys are guessed: ten lines a minute, however many are.
    assert 0 < left.pop("wrong key") <= 20
    return left


async def test_a_hostile_fleet_leaves_no_line_however_large_it_is(tmp_path: Path) -> None:
    with Service(tmp_path, ENV, workers=1) as service:
        await asyncio.to_thread(service.start)
        assert await assail(service, 10) == {}
        assert await asyncio.to_thread(service.stop) == 0
        clean(service)


@pytest.mark.soak
async def test_nor_does_one_of_thousands(tmp_path: Path) -> None:
    with Service(tmp_path, ENV, workers=1) as service:
        await asyncio.to_thread(service.start)
        assert await assail(service, PEERS) == {}
        assert await asyncio.to_thread(service.stop) == 0
        clean(service)


async def test_a_fault_that_peers_can_cause_is_ten_lines_a_minute(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    with Service(tmp_path, {**ENV, "PYTHONPATH": str(tmp_path)}, workers=1) as service:
        await asyncio.to_thread(service.start)
        for number in range(100):
            await attack(service.port, upgrade(device_token(f"d{number}")) + text("playlist:request", {}), False)
        failed = 'vizora_realtime_ws_messages_total{type="playlist:request",result="failed"}'
        await asyncio.to_thread(until, lambda: service.metric(failed) == 100)
        assert await asyncio.to_thread(service.stop) == 0
        assert len([record for record in service.records if record["event"] == "handler failed"]) == 10
        clean(service)


def clean(service: Service) -> None:
    """Each line is one record, with nothing secret."""
    assert len(service.records) == len(service.lines), "each line is JSON"
    log = "\n".join(service.lines)
    for secret in ("eyJ", "iVBOR", "opaque-SECRET", API_KEY[:-1], "forged", *SECRETS.values()):
        assert secret not in log
