"""What messages do: acks, refusals, limits and what is counted, for good messages and bad ones."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.net.peers import Client, Node, Wire, device_token, dial, dial_device, frame, until, upgrade, user_token
from vizora_rt.app.handlers import Event
from vizora_rt.net.valkey import server as valkey_server

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

Open = Callable[..., Any]


@pytest.fixture
async def screen(node: Node) -> Client:
    return await dial_device(node.port, "screen-1")


def messages(node: Node, kind: str, result: str = "ok") -> int:
    return node.counter("ws_messages_total", kind, result)


def ignored(node: Node, why: str) -> int:
    return node.counter("ws_fields_ignored_total", "heartbeat", why)


def timed(node: Node, kind: str) -> int:
    """How many messages the histogram has."""
    return sum(node.metrics.timer("ws_message_duration_seconds", kind).slots[:-1])


class TestHeartbeat:
    async def test_ack(self, node: Node, screen: Client) -> None:
        await screen.send("heartbeat", {"metrics": {"cpuUsage": 1}}, 41)
        message = await screen.receive()
        timestamp = message["data"].pop("timestamp")
        assert message == {
            "event": "ack",
            "id": 41,
            "data": {
                "success": True,
                "data": {"reconcileContent": False, "nextHeartbeatIn": 15000, "commands": []},
            },
        }
        assert ISO.fullmatch(timestamp)
        assert abs(time.mktime(time.strptime(timestamp[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - time.time()) < 60
        assert (messages(node, "heartbeat"), timed(node, "heartbeat")) == (1, 1)

    async def test_the_interval_is_the_configured_one(self, opened: Open) -> None:
        node = await opened(player={"heartbeat_interval": 30_000})
        client = await dial(node.port, device_token("screen-1"))
        assert (await client.next("config"))["heartbeatInterval"] == 30_000
        assert (await client.heartbeat())["data"]["nextHeartbeatIn"] == 30_000

    @pytest.mark.parametrize("ack_id", [0, 1, 2**53])
    async def test_ids(self, screen: Client, ack_id: int) -> None:
        assert (await screen.ask("heartbeat", {}, ack_id))["success"]

    async def test_without_an_id_there_is_no_ack(self, node: Node, screen: Client) -> None:
        await screen.send("heartbeat", {"uptime": 1})
        assert (await screen.heartbeat())["success"]
        assert messages(node, "heartbeat") == 2

    @pytest.mark.parametrize("data", [None, {}, {"metrics": None, "uptime": None}])
    async def test_every_field_is_optional(self, node: Node, screen: Client, data: Any) -> None:
        assert (await screen.ask("heartbeat", data))["success"]
        assert (ignored(node, "unknown"), ignored(node, "wrong_type")) == (0, 0)

    async def test_unknown_fields_are_ignored_and_counted(self, node: Node, screen: Client) -> None:
        body = await screen.heartbeat(uptime=5, battery=99, metrics={"cpuUsage": 1, "gpuUsage": 2}, extra={"a": 1})
        assert body["success"]
        assert (ignored(node, "unknown"), ignored(node, "wrong_type")) == (3, 0)
        heartbeat = node.gateway.state.devices["screen-1"].heartbeat
        assert heartbeat is not None
        assert heartbeat.uptime == 5
        assert heartbeat.metrics is not None
        assert heartbeat.metrics.cpu_usage == 1

    async def test_wrong_types_are_dropped_and_counted(self, node: Node, screen: Client) -> None:
        body = await screen.heartbeat(
            uptime="long", appVersion=7, metrics={"cpuUsage": 101, "memoryUsage": 50}, screenState="x" * 33
        )
        assert body["success"]
        assert (ignored(node, "unknown"), ignored(node, "wrong_type")) == (0, 4)
        heartbeat = node.gateway.state.devices["screen-1"].heartbeat
        assert heartbeat is not None
        assert (heartbeat.uptime, heartbeat.app_version, heartbeat.screen_state) == (None, None, None)
        assert heartbeat.metrics is not None
        assert (heartbeat.metrics.cpu_usage, heartbeat.metrics.memory_usage) == (None, 50)

    @pytest.mark.parametrize("data", [[], "x", 7, True])
    async def test_data_that_is_no_object_is_refused(self, node: Node, screen: Client, data: Any) -> None:
        body = await screen.ask("heartbeat", data)
        assert ISO.fullmatch(body.pop("timestamp"))
        assert body == {
            "success": False,
            "error": "invalid payload",
            "code": "INVALID_PAYLOAD",
            "retryable": False,
            "details": {"data": "expected an object"},
        }
        assert messages(node, "heartbeat", "refused") == 1
        assert node.counter("heartbeat_errors_total", "invalid_payload") == 1
        rows = [row for chunk in node.gateway.device_rows(10) for row in chunk]
        assert [row[5:] for row in rows] == [[0, 1]]
        assert (await screen.heartbeat())["success"]

    async def test_refused_without_an_id(self, screen: Client) -> None:
        await screen.send("heartbeat", "x")
        assert await screen.next("error") == {
            "code": "INVALID_PAYLOAD",
            "message": "invalid payload",
            "retryable": False,
            "event": "heartbeat",
            "details": {"data": "expected an object"},
        }


BAD = {
    "nothing": "",
    "no JSON": "hello",
    "half": '{"event":"heartbeat"',
    "a number": "7",
    "null": "null",
    "an array": "[]",
    "no event": '{"id":1}',
    "an event that is a number": '{"event":7,"id":1}',
    "an id that is text": '{"event":"heartbeat","id":"1"}',
    "an id that is a fraction": '{"event":"heartbeat","id":1.5}',
    "an id that is true": '{"event":"heartbeat","id":true}',
    "a negative id": '{"event":"heartbeat","id":-1}',
    "an id that is no exact number": '{"event":"heartbeat","id":9007199254740993}',
    "not a number": '{"event":"heartbeat","data":{"uptime":NaN}}',
    "deep": "[" * 20_000,
}


class TestBadMessages:
    @pytest.mark.parametrize("text", BAD.values(), ids=BAD)
    async def test_no_message(self, node: Node, screen: Client, text: str) -> None:
        await screen.connection.send(text)
        assert await screen.next("error") == {
            "code": "BAD_MESSAGE",
            "message": "not a JSON message",
            "retryable": False,
            "event": None,
        }
        assert (messages(node, "error", "refused"), timed(node, "error")) == (1, 1)
        assert (await screen.heartbeat())["success"]

    async def test_an_unknown_event(self, node: Node, screen: Client) -> None:
        body = await screen.ask("dance", {"a": 1})
        assert (body["success"], body["code"], body["retryable"]) == (False, "UNKNOWN_EVENT", False)
        await screen.send("dance\n" * 100)
        error = await screen.next("error")
        assert (error["code"], error["event"]) == ("UNKNOWN_EVENT", ("dance\n" * 100)[:64])
        assert messages(node, "unknown", "refused") == 2
        assert (await screen.heartbeat())["success"]

    async def test_an_ack_is_not_answered(self, node: Node, screen: Client) -> None:
        # The server asked for none. Two peers that answer acks would never stop.
        for _ in range(10):
            await screen.send("ack", {"ok": True}, 5)
        assert (await screen.heartbeat())["success"]
        assert messages(node, "ack") == 10

    async def test_a_binary_frame(self, node: Node, screen: Client) -> None:
        await screen.connection.send(b'{"event":"heartbeat"}')
        assert await screen.ended() == 1003
        await until(lambda: node.counter("ws_disconnects_total", "binary_frame") == 1)

    async def test_a_frame_that_is_too_big(self, opened: Open) -> None:
        node = await opened(limits={"message_bytes": 1000})
        client = await dial_device(node.port, "screen-1")
        await client.heartbeat(appVersion="x" * 900)
        await client.connection.send("x" * 1001)
        assert await client.ended() == 1009
        await until(lambda: node.counter("ws_disconnects_total", "too_big") == 1)
        assert node.counter("limits_exceeded_total", "message_bytes") == 1

    async def test_a_message_of_many_fragments_is_one_message(self, opened: Open) -> None:
        node = await opened(limits={"message_bytes": 1000})
        client = await dial_device(node.port, "screen-1")
        await client.connection.send(["x" * 100 for _ in range(11)])
        assert await client.ended() == 1009

    @pytest.mark.parametrize(
        ("data", "code", "name"),
        [
            (b"\x81\x05hello", 1002, "protocol_error"),  # not masked
            (frame(0x3), 1002, "protocol_error"),
            (b"\xc1" + frame(0x1)[1:], 1002, "protocol_error"),
            (frame(0x1, b"\xff"), 1007, "invalid_utf8"),
            (frame(0x0, b"x"), 1002, "protocol_error"),
        ],
    )
    async def test_a_protocol_error(self, node: Node, data: bytes, code: int, name: str) -> None:
        wire = await Wire.open(node.port)
        await wire.send(upgrade(device_token("screen-1")))
        assert (await wire.response())[0] == 101
        assert (await wire.message())["event"] == "config"
        await wire.send(data)
        assert await wire.close_code() == code
        assert await wire.ends() == b""
        await wire.close()
        await until(lambda: node.counter("ws_disconnects_total", name) == 1)

    async def test_what_is_wrong_does_not_end_a_connection(self, node: Node, screen: Client) -> None:
        for text in 4 * ("nonsense", '{"event":"dance"}', '{"event":"heartbeat","data":7}', "", "[]"):
            await screen.connection.send(text)
            await screen.next("error")
        assert (await screen.heartbeat())["success"]

    async def test_what_is_wrong_counts_towards_the_rate(self, opened: Open) -> None:
        # A bucket of twice what a minute gives: 4 at once.
        node = await opened(limits={"messages_per_minute": 2})
        client = await dial_device(node.port, "screen-1")
        for text in 2 * ('{"event":"dance"}', '{"event":"heartbeat","data":7}'):
            await client.connection.send(text)
            await client.next("error")
        await client.send("dance", {})
        await until(lambda: node.counter("limits_exceeded_total", "messages_per_minute") == 1)
        assert messages(node, "unknown", "refused") == 2

    async def test_a_dashboard_is_no_device(self, node: Node) -> None:
        client = await dial(node.port, user_token())
        body = await client.ask("heartbeat", {})
        assert (body["success"], body["code"], body["retryable"]) == (False, "NOT_ALLOWED", False)
        assert messages(node, "heartbeat", "refused") == 1
        assert node.counter("heartbeat_errors_total", "not_allowed") == 1
        assert node.gateway.state.devices == {}


def empty(node: Node, device: str) -> None:
    """Let the device have sent all that it may send for now."""
    node.gateway.state.devices[device].tat = time.perf_counter() + 2 * 60


def waits(node: Node) -> int:
    return node.counter("limits_exceeded_total", "messages_per_minute")


class TestDegraded:
    """A heartbeat is acked from memory; that it will not be stored, its ack says."""

    @pytest.mark.parametrize(("name", "value", "well"), [("maxmemory", "1", "0"), ("min-replicas-to-write", "1", "0")])
    async def test_while_redis_takes_no_writes(
        self, opened: Open, tmp_path: Path, name: str, value: str, well: str
    ) -> None:
        store = valkey_server.start(tmp_path)
        own = redis.Redis.from_url(store.url)
        node = await opened(store.url)
        client = await dial_device(node.port, "screen-1")
        assert "degraded" not in (await client.heartbeat())["data"]
        own.config_set(name, value)
        while "degraded" not in (body := (await client.heartbeat())["data"]):
            await until(lambda: node.store.write_error)  # the last one was acked before its write was turned down
        assert body["degraded"] is True
        own.config_set(name, well)
        # The next status that is written tells that it is over.
        await client.heartbeat()
        await until(lambda: not node.store.write_error)
        assert "degraded" not in (await client.heartbeat())["data"]
        assert "takes no writes" in node.store.refusal  # to an operator for some time more
        own.close()
        store.stop()


class TestRate:
    async def test_over_the_limit_a_client_is_read_at_its_rate(self, opened: Open) -> None:
        node = await opened(limits={"messages_per_minute": 1200})
        client = await dial_device(node.port, "screen-1")
        empty(node, "screen-1")
        for number in range(20):
            await client.send("heartbeat", {"uptime": number}, number)
        for number in range(20):
            message = await client.receive()
            assert (message["id"], message["data"]["success"]) == (number, True)
        assert messages(node, "heartbeat") == 20
        assert messages(node, "heartbeat", "refused") == 0
        assert waits(node) > 1
        assert node.counter("ws_disconnects_total", "too_many_messages") == 0

    async def test_nothing_is_taken_before_its_time(self, opened: Open) -> None:
        # A bucket of twice what a minute gives: 4 at once, then one in 30 s.
        node = await opened(limits={"messages_per_minute": 2})
        client = await dial_device(node.port, "screen-1")
        for uptime in range(4):
            assert (await client.heartbeat(uptime=uptime))["success"]
        await client.send("heartbeat", {"uptime": 4})
        await client.send("heartbeat", {"uptime": 5})
        await until(lambda: waits(node) == 1)
        device = node.gateway.state.devices["screen-1"]
        assert device.peer is not None and device.peer.held
        # Behind them: what is no event is taken all the same, and pings are answered.
        await client.send("ack", {"ok": True}, 5)
        await until(lambda: messages(node, "ack") == 1)
        await (await client.connection.ping())
        assert device.heartbeat is not None and device.heartbeat.uptime == 3
        assert messages(node, "heartbeat") == 4

    async def test_what_waits_goes_with_its_client(self, opened: Open) -> None:
        node = await opened(limits={"messages_per_minute": 1})
        client = await dial_device(node.port, "screen-1")
        for _ in range(50):
            await client.send("heartbeat", {"appVersion": "x" * 100})
        await until(lambda: waits(node) == 1)
        await until(lambda: node.gateway._context.kept.bytes > 48 * 100)
        await client.leave()
        await until(lambda: node.gateway.connections == 0)
        assert node.gateway._context.kept.bytes == 0

    async def test_a_client_that_waits_is_closed_like_any_other(self, opened: Open) -> None:
        node = await opened(limits={"messages_per_minute": 1})
        client = await dial_device(node.port, "screen-1")
        for _ in range(50):
            await client.send("heartbeat", {})
        await until(lambda: waits(node) == 1)
        again = await dial_device(node.port, "screen-1")
        assert await client.ended() == 4500
        assert node.gateway._context.kept.bytes == 0
        await again.leave()

    async def test_a_new_connection_has_no_new_bucket(self, opened: Open) -> None:
        node = await opened(limits={"messages_per_minute": 1})
        client = await dial_device(node.port, "screen-1")
        for _ in range(2):
            await client.heartbeat()
        again = await dial_device(node.port, "screen-1")
        await again.send("heartbeat", {})
        await until(lambda: waits(node) == 1)
        assert (await (await dial_device(node.port, "screen-2")).heartbeat())["success"]

    async def test_a_dashboard_has_a_rate_as_well(self, opened: Open) -> None:
        node = await opened(limits={"messages_per_minute": 1})
        client = await dial(node.port, user_token())
        for event in ("dance", "leave:room", "dance"):
            await client.send(event, {"room": "org:acme"}, 1)
        await until(lambda: waits(node) == 1)
        assert (messages(node, "unknown", "refused"), messages(node, "leave:room")) == (1, 1)

    async def test_no_limit(self, opened: Open) -> None:
        node = await opened(limits={"messages_per_minute": 0})
        client = await dial_device(node.port, "screen-1")
        for _ in range(500):
            await client.send("heartbeat", {})
        assert (await client.heartbeat())["success"]
        assert messages(node, "heartbeat") == 501


PACKETS = {
    "pings": frame(0x9, b""),
    "pings with as much as they may carry": frame(0x9, b"x" * 125),
    "pongs": frame(0xA, b""),
    "junk": frame(0x1, b"x"),
    "empty messages": frame(0x1, b""),
    "half a JSON": frame(0x1, b'{"event":'),
    "acks": frame(0x1, b'{"event":"ack","id":7,"data":{"ok":true}}'),
    "long acks": frame(0x1, b'{"event":"ack","id":7,"data":"' + b"x" * 60_000 + b'"}'),
    "acks with half characters": frame(0x1, b'{"event":"ack","id":7,"data":"' + rb"\ud83d" * 2700 + b'"}'),
    "messages in fragments": frame(0x1, b"x", fin=False) + frame(0x0, b"y"),
}
FLOODS = {name: each * 300 for name, each in PACKETS.items()} | {
    "empty fragments": frame(0x1, b"", fin=False) + frame(0x0, b"", fin=False) * 300,
    "short fragments": frame(0x1, b"", fin=False) + frame(0x0, b"x" * 100, fin=False) * 300,
}


class TestFloods:
    @pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
    async def test_who_sends_too_many_packets_is_closed(self, opened: Open, flood: bytes) -> None:
        node = await opened(limits={"packets_per_minute": 60})
        wire = await Wire.open(node.port)
        await wire.send(upgrade(device_token("screen-1")))
        assert (await wire.response())[0] == 101
        wire.writer.write(flood)
        while (found := await wire.frame())[0] != 0x8:
            pass  # answers to what came before it was too much
        assert found[1][:2] == (4002).to_bytes(2, "big")
        await until(lambda: node.counter("ws_disconnects_total", "too_many_messages") == 1)
        assert node.counter("limits_exceeded_total", "packets_per_minute") == 1
        await wire.close()

    @pytest.mark.parametrize(
        "flood", [frame(0x2, b"x" * 60_000), frame(0x1, b"x"), frame(0xA)], ids=["long", "short", "pongs"]
    )
    async def test_who_goes_on_behind_the_close_frame_is_not_read(self, opened: Open, flood: bytes) -> None:
        node = await opened(limits={"packets_per_minute": 60})
        wire = await Wire.open(node.port)
        await wire.send(upgrade(device_token("screen-1")) + frame(0x2, b"x"))
        assert (await wire.response())[0] == 101
        wire.writer.write(flood * (4_000_000 // len(flood)))
        await until(lambda: node.counter("limits_exceeded_total", "packets_per_minute") == 1)
        assert (await wire.message())["event"] == "config"
        assert await wire.close_code() == 1003
        await wire.close()
        await until(lambda: not node.gateway.connections)
        assert node.counter("ws_disconnects_total", "binary_frame") == 1

    async def test_what_players_send_is_no_flood(self, node: Node, screen: Client) -> None:
        """A picture in fragments, and a reconnect with a hundred commands to be acked."""
        screen_peer = node.gateway.state.devices["screen-1"].peer
        assert screen_peer is not None
        screen_peer.set_message_limit(2_000_000)
        await screen.connection.send(['{"event":"dance","data":"', *("x" * 1400 for _ in range(1000)), '"}'])
        for number in range(256):
            await screen.send("ack", {"ok": True}, number)
        assert (await screen.next("error"))["code"] == "UNKNOWN_EVENT"
        assert (await screen.heartbeat())["success"]


class TestFaults:
    async def test_a_fault_of_ours(self, node: Node, screen: Client, capfd: pytest.CaptureFixture[str]) -> None:
        def fail(*_: Any) -> Any:
            raise RuntimeError("broken")

        counted = node.gateway._dispatcher._events["heartbeat"]
        assert counted.event is not None
        counted.event = Event(counted.event.schema, fail)
        capfd.readouterr()
        await screen.send("heartbeat", {}, 1)
        assert await screen.ended() == 1011
        await until(lambda: node.counter("ws_disconnects_total", "fault") == 1)
        assert messages(node, "heartbeat", "failed") == 1
        assert node.counter("heartbeat_errors_total", "fault") == 1
        line = json.loads(capfd.readouterr().err)
        assert (line["level"], line["event"], line["device_id"]) == ("error", "handler failed", "screen-1")
        assert "broken" in str(line)


async def test_answers_come_in_order(node: Node) -> None:
    wire = await Wire.open(node.port)
    await wire.send(upgrade(device_token("screen-1")))
    assert (await wire.response())[0] == 101
    texts = [b'{"event":"heartbeat","id":%d}' % number for number in range(10)]
    texts[3:3] = [b"nonsense"]
    texts[6:6] = [b'{"event":"dance","id":77}']
    await wire.send(b"".join(frame(0x1, text) for text in texts))
    assert (await wire.message())["event"] == "config"
    answers = [await wire.message() for _ in range(12)]
    assert [answer.get("id") for answer in answers] == [0, 1, 2, None, 3, 4, 77, 5, 6, 7, 8, 9]
    await wire.close()


async def test_peers_make_no_series(opened: Open) -> None:
    """Whatever clients invent, the count of series stays the same."""
    node = await opened(limits={"messages_per_minute": 0})
    screen = await dial_device(node.port, "screen-1")
    await screen.ask("dance")
    node.gateway.state.devices["screen-1"].owner_checked = 0
    await screen.heartbeat(battery=1)
    # The first status was written and the owner renewed: every operation of this test has its series.
    await until(lambda: node.counter("redis_operations_total", "eval_renew", "ok"))
    snapshot = node.metrics.snapshot()
    before = (len(snapshot["values"]), len(snapshot["timers"]))
    for number in range(300):
        await screen.ask(f"event-{number}", {"field": number})
        await screen.heartbeat(**{f"field-{number}": number})
    snapshot = node.metrics.snapshot()
    assert (len(snapshot["values"]), len(snapshot["timers"])) == before
    assert messages(node, "unknown", "refused") == 301
