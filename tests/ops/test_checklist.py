"""docs/production-checklist.md has each line that the owner asked for, in order, and each answer leads somewhere."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import seed

ROOT = Path(__file__).parent.parent.parent
PAGES = (ROOT / "docs/production-checklist.md", ROOT / "docs/monitoring.md")
TEXT = PAGES[0].read_text("utf-8")

PRACTICES = tuple(f"**{name}:** {text}" for name, text in seed.PRACTICES.items())
LISTS = {**seed.CHECKLIST, "Best practices": PRACTICES, **seed.TROUBLESHOOTING}


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table under a heading, without its head."""
    _, _, rest = TEXT.partition(f"# {heading}\n")
    section = re.split(r"(?m)^#", rest)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split(" | ")]


@pytest.mark.parametrize("heading", LISTS)
def test_each_line_of_the_owner_s_is_there(heading: str) -> None:
    assert tuple(row[0] for row in rows(heading)) == LISTS[heading]


@pytest.mark.parametrize("heading", LISTS)
def test_each_has_an_answer(heading: str) -> None:
    for line, answer, *_ in rows(heading):
        somewhere = "](" in answer or "`" in answer or "panel" in answer
        assert somewhere or answer.startswith("does not apply: "), line


def test_there_are_no_other_lists() -> None:
    headings = re.findall(r"(?m)^##+ (.+)$", TEXT)
    assert sorted(headings) == sorted([*LISTS, "Troubleshooting"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8"))
    assert len(links) > 10
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"(?m)^#+ (.+)$", target.read_text("utf-8"))
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_a_line_that_is_missing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    without = re.sub(r"(?m)^\| Set production DSN .*\n", "", TEXT)
    monkeypatch.setitem(globals(), "TEXT", without)
    assert tuple(row[0] for row in rows("Sentry")) != seed.CHECKLIST["Sentry"]
