"""Tables between markers: only they are replaced, and a marker that says nonsense is an error."""

from __future__ import annotations

import pytest
from render import renewed

RECORDS = {"hops-cpu": {"figures": {"p50_ms": 2.276, "rows": 1200}}}
PAGE = "before\n<!-- table: figures hops-cpu -->\nold\n<!-- /table -->\nafter\n"


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    new = renewed(PAGE, RECORDS)
    table = "| figure | value |\n| --- | --- |\n| p50_ms | 2.276 |\n| rows | 1,200 |"
    assert new == PAGE.replace("old", table)
    assert renewed(new, RECORDS) == new


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ("figures nothing", "no bench/results/nothing.json"),
        ("figurs hops-cpu", "unknown kind"),
        ("figures", "no bench/results/.json"),
    ],
)
def test_a_table_that_cannot_be_made(marker: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        renewed(PAGE.replace("figures hops-cpu", marker), RECORDS)


def test_a_marker_that_is_not_closed() -> None:
    with pytest.raises(ValueError, match="/table"):
        renewed(PAGE.replace("<!-- /table -->", ""), RECORDS)
