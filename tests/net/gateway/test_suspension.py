"""Suspended organisations: their screens are told when they come in, when it begins and when it is over."""

from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest

from tests.net.peers import device_token, dial, dial_device, until
from tests.net.watching import dashboard, node, status
from vizora_rt.net.gateway import suspension

pytestmark = pytest.mark.usefixtures("quick")


class TestTenants:
    async def test_who_comes_in_is_told(self, stack: AsyncExitStack, redis_url: str, client: Any) -> None:
        client.set("vz:{o:acme}:suspended", '{"reason":"unpaid","at":1}')
        worker = await node(stack, redis_url)
        for name in ("lobby-1", "lobby-2"):
            screen = await dial(worker.port, device_token(name))
            await screen.next("config")
            assert await screen.next("tenant:suspended") == {"reason": "unpaid"}
            key = f"vz:{{d:{name}}}:status"
            await until(partial(lambda key: "suspended" in client.get(key), key))

    async def test_suspended_and_resumed(self, stack: AsyncExitStack, redis_url: str, client: Any) -> None:
        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        screen = await dial_device(worker.port, "lobby-1")
        assert await status(ann) == ("lobby-1", "online", "connected")
        client.set("vz:{o:acme}:suspended", '{"reason":"unpaid"}')
        client.publish("vz:org:acme", '{"tenant":"suspended","organizationId":"acme","reason":"unpaid"}')
        assert await screen.next("tenant:suspended") == {"reason": "unpaid"}
        assert await status(ann) == ("lobby-1", "suspended", "tenant_suspended")
        await screen.heartbeat()
        client.delete("vz:{o:acme}:suspended")
        client.publish("vz:org:acme", '{"tenant":"resumed","organizationId":"acme","reason":"paid"}')
        assert await screen.next("tenant:resumed") == {"reason": "paid"}
        assert await status(ann) == ("lobby-1", "online", "tenant_resumed")

    async def test_a_bell_that_was_lost(
        self, stack: AsyncExitStack, redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(suspension, "LOOK_AGAIN", 0.05)
        worker = await node(stack, redis_url)
        screen = await dial_device(worker.port, "lobby-1")
        client.set("vz:{o:acme}:suspended", "anything")
        assert await screen.next("tenant:suspended") == {"reason": ""}

    async def test_organizations_without_clients_are_let_go(
        self, stack: AsyncExitStack, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(suspension, "LOOK_AGAIN", 0.05)
        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        await ann.leave()
        await until(lambda: not worker.gateway._suspensions._known)
        assert not worker.gateway.pubsub.is_subscribed("acme")
        ann = await dashboard(worker)
        await dial_device(worker.port, "lobby-1")
        assert await status(ann) == ("lobby-1", "online", "connected")
