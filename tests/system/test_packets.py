"""Packets by hand, against the running service: what each is answered, and that none of them leaves a trace.

Of an answer only its kind is written here: the packet's digits and the code. Behind each packet comes a ping, whose
pong says that no more of an answer is to come.
"""

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.net.peers import DEVICE_SECRET, SECRETS, USER_SECRET, device_token, user_token
from tests.service_process import PATIENCE, Service
from vizora_rt.wire import payloads

PAGE = "https://app.example"
MAX_ID = 2**53
LIMIT = 65_536
ENV = {
    **SECRETS,
    "CORS_ORIGIN": PAGE,
    "VIZORA_LIMITS__MESSAGES_PER_MINUTE": "0",
    "VIZORA_LIMITS__CONNECTIONS_PER_MINUTE": "0",
}
TOKEN = device_token("door")
COOKIE = f"vizora_auth_token={user_token()}"

REFUSED = ["44 AUTH_INVALID", "41", "close 1000"]
BROKEN = ["close 1002"]
CONNECTED = ["40", "42 config"]

AT_THE_DOOR: list[tuple[str | bytes, list[str]]] = [
    ("40", REFUSED),
    ("40/", REFUSED),
    ("40{}", REFUSED),
    ("40null", REFUSED),
    ("40[]", REFUSED),
    ("407", REFUSED),
    ("40{", REFUSED),
    ('40{"token":null}', REFUSED),
    ('40{"token":""}', REFUSED),
    ('40{"token":7}', REFUSED),
    ('40{"token":["x"]}', REFUSED),
    ('40{"token":{"a":1}}', REFUSED),
    ('40{"token":NaN}', REFUSED),
    (f'40{{"token":" {TOKEN}"}}', REFUSED),
    (f'40{{"token":"{TOKEN}","token":"x"}}', REFUSED),
    (f'40{{"token":"{"x" * 9000}"}}', REFUSED),
    ("40" + "[" * 5000, REFUSED),
    ('40{"a":' + '{"a":' * 2000 + "1" + "}" * 2001, REFUSED),
    (f'40{{"token":"{device_token("door", exp=5)}"}}', ["44 AUTH_EXPIRED", "41", "close 1000"]),
    (f'40{{"token":"{device_token("door", secret=USER_SECRET)}"}}', REFUSED),
    (f'40{{"token":"{user_token(secret=DEVICE_SECRET)}"}}', REFUSED),
    (f'40{{"token":"{"x" * 20_000}"}}', ["close 1009"]),
    (f'40{{"token":"{TOKEN}"}}', CONNECTED),
    (f'40 {{"token":"{TOKEN}"}}', CONNECTED),
    (f'40/,{{"token":"{TOKEN}"}}', CONNECTED),
    (f'40{{"token":"{TOKEN}","capabilities":"all"}}', CONNECTED),
    (f'40{{"token":"{TOKEN}","capabilities":[{{}},null]}}', CONNECTED),
    (f'40{{"token":"{TOKEN}","device":{{"name":"cut \\ud83d"}}}}', CONNECTED),
    (f'40{{"token":"{TOKEN}","more":"{"x" * 15_000}"}}', CONNECTED),
    ('40/admin,{"token":"x"}', ["44/admin Invalid namespace"]),
    ("2", ["3"]),
    ("2probe", ["3probe"]),
    ("3", []),
    ("6", []),
    ("1", ["close 1000"]),
    ("41", ["close 1000"]),
    ("", BROKEN),
    ("5", BROKEN),
    ("hello", BROKEN),
    ("0{}", BROKEN),
    ('42["heartbeat",{}]', BROKEN),
    ('420["heartbeat",{}]', BROKEN),
    ("430[]", BROKEN),
    ('44{"message":"x"}', BROKEN),
    ('451-["a",{"_placeholder":true,"num":0}]', BROKEN),
    (b"picture", BROKEN),
]
"""What may come instead of a good CONNECT packet, or in its place."""

BAD = ["42 BAD_MESSAGE"]
TAKEN = ["431 taken"]

INSIDE: list[tuple[str | bytes, list[str]]] = [
    ('420["heartbeat",{}]', ["430 taken"]),
    ('421["heartbeat",{}]', TAKEN),
    ('42/,1["heartbeat",{}]', TAKEN),
    ('42001["heartbeat",{}]', TAKEN),
    (f'42{MAX_ID}["heartbeat",{{}}]', [f"43{MAX_ID} taken"]),
    (f'42{MAX_ID + 1}["heartbeat",{{}}]', BAD),
    ('4299999999999999999999["heartbeat",{}]', BAD),
    ('42-1["heartbeat",{}]', BAD),
    ('42+1["heartbeat",{}]', BAD),
    ('42 1["heartbeat",{}]', BAD),
    ('421 ["heartbeat",{}]', BAD),
    ('421.0["heartbeat",{}]', BAD),
    ('421e0["heartbeat",{}]', BAD),
    ('42\u0661["heartbeat",{}]', BAD),
    ('42["heartbeat"]', []),
    ('421["heartbeat"]', TAKEN),
    ('421["heartbeat",null]', TAKEN),
    ('421["heartbeat",{},2,{"3":[]}]', TAKEN),
    ('421["heartbeat",{"uptime":1,"uptime":2}]', TAKEN),
    ('421["heartbeat",{"uptime":1' + "0" * 300 + "}]", TAKEN),
    (r'421["heartbeat",{"currentContent":"cut \ud83d","\udc00":1}]', TAKEN),
    ('421["heartbeat",[]]', ["431 INVALID_PAYLOAD"]),
    ('421["heartbeat","x"]', ["431 INVALID_PAYLOAD"]),
    ('421["heartbeat",{"uptime":NaN}]', ["431 BAD_MESSAGE"]),
    ('421["heartbeat",{"uptime":1e999}]', ["431 BAD_MESSAGE"]),
    ('421["heartbeat",' + '{"a":' * 1500 + "1" + "}" * 1500 + "]", ["431 BAD_MESSAGE"]),
    ('421["heartbeat",{}]x', ["431 BAD_MESSAGE"]),
    ("421", ["431 BAD_MESSAGE"]),
    ("421[]", ["431 BAD_MESSAGE"]),
    ("421[null]", ["431 BAD_MESSAGE"]),
    ("421[7,{}]", ["431 BAD_MESSAGE"]),
    ('421[["heartbeat"],{}]', ["431 BAD_MESSAGE"]),
    ('421{"a":1}', BAD),
    ("42", BAD),
    ("42[]", BAD),
    (' 421["heartbeat",{}]', BAD),
    ('\ufeff421["heartbeat",{}]', BAD),
    ('421["dance"]', ["431 UNKNOWN_EVENT"]),
    ('42["dance"]', ["42 UNKNOWN_EVENT"]),
    ('421["",{}]', ["431 UNKNOWN_EVENT"]),
    ('421["ack",{"ok":true}]', ["431 UNKNOWN_EVENT"]),
    ('42["ack",{"ok":true}]', ["42 UNKNOWN_EVENT"]),
    ('421["connect"]', ["431 UNKNOWN_EVENT"]),
    ('421["__proto__",{}]', ["431 UNKNOWN_EVENT"]),
    ('421["%s"]' % ("x" * 9000), ["431 UNKNOWN_EVENT"]),
    ('421["join:organization",{"organizationId":"acme"}]', ["431 NOT_ALLOWED"]),
    ("431[]", []),
    ("431[null]", []),
    ('431["yes"]', []),
    ('431[{"ok":false,"error":7}]', []),
    ("43[]", BAD),
    ("431", BAD),
    ("431{}", BAD),
    ("43-1[]", BAD),
    ('451-["a",{"_placeholder":true,"num":0}]', ["42 BINARY_EVENT"]),
    ('451-1["a",{"_placeholder":true,"num":0}]', ["431 BINARY_EVENT"]),
    ('4599999-1["a"]', ["431 BINARY_EVENT"]),
    ("461-1[]", ["42 BINARY_EVENT"]),
    (b"picture", []),
    ("45", BAD),
    ("40{}", BAD),
    ("40/,{}", BAD),
    ("40/admin,{}", ["44/admin Invalid namespace"]),
    ("41/admin,", ["42 UNKNOWN_NAMESPACE"]),
    ('42/admin,1["a"]', ["42 UNKNOWN_NAMESPACE"]),
    ('44{"message":"x"}', BAD),
    ("2probe", ["3probe"]),
    ("2" + "x" * 1000, ["3" + "x" * 125]),
    ("3", []),
    ("3x", BAD),
    ("6", []),
    ("0", BAD),
    ("", BAD),
    ("b4YQ==", BAD),
]
"""What a player that is connected may say."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), ENV) as running:
        yield running.start()


def kind(packet: str) -> str:
    """What a packet is, without what differs from time to time."""
    at = min((at for at in map(packet.find, "[{") if at >= 0), default=-1)
    if at < 0:
        return packet
    digits, body = packet[:at].rstrip(","), json.loads(packet[at:])
    if packet.startswith("42"):
        return f"{digits} {body[1]['code'] if body[0] == 'error' else body[0]}"
    if packet.startswith("43"):
        return f"{digits} {'taken' if body[0]['success'] else body[0]['code']}"
    if packet.startswith("44"):
        return f"{digits} {body['data']['code'] if 'data' in body else body['message']}"
    return digits


async def answers(client: ClientConnection, *packets: str | bytes, least: int = 0) -> list[str]:
    """What packets are answered: all up to the pong and at `least` so many, or up to the end of the connection."""
    found: list[str] = []
    over = False
    try:
        async with asyncio.timeout(PATIENCE):
            for packet in (*packets, "2~"):
                await client.send(packet)
            while not over or len(found) < least:
                text = str(await client.recv())
                over = over or text == "3~"
                if text != "3~" and not text.startswith('42["device:status'):
                    found.append(kind(text))
    except ConnectionClosed:
        found.append(f"close {client.close_code}")
    return found


def dial(service: Service, **headers: str) -> connect:
    url = f"ws://127.0.0.1:{service.port}/socket.io/?EIO=4&transport=websocket"
    return connect(url, additional_headers=headers, compression=None, proxy=None)


async def at_the_door(service: Service, packet: str | bytes, expected: list[str], **headers: str) -> list[str]:
    """What is answered to the first packet of a connection: whether it may come in takes a while to find out."""
    async with dial(service, **headers) as client:
        assert str(await client.recv()).startswith("0{")
        return await answers(client, packet, least=len(expected))


def hello(device: str, **auth: Any) -> str:
    return "40" + json.dumps({"token": device_token(device), **auth})


def series(service: Service) -> set[str]:
    """Of the questions themselves there are more, and Redis' memory is read some time after the start."""
    lines = service.get("/metrics")[1].decode().splitlines()
    ours = ("_http_", "_redis_memory_")
    return {line.rpartition(" ")[0] for line in lines if line[:1] != "#" and not any(map(line.count, ours))}


async def test_packets(service: Service) -> None:
    """Each has its answer; afterwards there is no word of them in the log, and no series more."""
    async with dial(service) as client:
        await client.recv()
        assert await answers(client, hello("inside", capabilities=["deliveryAck"]), least=2) == CONNECTED
        # A screen has series of its own, of heartbeats that were taken and of those that were not.
        assert await answers(client, '421["heartbeat",{}]', '421["heartbeat",[]]') == [*TAKEN, "431 INVALID_PAYLOAD"]
        assert await at_the_door(service, f'40{{"token":"{TOKEN}"}}', CONNECTED) == CONNECTED
        before = series(service)
        wrong: dict[Any, Any] = {}
        for packet, expected in INSIDE:
            if (found := await answers(client, packet)) != expected:
                wrong[packet[:80]] = found
        for packet, expected in AT_THE_DOOR:
            if (found := await at_the_door(service, packet, expected)) != expected:
                wrong[packet[:80]] = found
        assert wrong == {}
        assert series(service) - before == set()
    assert not [record for record in service.records if record["level"] in ("error", "critical")]
    assert not [line for line in service.lines if "eyJ" in line or "heartbeat" in line]


@pytest.mark.parametrize(
    ("packet", "headers", "expected"),
    [
        ("40", {"Cookie": COOKIE, "Origin": PAGE}, ["40"]),
        ('40{"token":null}', {"Cookie": COOKIE, "Origin": PAGE.upper()}, ["40"]),
        ('40{"token":""}', {"Cookie": f"a=b; {COOKIE}", "Origin": PAGE}, ["40"]),
        ('40{"token":"x"}', {"Cookie": COOKIE, "Origin": PAGE}, REFUSED),
        ("40", {"Cookie": COOKIE}, ["44 ORIGIN_DENIED", "41", "close 1000"]),
        ("40", {"Cookie": COOKIE, "Origin": "null"}, ["44 ORIGIN_DENIED", "41", "close 1000"]),
        ("40", {"Cookie": COOKIE, "Origin": f"{PAGE}.evil.example"}, ["44 ORIGIN_DENIED", "41", "close 1000"]),
        ("40", {"Cookie": f"vizora_auth_token={TOKEN}", "Origin": PAGE}, REFUSED),
        ("40", {"Authorization": f"Bearer {TOKEN}"}, REFUSED),
    ],
)
async def test_who_brings_a_header(service: Service, packet: str, headers: dict[str, str], expected: list[str]) -> None:
    assert await at_the_door(service, packet, expected, **headers) == expected


async def test_one_byte_too_many(service: Service) -> None:
    async with dial(service) as client:
        await client.recv()
        assert await answers(client, hello("big"), least=2) == CONNECTED
        beat = '421["heartbeat",{"p":"%s"}]'
        fits, not_quite = (beat % ("x" * (LIMIT - len(beat) + 2 + more)) for more in (0, 1))
        assert len(fits) == LIMIT
        assert await answers(client, fits) == TAKEN
        assert await answers(client, '421["heartbeat",{}]', not_quite) == [*TAKEN, "42 TOO_BIG", "close 1009"]


EVENTS = {
    "heartbeat": payloads.Heartbeat,
    "content:impression": payloads.Impression,
    "content:impressions": payloads.Impressions,
    "content:error": payloads.ContentError,
    "playlist:request": payloads.PlaylistRequest,
    "screenshot:response": payloads.ScreenshotResponse,
    "join:room": payloads.JoinRoom,
    "leave:room": payloads.JoinRoom,
}
WITHIN = [
    *payloads.schema_fields(payloads.DeviceMetrics),
    *payloads.schema_fields(payloads.NumberedPlay),
    "boot",
    "more",
]
VALUES = [
    "null", "true", "0", "-0", "-0.0", "1", "-1", "5e-324", "1e308", "100", "100.5", "9007199254740992",
    "9007199254740993", "9223372036854775808", "18446744073709551616", "253402300799999", "253402300800000",
    "1795694036289.9", "[]", "[[]]", r'"\u0000"', r'"\ud83d"',
    *map(
        json.dumps,
        [
            "", "c", "\u202e", "a:b", "{}", "token=x", "b1", "start", "device:any", "/9j/2Q==", "x" * 65, "y" * 600,
            "\U0001f600" * 128, "2026-11-26T12:00:00Z", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
        ],
    ),
]  # fmt: skip
"""JSON as it is written, so that there may be numbers that Python would not write."""


def any_value(dice: random.Random, depth: int = 0) -> str:
    kind = dice.random() if depth < 3 else 1.0
    if kind < 0.15:
        return f"[{','.join(any_value(dice, depth + 1) for _ in range(dice.randrange(4)))}]"
    if kind < 0.4:
        return any_object(dice, dice.sample(WITHIN, dice.randrange(6)), depth + 1)
    return dice.choice(VALUES)


def any_object(dice: random.Random, names: list[str], depth: int = 0) -> str:
    return "{" + ",".join(f'"{name}":{any_value(dice, depth)}' for name in names) + "}"


@pytest.mark.parametrize("native", [True, False], ids=["native", "socketio"])
async def test_any_values(service: Service, native: bool) -> None:
    """Whatever stands in the fields of an event, it has one answer, and is no fault of ours."""
    dice, asked = random.Random(7), 1000
    url = f"ws://127.0.0.1:{service.port}/ws?token={device_token('any')}"
    async with connect(url, compression=None, proxy=None) if native else dial(service) as client:
        if not native:
            await client.send(hello("any"))
        for number in range(asked):
            event, schema = dice.choice(list(EVENTS.items()))
            names = [name for name in payloads.schema_fields(schema) if dice.random() < 0.8]
            data = any_object(dice, names)
            text = f'{{"event":"{event}","id":{number},"data":{data}}}' if native else f'42{number}["{event}",{data}]'
            await client.send(text)
        answered: dict[int, list[bool]] = {}
        async with asyncio.timeout(PATIENCE):
            while len(answered) < asked:
                packet = str(await client.recv())
                number, body = ack_of(packet, native)
                if body is not None:
                    answered.setdefault(number, []).append(body["success"])
        assert sorted(answered) == list(range(asked))
        assert {len(each) for each in answered.values()} == {1}
        assert {each[0] for each in answered.values()} == {True, False}
    assert not [record for record in service.records if record["level"] in ("error", "critical")]


def ack_of(packet: str, native: bool) -> tuple[int, dict[str, Any] | None]:
    """Which message a packet acks, and what it says; None when it is no ack."""
    if native:
        message = json.loads(packet)
        return message.get("id", 0), message["data"] if message["event"] == "ack" else None
    digits, bracket, rest = packet.partition("[")
    return (int(digits[2:]), json.loads(bracket + rest)[0]) if packet.startswith("43") else (0, None)
