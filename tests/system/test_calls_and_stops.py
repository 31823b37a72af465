"""A backend's call while the worker that does it ends: it gets its answer, and the screen gets the command once."""

import asyncio
import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.backend import API_KEY, Answer, Screen, call, command
from tests.net.peers import SECRETS, device_token, dial
from tests.service_process import PATIENCE, Service, until

ENV = {**SECRETS, "INTERNAL_API_SECRET": API_KEY, "VIZORA_SERVER__DRAIN_SECONDS": "2"}


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with Service(tmp_path, ENV, workers=2) as service:
        yield service.start()


async def connect(service: Service, device: str, acks: bool = False) -> Screen:
    screen = Screen(await dial(service.port, device_token(device)), acks)
    await screen.event("config")
    return screen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_call_under_way_is_answered(service: Service, number: signal.Signals) -> None:
    """The screen had the command and has not acked it when the service stops or rolls."""
    screen = await connect(service, "lobby")
    asking = [asyncio.create_task(command(service, "lobby", "reboot", commandId=f"c{count}")) for count in range(4)]
    await screen.message("command")
    (service.folder / ".env").write_text("VIZORA_PLAYER__CACHE_SIZE=4711\n")
    service.signal(number)
    answers: list[Answer] = await asyncio.gather(*asking)
    assert [answer.status for answer in answers] == [202] * 4
    assert {answer.body["commandId"] for answer in answers} == {f"c{count}" for count in range(4)}
    if number == signal.SIGTERM:
        assert await asyncio.to_thread(service.join) == 0
    else:
        await asyncio.to_thread(service.wait, "reloaded")
    assert len([record for record in service.records if record["event"] == "audit"]) == 4


async def test_an_ack_that_comes_over_another_worker_is_in_the_answer(service: Service) -> None:
    """A roll: the screen goes to a successor, which tells the worker that still waits."""
    screen = await connect(service, "lobby")
    asking = asyncio.create_task(command(service, "lobby", "reboot", commandId="c1"))
    await screen.message("command")
    (service.folder / ".env").write_text("VIZORA_PLAYER__CACHE_SIZE=4711\n")
    service.signal(signal.SIGHUP)
    assert await screen.ended() == 1012
    again = await connect(service, "lobby")
    await again.ack(await again.message("command"))
    answer = await asking
    assert (answer.status, answer.body["queued"]) in ((200, False), (202, True))
    assert again.commands() == ["c1"]
    await asyncio.to_thread(service.wait, "reloaded")
    await again.leave()


def ask(port: int, command_id: str) -> int | None:
    """The status of a call, None when its connection ended without an answer."""
    body = json.dumps({"deviceId": "lobby", "command": {"type": "reboot", "commandId": command_id}})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("POST", "/internal/command", body, {"x-internal-api-key": API_KEY})
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_call_without_an_answer_was_not_begun(service: Service, number: signal.Signals) -> None:
    """Calls go on while the service stops or rolls, on new connections and on accepted ones."""
    stop, status_writer, unanswered = threading.Event(), set[int](), list[str]()

    def backend(number: int) -> None:
        for count in range(1000):
            if stop.is_set():
                return
            command_id = f"c{number}-{count}"
            status = ask(service.port, command_id)
            if status is not None:
                status_writer.add(status)
                continue
            unanswered.append(command_id)
            stop.wait(0.1)

    backends = [threading.Thread(target=backend, args=(number,)) for number in range(4)]
    for each in backends:
        each.start()
    until(lambda: status_writer)
    if number == signal.SIGTERM:
        assert service.stop() == 0
    else:
        (service.folder / ".env").write_text("VIZORA_PLAYER__CACHE_SIZE=4711\n")
        service.signal(number)
        service.wait("reloaded")
    stop.set()
    for each in backends:
        each.join()
    if number == signal.SIGTERM:
        service.start()
    assert status_writer <= {202, 429, 503}
    for command_id in unanswered:
        assert service.get(f"/commands/{command_id}", {"x-internal-api-key": API_KEY})[0] == 404, command_id


async def test_a_worker_is_killed_in_a_call_and_the_caller_asks_again(service: Service) -> None:
    """With an id of its own: one command, whatever became of the first call."""
    screen = await connect(service, "lobby")
    asking = asyncio.create_task(asyncio.to_thread(ask, service.port, "c1"))
    await screen.message("command")
    for pid in await asyncio.to_thread(service.workers):
        os.kill(pid, signal.SIGKILL)
    assert await asking is None
    await asyncio.to_thread(service.wait, "worker ready", 4)
    again = await connect(service, "lobby", acks=True)
    answer = await command(service, "lobby", "reboot", commandId="c1")
    assert (answer.status, answer.body["delivered"]) == (200, True)
    assert set(again.commands()) == {"c1"}  # it may come again, and a device obeys an id once
    assert await screen.ended() == 1006
    found = await call(service, "GET", "/commands/c1")
    assert found.body["devices"]["lobby"]["state"] == "acked"
    await again.leave()
