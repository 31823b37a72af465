"""What the runner makes of the suite's results."""

from collections.abc import Mapping

import pytest

from tests.conformance.run import CASES, judge, table

GOOD = {"behavior": "OK", "behaviorClose": "OK"}
SECTIONS = {"1": 1, "7": 2}


def results(**changed: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    cases = {"1.1.1": GOOD, "7.1.1": GOOD, "7.13.1": {"behavior": "INFORMATIONAL", "behaviorClose": "INFORMATIONAL"}}
    return {**cases, **changed}


def test_all_is_well() -> None:
    assert judge(results(), SECTIONS) == []


@pytest.mark.parametrize("outcome", ["FAILED", "NON-STRICT", "UNIMPLEMENTED", "INFORMATIONAL", "UNCLEAN"])
def test_what_is_not_explained_is_a_fault(outcome: str) -> None:
    changed = {"1.1.1": {"behavior": outcome, "behaviorClose": "OK"}}
    assert judge(results(**changed), SECTIONS) == [f"1.1.1: {outcome}, on close OK"]
    changed = {"1.1.1": {"behavior": "OK", "behaviorClose": outcome}}
    assert judge(results(**changed), SECTIONS) == [f"1.1.1: OK, on close {outcome}"]


def test_an_explanation_covers_one_outcome_only() -> None:
    changed = {"7.13.1": {"behavior": "FAILED", "behaviorClose": "INFORMATIONAL"}}
    assert judge(results(**changed), SECTIONS) == ["7.13.1: FAILED, on close INFORMATIONAL"]


def test_a_case_that_did_not_run_is_a_fault() -> None:
    some = results()
    del some["7.1.1"]
    assert judge(some, SECTIONS) == ["section 7: 1 of 2 cases ran"]
    assert judge({}, CASES) == [f"section {section}: 0 of {count} cases ran" for section, count in CASES.items()]


def test_outcomes_are_counted_by_section() -> None:
    assert table(results()) == "section  1: 1 OK\nsection  7: 1 OK, 1 INFORMATIONAL"
