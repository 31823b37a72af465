"""A screen: it keeps its plays in a file until the gateway acked them, and comes back after each end but a final one.

python examples/player.py ws://127.0.0.1:3001/ws TOKEN plays.json
"""

import json
import random
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

SECONDS_PER_PLAY = 1.0
LONGEST_BACKOFF_SECONDS = 60.0


class Plays:
    """The plays that are not acked, in a file that is replaced as a whole: a power cut leaves the old or the new."""

    def __init__(self, file: Path) -> None:
        self.file = file
        kept: dict[str, Any] = {"boot": uuid.uuid4().hex, "seq": 0, "plays": []}
        if file.exists():
            kept = json.loads(file.read_text())
        self.boot: str = kept["boot"]
        self.seq: int = kept["seq"]
        self.waiting: list[dict[str, Any]] = kept["plays"]

    def add(self, content: str) -> None:
        self.seq += 1
        self.waiting.append({"seq": self.seq, "contentId": content, "timestamp": time.time_ns() // 1_000_000})
        self.save()

    def acked(self, watermark: int) -> None:
        """Forget the plays up to `watermark`: the gateway has stored them all."""
        self.waiting = [play for play in self.waiting if play["seq"] > watermark]
        self.save()

    def save(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps({"boot": self.boot, "seq": self.seq, "plays": self.waiting}))
        new.replace(self.file)


class Player:
    def __init__(self, plays: Plays) -> None:
        self.plays = plays
        self.playlist: list[str] = ["welcome"]
        self.heartbeat_seconds = 15.0
        self.retry_after: float | None = None
        self.executed: set[str] = set()

    def serve(self, socket: ClientConnection) -> None:
        """One connection: show content, send plays and heartbeats, handle what the gateway sends."""
        next_heartbeat = next_play = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= next_heartbeat:
                send(socket, "heartbeat", 1, {"uptime": now})
                next_heartbeat = now + self.heartbeat_seconds
            if now >= next_play:
                self.plays.add(self.playlist[self.plays.seq % len(self.playlist)])
                # 200 plays are the most that a batch may hold; the ack's watermark brings the next ones.
                send(socket, "content:impressions", 2, {"boot": self.plays.boot, "plays": self.plays.waiting[:200]})
                next_play = now + SECONDS_PER_PLAY
            try:
                message = json.loads(socket.recv(timeout=max(0.0, min(next_heartbeat, next_play) - time.monotonic())))
            except TimeoutError:
                continue
            self.handle(socket, message)

    def handle(self, socket: ClientConnection, message: dict[str, Any]) -> None:
        event, number, data = message["event"], message.get("id"), message.get("data") or {}
        if event == "ack":
            if number == 2 and data["success"]:
                self.plays.acked(data["data"]["watermark"])
            return
        if number is not None:  # The ack goes first: the gateway sends again whatever it has no ack for.
            send(socket, "ack", number, {"ok": True})
        if event == "config":
            self.heartbeat_seconds = data["heartbeatInterval"] / 1000
        elif event == "playlist:update":
            self.playlist = [item["contentId"] for item in data["playlist"]["items"]] or self.playlist
            print("playlist", data["version"], flush=True)
        elif event == "command" and data["commandId"] not in self.executed:
            self.executed.add(data["commandId"])
            print("command", data["type"], flush=True)
        elif event == "server:shutdown":
            self.retry_after = data["retryAfterMs"] / 1000


def send(socket: ClientConnection, event: str, number: int, data: dict[str, Any]) -> None:
    socket.send(json.dumps({"event": event, "id": number, "data": data}))


def run(url: str, token: str, file: Path) -> str:
    """Connect for ever. Returns the reason when the gateway says that this token never gets in again."""
    player, failures = Player(Plays(file)), 0
    while True:
        try:
            with connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as socket:
                failures = 0
                player.serve(socket)
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else 1006
            if 4500 <= code <= 4999:
                return f"closed with {code}"
        except InvalidStatus as refused:
            if refused.response.status_code in (401, 403):
                return f"refused: {refused.response.body.decode()}"
            player.retry_after = float(refused.response.headers.get("Retry-After", 0)) or None
        except OSError:
            pass
        backoff = random.random() * min(LONGEST_BACKOFF_SECONDS, 2.0**failures)
        time.sleep(backoff if player.retry_after is None else player.retry_after)
        player.retry_after, failures = None, failures + 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2], Path(sys.argv[3])))
