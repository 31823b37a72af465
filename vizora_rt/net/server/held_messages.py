"""Messages of a client that wait because it sent more than its rate, and how many bytes of them are kept."""

from collections import deque
from typing import Final

KEPT_BYTES: Final = 262_144
"""Bytes of messages that one client may have waiting here: 1,000 plays. More waits in the client's own buffers."""

KEPT_BYTES_ALL: Final = 67_108_864
"""The same for all clients of a worker: 64 MiB, as much as may wait for Redis."""

MESSAGE_BYTES: Final = 64
"""What a message that waits takes beside its characters."""


class Total:
    """The bytes that all clients of a worker have waiting."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Held:
    """The messages of one client, oldest first."""

    __slots__ = ("_bytes", "_messages", "_total")

    def __init__(self, total: Total) -> None:
        self._messages: deque[str | bytes] = deque()
        self._bytes = 0
        self._total = total

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def room(self) -> bool:
        """Whether more may be read of the client."""
        return self._bytes < KEPT_BYTES and self._total.bytes < KEPT_BYTES_ALL

    def append(self, message: str | bytes) -> None:
        self._messages.append(message)
        self._count(len(message) + MESSAGE_BYTES)

    def put_back(self, message: str | bytes) -> None:
        """It is the next one again."""
        self._messages.appendleft(message)
        self._count(len(message) + MESSAGE_BYTES)

    def pop(self) -> str | bytes:
        """The oldest."""
        message = self._messages.popleft()
        self._count(-len(message) - MESSAGE_BYTES)
        return message

    def clear(self) -> None:
        self._messages.clear()
        self._count(-self._bytes)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._total.bytes += size
