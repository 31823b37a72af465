"""Where a Sentry of one's own would be: an HTTP server on loopback that reads envelopes.

with Sink() as sink:
    ...                      # a process with SENTRY_DSN=sink.dsn
    event = sink.wait("event", reason="invalid_payload")
"""

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from tests.service_process import PATIENCE

Item = dict[str, Any]


class Sink:
    """What arrived: `items` by kind, and `text`, all of it as it came. `status` is what is answered."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.items: list[tuple[str, Item]] = []
        self.text = b""
        self._news = threading.Condition(threading.RLock())
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Taker", (_Taker,), {"sink": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def dsn(self) -> str:
        return f"http://public@127.0.0.1:{self._server.server_address[1]}/1"

    def of(self, kind: str, **tags: str) -> list[Item]:
        """The items of a kind (`event`, `transaction`, `profile`) with these tags."""
        with self._news:
            return [item for found, item in self.items if found == kind and _has(item, tags)]

    def wait(self, kind: str, count: int = 1, **tags: str) -> Item:
        """The `count`-th of them, now or later."""
        with self._news:
            arrived = self._news.wait_for(lambda: len(self.of(kind, **tags)) >= count, PATIENCE)
        assert arrived, f"no {kind} {tags}: {[(found, item.get('tags')) for found, item in self.items]}"
        return self.of(kind, **tags)[count - 1]

    def take(self, body: bytes) -> None:
        items = list(parse(body))
        with self._news:
            self.text += body
            self.items += items
            self._news.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def parse(body: bytes) -> Iterator[tuple[str, Item]]:
    """The items of an envelope: a line of headers, then for each item its headers and its payload."""
    headers, _, rest = body.partition(b"\n")
    json.loads(headers)
    while rest:
        line, _, rest = rest.partition(b"\n")
        if not line:
            continue
        header = json.loads(line)
        size = header.get("length", len(rest.partition(b"\n")[0]))
        payload, rest = rest[:size], rest[size + 1 :]
        yield header["type"], json.loads(payload)


def _has(item: Item, tags: dict[str, str]) -> bool:
    found = item.get("tags", {})
    return all(found.get(name) == value for name, value in tags.items())


class _Taker(http.server.BaseHTTPRequestHandler):
    sink: Sink

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.sink.status == 200:
            self.sink.take(body)
        self.send_response(self.sink.status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass
