"""RESP, the Redis protocol: commands to bytes, bytes to replies, keys to cluster slots. The only `hiredis`.

RESP version 2 in both directions (https://valkey.io/topics/protocol/). An error from the server is a value, never an
exception, also inside an array. A stream that is not RESP ends with `Replies.broken`, after the replies before it.
"""

import binascii
import re
from typing import Final

import hiredis

SLOTS: Final = 16384


_WRAPPED: Final = re.compile(r"Error running script .*?: ?@user_script: ?\d+: -?([A-Z]{2,}) (.*)", re.DOTALL)
"""Before Redis 7 an error within a script: `Error running script (call to f_<sha1>): @user_script:1: @user_script: 1:
-OOM command not allowed ...`. The last place in the script stands before the code."""

_DENIED: Final = ("ACL failure in script", "The user executing the script can't")
"""How Redis 7 and Valkey, and Redis before 7, say within a script what NOPERM says of a command."""


class ReplyError:
    """An error reply: `code` is its first word in capitals (ERR, NOSCRIPT, READONLY, OOM), `message` the rest.

    An error within a script has the code that the same command has outside of one.
    """

    __slots__ = ("code", "message")

    def __init__(self, text: str) -> None:
        self.code, _, self.message = text.partition(" ")
        if self.code == "ERR":
            self._unwrap()

    def _unwrap(self) -> None:
        wrapped = _WRAPPED.match(self.message)
        if wrapped is not None:
            self.code, self.message = wrapped.groups()
        elif any(words in self.message for words in _DENIED):
            self.code = "NOPERM"

    def __repr__(self) -> str:
        return f"ReplyError({f'{self.code} {self.message}'!r})"


_NOTHING: Final = object()
"""No complete reply is there. `None` cannot say that: it is the null reply."""


class Replies:
    """The replies in a stream of bytes, however it is cut."""

    __slots__ = ("_reader", "broken")

    def __init__(self) -> None:
        # `errors`: the text of an error may quote what a client sent, and need not be UTF-8.
        self._reader = hiredis.Reader(replyError=ReplyError, notEnoughData=_NOTHING, errors="replace")  # type: ignore[arg-type]
        self.broken = ""
        """What was wrong with the stream; nothing more comes out of it then."""

    def read(self, data: bytes) -> list[object]:
        """Take `data`; every reply that is complete now, in order."""
        replies: list[object] = []
        try:
            self._reader.feed(data)
            # The sentinel form of iter() stays in C; what was appended before an error stays in the list.
            replies.extend(iter(self._reader.gets, _NOTHING))
        except hiredis.HiredisError as error:
            self.broken = str(error)
        return replies


def pack(*args: bytes | str | int) -> bytes:
    """A command as an array of bulk strings. Text goes as UTF-8."""
    packed: bytes = hiredis.pack_command(args)  # type: ignore[arg-type]
    return packed


def pack_set(key: bytes, value: bytes, seconds: int) -> bytes:
    """`SET key value EX seconds`, what every heartbeat becomes: a template takes a third of the time of `pack`."""
    expiry = b"%d" % seconds
    return b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$2\r\nEX\r\n$%d\r\n%b\r\n" % (
        len(key),
        key,
        len(value),
        value,
        len(expiry),
        expiry,
    )


FIRST_KEY: Final = {b"EVAL": 3, b"EVALSHA": 3, b"XGROUP": 2, b"XINFO": 2}
"""Where the key stands in commands that do not begin with it. All keys of a command have one slot, so one will do."""
KEYLESS: Final = frozenset({b"PING", b"PUBLISH", b"SCRIPT", b"INFO", b"CLIENT", b"ROLE", b"DBSIZE", b"ECHO"})


def key_of(packed: bytes) -> bytes | None:
    """The first key of a packed command, or its channel (SPUBLISH); None when it has none."""
    name, at = _word(packed, packed.index(b"$"))
    if name in KEYLESS:
        return None
    key, at = _word(packed, at)
    if name == b"XREADGROUP":
        while key != b"STREAMS":
            key, at = _word(packed, at)
        return _word(packed, at)[0]
    for _ in range(FIRST_KEY.get(name, 1) - 1):
        key, at = _word(packed, at)
    return key


def _word(packed: bytes, at: int) -> tuple[bytes, int]:
    """The bulk string at `at`, and where the next one begins."""
    start = packed.index(b"\r\n", at) + 2
    end = start + int(packed[at + 1 : start - 2])
    return packed[start:end], end + 2


def slot(key: bytes) -> int:
    """The cluster's hash slot of `key`: CRC-16/XMODEM of its hash tag, else of all of it (Redis Cluster spec).

    The tag is what stands between the first `{` and the first `}` after it, unless that is empty.
    """
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS
