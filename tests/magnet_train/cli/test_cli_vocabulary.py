"""A vocabulary from the captions of the shards: configs/text/words.yaml and t5_scratch.yaml."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from harness.shard_writer import ShardWriter
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec
from magnet_train.pipeline.magnet import Magnet

OVERLAYS = ("words", "t5_scratch")
WORDS = ["a", "c4", "calm", "fast", "flute", "on"]


def write_shards(folder: Path, captions: list[str]) -> Path:
    """Write clips of random tokens of the packaged codec."""
    rng = np.random.default_rng(0)
    with ShardWriter(folder, load_codec("quickstart").info) as writer:
        for number, caption in enumerate(captions):
            tokens = rng.integers(0, 256, (4, 70)).astype(np.int16)
            writer.add(f"clip{number:02d}", tokens, {"text": caption})
    return folder


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_words_come_from_the_captions_and_stay_with_the_model(
    overlay: str, trainings, tmp_path: Path, load: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings.shards = write_shards(tmp_path / "shards", ["a calm flute on c4", "A fast flute on C4"] * 20)
    run, more = tmp_path / "run", ("-c", f"configs/text/{overlay}.yaml")
    assert trainings.fit(run, *more) == 0
    assert load(run / "last.ckpt")["magnet_train"]["text"]["words"] == WORDS

    # Other captions change nothing for a model that has its words already.
    shutil.rmtree(trainings.shards)
    write_shards(trainings.shards, ["a trumpet", "two trumpets"] * 20)
    words = trainings.words("validate", tmp_path / "again", *more, "--ckpt_path", str(run / "last.ckpt"))
    assert main(words) == 0
    assert trainings.fit(tmp_path / "tuned", *more, "--init_from", str(run / "last.ckpt")) == 0
    assert load(tmp_path / "tuned" / "last.ckpt")["magnet_train"]["text"]["words"] == WORDS

    model, out = tmp_path / "model", tmp_path / "clips"
    assert main(["export", "--checkpoint", str(run / "last.ckpt"), "--out", str(model)]) == 0
    assert Magnet.from_pretrained(model).text.words == WORDS
    capsys.readouterr()
    texts = ["--text", "a calm Tuba", "--text", "a fast flute", "--steps", "2,1,1,1"]
    assert main(["generate", "--model", str(model), *texts, "--out", str(out)]) == 0
    assert "the model's vocabulary lacks 'Tuba':" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("captions", "sentence"),
    [
        ([""], "no clip in {} has a caption, so there are no words to learn"),
        (["a tone"], "all captions in {} are the same ('a tone'), so they tell no clips apart"),
    ],
)
def test_captions_without_words_are_refused_before_anything_is_written(
    captions: list[str], sentence: str, trainings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainings.shards = write_shards(tmp_path / "shards", captions * 40)
    run = tmp_path / "run"
    assert trainings.fit(run, "-c", "configs/text/words.yaml") == 1
    assert sentence.format(trainings.shards) in capsys.readouterr().err
    assert not run.exists()


def test_merged_metadata_is_part_of_the_vocabulary(trainings, tmp_path: Path, load: Callable) -> None:
    shards, codec = tmp_path / "shards", load_codec("quickstart").info
    with ShardWriter(shards, codec) as writer:
        for number in range(40):
            metadata = {"text": "A tone.", "genre": f"kind {number % 2}"}
            writer.add(f"clip{number:02d}", np.zeros((4, 70), dtype=np.int16), metadata)
    trainings.shards, run = shards, tmp_path / "run"
    merge = ("--data.captions.merge_metadata", "0.5", "-c", "configs/text/words.yaml")
    assert trainings.fit(run, *merge) == 0
    words = load(run / "last.ckpt")["magnet_train"]["text"]["words"]
    assert words == [".", "0", "1", ":", "a", "genre", "kind", "tone"]
