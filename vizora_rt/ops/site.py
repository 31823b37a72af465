"""A gateway of one's own on loopback, with screens: what drills and tests of the monitoring look at, and hurt.

It runs as `vizora-rt serve` does, in development, with an embedded store, on state of its own that is thrown away.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from vizora_rt import config
from vizora_rt.app import auth
from vizora_rt.errors import UnavailableError
from vizora_rt.net import embedded
from vizora_rt.net.client import Timing
from vizora_rt.net.dial import Ending, WebSocket, parse_url
from vizora_rt.net.link import Address, ask
from vizora_rt.net.screen import Screen
from vizora_rt.ops import monitors
from vizora_rt.wire import messages

PATIENCE = 30.0
POLL_SECONDS = 0.1
DAY = 86400
HURRY = Timing(first_beat=0.2, backoff_first=0.2, backoff_most=1.0)


class Wire:
    """A connection that says what it is told to, right or wrong, and hears nothing."""

    def __init__(self, url: str, token: str) -> None:
        self.online = asyncio.Event()
        self._socket = WebSocket(self, parse_url(url), token, connect=PATIENCE, goodbye=0.5)
        self._task = asyncio.create_task(self._socket.run())

    def connected(self, socket: WebSocket) -> None:
        self.online.set()

    def disconnected(self, socket: WebSocket) -> None:
        self.online.clear()

    def received(self, socket: WebSocket, text: str) -> None:
        pass

    async def opened(self) -> None:
        """Returns when it is online, or was refused."""
        waiting = asyncio.create_task(self.online.wait())
        await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()

    def say(self, event: str, data: Any, number: int | None = 1) -> None:
        said = {"event": event, "data": data, **({} if number is None else {"id": number})}
        self._socket.send(messages.dumps(said))

    async def ended(self) -> Ending:
        return await self._task

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


class Site:
    """The gateway and its screens."""

    def __init__(self, folder: Path, port: int, workers: int = 2) -> None:
        self.folder = folder
        self.port = port
        self._workers = workers
        self._popen: subprocess.Popen[bytes] | None = None
        self._screens: list[asyncio.Task[Ending]] = []
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
            raise UnavailableError(f"the gateway ended: see {self.folder / 'gateway.log'}")
        try:
            return len(self.workers()) == self._workers
        except OSError:
            return False

    async def stop(self) -> None:
        """SIGTERM, as an operator would; then the screens."""
        if self._popen is not None:
            self._popen.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self._popen.wait, PATIENCE)
            self._popen = None
        await self.dismiss()

    def workers(self) -> list[int]:
        """Pids of those that are ready."""
        status = monitors.get(f"{self.url}/status")
        return [worker["pid"] for worker in status["workers"] if worker["state"] == "ready"]

    async def call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(method, *arguments)

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
        return ask(Address.parse(embedded.running(self.state)), commands, PATIENCE)

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

    def screens(self, count: int, organization: str = "acme") -> list[Screen]:
        """Players that live until `dismiss`."""
        found = [
            Screen(self.ws, self.token(f"{organization}-{number}", organization), timing=HURRY)
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
    """Ask again and again, in a thread, and return the first truthy answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while loop.time() < deadline:
        with contextlib.suppress(OSError):
            if answer := await asyncio.to_thread(what):
                return answer
        await asyncio.sleep(POLL_SECONDS)
    raise TimeoutError
