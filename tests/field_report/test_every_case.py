"""The field report of November 2026 as one table: each case that broke, and a test here that shows its right answer.

`pytest tests/field_report -v` runs the table; a test says which cases it shows with `@pytest.mark.case("A1")`, or a
row of a parametrized test with `marks=pytest.mark.case("A1")`.
"""

from __future__ import annotations

import re
from pathlib import Path

SILENT_AND_WRONG = [f"A{number}" for number in range(1, 27)]
DEAD_OR_HANGING = [f"B{number}" for number in range(1, 29)]
SECURITY = ["C1", "C2"]


def test_every_case_has_a_test_in_this_folder() -> None:
    marked = {
        case
        for file in Path(__file__).parent.glob("test_*.py")
        if file.name != Path(__file__).name
        for case in re.findall(r'mark\.case\("([ABC]\d+)"\)', file.read_text())
    }
    missing = [case for case in SILENT_AND_WRONG + DEAD_OR_HANGING + SECURITY if case not in marked]
    assert not missing, f"no test in tests/field_report is marked with {', '.join(missing)}"
