"""ops/install.md, "Back up and restore": run as it stands there, on a service that plays were acked by."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

from tests.net.backend import API_KEY
from tests.net.peers import SECRETS, dial_device
from tests.service_process import Service

GUIDE = Path(__file__).parent.parent.parent / "ops/install.md"
KEY = {"x-internal-api-key": API_KEY}
PLAYS = 40


def commands(word: str, folder: Path, state: Path) -> str:
    """The line of the guide with this word, for the files of a test."""
    (line,) = (line for line in GUIDE.read_text().splitlines() if line.startswith("    ") and f" store {word} " in line)
    return (
        line.replace("vizora-rt store", f"{sys.executable} -m vizora_rt store")
        .replace("/var/backups/vizora-rt/$(date +%F)", str(folder / "copy"))
        .replace("/var/backups/vizora-rt/2026-11-26", str(folder / "copy"))
    )


def run(word: str, folder: Path, state: Path) -> str:
    environ = {"PATH": os.environ["PATH"], "VIZORA_STATE_DIR": str(state), "VIZORA_ENV": "development"}
    line = commands(word, folder, state)
    done = subprocess.run(["/bin/sh", "-ec", line], env=environ, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


async def plays(service: Service, device: str) -> dict[str, int]:
    status, body = await asyncio.to_thread(service.get, f"/devices/{device}/plays", KEY)
    assert status == 200, body
    return {boot["boot"]: boot["watermark"] for boot in json.loads(body)["boots"]}


async def test_a_restored_store_has_the_plays(tmp_path: Path) -> None:
    state, env = tmp_path / "state", {**SECRETS, "INTERNAL_API_SECRET": API_KEY}
    with Service(tmp_path, env, workers=1) as service:
        await asyncio.to_thread(service.start)
        screen = await dial_device(service.port, "lobby")

        async def play(first: int) -> None:
            for seq in range(first, first + PLAYS):
                body = {"contentId": "a", "play": {"boot": "b", "seq": seq}}
                assert (await screen.ask("content:impression", body))["success"]

        await play(1)
        assert "bytes" in await asyncio.to_thread(run, "backup", tmp_path, state)
        await play(PLAYS + 1)
        assert await plays(service, "lobby") == {"b": 2 * PLAYS}
        await screen.leave()
        assert await asyncio.to_thread(service.stop) == 0
        assert "the data before is in" in await asyncio.to_thread(run, "restore", tmp_path, state)
        await asyncio.to_thread(service.start)
        assert await plays(service, "lobby") == {"b": PLAYS}
        # Whoever played since is told what is missing.
        screen = await dial_device(service.port, "lobby")
        body = {"boot": "b", "plays": [{"contentId": "a", "seq": 2 * PLAYS + 1, "phase": "end"}]}
        answer = await screen.ask("content:impressions", body)
        assert answer["data"]["missing"] == [[PLAYS + 1, 2 * PLAYS]]
        await screen.leave()
