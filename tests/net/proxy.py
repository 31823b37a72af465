"""A TCP proxy in front of a Redis or of the gateway, which misbehaves when told to."""

import asyncio
import ssl
from collections.abc import Callable


class Gate:
    """One direction of all connections. Shut, it lets nothing pass, not even an end, and keeps all that came."""

    def __init__(self) -> None:
        self.delay = 0.0
        """Seconds that each chunk takes."""
        self.rate = 0.0
        """Bytes a second of each connection; 0: no bound."""
        self._open = asyncio.Event()
        self._open.set()

    def shut(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    async def passed(self, size: int) -> None:
        wait = self.delay + (size / self.rate if self.rate else 0.0)
        if wait:
            await asyncio.sleep(wait)
        await self._open.wait()


class Proxy:
    """Listens on 127.0.0.1, leads to a Unix socket or a port there. `rewrite` is applied to each chunk of replies."""

    def __init__(self, target: str | int) -> None:
        self.target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.rewrite: Callable[[bytes], bytes] = bytes
        self.requests = Gate()
        self.replies = Gate()
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def open(self, context: ssl.SSLContext | None = None) -> str:
        """The URL at which it listens, were it a Redis."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return f"redis{'s' if context else ''}://127.0.0.1:{self.port}"

    def inject(self, data: bytes) -> None:
        """Say something to the clients that the server did not say."""
        for writer in self._writers:
            writer.write(data)

    def cut(self) -> None:
        """Reset all connections, as a crashed host or a firewall would. The server hears of it when the gate is open:
        behind a shut one it is left with half a connection, as by a router that was switched off."""
        for writer in self._writers:
            writer.transport.abort()

    def hang_up(self) -> None:
        """Close all connections in good order, after what is being written."""
        for writer in self._writers:
            asyncio.get_running_loop().call_soon(writer.close)

    def hold(self) -> None:
        """Nothing passes, in either direction."""
        self.requests.shut()
        self.replies.shut()

    def mend(self) -> None:
        """Let all pass, that which was kept first."""
        for gate in (self.requests, self.replies):
            gate.delay = gate.rate = 0.0
            gate.open()

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            upstream_reader, upstream = await self._dial()
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(writer)
        both = [
            asyncio.create_task(self._pump(reader, upstream, bytes, self.requests)),
            asyncio.create_task(self._pump(upstream_reader, writer, lambda data: self.rewrite(data), self.replies)),
        ]
        self._tasks.update(both)
        await asyncio.wait(both)
        self._tasks.difference_update(both)
        self._writers.discard(writer)

    async def _dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, int):
            return await asyncio.open_connection("127.0.0.1", self.target)
        return await asyncio.open_unix_connection(self.target)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        change: Callable[[bytes], bytes],
        gate: Gate,
    ) -> None:
        try:
            while data := await reader.read(65536):
                await gate.passed(len(data))
                writer.write(change(data))
                await writer.drain()
        except OSError:
            pass
        finally:
            try:
                await gate.passed(0)
            finally:
                writer.close()
