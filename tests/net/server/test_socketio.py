"""Socket.IO on raw sockets: the greeting, what is refused in which way, and what differs after it."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import redis

from tests.net.peers import (
    PATIENCE,
    Json,
    Node,
    Wire,
    device_token,
    dial_device,
    frame,
    until,
    upgrade,
    user_token,
)
from vizora_rt import errors
from vizora_rt.net.server.socketio import PACKETS
from vizora_rt.net.server.websocket import Connection

PATH = "/socket.io/?EIO=4&transport=websocket"
PAGE = "https://app.example"
SHIPPED = Path(__file__).parent.parent.parent / "wire" / "shipped.json"


def packet(text: str) -> bytes:
    return frame(0x1, text.encode())


class Player:
    """A Socket.IO client, packet by packet. The fixture `start` closes them all."""

    dialled: ClassVar[list["Player"]] = []

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.opening: Json = {}
        self.dialled.append(self)

    @classmethod
    async def open(cls, node: Node, early: bytes = b"", **fields: str) -> "Player":
        """Up to the open packet."""
        player = cls(await Wire.open(node.port))
        await player.wire.send(upgrade("", PATH, Authorization="", **fields) + early)
        status, _, body = await player.wire.response()
        assert status == 101, body
        text = await player.next()
        assert text[0] == "0"
        player.opening = json.loads(text[1:])
        return player

    @classmethod
    async def dial(cls, node: Node, token: str, **auth: Any) -> "Player":
        """Connected, `config` read."""
        player = await cls.open(node)
        await player.connect(token=token, **auth)
        assert (await player.next()).startswith('40{"sid":"')
        assert (await player.event())[0] == "config"
        return player

    async def connect(self, **auth: Any) -> None:
        await self.send("40" + json.dumps(auth))

    async def send(self, *packets: str) -> None:
        await self.wire.send(b"".join(map(packet, packets)))

    async def next(self) -> str:
        """The next packet."""
        opcode, payload = await self.wire.frame()
        assert opcode == 0x1, (opcode, payload)
        return payload.decode()

    async def event(self) -> tuple[str, Any]:
        """The next packet, which must be an event that wants no ack."""
        text = await self.next()
        assert text[:3] == "42[", text
        name, body = json.loads(text[2:])
        return name, body

    async def refused(self) -> Json:
        """The body of the CONNECT_ERROR that comes next, after which the connection ends."""
        text = await self.next()
        assert text[:2] == "44", text
        assert await self.next() == "41"
        assert await self.wire.close_code() == 1000
        await self.wire.send(frame(0x8, b"\x03\xe8"))
        assert await self.wire.ends() == b""
        body: Json = json.loads(text[2:])
        return body


async def knock(node: Node, path: str = PATH) -> tuple[int, dict[str, str], Json]:
    """Status, header fields and body of a request that is refused."""
    wire = await Wire.open(node.port)
    try:
        await wire.send(upgrade("", path, Authorization=""))
        status, fields, body = await wire.response()
    finally:
        await wire.close()
    return status, fields, json.loads(body)


@pytest.fixture
async def start(redis_url: str) -> AsyncIterator[Callable[..., Any]]:
    """Starts workers, and sees that no greeting outlives its client."""
    nodes: list[Node] = []

    async def begin(*, store: bool = True, **sections: Json) -> Node:
        node = await Node(redis_url, len(nodes), **sections).start(store=store)
        nodes.append(node)
        return node

    yield begin
    while Player.dialled:
        await Player.dialled.pop().wire.close()
    for node in nodes:
        await node.stop()
        await until(lambda node=node: node.http.exchanges == 0)  # type: ignore[misc]


Start = Callable[..., Any]


class TestGreeting:
    async def test_open_packet(self, start: Start) -> None:
        node = await start()
        player = await Player.open(node)
        session = player.opening.pop("sid")
        assert len(session) == 20
        assert player.opening == {"upgrades": [], "pingInterval": 25000, "pingTimeout": 20000, "maxPayload": 65536}
        other = await Player.open(node)
        assert other.opening["sid"] != session
        assert node.gateway.connections == 0

    async def test_connect(self, start: Start) -> None:
        node = await start()
        player = await Player.dial(node, device_token("lobby"))
        await player.send('427["heartbeat",{"uptime":5,"currentContent":"c1"}]')
        text = await player.next()
        assert text[:3] == "437"
        [ack] = json.loads(text[3:])
        assert ack["success"] is True
        assert ack["data"]["nextHeartbeatIn"] == node.config.player.heartbeat_interval
        assert node.gateway.connections == 1
        assert node.http.exchanges == 0
        assert node.gateway.state.devices["lobby"].heartbeat is not None

    async def test_connect_may_come_with_the_request(self, start: Start) -> None:
        node = await start()
        token = device_token("lobby")
        player = await Player.open(node, packet(f'40{{"token":"{token}"}}'))
        assert (await player.next()).startswith("40")

    @pytest.mark.parametrize(
        ("auth", "acks"),
        [
            ({}, False),
            ({"capabilities": {"deliveryAck": True}}, True),
            ({"capabilities": ["deliveryAck"]}, True),
            ({"capabilities": []}, False),
        ],
    )
    async def test_capabilities(self, start: Start, auth: Json, acks: bool) -> None:
        node = await start()
        await Player.dial(node, device_token("lobby"), **auth)
        peer = node.gateway.state.devices["lobby"].peer
        assert peer is not None and peer.acks_deliveries is acks

    async def test_a_dashboard_comes_with_its_cookie(self, start: Start) -> None:
        node = await start(auth={"cors_origins": [PAGE]})
        player = await Player.open(node, Cookie=f"vizora_auth_token={user_token()}", Origin=PAGE)
        await player.send("40")
        assert (await player.next()).startswith("40")
        await player.send('420["heartbeat",{}]')
        assert json.loads((await player.next())[3:])[0]["code"] == "NOT_ALLOWED"


class TestRefused:
    """What will not pass: a CONNECT_ERROR, after which shipped clients stay away."""

    @pytest.mark.parametrize(
        ("packets", "code", "message"),
        [
            ("40", "AUTH_INVALID", "auth_invalid"),
            ("40{}", "AUTH_INVALID", "auth_invalid"),
            ('40{"token":7}', "AUTH_INVALID", "auth_invalid"),
            ('40{"token":"nonsense"}', "AUTH_INVALID", "auth_invalid"),
            ('40{"token', "AUTH_INVALID", "auth_invalid"),
            (f'40{{"token":"{device_token("a", secret="x" * 40)}"}}', "AUTH_INVALID", "auth_invalid"),
            (f'40{{"token":"{device_token("a", exp=int(time.time()) - 60)}"}}', "AUTH_EXPIRED", "auth_expired"),
        ],
    )
    async def test_token(self, start: Start, packets: str, code: str, message: str) -> None:
        node = await start()
        player = await Player.open(node)
        await player.send(packets)
        assert await player.refused() == {"message": message, "data": {"code": code}}
        assert node.counter("ws_handshakes_rejected_total", code) == 1

    async def test_revoked(self, start: Start, redis_url: str) -> None:
        node = await start()
        with redis.Redis(unix_socket_path=redis_url.removeprefix("unix://")) as store:
            store.set("vz:{d:lobby}:revoked", "1")
        player = await Player.open(node)
        await player.connect(token=device_token("lobby"))
        assert await player.refused() == {"message": "device_token_stale", "data": {"code": "DEVICE_REVOKED"}}

    async def test_origin(self, start: Start) -> None:
        node = await start(auth={"cors_origins": [PAGE]})
        player = await Player.open(node, Origin="https://elsewhere.example")
        await player.connect(token=device_token("lobby"))
        assert await player.refused() == {"message": "origin_denied", "data": {"code": "ORIGIN_DENIED"}}
        # A cookie comes by itself, whoever wrote the page.
        player = await Player.open(node, Cookie=f"vizora_auth_token={user_token()}")
        await player.send("40")
        assert (await player.refused())["data"]["code"] == "ORIGIN_DENIED"

    async def test_a_device_has_no_cookie(self, start: Start) -> None:
        node = await start(auth={"cors_origins": [PAGE]})
        player = await Player.open(node, Cookie=f"vizora_auth_token={device_token('lobby')}", Origin=PAGE)
        await player.send("40")
        assert (await player.refused())["data"]["code"] == "AUTH_INVALID"

    @pytest.mark.parametrize(
        ("query", "code"),
        [
            ("EIO=4&transport=polling", 0),
            ("EIO=4", 0),
            ("EIO=3&transport=websocket", 5),
            ("EIO=4&transport=websocket&sid=x", 1),
        ],
    )
    async def test_requests(self, start: Start, query: str, code: int) -> None:
        node = await start()
        wire = await Wire.open(node.port)
        await wire.send(upgrade("", f"/socket.io/?{query}", Authorization=""))
        status, _, body = await wire.response()
        assert (status, json.loads(body)["code"]) == (400, code)
        # The connection goes on: the client may try the next transport on it.
        await wire.send(upgrade("", f"/api{PATH}", Authorization=""))
        assert (await wire.response())[0] == 101
        await wire.close()
        assert node.counter("http_requests_total", "GET", "/socket.io/", "400") == 1

    async def test_no_upgrade(self, start: Start) -> None:
        node = await start()
        wire = await Wire.open(node.port)
        await wire.send(f"GET {PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        status, _, body = await wire.response()
        assert (status, body) == (400, b'{"code":3,"message":"Bad request"}')
        await wire.close()


class TestPassing:
    """What will pass: refused before the upgrade when it is known then, else the transport ends without a packet."""

    async def test_draining(self, start: Start) -> None:
        node = await start()
        draining = asyncio.create_task(node.gateway.drain(PATIENCE))
        await until(lambda: node.gateway.draining)
        status, fields, body = await knock(node)
        assert (status, body["code"]) == (503, "DRAINING")
        assert int(fields["retry-after"]) > 0
        await draining

    async def test_draining_has_begun_meanwhile(self, start: Start) -> None:
        node = await start()
        player = await Player.open(node)
        await node.gateway.drain(0)
        await player.connect(token=device_token("lobby"))
        assert await player.wire.close_code() == 1012

    async def test_full(self, start: Start) -> None:
        node = await start(limits={"max_connections": 1})
        other = await Player.open(node)
        screen = await dial_device(node.port, "lobby")
        status, _, body = await knock(node)
        assert (status, body["code"]) == (503, "OVERLOADED")
        await other.connect(token=device_token("hall"))
        assert await other.wire.close_code() == 1013
        await screen.leave()

    async def test_more_at_once_than_the_node_takes(self, start: Start) -> None:
        node = await start(limits={"handshakes_per_second": 1, "handshake_wait_seconds": 0})
        await Player.open(node)
        status, fields, body = await knock(node)
        assert (status, body["code"]) == (503, "OVERLOADED")
        assert int(fields["retry-after"]) > 0

    async def test_over_the_budget_they_wait(self, start: Start) -> None:
        node = await start(limits={"handshakes_per_second": 10})
        players = await asyncio.gather(*(Player.open(node) for _ in range(8)))
        await players[-1].connect(token=device_token("lobby"))
        assert node.counter("limits_exceeded_total", "handshakes_per_second") == 0

    async def test_address(self, start: Start) -> None:
        node = await start(limits={"connections_per_address_per_minute": 1})
        await Player.open(node)
        status, _, body = await knock(node)
        assert (status, body["code"]) == (429, "RATE_LIMITED")

    async def test_token_rate(self, start: Start) -> None:
        node = await start(limits={"connections_per_minute": 1})
        token = device_token("lobby")
        await Player.dial(node, token)
        player = await Player.open(node)
        await player.connect(token=token)
        assert await player.wire.close_code() == 4002
        assert node.counter("ws_handshakes_rejected_total", "RATE_LIMITED") == 1

    async def test_store_away(self, start: Start) -> None:
        node = await start(store=False, auth={"cors_origins": [PAGE]})
        player = await Player.open(node, Cookie=f"vizora_auth_token={user_token()}", Origin=PAGE)
        await player.send("40")
        assert await player.wire.close_code() == 1013
        # A device is let in, and checked later.
        screen = await Player.dial(node, device_token("lobby"))
        await screen.send('421["heartbeat"]')
        assert json.loads((await screen.next())[3:])[0]["data"]["degraded"] is True

    async def test_who_does_not_connect_in_time(self, start: Start) -> None:
        node = await start(limits={"handshake_seconds": 0.1})
        player = await Player.open(node)
        assert await player.wire.close_code() == 4000
        assert node.counter("limits_exceeded_total", "handshake_seconds") == 1
        await player.wire.send(frame(0x8, b"\x0f\xa0"))
        assert await player.wire.ends() == b""

    async def test_who_talks_before_the_answer(self, start: Start) -> None:
        node = await start()
        for packets in (['42["heartbeat"]'], ["40/admin,", '42["heartbeat"]']):
            player = await Player.open(node)
            await player.send(*packets)
            while True:
                opcode, payload = await player.wire.frame()
                if opcode == 0x8:
                    break
                assert payload[:1] in b"34"
            assert payload[:2] == b"\x03\xea"
            await player.wire.close()
        await until(lambda: node.gateway.connections == 0)

    async def test_what_is_said_before_the_answer_waits_for_it(self, start: Start) -> None:
        """In its order; only pings are answered at once."""
        node = await start()
        player = await Player.open(node)
        connect = f'40{{"token":"{device_token("lobby")}"}}'
        await player.send(connect, '421["heartbeat"]', "2", connect, '422["heartbeat"]')
        await player.wire.send(frame(0x2, b"picture"))
        heard = [await player.next() for _ in range(6)]
        assert heard[0] == "3"
        assert [text[:3] for text in heard[1:]] == ["40{", "42[", "431", "42[", "432"]
        assert json.loads(heard[4][2:])[1]["code"] == "BAD_MESSAGE"
        await player.send('423["heartbeat"]')
        assert (await player.next())[:3] == "433"

    @pytest.mark.parametrize("store", [True, False])
    async def test_what_comes_in_one_segment_with_the_token(self, start: Start, store: bool) -> None:
        """Also while Redis is away: then it is known at once who it is."""
        node = await start(store=store)
        player = await Player.open(node)
        await player.send(f'40{{"token":"{device_token("lobby")}"}}', '421["heartbeat"]', "2", '422["heartbeat"]')
        heard = [await player.next() for _ in range(5)]
        assert sorted(text[:3] for text in heard) == ["3", "40{", "42[", "431", "432"]

    @pytest.mark.parametrize("store", [True, False])
    async def test_more_than_a_share_of_it(self, start: Start, store: bool) -> None:
        node = await start(store=store, limits={"messages_per_minute": 0})
        many = [f'42{number}["heartbeat"]' for number in range(100)]
        player = await Player.open(
            node, packet(f'40{{"token":"{device_token("lobby")}"}}') + b"".join(map(packet, many))
        )
        assert [(await player.next())[:3] for _ in range(2)] == ["40{", "42["]
        acks = [await player.next() for _ in many]
        assert [text.partition("[")[0] for text in acks] == [f"43{number}" for number in range(100)]

    async def test_nor_is_it_taken_from_who_is_refused(self, start: Start) -> None:
        node = await start()
        player = await Player.open(node)
        await player.send('40{"token":"x"}', '421["heartbeat"]', '422["heartbeat"]')
        assert (await player.refused())["data"] == {"code": "AUTH_INVALID"}

    async def test_who_says_much_is_not_read_until_it_is_answered(self, start: Start) -> None:
        node = await start(limits={"header_bytes": 1024, "messages_per_minute": 0})
        many = [f'42{number}["heartbeat"]' for number in range(2000)]
        player = await Player.open(node)
        await player.send(f'40{{"token":"{device_token("lobby")}"}}', *many[:1000])
        await player.send(*many[1000:])
        assert [(await player.next())[:3] for _ in range(2)] == ["40{", "42["]
        acks = [await player.next() for _ in many]
        assert [text.partition("[")[0] for text in acks] == [f"43{number}" for number in range(2000)]
        player = await Player.open(node)
        await player.send('40{"token":"x"}', *many)
        assert (await player.refused())["data"] == {"code": "AUTH_INVALID"}

    async def test_pings_and_other_namespaces_before_the_answer(self, start: Start) -> None:
        node = await start()
        player = await Player.open(node)
        await player.send("2", "3", "40/admin,{}")
        assert await player.next() == "3"
        assert await player.next() == '44/admin,{"message":"Invalid namespace"}'
        await player.connect(token=device_token("lobby"))
        assert (await player.next()).startswith('40{"sid"')

    @pytest.mark.parametrize(
        "flood",
        [
            packet("2") * (PACKETS + 1),
            packet("2probe") * 20_000,
            packet("3") * 20_000,
            packet("40/admin,") * 20_000,
            frame(0x9) * 20_000,
            frame(0x9, b"x" * 125) * 20_000,
            frame(0xA) * 20_000,
            frame(0x1, b"", fin=False) + frame(0x0, b"", fin=False) * 20_000,
            frame(0x1, b"4", fin=False) + frame(0x0, b"0", fin=False) * 20_000,
        ],
        ids=["few", "probes", "pongs", "namespaces", "pings", "long pings", "control pongs", "empty", "pieces"],
    )
    async def test_who_sends_too_many_packets(self, start: Start, flood: bytes) -> None:
        node = await start()
        player = await Player.open(node)
        player.wire.writer.write(flood)
        while (found := await player.wire.frame())[0] != 0x8:
            pass
        assert found[1][:2] == (4002).to_bytes(2, "big")
        assert node.counter("limits_exceeded_total", "packets_per_minute") == 1
        # What is left of it is not read; a second later the connection is cut.
        await until(lambda: node.http.exchanges == 0)

    @pytest.mark.parametrize(
        ("first", "flood", "reason"),
        [
            (packet("x"), packet("x"), "protocol_error"),
            (packet('42["heartbeat",{}]'), packet("x" * 15_000), "protocol_error"),
            (frame(0x2, b"x"), frame(0x2, b"x" * 15_000), "protocol_error"),
            (packet('40{"token":"wrong"}'), packet('42["heartbeat",{}]'), "normal"),
            (packet("x"), frame(0x9), "protocol_error"),
        ],
        ids=["short", "long", "binary", "refused", "pings"],
    )
    async def test_who_goes_on_behind_the_close_frame_is_not_read(
        self, start: Start, first: bytes, flood: bytes, reason: str
    ) -> None:
        node = await start()
        player = await Player.open(node)
        player.wire.writer.write(first + flood * (4_000_000 // len(flood)))
        while (await player.wire.frame())[0] != 0x8:
            pass
        await until(lambda: node.counter("limits_exceeded_total", "packets_per_minute") == 1)
        player.wire.writer.transport.abort()
        await until(lambda: node.http.exchanges == 0)
        assert node.counter("ws_disconnects_total", reason) == 1

    async def test_who_is_closed_is_counted(self, start: Start) -> None:
        node = await start()
        for first in (b"\xc1\x80mask", packet("41")):
            player = await Player.open(node)
            await player.wire.send(first)
            while (await player.wire.frame())[0] != 0x8:
                pass
        await until(lambda: node.counter("ws_disconnects_total", "protocol_error") == 1)
        assert node.counter("ws_disconnects_total", "normal") == 0  # the client's own goodbye

    async def test_who_does_not_read_is_not_read(self, start: Start) -> None:
        node = await start()
        wire = await Wire.open(node.port, 4096)
        await wire.send(upgrade("", PATH, Authorization=""))
        flood = frame(0x9, b"x" * 125) * 10_000
        try:
            for _ in range(10):
                wire.writer.write(flood)
                async with asyncio.timeout(0.2):
                    await wire.writer.drain()
        except (TimeoutError, OSError):
            pass
        await until(lambda: node.counter("limits_exceeded_total", "packets_per_minute") == 1)
        await until(lambda: node.http.exchanges == 0)
        await wire.close()

    async def test_a_token_in_pieces(self, start: Start) -> None:
        node = await start()
        player = await Player.open(node)
        text = f'40{{"token":"{device_token("lobby")}"}}'.encode()
        pieces = [text[at : at + 8] for at in range(0, len(text), 8)]
        first, *middle = pieces
        await player.wire.send(frame(0x1, first, fin=False))
        for piece in middle:
            await player.wire.send(frame(0x0, piece, fin=False))
        await player.wire.send(frame(0x0))
        assert (await player.next()).startswith('40{"sid"')

    async def test_who_leaves_again(self, start: Start) -> None:
        node = await start()
        player = await Player.open(node)
        await player.send("1")
        assert await player.wire.close_code() == 1000
        await player.wire.close()
        player = await Player.open(node)
        await player.wire.send(frame(0x8, b"\x03\xe8"))
        assert await player.wire.close_code() == 1000
        player = await Player.open(node)
        await player.connect(token=device_token("lobby"))
        await player.wire.close()
        await until(lambda: node.gateway.connections == 0 and node.http.exchanges == 0)

    async def test_a_token_is_not_endless(self, start: Start) -> None:
        node = await start(limits={"header_bytes": 1024})
        player = await Player.open(node)
        await player.connect(token="x" * 2000)
        assert await player.wire.close_code() == 1009
        await player.wire.send(frame(0x8, b"\x03\xf1"))
        await until(lambda: node.counter("limits_exceeded_total", "header_bytes") == 1)


class TestConnected:
    async def test_pings_are_regular(self, start: Start) -> None:
        """A Socket.IO client counts nothing but pings as life of the server."""
        node = await start(presence={"ping_after_seconds": 0.1, "ping_timeout_seconds": 0.1})
        player = await Player.dial(node, device_token("lobby"))
        pings = 0
        while pings < 3:
            await player.send("3")
            try:
                async with asyncio.timeout(0.02):
                    text = await player.next()
            except TimeoutError:
                continue
            assert text == "2"
            pings += 1

    async def test_pings_go_on_while_messages_wait(self, start: Start) -> None:
        """The answers stand behind what waits, perhaps in the client's own buffers: it is not silent."""
        node = await start(
            presence={"ping_after_seconds": 0.1, "ping_timeout_seconds": 0.1}, limits={"messages_per_minute": 1}
        )
        player = await Player.dial(node, device_token("lobby"))
        await player.send(*(f'42{number}["heartbeat"]' for number in range(5)))
        heard = [await player.next() for _ in range(8)]
        assert [text[:3] for text in heard if text != "2"] == ["430", "431"]

    async def test_silence(self, start: Start) -> None:
        node = await start(presence={"ping_after_seconds": 0.1, "ping_timeout_seconds": 0.1})
        player = await Player.dial(node, device_token("lobby"))
        assert await player.next() == "2"
        name, body = await player.event()
        assert (name, body["code"], body["retryable"], body["closeCode"]) == ("error", "SILENT", True, 4000)
        assert await player.wire.close_code() == 4000

    async def test_a_day_of_plays_at_once(self, start: Start) -> None:
        """What a player kept while it was offline comes in one piece, far over its rate. Each play is acked, once."""
        node = await start(limits={"messages_per_minute": 12_000})
        await until(lambda: node.gateway.plays.partitions)
        player = await Player.dial(node, device_token("lobby"))
        node.gateway.state.devices["lobby"].tat = time.perf_counter() + 2 * 60  # its bucket is empty
        plays = [
            f'42{n}["content:impression",{{"contentId":"c","play":{{"boot":"b","seq":{n + 1}}}}}]' for n in range(1040)
        ]
        await player.send(*plays, '421040["heartbeat"]')
        acks = [await player.next() for _ in range(1041)]
        assert sorted(int(ack.partition("[")[0][2:]) for ack in acks) == list(range(1041))
        assert all(json.loads(ack[ack.index("[") :])[0]["success"] for ack in acks)
        assert node.counter("limits_exceeded_total", "messages_per_minute") > 1
        assert node.counter("ws_messages_total", "content:impression", "refused") == 0

    async def test_a_day_of_plays_is_acked_without_a_wait(self, start: Start) -> None:
        """With the rate as it is shipped: a player waits 10 s for an ack, then it sends the play again."""
        node = await start()
        await until(lambda: node.gateway.plays.partitions)
        player = await Player.dial(node, device_token("lobby"))
        await player.send(*(f'42{n}["content:impression",{{"contentId":"c","timestamp":{n}}}]' for n in range(1040)))
        acks = [await player.next() for _ in range(1040)]
        assert all(json.loads(ack[ack.index("[") :])[0]["success"] for ack in acks)
        assert node.counter("limits_exceeded_total", "messages_per_minute") == 0

    @pytest.mark.parametrize("cause", ["restarting", "superseded", "flood"])
    async def test_what_is_stored_is_acked_before_the_end(self, start: Start, cause: str) -> None:
        node = await start()
        await until(lambda: node.gateway.plays.partitions)
        player = await Player.dial(node, device_token("lobby"))
        peer = node.gateway.state.devices["lobby"].peer
        assert isinstance(peer, Connection)
        plays = [
            f'42{n}["content:impression",{{"contentId":"c","play":{{"boot":"b","seq":{n + 1}}}}}]' for n in range(20)
        ]
        flood = [packet("3") * 5000] if cause == "flood" else []
        await player.wire.send(b"".join([*map(packet, plays), *flood]))
        if cause != "flood":
            while not peer._storing:
                await asyncio.sleep(0)
            peer.close({"restarting": errors.RESTARTING, "superseded": errors.SUPERSEDED}[cause])
        acked = 0
        while (found := await player.wire.frame())[0] != 0x8:
            acked += found[1].startswith(b"43")
        assert acked == node.counter("ws_messages_total", "content:impression", "ok") == 20

    async def test_a_newer_connection_supersedes(self, start: Start) -> None:
        node = await start()
        older = await Player.dial(node, device_token("lobby"))
        newer = await dial_device(node.port, "lobby")
        name, body = await older.event()
        assert (name, body["code"], body["retryable"]) == ("error", "SUPERSEDED", False)
        assert await older.next() == "41"
        assert await older.wire.close_code() == 4500
        assert (await newer.heartbeat())["success"]
        await newer.leave()

    async def test_drain(self, start: Start) -> None:
        node = await start()
        player = await Player.dial(node, device_token("lobby"))
        draining = asyncio.create_task(node.gateway.drain(PATIENCE))
        name, body = await player.event()
        assert (name, body["reconnect"]) == ("server:shutdown", True)
        name, body = await player.event()
        assert (name, body["code"], body["retryable"]) == ("error", "RESTARTING", True)
        assert await player.wire.close_code() == 1012
        await player.wire.send(frame(0x8, b"\x03\xf4"))
        await draining

    async def test_too_big(self, start: Start) -> None:
        node = await start()
        player = await Player.dial(node, device_token("lobby"))
        await player.send('421["heartbeat",{}]', "42" + "x" * 70_000)
        assert (await player.next())[:3] == "431"
        name, body = await player.event()
        assert (name, body["code"]) == ("error", "TOO_BIG")
        assert await player.wire.close_code() == 1009

    async def test_refused_messages(self, start: Start) -> None:
        node = await start()
        player = await Player.dial(node, device_token("lobby"))
        await player.send('451-["heartbeat",{"_placeholder":true,"num":0}]')
        await player.wire.send(frame(0x2, b"picture"))
        name, body = await player.event()
        assert (name, body["code"]) == ("error", "BINARY_EVENT")
        await player.send('451-7["heartbeat",{"_placeholder":true,"num":0}]')
        await player.wire.send(frame(0x2, b"picture"))
        text = await player.next()
        assert text[:3] == "437"
        assert json.loads(text[3:])[0]["code"] == "BINARY_EVENT"
        for sent, code in (('42/admin,["x"]', "UNKNOWN_NAMESPACE"), ("nonsense", "BAD_MESSAGE"), ("40", "BAD_MESSAGE")):
            await player.send(sent)
            name, body = await player.event()
            assert (name, body["code"]) == ("error", code)
        await player.send('428["nothing"]')
        assert json.loads((await player.next())[3:])[0]["code"] == "UNKNOWN_EVENT"
        await player.send("2")
        assert await player.next() == "3"

    @pytest.mark.parametrize("goodbye", ["1", "41"])
    async def test_a_goodbye_is_nobodys_fault(self, start: Start, goodbye: str) -> None:
        node = await start()
        player = await Player.dial(node, device_token("lobby"))
        await player.send('421["heartbeat"]', goodbye, '422["heartbeat"]')
        assert (await player.next())[:3] == "431"
        assert (await player.wire.frame())[0] == 0x8  # and no word of anything that went wrong
        await player.wire.send(frame(0x8, b"\x03\xe8"))
        await until(lambda: node.gateway.connections == 0)
        assert node.counter("ws_disconnects_total", "normal") == 0


def stamped(text: str) -> str:
    """A packet with its time replaced."""
    return re.sub(r'"timestamp":"[^"]*"', '"timestamp":"NOW"', text)


async def test_shipped_players_are_answered_to_the_byte(start: Start) -> None:
    """Both dialects, each case in its turn: the file's answers, and nothing for who wants none."""
    node = await start()
    await until(lambda: node.gateway.plays.partitions)
    player = await Player.dial(node, device_token("shipped-1"))
    screen = await dial_device(node.port, "shipped-2")
    for case in json.loads(SHIPPED.read_text("utf-8"))["events"]:
        await player.send(case["in"]["socketio"])
        await screen.connection.send(case["in"]["native"])
        if case["out"]:
            assert stamped(await player.next()) == case["out"]["socketio"]
            assert stamped(str(await screen.connection.recv())) == case["out"]["native"]
    await screen.leave()
