"""RFC 6455 framing: bytes -> one frame, a frame -> bytes, the mask, the body of a close frame.

`parse_frame` is a restartable pure function: a frame, `None` (need more bytes), or the `Close` that the peer has
earned. It reads from any position of any buffer, keeps nothing and never raises on what a peer sent.
"""

from struct import Struct
from typing import Final

from vizora_rt.errors import INVALID_UTF8, PROTOCOL_ERROR, TOO_BIG, Close

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

NO_STATUS: Final = 1005
"""Stands for "the close frame carried no code" (RFC 6455 section 7.4.1); never sent."""

Frame = tuple[int, bool, bytes, int]
"""opcode, fin, unmasked payload, position after the frame. A plain tuple: the cheapest object there is."""

Header = tuple[int, bool, int, int]
"""opcode, fin, payload length, position of the payload. In a masked frame the mask is the 4 bytes before it."""

unpack_medium: Final = Struct(">xxH4s").unpack_from
"""Length and mask of a masked frame of 126 to 65535 bytes: one call is cheaper than two indices and a slice."""

_OPCODES: Final = frozenset((CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))
_SHORT: Final = {opcode: tuple(bytes((opcode | 0x80, size)) for size in range(126)) for opcode in _OPCODES}
"""Headers of whole frames of up to 125 bytes by opcode and size: a third of the time that it takes to build one."""
_pack_medium: Final = Struct(">BBH").pack
_CLOSE_CODES: Final = frozenset((*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)))


def xor_mask(data: bytes | bytearray | memoryview, mask: bytes | bytearray) -> bytes:
    """`apply_mask` without C: one XOR of two big integers, not one of each byte."""
    size = len(data)
    pattern = (bytes(mask) * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(pattern, "little")).to_bytes(size, "little")


try:
    from websockets.speedups import apply_mask as apply_mask
except ImportError:  # pragma: no cover - the wheel for this platform was built without its C extension
    apply_mask = xor_mask


def parse_frame(buffer: bytes | bytearray, pos: int, limit: int, masked: bool = True) -> Frame | Close | None:
    """The frame that begins at `pos`. `limit` bounds the payload of data frames, 0 is no limit.

    `masked` is what the peer must do: True for a server reading a client, False for a client reading a server.
    """
    # The usual cases first, a whole masked text frame; whatever does not fit falls through to the full checks.
    size = len(buffer)
    if masked and size - pos > 7 and buffer[pos] == 0x81:
        second = buffer[pos + 1]
        if second == 0xFE:
            length, mask = unpack_medium(buffer, pos)
            end = pos + 8 + length
            if end <= size and 125 < length <= limit:
                return TEXT, True, apply_mask(buffer[pos + 8 : end], mask), end
        elif 0x7F < second < 0xFE:
            start = pos + 6
            end = start + second - 0x80
            if end <= size and limit > 125:
                return TEXT, True, apply_mask(buffer[start:end], buffer[pos + 2 : start]), end
    header = parse_header(buffer, pos, limit, masked)
    if not isinstance(header, tuple):
        return header
    opcode, fin, length, start = header
    end = start + length
    if end > size:
        return None
    if masked:
        return opcode, fin, apply_mask(buffer[start:end], buffer[start - 4 : start]), end
    return opcode, fin, bytes(buffer[start:end]), end


def parse_header(buffer: bytes | bytearray, pos: int, limit: int, masked: bool = True) -> Header | Close | None:
    """The header that begins at `pos`, as `parse_frame` but before the payload is there."""
    size = len(buffer)
    if size - pos < 2:
        return None
    first, second = buffer[pos], buffer[pos + 1]
    opcode, length, fin = first & 0x0F, second & 0x7F, first >= 0x80
    if first & 0x70 or opcode not in _OPCODES or (second >= 0x80) is not masked:
        return PROTOCOL_ERROR
    if opcode >= CLOSE and (length > 125 or not fin):
        return PROTOCOL_ERROR
    start = pos + 2
    if length > 125:
        extra, least = (2, 126) if length == 126 else (8, 65536)
        start += extra
        if size < start:
            return None
        length = int.from_bytes(buffer[start - extra : start], "big")
        # "The minimal number of bytes MUST be used", and the top bit of the long form is 0 (section 5.2).
        if length < least or length >> 63:
            return PROTOCOL_ERROR
    if length > limit and limit and opcode < CLOSE:
        return TOO_BIG
    if masked:
        start += 4
        if size < start:
            return None
    return opcode, fin, length, start


def encode_frame(opcode: int, payload: bytes, fin: bool = True) -> bytes:
    """A frame as a server sends it."""
    size = len(payload)
    if size < 126 and fin:
        return _SHORT[opcode][size] + payload
    return _header(opcode | 0x80 if fin else opcode, size, 0) + payload


def encode_masked(opcode: int, payload: bytes, mask: bytes, fin: bool = True) -> bytes:
    """A frame as a client sends it; `mask` is 4 bytes."""
    return _header(opcode | 0x80 if fin else opcode, len(payload), 0x80) + mask + apply_mask(payload, mask)


def _header(first: int, size: int, mask_bit: int) -> bytes:
    if size < 126:
        return bytes((first, mask_bit | size))
    if size < 65536:
        return _pack_medium(first, mask_bit | 126, size)
    return bytes((first, mask_bit | 127)) + size.to_bytes(8, "big")


def close_payload(code: int, reason: str = "") -> bytes:
    """The body of a close frame; a reason that does not fit a control frame is cut between characters."""
    if code == NO_STATUS:
        return b""
    text = reason.encode("utf-8", "replace")
    if len(text) > 123:
        text = text[:123].decode("utf-8", "ignore").encode()
    return code.to_bytes(2, "big") + text


def parse_close(payload: bytes) -> tuple[int, str] | Close:
    """Code and reason of a close frame (section 5.5.1), or what is wrong with it."""
    if not payload:
        return NO_STATUS, ""
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or code not in _CLOSE_CODES:
        return PROTOCOL_ERROR
    try:
        return code, payload[2:].decode()
    except UnicodeDecodeError:
        return INVALID_UTF8
