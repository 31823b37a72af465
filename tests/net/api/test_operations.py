"""Metrics, health and status: who may ask, and what they say of Redis and the workers."""

import gzip
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.net.peers import SECRETS, Json, Node, Wire, answered, request, until
from tests.net.valkeys import Valkeys, cannot_save
from tests.service_process import Service
from vizora_rt.net.api import operations
from vizora_rt.net.redis import blocking, refusals
from vizora_rt.net.redis.address import Address
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.wire.resp import pack

SHORT = 0.15
"""Seconds of a limit that a test waits for."""

Open = Callable[..., Any]


class TestMetrics:
    async def ask(self, node: Node, **fields: str) -> int:
        wire = await Wire.open(node.port)
        await wire.send(request("/metrics", **fields))
        status, _, _ = await wire.response()
        await wire.close()
        return status

    async def test_from_this_machine(self, node: Node) -> None:
        assert await self.ask(node) == 200

    @pytest.mark.parametrize(
        "field", ["Forwarded", "X_Forwarded_For", "x_forwarded_proto", "X_Forwarded_Port", "X_Real_IP"]
    )
    async def test_not_through_a_proxy(self, node: Node, field: str) -> None:
        assert await self.ask(node, **{field: "127.0.0.1"}) == 403
        assert await self.ask(node, **{field: ""}) == 403
        assert answered(node, "GET", "/metrics", 403) == 2

    async def test_with_the_token(self, opened: Open) -> None:
        node = await opened(metrics={"token": "s3cret"})
        for authorization, status in (
            ("Bearer s3cret", 200),
            ("bearer s3cret", 200),
            ("Bearer s3cre", 403),
            ("Bearer s3cret1", 403),
            ("Bearer", 403),
            ("Basic s3cret", 403),
            ("Bearer \xe9", 403),
        ):
            assert await self.ask(node, Authorization=authorization, X_Forwarded_For="10.0.0.1") == status
        assert await self.ask(node) == 200

    async def test_an_empty_token_is_none(self, node: Node) -> None:
        assert await self.ask(node, Authorization="Bearer ", X_Forwarded_For="10.0.0.1") == 403

    async def test_public(self, opened: Open) -> None:
        node = await opened(metrics={"public": True})
        assert await self.ask(node, X_Forwarded_For="10.0.0.1") == 200

    @pytest.mark.parametrize(("field", "asked"), [("gzip", True), ("gzip;q=0", False), ("identity, gzip;q=0.1", False)])
    async def test_compressed_as_it_is_asked(self, node: Node, wire: Wire, field: str, asked: bool) -> None:
        await wire.send(request("/metrics", Accept_Encoding=field))
        _, fields, _ = await wire.response()
        assert (fields.get("content-encoding"), fields["vary"]) == (
            "gzip" if asked else None,
            "Accept, Accept-Encoding",
        )

    async def test_nobody_answers(self, node: Node, wire: Wire) -> None:
        node.answers.clear()
        for path in ("/metrics", "/internal/metrics", "/status"):
            await wire.send(request(path))
            status, fields, body = await wire.response()
            assert (status, json.loads(body)["retryable"]) == (503, True)
            assert int(fields["retry-after"]) > 0


class TestHealth:
    async def ask(self, wire: Wire, path: str) -> tuple[int, Json]:
        await wire.send(request(path))
        status, _, body = await wire.response()
        return status, json.loads(body)

    async def test_healthy(self, wire: Wire) -> None:
        status, body = await self.ask(wire, "/health")
        assert body["timestamp"].endswith("Z")
        assert (status, body["status"], body["service"]) == (200, "healthy", "vizora-rt")
        assert body["uptime"] >= 0
        assert body["dependencies"]["redis"]["status"] == "up"
        assert body["dependencies"]["redis"]["latencyMs"] > 0
        assert body["dependencies"]["workers"] == {"status": "up", "up": 1, "of": 1}
        assert await self.ask(wire, "/health/ready") == (200, {"status": "ready"})

    @pytest.mark.parametrize("answer", [{"status": b'{"workers":[{"state":"starting"}]}'}, {}])
    async def test_without_a_worker(self, node: Node, wire: Wire, answer: dict[str, bytes]) -> None:
        node.answers = answer
        _, body = await self.ask(wire, "/health")
        assert (body["status"], body["dependencies"]["workers"]["status"]) == ("degraded", "degraded")

    @pytest.mark.parametrize(("devices", "dashboards"), [(True, False), (False, True), (False, False)])
    async def test_without_redis(self, opened: Open, tmp_path: Path, devices: bool, dashboards: bool) -> None:
        """Ready is who can serve anybody: devices are let in without Redis, unless that is switched off."""
        store = valkey_server.start(tmp_path)
        node = await opened(store.url, auth={"fail_open_devices": devices, "fail_open_dashboards": dashboards})
        wire = await Wire.open(node.port)
        assert (await self.ask(wire, "/health/ready"))[0] == 200
        store.stop()
        await until(lambda: not node.store.up)
        status, body = await self.ask(wire, "/health")
        assert (status, body["status"]) == (200, "degraded")
        reason = node.store.reason
        assert body["dependencies"]["redis"] == {"status": "down", "latencyMs": None, "reason": reason}
        assert reason
        status, body = await self.ask(wire, "/health/ready")
        if devices or dashboards:
            assert (status, body) == (200, {"status": "ready"})
        else:
            assert (status, body["code"], body["retryable"]) == (503, "STORE_UNAVAILABLE", True)
        assert await self.ask(wire, "/health/live") == (200, {"status": "live"})
        await wire.close()

    async def test_with_a_redis_that_does_not_answer(
        self, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(operations, "HEALTH_SECONDS", SHORT)
        store = valkey_server.start(tmp_path)
        node = await opened(store.url)
        wire = await Wire.open(node.port)
        os.kill(store.pid, signal.SIGSTOP)
        _, body = await self.ask(wire, "/health")
        reason = f"no answer within {SHORT:g} s"
        assert body["dependencies"]["redis"] == {"status": "down", "latencyMs": None, "reason": reason}
        os.kill(store.pid, signal.SIGCONT)
        await wire.close()
        store.stop()

    async def test_with_a_redis_that_is_full(
        self, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Also while there is nothing to do: a worker says that it lives."""
        store = valkey_server.start(tmp_path)
        own = redis.Redis.from_url(store.url)
        node = await opened(store.url, presence={"worker_lost_after_seconds": 0.4})
        wire = await Wire.open(node.port)
        own.config_set("maxmemory", 1)
        await until(lambda: node.store.write_error)
        status, body = await self.ask(wire, "/health")
        assert (status, body["status"]) == (200, "degraded")
        assert body["dependencies"]["redis"].pop("latencyMs") > 0
        reason = "takes no writes: OOM, its memory is full (maxmemory)"
        assert body["dependencies"]["redis"] == {"status": "degraded", "reason": reason}
        assert (await self.ask(wire, "/health/ready"))[0] == 200
        own.config_set("maxmemory", 0)
        monkeypatch.setattr(refusals, "FULL_SECONDS", 0.5)
        await until(lambda: not node.store.write_error)
        _, body = await self.ask(wire, "/health")
        assert (body["status"], body["dependencies"]["redis"].keys()) == ("healthy", {"status", "latencyMs"})
        await wire.close()
        own.close()
        store.stop()

    async def test_with_a_redis_that_cannot_save(self, opened: Open, tmp_path: Path) -> None:
        """It answers each PING with MISCONF, also the first on a connection: it is there all the same."""
        with Valkeys(tmp_path) as valkeys:
            server = cannot_save(valkeys, tmp_path)
            node = await opened(f"redis://127.0.0.1:{server.port}")
            assert node.store.write_error == "MISCONF"
            wire = await Wire.open(node.port)
            status, body = await self.ask(wire, "/health")
            assert (status, body["status"]) == (200, "degraded")
            assert body["dependencies"]["redis"].pop("latencyMs") > 0
            reason = "takes no writes: MISCONF, it cannot save to its disk"
            assert body["dependencies"]["redis"] == {"status": "degraded", "reason": reason}
            assert await self.ask(wire, "/health/ready") == (200, {"status": "ready"})
            await wire.close()

    async def test_with_a_redis_that_evicts(self, opened: Open, tmp_path: Path) -> None:
        store = valkey_server.start(tmp_path)
        own = redis.Redis.from_url(store.url)
        own.config_set("maxmemory-policy", "allkeys-lru")
        node = await opened(store.url)
        wire = await Wire.open(node.port)
        _, body = await self.ask(wire, "/health")
        assert body["dependencies"]["redis"]["status"] == "degraded"
        assert body["dependencies"]["redis"]["reason"] == "may delete keys: maxmemory-policy allkeys-lru"
        await wire.close()
        own.close()
        store.stop()

    @pytest.mark.parametrize(
        ("denied", "state", "reason"),
        [
            ("-info", "up", None),
            ("-client", "up", None),
            ("-role", "up", None),
            ("-ping", "degraded", "denies commands: NOPERM, "),
            ("-eval", "up", None),
        ],
    )
    async def test_with_a_redis_that_denies(
        self, opened: Open, tmp_path: Path, denied: str, state: str, reason: str | None
    ) -> None:
        """What it denies later than at the start. A courtesy that is denied is no reason for anything."""
        store = valkey_server.start(tmp_path)
        blocking.ask(Address.parse(store.url), [pack("ACL", "SETUSER", "me", "on", ">p", *["+@all", "~*", "&*"])], 5.0)
        node = await opened(store.url.replace("unix://", "unix://me:p@"))
        blocking.ask(Address.parse(store.url), [pack("ACL", "SETUSER", "me", denied)], 5.0)
        wire = await Wire.open(node.port)
        _, body = await self.ask(wire, "/health")
        found = body["dependencies"]["redis"]
        assert found["status"] == state
        assert (found.get("reason") or "").startswith(reason or "")
        assert ("reason" in found) is (reason is not None)
        await wire.close()
        store.stop()

    async def test_draining(self, node: Node, wire: Wire) -> None:
        await self.ask(wire, "/health")
        await node.gateway.drain(0)
        await wire.send(request("/health"))
        status, fields, text = await wire.response()
        assert (status, fields["connection"], json.loads(text)["status"]) == (200, "close", "unhealthy")
        other = await Wire.open(node.port)
        status, body = await self.ask(other, "/health/ready")
        assert (status, body["code"]) == (503, "DRAINING")
        await other.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("http"), SECRETS) as service:
        yield service.start()


class TestService:
    """What only the whole service can say."""

    def test_metrics_are_an_exposition(self, service: Service) -> None:
        status, body = service.get("/metrics")
        names = {family.name for family in parse_text(body.decode())}
        assert (status, "vizora_realtime_http_requests" in names) == (200, True)
        status, body = service.get("/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})
        assert body.endswith(b"# EOF\n")
        names = {family.name for family in parse_openmetrics(body.decode())}  # type: ignore[no-untyped-call]
        assert "vizora_realtime_ws_messages" in names

    def test_metrics_are_compressed_on_demand(self, service: Service) -> None:
        status, body = service.get("/metrics", {"Accept-Encoding": "gzip"})
        assert (status, b"vizora_realtime_" in gzip.decompress(body)) == (200, True)

    def test_status_names_all_processes(self, service: Service) -> None:
        status = service.status()
        assert (status["service"], status["pid"]) == ("vizora-rt", service.pid)
        workers = status["workers"]
        assert [worker["state"] for worker in workers] == ["ready", "ready"]
        assert len({worker["pid"] for worker in workers}) == 2
        assert all(worker["uptime"] > 0 and worker["connections"] == 0 for worker in workers)

    def test_health_counts_all_workers(self, service: Service) -> None:
        body = json.loads(service.get("/health")[1])
        assert (body["status"], body["dependencies"]["workers"]["up"]) == ("healthy", 2)
        assert service.get("/health/ready")[0] == 200
