"""Who may come in: the places of a token, each kind of wrong one, origins, and each limit with one connection more."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import Any

import jwt
import pytest
import redis

from tests.net.peers import (
    DEVICE_SECRET,
    USER_SECRET,
    Client,
    Node,
    Wire,
    device_token,
    dial,
    dial_device,
    frame,
    refusal,
    until,
    upgrade,
    user_token,
)
from vizora_rt.app.auth import MAX_TOKEN
from vizora_rt.wire.http import Request, RequestParser

PAGE = "https://dashboard.test"
WORDS_THAT_UNPAIR = ("unauthorized", "invalid token", "device_token_stale", "device_not_found")
"""A shipped player that reads one of these throws its pairing away."""

Open = Callable[..., Any]


@pytest.fixture
async def opened(redis_url: str) -> AsyncIterator[Open]:
    """Starts workers, given the configuration."""
    nodes: list[Node] = []

    async def start(**sections: dict[str, Any]) -> Node:
        nodes.append(await Node(redis_url, 0, **sections).start())
        return nodes[-1]

    yield start
    for node in nodes:
        await node.stop()


@pytest.fixture
async def node(opened: Open) -> Node:
    started: Node = await opened()
    return started


async def knock(node: Node, token: str) -> tuple[int, int]:
    """Status of a handshake, and the seconds of its Retry-After."""
    wire = await Wire.open(node.port)
    await wire.send(upgrade(token))
    status, fields, _ = await wire.response()
    await wire.close()
    return status, int(fields.get("retry-after", 0))


def rejected(node: Node, code: str) -> int:
    return node.counter("ws_handshakes_rejected_total", code)


class TestPlacesOfAToken:
    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
    async def test_authorization(self, node: Node, scheme: str) -> None:
        client = await dial(node.port, headers={"Authorization": f"{scheme} {device_token('screen-1')}"})
        await client.next("config")

    async def test_subprotocol(self, node: Node) -> None:
        token = device_token("screen-1")
        client = await dial(node.port, subprotocols=["vizora.v1", f"bearer.{token}"])
        await client.next("config")
        # Named back: a browser ends a connection whose server chose none of what it offered.
        assert client.connection.subprotocol == "vizora.v1"

    async def test_query(self, node: Node) -> None:
        client = await dial(node.port, query=f"?a=b&token={device_token('screen-1')}")
        await client.next("config")

    async def test_cookie_of_a_dashboard(self, opened: Open) -> None:
        node = await opened(auth={"cors_origins": [PAGE]})
        cookie = {"Cookie": f"theme=dark; vizora_auth_token={user_token()}"}
        await dial(node.port, headers=cookie, origin=PAGE)
        await until(lambda: node.gauge("ws_connections_active", "acme", "dashboard") == 1)

    async def test_a_cookie_is_no_device(self, opened: Open) -> None:
        node = await opened(auth={"cors_origins": [PAGE]})
        cookie = {"Cookie": f"vizora_auth_token={device_token('screen-1')}"}
        status, body = await refusal(node.port, headers=cookie, origin=PAGE)
        assert (status, body["code"]) == (401, "AUTH_INVALID")

    async def test_the_first_place_counts(self, node: Node) -> None:
        client = await dial(node.port, device_token("screen-1"), query="?token=nonsense", subprotocols=["vizora.v1"])
        await client.next("config")
        assert (await refusal(node.port, "nonsense", query=f"?token={device_token('screen-1')}"))[0] == 401

    @pytest.mark.parametrize(
        ("offered", "chosen"), [(["vizora.v1"], "vizora.v1"), (["chat", "vizora.v1"], "vizora.v1"), (["chat"], None)]
    )
    async def test_subprotocols_without_a_token(self, node: Node, offered: list[str], chosen: str | None) -> None:
        wire = await Wire.open(node.port)
        await wire.send(upgrade(device_token("screen-1"), Sec_WebSocket_Protocol=", ".join(offered)))
        status, fields, _ = await wire.response()
        assert (status, fields.get("sec-websocket-protocol")) == (101, chosen)
        await wire.close()


def wrong(token: str) -> str:
    """Another signature of the same length."""
    head, _, signature = token.rpartition(".")
    return f"{head}.{signature[::-1]}"


NOW = int(time.time())
WRONG: dict[str, str] = {
    "none": "",
    "no token at all": "nonsense",
    "of two parts": "eyJhbGciOiJIUzI1NiJ9.e30",
    "not base64": "!.!.!",
    "too long": device_token("s", x="x" * MAX_TOKEN),
    "another signature": wrong(device_token("s")),
    "another secret": device_token("s", secret="z" * 40),
    "a device signed like a user": device_token("s", secret=USER_SECRET),
    "a user signed like a device": user_token("u", secret=DEVICE_SECRET),
    "unsigned": jwt.encode({"sub": "s", "organizationId": "o", "type": "device"}, "", "none"),
    "another algorithm": jwt.encode({"sub": "s", "organizationId": "o", "type": "device"}, "d" * 70, "HS512"),
    "without a subject": device_token("s", sub=None),
    "without an organisation": device_token("s", organizationId=None),
    "an empty subject": device_token(""),
    "a subject that is a number": device_token("s", sub=7),
    "a subject with a space": device_token("screen 1"),
    "a subject with braces": device_token("{screen-1}"),
    "a subject with a line feed": device_token("screen\n1"),
    "a long subject": device_token("s" * 129),
    "an organisation with braces": device_token("s", "{o}"),
    "an expiry that is text": device_token("s", exp="tomorrow"),
    "a token id that is a number": device_token("s", jti=5),
    "not valid yet": device_token("s", nbf=NOW + 1000),
}


class TestTokens:
    @pytest.mark.parametrize("token", WRONG.values(), ids=WRONG)
    async def test_wrong(self, node: Node, token: str) -> None:
        status, body = await refusal(node.port, token)
        assert (status, body) == (401, {"code": "AUTH_INVALID", "message": "auth_invalid", "retryable": False})
        assert rejected(node, "AUTH_INVALID") == 1
        assert node.counter("ws_connections_total", "unknown", "rejected") == 1
        assert node.gateway.connections == 0

    async def test_expired(self, node: Node) -> None:
        for _ in range(2):
            status, body = await refusal(node.port, device_token("screen-1", exp=NOW - 1))
            assert (status, body) == (401, {"code": "AUTH_EXPIRED", "message": "auth_expired", "retryable": False})
        assert rejected(node, "AUTH_EXPIRED") == 2

    async def test_it_expires_although_it_is_remembered(self, node: Node) -> None:
        token = device_token("screen-1", exp=time.time() + 0.5)
        await (await dial(node.port, token)).leave()
        await until(lambda: time.time() > jwt.decode(token, options={"verify_signature": False})["exp"])
        assert (await refusal(node.port, token))[1]["code"] == "AUTH_EXPIRED"

    async def test_without_an_expiry(self, node: Node) -> None:
        await dial_device(node.port, "screen-1", exp=None)

    async def test_two_secrets_while_tokens_are_replaced(self, opened: Open) -> None:
        node = await opened(auth={"device_jwt_secret_previous": "o" * 40, "jwt_secret_previous": "p" * 40})
        await dial_device(node.port, "screen-1")
        await dial(node.port, device_token("screen-2", secret="o" * 40))
        await dial(node.port, user_token(secret="p" * 40))
        assert (await refusal(node.port, device_token("screen-3", secret="p" * 40)))[0] == 401
        assert node.gateway.connections == 3

    async def test_ids_of_other_people(self, node: Node) -> None:
        client = await dial_device(node.port, "Bildschirm-Ä/日本:7")
        assert (await client.heartbeat())["success"]


class TestOrigins:
    async def test_a_page_that_is_not_trusted(self, node: Node) -> None:
        for how in ({"token": user_token()}, {"query": f"?token={user_token()}"}):
            status, body = await refusal(node.port, origin=PAGE, **how)
            assert (status, body["code"], body["retryable"]) == (403, "ORIGIN_DENIED", False)
        assert rejected(node, "ORIGIN_DENIED") == 2
        assert node.counter("ws_connections_total", "acme", "rejected") == 2

    async def test_a_page_of_ours_and_a_trusted_one(self, opened: Open) -> None:
        node = await opened(auth={"cors_origins": [PAGE]})
        await dial(node.port, user_token(), origin=f"http://127.0.0.1:{node.port}")
        await dial(node.port, user_token(), origin=PAGE)

    async def test_a_cookie_needs_one(self, opened: Open) -> None:
        node = await opened(auth={"cors_origins": [PAGE]})
        cookie = {"Cookie": f"vizora_auth_token={user_token()}"}
        for origin in (None, "https://evil.test", "null", f"http://127.0.0.1:{node.port}"):
            assert (await refusal(node.port, headers=cookie, origin=origin))[1]["code"] == "ORIGIN_DENIED"
        await dial(node.port, headers=cookie, origin=PAGE)

    @pytest.mark.parametrize("listed", ["null", "file://", "*"])
    async def test_a_cookie_needs_a_page_of_the_web(self, opened: Open, listed: str) -> None:
        """Any frame in a sandbox says `null`, and a browser gives it the cookie."""
        node = await opened(auth={"cors_origins": [listed]})
        cookie = {"Cookie": f"vizora_auth_token={user_token()}"}
        for origin in ("null", "file://", PAGE):
            assert (await refusal(node.port, headers=cookie, origin=origin))[1]["code"] == "ORIGIN_DENIED"

    @pytest.mark.parametrize("origin", ["file://", "null", "vizora://player"])
    async def test_a_player_in_a_shell_of_its_own(self, node: Node, origin: str) -> None:
        await dial(node.port, device_token("screen-1"), origin=origin)


class TestLimits:
    """Up to the limit everybody comes in, one more does not, and who leaves makes room."""

    async def test_connections_at_a_time(self, opened: Open) -> None:
        node = await opened(limits={"max_connections": 3})
        clients = [await dial_device(node.port, f"screen-{number}") for number in range(3)]
        assert await refusal(node.port, device_token("screen-4")) == (
            503,
            {"code": "OVERLOADED", "message": "overloaded", "retryable": True},
        )
        assert rejected(node, "OVERLOADED") == 1
        assert node.counter("limits_exceeded_total", "max_connections") == 1
        assert node.gauge("ws_connections_limit") == 3
        await self.leaves(node, clients[0])
        await dial_device(node.port, "screen-4")

    async def test_connections_of_an_address_at_a_time(self, opened: Open) -> None:
        node = await opened(limits={"connections_per_address": 2})
        clients = [await dial_device(node.port, f"screen-{number}") for number in range(2)]
        status, body = await refusal(node.port, device_token("screen-3"))
        assert (status, body) == (429, {"code": "RATE_LIMITED", "message": "rate_limited", "retryable": True})
        assert rejected(node, "RATE_LIMITED") == 1
        assert node.counter("limits_exceeded_total", "connections_per_address") == 1
        await self.leaves(node, clients[0])
        await dial_device(node.port, "screen-3")

    async def test_connections_of_a_token_a_minute(self, opened: Open) -> None:
        node = await opened(limits={"connections_per_minute": 4})
        token = device_token("screen-1")
        for _ in range(4):
            await (await dial(node.port, token)).leave()
        assert (await refusal(node.port, token))[1]["code"] == "RATE_LIMITED"
        assert node.counter("limits_exceeded_total", "connections_per_minute") == 1
        await dial(node.port, device_token("screen-1", jti="another token"))

    async def test_wrong_tokens_cost_the_right_one_nothing(self, opened: Open) -> None:
        node = await opened(limits={"connections_per_minute": 1})
        token = device_token("screen-1")
        for _ in range(3):
            assert (await refusal(node.port, wrong(token)))[0] == 401
        await dial(node.port, token)

    async def test_connections_of_an_address_a_minute(self, opened: Open) -> None:
        node = await opened(limits={"connections_per_address_per_minute": 3})
        for number in range(3):
            await (await dial_device(node.port, f"screen-{number}")).leave()
        assert (await refusal(node.port, device_token("screen-4")))[1]["code"] == "RATE_LIMITED"
        assert node.counter("limits_exceeded_total", "connections_per_address_per_minute") == 1

    async def test_handshakes_a_second(self, opened: Open) -> None:
        """One at once is what is left of a budget of 16; the others are told when to come, one after the other."""
        limits = {"handshakes_per_second": 16, "handshake_wait_seconds": 0}
        node = await opened(limits=limits, auth={"device_jwt_secret": "x" * 40})
        valid = [device_token(f"screen-{number}", secret="x" * 40) for number in range(44)]
        asked = perf_counter()
        answers = await asyncio.gather(*(knock(node, token) for token in valid))
        took = perf_counter() - asked
        status_writer = [status for status, _ in answers]
        assert 1 <= status_writer.count(101) <= 2 + 16 * took
        waits = sorted(wait for status, wait in answers if status == 503)
        assert len(waits) == 44 - status_writer.count(101)
        assert waits == pytest.approx([1 + number // 16 for number in range(len(waits))], abs=1)
        assert node.counter("limits_exceeded_total", "handshakes_per_second") == len(waits)
        assert rejected(node, "OVERLOADED") == len(waits)

    async def test_what_is_wrong_takes_nothing_of_the_budget(self, opened: Open) -> None:
        node = await opened(limits={"handshakes_per_second": 1})
        for _ in range(20):
            assert (await refusal(node.port, "nonsense"))[0] == 401
            assert (await refusal(node.port, user_token(), origin=PAGE))[0] == 403
        await dial_device(node.port, "screen-1")

    async def test_over_the_budget_redis_is_not_asked(self, opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        node = await opened(limits={"handshakes_per_second": 1, "handshake_wait_seconds": 0})
        await dial_device(node.port, "screen-1")
        monkeypatch.setattr(node.gateway._admission, "_ownership_store", None)
        assert (await refusal(node.port, device_token("screen-2")))[1]["code"] == "OVERLOADED"

    async def test_over_the_budget_they_wait(self, opened: Open) -> None:
        node = await opened(limits={"handshakes_per_second": 20})
        wires = [await Wire.open(node.port) for _ in range(20)]
        for number, wire in enumerate(wires):
            wire.writer.write(upgrade(device_token(f"screen-{number}")))
        await until(lambda: node.gauge("ws_handshakes_waiting") > 0)
        assert [(await wire.response())[0] for wire in wires] == [101] * 20
        assert node.gauge("ws_handshakes_waiting") == 0
        assert rejected(node, "OVERLOADED") == node.counter("limits_exceeded_total", "handshakes_per_second") == 0
        for wire in wires:
            await wire.close()

    async def test_who_leaves_while_it_waits_was_never_here(self, opened: Open, redis_url: str) -> None:
        node = await opened(limits={"handshakes_per_second": 1, "max_connections": 3})
        await dial_device(node.port, "screen-1")
        wires = [await Wire.open(node.port) for _ in range(2)]
        for wire in wires:
            await wire.send(upgrade(device_token("screen-2")))
        await until(lambda: node.gauge("ws_handshakes_waiting") == 2)
        assert (await refusal(node.port, device_token("screen-3")))[1]["code"] == "OVERLOADED"
        assert node.counter("limits_exceeded_total", "max_connections") == 1
        for wire in wires:
            await wire.close()
        await until(lambda: node.gauge("ws_handshakes_waiting") == 0)
        await dial_device(node.port, "screen-3")
        assert node.gateway.connections == 2
        with redis.Redis.from_url(redis_url) as client:
            assert not client.exists("vz:{d:screen-2}:owner")

    async def test_who_waits_while_the_worker_ends_is_sent_away(self, opened: Open) -> None:
        node = await opened(limits={"handshakes_per_second": 1})
        await dial_device(node.port, "screen-1")
        wire = await Wire.open(node.port)
        await wire.send(upgrade(device_token("screen-2")))
        await until(lambda: node.gauge("ws_handshakes_waiting") == 1)
        await node.gateway.drain(0)
        status, fields, body = await wire.response()
        assert (status, json.loads(body)["code"]) == (503, "DRAINING")
        assert int(fields["retry-after"]) > 0
        await wire.close()

    async def test_who_is_refused_for_a_rate_is_told_how_long(self, opened: Open) -> None:
        node = await opened(limits={"connections_per_minute": 2})
        token = device_token("screen-1")
        for _ in range(2):
            await (await dial(node.port, token)).leave()
        assert await knock(node, token) == (429, 30)

    async def test_zero_is_no_limit(self, opened: Open) -> None:
        none = (
            "handshakes_per_second",
            "connections_per_minute",
            "connections_per_address",
            "connections_per_address_per_minute",
        )
        node = await opened(limits=dict.fromkeys(none, 0))
        token = device_token("screen-1")
        for _ in range(40):
            await dial(node.port, token)
        assert node.counter("ws_connections_total", "acme", "connected") == 40

    async def test_who_is_refused_takes_no_place(self, redis_url: str, opened: Open) -> None:
        node = await opened(limits={"max_connections": 2, "connections_per_address": 2})
        for _ in range(5):
            assert (await refusal(node.port, "nonsense"))[0] == 401
            assert (await refusal(node.port, user_token(), origin=PAGE))[0] == 403
        with redis.Redis.from_url(redis_url) as client:
            client.set("vz:{d:screen-9}:revoked", "1")
        for _ in range(5):
            assert (await refusal(node.port, device_token("screen-9")))[0] == 403
        for number in range(2):
            await dial_device(node.port, f"screen-{number}")

    async def test_who_is_still_being_checked_takes_a_place(self, redis_url: str, opened: Open) -> None:
        node = await opened(limits={"connections_per_address": 3})
        wires = [await Wire.open(node.port) for _ in range(10)]
        for number, wire in enumerate(wires):
            wire.writer.write(upgrade(device_token(f"screen-{number}")))
        status_writer = [(await wire.response())[0] for wire in wires]
        assert (status_writer.count(101), status_writer.count(429)) == (3, 7)
        for wire in wires:
            await wire.close()

    async def leaves(self, node: Node, client: Client) -> None:
        before = node.gateway.connections
        await client.leave()
        await until(lambda: node.gateway.connections < before)


class TestUnidentified:
    """Socket.IO clients that have not said who they are have a budget of their own."""

    PATH = "/socket.io/?EIO=4&transport=websocket"

    async def greet(self, node: Node) -> tuple[int, Wire]:
        wire = await Wire.open(node.port)
        await wire.send(upgrade("", self.PATH, Authorization=""))
        return (await wire.response())[0], wire

    async def test_those_who_never_say_it_take_nothing_of_the_others(self, opened: Open) -> None:
        node = await opened(limits={"handshakes_per_second": 40, "handshake_wait_seconds": 0})
        greeted = [await self.greet(node) for _ in range(30)]
        assert [status for status, _ in greeted].count(503) >= 20
        assert node.counter("limits_exceeded_total", "unidentified_per_second") >= 20
        for number in range(2):
            await dial_device(node.port, f"screen-{number}")
        assert node.counter("limits_exceeded_total", "handshakes_per_second") == 0
        for _, wire in greeted:
            await wire.close()
        await until(lambda: not node.gateway._admission._unidentified)

    async def test_who_says_it_gives_its_share_back(self, opened: Open) -> None:
        """And then takes its turn among all the others."""
        node = await opened(limits={"handshakes_per_second": 1, "handshake_wait_seconds": 5})
        await dial_device(node.port, "screen-1")
        wires = []
        for number in (2, 3):
            status, wire = await self.greet(node)
            assert status == 101
            assert (await wire.frame())[1].startswith(b"0{")
            await wire.send(frame(0x1, b"40" + json.dumps({"token": device_token(f"screen-{number}")}).encode()))
            wires.append(wire)
            if number == 2:
                await until(lambda: node.gauge("ws_handshakes_waiting") == 1)
                await wire.close()  # it leaves its place
                await until(lambda: node.gauge("ws_handshakes_waiting") == 0)
        assert node.counter("limits_exceeded_total", "unidentified_per_second") == 0
        assert (await wires[1].frame())[1].startswith(b"40{")
        assert node.counter("ws_connections_total", "acme", "connected") == 2
        await wires[1].close()

    async def test_those_of_one_address_at_a_time(self, opened: Open) -> None:
        node = await opened(limits={"unidentified_per_address": 2})
        greeted = [await self.greet(node) for _ in range(4)]
        assert [status for status, _ in greeted] == [101, 101, 429, 429]
        assert node.counter("limits_exceeded_total", "unidentified_per_address") == 2
        await greeted[0][1].close()
        await until(lambda: node.http.exchanges <= 1)
        status, wire = await self.greet(node)
        assert status == 101
        await wire.send(frame(0x1, b"40" + json.dumps({"token": device_token("screen-1")}).encode()))
        await until(lambda: node.gateway.connections == 1)
        status, last = await self.greet(node)  # it is known now
        assert status == 101
        for each in (*(each for _, each in greeted), wire, last):
            await each.close()
        await until(lambda: not node.gateway._admission._unidentified)


class TestTogether:
    """Handshakes that come soon after others are decided on together."""

    def knock(self, node: Node, number: int, seen: list[tuple[int, str]]) -> None:
        request = RequestParser(16384, 0).feed(upgrade("nonsense"))
        assert isinstance(request, Request)
        node.gateway._admission.admit(
            request, "192.0.2.1", lambda *_: None, lambda why: seen.append((number, why.code)), lambda place: None
        )

    async def test_who_comes_alone_does_not_wait(self, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vizora_rt.net.access.admission.TOGETHER", 60.0)
        seen: list[tuple[int, str]] = []
        for number in range(4):
            self.knock(node, number, seen)
        assert seen == [(0, "AUTH_INVALID")]
        node.gateway._admission._decide()
        assert seen == [(number, "AUTH_INVALID") for number in range(4)]

    async def test_a_turn_comes_by_itself(self, node: Node) -> None:
        clients = await asyncio.gather(*(dial_device(node.port, f"screen-{number}") for number in range(20)))
        assert len(clients) == node.gateway.connections == 20

    async def test_a_fault_with_one_costs_the_others_nothing(
        self, node: Node, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("vizora_rt.net.access.admission.TOGETHER", 60.0)
        seen: list[tuple[int, str]] = []
        verify, tokens = node.gateway._admission.identify, iter(range(4))

        def identify(*arguments: Any) -> Any:
            if next(tokens) == 1:
                raise RuntimeError("broken")
            return verify(*arguments)

        monkeypatch.setattr(node.gateway._admission, "identify", identify)
        for number in range(4):
            self.knock(node, number, seen)
        capfd.readouterr()
        node.gateway._admission._decide()
        assert [code for _, code in seen] == ["AUTH_INVALID", "INTERNAL", "AUTH_INVALID", "AUTH_INVALID"]
        line = json.loads(capfd.readouterr().err)
        assert (line["level"], line["event"]) == ("error", "handshake failed")


async def test_no_refusal_that_passes_makes_a_player_unpair(opened: Open) -> None:
    node = await opened(limits={"max_connections": 1})
    client = await dial_device(node.port, "screen-1")
    status, body = await refusal(node.port, device_token("screen-2"))
    assert not any(word in str(body).lower() for word in WORDS_THAT_UNPAIR)
    await client.leave()
    node.gateway._admission.draining = True
    status, body = await refusal(node.port, device_token("screen-2"))
    assert (status, body["code"], body["retryable"]) == (503, "DRAINING", True)
    assert not any(word in str(body).lower() for word in WORDS_THAT_UNPAIR)
    assert rejected(node, "DRAINING") == 1
