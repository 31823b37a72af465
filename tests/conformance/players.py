"""The real socket.io-client in a process of its own: clients by name, and what each of them saw, in order.

    with Players() as players:
        players.open("lobby", url, ELECTRON, token)
        players.wait("lobby", "connect")

Node and the package are installed by `make peers`; without them a test is skipped, or fails where VIZORA_REQUIRE_TOOLS
is set.
"""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.service_process import PATIENCE

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / ".venv" / "node"
SCRIPT = Path(__file__).with_name("players.js")

Record = dict[str, Any]

ELECTRON = {"transports": ["websocket"], "reconnectionDelay": 1000, "reconnectionDelayMax": 5000}
"""The desktop player: it comes back for ever, after 1 to 5 s."""
TV = {"transports": ["websocket"], "reconnectionDelay": 1000, "reconnectionDelayMax": 60000, "randomizationFactor": 0.5}
CLIENT = "socket.io-client"
OLD_CLIENT = "socket.io-client-4.0"
"""The first of version 4. Up to 4.3 a CONNECT_ERROR did not keep a client away."""
DASHBOARD = {"transports": ["websocket"], "withCredentials": True}


def require(package: str) -> str:
    """The path of node."""
    node = shutil.which("node")
    if node is None:
        reason = "node is missing: apt-get install nodejs npm"
    elif not (FOLDER / "node_modules" / package).is_dir():
        reason = f"{package} is missing: make peers"
    else:
        return node
    if os.environ.get("VIZORA_REQUIRE_TOOLS"):
        pytest.fail(reason)
    pytest.skip(reason)


class Players:
    """One process, any number of clients."""

    def __init__(self, package: str = CLIENT) -> None:
        self.records: list[Record] = []
        self._process = subprocess.Popen(
            [require(package), str(SCRIPT), str(FOLDER), package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._news = threading.Condition()
        self._over = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(PATIENCE)
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.records.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()

    def _order(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def open(
        self,
        name: str,
        port: int,
        kind: Mapping[str, Any],
        token: str | None = None,
        *,
        capabilities: Any = None,
        cookie: str | None = None,
        origin: str | None = None,
        **options: Any,
    ) -> None:
        """Begin a client; with capabilities it acks what wants an ack."""
        auth = {"token": token} if token is not None else {}
        if capabilities is not None:
            auth["capabilities"] = capabilities
        fields = {"cookie": f"vizora_auth_token={cookie}" if cookie else None, "origin": origin}
        headers = {field: value for field, value in fields.items() if value is not None}
        own = {"auth": auth, **({"extraHeaders": headers} if headers else {})}
        url = f"http://127.0.0.1:{port}"
        self._order(open=name, url=url, options={**kind, **own, **options}, acks=capabilities is not None)

    def emit(self, name: str, event: str, data: Any = None) -> Record:
        """Send an event, and return what it is acked with."""
        before = len(self.of(name, "ack"))
        self._order(emit=name, event=event, data=data, ack=True)
        body: Record = self.wait(name, "ack", before + 1)["data"]
        return body

    def leave(self, name: str) -> None:
        self._order(leave=name)

    def cut(self, name: str) -> None:
        """A fault of the network."""
        self._order(cut=name)

    def of(self, name: str, what: str, **fields: Any) -> list[Record]:
        """What this client has seen of a kind, so far."""
        wanted = {"who": name, "what": what, **fields}
        return [each for each in list(self.records) if all(each.get(key) == wanted[key] for key in wanted)]

    def wait(self, name: str, what: str, count: int = 1, **fields: Any) -> Record:
        """The `count`-th of them, now or later."""
        with self._news:
            self._news.wait_for(lambda: len(self.of(name, what, **fields)) >= count or self._over, 2 * PATIENCE)
        found = self.of(name, what, **fields)
        if len(found) < count:
            seen = "\n".join(map(str, [each for each in self.records if each["who"] == name]))
            raise AssertionError(f"{name} did not see {what} {fields or ''}:\n{seen}")
        return found[count - 1]
