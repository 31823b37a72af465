"""aiohttp, bare: parse and ack."""

import asyncio

from aiohttp import WSMsgType, web

from bench.peers.answer import ack, run


async def handle(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse(compress=False)
    await response.prepare(request)
    async for message in response:
        if message.type is WSMsgType.TEXT:
            await response.send_str(ack(message.data).decode())
    return response


async def main() -> None:
    application = web.Application()
    application.router.add_get("/ws", handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    print("listening", runner.addresses[0][1], flush=True)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    run(main)
