"""The table of docs/reliability.md: each row names tests that exist, and each test of a fault has its row."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "reliability.md"
FAULTS = ("tests/system/test_faults.py", "tests/system/test_slow_dashboard.py", "tests/system/test_watchdog.py")

NAMED = re.compile(r"`(test_\w+)`")
FILE = re.compile(r"`(tests/[\w/]+\.py)`")


def rows(text: str) -> Iterator[list[str]]:
    """Cells of the rows of all tables but their heads."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("| ") and lines[number + 1 : number + 2] != ["|---|---|---|---|---|"]:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def tests_of(path: str) -> dict[str, bool]:
    """Test functions of a file, and whether they are marked soak."""
    found = {}
    for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            found[node.name] = any("soak" in ast.unparse(mark) for mark in node.decorator_list)
    return found


def problems(text: str) -> list[str]:
    found = []
    for cells in rows(text):
        if len(cells) != 5:
            found.append(f"not five cells: {cells[0]}")
            continue
        names, files = NAMED.findall(cells[4]), FILE.findall(cells[4])
        known = (
            {name for file in files for name in tests_of(file)} if all((ROOT / f).is_file() for f in files) else set()
        )
        if not names:
            found.append(f"no test: {cells[0]}")
        found += [f"no such test: {name}" for name in names if name not in known]
        if any(not cell for cell in cells):
            found.append(f"an empty cell: {cells[0]}")
    return found


def test_each_row_names_tests_that_exist() -> None:
    text = PAGE.read_text("utf-8")
    assert problems(text) == []
    assert len(list(rows(text))) >= 15


def test_each_fault_has_its_row() -> None:
    named = set(NAMED.findall(PAGE.read_text("utf-8")))
    assert {name for file in FAULTS for name in tests_of(file)} - named == set()


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("| a | b | c | d | `test_nothing` in `tests/system/test_faults.py` |", "no such test: test_nothing"),
        ("| a | b | c | d | `test_a_worker_hangs` in `tests/system/gone.py` |", "no such test: test_a_worker_hangs"),
        ("| a | b | c | d | by hand |", "no test: a"),
        ("| a | b | c |", "not five cells: a"),
        ("| a | b | c |  | `test_a_worker_hangs` in `tests/system/test_faults.py` |", "an empty cell: a"),
    ],
)
def test_a_bad_row_is_seen(row: str, problem: str) -> None:
    assert problems(row) == [problem]
