"""The table of `make bench-peers`: medians, what was lost, and nothing hidden that went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.peers import BEGIN, END, Shown, medians, page, table
from benchmarks.peers_picture import picture


def shown(system: str, outage_s: float | None, **more: object) -> Shown:
    values = {"acknowledged": 100, "lost": 0, "doubled": 0, "two_primaries_s": 0.0, "healed_s": 1.0, **more}
    return Shown(system, "isolate", 1, outage_s, **values)  # type: ignore[arg-type]


def test_a_row_per_fault_and_a_column_per_system() -> None:
    runs = [shown("flypg", 1.0), shown("flypg", 2.0), shown("flypg", 4.0), shown("patroni async", 22.0, lost=7)]
    lines = table(runs)
    assert lines[0] == "| fault | flypg | patroni async |"
    assert lines[2] == "| `isolate` | **2.00 s** (1.00–4.00), lost 0 of 300 | **22.00 s**, lost 7 of 100 |"


def test_what_never_came_back_is_said() -> None:
    (row,) = table([shown("x", None, healed_s=None, doubled=3, two_primaries_s=14.2)])[2:]
    assert "for ever" in row and "two primaries for 14.2 s" in row and "not complete again in 1 of 1" in row


def test_the_table_is_put_between_the_marks_of_a_page(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    page(path, {"date": "2026-01-01"}, [shown("x", 1.0)], 1)
    page(path, {"date": "2026-01-02"}, [shown("x", 1.0)], 1)
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    assert "old" not in text and "2026-01-02" in text and text.count("isolate") == 1


def test_the_picture_has_a_bar_per_measurement() -> None:
    told = medians([shown("flypg", 1.0), shown("flypg", 3.0), shown("patroni async", None)])
    assert told == {"isolate": {"flypg": 2.0, "patroni async": None}}
    drawn = picture(["flypg", "patroni async"], told)
    assert drawn.count("<rect") == 1 + 2 + 2, "the ground, the legend, the bars"
    assert "2.00 s" in drawn and "for ever" in drawn


def test_a_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("mine\n")
    with pytest.raises(SystemExit):
        page(path, {}, [shown("x", 1.0)], 1)
    assert path.read_text() == "mine\n"
