"""Scores, the report and its verdict."""

import json
from dataclasses import replace

from harness.tones.presets import DEFAULT as TONES
from magnet_train.apps.quickstart.report import Report, read_metrics


def level(value):
    return {"pitch": value, "timbre": value, "rhythm": value}


GOOD = Report(
    minutes=8.25,
    n=240,
    accuracy={"pitch": 0.999, "timbre": 0.97, "rhythm": 0.93},
    unseen=level(0.9),
    ceiling=level(1.0),
    chance={"pitch": 0.12, "timbre": 0.28, "rhythm": 0.33},
    unconditional={"pitch": 0.1, "timbre": 0.3, "rhythm": 0.35},
    val_loss_per_codebook=[2.1, 3.2, 3.9, 4.1],
)


def test_the_report_has_its_documented_fields(tmp_path):
    GOOD.write(tmp_path / "report.json")
    record = json.loads((tmp_path / "report.json").read_text())
    assert list(record) == [
        "minutes", "n", "accuracy", "unseen", "ceiling", "chance", "unconditional", "val_loss_per_codebook",
    ]  # fmt: skip
    assert list(record["accuracy"]) == ["pitch", "timbre", "rhythm"]
    assert Report(**record) == GOOD


def test_the_verdict_is_honest():
    assert GOOD.shortcomings(TONES) == []
    assert GOOD.verdict(TONES).startswith("It learned: 240 clips")
    assert "pitch 99 %" in GOOD.verdict(TONES)  # .999 is not 100 %

    part = replace(GOOD, accuracy={"pitch": 1.0, "timbre": 0.99, "rhythm": 0.6})
    assert part.verdict(TONES).startswith("It learned in part:")
    assert "below the goal: rhythm is right in 60 %" in part.verdict(TONES)

    assert (
        replace(GOOD, accuracy=GOOD.chance, unseen=GOOD.chance).verdict(TONES).startswith("It did not learn:")
    )
    assert "without any caption" in replace(GOOD, unconditional=level(0.9)).verdict(TONES)
    # Goals are relative to the ceiling.
    assert (
        replace(GOOD, ceiling=level(0.9), accuracy=level(0.88), unseen=level(0.8)).shortcomings(TONES) == []
    )


METRICS = """epoch,step,train/loss_codebook_0,train/loss_codebook_1,val/loss_codebook_0,val/loss_codebook_1
,9,,,,
0,9,5.2,5.5,,
0,19,4.1,5.0,4.4,5.1
0,29,3.1,4.0,,
0,39,2.5,3.9,3.0,4.2
"""


def test_metrics_are_read_without_blanks(tmp_path):
    (tmp_path / "metrics.csv").write_text(METRICS)
    assert read_metrics(tmp_path / "metrics.csv", "val/loss_codebook_") == {
        "0": ([19, 39], [4.4, 3.0]),
        "1": ([19, 39], [5.1, 4.2]),
    }
