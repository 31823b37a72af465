"""docs/metrics.md says what the registry says."""

from pathlib import Path

from vizora_rt.ops import reference
from vizora_rt.telemetry.metrics import FAMILIES

PAGE = Path(__file__).parent.parent.parent / "docs/metrics.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text("utf-8") == reference.render(), "run: vizora-rt ops metrics --write"


def test_each_metric_is_on_it_once() -> None:
    page = reference.render()
    for family in FAMILIES:
        assert page.count(f"\n### `{family.full_name}`\n") == 1
        for label in family.labels:
            assert f"| `{label.name}` |" in page
