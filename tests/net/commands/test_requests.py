"""Asking for acks: who is counted as what, how long it is waited for, and two services on one Redis."""

import asyncio
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.net.backend import API_KEY, Answer, Backed, Screen, books, call, fleet
from tests.net.peers import SECRETS, until
from tests.service_process import Service
from vizora_rt.app.commands import QueuedCommand
from vizora_rt.net.commands import requests
from vizora_rt.net.commands.requests import DeliveryResult

CREATED = 1_800_000_000_000


def entry(node: Backed, name: str = "c1") -> QueuedCommand:
    return QueuedCommand(
        name, "reload", CREATED + 300_000, CREATED, node.gateway.requests.reply_to, b'{"commandId":"c1"}'
    )


async def order(node: Backed, devices: Sequence[str], name: str = "c1", known: bool = False) -> DeliveryResult:
    return await node.gateway.requests.command(devices, entry(node, name), known, {}, "f")


class TestTally:
    def test_the_last_one_ends_it(self) -> None:
        result = DeliveryResult({"a", "b", "c"})
        result.done("a", "acked", "")
        result.done("a", "failed", "")
        result.done("x", "acked", "")
        result.done("b", "failed", "no disk")
        assert not result.finished.is_set()
        result.done("c", "expired", "")
        assert result.finished.is_set()
        assert (result.delivered, result.failures) == (1, {"b": "no disk", "c": "expired"})
        assert result.expired == 1


class TestWaiting:
    async def test_nobody_is_waited_for_who_is_not_there(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            result = await order(node, ["a", "b"])
            assert (result.online, result.delivered, result.queued, result.failures) == (0, 0, 2, {})
            assert result.waited < requests.ACK_SECONDS * 1e9 / 2

    async def test_one_that_does_not_ack(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(requests, "ACK_SECONDS", 0.1)
        async with fleet(redis_url, 2) as (one, other):
            await Screen.dial(other, "a", acks=False)
            await Screen.dial(one, "b")
            result = await order(one, ["a", "b", "c"])
            assert (result.online, result.delivered, result.queued) == (2, 1, 2)
            assert result.waited > 0

    async def test_the_wait_is_no_part_of_the_duration_of_the_request(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(requests, "ACK_SECONDS", 0.5)
        async with fleet(redis_url, 1) as (node,):
            await Screen.dial(node, "a", acks=False)
            await call(node, "POST", "/internal/command", {"deviceId": "a", "command": {"type": "reload"}})
            timer = node.metrics.timer("http_request_duration_seconds", "POST", "/internal/command")
            assert 0 < timer.slots[-1] < 250_000_000

    async def test_two_callers_of_one_command(self, redis_url: str) -> None:
        async with fleet(redis_url, 1) as (node,):
            screen = await Screen.dial(node, "a", acks=False)
            both = asyncio.gather(order(node, ["a"], known=True), order(node, ["a"], known=True))
            await screen.ack(await screen.message("command"))
            assert [result.delivered for result in await both] == [1, 1]
            assert len(screen.commands()) == 1

    async def test_nothing_is_remembered_afterwards(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(requests, "ACK_SECONDS", 0.05)
        async with fleet(redis_url, 1) as (node,):
            await Screen.dial(node, "a", acks=False)
            await order(node, ["a"])
            waiting = asyncio.create_task(order(node, ["a"], "c2"))
            await until(lambda: node.gateway.requests._waiting)
            waiting.cancel()
            await until(lambda: not node.gateway.requests._waiting)
            assert waiting.cancelled()

    async def test_the_store_goes_away(self, redis_url: str) -> None:
        node = await Backed(redis_url).start(store=False)
        try:
            result = await order(node, ["a"])
            assert result.unavailable
            assert list(result.failures) == ["a"]
        finally:
            await node.stop()

    async def test_a_worker_that_is_gone_costs_no_more_than_the_wait(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(requests, "ACK_SECONDS", 0.1)
        async with fleet(redis_url, 1) as (node,):
            client = books(redis_url)
            client.set("vz:{d:a}:owner", "1 gone 7 1")
            client.set("vz:{d:a}:status", '{"status":"online"}')
            assert (await order(node, ["a"])).queued == 1
            screen = await Screen.dial(node, "a")
            assert (await screen.event("command"))["commandId"] == "c1"


async def test_an_answer_to_a_question_that_nobody_asked(redis_url: str) -> None:
    async with fleet(redis_url, 1) as (node,):
        node.gateway.requests.on_done("c1", [["a", "acked", ""]])
        assert (await order(node, ["a"])).queued == 1


class Twin:
    """A whole service, asked as a Node is."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @property
    def port(self) -> int:
        return self.service.port


@pytest.fixture
def twins(tmp_path: Path, redis_url: str) -> Iterator[list[Twin]]:
    """Two services of two workers each, on one Redis."""
    env = {**SECRETS, "INTERNAL_API_SECRET": API_KEY, "REDIS_URL": redis_url}
    with ExitStack() as stack:
        found = []
        for name in ("one", "other"):
            folder = tmp_path / name
            folder.mkdir()
            found.append(Twin(stack.enter_context(Service(folder, env)).start()))
        yield found


async def ask(twin: Twin, method: str, path: str, body: object = None) -> Answer:
    return await call(twin, method, path, body)


async def test_two_services_on_one_redis_behave_as_one(twins: list[Twin], redis_url: str) -> None:
    screens = {}
    for number in range(16):
        twin = twins[number % 2]
        screens[f"s{number}"] = await Screen.dial(twin, f"s{number}")  # type: ignore[arg-type]
    for twin in twins:
        answer = await ask(
            twin, "POST", "/commands/broadcast", {"organizationId": "acme", "command": {"type": "pause"}}
        )
        assert answer.body.items() >= {"devicesOnline": 16, "delivered": 16, "queued": 0, "failed": 0}.items()
    assert {len(screen.commands()) for screen in screens.values()} == {2}
    assert len({tuple(screen.commands()) for screen in screens.values()}) == 1
    playlist = {"deviceId": "s0", "playlist": {"a": 1}, "version": "v1"}
    assert (await ask(twins[1], "POST", "/push/playlist", playlist)).body["delivered"] is True
    assert (await ask(twins[1], "GET", "/devices/s0")).body["playlist"] == {"version": "v1", "waiting": False}
    assert (await ask(twins[1], "POST", "/internal/device-revoked", {"deviceId": "s0"})).body["delivered"] is True
    assert await screens["s0"].ended() == 4501
    for screen in screens.values():
        await screen.leave()


async def test_a_command_survives_the_death_of_a_worker(twins: list[Twin]) -> None:
    one, other = twins
    screen = await Screen.dial(one, "lobby", acks=False)  # type: ignore[arg-type]
    asking = asyncio.create_task(
        ask(other, "POST", "/internal/command", {"deviceId": "lobby", "command": {"type": "reload"}})
    )
    first = await screen.event("command")
    for pid in one.service.workers():
        os.kill(pid, signal.SIGKILL)
    assert await screen.ended() is not None
    one.service.wait("worker ready", 4)
    again = await Screen.dial(one, "lobby")  # type: ignore[arg-type]
    assert await again.event("command") == first
    await asking
    await again.leave()


async def test_a_command_survives_the_death_of_a_node(twins: list[Twin]) -> None:
    one, other = twins
    screen = await Screen.dial(one, "lobby", acks=False)  # type: ignore[arg-type]
    asking = asyncio.create_task(
        ask(other, "POST", "/internal/command", {"deviceId": "lobby", "command": {"type": "reload"}})
    )
    first = await screen.event("command")
    one.service.signal(signal.SIGKILL)  # its workers end with it
    assert await screen.ended() is not None
    again = await Screen.dial(other, "lobby")  # type: ignore[arg-type]
    assert await again.event("command") == first
    answer = await asking
    # The call may have been answered before the new connection acked: then the record says so a little later.
    assert answer.status in (200, 202)
    states = await ask(other, "GET", f"/commands/{answer.body['commandId']}")
    assert states.body["devices"]["lobby"]["state"] in ("sent", "acked")
    await again.leave()
