"""Sessions of dashboards that end while they look on."""

import time
from contextlib import AsyncExitStack
from math import inf
from typing import Any

import pytest

from tests.net.peers import refusal, until, user_token
from tests.net.watching import dashboard, node, silent
from vizora_rt.net.access import session_check
from vizora_rt.net.presence import user_session

pytestmark = pytest.mark.usefixtures("quick")


class TestSessions:
    @pytest.mark.parametrize(
        ("key", "value", "reason"),
        [
            ("revoked_token:j-1", "1", "revoked"),
            ("user_revoked:ann", "1", "revoked"),
            ("pwd_changed:ann", "33000000000", "password_changed"),
            ("pwd_changed:ann", "33000000000000", "password_changed"),
            ("pwd_changed:ann", "2999-01-01T00:00:00.000Z", "password_changed"),
            ("pwd_changed:ann", "yesterday", "password_changed"),
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
        monkeypatch.setattr(session_check, "EVERY", 0.05)
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
        monkeypatch.setattr(session_check, "EVERY", 0.02)
        looks = 0
        look = user_session.check_session

        def counted(*arguments: Any) -> None:
            nonlocal looks
            looks += 1
            look(*arguments)

        worker = await node(stack, redis_url)
        ann = await dashboard(worker)
        client.set("user_revoked:ann", "1")
        worker.store.up = False
        monkeypatch.setattr(session_check, "check_session", counted)
        await until(lambda: looks > 3)
        await silent(ann)
        worker.store.up = True
        assert await ann.next("session:expired") == {"reason": "revoked"}


class TestTimes:
    """When a password was changed, in whatever way a service writes it."""

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            (None, 0),
            (b"1795406400", 1795406400),
            (b"1795406400.5", 1795406400.5),
            (b"1795406400500", 1795406400.5),
            (b"2026-11-23T04:00:00Z", 1795406400),
            (b"2026-11-23T04:00:00.500Z", 1795406400.5),
            (b"2026-11-23T05:00:00+01:00", 1795406400),
            (b"2026-11-23T04:00:00", 1795406400),
            (b"2026-11-23 04:00:00", 1795406400),
            (b'"2026-11-23T04:00:00.000Z"', 1795406400),
        ],
    )
    def test_it_is_read(self, value: object, seconds: float) -> None:
        assert user_session._seconds(value) == seconds

    @pytest.mark.parametrize("value", [b"", b"true", b"nan", b"inf", b"2026-11-23", b"\xff", b"Mon Nov 23 2026", b"{}"])
    def test_what_cannot_be_read_is_later_than_any_session(self, value: bytes) -> None:
        assert user_session._seconds(value) == inf

    def test_the_log_says_so_once_a_minute(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(user_session, "_told", -user_session.TOLD_EVERY)
        for _ in range(3):
            user_session._seconds(b"yesterday")
        said = capfd.readouterr().err
        assert said.count("cannot be read") == 1
        assert "yesterday" not in said

    async def test_the_session_that_came_with_the_new_password_holds(
        self, stack: AsyncExitStack, redis_url: str, client: Any
    ) -> None:
        """The service behind wrote the time and made the token in one second, of which the token keeps no parts."""
        worker = await node(stack, redis_url)
        now = int(time.time())
        client.set("pwd_changed:ann", str(now * 1000 + 999))
        await silent(await dashboard(worker, iat=now))
        assert (await refusal(worker.port, user_token(iat=now - 1)))[0] == 401
