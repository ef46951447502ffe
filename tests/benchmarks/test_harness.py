"""The benchmark of training and generation at toy size: exactness, reports and errors."""

from __future__ import annotations

import json

import pytest
import torch

from harness import generation
from harness.attention import dense_attention, flex_attention
from harness.config import BenchmarkConfig, NotExactError, require_close
from harness.timing import Clock, Pair, time_pair
from harness.training import TrainingBatch, check_training
from magnet_train.cli.commands import benchmark
from magnet_train.cli.main import main
from magnet_train.training.cost import Pass, forward_flops

TINY = ["--dim", "32", "--heads", "2", "--layers", "2", "--card", "16", "--frames", "36", "150"]
CONFIG = BenchmarkConfig(dim=32, heads=2, layers=2, card=16, frames=150, batch=4, text_positions=5)


@pytest.mark.parametrize("what", ["train", "generate"])
def test_a_report_is_written(what, tmp_path, capsys):
    out = tmp_path / "results" / "report.json"
    options = [*TINY, "--batch", "4", "--rounds", "2", "--out", str(out)]
    options += ["--steps", "4,2,2,2"] if what == "generate" else []
    assert main(["benchmark", what, *options]) == 0
    report = json.loads(out.read_text())
    assert report["machine"]["threads"] == 1
    assert [case["setting"]["frames"] for case in report["cases"]] == [36, 150]
    for case in report["cases"]:
        assert case["gemm_peak_tflops"] > 0
        rows = {row["part"]: row for row in case["rows"]}
        for row in rows.values():
            assert row["low"] <= row["ratio"] <= row["high"]
            assert row["rounds"] == 2
        whole = rows["step" if what == "train" else "generation, 10 steps"]
        frames = 4 * case["setting"]["frames"]
        assert whole["frames_per_s"] == pytest.approx(1000 * frames / whole["ours_ms"])
        assert whole["codes_per_s"] == pytest.approx(4 * whole["frames_per_s"])
        assert 0 < whole["share_of_gemm_peak"] < 1
        if what == "generate":
            assert sum(whole["ours_step_ms"]) == pytest.approx(whole["ours_ms"], rel=0.5)  # medians of parts
            assert len(whole["ours_step_ms"]) == len(whole["naive_step_ms"]) == 10
        assert "mfu" not in whole  # a CPU has no data sheet here
    assert "step" in capsys.readouterr().out


def test_versions_that_disagree_get_no_ratio():
    naive, ours = CONFIG.models()
    batch = TrainingBatch(CONFIG)
    errors = check_training(naive, ours, batch)
    assert errors["loss_error"] < 1e-6
    assert errors["gradient_error"] < 1e-6
    different = ours.layers[0].linear_in.weight.detach().clone()  # both read the same memory
    different[0, 0] += 0.1
    ours.layers[0].linear_in.weight = torch.nn.Parameter(different)
    with pytest.raises(NotExactError, match="no ratio"):
        check_training(naive, ours, batch)


@pytest.mark.parametrize("compiled", [False, True])
def test_compilation_is_not_timed(compiled, monkeypatch):
    warm_ups = []

    def remember(clock, naive, ours, rounds, warm_up=1):
        warm_ups.append(warm_up)
        return Pair([1.0], [1.0])

    monkeypatch.setattr(generation, "time_pair", remember)
    list(generation.measure_generation(CONFIG, (2, 2, 2, 2), compiled=compiled))
    assert warm_ups[-1] == (3 if compiled else 0)


def test_a_disagreement_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr("harness.training.LOSS_TOLERANCE", -1.0)
    assert main(["benchmark", "train", *TINY]) == 1
    error = capsys.readouterr().err
    assert error.startswith("magnet-train: error: losses differ by")
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("what", ["train", "generate", "loader"])
def test_without_the_repository_it_says_what_is_needed(what, monkeypatch, tmp_path, capsys):
    """As in an installed wheel, which has no benchmarks/."""
    monkeypatch.setattr(benchmark, "HARNESS", tmp_path / "benchmarks" / "harness")
    assert main(["benchmark", what]) == 1
    error = capsys.readouterr().err
    assert error.startswith("magnet-train: error: benchmark needs the repository: ")
    assert "make install" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "3,2"], "four numbers"),
        (["--batch", "0"], "at least 1"),
        (["--heads", "3"], "multiple"),
        (["--frames", "8"], "too short"),
        (["--device", "cuda:77"], "not available"),
    ],
)
def test_options_out_of_range_are_refused(options, words, capsys):
    assert main(["benchmark", "generate", *TINY, *options]) == 1
    assert words in capsys.readouterr().err


def test_a_kernel_that_a_card_lacks_is_named(monkeypatch, tmp_path):
    def lacking(config, batch):
        def attend(q, k, v):
            raise RuntimeError("no kernel\nand a long explanation")

        yield "restricted attention, lacking", attend

    monkeypatch.setattr("harness.attention._candidates", lacking)
    out = tmp_path / "report.json"
    assert main(["benchmark", "train", *TINY, "--rounds", "1", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["cases"][0]["rows"]
    assert {"part": "restricted attention, lacking", "failed": "no kernel"} in rows


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_attention_has_the_same_restriction():
    q, k, v = (CONFIG.states(2, seed) for seed in range(3))
    flex = flex_attention(CONFIG, compiled=False)(q, k, v)
    assert require_close("flex", flex, dense_attention(CONFIG, 2)(q, k, v), 1e-5) < 1e-6


def test_turns_alternate():
    order = []
    clock = Clock(torch.device("cpu"))
    pair = time_pair(clock, lambda: order.append("naive"), lambda: order.append("ours"), rounds=3, warm_up=0)
    assert order == ["naive", "ours", "ours", "naive", "naive", "ours"]
    assert len(pair.naive) == len(pair.ours) == 3
    assert Pair([2.0, 8.0, 3.0], [1.0, 2.0, 1.0]).summary()["ratio"] == 3.0


def test_flops_of_the_paper_sized_model():
    # By hand: 28 D^2 a frame and layer with a text, 24 D^2 without; 2 x 2 D a key.
    config = BenchmarkConfig().lm_config
    dim, frames = 1024, 500
    text = 24 * (24 * 4 * dim**2) + 2 * 24 * 768 * dim  # keys and values of 24 layers, and the projection
    attended = 24 * frames * 4 * 24 * dim
    layers = 24 * frames * (28 * dim**2 + 4 * (2 * BenchmarkConfig.CONTEXT + 1) * dim)
    head = 2 * 320 * dim * 2048
    assert forward_flops(config, Pass(1, 1, 1, frames, 24, 320)) == layers + attended + text + head
    without = 24 * frames * (24 * dim**2 + 4 * frames * dim) + head
    assert forward_flops(config, Pass(0, 1, 0, frames, 24, 320)) == without


def test_flops_of_the_last_layer_are_those_of_the_queried_frames():
    config = BenchmarkConfig().lm_config
    dim, frames = 1024, 500
    attention = 24 * frames * (8 * dim**2 + 4 * (2 * BenchmarkConfig.CONTEXT + 1) * dim)
    feed_forward = (23 * frames + 3) * 16 * dim**2
    head = 2 * 3 * dim * 2048
    work = Pass(1, 1, 0, frames, 24, answered=3, pruned=True)
    assert forward_flops(config, work) == attention + feed_forward + head
