"""Screens and dashboards of the `websockets` library against the whole service: workers, embedded Valkey, signals."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from tests.net.peers import (
    PATIENCE,
    SECRETS,
    Client,
    Json,
    Node,
    Wire,
    device_token,
    dial,
    dial_device,
    frame,
    refusal,
    running,
    text,
    until,
    upgrade,
    user_token,
)
from tests.service_process import Service
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.net.valkey.server import EmbeddedServer

WORKERS = 2


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """With a short absence, and the pings of a short silence."""
    env = {
        **SECRETS,
        "VIZORA_PRESENCE__OFFLINE_AFTER_SECONDS": "0.5",
        "VIZORA_PRESENCE__PING_AFTER_SECONDS": "1",
        "VIZORA_PRESENCE__PING_TIMEOUT_SECONDS": "1",
    }
    with Service(tmp_path_factory.mktemp("gateway"), env, workers=WORKERS) as service:
        yield service.start()


@pytest.fixture(scope="module")
def books(service: Service) -> Iterator[Any]:
    """Redis as others see it."""
    with redis.Redis.from_url(valkey_server.running(service.folder / "state"), decode_responses=True) as client:
        yield client


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """A device of the test's own: the service is everybody's."""
    return re.sub(r"\W", "-", request.node.name)


def status_of(books: Any, device: str) -> Json:
    return cast(Json, json.loads(books.get(f"vz:{{d:{device}}}:status") or "{}"))


async def status_with(books: Any, device: str, field: str) -> Json:
    """The status, as soon as it has this field."""
    return await until(lambda: status_of(books, device) if field in status_of(books, device) else {})


async def two_workers(service: Service, books: Any, device: str) -> tuple[Client, Client]:
    """An older connection of the device and a newer one, of another worker: the kernel chooses."""
    older = await dial_device(service.port, device)
    for attempt in range(100):
        worker = status_of(books, device)["worker"]
        newer = await dial_device(service.port, device, jti=str(attempt))
        if status_of(books, device)["worker"] != worker:
            return older, newer
        assert await older.ended() == 4500
        older = newer
    raise AssertionError("the kernel prefers one worker")


class TestScreen:
    async def test_its_first_minute(self, service: Service, books: Any, device: str) -> None:
        client = await dial(service.port, device_token(device))
        greeting = await client.next("config")
        assert abs(greeting.pop("serverTime") - time.time() * 1000) < 60_000
        assert re.fullmatch(r"[0-9a-f]+", greeting.pop("session"))
        assert greeting == {"heartbeatInterval": 15000, "cacheSize": 1024, "autoUpdate": True, "qrOverlay": None}
        body = await client.heartbeat(metrics={"cpuUsage": 12.5, "memoryUsage": 40}, currentContent="c-1", battery=3)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body.pop("timestamp"))
        assert body == {
            "success": True,
            "data": {"reconcileContent": False, "nextHeartbeatIn": 15000, "commands": []},
        }
        status = await status_with(books, device, "metrics")
        assert status == {
            "status": "online",
            "reason": "connected",
            "organizationId": "acme",
            "node": service.status()["node"],
            "worker": status["worker"],
            "since": status["since"],
            "epoch": int(books.get(f"vz:{{d:{device}}}:owner").split()[0]),
            "lastHeartbeat": status["lastHeartbeat"],
            "metrics": {"cpuUsage": 12.5, "memoryUsage": 40.0},
            "currentContent": {"contentId": "c-1"},
        }
        assert 55 <= books.ttl(f"vz:{{d:{device}}}:status") <= 60
        assert 55 <= books.ttl(f"vz:{{d:{device}}}:owner") <= 60
        assert books.zscore("vz:{o:acme}:devices", device) is not None
        await client.leave()

    async def test_it_is_seen_in_the_metrics(self, service: Service, device: str) -> None:
        def metric(series: str) -> float:
            return service.metric(f"vizora_realtime_{series}") or 0.0

        def figures() -> dict[str, float]:
            return {
                series: metric(series)
                for series in (
                    'ws_connections_total{organization_id="figures",status="connected"}',
                    'ws_messages_total{type="heartbeat",result="ok"}',
                    'ws_fields_ignored_total{type="heartbeat",why="unknown"}',
                    'ws_fields_ignored_total{type="heartbeat",why="wrong_type"}',
                    "heartbeat_duration_seconds_count",
                    'ws_message_duration_seconds_count{type="heartbeat"}',
                    "ws_handshake_duration_seconds_count",
                )
            }

        before = figures()
        client = await dial_device(service.port, device, organization="figures")
        await client.heartbeat(metrics={"cpuUsage": 12.5, "memoryUsage": 40}, battery=3, uptime="long")
        after = figures()
        assert {series: after[series] - before[series] for series in after} == dict.fromkeys(after, 1.0)
        labels = f'{{device_id="{device}",organization_id="figures"}}'
        series = {
            f"device_status{labels}": 1.0,
            f"device_cpu_usage{labels}": 12.5,
            f"device_memory_usage{labels}": 40.0,
            f'heartbeat_total{{device_id="{device}",success="true"}}': 1.0,
            'devices_online{organization_id="figures"}': 1.0,
            'ws_connections_active{organization_id="figures",kind="device"}': 1.0,
        }
        assert {name: metric(name) for name in series} == series
        await client.leave()

        await until(lambda: not metric(f"device_status{labels}"))
        assert metric('devices_online{organization_id="figures"}') == 0

    @pytest.mark.parametrize("place", ["header", "subprotocol", "query"])
    async def test_every_place_of_a_token(self, service: Service, device: str, place: str) -> None:
        token = device_token(device)
        if place == "header":
            client = await dial(service.port, token)
        elif place == "subprotocol":
            client = await dial(service.port, subprotocols=["vizora.v1", f"bearer.{token}"])
            assert client.connection.subprotocol == "vizora.v1"
        else:
            client = await dial(service.port, query=f"?token={token}")
        await client.next("config")
        assert (await client.heartbeat())["success"]
        await client.leave()

    async def test_every_connection_is_a_session_of_its_own(self, service: Service, device: str) -> None:
        sessions = set()
        for _ in range(5):
            client = await dial(service.port, device_token(device))
            sessions.add((await client.next("config"))["session"])
            await client.leave()
        assert len(sessions) == 5

    async def test_no_log_line_shows_a_token(self, service: Service, device: str) -> None:
        tokens = [device_token(device), device_token("a b"), user_token()]
        for token in tokens:
            try:
                await (await dial(service.port, query=f"?token={token}")).leave()
            except Exception as error:
                assert "401" in str(error)
        assert not any(token.rpartition(".")[2] in line for token in tokens for line in service.lines)


class TestPresence:
    async def test_superseded_by_another_worker(self, service: Service, books: Any, device: str) -> None:
        older, newer = await two_workers(service, books, device)
        before = status_of(books, device)
        assert await older.ended() == 4500
        assert (await newer.heartbeat(uptime=1))["success"]
        status = await status_with(books, device, "uptime")
        assert (status["status"], status["since"]) == ("online", before["since"])
        assert (status["worker"], status["epoch"]) == (before["worker"], before["epoch"])
        # Longer than an absence: the older one's end has said nothing.
        passed = time.monotonic() + 1.2
        while time.monotonic() < passed:
            assert status_of(books, device)["status"] == "online"
            assert (await newer.heartbeat())["success"]
            await asyncio.sleep(0.1)
        await newer.leave()

    async def test_offline_in_the_end(self, service: Service, books: Any, device: str) -> None:
        client = await dial_device(service.port, device)
        since = status_of(books, device)["since"]
        await client.leave()
        client = await dial_device(service.port, device)
        assert (status_of(books, device)["status"], status_of(books, device)["since"]) == ("online", since)
        await client.leave()
        await until(lambda: status_of(books, device)["status"] == "offline")
        assert status_of(books, device)["since"] > since
        assert books.ttl(f"vz:{{d:{device}}}:status") > 23 * 3600

    async def test_silence(self, service: Service, device: str) -> None:
        silent = 'vizora_realtime_ws_disconnects_total{reason="silent"}'
        before = service.metric(silent) or 0
        alive = await dial_device(service.port, f"{device}-alive")  # the library answers pings
        wire = await Wire.open(service.port)
        await wire.send(upgrade(device_token(device)))
        assert (await wire.response())[0] == 101
        assert (await wire.message())["event"] == "config"
        assert await wire.frame() == (0x9, b"")
        assert await wire.close_code() == 4000
        await wire.send(frame(0x8, b"\x0f\xa0"))
        assert await wire.ends() == b""
        await wire.close()
        await until(lambda: service.metric(silent) == before + 1)
        assert (await alive.heartbeat())["success"]
        await alive.leave()


class TestDashboard:
    async def test_with_a_header_and_beside_devices(self, service: Service) -> None:
        client = await dial(service.port, user_token(organization="watchers"))
        series = 'vizora_realtime_ws_connections_active{organization_id="watchers",kind="dashboard"}'
        assert service.metric(series) == 1
        await client.leave()

    async def test_a_session_that_ended(self, service: Service, books: Any) -> None:
        books.set("user_revoked:bob", "1")
        assert (await refusal(service.port, user_token("bob")))[0] == 401
        books.set("pwd_changed:eve", str(int(time.time()) + 5))
        assert (await refusal(service.port, user_token("eve")))[0] == 401


async def test_many_screens_on_all_workers(service: Service, books: Any, device: str) -> None:
    names = [f"{device}-{number}" for number in range(100)]
    clients = await asyncio.gather(*(dial_device(service.port, name, organization="many") for name in names))
    bodies = await asyncio.gather(*(client.heartbeat(uptime=1) for client in clients))
    assert all(body["success"] for body in bodies)
    await until(lambda: all("uptime" in status_of(books, name) for name in names))
    assert {status_of(books, name)["worker"] for name in names} == set(range(WORKERS))
    assert books.zcard("vz:{o:many}:devices") == 100
    online = 'vizora_realtime_devices_online{organization_id="many"}'
    assert service.metric(online) == 100
    await asyncio.gather(*(client.leave() for client in clients))


class TestOutage:
    """Redis is killed under the running service."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[EmbeddedServer]:
        store = valkey_server.start(tmp_path / "valkey")
        yield store
        store.stop()

    async def test_nothing_is_lost(self, tmp_path: Path, store: EmbeddedServer) -> None:
        env = {**SECRETS, "REDIS_URL": store.url, "VIZORA_REDIS__RECONNECT_MAX_SECONDS": "0.2"}
        env["VIZORA_LIMITS__MESSAGES_PER_MINUTE"] = "0"  # heartbeats are sent until one tells of the outage
        with Service(tmp_path, env, workers=WORKERS) as service:
            service.start()
            with redis.Redis.from_url(store.url, decode_responses=True) as books:
                await self.live_through(service, store, books)
            assert await asyncio.to_thread(service.stop) == 0

    async def live_through(self, service: Service, store: EmbeddedServer, books: Any) -> None:
        names = [f"screen-{number}" for number in range(10)]
        clients = [await dial_device(service.port, name) for name in names]
        before = {name: status_of(books, name) for name in names}
        assert service.get("/health/ready")[0] == 200
        os.kill(store.pid, signal.SIGKILL)
        async with asyncio.timeout(15):
            for client in clients:
                while "degraded" not in (await client.heartbeat(uptime=5))["data"]:
                    pass
        await until(lambda: not service.redis_up())
        assert service.get("/health/ready")[0] == 200
        late = await dial_device(service.port, "late")
        assert (await late.heartbeat(uptime=5))["data"]["degraded"] is True
        assert (await refusal(service.port, user_token()))[1]["code"] == "STORE_UNAVAILABLE"
        store.restart()
        await until(lambda: all(status_of(books, name).get("uptime") == 5 for name in (*names, "late")))
        for name in names:
            after = status_of(books, name)
            assert after["epoch"] > before[name]["epoch"]
            assert after["since"] == before[name]["since"]
            assert books.get(f"vz:{{d:{name}}}:owner").split()[0] == str(after["epoch"])
        for client in (*clients, late):
            assert "degraded" not in (await client.heartbeat())["data"]
        await until(service.redis_up)


class TestDrain:
    async def test_sigterm(self, tmp_path: Path) -> None:
        with Service(tmp_path, SECRETS, workers=WORKERS) as service:
            service.start()
            clients = [await dial_device(service.port, f"screen-{number}") for number in range(20)]
            clients.append(await dial(service.port, user_token()))
            stopping = asyncio.create_task(asyncio.to_thread(service.stop))
            away = set()
            for client in clients:
                while (message := await client.receive())["event"] != "server:shutdown":
                    assert message["event"] == "device:status"  # the dashboard saw them come
                assert message["data"]["reconnect"] is True
                assert 0 < message["data"]["retryAfterMs"] <= 30_000
                away.add(message["data"]["retryAfterMs"])
                assert await client.ended() == 1012
            assert len(away) > 1
            assert await stopping == 0

    async def test_who_does_not_leave_is_left(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vizora_rt.net.server.websocket.CLOSE_SECONDS", 600.0)
        async with running(redis_url) as node:
            client = await dial_device(node.port, "screen-1")
            client.connection.transport.pause_reading()
            await node.gateway.drain(0.1)
            await until(lambda: not node.gateway.connections)
            client.connection.transport.resume_reading()
            await client.ended()

    async def test_goodbyes_are_spread_and_each_has_its_own_return(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("vizora_rt.app.reconnect_schedule.LEAST_PER_SECOND", 1)
        async with running(redis_url, limits={"handshakes_per_second": 40}) as node:
            clients = [await dial_device(node.port, f"screen-{number}") for number in range(6)]
            draining = asyncio.create_task(node.gateway.drain(1.0))
            await until(lambda: node.gateway.connections <= 4)
            assert node.gateway.connections >= 2
            assert (await refusal(node.port, device_token("screen-7")))[1]["code"] == "DRAINING"
            away = sorted([(await client.next("server:shutdown"))["retryAfterMs"] for client in clients])
            # Told a twelfth of a second after each other, back a thirty-second part of one after each other.
            assert [later - sooner for sooner, later in pairwise(away)] == pytest.approx([52] * 5, abs=2)
            assert min(away) > 3000
            await draining
            assert [await client.ended() for client in clients] == [1012] * 6

    async def test_beside_a_successor_nobody_is_refused(self, redis_url: str) -> None:
        async with running(redis_url) as node:
            client = await dial_device(node.port, "screen-1")
            draining = asyncio.create_task(node.gateway.drain(PATIENCE, successor=True))
            assert 0 < (await client.next("server:shutdown"))["retryAfterMs"] < 1000
            late = await dial_device(node.port, "screen-2")
            assert 0 < (await late.next("server:shutdown"))["retryAfterMs"] < 1000
            assert [await client.ended(), await late.ended()] == [1012, 1012]
            await draining
            assert node.counter("ws_handshakes_rejected_total", "DRAINING") == 0
            await node.gateway.drain(0)
            assert (await refusal(node.port, device_token("screen-3")))[1]["code"] == "DRAINING"


class TestFigures:
    @pytest.fixture
    async def node(self, redis_url: str) -> AsyncIterator[Node]:
        async with running(redis_url) as node:
            yield node

    def rows(self, node: Node, limit: int = 100) -> list[list[object]]:
        return [row for chunk in node.gateway.device_rows(limit) for row in chunk]

    async def test_rows_are_what_changed(self, node: Node) -> None:
        client = await dial_device(node.port, "screen-1")
        assert self.rows(node) == [["screen-1", "acme", 1, None, None, 0, 0]]
        assert self.rows(node) == []
        for cpu in (10, 20, 30):
            await client.heartbeat(metrics={"cpuUsage": cpu})
        await client.ask("heartbeat", "x")
        assert self.rows(node) == [["screen-1", "acme", 1, 30.0, None, 3, 1]]
        assert self.rows(node) == []
        await client.heartbeat()
        assert self.rows(node) == [["screen-1", "acme", 1, None, None, 1, 0]]

    async def test_rows_come_in_chunks(self, node: Node) -> None:
        for number in range(7):
            await dial_device(node.port, f"screen-{number}")
        assert [len(chunk) for chunk in node.gateway.device_rows(3)] == [3, 3, 1]

    async def test_gauges_are_counted_anew(self, node: Node) -> None:
        clients = [await dial_device(node.port, f"screen-{each}", organization=f"o-{each}") for each in (0, 0, 1, 1)]
        clients += [await dial(node.port, user_token(organization="o-0"))]
        await until(lambda: node.gateway.connections == 3)  # two were superseded
        figures = {
            ("ws_connections_active", "o-0", "device"): 1,
            ("ws_connections_active", "o-0", "dashboard"): 1,
            ("ws_connections_active", "o-1", "device"): 1,
            ("devices_online", "o-0"): 1,
            ("devices_online", "o-1"): 1,
        }
        for _ in range(2):
            assert {series: node.gauge(*series) for series in figures} == figures
        for client in clients:
            await client.leave()
        await until(lambda: not node.gateway.connections)
        assert {series: node.gauge(*series) for series in figures} == dict.fromkeys(figures, 0)

    async def test_a_client_that_sends_and_never_reads(self, redis_url: str) -> None:
        limits = {"unsent_seconds": 0.2, "messages_per_minute": 0}
        async with running(redis_url, limits=limits) as node:
            wire = await Wire.open(node.port, 4096)
            await wire.send(upgrade(device_token("screen-1")))
            heartbeats = b"".join(text("heartbeat", {}, number) for number in range(1000))

            async def send() -> None:
                while True:
                    await wire.send(heartbeats)

            sending = asyncio.create_task(send())
            await until(lambda: node.gauge("ws_send_queue_bytes"))
            assert node.gauge("ws_send_queue_bytes") < 1024 * 1024
            await until(lambda: node.counter("limits_exceeded_total", "unsent_seconds"))
            sending.cancel()
            await asyncio.wait([sending])
            assert (await wire.response())[0] == 101
            while (received := await wire.frame())[0] == 0x1:
                pass
            assert received == (0x8, b"\x0f\xa1slow consumer")
            await wire.close()
            await until(lambda: node.counter("ws_disconnects_total", "slow_consumer") == 1)
            assert node.gauge("ws_send_queue_bytes") == 0

    async def test_connections_are_counted_once(self, node: Node) -> None:
        for _ in range(3):
            await (await dial_device(node.port, "screen-1")).leave()
        await until(lambda: not node.gateway.connections)
        counted = [node.counter("ws_connections_total", "acme", each) for each in ("connected", "disconnected")]
        assert counted == [3, 3]
        # Only what the server chose has a reason.
        assert node.counter("ws_disconnects_total", "normal") == 0
