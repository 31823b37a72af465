"""The Socket.IO dialect: packets and what they mean, refusals, goodbyes, and that no packet raises."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vizora_rt import errors
from vizora_rt.errors import (
    BAD_MESSAGE,
    BINARY_EVENT,
    CLOSES,
    HANDSHAKE_REFUSALS,
    UNKNOWN_EVENT,
    UNKNOWN_NAMESPACE,
    Close,
    Refusal,
)
from vizora_rt.wire import messages, payloads, socketio
from vizora_rt.wire.messages import Refused
from vizora_rt.wire.payloads import MAX_ID
from vizora_rt.wire.socketio import MAX_NAMESPACE, MAX_PROBE, ConnectPacket, decode, decode_connect

NOW = b"2026-11-23T04:00:00.000Z"
SHIPPED = json.loads(Path(__file__).with_name("shipped.json").read_text("utf-8"))
"""What shipped players write and are written, in both dialects: `in` is the player's, `out` the gateway's."""
SCHEMAS = {
    "heartbeat": payloads.Heartbeat,
    "content:impression": payloads.Impression,
    "content:error": payloads.ContentError,
}
DIALECTS = (socketio.DIALECT, messages.NATIVE)


ODD = st.none() | st.booleans() | st.integers() | st.floats(0, 1e9) | st.text() | st.just({"contentId": "a"})


def meaning(decoded: object) -> object:
    """A heartbeat may have been validated along with its decoding."""
    if not isinstance(decoded, tuple):
        return decoded
    event, ack_id, data = decoded
    return event, ack_id, payloads.validate(payloads.Heartbeat, data) if event == "heartbeat" else data


def packets() -> st.SearchStrategy[str]:
    """Events as clients write them, most with an ack id, in the few ways that JSON may be written."""
    ids = st.one_of(
        st.just(""),
        st.integers(0, MAX_ID + 2).map(str),
        st.integers(0, 10**30).map(str),
        st.text("0123456789", max_size=18),
    )
    leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(st.characters())
    values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
    events = st.sampled_from(["heartbeat", "a", "", "content:impression"]) | values
    arguments = st.lists(values, max_size=3).flatmap(lambda rest: events.map(lambda event: [event, *rest]))
    written = st.builds(json.dumps, arguments, ensure_ascii=st.booleans(), indent=st.none() | st.just(1))
    return st.builds(lambda ack_id, text: f"42{ack_id}{text}", ids, written)


class TestHandshake:
    @pytest.mark.parametrize(
        ("version", "transport", "session", "upgrade", "code"),
        [
            ("4", "websocket", None, True, None),
            ("4", "polling", None, False, 0),
            ("4", None, None, True, 0),
            ("4", "webtransport", None, True, 0),
            ("3", "polling", None, False, 0),
            ("3", "websocket", None, True, 5),
            (None, "websocket", None, True, 5),
            ("4", "websocket", "abc", True, 1),
            ("4", "websocket", "", True, None),
            ("4", "websocket", None, False, 3),
        ],
    )
    def test_error(
        self, version: str | None, transport: str | None, session: str | None, upgrade: bool, code: int | None
    ) -> None:
        found = socketio.handshake_error(version, transport, session, upgrade)
        assert (found and json.loads(found)["code"]) == code

    def test_polling_is_an_unknown_transport(self) -> None:
        assert socketio.handshake_error("4", "polling", None, False) == b'{"code":0,"message":"Transport unknown"}'

    def test_open_packet(self) -> None:
        packet = socketio.open_packet("s1", 25.0, 20.0, 65536)
        assert packet == b'0{"sid":"s1","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":65536}'

    def test_connected(self) -> None:
        assert socketio.connected("s2") == b'40{"sid":"s2"}'

    @pytest.mark.parametrize("refusal", [each for each in HANDSHAKE_REFUSALS if not each.retryable])
    def test_refused(self, refusal: Refusal) -> None:
        packet, last = socketio.refused(refusal)
        assert (packet[:2], last) == (b"44", b"41")
        assert json.loads(packet[2:]) == {"message": refusal.message, "data": {"code": refusal.code}}

    @pytest.mark.parametrize(
        ("packet", "hello"),
        [
            ("40", ConnectPacket(None, False)),
            ("40{}", ConnectPacket(None, False)),
            ("40null", ConnectPacket(None, False)),
            ('40{"token":null}', ConnectPacket(None, False)),
            ('40{"token":""}', ConnectPacket(None, False)),
            ("40/", ConnectPacket(None, False)),
            ('40/,{"token":"t","capabilities":["deliveryAck"]}', ConnectPacket("t", True)),
            (r'40{"token":"t","name":"cut \ud83d"}', ConnectPacket("t", False)),
            (r'40{"token":"cut \ud83d"}', ConnectPacket("cut \ufffd", False)),
            (r'40"\ud83d"', ConnectPacket("", False)),
            ('40{"token":"t"}', ConnectPacket("t", False)),
            ('40{"token":"t","capabilities":{"deliveryAck":true}}', ConnectPacket("t", True)),
            ('40{"token":"t","capabilities":["deliveryAck"]}', ConnectPacket("t", True)),
            ('40{"token":"t","capabilities":{"deliveryAck":false}}', ConnectPacket("t", False)),
            ('40{"token":"t","capabilities":{"deliveryAck":"yes"}}', ConnectPacket("t", False)),
            ('40{"token":"t","capabilities":["else"]}', ConnectPacket("t", False)),
            ('40{"token":"t","capabilities":"deliveryAck"}', ConnectPacket("t", False)),
            ('40{"token":7}', ConnectPacket("", False)),
            ('40["t"]', ConnectPacket("", False)),
            ('40{"token":', ConnectPacket("", False)),
        ],
    )
    def test_hello(self, packet: str, hello: ConnectPacket) -> None:
        assert decode_connect(packet) == hello

    def test_nothing_but_connect_comes_first(self) -> None:
        assert decode_connect('420["heartbeat",{}]') is BAD_MESSAGE
        assert decode_connect("2") == b"3"
        assert decode_connect("1") is None
        assert decode_connect("40/admin,{}") == b'44/admin,{"message":"Invalid namespace"}'
        assert decode_connect('40/?token=t,{"token":"t"}') is UNKNOWN_NAMESPACE


class TestDecode:
    @pytest.mark.parametrize(
        ("packet", "envelope"),
        [
            ('42["heartbeat",{"uptime":1}]', ("heartbeat", None, {"uptime": 1})),
            ('427["heartbeat",{"uptime":1}]', ("heartbeat", 7, payloads.Heartbeat(uptime=1))),
            ('420["heartbeat",{}]', ("heartbeat", 0, payloads.Heartbeat())),
            ('427["heartbeat",{"battery":1}]', ("heartbeat", 7, {"battery": 1})),
            ('427["heartbeat"]', ("heartbeat", 7, None)),
            ('427["a",1,2,3]', ("a", 7, 1)),
            ('427["a",[]]', ("a", 7, [])),
            ('4207["a"]', ("a", 7, None)),
            (f'42{MAX_ID}["a"]', ("a", MAX_ID, None)),
            ('42 ["a"]', BAD_MESSAGE),
            ('42/,7["a",1]', ("a", 7, 1)),
            ('42/,["a",1]', ("a", None, 1)),
            ('43/,7[{"ok":true}]', ("ack", 7, {"ok": True})),
            ('42["ack",{"ok":true}]', UNKNOWN_EVENT),
            ('427["ack",{"ok":true}]', Refused(UNKNOWN_EVENT, 7)),
            ('427["ack"]', Refused(UNKNOWN_EVENT, 7)),
            ('42["caf\u00e9",{"x":"\U0001f600"}]', ("caf\u00e9", None, {"x": "\U0001f600"})),
            (r'425["a",{"x":"cut \ud83d"}]', ("a", 5, {"x": "cut \ufffd"})),
            ('437[{"ok":true}]', ("ack", 7, {"ok": True})),
            ("430[]", ("ack", 0, None)),
            ('437[{"ok":false,"error":"no"},1]', ("ack", 7, {"ok": False, "error": "no"})),
            (r'437[{"ok":false,"error":"\ud83d"}]', ("ack", 7, {"ok": False, "error": "\ufffd"})),
        ],
    )
    def test_messages(self, packet: str, envelope: object) -> None:
        assert decode(packet) == envelope

    @pytest.mark.parametrize(
        "packet",
        [
            "", "4", "42", "43", "437", "42[]", "42[7]", '42{"a":1}', '42"a"', '42["a"', '42+7["a"]',
            '42-1["a"]', '421_0["a"]', '42\u0667["a"]', '42\u00b2["a"]', f'42{MAX_ID + 1}["a"]', f'42{"0" * 17}["a"]',
            "43[1]", "43x[1]", "437[", '437{"a":1}', f"43{'9' * 100}[1]", "40", "40{}", '44{"message":"x"}', "47",
            "48[]", "5", "3x", "6x", "7", "0{}", "b4AAAA", "1x", "410", "45", "45-[]", "45x-[]", "hello", "\x00",
            '4 2["a"]',
        ],
    )  # fmt: skip
    def test_malformed(self, packet: str) -> None:
        assert decode(packet) is BAD_MESSAGE

    @pytest.mark.parametrize("packet", ["427", "427[]", '427{"a":["b"]}', "427[7]", '427["a"', "427[null]"])
    def test_who_waits_for_an_ack_is_told(self, packet: str) -> None:
        assert decode(packet) == (BAD_MESSAGE if "{" in packet else Refused(BAD_MESSAGE, 7))

    @pytest.mark.parametrize("packet", ['42/x,["a"]', '42/x,7["a"]', "43/x,7[1]", "41/x,", "44/x,{}", '45/x,1-["a"]'])
    def test_other_namespaces(self, packet: str) -> None:
        assert decode(packet) is UNKNOWN_NAMESPACE

    def test_who_asks_for_another_namespace_keeps_the_connection(self) -> None:
        assert decode("40/admin,{}") == decode("40/admin") == b'44/admin,{"message":"Invalid namespace"}'
        assert decode("40/admin?token=secret,{}") == b'44/admin,{"message":"Invalid namespace"}'
        longest = "/" + "x" * (MAX_NAMESPACE - 1)
        assert isinstance(decode(f"40{longest},"), bytes)
        assert decode(f"40{longest}x,") is UNKNOWN_NAMESPACE
        assert decode("40/a\nb,") is UNKNOWN_NAMESPACE
        # To say of the root namespace that it is not there would end what is connected to it.
        assert decode("40/") is decode("40/,{}") is BAD_MESSAGE
        assert decode("40/?a=b,{}") is UNKNOWN_NAMESPACE
        assert decode("41/,") is None

    @pytest.mark.parametrize(
        ("packet", "ack_id"),
        [
            ('451-["shot",{"_placeholder":true,"num":0}]', None),
            ('451-7["shot",{"_placeholder":true,"num":0}]', 7),
            ("4512-70[]", 70),
            ("451-7", 7),
            ("451-x[]", None),
            ("461-7[]", None),
        ],
    )
    def test_binary_events(self, packet: str, ack_id: int | None) -> None:
        assert decode(packet) == (BINARY_EVENT if ack_id is None else Refused(BINARY_EVENT, ack_id))

    def test_life(self) -> None:
        assert decode("3") == decode("6") == b""
        assert decode("2") == b"3"
        assert decode("2probe") == b"3probe"
        assert decode("2a/,b") == b"3a/,b"
        assert decode("2" + "x" * 1000) == b"3" + b"x" * MAX_PROBE

    def test_goodbyes(self) -> None:
        assert decode("1") is None
        assert decode("41") is None

    @given(st.text(st.characters(exclude_categories=())))
    @example("2\ud800")
    @example("40/\ud800")
    @example("42" + "[" * 5000)
    @example("430" + "[" * 5000)
    @example('42["\\ud800' + "[" * 5000)
    def test_no_packet_raises(self, packet: str) -> None:
        for text in (packet, "4" + packet, "40" + packet, "42" + packet, "427" + packet, "43" + packet, "45" + packet):
            for found in (decode(text), decode_connect(text)):
                assert isinstance(found, tuple | Refusal | Refused | bytes | None)
                if isinstance(found, bytes):
                    assert len(found) <= 200

    @given(
        st.text(), st.none() | st.integers(0, MAX_ID), st.recursive(st.none() | st.integers(0, 9) | st.text(), st.lists)
    )
    def test_what_a_client_says_is_what_is_heard(self, event: str, ack_id: int | None, data: Any) -> None:
        arguments = json.dumps([event, data] if data is not None else [event], ensure_ascii=False)
        assume(event != "ack")
        assert decode(f"42{'' if ack_id is None else ack_id}{arguments}") == (event, ack_id, data)

    @given(packets(), st.integers(0, 60), st.integers(0, 12), st.text('[]{}",:0123456789 \\ud8e-+.a\u0667', max_size=3))
    @example('427["heartbeat",{"uptime":1}]', 0, 0, "")
    @example('42007["a",1]', 0, 0, "")
    @example(f'42{MAX_ID + 1}["a",1]', 0, 0, "")
    @example('4299999999999999999999["a",1]', 0, 0, "")
    @example("42" + "9" * 400 + '["a",1]', 0, 0, "")
    @example('427["a",1],[2]', 0, 0, "")
    @example('427["a",1,2]', 0, 0, "")
    @example('427["a"]', 0, 0, "")
    @example('427[["a"],1]', 0, 0, "")
    @example('42\u0667["a",1]', 0, 0, "")
    @example('427["a","' + "\\ud83d" + '"]', 0, 0, "")
    @example('427["a",' + "[" * 1022 + "]" * 1023, 0, 0, "")
    @example('427["a",' + "[" * 1023 + "]" * 1024, 0, 0, "")
    def test_the_fewest_steps_lead_where_all_do(self, packet: str, at: int, length: int, instead: str) -> None:
        """An event with an ack id and data is read in one go: never to another end than step by step."""
        mutated = packet[:at] + instead + packet[at + length :] if length or instead else packet
        for text in (packet, mutated, "42" + mutated[2:], "427" + mutated):
            if text.startswith("42"):
                assert meaning(decode(text)) == meaning(socketio._event(text))

    @given(
        st.fixed_dictionaries({}, optional={"uptime": ODD, "contentVersion": ODD, "currentContent": ODD, "new": ODD})
    )
    def test_a_heartbeat_in_one_step_means_the_same(self, data: dict[str, Any]) -> None:
        packet = f'427["heartbeat",{json.dumps(data)}]'
        assert meaning(decode(packet)) == meaning(socketio._event(packet))

    @given(st.data())
    def test_a_mutated_packet_is_a_message_or_refused(self, data: st.DataObject) -> None:
        packet = data.draw(
            st.sampled_from(
                [
                    '427["heartbeat",{"uptime":1}]',
                    '42["heartbeat"]',
                    '437[{"ok":true}]',
                    '40{"token":"t","capabilities":["deliveryAck"]}',
                    "40/admin,{}",
                    '42/admin,7["a"]',
                    '451-7["shot",{"_placeholder":true,"num":0}]',
                    "2probe",
                    "41",
                ]
            )
        )
        at = data.draw(st.integers(0, len(packet)))
        until = data.draw(st.integers(at, len(packet)))
        mutated = packet[:at] + data.draw(st.text(max_size=4)) + packet[until:]
        assert isinstance(decode(mutated), tuple | Refusal | Refused | bytes | None)
        assert isinstance(decode_connect(mutated), ConnectPacket | Refusal | Refused | bytes | None)


class TestEncode:
    def test_events(self) -> None:
        assert socketio.encode("config", b'{"a":1}') == b'42["config",{"a":1}]'
        assert socketio.encode("command", b"{}", 12) == b'4212["command",{}]'
        assert socketio.encode("command", b"{}", 0) == b'420["command",{}]'

    def test_acks(self) -> None:
        assert socketio.encode_ack(7, b'{"a":1}') == b'437[{"a":1}]'
        success = socketio.encode_success(7, b'{"a":1}', NOW)
        assert success == b'437[{"success":true,"data":{"a":1},"timestamp":"%b"}]' % NOW

    def test_who_leaves_is_told_nothing(self) -> None:
        assert socketio.goodbye(errors.NORMAL) == ()

    @pytest.mark.parametrize("cause", CLOSES[1:], ids=lambda cause: cause.name)
    def test_goodbye(self, cause: Close) -> None:
        error, *rest = socketio.goodbye(cause)
        assert error[:2] == b"42"
        event, body = json.loads(error[2:])
        assert event == "error"
        assert body == {
            "code": cause.name.upper(),
            "message": cause.text,
            "retryable": cause.come_back,
            "closeCode": cause.code,
        }
        # A DISCONNECT keeps shipped players away.
        assert rest == ([] if cause.come_back else [b"41"])

    def test_dialect(self) -> None:
        dialect = socketio.DIALECT
        assert (dialect.name, dialect.ping, dialect.binary) == ("socketio", b"2", None)
        assert messages.NATIVE.goodbye(errors.SUPERSEDED) == ()


class TestShipped:
    @pytest.mark.parametrize("case", SHIPPED["events"], ids=lambda case: case["name"])
    def test_events(self, case: dict[str, Any]) -> None:
        heard = [dialect.decode(case["in"][dialect.name]) for dialect in DIALECTS]
        assert meaning(heard[0]) == meaning(heard[1])
        assert isinstance(heard[0], tuple)
        event, ack_id, data = heard[0]
        taken = payloads.validate(SCHEMAS[event], data)
        unknown = wrong_type = 0
        if isinstance(taken, payloads.Repaired):
            taken, unknown, wrong_type = taken.payload, taken.unknown, taken.wrong_type
        fields = msgspec.to_builtins(taken)
        assert {name: value for name, value in fields.items() if value is not None} == case["taken"]
        assert (unknown, wrong_type) == (case["unknown"], case["wrong_type"])
        assert (ack_id is None) is (case["out"] == {})
        if ack_id is None:
            return
        for dialect in DIALECTS:
            reply = case["out"][dialect.name]
            body = reply[reply.index('"data":{"success"') + 7 : -1] if dialect is messages.NATIVE else reply[4:-1]
            assert dialect.encode_ack(ack_id, body.encode()).decode() == reply
            answer = messages.dumps(json.loads(body)["data"])
            assert dialect.encode_success(ack_id, answer, b"NOW").decode() == reply

    @pytest.mark.parametrize("case", SHIPPED["pushes"], ids=lambda case: case["name"])
    def test_pushes(self, case: dict[str, Any]) -> None:
        for dialect in DIALECTS:
            pushed = dialect.encode(case["event"], case["body"].encode(), case["id"])
            assert pushed.decode() == case["out"][dialect.name]
            if case["in"]:
                assert dialect.decode(case["in"][dialect.name]) == ("ack", case["id"], {"ok": True})
