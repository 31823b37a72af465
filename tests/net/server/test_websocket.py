"""A client's connection on real sockets: one write a read, silence, clients that do not read, and how it ends."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import pytest

from tests.net.peers import Client, Wire, dial, frame, settles, text, until, upgrade
from vizora_rt import config, errors
from vizora_rt.app.auth import Identity
from vizora_rt.errors import Close
from vizora_rt.net.server import held_messages, turn_queue, websocket
from vizora_rt.net.server.bounded_reader import FRAMES, READ_BYTES
from vizora_rt.net.server.websocket import Connection, ConnectionContext
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry.metrics import Cell
from vizora_rt.wire import http
from vizora_rt.wire.frames import close_payload, encode_frame
from vizora_rt.wire.http import Request, RequestParser
from vizora_rt.wire.session import OPEN

BINARY, CLOSE, PING, PONG = 0x2, 0x8, 0x9, 0xA
SHORT = 0.15
"""Seconds of a limit that a test waits for."""
SMALL = 4096
IMPATIENT = {"ping_after_seconds": SHORT, "ping_timeout_seconds": SHORT}


class Application:
    """Answers every message with itself; the event `push` is answered by as many bytes as it asks for."""

    def __init__(self, context: ConnectionContext) -> None:
        self.terms = context
        self.connections: list[Connection] = []
        self.messages: list[str | bytes] = []
        self.gone: list[Connection] = []

    def message(self, connection: Connection, payload: str | bytes) -> None:
        self.messages.append(payload)
        connection.session.send(payload.encode() if isinstance(payload, str) else payload)

    def closed(self, connection: Connection) -> None:
        self.gone.append(connection)

    def join(self, transport: asyncio.Transport, request: Request, early: bytes) -> Connection:
        joined = Connection(self, self.terms, Identity("device", "screen-1", "acme", "", 0, 0))
        self.connections.append(joined)
        accept = http.check_upgrade(request)
        assert isinstance(accept, str)
        joined.attach(transport, http.upgrade_response(accept, None), early)
        return joined


class Door(asyncio.Protocol):
    """An opening handshake that is always accepted."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._parser = RequestParser(65536, 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        request = self._parser.feed(data)
        if isinstance(request, Request):
            joined = self._application.join(self._transport, request, self._parser.rest)
            joined.send("config", b"{}")
            joined.release()


class House:
    """An application on a port of its own."""

    def __init__(self, **sections: dict[str, Any]) -> None:
        settings = config.load(None, {"HOME": "/nonexistent"}, sections)
        self.wheel = Wheel(asyncio.get_running_loop().time, 0.02)
        self.terms = ConnectionContext(settings, self.wheel, Cell(), Cell())
        self.application = Application(self.terms)
        self.port = 0

    async def open(self) -> None:
        self.wheel.start()
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Door(self.application), "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        self._server.close()
        for each in self.application.connections:
            each.abort()
        await until(lambda: len(self.application.gone) == len(self.application.connections))
        self.wheel.stop()

    async def client(self) -> Client:
        client = await dial(self.port)
        await client.next("config")
        return client

    async def wire(self, receive_buffer: int = 0) -> Wire:
        """Past the handshake and `config`."""
        wire = await Wire.open(self.port, receive_buffer)
        await wire.send(upgrade(""))
        assert (await wire.response())[0] == 101
        assert (await wire.message())["event"] == "config"
        return wire

    @property
    def last(self) -> Connection:
        return self.application.connections[-1]


Open = Callable[..., Any]


@pytest.fixture
async def house() -> AsyncIterator[Open]:
    """Opens houses, and sees that each of their connections was given up once, and by nobody remembered."""
    houses: list[House] = []

    async def build(**sections: dict[str, Any]) -> House:
        houses.append(House(**sections))
        await houses[-1].open()
        return houses[-1]

    yield build
    for each in houses:
        await each.close()
        assert len(set(each.application.gone)) == len(each.application.gone)
        assert all(gone.transport is None for gone in each.application.gone)
        assert each.terms.stalled == set()


class Recorder(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def write_eof(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))


def attached(context: ConnectionContext, early: bytes = b"") -> tuple[Application, Connection, Recorder]:
    application, transport = Application(context), Recorder()
    joined = Connection(application, context, Identity("device", "screen-1", "acme", "", 0, 0))
    joined.attach(transport, b"HTTP/1.1 101 Switching Protocols\r\n\r\n", early)
    return application, joined, transport


def quiet() -> ConnectionContext:
    return ConnectionContext(config.Config(), Wheel(lambda: 1000.0), Cell(), Cell())


def closed(cause: Close) -> bytes:
    """The server's close frame."""
    return encode_frame(CLOSE, close_payload(cause.code, cause.text))


class TestWrites:
    def test_the_handshake_and_what_follows_it_are_one_write(self) -> None:
        _, joined, transport = attached(quiet())
        joined.send("config", b"{}")
        joined.send("playlist:update", b"{}")
        assert transport.writes == []
        joined.release()
        (written,) = transport.writes
        assert written.startswith(b"HTTP/1.1 101")
        assert written.index(b"config") < written.index(b"playlist:update")

    def test_the_answers_to_a_read_are_one_write(self) -> None:
        context = quiet()
        application, joined, transport = attached(context)
        joined.release()
        transport.writes.clear()
        joined.data_received(b"".join(frame(0x1, b"%d" % number) for number in range(20)) + frame(PING, b"?"))
        assert application.messages == [str(number) for number in range(20)]
        assert len(transport.writes) == 1
        assert b"\x8a\x01?" in transport.writes[0]

    def test_nothing_to_say_is_no_write(self) -> None:
        _, joined, transport = attached(quiet())
        joined.release()
        transport.writes.clear()
        joined.data_received(frame(PONG))
        joined.data_received(text("heartbeat")[:5])
        assert transport.writes == []

    def test_events_that_a_read_leads_to_are_written_with_the_answers(self) -> None:
        application, joined, transport = attached(quiet())
        joined.release()
        transport.writes.clear()

        def push(connection: Connection, payload: str | bytes) -> None:
            connection.send("playlist:update", b"{}")

        application.message = push  # type: ignore[method-assign]
        joined.data_received(frame(0x1, b"1") + frame(0x1, b"2"))
        assert [written.count(b"playlist:update") for written in transport.writes] == [2]

    def test_bytes_are_counted(self) -> None:
        context = quiet()
        _, joined, transport = attached(context, early=frame(0x1, b"early"))
        joined.release()
        joined.data_received(frame(0x1, b"more"))
        assert context.bytes_in.value == len(frame(0x1, b"early")) + len(frame(0x1, b"more"))
        assert context.bytes_out.value == sum(map(len, transport.writes))

    def test_frames_that_came_with_the_handshake_are_answered_after_it(self) -> None:
        application, joined, transport = attached(quiet(), early=frame(0x1, b"early"))
        joined.send("config", b"{}")
        assert application.messages == []
        joined.release()
        assert application.messages == ["early"]
        assert [b"config" in written for written in transport.writes] == [True, False]

    def test_nothing_is_said_after_goodbye(self) -> None:
        application, joined, transport = attached(quiet())
        joined.release()
        joined.close(errors.RESTARTING)
        written = len(transport.writes)
        joined.send("config", b"{}")
        joined.close(errors.SUPERSEDED)
        joined.data_received(frame(0x1, b"late") + frame(PING))
        assert len(transport.writes) == written
        assert application.messages == []
        assert joined.session.closed_by is errors.RESTARTING

    def test_what_the_application_closes_on_is_the_last_that_it_sees(self) -> None:
        application, joined, transport = attached(quiet())
        joined.release()
        answer = application.message

        def close(connection: Connection, payload: str | bytes) -> None:
            answer(connection, payload)
            if payload == "2":
                connection.close(errors.FAULT)

        application.message = close  # type: ignore[method-assign]
        joined.data_received(b"".join(frame(0x1, b"%d" % number) for number in range(5)))
        assert application.messages == ["0", "1", "2"]
        assert transport.writes[-1].endswith(b"\x03\xf3internal error")

    def test_a_connection_that_is_gone_takes_no_harm(self) -> None:
        application, joined, transport = attached(quiet())
        joined.release()
        written = len(transport.writes)
        joined.connection_lost(None)
        joined.send("config", b"{}")
        joined.close(errors.RESTARTING)
        joined.abort()
        assert joined.on_timer(5000.0) is None
        assert joined.unsent == 0
        assert (len(transport.writes), application.gone) == (written, [joined])


class TestShares:
    """What one client may have done in one turn of the loop, whatever it sent."""

    async def test_a_read_of_many_messages_is_taken_in_shares(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turn_queue, "TURN_NS", 0)
        application, joined, _ = attached(quiet())
        joined.release()
        many = [str(number) for number in range(10 * FRAMES + 1)]
        joined.data_received(b"".join(frame(0x1, each.encode()) for each in many))
        seen = [len(application.messages)]
        while len(application.messages) < len(many):
            await asyncio.sleep(0)
            seen.append(len(application.messages))
        assert application.messages == many
        assert max(after - before for before, after in pairwise([0, *seen])) == FRAMES
        assert not joined.session.pending

    async def test_control_frames_are_taken_in_shares(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turn_queue, "TURN_NS", 0)
        _, joined, transport = attached(quiet())
        joined.release()
        transport.writes.clear()
        joined.data_received(frame(PING) * 10 * FRAMES)
        while joined.session.pending:
            await asyncio.sleep(0)
        assert [len(written) for written in transport.writes] == [2 * FRAMES] * 10

    async def test_of_a_long_read_the_first_frame_is_taken_at_once(self) -> None:
        application, joined, _ = attached(quiet())
        joined.release()
        joined.data_received(frame(0x1, b"x" * 1000) * 20)
        assert len(application.messages) == 1
        while joined.session.pending:
            await asyncio.sleep(0)
        assert len(application.messages) == 20

    async def test_a_large_message_has_a_share_of_its_own(self) -> None:
        application, joined, _ = attached(quiet())
        joined.release()
        large = "x" * 60_000
        joined.data_received(frame(0x1, b"before") + frame(0x1, large.encode()) + frame(0x1, b"behind"))
        assert application.messages == ["before"]
        while joined.session.pending:
            await asyncio.sleep(0)
        assert application.messages == ["before", large, "behind"]

    async def test_what_is_left_of_a_read_is_taken_before_the_next_one(self, house: Open) -> None:
        here = await house(limits={"packets_per_minute": 0})
        wire = await here.wire()
        many = [str(number) for number in range(20_000)]
        wire.writer.write(b"".join(frame(0x1, each.encode()) for each in many))
        await until(lambda: len(here.application.messages) == len(many))
        assert here.application.messages == many
        await wire.close()

    async def test_one_that_does_not_read_waits_with_what_it_sent(self, house: Open) -> None:
        here = await house()
        wire = await here.wire(SMALL)
        await TestClientsThatDoNotRead().stall(here, wire, b"x" * 100)
        taken = len(here.application.messages)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(here.application.messages) == taken
        await wire.close()


class Slow(Application):
    """Takes one message at a time: each has to wait, unless the test lets it pass."""

    def __init__(self, context: ConnectionContext) -> None:
        super().__init__(context)
        self.passing = 0

    def message(self, connection: Connection, payload: str | bytes) -> None:
        if not self.passing:
            connection.hold(payload, 0.01)
            return
        self.passing -= 1
        super().message(connection, payload)


class TestClientsOverTheirRate:
    @pytest.fixture
    async def slow(self, house: Open) -> tuple[House, Slow]:
        here: House = await house(presence=IMPATIENT)
        here.application = Slow(here.terms)
        return here, here.application

    async def test_messages_wait_in_their_order(self, slow: tuple[House, Slow]) -> None:
        here, application = slow
        wire = await here.wire()
        for number in range(100):
            await wire.send(frame(0x1, b"%d" % number))
        while len(application.messages) < 100:
            application.passing = 3
            await until(lambda: not application.passing or len(application.messages) == 100)
        assert application.messages == [str(number) for number in range(100)]
        assert here.terms.kept.bytes == 0
        await wire.close()

    async def test_so_much_is_read_and_no_more(self, slow: tuple[House, Slow]) -> None:
        here, application = slow
        wire = await here.wire()
        size = 1000
        sent = 4 * held_messages.KEPT_BYTES
        wire.writer.write(frame(0x1, b"x" * size) * (sent // size))
        await until(lambda: here.terms.kept.bytes >= held_messages.KEPT_BYTES)
        await settles(lambda: here.terms.bytes_in.value)
        assert here.terms.kept.bytes < held_messages.KEPT_BYTES + FRAMES * 2 * size
        assert here.terms.bytes_in.value < held_messages.KEPT_BYTES + 2 * READ_BYTES + sent // 10
        while len(application.messages) < sent // size:
            application.passing = 10_000
            await asyncio.sleep(0.01)
        await wire.close()

    async def test_so_much_is_kept_of_all_together(
        self, slow: tuple[House, Slow], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(held_messages, "KEPT_BYTES_ALL", 20_000)
        here, application = slow
        wires = [await here.wire() for _ in range(4)]
        for wire in wires:
            wire.writer.write(frame(0x1, b"x" * 1000) * 500)
        await until(lambda: here.terms.kept.bytes >= 20_000)
        await settles(lambda: here.terms.kept.bytes)
        assert here.terms.kept.bytes < 20_000 + len(wires) * FRAMES * 2000
        while len(application.messages) < 2000:
            application.passing = 10_000
            await asyncio.sleep(0.01)
        assert here.terms.kept.bytes == 0
        for wire in wires:
            await wire.close()

    async def test_they_are_not_taken_for_silent(self, slow: tuple[House, Slow]) -> None:
        here, application = slow
        wire = await here.wire()
        await wire.send(frame(0x1, b"0"))
        await until(lambda: here.last.held)
        since = here.wheel.now
        await until(lambda: here.wheel.now > since + 5 * SHORT)
        assert here.last.open
        # And when it is over, silence counts from then.
        application.passing = 1
        await until(lambda: not here.last.held)
        heard = [await wire.frame()]
        while heard[-1][0] != CLOSE:
            heard.append(await wire.frame())
        assert heard[0] == (PING, b"")  # it hears us meanwhile
        assert heard.count((0x1, b"0")) == 1
        assert heard[-1][1][:2] == struct.pack(">H", 4000)
        await wire.close()

    async def test_pings_are_answered_meanwhile(self, slow: tuple[House, Slow]) -> None:
        here, _ = slow
        wire = await here.wire()
        await wire.send(frame(0x1, b"0") + frame(0x1, b"1") + frame(PING, b"?"))
        assert await wire.frame() == (PONG, b"?")
        assert here.application.messages == []
        await wire.close()

    async def test_a_close_is_answered_meanwhile(self, slow: tuple[House, Slow]) -> None:
        here, _ = slow
        wire = await here.wire()
        await wire.send(frame(0x1, b"0") + frame(CLOSE, b"\x03\xe8"))
        assert await wire.close_code() == 1000
        await until(lambda: here.application.gone)
        assert here.terms.kept.bytes == 0
        await wire.close()


class TestStoring:
    """What is being stored is acked before a close that the server chooses."""

    @pytest.mark.parametrize("cause", [errors.SUPERSEDED, errors.RESTARTING, errors.SLOW_CONSUMER])
    def test_the_close_frame_stands_behind_the_ack(self, cause: Close) -> None:
        _, joined, transport = attached(quiet())
        joined.release()
        transport.writes.clear()
        joined.storing()
        joined.close(cause)
        joined.close(errors.FAULT)
        assert (transport.writes, joined.open) == ([], False)
        joined.session.send(b"ack")
        joined.stored()
        assert b"".join(transport.writes) == b"\x81\x03ack" + closed(cause)
        assert joined.session.closed_by is cause

    async def test_nothing_more_is_taken(self) -> None:
        application, joined, _ = attached(quiet())
        joined.release()
        joined.data_received(frame(0x1, b"x") * (FRAMES + 5))
        joined.storing()
        joined.close(errors.RESTARTING)
        for _ in range(10):
            await asyncio.sleep(0)
        joined.stored()
        assert application.messages == ["x"] * FRAMES

    @pytest.mark.parametrize("data", [frame(0x3), frame(0x1, b"\xff"), frame(0x1, b"x" * 70_000)])
    def test_nor_does_a_fault_of_the_client_overtake_it(self, data: bytes) -> None:
        _, joined, transport = attached(quiet())
        joined.release()
        transport.writes.clear()
        joined.storing()
        joined.data_received(data)
        assert transport.writes == []
        joined.session.send(b"ack")
        joined.stored()
        (written,) = transport.writes
        assert written.startswith(b"\x81\x03ack\x88")

    async def test_redis_is_waited_for_in_bounds(self, house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(websocket, "STORE_SECONDS", SHORT)
        here = await house()
        wire = await here.wire()
        here.last.storing()
        here.last.close(errors.RESTARTING)
        assert await wire.close_code() == 1012
        here.last.stored()
        await wire.close()

    async def test_a_client_that_goes_meanwhile_went_for_that(self, house: Open) -> None:
        here = await house()
        wire = await here.wire()
        here.last.storing()
        here.last.close(errors.SUPERSEDED)
        here.last.abort()
        await until(lambda: here.application.gone)
        assert here.last.session.closed_by is errors.SUPERSEDED
        here.last.stored()
        await wire.close()


class TestSilence:
    async def test_pinged_then_given_up(self, house: Open) -> None:
        here = await house(presence=IMPATIENT)
        wire = await here.wire()
        assert await wire.frame() == (PING, b"")
        assert await wire.close_code() == 4000
        assert here.last.session.closed_by is errors.SILENT
        await wire.close()

    async def test_who_answers_stays(self, house: Open) -> None:
        here = await house(presence=IMPATIENT)
        client = await here.client()
        session = here.last.session
        seen: list[float] = []
        for _ in range(3):
            await until(lambda: here.last.last_seen > max(seen, default=0.0))
            seen.append(here.last.last_seen)
        assert session.state == OPEN
        await client.leave()

    async def test_one_pong_is_enough_until_the_next_ping(self, house: Open) -> None:
        # The patience for an answer may be longer than the silence before a ping.
        here = await house(presence={"ping_after_seconds": SHORT, "ping_timeout_seconds": 4 * SHORT})
        wire = await here.wire()
        for _ in range(3):
            assert await wire.frame() == (PING, b"")
            await wire.send(frame(PONG))
        await wire.close()

    @pytest.mark.parametrize("sign", [frame(PONG), frame(PING), frame(0x1, b"x"), frame(0x1, b"xyz")[:1]])
    async def test_any_byte_is_a_sign_of_life(self, house: Open, sign: bytes) -> None:
        here = await house(presence=IMPATIENT)
        wire = await here.wire()
        assert await wire.frame() == (PING, b"")
        before = here.last.last_seen
        await wire.send(sign)
        await until(lambda: here.last.last_seen > before)
        answers: dict[int, bytes] = {}
        while PING not in answers:  # the next ping, and not the end
            opcode, payload = await wire.frame()
            assert opcode != CLOSE
            answers[opcode] = payload
        await wire.close()


class TestClientsThatDoNotRead:
    async def stall(self, here: House, wire: Wire, message: bytes = b"x" * 1000) -> None:
        """Send and never read, until the gateway reads no more either."""
        data = frame(0x1, message) * 50

        async def send() -> None:
            while not here.terms.stalled:
                wire.writer.write(data)
                await wire.writer.drain()

        sending = asyncio.create_task(send())
        await until(lambda: here.terms.stalled)
        sending.cancel()
        await asyncio.wait([sending])

    async def test_they_are_not_read_either(self, house: Open) -> None:
        here = await house()
        wire = await here.wire(SMALL)
        await self.stall(here, wire)
        read = here.terms.bytes_in.value
        for _ in range(20):
            wire.writer.write(frame(0x1, b"x" * 100_000))
            await asyncio.sleep(0)
        # What was in flight when it stalled, and the answers to one read: whatever is sent, no more is kept.
        assert here.terms.bytes_in.value - read <= 256 * 1024
        assert here.last.unsent < 1024 * 1024
        assert here.last.session.state == OPEN
        await wire.close()

    async def test_they_go_on_when_they_have_caught_up(self, house: Open) -> None:
        here = await house()
        wire = await here.wire(SMALL)
        await self.stall(here, wire)
        answered = 0
        while here.terms.stalled or here.last.unsent:
            assert await wire.frame() == (0x1, b"x" * 1000)
            answered += 1
        await wire.send(frame(0x1, b"still there"))
        while await wire.frame() != (0x1, b"still there"):
            answered += 1
        assert answered == len(here.application.messages) - 1
        await wire.close()

    async def test_they_cannot_speak_so_they_are_not_silent(self, house: Open) -> None:
        here = await house(presence=IMPATIENT)
        wire = await here.wire(SMALL)
        await self.stall(here, wire)
        since = here.last.last_seen
        await until(lambda: here.wheel.now > since + 4 * SHORT)
        assert here.last.session.state == OPEN
        await wire.close()

    async def test_after_a_while_they_are_told_and_left(self, house: Open) -> None:
        here = await house(limits={"unsent_seconds": SHORT})
        wire = await here.wire(SMALL)
        await self.stall(here, wire)
        await until(lambda: here.terms.over_unsent_for.value)
        while (received := await wire.frame())[0] == 0x1:
            pass
        assert received == (CLOSE, struct.pack(">H", 4001) + b"slow consumer")
        assert here.last.session.closed_by is errors.SLOW_CONSUMER
        await wire.close()

    async def test_who_does_not_even_read_that_is_cut(self, house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(websocket, "CLOSE_SECONDS", SHORT)
        here = await house(limits={"unsent_seconds": SHORT})
        wire = await here.wire(SMALL)
        await self.stall(here, wire)
        await until(lambda: here.application.gone)
        assert here.last.session.closed_by is errors.SLOW_CONSUMER
        assert (here.terms.over_unsent_for.value, here.terms.over_unsent.value) == (1, 0)
        await wire.close()

    async def test_stalling_again_and_again_takes_one_timer(self, house: Open) -> None:
        here = await house()
        wire = await here.wire(SMALL)
        timers = len(here.wheel)
        for _ in range(5):
            await self.stall(here, wire)
            while here.terms.stalled:
                await wire.frame()
        assert len(here.wheel) <= timers + 1
        await wire.close()

    async def test_what_is_pushed_to_them_is_bounded(self, house: Open) -> None:
        here = await house(limits={"unsent_bytes": 200_000})
        wire = await here.wire(SMALL)
        sent = 0
        while here.last.session.state == OPEN:
            here.last.send("notification:new", b'"%b"' % (b"x" * 10_000))
            sent += 10_000
            assert sent < 10_000_000
        assert here.last.unsent < 250_000
        assert (here.terms.over_unsent.value, here.terms.over_unsent_for.value) == (1, 0)
        while (await wire.frame())[0] == 0x1:
            pass
        assert here.last.session.closed_by is errors.SLOW_CONSUMER
        await wire.close()


class TestEnd:
    async def test_the_server_closes_and_the_client_answers(self, house: Open) -> None:
        here = await house()
        client = await here.client()
        here.last.close(errors.SUPERSEDED)
        assert await client.ended() == 4500
        assert client.connection.close_reason == "superseded by a newer connection"
        await until(lambda: here.application.gone)

    async def test_the_client_closes_and_the_server_answers(self, house: Open) -> None:
        here = await house()
        client = await here.client()
        await client.connection.close(1000, "bye")
        assert client.connection.close_code == 1000
        await until(lambda: here.application.gone)
        assert here.last.session.closed_by is None

    async def test_who_does_not_answer_a_close_is_cut(self, house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(websocket, "CLOSE_SECONDS", SHORT)
        here = await house()
        wire = await here.wire()
        here.last.close(errors.RESTARTING)
        assert await wire.close_code() == 1012
        assert await wire.ends() == b""
        assert here.application.gone == [here.last]
        await wire.close()

    async def test_a_client_that_vanishes(self, house: Open) -> None:
        here = await house()
        wire = await here.wire()
        await wire.close()
        await until(lambda: here.application.gone)
        assert here.last.session.closed_by is None

    async def test_a_frame_that_is_too_big_is_refused_before_it_comes(self, house: Open) -> None:
        here = await house(limits={"message_bytes": 1000})
        wire = await here.wire()
        await wire.send(frame(0x1, b"x" * 1001)[:8])
        assert await wire.close_code() == 1009
        assert await wire.ends() == b""
        await wire.close()

    async def test_the_reason_is_not_lost_while_more_comes(self, house: Open) -> None:
        # Closing a socket with unread bytes resets it, and a reset takes the close frame away from the client.
        here = await house(limits={"message_bytes": 1000})
        wire = await here.wire()
        await wire.send(frame(0x1, b"x" * 3_000_000))
        assert await wire.close_code() == 1009
        assert await wire.ends() == b""
        wire.writer.write_eof()
        await until(lambda: here.application.gone)
        await wire.close()

    async def test_who_never_stops_is_cut(self, house: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(websocket, "CLOSE_SECONDS", SHORT)
        here = await house()
        wire = await here.wire()
        await wire.send(b"\xff\xff")
        assert await wire.close_code() == 1002
        while not here.application.gone:
            try:
                await wire.send(b"\xff" * 10_000)
            except OSError:
                break
            await asyncio.sleep(0.01)
        await until(lambda: here.application.gone)
        await wire.close()

    async def test_answers_before_an_error_come_before_its_close(self, house: Open) -> None:
        here = await house()
        wire = await here.wire()
        await wire.send(frame(0x1, b"one") + frame(0x1, b"two") + b"\xff\xff")
        assert [await wire.frame() for _ in range(2)] == [(0x1, b"one"), (0x1, b"two")]
        assert await wire.close_code() == 1002
        await wire.close()


async def test_a_message_in_single_bytes(house: Open) -> None:
    here = await house()
    wire = await here.wire()
    for byte in text("heartbeat", {"uptime": 1}, 3):
        await wire.send(bytes((byte,)))
    assert await wire.message() == {"event": "heartbeat", "id": 3, "data": {"uptime": 1}}
    await wire.close()


async def test_a_hundred_clients_at_once(house: Open) -> None:
    here = await house()
    clients: Iterable[Client] = await asyncio.gather(*(here.client() for _ in range(100)))
    for number, client in enumerate(clients):
        await client.connection.send(json.dumps({"event": "echo", "data": number}))
    assert [(await client.receive())["data"] for client in clients] == list(range(100))
    for client in clients:
        await client.leave()
    await until(lambda: len(here.application.gone) == 100)
