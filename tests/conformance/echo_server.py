"""An echo application on the project's own session and connection, to be judged from outside.

    python -m tests.conformance.echo_server --port 9001

Everything between the socket and the message is the gateway's code; only the application behind it is another. Any path
is a WebSocket, nobody needs a token, and binary messages are echoed too.
"""

import argparse
import asyncio
import os

import uvloop

from vizora_rt import config
from vizora_rt.app.auth import Identity
from vizora_rt.config import Config
from vizora_rt.errors import NOT_FOUND
from vizora_rt.net.access.admission import Refused
from vizora_rt.net.access.handshake_queue import OnAdmitted, OnQueued
from vizora_rt.net.api.operations import add_health_routes
from vizora_rt.net.redis.client import RedisClient
from vizora_rt.net.server.http import HTTPServer
from vizora_rt.net.server.socketio import Greeted
from vizora_rt.net.server.turn_queue import TurnQueue
from vizora_rt.net.server.websocket import Connection, ConnectionContext, Settle
from vizora_rt.net.timer_wheel import Wheel
from vizora_rt.telemetry.metrics import Metrics
from vizora_rt.wire.http import Request
from vizora_rt.wire.session import Session
from vizora_rt.wire.socketio import ConnectPacket

MESSAGE_BYTES = 64 * 1024 * 1024
NOBODY = Identity("device", "nobody", "nobody", "", 0, 0)


class Echo:
    """Lets everybody in and says everything back."""

    def __init__(self, settings: Config, metrics: Metrics, wheel: Wheel) -> None:
        bytes_in, bytes_out = (metrics.counter("ws_bytes_total", direction) for direction in ("in", "out"))
        self._terms = ConnectionContext(settings, wheel, bytes_in, bytes_out)
        self.connections = 0
        self.draining = self.leaving = False

    def admit(self, request: Request, address: str, settle: Settle, waits: OnQueued) -> None:
        connection = Connection(self, self._terms, NOBODY, address)
        self.connections += 1
        settle(connection)
        connection.release()

    def admit_anonymous(self, address: str, enter: OnAdmitted, refused: Refused, waits: OnQueued) -> None:
        refused(NOT_FOUND)

    def connections_of(self, address: str) -> int:
        return 0

    def forgo(self, address: str) -> None:
        pass

    def connect_socketio(
        self, request: Request, packet: ConnectPacket, address: str, session: Session, greeted: Greeted, waits: OnQueued
    ) -> None:
        greeted(NOT_FOUND)

    def handshaken(self, ns: int, path: str) -> None:
        pass

    @property
    def turns(self) -> TurnQueue:
        return self._terms.turns

    def message(self, connection: Connection, payload: str | bytes) -> None:
        if isinstance(payload, str):
            connection.session.send(payload.encode())
        else:
            connection.session.send_binary(payload)

    def closed(self, connection: Connection) -> None:
        self.connections -= 1


class EchoServer(HTTPServer):
    def upgrades(self, request: Request) -> bool:
        return request.upgrade


async def serve(host: str, port: int) -> None:
    """Until cancelled."""
    loop = asyncio.get_running_loop()
    limits = {"message_bytes": MESSAGE_BYTES, "unsent_bytes": 2 * MESSAGE_BYTES, "packets_per_minute": 0}
    settings = config.load(None, os.environ, {"limits": limits})
    metrics = Metrics(settings.metrics)
    wheel = Wheel(loop.time)
    wheel.start()
    store = RedisClient(settings.redis, "redis://127.0.0.1", metrics, name="echo")
    echo = Echo(settings, metrics, wheel)
    server = EchoServer(settings, echo, metrics, wheel)
    add_health_routes(server, settings, echo, store, lambda *_: None)
    listening = await loop.create_server(server.exchange, host, port, reuse_address=True)
    print(f"echoing on ws://{host}:{listening.sockets[0].getsockname()[1]}", flush=True)
    await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9001)
    arguments = parser.parse_args()
    try:
        uvloop.run(serve(arguments.host, arguments.port))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
