"""`magnet-train benchmark loader`: output, report and errors; and the options of each benchmark."""

from __future__ import annotations

import json

import numpy as np
import pytest

from datamodules.shards.manifest import read_manifest
from harness.loader_pipelines import make_shards
from harness.shard_writer import ShardWriter
from magnet_train.cli.main import main

QUICK = ["--rounds", "2", "--workers", "0", "--batch", "16", "4"]


def test_made_up_clips(tmp_path, capsys):
    work, out = tmp_path / "work", tmp_path / "results" / "loader.json"
    options = ["--clips", "64", "--frames", "50", *QUICK, "--work", str(work), "--out", str(out)]
    assert main(["benchmark", "loader", *options]) == 0
    assert read_manifest(work / "clips_64x50").samples == 64
    report = json.loads(out.read_text())
    assert report["what"] == "loader"
    assert report["machine"].keys() >= {"device", "cores", "torch", "numpy", "webdataset", "load_average"}
    (case,) = report["cases"]
    assert case["same_clips"]
    assert case["setting"]["codes_per_clip"] == 200
    assert [row["batch"] for row in case["ratios"]] == [16, 16, 4, 4]
    assert [row["batch"] for row in case["plain_read"]] == [16]
    assert [row["workers"] for row in case["workers"]] == [0]
    printed = capsys.readouterr().out
    for words in ("64 made-up clips, K 4, T 50", "webdataset, .decode()", "codes/s", "wall clock"):
        assert words in printed


@pytest.fixture
def shards(tmp_path):
    """Forty clips in several shards."""
    source = make_shards(tmp_path / "source", 1, 50)
    codec = read_manifest(source).codec
    folder = tmp_path / "mine"
    with ShardWriter(folder, codec, shard_bytes=20_000) as writer:
        for number in range(40):
            writer.add(f"song{number}", np.full((4, 60), number), {"text": "a song"})
    return folder


def test_own_tokens(shards, tmp_path, capsys):
    out = tmp_path / "loader.json"
    options = ["--clips", "17", "--frames", "50", *QUICK, "--rounds", "1", "--batch", "16", "--out", str(out)]
    assert main(["benchmark", "loader", str(shards), str(shards), *options]) == 0
    printed = capsys.readouterr().out
    total = len(read_manifest(shards).shards)
    assert f"of {total} shards" in printed
    cases = json.loads(out.read_text())["cases"]
    assert [case["setting"]["shards"] for case in cases] == [str(shards), str(shards)]
    assert 17 <= cases[0]["setting"]["clips"] < 40


def test_a_damaged_clip_is_named_where_the_user_has_it(shards, capsys):
    tar = shards / "shard-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"\x93NUMPY", b"\x93NUMBY"))
    assert main(["benchmark", "loader", str(shards), "--clips", "16", *QUICK]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"in {tar} is damaged" in error
    assert "magnet-train-" not in error


def test_finished_measurements_are_kept(tmp_path, monkeypatch):
    def fails(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.loader_report.measure_workers", fails)
    out = tmp_path / "loader.json"
    options = ["--clips", "64", "--frames", "50", *QUICK, "--out", str(out)]
    assert main(["benchmark", "loader", *options]) == 130
    (case,) = json.loads(out.read_text())["cases"]
    assert len(case["ratios"]) == 4
    assert len(case["plain_read"]) == 1
    assert "workers" not in case


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nowhere"], "no folder at nowhere"),
        (["--clips", "10"], "--clips 10 is less than a batch of 72; give --batch 10 or less."),
        (["--clips", "0"], "--clips 0 must be at least 1."),
        (["--frames", "0"], "--frames 0 must be at least 1."),
        (["--batch", "8", "0"], "--batch 0 must be at least 1."),
        (["--rounds", "0"], "--rounds 0 must be at least 1."),
        (["--workers", "-1"], "--workers -1 must be at least 0."),
    ],
)
def test_options_out_of_range_are_one_sentence(options, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", "loader", *options]) == 1
    printed, error = capsys.readouterr()
    assert printed == ""
    assert error.startswith(f"magnet-train: error: {words}")
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_too_few_own_clips(shards, capsys):
    assert main(["benchmark", "loader", str(shards)]) == 1
    assert f"{shards} with 40 clips is less than a batch of 72" in capsys.readouterr().err


@pytest.mark.slow
def test_opening_many_clips(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("harness.loader_report._OPENED_CLIPS", (100, 1000))  # as with a million
    out = tmp_path / "loader.json"
    options = ["--clips", "64", "--frames", "50", *QUICK, "--million", "--out", str(out)]
    assert main(["benchmark", "loader", *options]) == 0
    opened = json.loads(out.read_text())["opening"]
    assert [row["clips"] for row in opened] == [100, 1000]
    assert all(row["worker_own_mb"] > 0 for row in opened)
    assert "1,000 clips opened in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("what", "has", "lacks"),
    [
        ("train", {"--dim", "--device", "--out"}, {"--steps", "--clips", "--workers"}),
        ("generate", {"--dim", "--steps", "--out"}, {"--clips", "--workers"}),
        ("loader", {"SHARDS", "--clips", "--million", "--out"}, {"--dim", "--device", "--steps"}),
    ],
)
def test_help_shows_the_options_of_the_benchmark(what, has, lacks, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", what, "--help"])
    assert stop.value.code == 0
    words = set(capsys.readouterr().out.replace("[", " ").split())
    assert has <= words
    assert not lacks & words


def test_what_to_measure_is_required(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["benchmark"])
    assert stop.value.code == 2
    assert "train|generate|loader" in capsys.readouterr().err
