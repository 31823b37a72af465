"""One notice to many: what is encoded once, in slices, and what a client that is behind is told."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.net.backend import call, fleet
from tests.net.peers import Wire, until, upgrade, user_token
from vizora_rt import config
from vizora_rt.app.auth import Identity
from vizora_rt.errors import Close
from vizora_rt.net.gateway.broadcast import SLICE, Broadcaster
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.frames import parse_frame
from vizora_rt.wire.messages import NATIVE, Dialect


class Listener:
    """A peer that notes the frames that it is given."""

    def __init__(self, on_notice: Callable[[], None] = lambda: None, behind: bool = False) -> None:
        self.identity = Identity("dashboard", "ann", "acme", "", 0, 0)
        self.frames: list[bytes] = []
        self.dialect: Dialect = NATIVE
        self.acks_deliveries = True
        self.open = True
        self._on_notice = on_notice
        self._behind = behind

    def notice(self, frame: bytes) -> bool:
        self._on_notice()
        self.frames.append(frame)
        return not self._behind

    def send(self, event: str, body: bytes, ack_id: int | None = None) -> None:
        raise AssertionError

    @property
    def held(self) -> bool:
        return False

    @property
    def stalled(self) -> bool:
        raise AssertionError

    def set_message_limit(self, message_bytes: int) -> None:
        raise AssertionError

    def close(self, cause: Close) -> None:
        raise AssertionError


def decoded(frame: bytes) -> Any:
    found = parse_frame(frame, 0, 0, masked=False)
    assert isinstance(found, tuple)
    return json.loads(found[2])


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(config.MetricsSettings())


async def test_everybody_gets_the_same_frame(metrics: Metrics) -> None:
    peers = [Listener() for _ in range(3 * SLICE + 1)]
    assert Broadcaster(metrics).send(peers, "notification:new", b'{"a":1}') == len(peers)
    await until(lambda: peers[-1].frames)
    assert len({id(peer.frames[0]) for peer in peers}) == 1
    assert decoded(peers[0].frames[0]) == {"event": "notification:new", "data": {"a": 1}}


async def test_in_slices_and_in_order(metrics: Metrics) -> None:
    turns: list[int] = []
    turn = 0

    def count() -> None:
        nonlocal turn
        turn += 1
        loop.call_soon(count)

    loop = asyncio.get_running_loop()
    loop.call_soon(count)
    peers = [Listener(lambda: turns.append(turn)) for _ in range(2 * SLICE)]
    broadcaster = Broadcaster(metrics)
    broadcaster.send(peers, "notification:new", b"1")
    broadcaster.send(peers, "notification:new", b"2")
    await until(lambda: len(turns) == 4 * SLICE)
    assert [[decoded(frame)["data"] for frame in peer.frames] for peer in peers] == [[1, 2]] * len(peers)
    assert max(turns.count(each) for each in set(turns)) <= SLICE


async def test_nobody(metrics: Metrics) -> None:
    broadcaster = Broadcaster(metrics)
    assert broadcaster.send([], "notification:new", b"1") == 0
    peer = Listener()
    broadcaster.send([peer], "notification:new", b"2")
    await until(lambda: peer.frames)


async def test_an_error_costs_one_notice(metrics: Metrics) -> None:
    """Not those behind it, nor those that come later."""
    raised: list[dict[str, Any]] = []

    def broken() -> None:
        raise RuntimeError("broken")

    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
    first, last = Listener(broken), Listener()
    broadcaster = Broadcaster(metrics)
    broadcaster.send([first, last, first], "notification:new", b"1")
    broadcaster.send([last], "notification:new", b"2")
    await until(lambda: len(last.frames) == 2)
    broadcaster.send([last], "notification:new", b"3")
    await until(lambda: len(last.frames) == 3)
    assert [str(context["exception"]) for context in raised] == ["broken"] * 2


async def test_who_is_behind_is_counted(metrics: Metrics) -> None:
    peers = [Listener(behind=number % 2 == 0) for number in range(10)]
    broadcaster = Broadcaster(metrics)
    broadcaster.send(peers, "notification:new", b"1")
    broadcaster.send(peers, "tenant:resumed", b"2")
    await until(lambda: len(peers[-1].frames) == 2)
    assert metrics.counter("ws_notices_dropped_total", "notification:new").value == 5
    assert metrics.counter("ws_notices_dropped_total", "tenant:resumed").value == 5


async def test_a_client_that_does_not_read_misses_some_and_is_told_how_many(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        wire = await Wire.open(node.port, receive_buffer=4096)
        await wire.send(upgrade(user_token()))
        status, _, _ = await wire.response()
        assert status == 101
        await until(lambda: node.gateway.pubsub.is_subscribed("acme"))
        body = {"organizationId": "acme", "notification": {"text": "x" * 50_000}}
        sent = 0
        while not node.counter("ws_notices_dropped_total", "notification:new"):
            assert (await call(node, "POST", "/notifications/broadcast", body)).body["delivered"] is True
            sent += 1
        await asyncio.sleep(0.1)
        dropped = node.counter("ws_notices_dropped_total", "notification:new")
        seen = []
        while "gap" not in seen:
            message = await wire.message()
            seen.append(message["event"])
        assert message["data"] == {"dropped": dropped}
        assert seen.count("notification:new") == sent - dropped
        await wire.close()
