"""examples/train_minimal.py learns from a folder of shards, as a user starts it."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules.shards.reading import ShardReader
from harness.shard_writer import ShardWriter
from harness.tones.world import ToneWorld
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec
from magnet_train.text import WordText

SCRIPT = Path(__file__).parents[1] / "examples" / "train_minimal.py"
LINES_OF_CODE = 120  # a page or two, seen whole


def entropy(codes: np.ndarray) -> float:
    """Nats that a model pays for each token if it knows nothing but how often each occurs."""
    share = np.bincount(codes) / len(codes)
    return float(-(share[share > 0] * np.log(share[share > 0])).sum())


@pytest.mark.slow
def test_it_learns_more_than_how_often_tokens_occur(tmp_path: Path) -> None:
    ToneWorld("default", 0).write(tmp_path / "audio", 200, "train")
    shards = tmp_path / "shards"
    assert (
        main(["tokenize", "--audio", str(tmp_path / "audio"), "--out", str(shards), "--codec", "quickstart"])
        == 0
    )
    command = [
        sys.executable,
        str(SCRIPT),
        str(shards),
        "--steps",
        "300",
        "--out",
        str(tmp_path / "made.wav"),
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout

    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+) nats", output)]
    reader = ShardReader(shards)
    tokens = np.concatenate([reader[number].tokens for number in range(len(reader))], axis=1)
    without_context = np.mean([entropy(codebook) for codebook in tokens])
    # Measured: 3.1 after 300 steps, where the frequencies alone are worth 4.5.
    assert np.mean(losses[-5:]) < without_context - 0.7
    audio, rate = soundfile.read(tmp_path / "made.wav")
    assert (rate, len(audio)) == (8000, 64 * 160)
    assert np.abs(audio).max() > 0.01


def test_it_knows_the_words_of_the_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ShardWriter(tmp_path / "shards", load_codec("quickstart").info) as writer:
        for number, caption in enumerate(("Zither, 94 bpm", "ocarina")):
            writer.add(str(number), np.zeros((4, 70), dtype=np.int16), {"text": caption})
    vocabularies = []
    set_words = WordText.set_words

    def record(self: WordText, words: list[str]) -> None:
        set_words(self, words)
        vocabularies.append(self.words)
        assert self.tokenizer.unknown_words(["zither, 94 bpm"]) == []

    monkeypatch.setattr(WordText, "set_words", record)
    command = [str(SCRIPT), str(tmp_path / "shards"), "--steps", "2", "--out", str(tmp_path / "made.wav")]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert vocabularies == [[",", "94", "bpm", "ocarina", "zither"]]


def test_it_fits_on_a_page_or_two() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= LINES_OF_CODE
