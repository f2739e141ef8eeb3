"""Every drill is documented, with the bar that it is held to."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.drills import DRILLS, Drill

PAGE = Path(__file__).parents[2] / "docs" / "drills.md"


@pytest.mark.parametrize("drill", DRILLS.values(), ids=list(DRILLS))
def test_the_page_about_drills_has_a_row_for(drill: Drill) -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{drill.name}` |")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    told = [row for row in rows if len(row) == 5 and drill.about in row[1]]
    assert len(told) == 1, f"docs/drills.md needs a row for {drill.name}"
    assert told[0][3] == f"{drill.bar_s:g} s"


def test_what_may_never_be_acknowledged_early_is_held_longer_than_a_lease() -> None:
    assert all(drill.hold_s > 12 for drill in DRILLS.values() if drill.blocked)
