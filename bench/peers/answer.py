"""What every bare peer in Python does with a heartbeat: parse its JSON, and ack it in the gateway's words."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

import orjson
import uvloop

DATA = {"reconcileContent": False, "nextHeartbeatIn": 15000, "commands": []}


def ack(text: str | bytes | memoryview) -> bytes:
    """The ack of one native message."""
    message = orjson.loads(text)
    timestamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return orjson.dumps(
        {"event": "ack", "id": message["id"], "data": {"success": True, "data": DATA, "timestamp": timestamp}}
    )


def listening(server: asyncio.Server) -> None:
    """Say where it listens: whoever started it reads this line."""
    print("listening", server.sockets[0].getsockname()[1], flush=True)


def run(serve: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Serve on uvloop, as the gateway does, until stdin ends: with whoever started it."""

    async def main() -> None:
        serving = asyncio.create_task(serve())
        ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
        serving.cancel()

    uvloop.run(main())
