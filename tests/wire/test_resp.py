"""RESP in vectors, whole, byte by byte and with a tail; commands there and back; the slots of the cluster spec."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.wire.resp import Replies, ReplyError, key_of, pack, pack_set, slot

VECTORS: list[tuple[bytes, object]] = [
    (b"+OK\r\n", b"OK"),
    (b"+\r\n", b""),
    (b":0\r\n", 0),
    (b":-9223372036854775808\r\n", -9223372036854775808),
    (b"$5\r\nhello\r\n", b"hello"),
    (b"$0\r\n\r\n", b""),
    (b"$4\r\n\r\n\r\n\r\n", b"\r\n\r\n"),
    (b"$-1\r\n", None),
    (b"*-1\r\n", None),
    (b"*0\r\n", []),
    (b"*3\r\n$1\r\na\r\n:2\r\n*1\r\n$-1\r\n", [b"a", 2, [None]]),
    (b"*2\r\n$9\r\nsubscribe\r\n$2\r\nch\r\n", [b"subscribe", b"ch"]),
]

ERRORS = [
    (b"-ERR unknown command 'FOO'\r\n", "ERR", "unknown command 'FOO'"),
    (b"-NOSCRIPT No matching script.\r\n", "NOSCRIPT", "No matching script."),
    (b"-READONLY You can't write against a replica.\r\n", "READONLY", "You can't write against a replica."),
    (b"-LOADING\r\n", "LOADING", ""),
    (b"-\r\n", "", ""),
    (b"-ERR \xff\xfe\r\n", "ERR", "��"),
]

BROKEN = [b"HTTP/1.1 400 Bad Request\r\n", b"\x15\x03\x01\x00\x02\x02", b"*99999999999\r\n", b":abc\r\n", b"$x\r\n"]


def cuts(data: bytes) -> list[list[bytes]]:
    return [[data], [bytes([byte]) for byte in data], [data[:1], data[1:]], [data[:-1], data[-1:]]]


def read_all(pieces: list[bytes]) -> list[object]:
    replies = Replies()
    found = [reply for piece in pieces for reply in replies.read(piece)]
    assert not replies.broken
    return found


@pytest.mark.parametrize(("data", "reply"), VECTORS)
def test_reply_however_it_is_cut(data: bytes, reply: object) -> None:
    for pieces in cuts(data):
        assert read_all(pieces) == [reply]


@pytest.mark.parametrize(("data", "reply"), VECTORS)
def test_reply_with_a_tail(data: bytes, reply: object) -> None:
    replies = Replies()
    assert replies.read(data + b"$7\r\nhal") == [reply]
    assert replies.read(b"") == []
    assert replies.read(b"fway\r\n") == [b"halfway"]


@pytest.mark.parametrize(("data", "code", "message"), ERRORS)
def test_an_error_is_a_value(data: bytes, code: str, message: str) -> None:
    for pieces in cuts(data):
        (reply,) = read_all(pieces)
        assert isinstance(reply, ReplyError)
        assert (reply.code, reply.message) == (code, message)
    # As Lua's pcall and EXEC nest them.
    (nested,) = read_all([b"*2\r\n+OK\r\n" + data])
    assert isinstance(nested, list)
    assert nested[0] == b"OK"
    assert isinstance(nested[1], ReplyError)
    assert nested[1].code == code


def test_null_is_a_reply() -> None:
    replies = Replies()
    assert replies.read(b"") == []
    assert replies.read(b"$-1\r\n:1\r\n+O") == [None, 1]
    assert replies.read(b"K\r\n") == [b"OK"]
    assert not replies.broken


@pytest.mark.parametrize("data", BROKEN)
def test_a_broken_stream_ends_after_what_came_before(data: bytes) -> None:
    replies = Replies()
    assert replies.read(b"+OK\r\n" + data) == [b"OK"]
    assert replies.broken
    assert replies.read(b"+OK\r\n") == []


def test_the_representation_says_what_it_is() -> None:
    assert repr(ReplyError("OOM command not allowed")) == "ReplyError('OOM command not allowed')"


def test_pack() -> None:
    assert pack("PING") == b"*1\r\n$4\r\nPING\r\n"
    assert pack(b"SET", "schlüssel", -17) == b"*3\r\n$3\r\nSET\r\n$10\r\nschl\xc3\xbcssel\r\n$3\r\n-17\r\n"
    assert pack("ECHO", b"") == b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n"


def unpacked(argument: bytes | str | int) -> bytes:
    return argument if isinstance(argument, bytes) else str(argument).encode()


ARGUMENTS = st.binary(max_size=300) | st.text(max_size=100) | st.integers(-(2**63), 2**63 - 1)


# A command is an array of bulk strings, so a reader of replies reads it back.
@given(st.lists(ARGUMENTS, min_size=1, max_size=20))
def test_commands_come_back(arguments: list[bytes | str | int]) -> None:
    assert read_all([pack(*arguments)]) == [[unpacked(argument) for argument in arguments]]


@given(st.binary(max_size=200), st.binary(max_size=2000), st.integers(1, 2**40))
def test_pack_set_is_pack(key: bytes, value: bytes, seconds: int) -> None:
    assert pack_set(key, value, seconds) == pack("SET", key, value, "EX", seconds)


def encoded(reply: Any) -> bytes:
    match reply:
        case None:
            return b"$-1\r\n"
        case int():
            return b":%d\r\n" % reply
        case bytes():
            return b"$%d\r\n%b\r\n" % (len(reply), reply)
        case _:
            return b"*%d\r\n%b" % (len(reply), b"".join(encoded(item) for item in reply))


REPLIES = st.recursive(
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=100),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=15,
)


@given(st.lists(REPLIES, max_size=10), st.data())
def test_replies_come_back_cut_anywhere(replies: list[object], data: st.DataObject) -> None:
    stream = b"".join(encoded(reply) for reply in replies)
    marks = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    assert read_all([stream[a:b] for a, b in zip([0, *marks], [*marks, len(stream)], strict=True)]) == replies


@given(st.binary(max_size=200))
def test_noise_is_replies_or_broken_but_never_raises(noise: bytes) -> None:
    replies = Replies()
    assert isinstance(replies.read(noise), list)


@pytest.mark.parametrize(
    ("key", "same"),
    [
        (b"foo{bar}", b"bar"),
        (b"{user1000}.following", b"user1000"),
        (b"{user1000}.followers", b"user1000"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"}foo{bar}", b"bar"),
        (b"vz:{d:screen-1}:status", b"d:screen-1"),
    ],
)
def test_slot_of_a_hash_tag(key: bytes, same: bytes) -> None:
    assert slot(key) == crc16(same) % 16384 != crc16(key) % 16384


@pytest.mark.parametrize("key", [b"foo{}{bar}", b"{}", b"{}bar", b"foo{bar", b"foo}bar{", b"{", b"}"])
def test_slot_without_a_hash_tag_is_of_the_whole_key(key: bytes) -> None:
    assert slot(key) == crc16(key) % 16384


@pytest.mark.parametrize(("key", "expected"), [(b"123456789", 12739), (b"", 0), (b"foo", 12182), (b"bar", 5061)])
def test_slot_vectors(key: bytes, expected: int) -> None:
    assert slot(key) == expected == crc16(key) % 16384


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("GET", "k"), b"k"),
        (("GET", ""), b""),
        (("SET", "a\r\n$1\r\nb", "v"), b"a\r\n$1\r\nb"),
        (("DEL", "{t}a", "{t}b"), b"{t}a"),
        (("EVALSHA", "0" * 40, 2, "k1", "k2", "x"), b"k1"),
        (("EVAL", "return 1\r\n", 1, "k1"), b"k1"),
        (("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM"), b"s"),
        (("XREADGROUP", "GROUP", "g", "c", "COUNT", 5, "STREAMS", "s", ">"), b"s"),
        (("XADD", "vz:events", "MAXLEN", "~", 5, "*", "a", "b"), b"vz:events"),
        (("SPUBLISH", "vz:org:acme", "x"), b"vz:org:acme"),
        (("PUBLISH", "vz:org:acme", "x"), None),
        (("PING",), None),
        (("INFO", "server"), None),
    ],
)
def test_the_key_of_a_command(command: tuple[str | int, ...], key: bytes | None) -> None:
    assert key_of(pack(*command)) == key


@given(st.binary(), st.binary())
def test_the_key_of_a_template(key: bytes, value: bytes) -> None:
    assert key_of(pack_set(key, value, 60)) == key


def crc16(data: bytes) -> int:
    """CRC-16/XMODEM bit by bit: polynomial 0x1021, initial value 0."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


SHA = "63513ef721c1dcd34dc697552e11c6fa5356c64c"
WRAPPED = f"ERR Error running script (call to f_{SHA}): @user_script:1: @user_script: 1: "


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        # Redis 6.2 as it speaks, Redis 7 and Valkey as they do.
        (WRAPPED + "-OOM command not allowed when used memory > 'maxmemory'.", "OOM", "command not allowed"),
        (WRAPPED + "-MISCONF Redis is configured to save RDB snapshots, but", "MISCONF", "Redis is configured"),
        (WRAPPED + "-NOREPLICAS Not enough good replicas to write.", "NOREPLICAS", "Not enough"),
        (WRAPPED + "-READONLY You can't write against a read only replica.", "READONLY", "You can't"),
        (WRAPPED + "-LOADING Redis is loading the dataset in memory", "LOADING", "Redis is loading"),
        (WRAPPED + "-MASTERDOWN Link with MASTER is down", "MASTERDOWN", "Link"),
        (WRAPPED + "-CLUSTERDOWN The cluster is down", "CLUSTERDOWN", "The cluster"),
        (WRAPPED + "-TRYAGAIN Multiple keys request", "TRYAGAIN", "Multiple"),
        (WRAPPED + "-MOVED 3999 127.0.0.1:6381", "MOVED", "3999 127.0.0.1:6381"),
        (
            f"ERR Error running script (call to f_{SHA}): @user_script:71: WRONGTYPE Operation against a key",
            "WRONGTYPE",
            "Operation against",
        ),
        (WRAPPED + "The user executing the script can't run this command or subcommand", "NOPERM", "Error running"),
        (WRAPPED + "The user executing the script can't access at least one of the keys", "NOPERM", "Error running"),
        ("ERR ACL failure in script: User u has no permissions to run the 'set' command", "NOPERM", "ACL failure"),
        ("OOM command not allowed when used memory > 'maxmemory'. script: on @user_script:1.", "OOM", "command"),
        # No error of another kind.
        (WRAPPED + "Unknown Redis command called from Lua script", "ERR", "Error running script"),
        (f"ERR Error running script (call to f_{SHA}): @user_script:3: user_script:3: attempt to", "ERR", "Error"),
        ("ERR syntax error", "ERR", "syntax error"),
        ("ERR", "ERR", ""),
        ("", "", ""),
    ],
)
def test_an_error_within_a_script_has_the_code_of_the_command(text: str, code: str, message: str) -> None:
    reply = ReplyError(text)
    assert reply.code == code
    assert reply.message.startswith(message)
