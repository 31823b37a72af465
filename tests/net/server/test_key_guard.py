"""Wrong keys: counted, named in the log, and answered late when there are many."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.net.peers import Node, Wire, request, until
from vizora_rt.app.limits import SlidingWindow
from vizora_rt.errors import API_KEY_INVALID
from vizora_rt.net.api.control import Control
from vizora_rt.net.api.control_routes import Routes
from vizora_rt.net.server import key_guard
from vizora_rt.telemetry import logs

SECRET = "k" * 32

Open = Callable[..., Any]


async def ask(node: Node, path: str, **fields: str) -> int:
    wire = await Wire.open(node.port)
    await wire.send(request(path, **fields))
    status, _, _ = await wire.response()
    await wire.close()
    return status


@pytest.fixture
async def control(opened: Open, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setattr(logs, "_room", SlidingWindow(logs.PER_MINUTE, 60, logs.MAX_KINDS))  # other tests wrote some too
    node: Node = await opened(metrics={"token": SECRET})
    Routes(Control(SECRET, node.http, node.store), node.gateway, node.store)
    return node


def wrong(node: Node, which: str) -> int:
    return node.counter("http_wrong_keys_total", which)


@pytest.mark.parametrize(
    ("which", "path", "field", "form", "status"),
    [
        ("internal", "/devices/a", "X_Internal_Api_Key", "{}", 401),
        ("metrics", "/metrics", "Authorization", "Bearer {}", 403),
    ],
)
class TestWrong:
    async def test_counted_and_told(
        self,
        control: Node,
        capfd: pytest.CaptureFixture[str],
        which: str,
        path: str,
        field: str,
        form: str,
        status: int,
    ) -> None:
        capfd.readouterr()
        far = {"X_Forwarded_For": "192.0.2.1"}
        for given in ("x", SECRET[:-1], SECRET + "k", "\xe9", "x\x7f"):
            assert await ask(control, path, **{field: form.format(given)}, **far) in (status, 400)
        told = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
        found = [line for line in told if line["event"] == "wrong key"]
        assert len(found) == wrong(control, which) >= 4
        assert found[0]["level"] == "warning"
        assert (found[0]["key"], found[0]["address"]) == (which, "127.0.0.1")
        assert SECRET[:-1] not in json.dumps(told)

    async def test_none_at_all_is_no_guess(
        self, control: Node, which: str, path: str, field: str, form: str, status: int
    ) -> None:
        assert await ask(control, path, X_Forwarded_For="192.0.2.1") == status
        assert wrong(control, which) == 0

    async def test_many_are_answered_late(
        self,
        control: Node,
        monkeypatch: pytest.MonkeyPatch,
        which: str,
        path: str,
        field: str,
        form: str,
        status: int,
    ) -> None:
        release, waits = asyncio.Event(), list[float]()

        async def sleep(seconds: float) -> None:
            waits.append(seconds)
            await release.wait()

        far = {field: form.format("x"), "X_Forwarded_For": "192.0.2.1"}
        for _ in range(key_guard.PER_MINUTE):
            assert await ask(control, path, **far) == status
        monkeypatch.setattr(key_guard.asyncio, "sleep", sleep)  # type: ignore[attr-defined]
        wire = await Wire.open(control.port)
        await wire.send(request(path, **far))
        assert await asyncio.wait_for(asyncio.shield(settled(waits)), 10) == [key_guard.LATE_SECONDS]
        release.set()
        assert (await wire.response())[0] == status
        # Who has the right key does not wait for those who have not.
        assert await ask(control, path, **{field: form.format(SECRET)}, X_Forwarded_For="192.0.2.1") in (200, 404)
        assert wrong(control, which) == key_guard.PER_MINUTE + 1
        await wire.close()


async def settled(waits: list[float]) -> list[float]:
    loop = asyncio.get_running_loop()
    while not waits:
        turn = loop.create_future()
        loop.call_later(0.005, turn.set_result, None)
        await turn
    return waits


async def test_the_log_is_not_filled(control: Node, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    for _ in range(9):
        await ask(control, "/devices/a", X_Internal_Api_Key="x")
    for number in range(40):
        control.http.keys.refuse_wrong("internal", f"192.0.2.{number}", "/devices/{id}", API_KEY_INVALID)
    found = [line for line in capfd.readouterr().err.splitlines() if "wrong key" in line]
    assert len(found) == logs.PER_MINUTE
    assert wrong(control, "internal") == 49
    await until(lambda: not control.http.answering)


async def test_a_wrong_key_before_a_body(control: Node) -> None:
    """Late or not, the body is not read, and the connection ends."""
    wire = await Wire.open(control.port)
    await wire.send(request("/internal/command", "POST", X_Internal_Api_Key="x", Content_Length="1000000"))
    status, fields, _ = await wire.response()
    assert (status, fields["connection"]) == (401, "close")
    assert await wire.ends() == b""
    await wire.close()
