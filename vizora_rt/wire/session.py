"""One connection's RFC 6455 life: messages out of bytes, fragments, UTF-8, ping and pong, the close handshake.

Four verbs: `receive` bytes and get whole messages; `send`; `close`; `take_output` and write it. A session does no I/O
and never raises on what a peer sent: a protocol error closes it, and `closed_by` says why.

A server receives in shares: `receive(data, most)` parses at most that many frames and returns at most one large
message. `pending` says that more of what was read waits; `receive(b"", most)` goes on with it. `small_frames` counts
the frames that carry next to nothing, for a limit of their rate.

What a session holds is bounded by one read and one message. A data frame that is not whole is unmasked as it arrives
and appended to the one bytearray of its message, so a message costs its own bytes whatever the number of its fragments
(empty ones cost nothing) and of the reads that it came in. Besides that there is at most an unfinished header or
control frame. Every ping is answered: a server's pong is four bytes shorter than the client's ping, so the answers to
a read never outgrow it.

Over 300 lines because the life of a connection is one machine of states.
"""

from codecs import utf_8_decode
from random import getrandbits
from typing import Final

from vizora_rt.errors import INVALID_UTF8, PROTOCOL_ERROR, TOO_BIG, Close
from vizora_rt.wire.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
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
    unpack_medium,
)

OPEN: Final = 0
CLOSING: Final = 1
"""Our close frame is out, the peer's is awaited; data still arriving is dropped (section 1.4)."""
CLOSED: Final = 2
"""Both close frames, or a protocol error: nothing is read any more, replies already owed may still go out."""


LARGE: Final = 2048
"""Characters. A longer message is worth a share of its own: to act on 64 KiB takes a millisecond."""

SMALL_FRAGMENT: Final = 1024
"""Bytes. A fragment with fewer counts as a small frame. Clients cut messages at 4 KiB and more, proxies not at all."""


class _Message:
    """A message of which more is to come: its payload so far, and what is known of the frame that is partly here."""

    __slots__ = ("checked", "data", "fin", "mask", "opcode", "remaining")

    def __init__(self, opcode: int) -> None:
        self.opcode = opcode
        self.data = bytearray()
        self.checked = 0
        self.remaining = 0
        self.mask = b""
        self.fin = False


class Session:
    """The protocol state of one connection, a server's unless `client`. 20,000 live at once: keep it small."""

    __slots__ = (
        "_held",
        "_large",
        "_message",
        "_out",
        "_rest",
        "_tail",
        "client",
        "close_received",
        "closed_by",
        "ended",
        "limit",
        "pending",
        "small_frames",
        "state",
    )

    def __init__(self, limit: int, client: bool = False) -> None:
        self.limit = limit
        self.client = client
        self.state: int = OPEN
        self.closed_by: Close | None = None
        self.close_received: int | None = None
        self.ended = False
        self.pending = False
        """Whether something that was received waits for the next call of `receive`."""
        self.small_frames = 0
        """Pings, pongs, and fragments of fewer than SMALL_FRAGMENT bytes; the owner sets it back to 0."""
        self._held = b""
        self._rest: tuple[bytes, int] | None = None
        self._large: str | bytes | None = None
        self._message: _Message | None = None
        self._out: list[bytes] | None = None
        self._tail: bytes | None = None

    def receive(self, data: bytes, most: int = 0) -> list[str | bytes]:
        """Take what was read; return the messages that are whole now, in order: str for text, bytes for binary.

        With `most` at most so many frames are parsed, and a message longer than LARGE is returned alone: while
        `pending`, call again, and with no new data.
        """
        messages: list[str | bytes] = []
        state = self.state
        if state == CLOSED:
            return messages
        pos = 0
        if self.pending:
            self.pending = False
            if self._rest is not None:
                rest, pos = self._rest
                self._rest = None
                data = rest[pos:] + data if data else rest
                pos = 0 if data is not rest else pos
            if self._large is not None:
                messages.append(self._large)
                self._large = None
                self._wait(data, pos)
                return messages if state == OPEN else []
        elif self._held:
            data = self._held + data
            self._held = b""
        elif self._message is not None and self._message.remaining:
            pos = self._resume(self._message, data, messages)
            if self.state == CLOSED:
                return messages
            if most and messages and len(messages[0]) > LARGE:
                self._wait(data, pos)
                return self._park(messages)
        size, masked = len(data), not self.client
        left = most
        while pos < size:
            # What players send is a whole masked text frame of 126 to 2048 bytes: `parse_frame` does the same, but its
            # call and its tuple cost 140 ns of 740.
            if size - pos > 7 and data[pos] == 0x81 and data[pos + 1] == 0xFE and masked and self._message is None:
                length, mask = unpack_medium(data, pos)
                end = pos + 8 + length
                if end <= size and 125 < length <= LARGE and length <= self.limit:
                    try:
                        messages.append(apply_mask(data[pos + 8 : end], mask).decode())
                    except UnicodeDecodeError:
                        self._fail(INVALID_UTF8)
                        break
                    pos = end
                    left -= 1
                    if not left:
                        self._wait(data, pos)
                        break
                    continue
            frame = parse_frame(data, pos, self.limit, masked)
            if not isinstance(frame, tuple):
                if frame is None:
                    self._hold(data, pos)
                else:
                    self._fail(frame)
                break
            opcode, fin, payload, pos = frame
            if opcode == TEXT and fin and self._message is None:
                try:
                    messages.append(payload.decode())
                except UnicodeDecodeError:
                    self._fail(INVALID_UTF8)
                    break
            else:
                self._take(opcode, fin, payload, messages)
                if self.state == CLOSED:
                    break
            left -= 1
            if most and messages and len(messages[-1]) > LARGE:
                self._wait(data, pos)
                return self._park(messages)
            if not left:
                self._wait(data, pos)
                break
        return messages if state == OPEN else []

    def _park(self, messages: list[str | bytes]) -> list[str | bytes]:
        """Keep the large message that is the last of `messages` for the next call."""
        self._large = messages.pop()
        self.pending = True
        return messages if self.state == OPEN else []

    def _wait(self, data: bytes, pos: int) -> None:
        """Keep what stands behind `pos` for the next call."""
        if pos < len(data):
            self._rest = data, pos
            self.pending = True

    def send(self, payload: bytes) -> None:
        """Queue a text message that is already UTF-8. Ignored once our close frame is on its way."""
        if self.state == OPEN or self._tail is not None:
            frame = encode_masked(TEXT, payload, _mask()) if self.client else encode_frame(TEXT, payload)
            if self._out is None:
                self._out = [frame]
            else:
                self._out.append(frame)

    def send_binary(self, payload: bytes) -> None:
        """Queue a binary message."""
        if self.state == OPEN or self._tail is not None:
            self._queue(self._encode(BINARY, payload))

    def send_raw(self, frame: bytes) -> None:
        """Queue a frame that was encoded once for many sessions."""
        if self.state == OPEN or self._tail is not None:
            if self._out is None:
                self._out = [frame]
            else:
                self._out.append(frame)

    def ping(self, payload: bytes = b"") -> None:
        """Queue a ping; `payload` is at most 125 bytes."""
        if self.state == OPEN:
            self._queue(self._encode(PING, payload))

    def fail(self, cause: Close) -> None:
        """End it at once (section 7.1.7): `cause` is the last that is sent, and nothing more is read."""
        if self.state == OPEN:
            self._fail(cause)
        self.state = CLOSED
        self.ended = True

    def close(self, cause: Close) -> None:
        """Begin the close handshake. The first cause counts: ignored when the session already closes."""
        if self.state == OPEN:
            self._queue(self._encode(CLOSE, close_payload(cause.code, cause.text)))
            self.state = CLOSING
            self.closed_by = cause

    def take_output(self, last: bool = True) -> bytes:
        """All that is to be written, in one piece; empty when there is nothing.

        Without `last` the close frame that answers an error or the peer's close waits: more may be sent before it.
        """
        out, tail = self._out, self._tail
        if tail is not None and last:
            self._tail = None
            out = [*out, tail] if out else [tail]
        if out is None:
            return b""
        self._out = None
        return out[0] if len(out) == 1 else b"".join(out)

    def _encode(self, opcode: int, payload: bytes) -> bytes:
        return encode_masked(opcode, payload, _mask()) if self.client else encode_frame(opcode, payload)

    def _queue(self, frame: bytes) -> None:
        if self._out is None:
            self._out = [frame]
        else:
            self._out.append(frame)

    def _fail(self, cause: Close) -> None:
        """Fail the connection (section 7.1.7): nothing more is read, not even the peer's close frame."""
        if self.state == OPEN:
            # Replies to the messages before the error are sent first: the close frame waits for take_output.
            self._tail = self._encode(CLOSE, close_payload(cause.code, cause.text))
            self.closed_by = cause
        self.state = CLOSED
        self.ended = True
        self._forget()

    def _forget(self) -> None:
        """Nothing more is read: what waits is dropped."""
        self.pending = False
        self._rest = self._large = self._message = None

    def _hold(self, data: bytes, pos: int) -> None:
        """Keep the frame that begins at `pos` and is not whole."""
        header = parse_header(data, pos, self.limit, not self.client)
        if not isinstance(header, tuple) or header[0] >= CLOSE:
            self._held = data[pos:]
            return
        opcode, fin, length, start = header
        message = self._begin(opcode, length, fin)
        if message is not None:
            message.remaining = length
            message.fin = fin
            message.mask = b"" if self.client else data[start - 4 : start]
            if start < len(data):
                self._resume(message, data[start:], [])

    def _resume(self, message: _Message, data: bytes, messages: list[str | bytes]) -> int:
        """Move what `data` has of the unfinished frame into its message; return how much that was."""
        taken = min(message.remaining, len(data))
        piece = data if taken == len(data) else data[:taken]
        mask = message.mask
        if mask:
            piece = apply_mask(piece, mask)
            turn = taken & 3
            message.mask = mask[turn:] + mask[:turn]
        message.data += piece
        message.remaining -= taken
        self._advance(message, message.fin and not message.remaining, messages)
        return taken

    def _take(self, opcode: int, fin: bool, payload: bytes, messages: list[str | bytes]) -> None:
        """Act on a whole frame that is not simply a text message."""
        if opcode == PING:
            self.small_frames += 1
            if self.state == OPEN:
                self._queue(self._encode(PONG, payload))
        elif opcode == CLOSE:
            self._close_received(payload)
        elif opcode == PONG:
            self.small_frames += 1
        else:
            message = self._begin(opcode, len(payload), fin)
            if message is not None:
                message.data += payload
                self._advance(message, fin, messages)

    def _begin(self, opcode: int, length: int, fin: bool) -> _Message | None:
        """The message that a data frame begins or continues (section 5.4), or None after an error."""
        message = self._message
        if length < SMALL_FRAGMENT and (opcode == CONTINUATION or not fin):
            self.small_frames += 1
        if (opcode == CONTINUATION) is (message is None):
            self._fail(PROTOCOL_ERROR)
            return None
        if message is None:
            message = self._message = _Message(opcode)
        elif self.limit and len(message.data) + length > self.limit:
            self._fail(TOO_BIG)
            return None
        return message

    def _advance(self, message: _Message, whole: bool, messages: list[str | bytes]) -> None:
        """Deliver a message that is whole; fail early on text that can no longer become UTF-8 (section 8.1)."""
        try:
            if whole:
                self._message = None
                messages.append(message.data.decode() if message.opcode == TEXT else bytes(message.data))
            elif message.opcode == TEXT:
                # Only what is new: a character cut in two stays unchecked, at most three bytes of it.
                message.checked += utf_8_decode(message.data[message.checked :], "strict", False)[1]
        except UnicodeDecodeError:
            self._fail(INVALID_UTF8)

    def _close_received(self, payload: bytes) -> None:
        parsed = parse_close(payload)
        if isinstance(parsed, Close):
            self._fail(parsed)
            return
        self.close_received = parsed[0]
        if self.state == OPEN:
            # Echo the code (section 5.5.1), after the replies to the messages before it.
            self._tail = self._encode(CLOSE, close_payload(parsed[0]))
        self.state = CLOSED
        # The server closes TCP first (section 7.1.1); a client waits for that.
        self.ended = not self.client
        self._forget()


def _mask() -> bytes:
    # The mask protects caches between a browser and a server from scripts (section 10.3). No script chooses what our
    # players send, so the fast generator will do.
    return getrandbits(32).to_bytes(4, "little")
