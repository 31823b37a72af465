"""Vectors of RFC 6455 section 5 as byte literals, for both views, each whole, in pieces and with a tail."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vizora_rt.errors import INVALID_UTF8, PROTOCOL_ERROR, TOO_BIG, Close
from vizora_rt.wire.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_STATUS,
    PING,
    PONG,
    TEXT,
    apply_mask,
    close_payload,
    encode_frame,
    encode_masked,
    parse_close,
    parse_frame,
    parse_header,
    xor_mask,
)

SERVER, CLIENT = True, False
"""Whose view: what `masked` says."""

ZERO = b"\0\0\0\0"

# The examples of section 5.7 first. (view, bytes, opcode, fin, payload)
FRAMES = [
    (CLIENT, b"\x81\x05\x48\x65\x6c\x6c\x6f", TEXT, True, b"Hello"),
    (SERVER, b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", TEXT, True, b"Hello"),
    (CLIENT, b"\x01\x03\x48\x65\x6c", TEXT, False, b"Hel"),
    (CLIENT, b"\x80\x02\x6c\x6f", CONTINUATION, True, b"lo"),
    (CLIENT, b"\x89\x05\x48\x65\x6c\x6c\x6f", PING, True, b"Hello"),
    (SERVER, b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", PONG, True, b"Hello"),
    (CLIENT, b"\x82\x7e\x01\x00" + bytes(range(256)), BINARY, True, bytes(range(256))),
    (CLIENT, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00" + bytes(65536), BINARY, True, bytes(65536)),
    # Nothing in it, and every opcode.
    (SERVER, b"\x81\x80" + ZERO, TEXT, True, b""),
    (SERVER, b"\x81\x81\x01\x00\x00\x00\x60", TEXT, True, b"a"),
    (SERVER, b"\x81\x82\x01\x02\x00\x00\x60\x60", TEXT, True, b"ab"),
    (SERVER, b"\x00\x80" + ZERO, CONTINUATION, False, b""),
    (SERVER, b"\x80\x80\x01\x02\x03\x04", CONTINUATION, True, b""),
    (SERVER, b"\x02\x81\xff\x00\x00\x00\xff", BINARY, False, b"\0"),
    (SERVER, b"\x88\x80" + ZERO, CLOSE, True, b""),
    (SERVER, b"\x88\x82\x00\x01\x00\x00\x03\xe9", CLOSE, True, b"\x03\xe8"),
    (SERVER, b"\x89\x80" + ZERO, PING, True, b""),
    (CLIENT, b"\x8a\x00", PONG, True, b""),
    # The borders of the three length encodings.
    (SERVER, b"\x81\xfd" + ZERO + b"x" * 125, TEXT, True, b"x" * 125),
    (SERVER, b"\x81\xfe\x00\x7e" + ZERO + b"x" * 126, TEXT, True, b"x" * 126),
    (SERVER, b"\x81\xfe\x00\x7f" + ZERO + b"x" * 127, TEXT, True, b"x" * 127),
    (SERVER, b"\x81\xfe\xff\xff" + ZERO + b"x" * 65535, TEXT, True, b"x" * 65535),
    (SERVER, b"\x81\xff\x00\x00\x00\x00\x00\x01\x00\x00" + ZERO + b"x" * 65536, TEXT, True, b"x" * 65536),
    (CLIENT, b"\x81\x7d" + b"x" * 125, TEXT, True, b"x" * 125),
    (CLIENT, b"\x81\x7e\x00\x7e" + b"x" * 126, TEXT, True, b"x" * 126),
    (CLIENT, b"\x81\x7e\xff\xff" + b"x" * 65535, TEXT, True, b"x" * 65535),
    (SERVER, b"\x89\xfd" + ZERO + b"p" * 125, PING, True, b"p" * 125),
    # A mask that looks like the length of a longer form.
    (SERVER, b"\x81\x81\x00\xc8\x00\x00\x61", TEXT, True, b"a"),
    (SERVER, b"\x81\x82\x00\x7e\x00\x00\x61\x1c", TEXT, True, b"ab"),
    # A parser of frames does not look at the text.
    (SERVER, b"\x81\x82" + ZERO + b"\xff\xfe", TEXT, True, b"\xff\xfe"),
]

# (view, bytes, error), at a limit of 1000. Each is an error as soon as its last byte is there, and not before.
ERRORS = [
    # RSV bits (5.2): no extension was negotiated.
    (SERVER, b"\xc1\x80", PROTOCOL_ERROR),
    (SERVER, b"\xa1\x80", PROTOCOL_ERROR),
    (SERVER, b"\x91\x80", PROTOCOL_ERROR),
    (CLIENT, b"\xc1\x00", PROTOCOL_ERROR),
    # Reserved opcodes (5.2).
    *((SERVER, bytes((0x80 | opcode, 0x80)), PROTOCOL_ERROR) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
    *((CLIENT, bytes((0x80 | opcode, 0x00)), PROTOCOL_ERROR) for opcode in (3, 7, 11, 15)),
    # The mask (5.1): a client must, a server must not.
    (SERVER, b"\x81\x05", PROTOCOL_ERROR),
    (SERVER, b"\x81\x7e", PROTOCOL_ERROR),
    (SERVER, b"\x81\x7f", PROTOCOL_ERROR),
    (SERVER, b"\x88\x00", PROTOCOL_ERROR),
    (CLIENT, b"\x81\x85", PROTOCOL_ERROR),
    (CLIENT, b"\x8a\x80", PROTOCOL_ERROR),
    # Control frames (5.5): at most 125 bytes, never fragmented.
    (SERVER, b"\x89\xfe", PROTOCOL_ERROR),
    (SERVER, b"\x88\xff", PROTOCOL_ERROR),
    (SERVER, b"\x8a\xfe", PROTOCOL_ERROR),
    (SERVER, b"\x09\x80", PROTOCOL_ERROR),
    (SERVER, b"\x08\x80", PROTOCOL_ERROR),
    (SERVER, b"\x0a\x80", PROTOCOL_ERROR),
    (CLIENT, b"\x89\x7e", PROTOCOL_ERROR),
    (CLIENT, b"\x09\x00", PROTOCOL_ERROR),
    # Lengths (5.2): the shortest encoding, and no top bit.
    (SERVER, b"\x81\xfe\x00\x00", PROTOCOL_ERROR),
    (SERVER, b"\x81\xfe\x00\x7d", PROTOCOL_ERROR),
    (SERVER, b"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff", PROTOCOL_ERROR),
    (SERVER, b"\x82\xff\x00\x00\x00\x00\x00\x00\x00\x05", PROTOCOL_ERROR),
    (SERVER, b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00", PROTOCOL_ERROR),
    (SERVER, b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff", PROTOCOL_ERROR),
    (CLIENT, b"\x82\x7e\x00\x7d", PROTOCOL_ERROR),
    (CLIENT, b"\x82\x7f\x80\x00\x00\x00\x00\x00\x00\x00", PROTOCOL_ERROR),
    # The limit holds from the header on.
    (SERVER, b"\x81\xfe\x03\xe9", TOO_BIG),
    (SERVER, b"\x01\xfe\x03\xe9", TOO_BIG),
    (SERVER, b"\x00\xfe\x03\xe9", TOO_BIG),
    (SERVER, b"\x82\xfe\xff\xff", TOO_BIG),
    (SERVER, b"\x81\xff\x00\x00\x00\x00\x00\x01\x00\x00", TOO_BIG),
    (SERVER, b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff", TOO_BIG),
    (SERVER, b"\x81\xff\x00\xc8\x00\x00\x00\x00\x00\x00", TOO_BIG),
    (CLIENT, b"\x82\x7e\x03\xe9", TOO_BIG),
]


def name(value: object) -> str | None:
    if isinstance(value, bytes):
        return value[:14].hex() + ("..." if len(value) > 14 else "")
    return value.name if isinstance(value, Close) else None


@pytest.mark.parametrize(("view", "data", "opcode", "fin", "payload"), FRAMES, ids=name)
class TestFrame:
    def test_whole(self, view: bool, data: bytes, opcode: int, fin: bool, payload: bytes) -> None:
        frame = parse_frame(data, 0, 65536, view)
        assert frame == (opcode, fin, payload, len(data))
        assert isinstance(frame, tuple)
        assert type(frame[2]) is bytes

    def test_in_pieces(self, view: bool, data: bytes, opcode: int, fin: bool, payload: bytes) -> None:
        for size in {*range(min(len(data), 20)), len(data) // 2, len(data) - 1}:
            assert parse_frame(data[:size], 0, 65536, view) is None

    def test_with_a_tail(self, view: bool, data: bytes, opcode: int, fin: bool, payload: bytes) -> None:
        for tail in (b"\x81", b"\xff" * 9, bytes(300), data):
            assert parse_frame(data + tail, 0, 65536, view) == (opcode, fin, payload, len(data))

    def test_behind_a_head(self, view: bool, data: bytes, opcode: int, fin: bool, payload: bytes) -> None:
        head = b"\xff" * 11
        assert parse_frame(head + data, 11, 65536, view) == (opcode, fin, payload, 11 + len(data))
        assert parse_frame(head + data[:-1], 11, 65536, view) is None

    def test_from_a_bytearray(self, view: bool, data: bytes, opcode: int, fin: bool, payload: bytes) -> None:
        frame = parse_frame(bytearray(data), 0, 65536, view)
        assert frame == (opcode, fin, payload, len(data))
        assert isinstance(frame, tuple)
        assert type(frame[2]) is bytes

    def test_limits(self, view: bool, data: bytes, opcode: int, fin: bool, payload: bytes) -> None:
        good = (opcode, fin, payload, len(data))
        assert parse_frame(data, 0, 0, view) == good
        if opcode >= CLOSE:
            assert parse_frame(data, 0, 1, view) == good
        elif len(payload) > 1:
            assert parse_frame(data, 0, len(payload), view) == good
            assert parse_frame(data, 0, len(payload) - 1, view) == TOO_BIG

    def test_header(self, view: bool, data: bytes, opcode: int, fin: bool, payload: bytes) -> None:
        start = len(data) - len(payload)
        assert parse_header(data[:start], 0, 65536, view) == (opcode, fin, len(payload), start)
        assert parse_header(b"??" + data[:start], 2, 65536, view) == (opcode, fin, len(payload), start + 2)
        for size in range(start):
            assert parse_header(data[:size], 0, 65536, view) is None

    def test_encoded_again(self, view: bool, data: bytes, opcode: int, fin: bool, payload: bytes) -> None:
        if view == CLIENT:
            assert encode_frame(opcode, payload, fin) == data
        else:
            start = len(data) - len(payload)
            assert encode_masked(opcode, payload, data[start - 4 : start], fin) == data


@pytest.mark.parametrize(("view", "data", "error"), ERRORS, ids=name)
class TestError:
    def test_whole(self, view: bool, data: bytes, error: Close) -> None:
        assert parse_frame(data, 0, 1000, view) is error
        assert parse_header(data, 0, 1000, view) is error

    def test_not_before_it_is_known(self, view: bool, data: bytes, error: Close) -> None:
        for size in range(len(data)):
            assert parse_frame(data[:size], 0, 1000, view) is None

    def test_with_a_tail(self, view: bool, data: bytes, error: Close) -> None:
        for tail in (b"\0", b"\0" * 7, b"\0" * 100_000):
            assert parse_frame(data + tail, 0, 1000, view) is error

    def test_behind_a_head(self, view: bool, data: bytes, error: Close) -> None:
        assert parse_frame(b"\x81\x85" + data, 2, 1000, view) is error


@pytest.mark.parametrize("size", [*range(20), 125, 126, 1000, 65535, 65536])
def test_masks_alike_with_and_without_c(size: int) -> None:
    data, mask = random.Random(size).randbytes(size), b"\x00\x9a\xff\x17"
    expected = bytes(byte ^ mask[index % 4] for index, byte in enumerate(data))
    for mask_with in (apply_mask, xor_mask):
        assert mask_with(data, mask) == expected
        assert mask_with(bytearray(data), bytearray(mask)) == expected
        assert mask_with(mask_with(data, mask), mask) == data


def test_a_larger_frame_has_the_long_length() -> None:
    data = encode_frame(BINARY, bytes(70_000))
    assert data[:10] == b"\x82\x7f\x00\x00\x00\x00\x00\x01\x11\x70"
    assert encode_frame(BINARY, bytes(70_000), fin=False)[:10] == b"\x02\x7f\x00\x00\x00\x00\x00\x01\x11\x70"
    assert encode_masked(BINARY, bytes(70_000), ZERO)[:14] == b"\x82\xff\x00\x00\x00\x00\x00\x01\x11\x70\0\0\0\0"


@given(
    st.sampled_from((CONTINUATION, TEXT, BINARY)),
    st.binary(max_size=300) | st.integers(65530, 65540).map(bytes),
    st.binary(min_size=4, max_size=4),
    st.booleans(),
)
def test_round_trip(opcode: int, payload: bytes, mask: bytes, fin: bool) -> None:
    masked, plain = encode_masked(opcode, payload, mask, fin), encode_frame(opcode, payload, fin)
    assert parse_frame(masked, 0, 0, True) == (opcode, fin, payload, len(masked))
    assert parse_frame(plain, 0, 0, False) == (opcode, fin, payload, len(plain))


@given(st.binary(max_size=64), st.integers(0, 70), st.sampled_from((0, 1, 60, 1000)), st.booleans())
def test_any_bytes_are_a_frame_or_a_beginning_or_an_error(data: bytes, pos: int, limit: int, masked: bool) -> None:
    frame = parse_frame(data, pos, limit, masked)
    if isinstance(frame, tuple):
        opcode, _, payload, end = frame
        assert pos < end <= len(data)
        assert not limit or opcode >= CLOSE or len(payload) <= limit
    else:
        assert frame is None or frame in (PROTOCOL_ERROR, TOO_BIG)


@given(st.binary(max_size=40), st.booleans())
def test_more_bytes_never_change_a_verdict(data: bytes, masked: bool) -> None:
    verdict = None
    for size in range(len(data) + 1):
        now = parse_frame(data[:size], 0, 1000, masked)
        assert verdict is None or now == verdict
        verdict = now


# Section 7.4: 1004 to 1006 and 1015 are never sent; below 1000, 1016 to 2999 and from 5000 on nothing is defined.
@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999])
def test_close_codes_that_may_be_sent(code: int) -> None:
    assert parse_close(code.to_bytes(2, "big")) == (code, "")
    assert parse_close(code.to_bytes(2, "big") + "für immer".encode()) == (code, "für immer")


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_close_codes_that_may_not(code: int) -> None:
    assert parse_close(code.to_bytes(2, "big")) is PROTOCOL_ERROR
    assert parse_close(code.to_bytes(2, "big") + b"bye") is PROTOCOL_ERROR


def test_close_without_a_code() -> None:
    assert parse_close(b"") == (NO_STATUS, "")
    assert close_payload(NO_STATUS, "nobody reads this") == b""


def test_close_of_one_byte() -> None:
    assert parse_close(b"\x03") is PROTOCOL_ERROR


@pytest.mark.parametrize("reason", [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80"])
def test_close_with_a_reason_that_is_not_utf8(reason: bytes) -> None:
    assert parse_close(b"\x03\xe8" + reason) is INVALID_UTF8


def test_a_long_reason_is_cut_between_characters() -> None:
    assert close_payload(1000, "x" * 123) == b"\x03\xe8" + b"x" * 123
    assert close_payload(1000, "x" * 124) == b"\x03\xe8" + b"x" * 123
    assert close_payload(1000, "é" * 62) == b"\x03\xe8" + "é".encode() * 61
    assert close_payload(4500, "a\ud800b") == b"\x11\x94a?b"
