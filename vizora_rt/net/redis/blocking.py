"""Redis without an event loop, for the supervisor and the command line: one call, a connection, a check."""

import contextlib
import socket
import time
from collections.abc import Sequence

from vizora_rt.errors import ConfigError, UnavailableError
from vizora_rt.net.redis.address import (
    UNSOLICITED_REPLY,
    Address,
    FileError,
    ServerRefusedError,
    ended,
    explain,
    fault,
    hint,
    one_line,
)
from vizora_rt.wire.resp import Replies


def ask(address: Address, commands: Sequence[bytes], timeout: float) -> list[object]:
    """Send `commands` over a connection of their own and return the replies. Blocks; raises OSError."""
    deadline = time.monotonic() + timeout
    stream, replies, answered = _socket(address, timeout), Replies(), list[object]()
    with stream:
        try:
            stream.sendall(b"".join(commands))
            while len(answered) < len(commands):
                stream.settimeout(max(0.001, deadline - time.monotonic()))
                data = stream.recv(65536)
                answered += replies.read(data)
                if replies.broken or not data:
                    raise ConnectionError(one_line(replies.broken) or explain(None))
        except ConnectionError as error:
            with contextlib.suppress(OSError):
                # A server that is full speaks before it is asked; what it said may still be there to read.
                stream.setblocking(False)
                answered += replies.read(stream.recv(65536))
            raise ended(explain(error), answered) from error
    if len(answered) > len(commands):
        raise ConnectionError(UNSOLICITED_REPLY)
    return answered


class BlockingConnection:
    """A greeted connection for a command that runs for a while and may block. Its calls raise OSError."""

    __slots__ = ("_replies", "_stream")

    def __init__(self, address: Address, name: str, timeout: float) -> None:
        self._replies = Replies()
        self._stream = _socket(address, timeout)
        greeting = address.greeting(name)
        try:
            error = fault(address, greeting, self.ask([packed for _, packed in greeting]))
            if error is not None:
                raise error
        except BaseException:
            self.close()
            raise

    def ask(self, commands: Sequence[bytes]) -> list[object]:
        """Send `commands` and wait for the reply to each."""
        self._stream.sendall(b"".join(commands))
        answered: list[object] = []
        while len(answered) < len(commands):
            data = self._stream.recv(1 << 20)
            answered += self._replies.read(data)
            if self._replies.broken or not data:
                raise ConnectionError(one_line(self._replies.broken) or explain(None))
        if len(answered) > len(commands):
            raise ConnectionError(UNSOLICITED_REPLY)
        return answered

    def close(self) -> None:
        self._stream.close()


def probe(url: str | Address, timeout: float) -> None:
    """See that the Redis at `url` can be reached and greeted. Blocks; raises as `ask_all` and `judge` do."""
    address = url if isinstance(url, Address) else Address.parse(url)
    greeting = address.greeting("vizora-probe")
    judge(address, fault(address, greeting, ask_all(address, [packed for _, packed in greeting], timeout)))


def ask_all(address: Address, commands: Sequence[bytes], timeout: float) -> list[object]:
    """As `ask`, for an operator: raises ConfigError when a file of TLS cannot be used, UnavailableError else."""
    try:
        return ask(address, commands, timeout)
    except FileError as wrong:
        raise ConfigError(explain(wrong)) from None
    except ServerRefusedError as refused:
        raise ConfigError(f"Redis at {address} cannot be used: {refused}") from None
    except OSError as away:
        raise UnavailableError(f"Redis at {address} cannot be reached: {hint(address, away)}") from None


def judge(address: Address, error: ConnectionError | None) -> None:
    """Raises ConfigError for what Redis will refuse for ever, UnavailableError for what may pass; one line."""
    if isinstance(error, ServerRefusedError):
        raise ConfigError(f"Redis at {address} cannot be used: {error}")
    if error is not None:
        raise UnavailableError(f"Redis at {address} cannot be used: {error}")


def _socket(address: Address, timeout: float) -> socket.socket:
    if not address.path:
        context = address.tls_context()
        stream = socket.create_connection((address.host, address.port), timeout)
        return context.wrap_socket(stream, server_hostname=address.host) if context else stream
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout)
    try:
        stream.connect(address.path)
    except OSError:
        stream.close()
        raise
    return stream
