"""Which failures get a second run alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "failed_files.py"
A, B, C = (f"tests/integration/test_{name}.py" for name in "abc")

STORIES = (
    ("one", [f"{A}::test_x"], [A]),
    ("two of one file", [f"{A}::test_y[1]", f"{A}::test_x"], [A]),
    ("two files", [f"{B}::test_x", f"{A}::test_x"], [A, B]),
    ("three files: it is not the machine", [f"{A}::t", f"{B}::t", f"{C}::t"], []),
    ("a unit test never", ["tests/unit/test_a.py::t"], []),
    ("nor the simulation beside another", [f"{A}::t", "tests/simulation/test_seeds.py::t"], []),
    ("a file that could not be read", [A], [A]),
    ("nothing", [], []),
)


@pytest.mark.parametrize(("failed", "wanted"), [s[1:] for s in STORIES], ids=[s[0] for s in STORIES])
def test_what_is_repeated(failed: list[str], wanted: list[str]) -> None:
    spec = importlib.util.spec_from_file_location("failed_files", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.files_to_repeat(failed) == wanted
