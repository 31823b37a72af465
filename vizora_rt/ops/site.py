"""A gateway of one's own on loopback, with clients: what drills and tests of the monitoring look at, and hurt.

It runs as `vizora-rt serve` does, in development, with an embedded store, on state of its own that is thrown away.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from vizora_rt import config
from vizora_rt.app import auth
from vizora_rt.client.player import Timing
from vizora_rt.client.simulated import SimulatedScreen
from vizora_rt.client.websocket import CloseInfo, Handshake, WebSocket, parse_url
from vizora_rt.errors import UnavailableError
from vizora_rt.net.redis.address import Address
from vizora_rt.net.redis.blocking import ask
from vizora_rt.net.valkey import server as valkey_server
from vizora_rt.ops import monitors
from vizora_rt.wire import messages

PATIENCE = 30.0
POLL_SECONDS = 0.1
DAY = 86400
HURRY = Timing(first_beat=0.2, backoff_first=0.2, backoff_most=1.0)
EAR_BYTES = 4096
"""What a client that does not listen takes all the same, beside the kernel's buffers: the answer to its handshake."""
THREADS = 64


def many_threads() -> None:
    """For whoever has faults: what asks is mostly waiting, and asyncio's own few threads would make others wait too."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))


class Wire:
    """A connection that says what it is told to, right or wrong, and acks nothing."""

    def __init__(self, url: str, token: str) -> None:
        self.online = asyncio.Event()
        self._acks: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._number = 0
        self._socket = WebSocket(self, parse_url(url), token, connect=PATIENCE, goodbye=0.5)
        self._task = asyncio.create_task(self._socket.run())

    def connected(self, socket: WebSocket) -> None:
        self.online.set()

    def disconnected(self, socket: WebSocket) -> None:
        self.online.clear()
        for waiting in self._acks.values():
            waiting.cancel()

    def received(self, socket: WebSocket, text: str) -> None:
        message = messages.loads(text)
        if message.get("event") == "ack" and (waiting := self._acks.pop(message["id"], None)) is not None:
            waiting.set_result(message["data"])

    async def opened(self) -> None:
        """Returns when it is online, or was refused."""
        waiting = asyncio.create_task(self.online.wait())
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    def say(self, event: str, data: Any) -> None:
        """Nothing happens when the connection is over."""
        if self.online.is_set():
            self._number += 1
            self._socket.send(messages.dumps({"event": event, "data": data, "id": self._number}))

    async def ask(self, event: str, data: Any) -> dict[str, Any]:
        """The body of the ack. Raises ConnectionError when there is nobody to ask."""
        if not self.online.is_set():
            raise ConnectionError("not online")
        self.say(event, data)
        waiting = self._acks[self._number] = asyncio.get_running_loop().create_future()
        answer: dict[str, Any] = await waiting
        return answer

    async def ended(self) -> CloseInfo:
        return await self._task

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class Sandbox:
    """The gateway and its clients."""

    def __init__(self, folder: Path, port: int, workers: int = 2) -> None:
        self.folder = folder
        self.port = port
        self._workers = workers
        self._popen: subprocess.Popen[bytes] | None = None
        self._screens: list[asyncio.Task[CloseInfo]] = []
        self.env: Mapping[str, str] = {}
        """The environment of the gateway."""

    @property
    def url(self) -> str:
        return f"http://{monitors.HOST}:{self.port}"

    @property
    def state(self) -> Path:
        return self.folder / "state"

    # --- the gateway ---

    async def start(self, env: Mapping[str, str] = {}) -> None:
        """Start it; returns when all workers accept."""
        self.env = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.folder),
            # Else the socket of the store would be left in a folder that nobody throws away.
            "RUNTIME_DIRECTORY": str(self.folder),
            "VIZORA_ENV": "development",
            "VIZORA_STATE_DIR": str(self.state),
            "VIZORA_SERVER__HOST": monitors.HOST,
            "VIZORA_SERVER__PORT": str(self.port),
            "VIZORA_SERVER__WORKERS": str(self._workers),
            "VIZORA_SERVER__DRAIN_SECONDS": "1",
            "VIZORA_PLAYER__HEARTBEAT_INTERVAL": "1000",
            **env,
        }
        self._popen = self._launch()
        await until(self._serves)
        self._auth = config.with_secrets(config.load(None, self.env)).auth

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self.folder / "gateway.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "vizora_rt", "serve"],
                cwd=self.folder,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def _serves(self) -> bool:
        assert self._popen is not None
        if self._popen.poll() is not None:
            last = (self.folder / "gateway.log").read_text(errors="replace").splitlines()[-1:]
            raise UnavailableError(f"the gateway ended: {''.join(last)}")
        try:
            return len(self.workers()) == self._workers
        except OSError:
            return False

    async def stop(self) -> None:
        """SIGTERM, as an operator would; then the screens."""
        if self._popen is not None:
            self._popen.terminate()
            try:
                await asyncio.to_thread(self._popen.wait, PATIENCE)
            except subprocess.TimeoutExpired:
                self._popen.kill()
            self._popen = None
        await self.dismiss()

    def workers(self) -> list[int]:
        """Pids of those that are ready."""
        status = monitors.get(f"{self.url}/status")
        return [worker["pid"] for worker in status["workers"] if worker["state"] == "ready"]

    async def api(self, path: str, body: object = None) -> int:
        """The status of a call of the control API; 0 when there was no answer."""
        key = {"x-internal-api-key": self._auth.internal_api_secret}
        try:
            await asyncio.to_thread(monitors.get, f"{self.url}{path}", key, body)
        except HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0
        return 200

    # --- its store ---

    def redis(self, *commands: bytes) -> list[object]:
        return ask(Address.parse(valkey_server.running(self.state)), commands, PATIENCE)

    def store_pid(self) -> int:
        text = self.redis(b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n")[0]
        assert isinstance(text, bytes)
        return int(text.split(b"process_id:")[1].split()[0])

    # --- its clients ---

    def token(self, device: str, organization: str = "acme") -> str:
        return auth.mint_device(self._auth, device, organization, int(time.time()), DAY)

    def user_token(self, user: str, organization: str = "acme") -> str:
        return auth.mint_user(self._auth, user, organization, int(time.time()), DAY)

    @property
    def ws(self) -> str:
        return f"ws://{monitors.HOST}:{self.port}/ws"

    async def wire(self, device: str, organization: str = "acme") -> Wire:
        wire = Wire(self.ws, self.token(device, organization))
        await wire.opened()
        return wire

    async def deaf(self, user: str, organization: str = "acme") -> asyncio.StreamWriter:
        """A dashboard's connection that is made and never read from."""
        handshake = Handshake(parse_url(self.ws), self.user_token(user, organization))
        # asyncio stops reading when twice the limit waits for somebody to take it.
        reader, writer = await asyncio.open_connection(monitors.HOST, self.port, limit=EAR_BYTES)
        writer.write(handshake.request)
        await reader.readuntil(b"\r\n\r\n")
        return writer

    def screens(self, count: int, organization: str = "acme") -> list[SimulatedScreen]:
        """Players that live until `dismiss`."""
        found = [
            SimulatedScreen(self.ws, self.token(f"{organization}-{number}", organization), timing=HURRY)
            for number in range(count)
        ]
        self._screens += [asyncio.create_task(screen.run()) for screen in found]
        return found

    async def dismiss(self, count: int | None = None) -> None:
        """Switch off screens, the first ones."""
        leaving = self._screens[:count]
        del self._screens[: len(leaving)]
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)


async def until(what: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Ask again and again, in a thread, and return the first truthy answer. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while loop.time() < deadline:
        with contextlib.suppress(OSError):
            if answer := await asyncio.to_thread(what):
                return answer
        await asyncio.sleep(POLL_SECONDS)
    raise TimeoutError
