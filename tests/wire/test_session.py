"""A session against byte-literal conversations, against noise, and against another session over any chunking."""

import sys
import tracemalloc
from codecs import utf_8_decode
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from vizora_rt.errors import (
    INVALID_UTF8,
    NORMAL,
    PROTOCOL_ERROR,
    RESTARTING,
    SUPERSEDED,
    TOO_BIG,
    TOO_MANY_MESSAGES,
    Close,
)
from vizora_rt.wire import session as module
from vizora_rt.wire.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    encode_frame,
    encode_masked,
    parse_frame,
)
from vizora_rt.wire.session import CLOSED, CLOSING, OPEN, Session

LIMIT = 1000

SLACK = 14 + 125
"""What a session may hold besides a message: one frame header, one control frame's payload."""

MASK = b"\x37\xfa\x21\x3d"


def masked(opcode: int, payload: bytes = b"", fin: bool = True) -> bytes:
    """A client's frame."""
    return encode_masked(opcode, payload, MASK, fin)


def closing(code: int, reason: str = "") -> bytes:
    """A client's close frame."""
    return masked(CLOSE, code.to_bytes(2, "big") + reason.encode())


def closed(cause: Close) -> bytes:
    """The server's close frame for `cause`."""
    return encode_frame(CLOSE, cause.code.to_bytes(2, "big") + cause.text.encode())


def held(session: Session) -> int:
    """Bytes of the peer's that the session keeps."""
    return len(session._held) + (len(session._message.data) if session._message is not None else 0)


def feed(session: Session, pieces: Iterable[bytes]) -> tuple[list[str | bytes], bytes]:
    """All messages out of `pieces`, and all output."""
    messages: list[str | bytes] = []
    output = b""
    for piece in pieces:
        messages += session.receive(piece)
        output += session.take_output()
        assert held(session) <= (session.limit or sys.maxsize - SLACK) + SLACK
    return messages, output


def in_bytes(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


@dataclass
class Talk:
    """What a client sends to a server with a limit of 1000, and what comes of it."""

    data: bytes
    messages: list[str | bytes] = field(default_factory=list)
    output: bytes = b""
    state: int = OPEN
    closed_by: Close | None = None
    close_received: int | None = None


def error(cause: Close, data: bytes, *messages: str | bytes, output: bytes = b"") -> Talk:
    return Talk(data, list(messages), output + closed(cause), CLOSED, cause)


E_ACUTE = "é".encode()

TALKS = {
    # Whole messages.
    "nothing": Talk(b""),
    "hello": Talk(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", ["Hello"]),
    "empty text": Talk(masked(TEXT), [""]),
    "text of the usual size": Talk(masked(TEXT, b"x" * 280), ["x" * 280]),
    "eight of them": Talk(masked(TEXT, b"x" * 280) * 8, ["x" * 280] * 8),
    "all sizes": Talk(b"".join(masked(TEXT, b"x" * n) for n in range(140)), ["x" * n for n in range(140)]),
    "binary": Talk(masked(BINARY, b"\xff\0"), [b"\xff\0"]),
    "binary of the usual size": Talk(masked(BINARY, b"x" * 280) * 2, [b"x" * 280] * 2),
    "a fragment of the usual size": Talk(
        masked(TEXT, b"x" * 280, False) + masked(CONTINUATION, b"y" * 280), ["x" * 280 + "y" * 280]
    ),
    "empty binary": Talk(masked(BINARY), [b""]),
    "text and binary": Talk(masked(TEXT, b"a") + masked(BINARY, b"b") + masked(TEXT, b"c"), ["a", b"b", "c"]),
    "UTF-8": Talk(masked(TEXT, "κόσμε 🖥".encode() * 20), ["κόσμε 🖥" * 20]),
    # Fragments (5.4).
    "two fragments": Talk(masked(TEXT, b"Hel", False) + masked(CONTINUATION, b"lo"), ["Hello"]),
    "binary fragments": Talk(masked(BINARY, b"\xff", False) + masked(CONTINUATION, b"\xfe"), [b"\xff\xfe"]),
    "empty fragments": Talk(
        masked(TEXT, b"", False) + masked(CONTINUATION, b"", False) * 9 + masked(CONTINUATION), [""]
    ),
    "a character in two fragments": Talk(
        masked(TEXT, b"x" + E_ACUTE[:1], False) + masked(CONTINUATION, E_ACUTE[1:] + b"y"), ["xéy"]
    ),
    "a character in four fragments": Talk(
        masked(TEXT, b"\xf0", False)
        + masked(CONTINUATION, b"\x9f", False)
        + masked(CONTINUATION, b"\x96", False)
        + masked(CONTINUATION, b"\xa5"),
        ["🖥"],
    ),
    "a ping between fragments": Talk(
        masked(TEXT, b"Hel", False) + masked(PING, b"?") + masked(CONTINUATION, b"lo"), ["Hello"], b"\x8a\x01?"
    ),
    "a message after fragments": Talk(
        masked(TEXT, b"a", False) + masked(CONTINUATION, b"b") + masked(TEXT, b"c" * 200), ["ab", "c" * 200]
    ),
    "fragments up to the limit": Talk(masked(TEXT, b"x" * 600, False) + masked(CONTINUATION, b"x" * 400), ["x" * 1000]),
    "nothing to continue": error(PROTOCOL_ERROR, masked(CONTINUATION, b"x")),
    "nothing to continue, not final": error(PROTOCOL_ERROR, masked(CONTINUATION, b"x", False)),
    "nothing to continue any more": error(
        PROTOCOL_ERROR, masked(TEXT, b"a", False) + masked(CONTINUATION, b"b") + masked(CONTINUATION, b"c"), "ab"
    ),
    "text inside a message": error(PROTOCOL_ERROR, masked(TEXT, b"a", False) + masked(TEXT, b"b")),
    "usual text inside a message": error(PROTOCOL_ERROR, masked(TEXT, b"a", False) + masked(TEXT, b"b" * 280)),
    "binary inside a message": error(PROTOCOL_ERROR, masked(TEXT, b"a", False) + masked(BINARY, b"b", False)),
    # Ping and pong (5.5.2, 5.5.3).
    "ping": Talk(masked(PING), [], b"\x8a\x00"),
    "ping with a payload": Talk(masked(PING, b"x" * 125), [], b"\x8a\x7d" + b"x" * 125),
    "ten pings": Talk(
        b"".join(masked(PING, b"%d" % n) for n in range(10)), [], b"".join(b"\x8a\x01%d" % n for n in range(10))
    ),
    "an unasked pong": Talk(masked(PONG, b"here") + masked(TEXT, b"a"), ["a"]),
    "a long ping": error(PROTOCOL_ERROR, masked(PING, b"x" * 126)),
    "a ping in fragments": error(PROTOCOL_ERROR, masked(PING, b"x", False)),
    # Framing errors; frames have more of them in test_frames.
    "no mask": error(PROTOCOL_ERROR, masked(TEXT, b"a") + b"\x81\x01b", "a"),
    "RSV bit": error(PROTOCOL_ERROR, masked(TEXT, b"a") + b"\xc1\x80\0\0\0\0", "a"),
    "reserved opcode": error(PROTOCOL_ERROR, masked(PING) + b"\x83\x80\0\0\0\0", output=b"\x8a\x00"),
    "long form of a short length": error(PROTOCOL_ERROR, b"\x81\xfe\x00\x05" + b"\0" * 9),
    "long form of a length of 125": error(PROTOCOL_ERROR, b"\x81\xfe\x00\x7d" + bytes(129)),
    # The limit.
    "at the limit": Talk(masked(TEXT, b"x" * 1000), ["x" * 1000]),
    "above the limit": error(TOO_BIG, masked(TEXT, b"x" * 1001)),
    "above the limit, binary": error(TOO_BIG, masked(BINARY, b"x" * 1001)),
    "above the limit, announced": error(TOO_BIG, b"\x82\xff\0\0\0\x10\0\0\0\0"),
    "above the limit, in the longest form": error(TOO_BIG, b"\x81\xff\x00\xc8" + bytes(300)),
    "above the limit with its second fragment": error(
        TOO_BIG, masked(TEXT, b"x" * 600, False) + masked(CONTINUATION, b"x" * 401)
    ),
    "above the limit with its third": error(
        TOO_BIG,
        masked(BINARY, b"x" * 600, False) + masked(CONTINUATION, b"x" * 400, False) + masked(CONTINUATION, b"x", False),
    ),
    # UTF-8 (8.1).
    "invalid UTF-8": error(INVALID_UTF8, masked(TEXT, b"good") + masked(TEXT, b"\xff"), "good"),
    "invalid UTF-8 in a usual text": error(INVALID_UTF8, masked(TEXT, b"x" * 200 + b"\xc0\x80")),
    "a surrogate": error(INVALID_UTF8, masked(TEXT, b"\xed\xa0\x80")),
    "beyond Unicode": error(INVALID_UTF8, masked(TEXT, b"\xf4\x90\x80\x80")),
    "an unfinished character": error(INVALID_UTF8, masked(TEXT, b"x\xe2\x82")),
    "an unfinished character in the last fragment": error(
        INVALID_UTF8, masked(TEXT, b"x", False) + masked(CONTINUATION, b"\xe2\x82")
    ),
    "an invalid fragment": error(INVALID_UTF8, masked(TEXT, b"x\xc3", False) + masked(CONTINUATION, b"x", False)),
    # Close (5.5.1, 7.4).
    "close": Talk(closing(1000), [], b"\x88\x02\x03\xe8", CLOSED, None, 1000),
    "close without a code": Talk(masked(CLOSE), [], b"\x88\x00", CLOSED, None, 1005),
    "close with a reason": Talk(closing(1001, "gehe schlafen"), [], b"\x88\x02\x03\xe9", CLOSED, None, 1001),
    "close with a code of their own": Talk(closing(4999), [], b"\x88\x02\x13\x87", CLOSED, None, 4999),
    "close after messages": Talk(
        masked(TEXT, b"a") + masked(PING) + closing(1000), ["a"], b"\x8a\x00\x88\x02\x03\xe8", CLOSED, None, 1000
    ),
    "close inside a message": Talk(
        masked(TEXT, b"a", False) + closing(1000), [], b"\x88\x02\x03\xe8", CLOSED, None, 1000
    ),
    "close of one byte": error(PROTOCOL_ERROR, masked(CLOSE, b"\x03")),
    "close with a code that is never sent": error(PROTOCOL_ERROR, closing(1006)),
    "close with a code that nobody defined": error(PROTOCOL_ERROR, closing(2999)),
    "close with a reason that is no text": error(INVALID_UTF8, masked(CLOSE, b"\x03\xe8\xff")),
    "close in fragments": error(PROTOCOL_ERROR, masked(CLOSE, b"\x03\xe8", False)),
}


@pytest.mark.parametrize("talk", TALKS.values(), ids=list(TALKS))
class TestTalk:
    def check(self, session: Session, got: tuple[list[str | bytes], bytes], talk: Talk) -> None:
        assert got == (talk.messages, talk.output)
        assert session.state == talk.state
        assert session.closed_by is talk.closed_by
        assert session.close_received == talk.close_received
        assert bool(session.ended) == (talk.state == CLOSED)
        assert session.take_output() == b""
        assert held(session) == 0

    def test_whole(self, talk: Talk) -> None:
        session = Session(LIMIT)
        self.check(session, feed(session, [talk.data]), talk)

    def test_byte_by_byte(self, talk: Talk) -> None:
        session = Session(LIMIT)
        self.check(session, feed(session, in_bytes(talk.data)), talk)

    def test_in_two_pieces(self, talk: Talk) -> None:
        for cut in range(min(len(talk.data), 300)):
            session = Session(LIMIT)
            self.check(session, feed(session, [talk.data[:cut], talk.data[cut:]]), talk)

    def test_with_a_tail(self, talk: Talk) -> None:
        tail = masked(TEXT, b"the tail") + masked(PING, b"!")
        expected = talk
        if talk.state == OPEN:
            expected = Talk(b"", [*talk.messages, "the tail"], talk.output + b"\x8a\x01!")
        for pieces in ([talk.data + tail], [talk.data, tail], in_bytes(talk.data + tail)):
            session = Session(LIMIT)
            self.check(session, feed(session, pieces), expected)


@pytest.mark.parametrize("mask", [b"\x00\xc8\x00\x00", b"\x00\x7e\xfe\xfe", b"\xfe\x00\x00\xc8", b"\xff\xff\xff\xff"])
@pytest.mark.parametrize("before", [b"", encode_masked(BINARY, b"\xfe", bytes(4)), masked(TEXT, b"x" * 280)])
def test_a_mask_is_not_taken_for_a_length(mask: bytes, before: bytes) -> None:
    data = before + encode_masked(TEXT, b"a", mask) + masked(TEXT, b"x" * 65_535)
    assert Session(65_536).receive(data)[-2:] == ["a", "x" * 65_535]


class TestLimit:
    def test_is_checked_before_the_payload_is_there(self) -> None:
        for header in (b"\x81\xfe\x03\xe9", b"\x82\xff\0\0\0\0\xff\xff\xff\xff"):
            session = Session(LIMIT)
            assert session.receive(header) == []
            assert session.closed_by is TOO_BIG

    def test_is_checked_over_fragments_before_the_payload_is_there(self) -> None:
        session = Session(LIMIT)
        assert session.receive(masked(TEXT, b"x" * 999, False) + b"\x00\x82" + MASK) == []
        assert session.closed_by is TOO_BIG
        assert held(session) == 0

    def test_does_not_touch_control_frames(self) -> None:
        session = Session(10)
        assert session.receive(masked(PING, b"x" * 125)) == []
        assert session.take_output() == b"\x8a\x7d" + b"x" * 125

    def test_of_zero_is_none(self) -> None:
        session = Session(0)
        data = masked(TEXT, b"x" * 70_000, False) + masked(CONTINUATION, b"y" * 70_000)
        assert session.receive(data) == ["x" * 70_000 + "y" * 70_000]

    def test_may_be_raised(self) -> None:
        session = Session(10)
        session.limit = 20
        assert session.receive(masked(TEXT, b"x" * 20)) == ["x" * 20]
        assert session.receive(masked(TEXT, b"x" * 21)) == []
        assert session.closed_by is TOO_BIG


class TestPartialText:
    """Text is checked as it arrives: a peer learns of invalid UTF-8 at once, not when its frame is whole."""

    # CPython's decoder knows a surrogate by its third byte only, where its second would do.
    @pytest.mark.parametrize("bad", [b"\xff", b"\xc0", b"\xf4\x90", b"\xed\xa0\x80", b"\xe2\x28", b"\xf8"])
    def test_fails_at_the_first_byte_that_cannot_follow(self, bad: bytes) -> None:
        text = "κόσμε".encode() + bad
        session = Session(LIMIT)
        data = masked(TEXT, text + b"x" * (500 - len(text)))
        seen = data[: 8 + len(text)]
        for piece in in_bytes(seen[:-1]):
            assert session.receive(piece) == []
            assert session.state == OPEN
        assert session.receive(seen[-1:]) == []
        assert session.closed_by is INVALID_UTF8
        assert session.take_output() == closed(INVALID_UTF8)
        assert session.receive(data[len(seen) :]) == []

    @pytest.mark.parametrize("size", [*range(1, 9), 100])
    def test_is_unmasked_right_however_it_is_cut(self, size: int) -> None:
        text = "".join(chr(0x1F300 + n) + "ä" + "x" * (n % 5) for n in range(60))
        whole = masked(TEXT, text.encode()) + masked(BINARY, text.encode())
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        assert feed(Session(LIMIT), pieces)[0] == [text, text.encode()]

    def test_is_checked_once_a_byte(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []

        def counting(data: bytearray, errors: str, final: bool) -> tuple[str, int]:
            sizes.append(len(data))
            return utf_8_decode(data, errors, final)

        monkeypatch.setattr(module, "utf_8_decode", counting)
        text = "€" * 20_000
        data = masked(TEXT, text.encode(), False) + masked(CONTINUATION, text.encode(), True)
        pieces = [data[at : at + 50] for at in range(0, len(data), 50)]
        assert feed(Session(0), pieces)[0] == [text + text]
        assert len(sizes) > 2000
        assert sum(sizes) < len(data) * 1.1

    def test_leaves_binary_alone(self) -> None:
        session = Session(LIMIT)
        data = masked(BINARY, b"\xff" * 300, False) + masked(CONTINUATION, b"\xfe" * 300)
        assert feed(session, in_bytes(data))[0] == [b"\xff" * 300 + b"\xfe" * 300]


class TestMemory:
    def test_an_idle_session_is_small(self) -> None:
        def sessions() -> list[Session]:
            made = [Session(65536) for _ in range(1000)]
            for session in made:
                session.receive(masked(TEXT, b"x" * 280))
                session.receive(masked(TEXT, b"x" * 40, False))
                session.receive(masked(CONTINUATION, b"x")[:3])
                session.receive(masked(CONTINUATION, b"x")[3:])
                session.send(b"{}")
                session.take_output()
            return made

        sessions()
        tracemalloc.start()
        try:
            kept = sessions()
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(kept) == 1000
        assert size / 1000 < 200

    def test_empty_fragments_cost_nothing(self) -> None:
        session = Session(LIMIT)
        session.receive(masked(TEXT, b"x", False))
        tracemalloc.start()
        try:
            for _ in range(20):
                session.receive(masked(CONTINUATION, b"", False) * 1000)
            size, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert size < 2000
        assert session.receive(masked(CONTINUATION, b"y")) == ["xy"]

    def test_a_closed_session_lets_go(self) -> None:
        for end in (closing(1000), b"\xff\xff"):
            session = Session(LIMIT)
            session.receive(masked(TEXT, b"x" * 900, False) + end)
            assert held(session) == 0
            session.receive(b"x" * 1000)
            assert held(session) == 0

    def test_the_answers_to_pings_never_outgrow_them(self) -> None:
        session = Session(LIMIT)
        data = b"".join(masked(PING, b"x" * (n % 126)) for n in range(5000))
        assert session.receive(data) == []
        output = session.take_output()
        assert len(output) == len(data) - 4 * 5000


class TestOrder:
    """What is owed for the messages before an error or a close goes out before the close frame."""

    @pytest.mark.parametrize(
        ("end", "frame"), [(b"\xff\xff", closed(PROTOCOL_ERROR)), (closing(1000), b"\x88\x02\x03\xe8")]
    )
    def test_replies_come_first(self, end: bytes, frame: bytes) -> None:
        session = Session(LIMIT)
        assert session.receive(masked(TEXT, b"a") + masked(PING, b"p") + end) == ["a"]
        session.send(b"reply")
        session.send_binary(b"reply")
        session.send_raw(b"\x81\x03raw")
        assert session.take_output() == b"\x8a\x01p\x81\x05reply\x82\x05reply\x81\x03raw" + frame
        session.send(b"late")
        session.send_binary(b"late")
        session.send_raw(b"late")
        session.ping()
        assert session.take_output() == b""

    @pytest.mark.parametrize("end", [b"\xff\xff", closing(1000)])
    def test_the_first_cause_counts(self, end: bytes) -> None:
        session = Session(LIMIT)
        session.receive(end)
        cause = session.closed_by
        session.close(TOO_MANY_MESSAGES)
        assert session.closed_by is cause
        assert session.take_output().count(b"\x88") == 1

    def test_output_is_taken_once_in_the_order_it_was_queued(self) -> None:
        session = Session(LIMIT)
        assert session.take_output() == b""
        session.send(b"a" * 300)
        session.ping(b"now")
        session.ping()
        session.send(b"b")
        assert session.take_output() == b"\x81\x7e\x01\x2c" + b"a" * 300 + b"\x89\x03now\x89\x00\x81\x01b"
        assert session.take_output() == b""


class TestClosing:
    """A close that the server begins: section 7.1.2."""

    def test_handshake(self) -> None:
        session = Session(LIMIT)
        session.send(b"before")
        session.close(RESTARTING)
        assert (session.state, session.closed_by, session.ended) == (CLOSING, RESTARTING, False)
        session.send(b"after")
        session.ping()
        assert session.take_output() == b"\x81\x06before" + closed(RESTARTING)
        assert session.receive(closing(1012)) == []
        assert (session.state, session.close_received, session.ended) == (CLOSED, 1012, True)
        assert session.take_output() == b""

    def test_the_frame_carries_code_and_text(self) -> None:
        session = Session(LIMIT)
        session.close(SUPERSEDED)
        assert session.take_output() == b"\x88\x22\x11\x94superseded by a newer connection"

    def test_the_first_cause_counts(self) -> None:
        session = Session(LIMIT)
        session.close(SUPERSEDED)
        session.close(RESTARTING)
        assert session.closed_by is SUPERSEDED
        assert session.take_output() == closed(SUPERSEDED)

    def test_what_still_arrives_is_dropped(self) -> None:
        session = Session(LIMIT)
        session.receive(masked(TEXT, b"begun", False))
        session.close(RESTARTING)
        session.take_output()
        late = (
            masked(CONTINUATION, b"ended") + masked(TEXT, b"late" * 100) + masked(PING, b"?") + masked(BINARY, b"late")
        )
        assert feed(session, [late]) == ([], b"")
        assert feed(session, in_bytes(late[len(masked(CONTINUATION, b"ended")) :])) == ([], b"")
        assert session.state == CLOSING
        assert feed(session, in_bytes(masked(PONG) + closing(1000))) == ([], b"")
        assert (session.state, session.ended, session.close_received) == (CLOSED, True, 1000)

    @pytest.mark.parametrize("noise", [b"\xff\xff", masked(TEXT, b"\xff"), masked(CLOSE, b"\x03"), b"\x81\xfe\xff\xff"])
    def test_an_error_ends_the_wait(self, noise: bytes) -> None:
        session = Session(LIMIT)
        session.close(RESTARTING)
        session.take_output()
        assert session.receive(noise) == []
        assert (session.state, session.ended, session.closed_by) == (CLOSED, True, RESTARTING)
        assert session.take_output() == b""

    def test_both_at_once(self) -> None:
        server, client = Session(LIMIT), Session(LIMIT, client=True)
        server.close(NORMAL)
        client.close(NORMAL)
        from_server, from_client = server.take_output(), client.take_output()
        client.receive(from_server)
        server.receive(from_client)
        assert (server.state, client.state) == (CLOSED, CLOSED)
        assert (server.take_output(), client.take_output()) == (b"", b"")
        assert server.ended


class TestClient:
    """The other side: it masks, and expects no mask."""

    def test_sends_masked_frames(self) -> None:
        session = Session(LIMIT, client=True)
        session.send(b"text")
        session.send_binary(b"binary")
        session.ping(b"ping")
        session.close(NORMAL)
        output, pos, frames = session.take_output(), 0, []
        while pos < len(output):
            frame = parse_frame(output, pos, LIMIT, masked=True)
            assert isinstance(frame, tuple)
            frames.append(frame[:3])
            pos = frame[3]
        assert frames == [
            (TEXT, True, b"text"),
            (BINARY, True, b"binary"),
            (PING, True, b"ping"),
            (CLOSE, True, b"\x03\xe8"),
        ]

    def test_masks_differ(self) -> None:
        session = Session(LIMIT, client=True)
        outputs = set()
        for _ in range(20):
            session.send(b"text")
            outputs.add(session.take_output())
        assert len(outputs) > 1

    @pytest.mark.parametrize("size", [0, 5, 125, 126, 280, 1000])
    def test_reads_unmasked_frames(self, size: int) -> None:
        data = encode_frame(TEXT, b"x" * size) + encode_frame(TEXT, b"a", False) + encode_frame(CONTINUATION, b"b")
        for pieces in ([data], in_bytes(data)):
            assert feed(Session(LIMIT, client=True), pieces)[0] == ["x" * size, "ab"]

    def test_refuses_masked_frames(self) -> None:
        session = Session(LIMIT, client=True)
        assert session.receive(masked(TEXT, b"x" * 280)) == []
        assert session.closed_by is PROTOCOL_ERROR
        assert session.ended

    def test_waits_for_the_server_to_close_tcp(self) -> None:
        session = Session(LIMIT, client=True)
        session.receive(encode_frame(CLOSE, b"\x03\xe8"))
        assert (session.state, session.close_received, session.ended) == (CLOSED, 1000, False)
        frame = parse_frame(session.take_output(), 0, LIMIT, masked=True)
        assert isinstance(frame, tuple)
        assert frame[:3] == (CLOSE, True, b"\x03\xe8")

    def test_answers_pings(self) -> None:
        session = Session(LIMIT, client=True)
        session.receive(encode_frame(PING, b"?"))
        frame = parse_frame(session.take_output(), 0, LIMIT, masked=True)
        assert isinstance(frame, tuple)
        assert frame[:3] == (PONG, True, b"?")


FRAME = st.builds(
    encode_masked,
    st.sampled_from((CONTINUATION, TEXT, TEXT, BINARY, CLOSE, PING, PONG)),
    st.binary(max_size=20) | st.text(max_size=20).map(str.encode) | st.integers(100, 300).map(bytes),
    st.binary(min_size=4, max_size=4),
    st.booleans(),
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Frames of a client, some bytes of which were changed, added or lost."""
    data = bytearray(b"".join(draw(st.lists(FRAME, max_size=6))))
    for _ in range(draw(st.integers(0, 3))):
        if data:
            at = draw(st.integers(0, len(data) - 1))
            data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=3))
    return bytes(data)


def cuts(data: bytes, places: Iterable[int]) -> list[bytes]:
    """`data` in pieces."""
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@settings(max_examples=300)
@given(st.binary(max_size=200) | streams(), st.lists(st.integers(0, 2000), max_size=6), st.sampled_from((50, 200, 0)))
def test_noise_comes_to_the_same_end_however_it_is_cut(data: bytes, places: list[int], limit: int) -> None:
    whole, cut = Session(limit), Session(limit)
    assert feed(whole, [data]) == feed(cut, cuts(data, places))
    assert (whole.state, whole.closed_by, whole.close_received) == (cut.state, cut.closed_by, cut.close_received)
    assert whole.closed_by in (None, PROTOCOL_ERROR, INVALID_UTF8, TOO_BIG)
    assert bool(whole.ended) == (whole.state == CLOSED)


@settings(max_examples=200)
@given(st.binary(max_size=200) | streams(), st.booleans(), st.integers(0, 5))
def test_noise_never_raises_in_any_state(data: bytes, client: bool, state: int) -> None:
    session = Session(100, client=client)
    session.receive(b"\x01" if state == 1 else b"")
    if state == 2:
        session.close(NORMAL)
    feed(session, in_bytes(data))
    if state == 3:
        session.close(NORMAL)
    feed(session, [data, data])


class End:
    """One end of a conversation, and the wire from it to the other end."""

    def __init__(self, client: bool) -> None:
        self.session = Session(5000, client=client)
        self.wire = bytearray()
        self.sent: list[str | bytes] = []
        self.got: list[str | bytes] = []
        self.begun: bytes | None = None
        """Fragments of a message that have been sent."""
        self.rest = b""
        """What is left of a character that was cut in two."""

    def flush(self) -> None:
        self.wire += self.session.take_output()

    def fragment(self, opcode: int, payload: bytes, fin: bool) -> None:
        encoded = (
            encode_masked(opcode, payload, MASK, fin) if self.session.client else encode_frame(opcode, payload, fin)
        )
        self.session.send_raw(encoded)

    def read(self, other: "End", size: int) -> None:
        piece = bytes(other.wire[:size])
        del other.wire[:size]
        self.got += self.session.receive(piece)
        assert held(self.session) <= 5000 + SLACK
        self.flush()


class Conversation(RuleBasedStateMachine):
    """A client and a server; every byte between them may wait, and arrives in pieces of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = (End(client=False), End(client=True))

    @rule(end=st.booleans(), message=st.text(max_size=30) | st.binary(max_size=30), times=st.sampled_from((1, 1, 50)))
    def send(self, end: int, message: str | bytes, times: int) -> None:
        side = self.ends[end]
        if side.begun is not None:
            return
        if side.session.state == OPEN:
            side.sent.append(message * times)
        if isinstance(message, str):
            side.session.send((message * times).encode())
        else:
            side.session.send_binary(message * times)
        side.flush()

    @rule(end=st.booleans(), text=st.text(max_size=9), cut=st.integers(0, 20), fin=st.booleans())
    def send_fragment(self, end: int, text: str, cut: int, fin: bool) -> None:
        """A fragment may end inside a character; the next one brings the rest of it."""
        side = self.ends[end]
        if side.session.state != OPEN:
            return
        data = side.rest + text.encode()
        part, side.rest = (data, b"") if fin else (data[:cut], data[cut:])
        side.fragment(TEXT if side.begun is None else CONTINUATION, part, fin)
        side.begun = (side.begun or b"") + part
        if fin:
            side.sent.append(side.begun.decode())
            side.begun = None
        side.flush()

    @rule(end=st.booleans(), payload=st.binary(max_size=10))
    def ping(self, end: int, payload: bytes) -> None:
        self.ends[end].session.ping(payload)
        self.ends[end].flush()

    @rule(end=st.booleans(), size=st.integers(1, 40) | st.just(100_000))
    def deliver(self, end: int, size: int) -> None:
        self.ends[end].read(self.ends[1 - end], size)

    @precondition(lambda self: sum(len(end.sent) for end in self.ends) > 3)
    @rule(end=st.booleans())
    def close(self, end: int) -> None:
        self.ends[end].session.close(NORMAL)
        self.ends[end].flush()

    def teardown(self) -> None:
        server, client = self.ends
        while server.wire or client.wire:
            server.read(client, 100_000)
            client.read(server, 100_000)
        began = [end.session.closed_by for end in self.ends]
        for end, other in ((server, client), (client, server)):
            assert end.session.closed_by in (None, NORMAL)
            assert end.got == other.sent[: len(end.got)]
            assert end.session.state == (OPEN if began == [None, None] else CLOSED)
            if end.session.closed_by is None:
                assert end.got == other.sent


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def in_shares(session: Session, data: bytes, most: int) -> tuple[list[list[str | bytes]], bytes]:
    """The messages of each share, and all output."""
    shares = [session.receive(data, most)]
    output = session.take_output()
    while session.pending:
        shares.append(session.receive(b"", most))
        output += session.take_output()
    return shares, output


class TestShares:
    @pytest.mark.parametrize("most", [1, 2, 32])
    @pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS.keys())
    def test_a_talk_in_shares_is_the_same_talk(self, talk: Talk, most: int) -> None:
        session = Session(LIMIT)
        shares, output = in_shares(session, talk.data, most)
        assert [message for share in shares for message in share] == talk.messages
        assert all(len(share) <= most for share in shares)
        assert (output, session.state) == (talk.output, talk.state)
        assert (session.closed_by, session.close_received) == (talk.closed_by, talk.close_received)

    @pytest.mark.parametrize("size", [1, 3, 7, 150])
    def test_reads_and_shares_of_any_size(self, size: int) -> None:
        data = b"".join(masked(TEXT, b"%d" % number * 40) for number in range(100)) + masked(PING, b"?")
        session, found = Session(0), list[str | bytes]()
        for at in range(0, len(data), size):
            shares, _ = in_shares(session, data[at : at + size], 2)
            found += [message for share in shares for message in share]
        assert found == [str(number) * 40 for number in range(100)]

    def test_new_data_stands_behind_what_waits(self) -> None:
        session = Session(LIMIT)
        assert session.receive(masked(TEXT, b"a") + masked(TEXT, b"b"), 1) == ["a"]
        assert session.receive(masked(TEXT, b"c"), 1) == ["b"]
        assert session.receive(b"", 1) == ["c"]
        assert not session.pending

    @pytest.mark.parametrize("fragment", [100_000, 5000, 100])
    def test_a_large_message_comes_alone(self, fragment: int) -> None:
        large = "x" * 60_000
        pieces = [large[at : at + fragment].encode() for at in range(0, len(large), fragment)]
        frames = [
            masked(CONTINUATION if number else TEXT, piece, number == len(pieces) - 1)
            for number, piece in enumerate(pieces)
        ]
        data = masked(TEXT, b"before") + b"".join(frames) + masked(TEXT, b"behind")
        for size in (len(data), 20_000):
            session, shares = Session(0), list[list[str | bytes]]()
            for at in range(0, len(data), size):
                shares += in_shares(session, data[at : at + size], 32)[0]
            assert [share for share in shares if share] == [["before"], [large], ["behind"]]

    def test_what_waits_is_dropped_with_the_session(self) -> None:
        for end in (frame := masked(CLOSE), masked(0x3)):
            session = Session(LIMIT)
            session.receive(masked(TEXT, b"a") * 2 + end + frame, 1)
            session.receive(b"", 2)
            assert (session.state, session.pending) == (CLOSED, False)
            assert session.receive(masked(TEXT, b"late"), 1) == []

    def test_failing_drops_it_too(self) -> None:
        session = Session(LIMIT)
        session.receive(masked(TEXT, b"a") * 2, 1)
        session.send(b"answer")
        session.fail(TOO_MANY_MESSAGES)
        assert (session.state, session.pending, session.ended) == (CLOSED, False, True)
        assert session.take_output() == encode_frame(TEXT, b"answer") + closed(TOO_MANY_MESSAGES)
        assert session.closed_by is TOO_MANY_MESSAGES

    def test_the_last_frame_waits_for_answers(self) -> None:
        session = Session(LIMIT)
        session.receive(masked(0x3))
        assert session.take_output(last=False) == b""
        session.send(b"answer")
        assert session.take_output(last=False) == encode_frame(TEXT, b"answer")
        assert session.take_output() == closed(PROTOCOL_ERROR)

    @pytest.mark.parametrize(
        ("data", "count"),
        [
            (masked(TEXT, b"x") * 5, 0),
            (masked(BINARY, b"x") * 5, 0),
            (masked(PING) * 5, 5),
            (masked(PONG, b"x") * 5, 5),
            (masked(TEXT, b"", False) + masked(CONTINUATION, b"", False) * 5, 6),
            (masked(TEXT, b"x" * 2000, False) + masked(CONTINUATION, b"x" * 1024, False) * 5, 0),
            (masked(TEXT, b"x" * 2000, False) + masked(CONTINUATION, b"x" * 1023, False) * 5, 5),
        ],
    )
    def test_small_frames_are_counted(self, data: bytes, count: int) -> None:
        for size in (1, 50, len(data)):
            session = Session(0)
            for at in range(0, len(data), size):
                session.receive(data[at : at + size])
            assert session.small_frames == count
