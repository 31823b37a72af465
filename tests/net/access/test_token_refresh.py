"""Tokens that the gateway mints: who gets one and when, in both dialects, and what they are worth."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.net.backend import API_KEY, Backed, Screen, books, call
from tests.net.peers import DEVICE_SECRET, SECRETS, device_token, dial, refusal, until
from tests.net.server.test_socketio import Player
from tests.service_process import Service
from vizora_rt.net.access import token_refresh

DAY = 86_400
SOON: Any = {"jti": "t1", "deviceIdentifier": "00:1b", "iat": int(time.time()) - 80 * DAY}
"""Claims of a token of 90 days, ten of which are left."""
SOON["exp"] = SOON["iat"] + 90 * DAY

Start = Callable[..., Any]


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_refresh, "LOOK", 0.05)


@pytest.fixture
async def start(redis_url: str) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:
        nodes = 0

        async def begin(**auth: Any) -> Backed:
            nonlocal nodes
            node = Backed(redis_url, nodes, auth={"refresh": True, **auth})
            nodes += 1
            await node.start()
            stack.push_async_callback(node.stop)
            return node

        yield begin
        while Player.dialled:
            await Player.dialled.pop().wire.close()


def claims(token: str) -> dict[str, Any]:
    found: dict[str, Any] = jwt.decode(token, DEVICE_SECRET, algorithms=["HS256"])
    return found


async def rounds(node: Backed, count: int = 3) -> None:
    """The worker has looked over its devices that often."""
    (refresher,) = [each for each in _entries(node) if isinstance(each, token_refresh.Refresher)]
    seen, look = 0, refresher.on_timer

    def counting(now: float) -> float:
        nonlocal seen
        seen += 1
        return look(now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refresher, "on_timer", counting, raising=False)
        await until(lambda: seen > count)


def _entries(node: Backed) -> list[Any]:
    return [entry for slot in node.wheel._slots.values() for entry in slot]


@pytest.mark.usefixtures("often")
class TestRefresh:
    async def test_a_token_that_ends_soon_is_followed_by_another(
        self, start: Start, redis_url: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        node = await start()
        screen = await Screen.dial(node, "lobby", **SOON)
        message = await screen.message("token:refresh")
        assert message.keys() == {"event", "data"}  # no ack is asked for
        token = message["data"].pop("token")
        assert message["data"] == {}
        found = claims(token)
        assert abs(found.pop("iat") - time.time()) < 60
        assert abs(found.pop("exp") - time.time() - 90 * DAY) < 60
        assert found == {
            "sub": "lobby", "organizationId": "acme", "type": "device", "jti": "t1", "deviceIdentifier": "00:1b"
        }  # fmt: skip
        assert 3500 < books(redis_url).ttl("vz:{d:lobby}:refreshed") <= 3600
        again = Screen(await dial(node.port, token))
        await again.event("config")
        await rounds(node)
        assert again.messages("token:refresh") == []
        (line,) = [text for text in capfd.readouterr().err.splitlines() if '"token minted"' in text]
        assert (json.loads(line)["device_id"], json.loads(line)["jti"]) == ("lobby", "t1")
        assert token.rpartition(".")[2] not in line

    async def test_in_the_other_dialect(self, start: Start) -> None:
        player = await Player.dial(await start(), device_token("lobby", **SOON))
        name, data = await player.event()
        assert name == "token:refresh"
        assert claims(data["token"])["jti"] == "t1"

    async def test_at_most_once_an_hour_and_device(self, start: Start, redis_url: str) -> None:
        """On whatever worker, also of a player that goes on with its old token."""
        one, other = await start(), await start()
        screen = await Screen.dial(one, "lobby", **SOON)
        await screen.event("token:refresh")
        await rounds(one)
        again = await Screen.dial(other, "lobby", **SOON)
        await rounds(other)
        assert len(screen.messages("token:refresh") + again.messages("token:refresh")) == 1
        books(redis_url).delete("vz:{d:lobby}:refreshed")  # an hour later
        await again.event("token:refresh")

    async def test_a_connection_that_stays_gets_the_next_one_when_it_is_due(self, start: Start, redis_url: str) -> None:
        """A token that lives a day ends soon from the beginning."""
        now = int(time.time())
        screen = await Screen.dial(await start(), "lobby", iat=now, exp=now + DAY)
        await screen.event("token:refresh")
        books(redis_url).delete("vz:{d:lobby}:refreshed")
        await screen.event("token:refresh", 2)

    @pytest.mark.parametrize("end", [{"exp": SOON["iat"] + 80 * DAY + 15 * DAY}, {"exp": None}])
    async def test_one_that_does_not_end_soon_is_left_alone(self, start: Start, end: Any) -> None:
        node = await start()
        screen = await Screen.dial(node, "lobby", iat=SOON["iat"], **end)
        await rounds(node)
        assert screen.messages("token:refresh") == []

    async def test_a_suspended_organisation_gets_none(self, start: Start, redis_url: str) -> None:
        books(redis_url).set("vz:{o:acme}:suspended", "{}")
        node = await start()
        screen = await Screen.dial(node, "lobby", **SOON)
        await screen.event("tenant:suspended")
        await rounds(node)
        assert screen.messages("token:refresh") == []
        body = {"organizationId": "acme", "state": "resumed"}
        assert (await call(node, "POST", "/internal/tenant-entitlement", body)).status == 200
        await screen.event("token:refresh")

    async def test_nobody_who_was_let_in_unchecked(self, start: Start, redis_url: str) -> None:
        """Redis was away: whether the device is revoked is not known."""
        node = await start()
        screen = await Screen.dial(node, "lobby", exp=SOON["exp"] + 20 * DAY)
        device = node.gateway.state.devices["lobby"]
        device.owned = False
        device.peer.identity.expires = SOON["exp"]
        await rounds(node)
        assert screen.messages("token:refresh") == []
        device.owned = True
        await screen.event("token:refresh")

    async def test_a_revocation_is_of_both(self, start: Start) -> None:
        node = await start()
        screen = await Screen.dial(node, "lobby", **SOON)
        token = (await screen.event("token:refresh"))["token"]
        body = {"deviceId": "lobby", "jti": "t1"}
        assert (await call(node, "POST", "/internal/device-revoked", body)).status == 200
        assert await screen.ended() == 4501
        for each in (token, device_token("lobby", **SOON)):
            status, refused = await refusal(node.port, each)
            assert (status, refused["code"]) == (403, "DEVICE_REVOKED")

    async def test_the_old_one_is_good_until_its_end(self, start: Start) -> None:
        node = await start()
        await (await Screen.dial(node, "lobby", **SOON)).event("token:refresh")
        again = await Screen.dial(node, "lobby", **SOON)
        assert (await again.answer("heartbeat", {}, 1))["success"]

    async def test_an_erased_device_leaves_no_trace(self, start: Start, redis_url: str) -> None:
        node = await start()
        await (await Screen.dial(node, "lobby", **SOON)).event("token:refresh")
        assert (await call(node, "DELETE", "/devices/lobby")).status == 200
        await until(lambda: not node.gateway.connections)
        assert books(redis_url).keys("*lobby*") == []

    async def test_off_unless_it_is_wanted(self, start: Start) -> None:
        node = await start(refresh=False)
        assert not [entry for entry in _entries(node) if isinstance(entry, token_refresh.Refresher)]


async def test_a_service_of_two_workers(tmp_path: Path) -> None:
    env = {**SECRETS, "INTERNAL_API_SECRET": API_KEY, "VIZORA_AUTH__REFRESH": "true"}
    with Service(tmp_path, env, workers=2) as service:
        service.start()
        client = await dial(service.port, device_token("lobby", **SOON))
        await client.next("config")
        token = (await client.next("token:refresh"))["token"]
        assert claims(token)["exp"] > SOON["exp"]
        again = await dial(service.port, token)
        await again.next("config")
        assert (await again.heartbeat())["success"]
        assert service.wait("token minted")["device_id"] == "lobby"
        assert token not in "\n".join(service.lines)
        await again.leave()
