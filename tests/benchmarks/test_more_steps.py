"""The time of more steps is exact if all steps of a kind take equally long."""

from __future__ import annotations

import json

import more_steps
import pytest
from more_steps import total_ms


def test_steps_of_a_kind_are_multiplied():
    assert total_ms([10, 10, 4, 6, 1], [3, 2], [3, 2]) == 31
    assert total_ms([10, 10, 4, 6, 1], [3, 2], [20, 10]) == 19 * 10 + 4 + 9 * 6 + 1
    assert total_ms([9, 11, 4, 6, 1], [3, 2], [2, 2]) == 10 + 4 + 6 + 1


def test_a_codebook_needs_a_step_of_each_kind():
    with pytest.raises(ValueError, match="at least two"):
        total_ms([10, 6, 1], [1, 2], [20, 10])


def test_a_report_is_read(tmp_path, capsys):
    row = {"naive_step_ms": [20, 20, 8, 4, 8, 4, 8, 4], "ours_step_ms": [10, 1, 8, 1, 8, 1, 8, 1]}
    setting = {"dim": 8, "layers": 2, "batch": 1, "frames": 12, "decoding_steps": [2, 2, 2, 2]}
    report = tmp_path / "few.json"
    report.write_text(json.dumps({"cases": [{"setting": setting, "rows": [{}, row]}]}))
    more_steps.main([str(report), "--steps", "3,2,2,2"])
    assert "9 steps, computed from 8: naive 0.1 s, ours 0.0 s, ratio 2.00" in capsys.readouterr().out
