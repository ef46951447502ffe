"""The quickstart's codec: the tool makes it with the recipe of `magnet-train codec`."""

import hashlib
import json

import torch
from transformers import EncodecModel

import train_codec
from magnet_train.apps.quickstart.world import PRESETS
from magnet_train.codecs import packaged_codec

CODEC = packaged_codec()


def test_the_script_writes_a_codec_that_loads(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--steps", "12", "--clips", "40", "--gate-clips", "20"]
    assert train_codec.main(arguments) in (0, 1)  # twelve steps may miss the gate
    assert "steps in" in capsys.readouterr().out
    record = json.loads((tmp_path / "training.json").read_text())
    assert set(record["ceiling"]) == set(PRESETS)
    assert record["ceiling"]["default"]["pitch"] > 0.9  # the first steps keep the initialization
    assert oct((tmp_path / "model.safetensors").stat().st_mode & 0o777) == "0o644"  # others may read it
    model = EncodecModel.from_pretrained(tmp_path)
    assert model.dtype == torch.float32
    assert model.encode(torch.zeros(1, 1, 1600)).audio_codes.shape == (1, 1, 4, 10)


def test_the_packaged_codec_comes_from_the_script():
    record = json.loads((CODEC / "training.json").read_text())
    assert record["script"].endswith(train_codec.__name__)
    assert record["steps"] == train_codec.STEPS
    assert record["gate"]["passed"]
    assert record["sha256"] == hashlib.sha256((CODEC / "model.safetensors").read_bytes()).hexdigest()


def test_the_packaged_codec_is_small_and_keeps_the_attributes():
    assert (CODEC / "model.safetensors").stat().st_size <= 2_000_000
    config = json.loads((CODEC / "config.json").read_text())
    assert config["sampling_rate"] == 8000
    assert config["codebook_size"] == 256
    for preset in PRESETS:
        scores = train_codec.ceiling(CODEC, preset, clips=60, seed=4321)
        assert min(scores.values()) >= train_codec.GATE, (preset, scores)
