"""The running service and a Sentry that is a sink on loopback: what gets there, once, and what never does."""

import asyncio
import http.client
import json
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from tests.net.peers import SECRETS, Wire, device_token, dial, dial_device, frame, text, upgrade, user_token
from tests.service_process import Service, until
from tests.sink import Sink

API_KEY = "internal-w7Kp2Zr9Tn4Xb6"
PICTURE = "iVBORw0KGgo" * 40

SABOTAGE = """
from vizora_rt.app import handlers

def broken(self, device, payload, now):
    raise LookupError('no playlist for bearer opaque-SECRET')

handlers.Handlers.playlist_request = broken
"""
"""A fault of ours, in a process of its own: Python runs a `sitecustomize` that it finds before anything else."""


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as sink:
        yield sink


@pytest.fixture
async def service(tmp_path: Path, sink: Sink) -> AsyncIterator[Service]:
    (tmp_path / "sitecustomize.py").write_text(SABOTAGE)
    env = {
        **SECRETS,
        "INTERNAL_API_SECRET": API_KEY,
        "VIZORA_ENV": "staging",
        "SENTRY_DSN": sink.dsn,
        "SENTRY_TRACES_SAMPLE_RATE": "1",
        "SENTRY_PROFILES_SAMPLE_RATE": "1",
        "PYTHONPATH": str(tmp_path),
        "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
        "VIZORA_LIMITS__PACKETS_PER_MINUTE": "0",
        "VIZORA_REDIS__REPLY_TIMEOUT_SECONDS": "0.5",
    }
    with Service(tmp_path, env, workers=1) as service:
        await asyncio.to_thread(service.start)
        yield service


async def wait(sink: Sink, kind: str, **tags: str) -> dict[str, Any]:
    return await asyncio.to_thread(sink.wait, kind, 1, **tags)


def events(sink: Sink) -> dict[tuple[str, ...], int]:
    """How many there are of each kind."""
    found = [tuple(event["fingerprint"]) for event in sink.of("event")]
    return {kind: found.count(kind) for kind in found}


def command(service: Service, device: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    try:
        body = json.dumps({"deviceId": device, "command": {"type": "reload"}})
        connection.request("POST", "/internal/command", body, {"X-Internal-Api-Key": API_KEY})
        return connection.getresponse().status
    finally:
        connection.close()


async def test_each_fault_arrives_once_with_its_ids_and_no_weather_does(service: Service, sink: Sink) -> None:
    ids = {"device_id": "lobby", "organization_id": "acme"}

    screen = await dial_device(service.port, "lobby")
    assert not (await screen.ask("heartbeat", [f"bearer {PICTURE}"]))["success"]
    await wait(sink, "event", **ids)
    error = {
        "contentId": "c-1",
        "errorType": "decode_error",
        "errorMessage": f"https://cdn/x.mp4?token=opaque-SECRET&X-Amz-Credential=opaque-SECRET {PICTURE} "
        "/x.mp4?sig=opaque-SECRET ftp://user:opaque/opaque-SECRET@host by ann@mail.example at 192.0.2.7",
        "errorCode": '{"password": "opaque-SECRET"}',
        "timestamp": 1_764_000_000_000,
    }
    assert (await screen.ask("content:error", error))["success"]
    await screen.send("playlist:request", {})
    assert await screen.ended() == 1011

    wire = await Wire.open(service.port)
    await wire.send(upgrade(device_token("lobby"), Cookie="vizora_auth_token=opaque-SECRET"))
    await wire.response()
    await wire.send(frame(0x3, b"opaque-SECRET"))
    await wire.ends()
    await wire.close()

    # Weather.
    for token in (device_token("lobby", exp=int(time.time()) - 60), "opaque-SECRET", ""):
        with pytest.raises(InvalidStatus):
            await dial(service.port, token)
    reset = await Wire.open(service.port)
    await reset.send(upgrade(device_token("lobby-2")))
    await reset.response()
    linger = struct.pack("ii", 1, 0)
    reset.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    await reset.close()

    # Redis does not answer: it is stopped, not gone.
    (store,) = (record["pid"] for record in service.records if record["event"] == "embedded store started")
    os.kill(store, signal.SIGSTOP)
    try:
        down = await asyncio.to_thread(until, lambda: not service.redis_up())
        assert down
        assert await asyncio.to_thread(command, service, "lobby") == 503
        with pytest.raises(InvalidStatus) as refused:
            await dial(service.port, user_token("ann"))
        assert refused.value.response.status_code == 503
    finally:
        os.kill(store, signal.SIGCONT)
    await asyncio.to_thread(until, service.redis_up)

    # What it has not sent yet goes with it.
    await asyncio.to_thread(until, lambda: ("handshake refused", "STORE_UNAVAILABLE") in events(sink))
    (worker,) = service.workers()
    os.kill(worker, signal.SIGKILL)
    crash = await wait(sink, "event", process="supervisor")
    assert (crash["message"], crash["tags"]["reason"]) == ("worker failed", "crash")
    assert await asyncio.to_thread(service.stop) == 0

    fault = next(event for event in sink.of("event", **ids) if "exception" in event)
    assert fault["exception"]["values"][0]["type"] == "LookupError"
    assert all(event["exception"]["values"][0]["mechanism"]["handled"] is False for event in (fault, crash))
    assert fault["release"] == metadata.version("vizora-rt")
    assert {"process": "worker-0", "message": "playlist:request"}.items() <= fault["tags"].items()
    assert len([event for event in sink.of("event", **ids) if "exception" not in event]) == 3
    assert (crash["environment"], crash["level"]) == ("staging", "error")
    assert events(sink) == {
        ("heartbeat failed", "invalid_payload"): 1,
        ("content error", "decode_error"): 1,
        ("LookupError", "vizora_rt.net.gateway.dispatcher.Dispatcher.message"): 1,
        ("connection failed", "protocol_error"): 1,
        ("request failed", "503", "POST", "/internal/command"): 1,
        ("handshake refused", "STORE_UNAVAILABLE"): 1,
        ("worker failed", "crash"): 1,
    }
    no_secret(sink.text)
    assert b"ann@" not in sink.text and b"192.0.2.7" not in sink.text
    no_secret("\n".join(service.lines).encode())


async def test_requests_handshakes_and_messages_are_traced(service: Service, sink: Sink) -> None:
    screen = await dial_device(service.port, "lobby")
    await screen.heartbeat()
    play = {"contentId": "c", "playlistId": "p", "timestamp": int(time.time() * 1000), "eventId": "e1"}
    await screen.ask("content:impression", play)
    await asyncio.to_thread(service.get, "/health")
    await asyncio.to_thread(service.get, "/health/live")
    await screen.leave()
    assert await asyncio.to_thread(service.stop) == 0, "and what waits is sent before the end"

    traces = {trace["transaction"]: trace for trace in sink.of("transaction")}
    operations = {name: trace["contexts"]["trace"]["op"] for name, trace in traces.items()}
    assert operations == {
        "/ws": "websocket.server",
        "heartbeat": "websocket.message",
        "content:impression": "websocket.message",
        "GET /health": "http.server",
        "GET /health/live": "http.server",
    }
    assert traces["heartbeat"]["tags"]["device_id"] == "lobby"
    assert "device_id" not in traces["GET /health"]["tags"]
    assert events(sink) == {}
    no_secret(sink.text)


async def test_a_request_that_waits_is_profiled_and_what_is_answered_at_once_is_not(
    service: Service, sink: Sink
) -> None:
    await asyncio.to_thread(service.get, "/health")
    (store,) = (record["pid"] for record in service.records if record["event"] == "embedded store started")
    os.kill(store, signal.SIGSTOP)
    try:
        assert await asyncio.to_thread(command, service, "lobby") == 503
    finally:
        os.kill(store, signal.SIGCONT)
    assert await asyncio.to_thread(service.stop) == 0
    assert {trace["transaction"] for trace in sink.of("transaction")} == {"GET /health", "POST /internal/command"}
    assert [profile["transactions"][0]["name"] for profile in sink.of("profile")] == ["POST /internal/command"]


async def test_a_storm_of_one_error_sends_ten_and_counts_the_rest(service: Service, sink: Sink) -> None:
    wires = []
    for number in range(20):
        wire = await Wire.open(service.port)
        await wire.send(upgrade(device_token(f"lobby-{number}")) + text("heartbeat", []) * 50)
        wires.append(wire)
    beats = 'vizora_realtime_heartbeat_errors_total{reason="invalid_payload"}'
    await asyncio.to_thread(until, lambda: service.metric(beats) == 1000)
    held = 'vizora_realtime_sentry_dropped_total{why="rate"}'
    assert await asyncio.to_thread(service.metric, held) == 990
    for wire in wires:
        await wire.close()
    assert await asyncio.to_thread(service.stop) == 0
    assert events(sink) == {("heartbeat failed", "invalid_payload"): 10}


async def test_the_end_does_not_wait_for_a_sentry_that_is_away(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        dsn = f"http://public@127.0.0.1:{silent.getsockname()[1]}/1"
        with Service(tmp_path, {**SECRETS, "SENTRY_DSN": dsn, "SENTRY_DEBUG": "true"}, workers=1) as service:
            await asyncio.to_thread(service.start)
            screen = await dial_device(service.port, "lobby")
            await screen.ask("heartbeat", [])
            assert await asyncio.to_thread(service.stop) == 0
            assert not any(record["event"].startswith("worker killed") for record in service.records)


def no_secret(text: bytes) -> None:
    for secret in (b"opaque-SECRET", b"iVBOR", b"eyJ", API_KEY.encode(), *(each.encode() for each in SECRETS.values())):
        assert secret not in text
