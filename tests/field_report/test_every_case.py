"""The field report of November 2026 as one table: each case that broke has a test of the correct behaviour.

`pytest tests/field_report -v` runs the table; a test names its cases with `@pytest.mark.case("A1")`, or a
row of a parametrized test with `marks=pytest.mark.case("A1")`. Cases that need a cluster may be in tests/cluster.
"""

from __future__ import annotations

import re
from pathlib import Path

SILENT_AND_WRONG = [f"A{number}" for number in range(1, 27)]
DEAD_OR_HANGING = [f"B{number}" for number in range(1, 29)]
SECURITY = ["C1", "C2"]


def test_every_case_has_a_test() -> None:
    marked = {
        case
        for folder in ("field_report", "cluster")
        for file in (Path(__file__).parents[1] / folder).glob("test_*.py")
        if file.name != Path(__file__).name
        for case in re.findall(r'mark\.case\("([ABC]\d+)"\)', file.read_text())
    }
    missing = [case for case in SILENT_AND_WRONG + DEAD_OR_HANGING + SECURITY if case not in marked]
    assert not missing, f"no test is marked with {', '.join(missing)}"
