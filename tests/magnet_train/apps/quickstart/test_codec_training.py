"""The packaged codecs: the tool makes them with the recipe of `magnet-train codec`."""

import hashlib
import json

import pytest
import torch
from transformers import EncodecModel

import train_codec
from magnet_train.codecs import PACKAGED, packaged_codec

pytestmark = pytest.mark.parametrize("name", PACKAGED)


def test_the_script_writes_a_codec_that_loads(tmp_path, capsys, name):
    arguments = [
        "--codec",
        name,
        "--out",
        str(tmp_path),
        "--steps",
        "12",
        "--clips",
        "60",
        "--gate-clips",
        "20",
    ]
    assert train_codec.main(arguments) in (0, 1)  # twelve steps may miss the gate
    assert "steps in" in capsys.readouterr().out
    record = json.loads((tmp_path / "training.json").read_text())
    assert set(record["ceiling"]) == set(train_codec.PLANS[name].presets)
    first = {
        "quickstart": ("default", "pitch"),
        "drums_and_bass": ("drums_and_bass", "root"),
        "band": ("band", "root"),
    }[name]
    assert record["ceiling"][first[0]][first[1]] > 0.9  # the first steps keep the initialization
    assert oct((tmp_path / "model.safetensors").stat().st_mode & 0o777) == "0o644"  # others may read it
    model = EncodecModel.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    hop = train_codec.PLANS[name].recipe.hop
    assert model.encode(torch.zeros(1, 1, 10 * hop)).audio_codes.shape == (1, 1, 4, 10)


def test_the_packaged_codec_comes_from_the_script(name):
    folder = packaged_codec(name)
    record = json.loads((folder / "training.json").read_text())
    assert train_codec.__name__ in record["script"]
    assert record["steps"] == train_codec.PLANS[name].steps
    assert record["gate"]["passed"]
    assert record["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_the_packaged_codec_is_small_and_keeps_the_attributes(name):
    folder, plan = packaged_codec(name), train_codec.PLANS[name]
    assert (folder / "model.safetensors").stat().st_size <= (2_000_000 if name == "quickstart" else 3_000_000)
    config = json.loads((folder / "config.json").read_text())
    assert config["sampling_rate"] == plan.recipe.sample_rate
    assert config["codebook_size"] == plan.recipe.card
    for preset in plan.presets:
        scores = train_codec.ceiling(folder, preset, clips=60, seed=4321)
        assert min(scores.values()) >= train_codec.GATE, (preset, scores)
