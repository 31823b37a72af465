"""A player against `websockets`' server: heartbeats, acks, when it comes back, and what becomes of its plays."""

import asyncio
import contextlib
import itertools
import json
import threading
from collections.abc import AsyncIterator
from functools import partial
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection as SyncConnection
from websockets.sync.server import serve as serve_in_thread

from vizora_rt import errors
from vizora_rt.client.player import (
    ACKS_AWAITED,
    BATCH,
    COMMANDS_REMEMBERED,
    PlayBuffer,
    Player,
    PlayerState,
    Timing,
    backoff_seconds,
)
from vizora_rt.client.websocket import CloseInfo
from vizora_rt.errors import Refusal

QUIET = Timing(
    first_beat=0.0,
    interval=60.0,
    least_interval=0.01,
    silent_intervals=10_000,
    backoff_first=0.001,
    backoff_most=0.01,
    goodbye=0.5,
)
"""One heartbeat at once, then none: a test reads only what it provoked."""
BEATING = Timing(first_beat=0.0, interval=0.02, least_interval=0.01, backoff_first=0.001, backoff_most=0.01)
OK = {"success": True, "timestamp": "2026-11-23T04:00:00.000Z"}

Message = dict[str, Any]


class Screen(Player):
    """Remembers what its hooks were told."""

    __slots__ = ("events", "states")

    def __init__(self, url: str, timing: Timing = QUIET, token: str = "t", plays_kept: int = 10_000) -> None:
        super().__init__(url, token, timing=timing, plays_kept=plays_kept)
        self.events: asyncio.Queue[tuple[str, Message]] = asyncio.Queue()
        self.states: asyncio.Queue[tuple[PlayerState, CloseInfo | None]] = asyncio.Queue()

    def on_event(self, event: str, data: Message) -> None:
        self.events.put_nowait((event, data))

    def on_state(self, state: PlayerState) -> None:
        self.states.put_nowait((state, self.ending))

    async def until(self, wanted: PlayerState) -> CloseInfo | None:
        """The ending that was known when the state was next reached."""
        while True:
            state, ending = await self.states.get()
            if state is wanted:
                return ending


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        self.ids = itertools.count(1)

    async def next(self, event: str) -> Message:
        """The next message of this kind; heartbeats before it are acked on the way."""
        while True:
            message: Message = json.loads(await self.connection.recv())
            if message["event"] == event:
                return message
            assert message["event"] == "heartbeat", message
            await self.ack(message)

    async def ack(self, message: Message, **data: Any) -> None:
        await self.answer(message, {**OK, "data": data})

    async def refuse(self, message: Message, refusal: Refusal, **extra: Any) -> None:
        body = {"success": False, "code": refusal.code, "error": refusal.message, "retryable": refusal.retryable}
        await self.answer(message, {**body, **extra})

    async def answer(self, message: Message, body: Message) -> None:
        await self.connection.send(json.dumps({"event": "ack", "id": message["id"], "data": body}))

    async def push(self, event: str, data: Any, *, want_ack: bool = False) -> int:
        number = next(self.ids)
        await self.connection.send(json.dumps({"event": event, **({"id": number} if want_ack else {}), "data": data}))
        return number


class Gateway:
    """A server whose connections are driven by the test."""

    def __init__(self) -> None:
        self.arrivals: asyncio.Queue[Peer] = asyncio.Queue()
        self.answers: list[Response] = []
        self.server: Server | None = None

    @property
    def url(self) -> str:
        assert self.server is not None
        return f"ws://127.0.0.1:{next(iter(self.server.sockets)).getsockname()[1]}/ws"

    async def handle(self, connection: ServerConnection) -> None:
        self.arrivals.put_nowait(Peer(connection))
        await connection.wait_closed()

    def refuse(self, connection: ServerConnection, request: Request) -> Response | None:
        return self.answers.pop(0) if self.answers else None

    def will_answer(self, status: HTTPStatus, body: bytes, **fields: str) -> None:
        headers = {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in fields.items()}}
        self.answers.append(Response(status, status.phrase, Headers(headers), body))


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    result = Gateway()
    async with serve(result.handle, "127.0.0.1", 0, compression=None, process_request=result.refuse) as server:
        result.server = server
        yield result


@contextlib.asynccontextmanager
async def living(screen: Screen) -> AsyncIterator["asyncio.Task[CloseInfo]"]:
    task = asyncio.create_task(screen.run())
    async with asyncio.timeout(20):
        yield task
    task.cancel()
    await asyncio.wait((task,))
    assert screen.state is PlayerState.STOPPED


async def test_heartbeats_follow_config(gateway: Gateway) -> None:
    class Vital(Screen):
        __slots__ = ()

        def heartbeat(self) -> Message:
            return {"uptime": 7}

    screen = Vital(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        await peer.push("config", {"heartbeatInterval": 20, "cacheSize": 1})
        beats = [json.loads(await peer.connection.recv()) for _ in range(4)]
        assert {beat["event"] for beat in beats} == {"heartbeat"}
        assert len({beat["id"] for beat in beats}) == 4
        assert beats[0]["data"] == {"contentVersion": None, "uptime": 7}
        assert await screen.events.get() == ("config", {"heartbeatInterval": 20, "cacheSize": 1})
        assert screen.interval == 0.02


async def test_a_fleet_that_came_together_spreads_over_the_interval(gateway: Gateway) -> None:
    screens = [Screen(gateway.url) for _ in range(30)]
    async with contextlib.AsyncExitStack() as stack:
        for screen in screens:
            await stack.enter_async_context(living(screen))
        for _ in screens:
            await (await gateway.arrivals.get()).connection.recv()
        now = asyncio.get_running_loop().time()
        due = [screen._beats.when() - now for screen in screens if screen._beats is not None]
        assert len(due) == len(screens)
        assert min(due) < 20
        assert max(due) > 40


@pytest.mark.parametrize("interval", [0, -5, None, "20", True, 1])
async def test_no_config_makes_it_beat_without_pause(gateway: Gateway, interval: object) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        await peer.push("config", {"heartbeatInterval": interval})
        await screen.events.get()
        assert screen.interval >= QUIET.least_interval


async def test_a_silent_server_is_left(gateway: Gateway) -> None:
    screen = Screen(gateway.url, BEATING)
    async with living(screen):
        await gateway.arrivals.get()
        await screen.until(PlayerState.ONLINE)
        assert await screen.until(PlayerState.WAITING) == CloseInfo("silent", 1006)
        await gateway.arrivals.get()


def test_acked_before_it_is_executed() -> None:
    """The server has the ack while the command runs: the hook stands still until the server's thread says so."""
    acked = threading.Event()
    executed: list[Message] = []

    class Rebooting(Player):
        __slots__ = ()

        def on_event(self, event: str, data: Message) -> None:
            if event == "command":
                assert acked.wait(10), "executed before the server had the ack"
                executed.append(data)

    def handle(connection: SyncConnection) -> None:
        command = {"type": "reboot", "commandId": "c1"}
        connection.send(json.dumps({"event": "command", "id": 5, "data": command}))
        for message in connection:
            if json.loads(message) == {"event": "ack", "id": 5, "data": {"ok": True}}:
                acked.set()
                connection.close(4500)

    with serve_in_thread(handle, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            player = Rebooting(f"ws://127.0.0.1:{server.socket.getsockname()[1]}/ws", "t", timing=QUIET)
            assert asyncio.run(asyncio.wait_for(player.run(), 20)) == CloseInfo("superseded", 4500, final=True)
        finally:
            server.shutdown()
            thread.join()
    assert executed == [{"type": "reboot", "commandId": "c1"}]


async def test_a_command_that_comes_again_is_acked_again_and_not_executed(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        for command in ("a", "a", "b", "a"):
            number = await peer.push("command", {"type": "reload", "commandId": command}, want_ack=True)
            assert await peer.next("ack") == {"event": "ack", "id": number, "data": {"ok": True}}
        await peer.connection.close(1012)
        peer = await gateway.arrivals.get()
        await peer.push("command", {"type": "reload", "commandId": "b"}, want_ack=True)
        await peer.push("playlist:update", {"version": "7"}, want_ack=True)
        assert [(await peer.next("ack"))["id"] for _ in range(2)] == [1, 2]
        seen = [await screen.events.get() for _ in range(3)]
        assert [data.get("commandId", event) for event, data in seen] == ["a", "b", "playlist:update"]


async def test_commands_remembered_are_bounded(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        for number in [*range(COMMANDS_REMEMBERED + 1), 0]:
            await peer.push("command", {"commandId": str(number)})
        seen = [(await screen.events.get())[1]["commandId"] for _ in range(COMMANDS_REMEMBERED + 2)]
        assert seen[-1] == "0"
        assert len(screen._seen) == COMMANDS_REMEMBERED


async def test_acks_are_matched_by_id(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    answers: asyncio.Queue[tuple[str, Message | None]] = asyncio.Queue()

    def heard(name: str, body: Message | None) -> None:
        answers.put_nowait((name, body))

    assert not screen.send("x", {})
    async with living(screen):
        peer = await gateway.arrivals.get()
        await screen.until(PlayerState.ONLINE)
        for name in ("a", "b", "c"):
            assert screen.send(name, {}, partial(heard, name))
        messages = [await peer.next(name) for name in ("a", "b", "c")]
        await peer.answer({"id": 999_999}, OK)
        await peer.answer(messages[1], OK)
        await peer.answer(messages[0], OK)
        assert [await answers.get() for _ in range(2)] == [("b", OK), ("a", OK)]
        await peer.connection.close(1011)
        assert await answers.get() == ("c", None)


async def test_acks_awaited_are_bounded(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    answers: list[Message | None] = []
    async with living(screen):
        peer = await gateway.arrivals.get()
        await screen.until(PlayerState.ONLINE)
        for _ in range(ACKS_AWAITED + 5):
            screen.send("x", {}, answers.append)
        assert answers == [None] * 5
        peer.connection.transport.abort()


async def test_garbage_of_the_server_ends_nothing(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        for text in (
            "", "{", "[]", "7", '"x"', "{}", '{"event":7}', '{"event":"ack"}', '{"event":"ack","id":[]}',
            '{"event":"ack","id":1}', '{"event":"ack","id":-1,"data":7}', '{"event":"config","data":[1]}',
            '{"event":"config","data":{"heartbeatInterval":{}}}', '{"event":"command","data":{"commandId":[]}}',
            '{"event":"server:shutdown","data":{"retryAfterMs":"x"}}', '{"event":"token:refresh","data":{"token":7}}',
            '{"event":"playlist:update","data":{"version":7}}', "[" * 5000,
        ):  # fmt: skip
            await peer.connection.send(text)
        await peer.push("done", {})
        while (await screen.events.get())[0] != "done":
            pass
        assert (screen.token, screen.version, screen.interval) == ("t", None, QUIET.interval)


async def test_hooks_that_raise_end_nothing(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Screen):
        __slots__ = ()

        def on_event(self, event: str, data: Message) -> None:
            super().on_event(event, data)
            raise ZeroDivisionError

        def heartbeat(self) -> Message:
            raise ZeroDivisionError

        def on_state(self, state: PlayerState) -> None:
            super().on_state(state)
            raise ZeroDivisionError

    screen = Broken(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        assert json.loads(await peer.connection.recv())["event"] == "heartbeat"
        await peer.push("a", {})
        await peer.push("b", {})
        assert [(await screen.events.get())[0] for _ in range(2)] == ["a", "b"]
    assert "a hook of the player failed" in caplog.text


@pytest.mark.parametrize("close", [close for close in errors.CLOSES if not close.come_back])
async def test_codes_that_say_do_not_come_back(gateway: Gateway, close: errors.Close) -> None:
    screen = Screen(gateway.url)
    async with living(screen) as running:
        peer = await gateway.arrivals.get()
        await peer.connection.close(close.code)
        assert await running == CloseInfo(close.name, close.code, final=True)
        assert screen.state is PlayerState.STOPPED
    assert gateway.arrivals.empty()


@pytest.mark.parametrize("close", [close for close in errors.CLOSES if close.come_back])
async def test_codes_that_say_come_back(gateway: Gateway, close: errors.Close) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        await peer.connection.close(close.code)
        assert await screen.until(PlayerState.WAITING) == CloseInfo(close.name, close.code)
        await gateway.arrivals.get()


async def test_a_connection_that_just_ends_is_made_again(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        peer.connection.transport.abort()
        assert await screen.until(PlayerState.WAITING) == CloseInfo("connection lost", 1006)
        await gateway.arrivals.get()


@pytest.mark.parametrize("close", [errors.RESTARTING, errors.OVERLOADED_CLOSE])
async def test_a_shutdown_says_when_to_come_back(gateway: Gateway, close: errors.Close) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        await peer.push("server:shutdown", {"reconnect": True, "retryAfterMs": 30})
        await peer.connection.close(close.code)
        ending = await screen.until(PlayerState.WAITING)
        assert ending == CloseInfo(close.name, close.code, wait=0.03)
        peer = await gateway.arrivals.get()
        await peer.connection.close(close.code)
        assert await screen.until(PlayerState.WAITING) == CloseInfo(close.name, close.code)


@pytest.mark.parametrize("refusal", [errors.AUTH_INVALID, errors.AUTH_EXPIRED, errors.DEVICE_REVOKED])
async def test_refusals_that_are_final(gateway: Gateway, refusal: Refusal) -> None:
    body = json.dumps({"code": refusal.code, "message": refusal.message, "retryable": False}).encode()
    gateway.will_answer(HTTPStatus(refusal.status), body)
    async with living(Screen(gateway.url)) as running:
        assert await running == CloseInfo(refusal.code, refusal.status, final=True)


@pytest.mark.parametrize("refusal", [errors.RATE_LIMITED, errors.OVERLOADED, errors.STORE_UNAVAILABLE])
async def test_refusals_that_pass(gateway: Gateway, refusal: Refusal) -> None:
    body = json.dumps({"code": refusal.code, "message": refusal.message, "retryable": True}).encode()
    gateway.will_answer(HTTPStatus(refusal.status), body, Retry_After="0")
    gateway.will_answer(HTTPStatus.NOT_FOUND, b"")
    screen = Screen(gateway.url)
    async with living(screen):
        assert await screen.until(PlayerState.WAITING) == CloseInfo(refusal.code, refusal.status, wait=0.0)
        assert await screen.until(PlayerState.WAITING) == CloseInfo("HTTP 404", 404)
        await gateway.arrivals.get()


def absences(ending: CloseInfo, failures: int) -> list[float]:
    return [backoff_seconds(ending, failures, Timing()) for _ in range(200)]


def test_absence_has_full_jitter_and_a_ceiling_that_doubles() -> None:
    for failures in range(40):
        drawn = absences(CloseInfo("x"), failures)
        ceiling = min(60.0, 2.0**failures)
        assert 0 <= min(drawn) < ceiling / 4
        assert ceiling * 3 / 4 < max(drawn) <= ceiling


def test_a_time_told_with_the_goodbye_is_kept() -> None:
    assert set(absences(CloseInfo("restarting", 1012, wait=5.0), 0)) == {5.0}
    assert set(absences(CloseInfo("connection lost", 1006, wait=5.0), 0)) == {5.0}


def test_goodbye_upon_goodbye_is_backed_off_from() -> None:
    drawn = absences(CloseInfo("restarting", 1012, wait=0.1), 5)
    assert min(drawn) >= 0.1 and 24 < max(drawn) <= 32


@pytest.mark.parametrize("status", [429, 503])
def test_a_refused_player_comes_in_its_turn_however_often_it_was_refused(status: int) -> None:
    for failures in (0, 5):
        drawn = absences(CloseInfo("OVERLOADED", status, wait=5.0), failures)
        assert 5 <= min(drawn) < 5.25 and 5.75 < max(drawn) < 6


def test_no_time_is_no_reason_to_come_at_once() -> None:
    assert max(absences(CloseInfo("OVERLOADED", 503, wait=0.0), 5)) > 24


async def test_work_done_ends_the_back_off_and_a_handshake_does_not(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        for _ in range(3):
            await (await gateway.arrivals.get()).connection.close(1011)
        peer = await gateway.arrivals.get()
        beat = json.loads(await peer.connection.recv())
        assert screen._failures == 3
        await peer.ack(beat, reconcileContent=False)
        await peer.push("after", {})
        await screen.events.get()
        assert screen._failures == 0


async def test_a_new_token_is_used_next_time(gateway: Gateway) -> None:
    screen = Screen(gateway.url, token="old")
    async with living(screen):
        peer = await gateway.arrivals.get()
        assert peer.connection.request is not None
        assert peer.connection.request.headers["Authorization"] == "Bearer old"
        await peer.push("token:refresh", {"token": "new"})
        await peer.connection.close(4000)
        peer = await gateway.arrivals.get()
        assert peer.connection.request is not None
        assert peer.connection.request.headers["Authorization"] == "Bearer new"


async def test_cancelled_it_says_goodbye(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        await screen.until(PlayerState.ONLINE)
    await peer.connection.wait_closed()
    assert peer.connection.close_code == 1000


async def test_content_that_differs_is_requested(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        beat = json.loads(await peer.connection.recv())
        await peer.push("playlist:update", {"playlist": {}, "version": "1"}, want_ack=True)
        await peer.next("ack")
        await peer.ack(beat, reconcileContent=True, nextHeartbeatIn=15000, commands=[])
        request = await peer.next("playlist:request")
        assert request["data"] == {"lastKnownVersion": "1"}
        await peer.ack(request, playlist={"items": []}, version="2", source="store")
        assert [(await screen.events.get())[1]["version"] for _ in range(2)] == ["1", "2"]
        assert screen.version == "2"


def seqs(message: Message) -> list[int]:
    return [play["seq"] for play in message["data"]["plays"]]


async def test_plays_kept_while_offline_go_in_batches(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    for number in range(1, 451):
        assert screen.play_started("c", playlistId="p", timestamp=number) == number
    async with living(screen):
        peer = await gateway.arrivals.get()
        batches = []
        for _ in range(3):
            batches.append(await peer.next("content:impressions"))
            await peer.ack(batches[-1], watermark=seqs(batches[-1])[-1], accepted=1, duplicates=0, missing=[])
        await peer.push("after", {})
        await screen.events.get()
        assert [len(seqs(batch)) for batch in batches] == [BATCH, BATCH, 50]
        assert list(itertools.chain(*map(seqs, batches))) == list(range(1, 451))
        assert {batch["data"]["boot"] for batch in batches} == {screen.plays.boot}
        play = {"contentId": "c", "seq": 1, "phase": "start", "timestamp": 1, "playlistId": "p"}
        assert batches[0]["data"]["plays"][0] == play
        assert (len(screen.plays.queue), screen.plays.watermark) == (0, 450)


async def test_a_play_online_goes_at_once(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    async with living(screen):
        peer = await gateway.arrivals.get()
        await peer.next("heartbeat")
        seq = screen.play_started("c")
        message = await peer.next("content:impressions")
        screen.play_ended(seq, "c", duration=10, completionPercentage=100)
        await peer.ack(message, watermark=1)
        second = await peer.next("content:impressions")
        await peer.ack(second, watermark=1)
        assert [play["phase"] for m in (message, second) for play in m["data"]["plays"]] == ["start", "end"]
        assert [seqs(message), seqs(second)] == [[1], [1]]


async def test_plays_without_an_ack_are_sent_on_the_next_connection(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    screen.play_started("c")
    async with living(screen):
        first = await gateway.arrivals.get()
        before = await first.next("content:impressions")
        screen.play_started("d")
        await first.connection.close(1012)
        second = await gateway.arrivals.get()
        after = await second.next("content:impressions")
        assert (seqs(before), seqs(after)) == ([1], [1, 2])
        assert before["data"]["boot"] == after["data"]["boot"]


async def test_plays_without_an_ack_are_sent_again_and_a_late_ack_settles_nothing(gateway: Gateway) -> None:
    screen = Screen(gateway.url, Timing(first_beat=0.0, interval=60.0, plays_ack=0.05, goodbye=0.5))
    screen.play_started("c")
    async with living(screen):
        peer = await gateway.arrivals.get()
        first = await peer.next("content:impressions")
        screen.play_started("d")
        second = await peer.next("content:impressions")
        await peer.ack(first, watermark=1)
        await peer.push("after", {})
        await screen.events.get()
        assert (seqs(first), seqs(second), len(screen.plays.queue)) == ([1], [1, 2], 2)


async def test_a_server_that_knows_no_plays_is_asked_much_later(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    screen.play_started("c")
    async with living(screen):
        peer = await gateway.arrivals.get()
        await peer.refuse(await peer.next("content:impressions"), errors.UNKNOWN_EVENT)
        await peer.push("after", {})
        await screen.events.get()
        screen.play_started("d")
        screen.send("marker", {})
        await peer.next("marker")
        assert len(screen.plays.queue) == 2
        await peer.connection.close(1012)
        peer = await gateway.arrivals.get()
        assert seqs(await peer.next("content:impressions")) == [1, 2]


async def test_plays_refused_for_now_come_again(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    screen.play_started("c")
    async with living(screen):
        peer = await gateway.arrivals.get()
        message = await peer.next("content:impressions")
        await peer.refuse(message, errors.STORE_UNAVAILABLE, retryAfterMs=10)
        assert seqs(await peer.next("content:impressions")) == [1]


async def test_one_bad_play_does_not_hold_up_the_others(gateway: Gateway) -> None:
    screen = Screen(gateway.url)
    for _ in range(300):
        screen.play_started("c")
    taken: list[int] = []
    async with living(screen):
        peer = await gateway.arrivals.get()
        while len(taken) < 299:
            message = await peer.next("content:impressions")
            if 77 in seqs(message):
                await peer.refuse(message, errors.INVALID_PAYLOAD, details={"plays": "bad"})
            else:
                taken += seqs(message)
                await peer.ack(message, watermark=76)
        await peer.push("after", {})
        await screen.events.get()
        assert taken == [*range(1, 77), *range(78, 301)]
        assert (screen.plays.refused, len(screen.plays.queue)) == (1, 0)


def test_plays_are_bounded_and_the_oldest_go() -> None:
    plays = PlayBuffer(3)
    for number in range(5):
        plays.add({"seq": number})
    body = plays.take()
    assert body is not None
    assert [play["seq"] for play in json.loads(body)["plays"]] == [2, 3, 4]
    plays.add({"seq": 5})
    plays.stored(5)
    assert (list(plays.queue), plays.lost, plays.watermark) == ([b'{"seq":5}'], 3, 5)
    plays.stored("x")
    assert (len(plays.queue), plays.watermark) == (1, 5)


def test_plays_all_lost_while_in_flight() -> None:
    plays = PlayBuffer(1)
    plays.add({"seq": 1})
    plays.take()
    plays.add({"seq": 2})
    plays.rejected()
    assert (list(plays.queue), plays.refused) == ([b'{"seq":2}'], 0)


def test_a_batch_fits_a_message() -> None:
    plays = PlayBuffer(1000)
    for _ in range(BATCH):
        plays.add({"contentId": "c" * 4000})
    body = plays.take()
    assert body is not None
    assert 40_000 < len(body) < 60_000
    with pytest.raises(ValueError, match="at most"):
        plays.add({"contentId": "c" * 5000})
    assert PlayBuffer(1).take() is None
