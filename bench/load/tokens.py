"""Tokens for the devices and dashboards of a run: made with the server's secrets, or read from a file, one a line."""

import base64
import json
import time
from pathlib import Path

from vizora_rt.app.auth import mint_device, mint_user
from vizora_rt.config import AuthSettings

DEVICES_AN_ORGANIZATION = 500
LIFE_SECONDS = 86_400


def organization(number: int) -> str:
    """The one of the device with this number."""
    return f"bench-org-{number // DEVICES_AN_ORGANIZATION}"


def mint(secret: str, count: int) -> list[str]:
    auth, now = AuthSettings(device_jwt_secret=secret), int(time.time())
    return [mint_device(auth, f"bench-{number:06}", organization(number), now, LIFE_SECONDS) for number in range(count)]


def read(file: Path, count: int) -> list[str]:
    """Raises ValueError when there are too few: two connections with one token supersede each other."""
    tokens = file.read_text().split()
    if len(tokens) < count:
        raise ValueError(f"{file}: {len(tokens)} tokens for {count} devices")
    return tokens[:count]


def mint_users(secret: str, count: int) -> list[str]:
    """Dashboards, all of the first organisation."""
    auth, now = AuthSettings(jwt_secret=secret), int(time.time())
    return [mint_user(auth, f"bench-user-{number:06}", organization(0), now, LIFE_SECONDS) for number in range(count)]


def subject(token: str) -> str:
    """The device that a token is of, unverified; empty when it is no token of ours."""
    try:
        payload = token.split(".")[1]
        return str(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["sub"])
    except (IndexError, ValueError, LookupError, TypeError):
        return ""
