"""FastAPI on uvicorn, bare: parse and ack."""

import asyncio
import socket

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from bench.peers.answer import ack, run

app = FastAPI()


@app.websocket("/ws")
async def handle(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_text(ack(await websocket.receive_text()).decode())
    except WebSocketDisconnect:
        pass


async def main() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        settings = uvicorn.Config(
            app, log_level="error", access_log=False, lifespan="off", ws_per_message_deflate=False, backlog=4096
        )
        server = uvicorn.Server(settings)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        print("listening", listener.getsockname()[1], flush=True)
        await serving


if __name__ == "__main__":
    run(main)
