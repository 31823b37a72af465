"""Run the Autobahn test suite against the echo server and judge it: `python -m tests.conformance.run`.

Exit code 1 when a case is anything but OK and not in `EXPLAINED`, or when not all cases ran. Without `wstest` (the
environment variable WSTEST, or PATH) nothing is run, which is an error only where VIZORA_REQUIRE_TOOLS is set.
README.md beside this file says how to get it.
"""

import argparse
import collections
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SPEC = Path(__file__).with_name("spec.json")
REPORTS = Path("reports/conformance")

CASES = {"1": 16, "2": 11, "3": 7, "4": 10, "5": 20, "6": 145, "7": 37, "10": 1}
"""How many cases each section of spec.json has: a suite that died half way has not passed."""

EXPLAINED = {
    "7.1.6": (
        "INFORMATIONAL",
        "messages sent just before a close may be answered or not: both are, first",
    ),
    "7.13.1": ("INFORMATIONAL", "close code 5000, of which the RFC says nothing, is refused with 1002"),
    "7.13.2": ("INFORMATIONAL", "close code 65535, of which the RFC says nothing, is refused with 1002"),
}
"""Case -> the one outcome beside OK that it may have, and why."""

SUITE_SECONDS = 600
SERVER_SECONDS = 10


def judge(results: Mapping[str, Mapping[str, Any]], sections: Mapping[str, int]) -> list[str]:
    """What is wrong with the results of one agent, a line each; nothing when they are as they should be."""
    faults = []
    ran = collections.Counter(case.split(".")[0] for case in results)
    for section, count in sections.items():
        if ran[section] != count:
            faults.append(f"section {section}: {ran[section]} of {count} cases ran")
    for case, result in results.items():
        outcomes = {result["behavior"], result["behaviorClose"]} - {"OK"}
        if outcomes - {EXPLAINED.get(case, ("OK", ""))[0]}:
            faults.append(f"{case}: {result['behavior']}, on close {result['behaviorClose']}")
    return faults


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Outcomes by section."""
    sections: dict[str, collections.Counter[str]] = {}
    for case, result in results.items():
        sections.setdefault(case.split(".")[0], collections.Counter())[result["behavior"]] += 1
    lines = []
    for section in sorted(sections, key=int):
        outcomes = ", ".join(f"{count} {outcome}" for outcome, count in sections[section].most_common())
        lines.append(f"section {section:>2}: {outcomes}")
    return "\n".join(lines)


@contextmanager
def echo_server(port: int) -> Iterator[None]:
    """The echo server in a process of its own, while the context lasts."""
    process = subprocess.Popen([sys.executable, "-m", "tests.conformance.echo_server", "--port", str(port)])
    try:
        deadline = time.monotonic() + SERVER_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the echo server did not start") from None
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(SERVER_SECONDS)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def run_suite(wstest: str, url: str, cases: list[str]) -> dict[str, dict[str, Any]]:
    """The results of `wstest` by case. Its reports, one page a case, are left in `REPORTS`."""
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    spec = json.loads(SPEC.read_text("utf-8"))
    (agent,) = spec["servers"]
    agent["url"] = url
    spec["outdir"] = str(REPORTS)
    spec["cases"] = cases or spec["cases"]
    used = REPORTS / "spec.json"
    used.write_text(json.dumps(spec), "utf-8")
    with (REPORTS / "wstest.log").open("w", encoding="utf-8") as log:
        command = [wstest, "-m", "fuzzingclient", "-s", str(used)]
        subprocess.run(command, check=True, stdout=log, stderr=log, timeout=SUITE_SECONDS)
    index = json.loads((REPORTS / "index.json").read_text("utf-8"))
    results: dict[str, dict[str, Any]] = index[agent["agent"]]
    return results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.run", description=__doc__)
    parser.add_argument("--url", help="a server that echoes and already runs; else one is started")
    parser.add_argument("--cases", nargs="+", default=[], help="cases instead of those of spec.json, such as '9.*'")
    arguments = parser.parse_args()
    wstest = os.environ.get("WSTEST") or shutil.which("wstest")
    if not wstest:
        print("wstest not found: see tests/conformance/README.md")
        return 1 if os.environ.get("VIZORA_REQUIRE_TOOLS") else 0
    if arguments.url:
        results = run_suite(wstest, arguments.url, arguments.cases)
    else:
        port = free_port()
        with echo_server(port):
            results = run_suite(wstest, f"ws://127.0.0.1:{port}", arguments.cases)
    faults = judge(results, {} if arguments.cases else CASES)
    print(table(results))
    for case, (outcome, why) in EXPLAINED.items():
        if case in results and results[case]["behavior"] == outcome:
            print(f"{case} {outcome}: {why}")
    for fault in faults:
        print(f"FAULT {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
