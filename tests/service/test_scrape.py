"""Collecting, rendering and answering, with real totals and workers that are only a list of what they were sent."""

import asyncio
import gzip
import os
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from tests.service_process import PATIENCE
from vizora_rt import config
from vizora_rt.service import scrape
from vizora_rt.service.channel import Message
from vizora_rt.service.process import Process
from vizora_rt.service.scrape import MetricsCollector
from vizora_rt.telemetry.exposition import Totals
from vizora_rt.telemetry.metrics import Metrics

SERIES = b'vizora_realtime_ws_bytes_total{direction="in"} '
MISSING = b"vizora_realtime_scrape_workers_missing "


class Deaf:
    """For a process that nobody listens to."""

    def __getattr__(self, _: str) -> Any:
        raise AssertionError


class Puppet(Process):
    """A worker that counts bytes and says what the test has it say."""

    def __init__(self, index: int) -> None:
        super().__init__(index, 1, {}, Deaf())
        self.state = "ready"
        self.metrics = Metrics(config.MetricsSettings())
        self.bytes = self.metrics.counter("ws_bytes_total", "in")
        self.asked: asyncio.Queue[Message] = asyncio.Queue()
        self.answers: asyncio.Queue[tuple[Message, bytes]] = asyncio.Queue()

    @property
    def pid(self) -> int:
        return 1000 + self.index

    def send(self, message: Message, raw: bytes = b"") -> None:
        if message["t"] == "collect":
            self.asked.put_nowait(message)
        else:
            self.answers.put_nowait((message, raw))

    def report(self) -> Message:
        return {"t": "beat", "id": 0, "metrics": self.metrics.snapshot()}

    async def answer(self, scrapes: MetricsCollector) -> None:
        """Answer the next collect."""
        number = (await self.asked.get())["id"]
        scrapes.take_metrics(self, self.report() | {"id": number})
        scrapes.take_metrics(self, {"t": "devices", "rows": [], "last": True, "id": number})

    async def exposition(self) -> bytes:
        async with asyncio.timeout(PATIENCE):
            return (await self.answers.get())[1]


class Two:
    """A service of two workers."""

    def __init__(self) -> None:
        self.workers = [Puppet(0), Puppet(1)]
        self.recounts = 0

    def serving(self) -> list[Process]:
        return list(self.workers)

    def pids(self) -> Mapping[str, int]:
        return {}

    def recount(self) -> None:
        self.recounts += 1


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> Two:
    """Nobody here is late because the machine is busy."""
    monkeypatch.setattr(scrape, "ANSWER_SECONDS", PATIENCE)
    return Two()


def value(exposition: bytes, series: bytes) -> float:
    (line,) = (line for line in exposition.splitlines() if line.startswith(series))
    return float(line.removeprefix(series))


async def test_a_scrape_has_the_newest_figures_of_all_workers(service: Two) -> None:
    scrapes = MetricsCollector(Totals(config.MetricsSettings()), service)
    first, second = service.workers
    scrapes.take_metrics(first, first.report())
    first.bytes.value, second.bytes.value = 3, 4
    scrapes.ask(first, 7, False, False)
    await asyncio.gather(first.answer(scrapes), second.answer(scrapes))
    message, body = await first.answers.get()
    assert message == {"t": "answer", "id": 7}
    assert value(body, SERIES) == 7
    assert value(body, MISSING) == 0
    assert service.recounts == 1


async def test_who_asks_at_once_shares_one_collection_and_gets_the_format_asked_for(service: Two) -> None:
    scrapes = MetricsCollector(Totals(config.MetricsSettings()), service)
    first, second = service.workers
    scrapes.ask(first, 1, False, False)
    scrapes.ask(first, 2, True, False)
    scrapes.ask(second, 1, False, True)
    await asyncio.gather(first.answer(scrapes), second.answer(scrapes))
    plain, openmetrics, compressed = [
        await first.exposition(),
        await first.exposition(),
        gzip.decompress(await second.exposition()),
    ]
    assert openmetrics.endswith(b"# EOF\n")
    assert plain == compressed
    assert not plain.endswith(b"# EOF\n")
    assert service.recounts == 1
    assert first.asked.empty()


async def test_a_silent_worker_is_missing_and_its_last_figures_are_used(
    service: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "ANSWER_SECONDS", 0.05)
    scrapes = MetricsCollector(Totals(config.MetricsSettings()), service)
    first, second = service.workers
    second.bytes.value = 5
    scrapes.take_metrics(second, second.report())
    scrapes.ask(first, 1, False, False)
    await first.answer(scrapes)
    body = await first.exposition()
    assert (value(body, MISSING), value(body, SERIES)) == (1, 5)
    # What it says too late belongs to no scrape, but is no less true.
    monkeypatch.setattr(scrape, "ANSWER_SECONDS", PATIENCE)
    second.bytes.value = 6
    await second.answer(scrapes)
    scrapes.ask(first, 2, False, False)
    await asyncio.gather(first.answer(scrapes), second.answer(scrapes))
    body = await first.exposition()
    assert (value(body, MISSING), value(body, SERIES)) == (0, 6)


async def test_a_worker_that_dies_in_a_scrape_is_not_waited_for_and_what_it_counted_stays(service: Two) -> None:
    scrapes = MetricsCollector(Totals(config.MetricsSettings()), service)
    first, second = service.workers
    second.bytes.value = 5
    scrapes.take_metrics(second, second.report())
    scrapes.ask(first, 1, False, False)
    await first.answer(scrapes)
    service.workers.remove(second)
    scrapes.gone(second)
    body = await first.exposition()
    assert (value(body, MISSING), value(body, SERIES)) == (0, 5)


class SlowTotals(Totals):
    """Renders when it is told to."""

    def __init__(self) -> None:
        super().__init__(config.MetricsSettings())
        self.rendering = threading.Event()
        self.go = threading.Event()

    def render(self, openmetrics: bool) -> bytes:
        self.rendering.set()
        self.go.wait(PATIENCE)
        return super().render(openmetrics)


async def test_totals_stand_still_while_they_are_rendered(service: Two) -> None:
    totals = SlowTotals()
    scrapes = MetricsCollector(totals, service)
    first, second = service.workers
    scrapes.ask(first, 1, False, False)
    await asyncio.gather(first.answer(scrapes), second.answer(scrapes))
    await asyncio.to_thread(totals.rendering.wait, PATIENCE)
    first.bytes.value = 8
    scrapes.take_metrics(first, first.report())
    service.workers.remove(second)
    scrapes.gone(second)
    scrapes.ask(first, 2, False, False)
    totals.go.set()
    assert value(await first.exposition(), SERIES) == 0
    await first.answer(scrapes)
    assert value(await first.exposition(), SERIES) == 8


async def test_a_fault_in_the_exposition_is_answered_and_the_next_scrape_works(
    service: Two, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    scrapes = MetricsCollector(Totals(config.MetricsSettings()), service)
    first, second = service.workers
    with monkeypatch.context() as broken:
        broken.setattr(scrapes.totals, "render", None)
        scrapes.ask(first, 1, False, False)
        await asyncio.gather(first.answer(scrapes), second.answer(scrapes))
        message, _ = await first.answers.get()
    assert message == {"t": "answer", "id": 1, "error": "exposition failed"}
    assert "Traceback" in capfd.readouterr().err
    scrapes.ask(first, 2, False, False)
    await asyncio.gather(first.answer(scrapes), second.answer(scrapes))
    assert SERIES in await first.exposition()


async def test_figures_that_do_not_fit_are_refused_with_one_line_per_process(
    service: Two, capfd: pytest.CaptureFixture[str]
) -> None:
    scrapes = MetricsCollector(Totals(config.MetricsSettings()), service)
    first, second = service.workers
    torn = {"first": True, "new": [], "values": [1], "timers": []}
    future = {"first": True, "new": [["of_the_future", "counter", []]], "values": [1], "timers": []}
    for _ in range(3):
        scrapes.take_metrics(first, {"t": "beat", "metrics": torn})
        scrapes.take_metrics(second, {"t": "beat", "metrics": future})
    log = capfd.readouterr().err
    assert log.count("figures of a worker refused") == log.count("figures of a worker left out") == 1


async def test_closing_ends_a_scrape_that_waits(service: Two) -> None:
    scrapes = MetricsCollector(Totals(config.MetricsSettings()), service)
    scrapes.ask(service.workers[0], 1, False, False)
    await service.workers[0].asked.get()
    await scrapes.close()
    assert service.workers[0].answers.empty()


class PoliteTotals(Totals):
    """Notes how nice the thread is that renders."""

    nice = 0

    def render(self, openmetrics: bool) -> bytes:
        self.nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return super().render(openmetrics)


async def test_rendering_stands_back_behind_workers_and_the_loop_does_not(service: Two) -> None:
    totals = PoliteTotals(config.MetricsSettings())
    scrapes = MetricsCollector(totals, service)
    first, second = service.workers
    before = os.getpriority(os.PRIO_PROCESS, 0)
    scrapes.ask(first, 1, False, False)
    await asyncio.gather(first.answer(scrapes), second.answer(scrapes))
    assert (await first.exposition()).startswith(b"# HELP")
    assert totals.nice == min(19, before + scrape.NICE)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    await scrapes.close()


async def test_rendering_goes_on_where_it_may_not_stand_back(service: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(which: int, who: int, priority: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", refuse)
    scrapes = MetricsCollector(Totals(config.MetricsSettings()), service)
    first, second = service.workers
    scrapes.ask(first, 1, False, False)
    await asyncio.gather(first.answer(scrapes), second.answer(scrapes))
    assert (await first.exposition()).startswith(b"# HELP")
    await scrapes.close()


async def test_workers_are_told_which_organizations_have_series_of_their_own(service: Two) -> None:
    """Else a worker that met others first would count them under `other`, and a successor would choose anew."""
    scrapes = MetricsCollector(Totals(config.MetricsSettings(max_organization_series=2)), service)
    first, second = service.workers
    scrapes.tell(second)
    first.metrics.organization("ws_connections_active", "acme", "device")
    first.metrics.organization("ws_connections_active", "globex", "device")
    second.metrics.organization("ws_connections_active", "initech", "device")
    for worker in (first, second, first):
        scrapes.take_metrics(worker, worker.report())
    for worker in (first, second):
        assert (await worker.answers.get())[0] == {"t": "organizations", "names": ["acme", "globex"]}
        assert worker.answers.empty()
    scrapes.tell(second)
    assert (await second.answers.get())[0]["names"] == ["acme", "globex"]
