"""One command to many connected devices, and one notice to many dashboards: how long until the last one, at what cost.

    python -m bench.broadcast ws://127.0.0.1:3001/ws --devices 10000 --dashboards 10000 --rounds 5

The secrets are those of the service: DEVICE_JWT_SECRET, JWT_SECRET and INTERNAL_API_SECRET. Devices ack at once. Time
counts from the call, until the service has answered (all have acked) and until the last frame arrived here.
"""

import argparse
import asyncio
import http.client
import json
import os
import time
from collections.abc import Sequence
from typing import Any, cast

import uvloop

from bench import server
from vizora_rt.app.auth import mint_device, mint_user
from vizora_rt.config import Auth
from vizora_rt.net.dial import Endpoint, Handshake, parse_url
from vizora_rt.wire.frames import TEXT, encode_masked
from vizora_rt.wire.session import Session

ORGANIZATION = "bench-broadcast"
AT_ONCE = 200
PATIENCE = 60.0
MASK = b"\0\0\0\0"


class Counter:
    """How many of an event have arrived, and when the last one did."""

    def __init__(self) -> None:
        self.wanted = 0
        self.seen = 0
        self.first = self.last = 0.0
        self.all = asyncio.Event()

    def expect(self, count: int) -> None:
        self.wanted, self.seen = count, 0
        self.all.clear()

    def arrived(self) -> None:
        self.last = time.perf_counter()
        if not self.seen:
            self.first = self.last
        self.seen += 1
        if self.seen == self.wanted:
            self.all.set()


class Client(asyncio.Protocol):
    """A client that acks what wants an ack, and counts."""

    def __init__(self, handshake: Handshake, counter: Counter) -> None:
        self.handshake = handshake
        self.counter = counter
        self.session = Session(16 * 1024 * 1024, client=True)
        self.open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.head: bytes | None = b""
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)
        self.transport.write(self.handshake.request)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.open.done():
            self.open.set_exception(ConnectionError("refused"))

    def data_received(self, data: bytes) -> None:
        if self.head is not None:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            if not self.head.startswith(b"HTTP/1.1 101"):
                self.open.set_exception(ConnectionError(self.head[:200].decode()))
                self.transport.close()
                return
            data, self.head = self.head[end + 4 :], None
            self.open.set_result(None)
        for text in self.session.receive(data):
            assert isinstance(text, str)
            if text.startswith('{"event":"command","id":'):
                ack_id = text[24 : text.index(",", 24)]
                body = b'{"event":"ack","id":%b,"data":{"ok":true}}' % ack_id.encode()
                self.transport.write(encode_masked(TEXT, body, MASK))
                self.counter.arrived()
            elif text.startswith('{"event":"notification:new"'):
                self.counter.arrived()
        output = self.session.take_output()
        if output:
            self.transport.write(output)


async def connect(endpoint: Endpoint, tokens: Sequence[str], counter: Counter) -> list[Client]:
    loop = asyncio.get_running_loop()
    limit = asyncio.Semaphore(AT_ONCE)

    async def one(token: str) -> Client:
        async with limit:
            handshake = Handshake(endpoint, token)
            _, client = await loop.create_connection(lambda: Client(handshake, counter), endpoint.host, endpoint.port)
            await client.open
            return client

    return list(await asyncio.gather(*map(one, tokens)))


def call(endpoint: Endpoint, key: str, path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=PATIENCE)
    try:
        headers = {"x-internal-api-key": key, "content-type": "application/json"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


async def measure(
    endpoint: Endpoint, key: str, path: str, body: Any, counter: Counter, count: int, pids: Sequence[int]
) -> None:
    counter.expect(count)
    before, started = server.usage(pids), time.perf_counter()
    status, answer = await asyncio.to_thread(call, endpoint, key, path, body)
    answered = time.perf_counter() - started
    try:
        async with asyncio.timeout(PATIENCE):
            await counter.all.wait()
    except TimeoutError:
        print(f"  only {counter.seen} of {count} arrived")
    await asyncio.sleep(1.0)
    used = server.usage(pids)
    cpu = (used.user + used.system - before.user - before.system) / max(1, counter.seen)
    print(
        f"  {status} answered after {answered * 1000:.0f} ms, first {1000 * (counter.first - started):.0f} ms, "
        f"last {1000 * (counter.last - started):.0f} ms, {cpu * 1e6:.1f} us CPU each; {json.dumps(answer)[:160]}"
    )


async def run(options: argparse.Namespace) -> None:
    endpoint = parse_url(options.url)
    auth = Auth(device_jwt_secret=os.environ["DEVICE_JWT_SECRET"], jwt_secret=os.environ["JWT_SECRET"])
    key, now, counter = os.environ["INTERNAL_API_SECRET"], int(time.time()), Counter()
    pids = server.pids(endpoint)
    if options.devices:
        ids = [f"b-{number:05}" for number in range(options.devices)]
        tokens = [mint_device(auth, each, ORGANIZATION, now, 86_400) for each in ids]
        screens = await connect(endpoint, tokens, counter)
        await asyncio.sleep(2)
        print(f"one command to {len(screens)} devices")
        for _ in range(options.rounds):
            body = {"deviceIds": ids, "command": {"type": "reload"}}
            await measure(endpoint, key, "/commands/broadcast", body, counter, len(screens), pids)
        for screen in screens:
            screen.transport.abort()
        await asyncio.sleep(1)
    if options.dashboards:
        tokens = [mint_user(auth, f"u-{number:05}", ORGANIZATION, now, 86_400) for number in range(options.dashboards)]
        watchers = await connect(endpoint, tokens, counter)
        await asyncio.sleep(2)
        print(f"one notice to {len(watchers)} dashboards")
        for _ in range(options.rounds):
            body = {"organizationId": ORGANIZATION, "notification": {"title": "hello"}}
            await measure(endpoint, key, "/notifications/broadcast", body, counter, len(watchers), pids)
        for watcher in watchers:
            watcher.transport.abort()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--dashboards", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
