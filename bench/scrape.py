"""What a scrape costs those who send heartbeats: many devices with series, with and without a scrape each second.

    python -m bench.scrape ws://127.0.0.1:3001/ws --devices 20000 --rate 2000

The service: two workers, `metrics.max_device_series` above the number of devices, no limit on messages or handshakes.
Several processes make the load, since each may have so many descriptors; quiet and scraped rounds take turns, and the
p99 of a round is that of its worst process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from bench import server, tokens
from vizora_rt.net.dial import Endpoint, parse_url

A_PROCESS: Final = 10_000
"""Devices of one load process: half of the descriptors that a process usually may have."""


class Scrape(NamedTuple):
    """One answer of /metrics."""

    seconds: float
    plain: int
    sent: int


class Scraper:
    """Asks for the exposition each second, as Prometheus does: gzipped."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.scrapes: list[Scrape] = []
        self._url = f"{server.base(endpoint)}/metrics"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Scraper":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due + 1.0, time.monotonic())
            self.scrapes.append(scrape(self._url, compress=True))


def scrape(url: str, compress: bool) -> Scrape:
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"} if compress else {})
    began = time.perf_counter()
    with urllib.request.urlopen(request, timeout=10) as answer:
        body = answer.read()
    return Scrape(time.perf_counter() - began, 0 if compress else len(body), len(body))


def load(url: str, files: Sequence[Path], devices: int, rate: float, seconds: float) -> list[float]:
    """p99 of each load process, in seconds, once all have measured."""
    each = devices // len(files)
    options = ["--devices", str(each), "--rate", str(rate / len(files)), "--seconds", str(seconds), "--json"]
    command = [sys.executable, "-m", "bench", "load", "--url", url, *options]
    running = [
        subprocess.Popen([*command, "--tokens", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for file in files
    ]
    found = []
    for process in running:
        out, errors = process.communicate()
        if process.returncode not in (0, 3):  # 3: short of CPU, as all are here; said in the docs beside the figures
            raise SystemExit(f"a load process failed: {errors.strip()}")
        _, _, _, p99, *_ = json.loads(out)["messages"]["latencies"]
        found.append(p99)
    return found


def run(options: argparse.Namespace) -> None:
    endpoint = parse_url(options.url)
    processes = -(-options.devices // A_PROCESS)
    secret = os.environ["DEVICE_JWT_SECRET"]
    quiet: list[float] = []
    scraped: list[float] = []
    scrapes: list[Scrape] = []
    with tempfile.TemporaryDirectory() as folder:
        made = tokens.mint(secret, options.devices)
        files = [Path(folder) / str(number) for number in range(processes)]
        for number, file in enumerate(files):
            file.write_text("\n".join(made[number * A_PROCESS : (number + 1) * A_PROCESS]))
        for number in range(options.rounds):
            quiet.append(max(load(options.url, files, options.devices, options.rate, options.seconds)))
            with Scraper(endpoint) as scraper:
                scraped.append(max(load(options.url, files, options.devices, options.rate, options.seconds)))
            # The first ones are of a fleet that is still connecting.
            scrapes += scraper.scrapes[-int(options.seconds) :]
            print(
                f"round {number + 1}: p99 {quiet[-1] * 1e3:.1f} ms quiet, {scraped[-1] * 1e3:.1f} ms scraped",
                flush=True,
            )
    whole = scrape(f"{server.base(endpoint)}/metrics", compress=False)
    times = sorted(each.seconds for each in scrapes)
    print(
        f"{options.devices} devices: {whole.plain / 1e6:.1f} MB in text, {scrapes[-1].sent / 1e6:.2f} MB gzipped;"
        f" a scrape takes {median(times) * 1e3:.0f} ms under load, {times[-1] * 1e3:.0f} ms at most\n"
        f"p99 of heartbeats: {median(quiet) * 1e3:.1f} ms quiet, {median(scraped) * 1e3:.1f} ms with a scrape a second"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--devices", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=2000.0, help="heartbeats a second in all")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=2)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
