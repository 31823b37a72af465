"""A TCP proxy in front of a Redis, which misbehaves when told to."""

import asyncio
import ssl
from collections.abc import Callable


class Proxy:
    """Listens on 127.0.0.1, leads to a Unix socket. `rewrite` is applied to each chunk of replies."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.rewrite: Callable[[bytes], bytes] = bytes
        self.connections = 0
        self._server: asyncio.Server | None = None

    async def open(self, context: ssl.SSLContext | None = None) -> str:
        """The URL at which it listens."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        port = self._server.sockets[0].getsockname()[1]
        return f"redis{'s' if context else ''}://127.0.0.1:{port}"

    def inject(self, data: bytes) -> None:
        """Say something to the clients that the server did not say."""
        for writer in self._writers:
            writer.write(data)

    def cut(self) -> None:
        """Reset all connections, as a crashed host or a firewall would."""
        for writer in self._writers:
            writer.transport.abort()

    def hang_up(self) -> None:
        """Close all connections in good order, after what is being written."""
        for writer in self._writers:
            asyncio.get_running_loop().call_soon(writer.close)

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
        upstream_reader, upstream = await asyncio.open_unix_connection(self._path)
        self._writers.add(writer)
        both = [
            asyncio.create_task(self._pump(reader, upstream, bytes)),
            asyncio.create_task(self._pump(upstream_reader, writer, lambda data: self.rewrite(data))),
        ]
        self._tasks.update(both)
        await asyncio.wait(both)
        self._tasks.difference_update(both)
        self._writers.discard(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(change(data))
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
