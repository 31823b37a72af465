"""Who is let in and what a claim writes, with workers on one loop and a real Valkey that is stopped and killed."""

import asyncio
import os
import signal
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.net.peers import Node, device_token, dial, dial_device, refusal, until, user_token
from tests.net.workers import AWAY, Books, Two, key_of, settled
from vizora_rt.net.valkey import server as valkey_server


class TestDevice:
    async def test_connected(self, node: Node, books: Books) -> None:
        before = books.client.time()[0] * 1000
        await dial_device(node.port, "screen-1")
        epoch, name, worker, connected = books.owner()
        assert (name, worker) == ("node", 0)
        assert epoch >= connected >= before * 1000
        status = books.status()
        assert status.pop("since") == connected // 1000
        assert status == {
            "status": "online",
            "reason": "connected",
            "organizationId": "acme",
            "node": "node",
            "worker": 0,
            "epoch": epoch,
        }
        assert 58 <= books.ttl("vz:{d:screen-1}:status") <= 60
        assert 58 <= books.ttl("vz:{d:screen-1}:owner") <= 60
        assert books.listed() == {"screen-1": connected // 1000}

    async def test_what_a_device_says_stays_text(self, node: Node, books: Books) -> None:
        # The claim's script looks into the status without parsing it.
        client = await dial_device(node.port, "screen-1")
        since = books.status()["since"]
        sly = '","since":1,"lastHeartbeat":2,"status":"offline","x":"'
        await client.heartbeat(currentContent={"contentId": sly, "status": "offline"}, appVersion=sly)
        await until(lambda: "appVersion" in books.status())
        again = await dial_device(node.port, "screen-1")
        await again.heartbeat(appVersion="2")
        status = await books.when(lambda status: status.get("appVersion") == "2")
        assert (status["since"], status["status"]) == (since, "online")


async def test_what_redis_holds_may_be_anything(node: Node, books: Books) -> None:
    """Keys that others broke keep nobody out."""
    broken: dict[str, Any] = {"vz:{d:screen-1}:owner": "nonsense", "vz:{d:screen-1}:status": "nonsense"}
    books.client.mset(broken)
    client = await dial_device(node.port, "screen-1")
    await settled(client)
    assert books.owner()[1] == "node"
    books.client.delete("vz:{d:screen-2}:status")
    books.client.hset("vz:{d:screen-2}:status", "a", "b")
    await settled(await dial_device(node.port, "screen-2"))


class TestRevoked:
    async def test_a_device(self, node: Node, books: Books) -> None:
        books.client.set("vz:{d:screen-1}:revoked", "1")
        status, body = await refusal(node.port, device_token("screen-1"))
        assert (status, body["code"], body["retryable"]) == (403, "DEVICE_REVOKED", False)
        assert body["message"] == "device_token_stale"
        await until(lambda: not books.listed())
        assert (books.status(), books.owner()[0]) == ({}, 0)
        assert node.counter("ws_handshakes_rejected_total", "DEVICE_REVOKED") == 1

    async def test_a_token_of_a_device_that_is_connected(self, two: Two, books: Books) -> None:
        await two.start()
        client = await dial_device(two.a.port, "screen-1", jti="good")
        await client.heartbeat(uptime=5)
        before = await books.when(lambda status: "uptime" in status)
        owner = books.owner()
        books.client.set("revoked_token:stale", "1")
        status, body = await refusal(two.b.port, device_token("screen-1", jti="stale"))
        assert (status, body["code"]) == (403, "DEVICE_REVOKED")
        await until(lambda: books.owner() == owner and books.status() == before)
        assert 0 < books.ttl("vz:{d:screen-1}:owner") <= 60
        assert 0 < books.ttl("vz:{d:screen-1}:status") <= 60
        await settled(client)
        assert "screen-1" in books.listed()

    async def test_a_token_of_a_device_that_is_offline(
        self, stack: AsyncExitStack, redis_url: str, books: Books
    ) -> None:
        worker = await Node(redis_url, presence=AWAY).start()
        stack.push_async_callback(worker.stop)
        await (await dial_device(worker.port, "screen-1")).leave()
        before = await books.when(lambda status: status["status"] == "offline")
        books.client.set("revoked_token:stale", "1")
        assert (await refusal(worker.port, device_token("screen-1", jti="stale")))[0] == 403
        await until(lambda: books.status() == before)
        assert books.ttl("vz:{d:screen-1}:status") > 3600

    async def test_a_token_of_a_device_that_nobody_knows(self, node: Node, books: Books) -> None:
        books.client.set("revoked_token:stale", "1")
        assert (await refusal(node.port, device_token("screen-1", jti="stale")))[0] == 403
        await until(lambda: not books.client.exists("vz:{d:screen-1}:owner", "vz:{d:screen-1}:status", key_of("acme")))


class TestDashboards:
    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("revoked_token:j-1", "1"),
            ("user_revoked:ann", "1"),
            ("pwd_changed:ann", "seconds"),
            ("pwd_changed:ann", "ms"),
            ("pwd_changed:ann", "iso"),
            ("pwd_changed:ann", "never"),
        ],
    )
    async def test_refused(self, node: Node, books: Books, key: str, value: str) -> None:
        token = user_token(jti="j-1")
        client = await dial(node.port, token)
        await client.leave()
        changed = books.client.time()[0] + 10
        written = {"seconds": str(changed), "ms": str(changed * 1000), "iso": f"{datetime.fromtimestamp(changed, UTC)}"}
        books.client.set(key, written.get(value, value))
        status, body = await refusal(node.port, token)
        assert (status, body["code"]) == (401, "AUTH_INVALID")

    @pytest.mark.parametrize("value", ["1", "1000000000000", "2026-01-01T00:00:00.000Z"])
    async def test_a_password_that_was_changed_before_the_token_was_made(
        self, node: Node, books: Books, value: str
    ) -> None:
        books.client.set("pwd_changed:ann", value)
        await (await dial(node.port, user_token())).leave()

    async def test_a_token_that_does_not_say_when_it_was_made_is_older_than_any_change(
        self, node: Node, books: Books
    ) -> None:
        await (await dial(node.port, user_token(iat=None))).leave()
        books.client.set("pwd_changed:ann", "1")
        assert (await refusal(node.port, user_token(iat=None)))[0] == 401

    async def test_nothing_is_written(self, node: Node, books: Books) -> None:
        before = set(books.client.keys("*"))
        await (await dial(node.port, user_token())).leave()
        assert set(books.client.keys("*")) == before


class TestRedisAway:
    async def test_closed_when_a_revocation_must_be_checked(self, two: Two) -> None:
        await two.start(stores=False, auth={"fail_open_devices": False, "fail_open_dashboards": False})
        for token in (device_token("screen-1"), user_token()):
            status, body = await refusal(two.a.port, token)
            assert (status, body["code"], body["retryable"]) == (503, "STORE_UNAVAILABLE", True)
        assert two.a.counter("ws_handshakes_rejected_total", "STORE_UNAVAILABLE") == 2

    async def test_open_when_told_so(self, two: Two) -> None:
        await two.start(stores=False, auth={"fail_open_devices": True, "fail_open_dashboards": True})
        await dial_device(two.a.port, "screen-1")
        await dial(two.a.port, user_token())

    async def test_it_goes_away_while_a_claim_is_under_way(self, stack: AsyncExitStack, tmp_path: Path) -> None:
        store = valkey_server.start(tmp_path)
        stack.callback(store.stop)
        open_ = await Node(store.url, 0, auth={"fail_open_devices": True}).start()
        closed = await Node(store.url, 1, auth={"fail_open_devices": False}).start()
        stack.push_async_callback(open_.stop)
        stack.push_async_callback(closed.stop)
        os.kill(store.pid, signal.SIGSTOP)
        arriving = asyncio.create_task(dial_device(open_.port, "screen-1", jti="j-1"))
        refused = asyncio.create_task(refusal(closed.port, device_token("screen-2", jti="j-1")))
        await until(lambda: open_.gauge("redis_pipeline_depth") and closed.gauge("redis_pipeline_depth"))
        os.kill(store.pid, signal.SIGKILL)
        assert (await (await arriving).heartbeat())["data"]["degraded"] is True
        assert (await refused)[1]["code"] == "STORE_UNAVAILABLE"
