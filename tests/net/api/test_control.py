"""What all calls of the control API have in common: guard, methods, bodies, idempotency, audit, an outage of Redis."""

import asyncio
import gc
import json
from collections.abc import Callable
from typing import ClassVar

import pytest

from tests.net.backend import API_KEY, Backed, Screen, books, call, fleet
from tests.net.peers import Json, Wire, until
from tests.net.proxy import Proxy
from vizora_rt.net.redis.address import Address

RELOAD = {"deviceId": "lobby", "command": {"type": "reload"}}

CALLS: dict[tuple[str, str], Json | None] = {
    ("POST", "/push/playlist"): {"deviceId": "lobby", "playlist": {}},
    ("POST", "/push/content"): {"deviceId": "lobby", "content": {}},
    ("POST", "/commands/broadcast"): {"deviceIds": ["lobby"], "command": {"type": "reload"}},
    ("POST", "/internal/command"): RELOAD,
    ("GET", "/commands/c1"): None,
    ("POST", "/notifications/broadcast"): {"organizationId": "acme", "notification": {}},
    ("POST", "/internal/device-revoked"): {"deviceId": "lobby"},
    ("DELETE", "/internal/device-revoked?deviceId=lobby"): None,
    ("POST", "/internal/tenant-entitlement"): {"organizationId": "acme", "state": "suspended"},
    ("POST", "/internal/token-refresh"): {"deviceId": "lobby", "token": "abc"},
    ("GET", "/devices/lobby"): None,
    ("DELETE", "/devices/lobby"): None,
    ("GET", "/organizations/acme/devices"): None,
    ("GET", "/devices/lobby/plays"): None,
    ("GET", "/screenshots/r1"): None,
}
"""Every route, with a body that is right."""

AUDITED: dict[tuple[str, str], Json] = {
    ("POST", "/push/playlist"): {"device_id": "lobby"},
    ("POST", "/push/content"): {"device_id": "lobby", "command": "push_content"},
    ("POST", "/commands/broadcast"): {"command": "reload", "devices": 1},
    ("POST", "/internal/command"): {"device_id": "lobby", "command": "reload"},
    ("POST", "/notifications/broadcast"): {"organization_id": "acme"},
    ("POST", "/internal/device-revoked"): {"device_id": "lobby", "reason": "revoked"},
    ("DELETE", "/internal/device-revoked"): {"device_id": "lobby"},
    ("POST", "/internal/tenant-entitlement"): {"organization_id": "acme", "state": "suspended"},
    ("POST", "/internal/token-refresh"): {"device_id": "lobby"},
    ("DELETE", "/devices/lobby"): {"device_id": "lobby"},
}
"""What the line of each changing call names."""

EVERY = pytest.mark.parametrize(("method", "path"), CALLS)
CHANGING = [(method, path) for method, path in CALLS if method != "GET"]
WITH_BODY = [(method, path) for method, path in CALLS if method == "POST"]


class TestGuard:
    @EVERY
    async def test_without_the_key_or_with_another(self, redis_url: str, method: str, path: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            for key in (None, "", "wrong", API_KEY[:-1], API_KEY + "k", "\u00e9"):
                answer = await call(node, method, path, CALLS[method, path], key=key)
                assert (answer.status, answer.body["code"]) == (401, "API_KEY_INVALID")
                assert answer.body["retryable"] is False
            assert books(redis_url).keys("vz:{*") == []

    @EVERY
    async def test_when_no_key_is_set_nobody_has_it(self, redis_url: str, method: str, path: str) -> None:
        async with fleet(redis_url, 1, auth={"internal_api_secret": ""}) as (node,):
            for key in (None, "", "x"):
                assert (await call(node, method, path, CALLS[method, path], key=key)).status == 401


class TestRoutes:
    @EVERY
    async def test_with_a_wrong_method(self, redis_url: str, method: str, path: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "PUT", path)
            assert (answer.status, answer.body["code"]) == (405, "METHOD_NOT_ALLOWED")
            assert method in answer.headers["allow"].upper()

    @pytest.mark.parametrize(
        "path",
        [
            "/push",
            "/devices",
            "/devices/",
            "/devices/a/b",
            "/devices/a/plays/x",
            "/internal/other",
            "/commands/a/b",
            "//",
        ],
    )
    async def test_without_such_a_route(self, redis_url: str, path: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "GET", path)
            assert (answer.status, answer.body["code"]) == (404, "NOT_FOUND")

    async def test_a_leading_api_is_ignored_and_paths_are_counted_by_pattern(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            assert (await call(node, "POST", "/api/internal/command", RELOAD)).status == 202
            for device in ("a", "b%2Fc", "d"):
                assert (await call(node, "GET", f"/api/devices/{device}")).status == 404
            assert node.counter("http_requests_total", "GET", "/devices/{id}", "404") == 3
            assert node.counter("http_requests_total", "POST", "/internal/command", "202") == 1

    async def test_an_id_may_hold_what_a_path_may_not(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            body = {"deviceId": "a/b?c", "command": {"type": "reload"}}
            assert (await call(node, "POST", "/internal/command", body)).status == 202
            found = await call(node, "GET", "/devices/a%2Fb%3Fc")
            assert (found.status, found.body["deviceId"], found.body["commandsWaiting"]) == (200, "a/b?c", 1)

    @pytest.mark.parametrize("path", ["/devices/a%20b", "/devices/%7Ba%7D", "/devices/" + "x" * 129])
    async def test_what_is_no_id(self, redis_url: str, path: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            assert (await call(node, "GET", path)).status == 404


class TestBodies:
    @pytest.mark.parametrize(("method", "path"), WITH_BODY)
    @pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"a":"\\ud800"}', b"[" * 2000])
    async def test_no_json(self, redis_url: str, method: str, path: str, body: bytes) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, method, path, body)
            assert (answer.status, answer.body["code"]) == (400, "INVALID_BODY")
            assert answer.body["details"] == {"body": "expected JSON"}

    @pytest.mark.parametrize(("method", "path"), WITH_BODY)
    async def test_fields_are_named(self, redis_url: str, method: str, path: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            assert (await call(node, method, path, b"[]")).body["details"] == {"body": "expected an object"}
            for name in CALLS[method, path] or ():
                without = {key: value for key, value in (CALLS[method, path] or {}).items() if key != name}
                answer = await call(node, method, path, without)
                assert (answer.status, list(answer.body["details"])) == (400, [name])
                wrong = await call(node, method, path, {**without, name: 7})
                assert (wrong.status, list(wrong.body["details"])) == (400, [name])
            assert books(redis_url).keys("vz:{*") == []

    @pytest.mark.parametrize(("method", "path"), WITH_BODY)
    async def test_too_large(self, redis_url: str, method: str, path: str) -> None:
        async with fleet(redis_url, 1, limits={"body_bytes": 1000}) as (node,):
            answer = await call(node, method, path, b" " * 1001)
            assert (answer.status, answer.body["code"]) == (413, "CONTENT_TOO_LARGE")


class TestUnknown:
    @EVERY
    async def test_a_parameter_of_the_query(self, redis_url: str, method: str, path: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            for name in ("dryRun", "Limit", "organizationID", "device%49d2"):
                target = f"{path}{'&' if '?' in path else '?'}{name}=1"
                answer = await call(node, method, target, CALLS[method, path])
                assert (answer.status, answer.body["code"]) == (400, "INVALID_BODY")
                assert list(answer.body["details"]) == [name.replace("%49", "I")]
            assert books(redis_url).keys("vz:{*") == []

    @EVERY
    async def test_a_field_of_the_body(self, redis_url: str, method: str, path: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, method, path, {**(CALLS[method, path] or {}), "dryRun": True})
            assert (answer.status, list(answer.body["details"])) == (400, ["dryRun"])
            assert books(redis_url).keys("vz:{*") == []

    @pytest.mark.parametrize(
        ("method", "path", "name"),
        [
            ("GET", "/organizations/acme/devices?limit=1&limit=2", "limit"),
            ("GET", "/organizations/acme/devices?offset=1&o%66fset=2", "offset"),
            ("DELETE", "/internal/device-revoked?deviceId=a&deviceId=b", "deviceId"),
            ("DELETE", "/internal/device-revoked?deviceId=a&jti=b&jti=", "jti"),
        ],
    )
    async def test_a_parameter_that_is_there_twice(self, redis_url: str, method: str, path: str, name: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, method, path)
            assert (answer.status, answer.body["details"]) == (400, {name: "is there more than once"})

    async def test_a_token_is_not_let_in_by_a_misspelt_call(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            await call(node, "POST", "/internal/device-revoked", {"deviceId": "lobby"})
            for query, body in (("?deviceId=lobby&JTI=t1", None), ("?deviceId=lobby&jti=t1", {"jti": "t2"})):
                answer = await call(node, "DELETE", f"/internal/device-revoked{query}", body)
                assert answer.status == 400
            assert books(redis_url).exists("vz:{d:lobby}:revoked")


class TestIdempotency:
    KEY: ClassVar = {"Idempotency-Key": "order-7"}

    async def test_the_same_call_gets_the_same_answer_and_is_done_once(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as nodes:
            answers = [await call(node, "POST", "/internal/command", RELOAD, headers=self.KEY) for node in nodes]
            assert [answer.status for answer in answers] == [202, 202]
            assert answers[0].body == answers[1].body
            client = books(redis_url)
            assert client.llen("vz:{d:lobby}:ledger") == 1
            assert 86_000 < client.ttl("vz:{i:order-7}") <= 86_400

    @pytest.mark.parametrize(("method", "path"), CHANGING)
    async def test_every_call_that_changes_something(self, redis_url: str, method: str, path: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answers = [await call(node, method, path, CALLS[method, path], headers=self.KEY) for _ in range(2)]
            assert answers[0].status == answers[1].status
            assert answers[0].body == answers[1].body

    async def test_another_call_with_the_same_key_is_refused(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            await call(node, "POST", "/internal/command", RELOAD, headers=self.KEY)
            other = {**RELOAD, "deviceId": "hall"}
            for path, body in (("/internal/command", other), ("/push/playlist", {"deviceId": "lobby", "playlist": {}})):
                answer = await call(node, "POST", path, body, headers=self.KEY)
                assert (answer.status, answer.body["code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
            assert books(redis_url).llen("vz:{d:hall}:ledger") == 0

    async def test_a_key_that_has_expired_may_be_used_again(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            await call(node, "POST", "/internal/command", RELOAD, headers=self.KEY)
            books(redis_url).delete("vz:{i:order-7}")
            other = {**RELOAD, "deviceId": "hall"}
            assert (await call(node, "POST", "/internal/command", other, headers=self.KEY)).status == 202

    async def test_a_worker_that_died_in_the_call_leaves_no_second_command_behind(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            first = await call(node, "POST", "/internal/command", RELOAD, headers=self.KEY)
            books(redis_url).delete("vz:{i:order-7}")  # as if it had not come to write the answer
            second = await call(node, "POST", "/internal/command", RELOAD, headers=self.KEY)
            assert second.body["commandId"] == first.body["commandId"]
            assert books(redis_url).llen("vz:{d:lobby}:ledger") == 1

    async def test_one_that_is_under_way(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            await call(node, "POST", "/internal/command", RELOAD, headers=self.KEY)
            books(redis_url).hdel("vz:{i:order-7}", "answer")
            answer = await call(node, "POST", "/internal/command", RELOAD, headers=self.KEY)
            assert (answer.status, answer.body["code"], answer.body["retryable"]) == (409, "IN_PROGRESS", True)

    async def test_a_refusal_is_remembered_too_unless_it_may_pass(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            missing = [await call(node, "DELETE", "/devices/lobby", headers=self.KEY) for _ in range(2)]
            assert [answer.status for answer in missing] == [404, 404]
            assert "vz:{i:order-7}" in books(redis_url).keys("vz:{i:*")

    @pytest.mark.parametrize("key", ["a b", "x" * 129, "{a}", "\u00a0"])
    async def test_what_is_no_key(self, redis_url: str, key: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            headers = {"Idempotency-Key": key}
            answer = await call(node, "POST", "/internal/command", RELOAD, headers=headers)
            assert (answer.status, list(answer.body["details"])) == (400, ["Idempotency-Key"])


class TestAudit:
    @EVERY
    async def test_one_line_for_each_call_that_changes_something(
        self, redis_url: str, method: str, path: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, method, path, CALLS[method, path], headers={"Idempotency-Key": "k7"})
            await call(node, method, path, CALLS[method, path], key="wrong")
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"audit"' in line]
        if method == "GET":
            assert lines == []
            return
        (line,) = lines
        assert (line["method"], line["status"], line["address"]) == (method, answer.status, "127.0.0.1")
        assert line["path"] == path.partition("?")[0].replace("lobby", "{id}")
        assert line["idempotency_key"] == "k7"
        assert line.items() >= AUDITED[method, path.partition("?")[0]].items()
        assert API_KEY not in str(line)
        assert "abc" not in str(line)  # the token

    async def test_a_value_cannot_forge_a_line(self, redis_url: str, capfd: pytest.CaptureFixture[str]) -> None:
        async with fleet(redis_url, 1) as (node,):
            body = {"deviceId": "lobby", "reason": 'x"}\n{"event":"audit","forged":1}'}
            assert (await call(node, "POST", "/internal/device-revoked", body)).status == 200
        lines = [line for line in capfd.readouterr().err.splitlines() if '"audit"' in line]
        assert len(lines) == 1
        assert "forged" not in json.loads(lines[0])


class TestFinished:
    """What was begun is finished: its caller may give up, and the worker may be about to stop."""

    @staticmethod
    async def give_up(node: Backed, method: str, path: str, body: Json, key: str, begun: Callable[[], object]) -> None:
        """Send a call, and end the connection when it was begun."""
        content = json.dumps(body).encode()
        wire = await Wire.open(node.port)
        fields = f"Host: x\r\nContent-Length: {len(content)}\r\nX-Internal-Api-Key: {API_KEY}\r\nIdempotency-Key: {key}"
        await wire.send(f"{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + content)
        await until(begun)
        wire.writer.transport.abort()
        # Its place is taken until the call is done.
        await until(lambda: all(guest._ended or guest.transport is None for guest in node.http.places._guests))  # type: ignore[attr-defined]

    async def test_a_revocation_whose_caller_gives_up(self, redis_url: str, capfd: pytest.CaptureFixture[str]) -> None:
        """Before Redis has answered: the revocation is written, the connection ended, the line in the log."""
        async with fleet(redis_url, 2) as (one, other):
            screen = await Screen.dial(other, "lobby")
            body = {"deviceId": "lobby"}
            path = "/internal/device-revoked"
            # The key is there from the call's first write on. Its task may be over before it could be looked for.
            await self.give_up(one, "POST", path, body, "k1", lambda: books(redis_url).exists("vz:{i:k1}"))
            assert await screen.ended() == 4501
            await until(lambda: books(redis_url).hget("vz:{i:k1}", "answer"))
            again = await call(one, "POST", path, body, headers={"Idempotency-Key": "k1"})
            assert (again.status, again.body["delivered"]) == (200, True)
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"audit"' in line]
        assert [(line["status"], line.get("repeated")) for line in lines] == [(200, None), (200, True)]

    async def test_a_command_whose_caller_gives_up(self, redis_url: str, capfd: pytest.CaptureFixture[str]) -> None:
        async with fleet(redis_url, 2) as (one, other):
            screen = await Screen.dial(other, "lobby", acks=False)
            await self.give_up(one, "POST", "/internal/command", RELOAD, "k1", lambda: screen.commands())
            await screen.ack(await screen.message("command"))
            await until(lambda: books(redis_url).hget("vz:{i:k1}", "answer"))
            again = await call(one, "POST", "/internal/command", RELOAD, headers={"Idempotency-Key": "k1"})
            assert (again.status, again.body["delivered"]) == (200, True)
            assert len(screen.commands()) == 1
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if '"audit"' in line]
        assert [(line["status"], line.get("device_id"), line.get("repeated")) for line in lines] == [
            (200, "lobby", None),
            (200, None, True),
        ]

    @EVERY
    async def test_of_a_worker_that_is_about_to_stop(self, redis_url: str, method: str, path: str) -> None:
        """A call is refused before it is begun; one that was begun is waited for."""
        async with fleet(redis_url, 1) as (node,):
            screen = await Screen.dial(node, "hall", acks=False)
            asking = asyncio.create_task(call(node, "POST", "/internal/command", {**RELOAD, "deviceId": "hall"}))
            message = await screen.message("command")
            closing = asyncio.create_task(node.control.close())
            await asyncio.sleep(0)
            answer = await call(node, method, path, CALLS[method, path])
            assert (answer.status, answer.body["code"]) == (503, "DRAINING")
            assert not closing.done()
            await screen.ack(message)
            await closing
            assert (await asking).status == 200
            assert books(redis_url).keys("vz:{d:lobby}*") == []


class TestOutage:
    @EVERY
    async def test_without_redis(self, redis_url: str, method: str, path: str) -> None:
        node = await Backed(redis_url).start(store=False)
        try:
            answer = await call(node, method, path, CALLS[method, path])
            assert (answer.status, answer.body["code"]) == (503, "STORE_UNAVAILABLE")
            assert answer.body["retryable"] is True
            assert int(answer.headers["retry-after"]) > 0
        finally:
            await node.stop()

    @EVERY
    async def test_redis_goes_away_during_a_call_and_no_reply_is_left_behind(
        self, redis_url: str, method: str, path: str
    ) -> None:
        """Several commands of one call are lost together; the loop is told of no exception that nobody looked at."""
        proxy = Proxy(Address.parse(redis_url).path)
        told: list[Json] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: told.append(context))
        async with fleet(await proxy.open(), 1) as (node,):
            await until(lambda: node.gateway.plays.partitions)
            books(redis_url).zadd("vz:{o:acme}:devices", {"lobby": 1, "hall": 2})
            proxy.rewrite = lambda data: b""
            asking = asyncio.create_task(call(node, method, path, CALLS[method, path]))
            await until(lambda: node.control._under_way and node.store.busy)
            proxy.cut()
            assert (await asking).status in (503, 200)
            proxy.rewrite = bytes
            await until(lambda: not node.control._under_way)
        await proxy.close()
        gc.collect()
        assert told == []

    async def test_redis_goes_away_during_a_call(self, redis_url: str) -> None:
        proxy = Proxy(Address.parse(redis_url).path)
        async with fleet(await proxy.open(), 1) as (node,):
            ledger = books(redis_url)
            # What says that the ledger has it does not arrive; what was said before does.
            proxy.rewrite = lambda data: b"" if ledger.llen("vz:{d:lobby}:ledger") else data
            asking = asyncio.create_task(call(node, "POST", "/internal/command", RELOAD))
            await until(lambda: ledger.llen("vz:{d:lobby}:ledger"))
            proxy.cut()
            answer = await asking
            assert (answer.status, answer.body["code"]) == (503, "STORE_UNAVAILABLE")
            proxy.rewrite = bytes
            await until(lambda: node.store.up)
            # Nobody knew, but it was taken: it is there.
            screen = await Screen.dial(node, "lobby")
            await screen.event("command")
        await proxy.close()

    async def test_the_key_of_a_call_that_nobody_could_answer(self, redis_url: str) -> None:
        proxy = Proxy(Address.parse(redis_url).path)
        async with fleet(await proxy.open(), 1) as (node,):
            proxy.rewrite = lambda data: b""
            headers = {"Idempotency-Key": "k7"}
            asking = asyncio.create_task(call(node, "POST", "/internal/command", RELOAD, headers=headers))
            await until(lambda: books(redis_url).exists("vz:{i:k7}"))
            proxy.cut()
            assert (await asking).status == 503
            proxy.rewrite = bytes
            await until(lambda: node.store.up)
            answer = await call(node, "POST", "/internal/command", RELOAD, headers=headers)
            assert (answer.status, answer.body["retryable"]) == (409, True)
            assert 0 < books(redis_url).ttl("vz:{i:k7}") <= 10  # then it may be tried again
        await proxy.close()
