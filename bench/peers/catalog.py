"""Who is compared: the gateway, servers that others would have written for the same heartbeats, and the floor.

The versions of npm packages are pinned in the Makefile (`make peers`), those of Python packages in pyproject.toml (the
extra `bench`).
"""

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).parent
NODE: Final = HERE.parent.parent / ".venv" / "node"
NATIVE: Final = "/ws"
SOCKETIO: Final = "/socket.io/?EIO=4&transport=websocket"
GATEWAY: Final = "gateway"
FLOOR: Final = "C floor"
BARE: Final = ("auth", "validation", "Redis", "metrics")
"""What a server leaves out that parses and acks."""

Start = tuple[tuple[str, ...], str]
"""The command of a server, and why it cannot run here: nothing when it can."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A server. `lacks`: what of a heartbeat's work it leaves out."""

    name: str
    path: str
    lacks: tuple[str, ...]
    command: tuple[str, ...]
    missing: str = ""


def peers(scratch: Path) -> list[Peer]:
    """All of them. `scratch` takes what has to be built."""
    gateway = (sys.executable, "-m", "vizora_rt", "serve", "--port", "0", "--workers", "1")
    return [
        Peer(GATEWAY, NATIVE, (), gateway),
        Peer("gateway, Socket.IO", SOCKETIO, (), gateway),
        Peer("Socket.IO + ioredis", SOCKETIO, (), *node("serve_socketio.js", "socket.io", "ioredis", "prom-client")),
        Peer("picows", NATIVE, BARE, *python("picows")),
        Peer("aiohttp", NATIVE, BARE, *python("aiohttp")),
        Peer("ws", NATIVE, BARE, *node("serve_ws.js", "ws")),
        Peer("websockets", NATIVE, BARE, *python("websockets")),
        Peer("FastAPI, uvicorn", NATIVE, BARE, *python("fastapi", "uvicorn")),
        Peer(FLOOR, NATIVE, ("parsing", *BARE), *compiled(scratch)),
    ]


def python(module: str, *more: str) -> Start:
    lacking = [name for name in (module, *more) if importlib.util.find_spec(name) is None]
    missing = f"{', '.join(lacking)} is missing: pip install 'vizora-rt[bench]'" if lacking else ""
    return (sys.executable, "-m", f"bench.peers.serve_{module}"), missing


def node(script: str, *packages: str) -> Start:
    found = shutil.which("node")
    if found is None:
        return (), "node is missing: apt-get install nodejs npm, then make peers"
    lacking = [name for name in packages if not (NODE / "node_modules" / name).is_dir()]
    missing = f"{', '.join(lacking)} is missing: make peers" if lacking else ""
    return (found, str(HERE / script), str(NODE)), missing


def compiled(scratch: Path) -> Start:
    """Built when it is started, by a shell that then becomes it."""
    compiler = next(filter(None, map(shutil.which, ("gcc", "cc", "clang"))), None)
    program = scratch / "floor"
    if compiler is None:
        return (), "gcc is missing: apt-get install gcc libc6-dev"
    build = f'"{compiler}" -O2 -o "{program}" "{HERE / "floor.c"}" && exec "{program}"'
    return ("sh", "-c", build), ""
