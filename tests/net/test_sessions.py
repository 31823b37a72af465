"""Sessions of dashboards that end while they look on."""

import time
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.net.peers import until
from tests.net.watching import dashboard, node, silent
from vizora_rt.net import sessions

pytestmark = pytest.mark.usefixtures("quick")


class TestSessions:
    @pytest.mark.parametrize(
        ("key", "value", "reason"),
        [
            ("revoked_token:j-1", "1", "revoked"),
            ("user_revoked:ann", "1", "revoked"),
            ("pwd_changed:ann", "33000000000", "password_changed"),
            ("pwd_changed:ann", "33000000000000", "password_changed"),
        ],
    )
    async def test_it_ends(
        self,
        stack: AsyncExitStack,
        redis_url: str,
        client: Any,
        monkeypatch: pytest.MonkeyPatch,
        key: str,
        value: str,
        reason: str,
    ) -> None:
        monkeypatch.setattr(sessions, "EVERY", 0.05)
        worker = await node(stack, redis_url)
        ann, bob = await dashboard(worker, jti="j-1"), await dashboard(worker, "bob", jti="j-2")
        client.set(key, value)
        assert await ann.next("session:expired") == {"reason": reason}
        assert await ann.ended() == 4503
        await silent(bob)

    async def test_its_token_ends(self, stack: AsyncExitStack, redis_url: str) -> None:
        worker = await node(stack, redis_url)
        soon = int(time.time()) + 1
        ann = await dashboard(worker, exp=soon)
        assert await ann.next("session:expired") == {"reason": "expired"}
        assert await ann.ended() == 4503

    async def test_without_redis_nobody_is_thrown_out(
        self, stack: AsyncExitStack, redis_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sessions, "EVERY", 0.02)
        looks = 0
        look = sessions.look

        def counted(*arguments: Any) -> None:
            nonlocal looks
            looks += 1
            look(*arguments)

        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        client.set("user_revoked:ann", "1")
        worker.store.up = False
        monkeypatch.setattr(sessions, "look", counted)
        await until(lambda: looks > 3)
        await silent(ann)
        worker.store.up = True
        assert await ann.next("session:expired") == {"reason": "revoked"}
