"""The data's options through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml

from magnet_train.cli.main import main

SMALL = [
    *("-c", "configs/base.yaml", "-c", "configs/quickstart.yaml", "-c", "configs/trainer/cpu.yaml"),
    *("--data.batch_size", "4", "--data.num_workers", "0", "--data.segment_duration", "0.5"),
    *("--model.lm.dim", "32", "--model.lm.num_layers", "1", "--model.text", "magnet_train.text.NoText"),
    *("--model.optimizer.lr", "0.001", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"),
    *("--trainer.enable_progress_bar", "false", "--trainer.logger", "false"),
    *("--trainer.callbacks", "lightning.pytorch.callbacks.ModelCheckpoint"),
    *("--trainer.callbacks.dirpath", ".", "--trainer.callbacks.save_last", "true"),
]


def position(run: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)["callbacks"]["DataPosition"]
    return state


def test_a_mixture_with_captions_from_a_yaml(make_shards: Any, tmp_path: Path) -> None:
    first, second = make_shards(clips=10), make_shards(clips=20, name="second")
    overlay = tmp_path / "mixture.yaml"
    options = {
        "shards": {str(first): 3, str(second): 1.5},
        "captions": {"drop_word": 0.3, "merge_metadata": 0.25},
        "on_bad_sample": "skip",
        "cache": {"gigabytes": 5},
    }
    overlay.write_text(yaml.safe_dump({"data": {"init_args": options}}))
    run = tmp_path / "run"
    assert main(["fit", *SMALL, "-c", str(overlay), "--run", str(run)]) == 0
    assert sorted(position(run)["weights"].split("+")) == ["0.333333", "0.666667"]
    saved = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    assert saved["shards"] == options["shards"]
    assert saved["captions"]["drop_word"] == 0.3


def test_a_mixture_on_the_command_line(make_shards: Any, tmp_path: Path) -> None:
    folders = json.dumps({str(make_shards()): 1, str(make_shards(name="second")): 1})
    assert main(["fit", *SMALL, "--data.shards", folders, "--run", str(tmp_path / "run")]) == 0
    assert position(tmp_path / "run")["weights"] == "0.5+0.5"


def test_streaming_by_class_path(make_shards: Any, tmp_path: Path) -> None:
    overlay = tmp_path / "stream.yaml"
    options = {"shards": str(make_shards(clips=20)), "val_shards": str(make_shards(clips=4, name="val"))}
    overlay.write_text(
        yaml.safe_dump({"data": {"class_path": "datamodules.StreamingDataModule", "init_args": options}})
    )
    assert main(["fit", *SMALL, "-c", str(overlay), "--run", str(tmp_path / "run")]) == 0
    assert position(tmp_path / "run")["slots"] == 8


def test_a_wrong_number_is_one_sentence(make_shards: Any, tmp_path: Path, capsys: Any) -> None:
    options = ["--data.shards", str(make_shards()), "--data.captions", '{"drop_word": 2}']
    assert main(["fit", *SMALL, *options, "--run", str(tmp_path / "run")]) == 1
    _, found, message = capsys.readouterr().err.rpartition("magnet-train: error: ")
    assert found
    assert message.startswith("data.captions.drop_word is 2")
    assert message.count("\n") == 1


def test_a_damaged_clip_is_one_sentence(make_shards: Any, tmp_path: Path, capsys: Any) -> None:
    folder = make_shards(clips=12)
    with (folder / "shard-000000.tar").open("r+b") as file:
        for clip in range(12):  # 2,560 bytes each: the json's header and text, the npy's header and tokens
            file.seek(clip * 2560 + 1536 + 128)
            file.write(b"\xff\x7f")
    options = ["--data.shards", str(folder), "--data.num_workers", "1", "--run", str(tmp_path / "run")]
    assert main(["fit", *SMALL, *options]) == 1
    _, found, message = capsys.readouterr().err.rpartition("magnet-train: error: ")
    assert found
    assert message.startswith("clip clip00")
    assert "shard-000000.tar is damaged: tokens" in message
    assert message.count("\n") == 1
