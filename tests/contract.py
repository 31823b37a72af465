"""docs/protocol.md as a test reads it: its tables, and its examples, which are run against a real service.

An example is a fenced block. `native NAME` and `socketio NAME` are what a client sends (`>`) and gets (`<`); a client
of a name keeps its connection from block to block. `console` is a shell, one for the whole page; `background`: its
output is read after the next block, since a call waits for the ack that is given there. `redis` asks Redis.
Of a JSON text all must be equal but what stands as `<time>`, `<ms>` and so on.
"""

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import redis
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

PATIENCE: Final = 20.0
STATUS: Final = '"event":"device:status'
END: Final = "-- end of the block --"

TOKEN: Final = r"[\w-]+\.[\w-]+\.[\w-]+"
TIME: Final = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
ID: Final = r"[^\s{}]{1,128}"

PLACEHOLDERS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "<time>": lambda value: isinstance(value, str) and re.fullmatch(TIME, value) is not None,
    "<date>": lambda value: isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None,
    "<ms>": lambda value: type(value) is int and 1_764_000_000_000 < value < 4_000_000_000_000,
    "<number>": lambda value: type(value) in (int, float),
    "<n>": lambda value: type(value) is int,
    "<text>": lambda value: isinstance(value, str) and value != "",
    "<id>": lambda value: isinstance(value, str) and re.fullmatch(ID, value) is not None,
    "<token>": lambda value: isinstance(value, str) and re.fullmatch(TOKEN, value) is not None,
}


class WrongError(AssertionError):
    """The page says something else than the service."""


def differs(expected: Any, actual: Any, where: str = "") -> str:
    """In what `actual` is not as `expected`; "" when it is."""
    if isinstance(expected, str) and expected in PLACEHOLDERS:
        return "" if PLACEHOLDERS[expected](actual) else f"{where}: {actual!r} is no {expected}"
    if type(expected) is not type(actual):
        return f"{where}: {actual!r} instead of {expected!r}"
    if isinstance(expected, dict):
        return _differs_in_names(expected, actual, where)
    if isinstance(expected, list):
        if len(expected) != len(actual):
            return f"{where}: {len(actual)} elements instead of {len(expected)}"
        pairs = zip(expected, actual, strict=True)
        return next((why for n, (one, other) in enumerate(pairs) if (why := differs(one, other, f"{where}[{n}]"))), "")
    return "" if expected == actual else f"{where}: {actual!r} instead of {expected!r}"


def _differs_in_names(expected: dict[str, Any], actual: dict[str, Any], where: str) -> str:
    """Of objects; a name may be a placeholder too."""
    rest = dict(actual)
    for name, value in expected.items():
        found = name
        if name in PLACEHOLDERS:
            found = next((each for each in rest if PLACEHOLDERS[name](each)), name)
        if found not in rest:
            return f"{where}.{name}: missing"
        why = differs(value, rest.pop(found), f"{where}.{name}")
        if why:
            return why
    return f"{where}: {', '.join(rest)} too many" if rest else ""


def differs_in_text(expected: str, actual: str) -> str:
    """Of lines: a packet's digits before its JSON, JSON alone, or plain text."""
    one, other = _parsed(expected), _parsed(actual)
    if one is not None and other is not None:
        if one[0] != other[0]:
            return f"{actual!r} instead of {expected!r}"
        return differs(one[1], other[1])
    pattern = re.escape(expected)
    for name, value in (("<token>", TOKEN), ("<number>", r"\d+"), ("<text>", r"\S+")):
        pattern = pattern.replace(re.escape(name), value)
    return "" if re.fullmatch(pattern, actual) else f"{actual!r} instead of {expected!r}"


def _parsed(text: str) -> tuple[str, Any] | None:
    """What stands before the JSON of a line, and the JSON; None when there is none."""
    found = re.match(r"(\d*(?:/\w+,)?)([\[{].*)", text, re.DOTALL)
    try:
        return (found[1], json.loads(found[2])) if found is not None else None
    except ValueError:
        return None


class Block(NamedTuple):
    """An example: what kind, of whom, and its lines."""

    line: int
    kind: str
    name: str
    lines: list[str]


class Page:
    """A Markdown page."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.splitlines()

    @classmethod
    def read(cls, path: Path) -> Self:
        return cls(path.read_text("utf-8"))

    def blocks(self) -> Iterator[Block]:
        """Its fenced blocks."""
        lines = iter(enumerate(self.lines, 1))
        for number, line in lines:
            if line.startswith("```"):
                kind, _, name = line.removeprefix("```").partition(" ")
                inside = []
                for _, text in lines:
                    if text == "```":
                        break
                    inside.append(text)
                yield Block(number, kind, name, inside)

    def rows(self, after: str, count: int = 1) -> list[list[str]]:
        """The cells of the `count`-th table after a line, without its head."""
        start = self.lines.index(after)
        for _ in range(count):
            start = next(n for n in range(start + 1, len(self.lines)) if self.lines[n].startswith("|---"))
        found = []
        for line in self.lines[start + 1 :]:
            if not line.startswith("|"):
                break
            found.append([cell.strip() for cell in line.strip("|").split("|")])
        return found


def code(cell: str) -> str:
    """What stands in a cell in backquotes."""
    return cell.strip("*").strip("`")


@dataclass
class Reader:
    """Runs the examples of a page. `heard` are the expected and the actual lines, in pairs."""

    gateway: str
    redis_url: str
    env: Mapping[str, str]
    folder: Path
    tokens: Mapping[str, str]
    heard: list[tuple[str, str]] = field(default_factory=list)
    _clients: dict[str, ClientConnection] = field(default_factory=dict)
    _shell: asyncio.subprocess.Process | None = None
    _waiting: list[tuple[Block, list[str]]] = field(default_factory=list)
    _bound: int = 0

    async def run(self, page: Page) -> None:
        """All examples, in their order. Raises WrongError with the line that is not true."""
        try:
            for block in page.blocks():
                if block.kind == "console":
                    await self._collect()
                    await self._ask_shell(block)
                elif block.kind in ("native", "socketio"):
                    await self._talk(block)
                elif block.kind == "redis":
                    await asyncio.to_thread(self._ask_redis, block)
                if "background" not in block.name:
                    await self._collect()
        finally:
            await self._leave()

    async def _leave(self) -> None:
        for client in self._clients.values():
            await client.close()
        if self._shell is not None:
            self._shell.kill()
            await self._shell.wait()

    def _check(self, block: Block, expected: str, actual: str) -> None:
        self.heard.append((expected, actual))
        why = differs_in_text(expected, actual)
        if why:
            raise WrongError(f"line {block.line + block.lines.index(self._source) + 1}: {why}")

    # Clients

    async def _talk(self, block: Block) -> None:
        client = self._clients.get(block.name)
        if client is None:
            client = self._clients[block.name] = await self._dial(block.kind, block.name)
        for line in block.lines:
            self._source = line
            if line.startswith("> "):
                text = line[2:].replace('"<n>"', str(self._bound))
                await client.send(text.replace("<token>", self.tokens.get(block.name, "")))
            elif line.startswith("< close "):
                await self._closed(block, client, line)
            else:
                await self._hear(block, client, line.removeprefix("< "))

    async def _dial(self, kind: str, name: str) -> ClientConnection:
        base = self.gateway.replace("http", "ws", 1)
        if kind == "socketio":
            return await connect(f"{base}/socket.io/?EIO=4&transport=websocket", compression=None, proxy=None)
        headers = {"Authorization": f"Bearer {self.tokens[name]}"}
        return await connect(f"{base}/ws", additional_headers=headers, compression=None, proxy=None)

    async def _hear(self, block: Block, client: ClientConnection, expected: str) -> None:
        text = await self._next(client)
        while STATUS in text and STATUS not in expected:
            text = await self._next(client)  # a dashboard hears of changes whenever they happen
        self._check(block, expected, text)
        if '"<n>"' in expected:
            self._bound = json.loads(text)["id"]

    async def _closed(self, block: Block, client: ClientConnection, line: str) -> None:
        self._check(block, line.removeprefix("< "), await self._next(client))

    async def _next(self, client: ClientConnection) -> str:
        """The next message, or how the connection ended."""
        try:
            async with asyncio.timeout(PATIENCE):
                return str(await client.recv())
        except ConnectionClosed:
            return f"close {client.close_code}"
        except TimeoutError:
            return "nothing"

    # The shell

    async def _ask_shell(self, block: Block) -> None:
        """Give the shell all commands of a block. What they print comes later."""
        if self._shell is None:
            self._shell = await asyncio.create_subprocess_exec(
                "bash", "--norc", "--noprofile",
                cwd=self.folder, env=dict(self.env),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        stdin = self._shell.stdin
        assert stdin is not None
        commands = [line.removeprefix("$ ") for line in block.lines if line.startswith("$ ")]
        # A command must not read what is meant for the shell; curl prints bodies, which do not end their line.
        text = "".join(f"{each}\n" if "()" in each else f"{{ {each}; }} </dev/null; echo\n" for each in commands)
        stdin.write(f"{text}echo '{END}'\n".encode())
        await stdin.drain()
        self._waiting.append((block, [line for line in block.lines if not line.startswith("$ ")]))

    async def _collect(self) -> None:
        """Compare what the shell prints with what it shall."""
        waiting, self._waiting = self._waiting, []
        for block, expected in waiting:
            printed = await self._printed()
            if len(printed) != len(expected):
                raise WrongError(f"line {block.line}: {printed} instead of {expected}")
            for line, text in zip(expected, printed, strict=True):
                self._source = line
                self._check(block, line, text)

    async def _printed(self) -> list[str]:
        assert self._shell is not None and self._shell.stdout is not None
        lines: list[str] = []
        async with asyncio.timeout(PATIENCE):
            while (line := (await self._shell.stdout.readline()).decode()) and line.strip() != END:
                lines.append(line.rstrip("\n"))
        return [line for line in lines if line]

    # Redis

    def _ask_redis(self, block: Block) -> None:
        client: Any = redis.Redis.from_url(self.redis_url, decode_responses=True)
        answer = ""
        for line in block.lines:
            self._source = line
            if line.startswith("> "):
                found = client.execute_command(*line[2:].split(" "))
                answer = "null" if found is None else str(found)
            else:
                self._check(block, line.removeprefix("< "), answer)
        client.close()
