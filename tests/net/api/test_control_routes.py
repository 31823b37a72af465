"""Each call of the control API: what it does, what it answers, and what it is refused for."""

import asyncio
import json
from datetime import datetime
from typing import Any

import pytest

from tests.net.backend import Backed, Screen, books, call, command, fleet
from tests.net.peers import dial, until, user_token
from vizora_rt.app.commands import MAX_PAYLOAD, MAX_WAITING, TYPES
from vizora_rt.net.api import control_routes
from vizora_rt.net.commands import requests


def data_of(message: Any) -> Any:
    return message["data"]


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


class TestCommand:
    async def test_to_a_device_that_is_connected(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            screen = await Screen.dial(other, "lobby")
            answer = await command(one, "lobby", "pause", payload={"a": 1}, ttl=60, commandId="c1")
            assert answer.status == 200
            assert answer.body == {
                "success": True,
                "delivered": True,
                "queued": False,
                "message": "acked by the device",
                "commandId": "c1",
            }
            data = await screen.event("command")
            times = [datetime.fromisoformat(data.pop(name)) for name in ("timestamp", "expiresAt")]
            assert (times[1] - times[0]).total_seconds() == 60
            assert data == {"type": "pause", "payload": {"a": 1}, "commandId": "c1"}

    async def test_to_one_that_is_away_or_unknown(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await command(node, "nobody")
            assert answer.status == 202
            assert answer.body["queued"] is True
            assert answer.body["delivered"] is False

    async def test_a_call_waits_for_an_ack_and_not_for_ever(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(requests, "ACK_SECONDS", 0.2)
        async with fleet(redis_url, 2) as (one, other):
            screen = await Screen.dial(other, "lobby", acks=False)
            answer = await command(one, "lobby")
            assert (answer.status, answer.body["queued"]) == (202, True)
            await screen.ack(await screen.message("command"))
            path = f"/commands/{answer.body['commandId']}"
            async with asyncio.timeout(10):
                while (await call(one, "GET", path)).body["devices"]["lobby"]["state"] != "acked":
                    pass

    @pytest.mark.parametrize("kind", TYPES)
    async def test_every_type(self, redis_url: str, kind: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            screen = await Screen.dial(node, "lobby")
            assert (await command(node, "lobby", kind)).body["delivered"] is True
            assert (await screen.event("command"))["type"] == kind

    @pytest.mark.parametrize(
        ("fields", "details"),
        [
            ({"payload": deep(300)}, {"command.payload": "is nested too deep"}),
            (
                {"payload": {"a": "x" * MAX_PAYLOAD}},
                {"command.payload": f"expected at most {MAX_PAYLOAD} bytes"},
            ),
            ({"ttl": 31 * 86_400}, {"command.ttl": "expected int <= 2592000"}),
            ({"type": "explode"}, {"command.type": f"expected one of {', '.join(TYPES)}"}),
            (
                {"type": "screenshot", "payload": {"requestId": "a b"}},
                {"command.payload.requestId": "expected an id"},
            ),
        ],
    )
    async def test_what_it_may_not_be(self, redis_url: str, fields: dict[str, Any], details: dict[str, str]) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(
                node, "POST", "/internal/command", {"deviceId": "lobby", "command": {"type": "reload", **fields}}
            )
            assert (answer.status, answer.body["details"]) == (400, details)
            assert books(redis_url).llen("vz:{d:lobby}:ledger") == 0

    async def test_the_same_id_twice_is_one_command(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            for _ in range(2):
                assert (await command(node, "lobby", "reload", commandId="c1")).status == 202
            assert books(redis_url).llen("vz:{d:lobby}:ledger") == 1
            screen = await Screen.dial(node, "lobby")
            await screen.event("command")
            await until(lambda: node.counter("commands_total", "reload", "acked"))
            again = await command(node, "lobby", "reload", commandId="c1")
            assert (again.status, again.body["delivered"]) == (200, True)
            other = await command(node, "lobby", "pause", commandId="c1")
            assert (other.status, other.body["code"]) == (409, "COMMAND_EXISTS")
            assert screen.commands() == ["c1"]

    async def test_and_has_the_life_of_the_first_call(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            assert (await command(node, "lobby", commandId="c1", ttl=1)).status == 202
            first = await call(node, "GET", "/commands/c1")
            await asyncio.sleep(1.05)
            again = await command(node, "lobby", commandId="c1", ttl=1)
            assert (again.status, again.body["success"], again.body["queued"]) == (200, False, False)
            assert again.body["message"] == "expired before the device acked it"
            states = await call(node, "GET", "/commands/c1")
            assert states.body["expiresAt"] == first.body["expiresAt"]
            assert states.body["devices"]["lobby"]["state"] == "expired"
            body = {"deviceIds": ["lobby", "hall"], "command": {"type": "reload", "commandId": "c1"}}
            both = await call(node, "POST", "/commands/broadcast", body)
            assert both.body["failures"] == {"lobby": "expired", "hall": "expired"}
            screen = await Screen.dial(node, "lobby")
            assert (await screen.answer("heartbeat", {}, 1))["success"]
            assert screen.commands() == []

    async def test_a_repeated_call_changes_nothing_of_it(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            client: Any = books(redis_url)
            assert (await command(node, "lobby", commandId="c1", ttl=60)).status == 202
            (line,) = client.lrange("vz:{d:lobby}:ledger", 0, -1)
            client.delete("vz:{d:lobby}:ledger")  # as if the first call had got no further than its record
            await asyncio.sleep(0.005)
            assert (await command(node, "lobby", commandId="c1", ttl=120)).status == 202
            (again,) = client.lrange("vz:{d:lobby}:ledger", 0, -1)
            assert again.split(" ", 6)[6] == line.split(" ", 6)[6]
            assert again.split(" ")[1] == line.split(" ")[1]

    async def test_a_full_ledger(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            line = f"c {2**53} 1 node 0 reload {{}}"
            books(redis_url).rpush("vz:{d:lobby}:ledger", *[line] * MAX_WAITING)
            answer = await command(node, "lobby")
            assert (answer.status, answer.body["code"], answer.body["retryable"]) == (429, "LEDGER_FULL", True)
            assert int(answer.headers["retry-after"]) > 0
            assert node.counter("limits_exceeded_total", "commands_waiting") == 1

    async def test_two_screenshots_of_two_devices_cannot_share_an_id(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            payload = {"requestId": "r1"}
            assert (await command(node, "lobby", "screenshot", payload=payload)).status == 202
            answer = await command(node, "hall", "screenshot", payload=payload)
            assert answer.body["details"] == {"command.payload.requestId": "is another device's"}

    async def test_states_of_what_is_unknown(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            assert (await call(node, "GET", "/commands/c1")).status == 404


class TestBroadcast:
    async def test_to_devices_of_all_workers(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            screens = [await Screen.dial(node, f"s{number}") for number, node in enumerate((one, other) * 3)]
            screens[5].verdict = {"ok": False}
            ids = [f"s{number}" for number in range(8)]
            answer = await call(
                one, "POST", "/commands/broadcast", {"deviceIds": [*ids, "s0"], "command": {"type": "reload"}}
            )
            assert answer.status == 202
            (command_id,) = answer.body.pop("commandIds")
            assert answer.body == {
                "success": False,
                "devicesOnline": 6,
                "delivered": 5,
                "queued": 2,
                "failed": 1,
                "message": "5 of 8 devices acked",
                "failures": {"s5": "failed"},
            }
            for screen in screens:
                assert screen.commands() == [command_id]
            states = (await call(other, "GET", f"/commands/{command_id}")).body
            assert states["type"] == "reload"
            assert {name: device["state"] for name, device in states["devices"].items()} == {
                **dict.fromkeys(ids[:5], "acked"),
                "s5": "failed",
                "s6": "queued",
                "s7": "queued",
            }

    async def test_to_an_organisation(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            mine = [await Screen.dial(node, f"s{number}") for number, node in enumerate((one, other))]
            others = await Screen.dial(one, "x", organization="other")
            body = {"organizationId": "acme", "command": {"type": "reload"}}
            answer = await call(one, "POST", "/commands/broadcast", body)
            assert (answer.status, answer.body["delivered"], answer.body["queued"]) == (200, 2, 0)
            assert [len(screen.commands()) for screen in (*mine, others)] == [1, 1, 0]

    async def test_to_an_organisation_without_devices(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            body = {"organizationId": "nobody", "command": {"type": "reload"}}
            assert (await call(node, "POST", "/commands/broadcast", body)).status == 404

    async def test_to_one_with_too_many(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control_routes, "MOST_DEVICES", 3)
        async with fleet(redis_url, 1) as (node,):
            books(redis_url).zadd("vz:{o:acme}:devices", {str(number): number for number in range(4)})
            body = {"organizationId": "acme", "command": {"type": "reload"}}
            answer = await call(node, "POST", "/commands/broadcast", body)
            assert (answer.status, list(answer.body["details"])) == (400, ["organizationId"])

    @pytest.mark.parametrize("whom", [{}, {"deviceIds": ["a"], "organizationId": "acme"}])
    async def test_to_whom(self, redis_url: str, whom: dict[str, Any]) -> None:
        """With both, a device might be another organisation's."""
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "POST", "/commands/broadcast", {**whom, "command": {"type": "reload"}})
            assert (answer.status, list(answer.body["details"])) == (400, ["deviceIds"])

    async def test_a_misspelt_field_reaches_no_device(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            screens = [await Screen.dial(node, name) for name in ("d1", "d2")]
            reboot = {"type": "reboot", "notBefore": "2026-12-01T00:00:00Z"}
            body = {"organizationId": "acme", "deviceIDs": ["d1"], "dryRun": True, "command": reboot}
            answer = await call(node, "POST", "/commands/broadcast", body)
            assert (answer.status, answer.body["code"]) == (400, "INVALID_BODY")
            assert set(answer.body["details"]) == {"deviceIDs", "dryRun", "command.notBefore"}
            assert (await command(node, "d1", "pause")).status == 200
            assert [[each["data"]["type"] for each in screen.messages("command")] for screen in screens] == [
                ["pause"],
                [],
            ]

    async def test_a_screenshot_is_asked_of_one(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            body = {"deviceIds": ["a", "b"], "command": {"type": "screenshot"}}
            answer = await call(node, "POST", "/commands/broadcast", body)
            assert (answer.status, list(answer.body["details"])) == (400, ["command.type"])

    async def test_a_thousand_over_two_workers(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            screens = [await Screen.dial(node, f"s{number}") for number, node in enumerate((one, other) * 50)]
            ids = [f"s{number}" for number in range(1000)]
            answer = await call(one, "POST", "/commands/broadcast", {"deviceIds": ids, "command": {"type": "reload"}})
            assert (answer.body["delivered"], answer.body["queued"]) == (100, 900)
            assert all(len(screen.commands()) == 1 for screen in screens)


class TestPush:
    async def test_a_playlist(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            screen = await Screen.dial(other, "lobby")
            body = {"deviceId": "lobby", "playlist": {"items": [1]}, "version": "v1"}
            answer = await call(one, "POST", "/push/playlist", body)
            assert (answer.status, answer.body["delivered"], answer.body["version"]) == (200, True, "v1")
            data = await screen.event("playlist:update")
            assert (data["playlist"], data["version"], data["source"]) == ({"items": [1]}, "v1", "push")

    async def test_a_playlist_without_a_version_gets_the_time(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "POST", "/push/playlist", {"deviceId": "lobby", "playlist": {}})
            assert answer.status == 202
            version = answer.body["version"]
            assert datetime.fromisoformat(version).isoformat(timespec="milliseconds")[:-6] + "Z" == version

    async def test_content(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            screen = await Screen.dial(node, "lobby")
            for duration in ({}, {"duration": 1.5}):
                body = {"deviceId": "lobby", "content": {"id": "c1"}, **duration}
                assert (await call(node, "POST", "/push/content", body)).status == 200
            payloads = [message["data"]["payload"] for message in screen.messages("command")]
            assert payloads == [{"content": {"id": "c1"}, "duration": 5}, {"content": {"id": "c1"}, "duration": 1.5}]

    async def test_content_with_an_id_of_the_caller_is_pushed_once(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            screen = await Screen.dial(node, "lobby")
            body = {"deviceId": "lobby", "content": {"id": "c1"}, "commandId": "p1"}
            for _ in range(2):
                answer = await call(node, "POST", "/push/content", body)
                assert (answer.status, answer.body["commandId"]) == (200, "p1")
            assert screen.commands() == ["p1"]

    @pytest.mark.parametrize(("path", "field"), [("/push/playlist", "playlist"), ("/push/content", "content")])
    async def test_nested_too_deep(self, redis_url: str, path: str, field: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "POST", path, {"deviceId": "lobby", field: deep(300)})
            assert (answer.status, answer.body["details"]) == (400, {field: "is nested too deep"})


class TestNotifications:
    async def test_to_the_dashboards_of_the_organisation(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            ann = Screen(await dial(one.port, user_token("ann")))
            bob = Screen(await dial(other.port, user_token("bob")))
            eve = Screen(await dial(other.port, user_token("eve", "other")))
            screen = await Screen.dial(one, "lobby")
            await until(lambda: one.gateway.pubsub.is_subscribed("acme") and other.gateway.pubsub.is_subscribed("acme"))
            body = {"organizationId": "acme", "notification": {"title": "hello"}}
            answer = await call(one, "POST", "/notifications/broadcast", body)
            assert (answer.status, answer.body["delivered"]) == (200, True)
            for user in (ann, bob):
                assert await user.event("notification:new") == {"title": "hello"}
            for narrow in ({"userId": "bob"}, {"notification": {"userId": "bob", "title": "hello"}}):
                await call(one, "POST", "/notifications/broadcast", {**body, **narrow})
            await bob.event("notification:new", 3)
            await call(one, "POST", "/notifications/broadcast", {**body, "notification": {"last": 1}})
            assert await ann.event("notification:new", 2) == {"last": 1}
            assert eve.messages("notification:new") == screen.messages("notification:new") == []

    async def test_nobody_is_there(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            body = {"organizationId": "acme", "notification": {}}
            answer = await call(node, "POST", "/notifications/broadcast", body)
            assert (answer.status, answer.body["delivered"]) == (200, False)

    @pytest.mark.parametrize(
        ("body", "where"),
        [
            ({"notification": {"userID": "ann"}}, "notification.userID"),
            ({"notification": {"user_id": "ann"}}, "notification.user_id"),
            ({"notification": {"userId": "bob"}, "userId": "ann"}, "userId"),
            ({"notification": {}, "userID": "ann"}, "userID"),
        ],
    )
    async def test_one_user_is_not_all(self, redis_url: str, body: dict[str, Any], where: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            ann = Screen(await dial(node.port, user_token("ann")))
            await until(lambda: node.gateway.pubsub.is_subscribed("acme"))
            answer = await call(node, "POST", "/notifications/broadcast", {"organizationId": "acme", **body})
            assert (answer.status, list(answer.body["details"])) == (400, [where])
            await call(node, "POST", "/notifications/broadcast", {"organizationId": "acme", "notification": {"n": 1}})
            assert await ann.event("notification:new") == {"n": 1}

    @pytest.mark.parametrize("user", ["a b", 7, ""])
    async def test_what_is_no_user(self, redis_url: str, user: object) -> None:
        async with fleet(redis_url, 1) as (node,):
            body = {"organizationId": "acme", "notification": {"userId": user}}
            answer = await call(node, "POST", "/notifications/broadcast", body)
            assert (answer.status, list(answer.body["details"])) == (400, ["notification.userId"])


class TestTokens:
    async def test_the_same_token_waits_once(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            for token in ("abc", "abc", "def"):
                answer = await call(node, "POST", "/internal/token-refresh", {"deviceId": "lobby", "token": token})
                assert (answer.status, answer.body["queued"]) == (202, True)
            assert books(redis_url).llen("vz:{d:lobby}:ledger") == 2


class TestRevocation:
    async def test_a_device(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            screen = await Screen.dial(other, "lobby")
            body = {"deviceId": "lobby", "reason": "stolen"}
            answer = await call(one, "POST", "/internal/device-revoked", body)
            assert (answer.status, answer.body["delivered"]) == (200, True)
            assert await screen.event("device:revoked") == {"reason": "stolen"}
            assert await screen.ended() == 4501
            with pytest.raises(Exception, match="403"):
                await Screen.dial(other, "lobby")
            assert (await call(one, "GET", "/devices/lobby")).body["revoked"]["reason"] == "stolen"
            await call(one, "DELETE", "/internal/device-revoked", {"deviceId": "lobby"})
            await Screen.dial(other, "lobby")

    async def test_one_token_of_a_device(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            old = await Screen.dial(node, "lobby", jti="t1")
            body = {"deviceId": "lobby", "jti": "t2"}
            await call(node, "POST", "/internal/device-revoked", body)
            assert (await command(node, "lobby")).body["delivered"] is True
            await call(node, "POST", "/internal/device-revoked", {**body, "jti": "t1"})
            assert await old.ended() == 4501
            for jti in ("t1", "t2"):
                with pytest.raises(Exception, match="403"):
                    await Screen.dial(node, "lobby", jti=jti)
            await Screen.dial(node, "lobby", jti="t3")
            await call(node, "DELETE", "/internal/device-revoked?deviceId=lobby&jti=t1")
            await Screen.dial(node, "lobby", jti="t1")

    async def test_to_let_a_token_in_again_lets_no_device_in(self, redis_url: str) -> None:
        """Who was locked out as a device stays so, whatever becomes of its tokens."""
        async with fleet(redis_url, 1) as (node,):
            for body in ({"deviceId": "lobby"}, {"deviceId": "lobby", "jti": "t1"}):
                await call(node, "POST", "/internal/device-revoked", body)
            answer = await call(node, "DELETE", "/internal/device-revoked?deviceId=lobby&jti=t1")
            assert answer.body["message"] == "no longer revoked"
            with pytest.raises(Exception, match="403"):
                await Screen.dial(node, "lobby", jti="t1")
            assert books(redis_url).exists("vz:{d:lobby}:revoked") == 1

    async def test_a_doorbell_that_was_lost(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        async with fleet(redis_url, 1, player={"heartbeat_interval": 1000}) as (node,):
            screen = await Screen.dial(node, "lobby")
            monkeypatch.setattr(node.gateway, "send_to_worker", lambda *bell: None)
            await call(node, "POST", "/internal/device-revoked", {"deviceId": "lobby"})
            await screen.client.send("heartbeat", {})
            assert await screen.ended() == 4501

    async def test_of_a_device_that_is_away(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "POST", "/internal/device-revoked", {"deviceId": "lobby"})
            assert (answer.status, answer.body["delivered"]) == (200, False)

    @pytest.mark.parametrize(
        ("query", "body"), [("", None), ("", b"[]"), ("", b"{"), ("?deviceId=a%20b", None), ("", {"deviceId": 7})]
    )
    async def test_whom_to_let_in_again(self, redis_url: str, query: str, body: Any) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "DELETE", f"/internal/device-revoked{query}", body)
            assert (answer.status, answer.body["code"]) == (400, "INVALID_BODY")

    async def test_who_was_not_revoked(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "DELETE", "/internal/device-revoked?deviceId=lobby")
            assert (answer.status, answer.body["message"]) == (200, "was not revoked")


class TestDevices:
    async def test_one(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            await Screen.dial(other, "lobby")
            found = (await call(one, "GET", "/devices/lobby")).body
            assert (
                found.items()
                >= {
                    "deviceId": "lobby",
                    "status": "online",
                    "reason": "connected",
                    "organizationId": "acme",
                    "worker": 1,
                    "commandsWaiting": 0,
                    "errors": [],
                }.items()
            )
            assert found["since"] > 0

    async def test_one_that_is_unknown(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            for path in ("/devices/lobby", "/organizations/acme/devices", "/screenshots/r1"):
                assert (await call(node, "GET", path)).status == 404
            assert (await call(node, "DELETE", "/devices/lobby")).status == 404

    async def test_plays_of_one_that_has_none(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            await until(lambda: node.gateway.plays.partitions)
            found = await call(node, "GET", "/devices/lobby/plays")
            assert (found.status, found.body) == (200, {"deviceId": "lobby", "boots": [], "days": {}})

    async def test_pages_of_an_organisation(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            for number in range(5):
                await Screen.dial((one, other)[number % 2], f"s{number}")
            await Screen.dial(one, "x", organization="other")
            seen: list[str] = []
            offset: int | None = 0
            while offset is not None:
                page = (await call(one, "GET", f"/organizations/acme/devices?limit=2&offset={offset}")).body
                assert page["total"] == 5
                assert len(page["devices"]) <= 2
                seen += [device["deviceId"] for device in page["devices"]]
                offset = page["next"]
            assert sorted(seen) == [f"s{number}" for number in range(5)]

    async def test_a_device_that_moves_is_no_longer_theirs(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            await Screen.dial(one, "lobby")
            wall = Screen(await dial(one.port, user_token()), acks=False)
            await wall.answer("join:organization", {"organizationId": "acme"}, 1)
            await wall.event("device:status:batch")  # else it may be told in there
            await Screen.dial(other, "lobby", organization="beta")
            client = books(redis_url)
            await until(lambda: client.zcard("vz:{o:acme}:devices") == 0)
            await until(
                lambda: any(told["status"] == "offline" for told in map(data_of, wall.messages("device:status")))
            )
            assert data_of(wall.messages("device:status")[-1])["reason"] == "moved"
            # Another that moved while nothing was known of it any more is still listed.
            client.zadd("vz:{o:acme}:devices", {"lobby": 1, "hall": 2})
            page = (await call(one, "GET", "/organizations/acme/devices")).body
            assert [device["deviceId"] for device in page["devices"]] == ["hall"]
            answer = await call(
                one, "POST", "/commands/broadcast", {"organizationId": "acme", "command": {"type": "reboot"}}
            )
            (command_id,) = answer.body["commandIds"]
            assert list((await call(one, "GET", f"/commands/{command_id}")).body["devices"]) == ["hall"]

    async def test_a_device_that_moves_with_a_playlist_is_told_of(
        self, redis_url: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Which may be the new organisation's, put there ahead of it."""
        async with fleet(redis_url, 1) as (node,):
            for name in ("lobby", "hall"):
                await Screen.dial(node, name)
            playlist = {"deviceId": "lobby", "playlist": {"items": [1]}, "version": "v1"}
            assert (await call(node, "POST", "/push/playlist", playlist)).status == 200
            capfd.readouterr()
            screen = await Screen.dial(node, "lobby", organization="beta")
            await Screen.dial(node, "hall", organization="beta")
            lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
            (told,) = (line for line in lines if line["event"].startswith("device moved"))
            assert (told["device_id"], told["left"], told["organization_id"]) == ("lobby", "acme", "beta")
            assert (told["version"], told["waiting"]) == ("v1", False)
            answer = await screen.answer("playlist:request", {}, 1)
            assert answer["data"]["playlist"] == {"items": [1]}

    @pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", "offset=-1", "limit=", "offset=99999999999"])
    async def test_what_is_no_page(self, redis_url: str, query: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            answer = await call(node, "GET", f"/organizations/acme/devices?{query}")
            assert (answer.status, list(answer.body["details"])) == (400, [query.partition("=")[0]])

    async def test_erase(self, redis_url: str) -> None:
        async with fleet(redis_url, 2, presence={"offline_after_seconds": 0.1}) as (one, other):
            screen = await Screen.dial(other, "lobby", acks=False)
            await call(one, "POST", "/internal/device-revoked", {"deviceId": "hall"})
            client = books(redis_url)
            client.rpush("vz:{d:lobby}:ledger", f"c {2**53} 1 node 0 reload {{}}")
            client.hset("vz:{d:lobby}:playlist", "version", "v1")
            client.lpush("vz:{d:lobby}:errors", json.dumps({"a": 1}))
            answer = await call(one, "DELETE", "/devices/lobby")
            assert (answer.status, answer.body["delivered"]) == (200, True)
            assert await screen.ended() == 1000
            await until(lambda: not other.gateway.connections)
            await asyncio.sleep(0.3)  # longer than until it would be offline
            assert client.keys("*lobby*") == []
            assert client.zscore("vz:{o:acme}:devices", "lobby") is None
            assert (await call(one, "GET", "/devices/lobby")).status == 404
            assert (await call(one, "DELETE", "/devices/hall")).status == 404
            assert client.exists("vz:{d:hall}:revoked") == 1


async def one_call(node: Backed, path: str, body: Any) -> int:
    return (await call(node, "POST", path, body)).status


class TestEntitlement:
    async def test_only_its_own_devices_are_told(self, redis_url: str) -> None:
        async with fleet(redis_url, 2) as (one, other):
            mine = await Screen.dial(one, "lobby")
            others = await Screen.dial(other, "x", organization="other")
            await until(
                lambda: one.gateway.pubsub.is_subscribed("acme") and other.gateway.pubsub.is_subscribed("other")
            )
            body = {"organizationId": "acme", "state": "suspended", "reason": "unpaid"}
            assert await one_call(other, "/internal/tenant-entitlement", body) == 200
            assert await mine.event("tenant:suspended") == {"reason": "unpaid"}
            assert books(redis_url).exists("vz:{o:acme}:suspended") == 1
            assert await one_call(other, "/internal/tenant-entitlement", {**body, "state": "resumed"}) == 200
            await mine.event("tenant:resumed")
            assert books(redis_url).exists("vz:{o:acme}:suspended") == 0
            assert others.messages("tenant:suspended") == []
