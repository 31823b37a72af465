"""HTTP requests at a fixed rate over keep-alive connections: what dashboards, backends and Prometheus ask.

Each waits for a connection that is free, and its latency counts from the time at which it was due, that wait included.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from time import perf_counter_ns
from typing import Final

from bench.load import web
from bench.load.load_context import Agent
from bench.load.schedule import Timetable

Request = tuple[str, str, str, bytes | None, tuple[int, ...]]
"""Its kind, method, path, body, and the statuses that are a success."""

CONNECTIONS: Final = 32
WAITING: Final = 10_000
"""Requests that wait for a connection; more are refused here, and counted as what they are."""


class Requests:
    """A round of requests over some connections."""

    def __init__(self, agent: Agent, requests: Sequence[Request], connections: int = CONNECTIONS) -> None:
        self._agent = agent
        self._requests = requests
        self._number = 0
        self._free: deque[web.Connection] = deque()
        self._all = [web.Connection(agent.endpoint, agent.job.key) for _ in range(connections)]
        self._waiting: deque[tuple[Request, int]] = deque()
        self._timetable = Timetable(lambda: agent.recorder.lateness, 0)
        self.tallies = {kind: agent.recorder.tally(kind) for kind in {request[0] for request in requests}}

    async def connect(self) -> None:
        """Raises OSError."""
        await asyncio.gather(*(connection.connect() for connection in self._all))
        self._free.extend(self._all)

    def start(self, rate: float) -> None:
        self._timetable.add(rate, self._due)
        self._timetable.start()

    async def stop(self) -> None:
        """Send no more, wait for what is on its way, and go."""
        self._timetable.stop()
        await self._agent.answered(*self.tallies.values())
        for connection in self._all:
            connection.close()

    def _due(self, due: int) -> None:
        request = self._requests[self._number % len(self._requests)]
        self._number += 1
        self.tallies[request[0]].ask(due)
        if self._free:
            self._send(self._free.popleft(), request, due)
        elif len(self._waiting) < WAITING:
            self._waiting.append((request, due))
        else:
            self.tallies[request[0]].refuse(due, perf_counter_ns(), "no connection was free")

    def _send(self, connection: web.Connection, request: Request, due: int) -> None:
        kind, method, path, body, good = request

        def answered(status: int, text: bytes) -> None:
            now = perf_counter_ns()
            if status in good:
                self.tallies[kind].succeed(due, now)
            else:
                self.tallies[kind].refuse(due, now, f"HTTP {status}" if status else "connection lost")
            if connection.open:
                self._next(connection)
            else:
                asyncio.get_running_loop().create_task(self._again(connection))

        connection.ask(method, path, body, answered)

    def _next(self, connection: web.Connection) -> None:
        if self._waiting:
            # Not from within the answer to the last one, which may come at once when the connection has ended.
            asyncio.get_running_loop().call_soon(self._send, connection, *self._waiting.popleft())
        else:
            self._free.append(connection)

    async def _again(self, ended: web.Connection) -> None:
        """A connection that ended is replaced by another."""
        connection = web.Connection(self._agent.endpoint, self._agent.job.key)
        self._all[self._all.index(ended)] = connection
        try:
            await connection.connect()
        except OSError:
            await asyncio.sleep(0.1)
        self._next(connection)
