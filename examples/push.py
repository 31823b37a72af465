"""A backend: it pushes a playlist to one device, sends it a command, and asks what became of the command.

python examples/push.py http://127.0.0.1:3001 "$INTERNAL_API_SECRET" lobby-1
"""

import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from typing import Any


class Gateway:
    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer's body. Retries what is refused for now; raises urllib.error.HTTPError for what stays wrong.

        The Idempotency-Key is the same for each try: if an answer is lost, the gateway gives it again and does
        nothing twice.
        """
        headers = {"x-internal-api-key": self.key, "Idempotency-Key": uuid.uuid4().hex}
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(5):
            request = urllib.request.Request(self.url + path, data, headers, method=method)
            try:
                with urllib.request.urlopen(request, timeout=10) as response:
                    return dict(json.load(response))
            except urllib.error.HTTPError as refused:
                if refused.code not in (429, 503) or attempt == 4:
                    raise
                time.sleep(float(refused.headers.get("Retry-After") or 1))
        raise AssertionError("the last attempt returns or raises")


def main(url: str, key: str, device: str) -> None:
    gateway = Gateway(url, key)
    playlist = {"id": "morning", "items": [{"contentId": "spot-1"}, {"contentId": "spot-2"}]}
    pushed = gateway.call("POST", "/push/playlist", {"deviceId": device, "playlist": playlist, "version": "v1"})
    print("playlist:", pushed["message"])
    command = {"type": "clear_cache", "commandId": f"clear-{uuid.uuid4().hex[:8]}", "ttl": 600}
    sent = gateway.call("POST", "/internal/command", {"deviceId": device, "command": command})
    print("command:", sent["message"])
    record = gateway.call("GET", f"/commands/{command['commandId']}")
    print("state:", record["devices"][device]["state"])


if __name__ == "__main__":
    main(*sys.argv[1:4])
