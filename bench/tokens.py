"""Tokens for the devices of a run: made with the server's secret, or read from a file with one a line."""

import time
from pathlib import Path

from vizora_rt.app.auth import mint_device
from vizora_rt.config import Auth

DEVICES_AN_ORGANIZATION = 500
LIFE_SECONDS = 86_400


def mint(secret: str, count: int) -> list[str]:
    auth, now = Auth(device_jwt_secret=secret), int(time.time())
    return [
        mint_device(auth, f"bench-{number:06}", f"bench-org-{number // DEVICES_AN_ORGANIZATION}", now, LIFE_SECONDS)
        for number in range(count)
    ]


def read(file: Path, count: int) -> list[str]:
    """Raises ValueError when there are too few: two connections with one token supersede each other."""
    tokens = file.read_text().split()
    if len(tokens) < count:
        raise ValueError(f"{file}: {len(tokens)} tokens for {count} devices")
    return tokens[:count]
