"""The library `websockets`, bare: parse and ack."""

import asyncio

from websockets.asyncio.server import ServerConnection, serve

from bench.peers.answer import ack, listening, run


async def handle(connection: ServerConnection) -> None:
    async for text in connection:
        await connection.send(ack(text), text=True)


async def main() -> None:
    async with serve(handle, "127.0.0.1", 0, compression=None, backlog=4096) as server:
        listening(server.server)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    run(main)
