"""The tables of docs/reliability.md and docs/security.md: each row names tests that exist; each fault has its row."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "reliability.md"
SECURITY = ROOT / "docs" / "security.md"
FAULTS = ("test_faults", "test_slow_dashboard", "test_watchdog", "test_restarts", "test_machine", "test_failover")

NAMED = re.compile(r"`(test_\w+|Test\w+)`")


def rows(text: str) -> Iterator[list[str]]:
    """Cells of the rows of all tables but their heads."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("| ") and not (number + 1 < len(lines) and lines[number + 1].startswith("|--")):
            yield [cell.strip() for cell in line.strip("|").split("|")]


@cache
def named_tests(*names: str) -> set[str]:
    """Names of all test functions and classes, or of those in these files of tests/system."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        if not names or (path.parent.name == "system" and path.stem in names):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    found.add(node.name)
    return {name for name in found if name.startswith(("test_", "Test"))}


def problems(text: str) -> list[str]:
    """What is wrong with rows. One that says `the same` has the tests of the one before."""
    known, found = named_tests(), []
    for cells in rows(text):
        names = NAMED.findall(cells[-1])
        if not names and cells[-1] != "the same":
            found.append(f"no test: {cells[0]}")
        found += [f"no such test: {name}" for name in names if name not in known]
        if any(not cell for cell in cells):
            found.append(f"an empty cell: {cells[0]}")
    return found


def test_each_row_names_tests_that_exist() -> None:
    text = PAGE.read_text("utf-8")
    assert problems(text) == []
    assert len(list(rows(text))) >= 15


def test_each_threat_names_tests_that_exist() -> None:
    threats = SECURITY.read_text("utf-8").partition("## Threats")[2]
    assert problems(threats) == []
    assert len(list(rows(threats))) >= 25


def test_each_fault_has_its_row() -> None:
    named = set(NAMED.findall(PAGE.read_text("utf-8")))
    assert named_tests(*FAULTS) - named == set()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("| a | b | c | d | `test_of_no_fault` |", "no such test: test_of_no_fault"),
        ("| a | b | c | d | by hand |", "no test: a"),
        ("| a | b | c |  | `test_a_worker_hangs` |", "an empty cell: a"),
    ],
)
def test_a_bad_row_is_seen(row: str, problem: str) -> None:
    assert problems(row) == [problem]
