"""What a run leaves in W&B (offline, no account), TensorBoard and CSV."""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

PROMPTS = ("--model.sample_prompts", '["a calm flute on c4", "a fast flute on c4"]')
CURVES = {
    "train/loss",
    "train/grad_norm",
    "val/loss",
    "speed/steps_per_second",
    "speed/tokens_per_second",
    "speed/audio_hours_per_hour",
    "speed/mfu",
    "speed/samples_share",
    "data/slots",
    "data/epochs",
    *(f"val/{kind}_codebook_{k}" for kind in ("loss", "perplexity", "accuracy") for k in range(4)),
}
SPEED = (
    "trainer: {callbacks: [{class_path: magnet_train.training.callbacks.ThroughputMonitor, "
    "init_args: {peak_tflops: 0.1}},"
)
SAMPLES = " {class_path: magnet_train.training.callbacks.SampleAudio},"
SAVING = " {class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {dirpath: ., every_n_train_steps: 3}}]}"


@pytest.fixture
def overlay(tmp_path) -> Path:
    path = tmp_path / "callbacks.yaml"
    path.write_text(SPEED + SAMPLES + SAVING + "\n")
    return path


def records_of(path: Path) -> Iterator[wandb_internal_pb2.Record]:
    """Read a .wandb file: a 7-byte header, then LevelDB's log format, a protobuf in each record."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    place, parts = 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def finished_records_of(path: Path, seconds: float = 30) -> list[wandb_internal_pb2.Record]:
    """Wait for the last record, which W&B's own process may write a moment after `finish` has returned."""
    deadline = time.monotonic() + seconds
    while True:
        records = list(records_of(path))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < deadline
        time.sleep(0.1)


def history_of(records: list[wandb_internal_pb2.Record]) -> list[dict]:
    rows = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    return [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in row.item} for row in rows]


def test_an_offline_run_of_wandb_read_back(trainings, tmp_path, overlay, load, monkeypatch):
    """WANDB_MODE instead of the logger's `offline`, which refuses artifacts."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.finish()  # a run that another test of this process left open would be taken for ours
    run = tmp_path / "run"
    options = ["-c", "configs/logger/wandb.yaml", "-c", str(overlay), "--trainer.logger.log_model", "all"]
    assert trainings.fit(run, *options, *PROMPTS) == 0
    wandb.finish()  # what the end of the process does
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    records = finished_records_of(file)
    rows = history_of(records)

    logged = {key for row in rows for key in row}
    assert logged >= CURVES
    assert [row["trainer/global_step"] for row in rows if "train/loss" in row] == list(range(6))
    assert [row["data/slots"] for row in rows if "data/slots" in row] == [4, 8, 12, 16, 20, 24]
    assert all(row["train/grad_norm"] > 0 for row in rows if "train/grad_norm" in row)
    assert all(row["speed/mfu"] > 0 for row in rows if "speed/mfu" in row)

    config: dict = {}
    for record in records:
        for update in [*record.config.update, *record.run.config.update]:
            config[update.key] = json.loads(update.value_json)
    assert config["model"]["init_args"]["lm"]["init_args"]["dim"] == 32
    assert config["data"]["init_args"]["batch_size"] == 4
    assert config["trainer"]["max_steps"] == 6

    assert len({row["samples/artifact_path"] for row in rows if "samples/artifact_path" in row}) == 2
    artifacts = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    tables = [files_of(artifact) for artifact in artifacts if artifact.type == "run_table"]
    for step, files in zip((3, 6), tables, strict=True):  # a new table at each of two validations
        content = json.loads(files["samples.table.json"].read_text())
        assert content["columns"][:5] == ["step", "prompt", "audio", "spectrogram", "seed"]
        assert {"decoding_steps", "temperature", "top_p", "max_cfg_coef"} <= set(content["columns"])
        assert [row[1] for row in content["data"]] == ["a calm flute on c4", "a fast flute on c4"]
        for row in content["data"]:
            assert row[0] == step
            assert row[2]["caption"] == row[1]
            assert files[row[2]["path"]].stat().st_size > 10_000
            assert files[row[3]["path"]].read_bytes()[1:4] == b"PNG"

    models = [files_of(artifact) for artifact in artifacts if artifact.type == "model"]
    assert [load(files["model.ckpt"])["global_step"] for files in models] == [3, 6]


def files_of(artifact: wandb_internal_pb2.ArtifactRecord) -> dict[str, Path]:
    return {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}


def test_the_share_of_time_that_samples_take_is_logged_and_printed(
    trainings, tmp_path, overlay, column, caplog
):
    with caplog.at_level("INFO"):
        assert trainings.fit(tmp_path, "-c", str(overlay), *PROMPTS) == 0
    shares = column(tmp_path, "speed/samples_share")
    assert list(shares) == [3, 6]
    assert all(0 < share < 1 for share in shares.values())
    assert re.search(r"samples in validation took \d+\.\d s, \d+ % of the time of training", caplog.text)


def test_tensorboard_and_csv_hold_the_same_curves(trainings, tmp_path, overlay, column):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values = {}
    for name in ("csv", "tensorboard"):
        run = tmp_path / name
        assert trainings.fit(run, "-c", f"configs/logger/{name}.yaml", "-c", str(overlay), *PROMPTS) == 0
        assert {p.name for p in (run / "samples" / "step_0000006").iterdir()} == {
            "0.wav",
            "0.png",
            "1.wav",
            "1.png",
        }
    header = set((tmp_path / "csv" / "metrics.csv").read_text().splitlines()[0].split(","))
    events = EventAccumulator(
        str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "audio": 0}
    ).Reload()
    assert header >= CURVES
    assert set(events.Tags()["scalars"]) >= CURVES
    for name in ("train/loss", "val/loss", "data/slots"):
        values[name] = {event.step: event.value for event in events.Scalars(name)}
        assert values[name] == pytest.approx(column(tmp_path / "csv", name))
    assert len(events.Tags()["audio"]) == 2


OWN_LOGGER = """
from pathlib import Path

from lightning.pytorch.loggers import Logger

class Lines(Logger):
    name, version = "lines", ""

    def __init__(self, path: str):
        super().__init__()
        self.path = Path(path)

    def log_metrics(self, metrics, step=None):
        with self.path.open("a") as file:
            print(step, *metrics, file=file)

    def log_hyperparams(self, params, *args, **kwargs):
        self.path.write_text(f"max_steps {params['trainer']['max_steps']}\\n")
"""


def test_a_logger_of_ones_own_without_a_folder(trainings, tmp_path, monkeypatch):
    (tmp_path / "own_logger.py").write_text(OWN_LOGGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    overlay = tmp_path / "logger.yaml"
    lines = tmp_path / "lines.txt"
    own = f"{{class_path: own_logger.Lines, init_args: {{path: {lines}}}}}"
    csv_elsewhere = (
        f"{{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {tmp_path / 'csv'}}}}}"
    )
    overlay.write_text(f"trainer: {{logger: [{own}, {csv_elsewhere}]}}\n")
    assert trainings.fit(tmp_path / "run", "-c", str(overlay)) == 0
    assert (tmp_path / "run" / "config.yaml").is_file()
    written = lines.read_text().splitlines()
    assert written[0] == "max_steps 6"
    assert any("train/loss" in line for line in written)


def test_the_start_summary_is_printed_once_with_options_without_effect(trainings, tmp_path, caplog):
    options = ("--trainer.val_check_interval", "50", "--trainer.log_every_n_steps", "10", *PROMPTS)
    overlay = tmp_path / "no_samples.yaml"
    overlay.write_text("trainer: {callbacks: []}\n")
    none = tmp_path / "none.yaml"
    none.write_text("model: {init_args: {text: {class_path: magnet_train.text.NoText}, cfg_dropout: 0.2}}\n")
    with caplog.at_level("INFO"):
        assert trainings.fit(tmp_path / "run", "-c", str(overlay), "-c", str(none), *options) == 0
    assert caplog.text.count("1.28 s, 64 frames of 4 codebooks") == 1
    assert caplog.text.count("step        4 clips; ") == 1
    assert re.search(r"parameters  ([\d,]+) of \1 train; frozen: nothing", caplog.text)
    named = re.findall(r"without effect: ([\w.]+)", caplog.text)
    assert set(named) == {
        "trainer.val_check_interval",
        "trainer.log_every_n_steps",
        "model.sample_prompts",
        "model.cfg_dropout",
        "model.decoding.max_cfg_coef",
    }


def test_the_progress_bar_shows_step_loss_speed_and_time_left(trainings, tmp_path, capsys, caplog):
    with caplog.at_level("INFO"):
        assert trainings.fit(tmp_path / "run", "--trainer.enable_progress_bar", "true") == 0
    assert "train, those of the text encoder included; frozen: nothing" in caplog.text
    shown = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert len(shown) == 1  # no terminal: a line now and then, and the last
    assert shown[0].startswith("step 6/6 · train loss ")
    assert "audio hours/hour" in shown[0]
    assert shown[0].endswith("0 s left")


def test_a_run_makes_no_noise(trainings, tmp_path, capfd, recwarn):
    run = tmp_path / "run"
    assert trainings.fit(run) == 0
    assert trainings.fit(run, "--resume", "auto", "--trainer.max_steps", "7") == 0
    assert not [str(w.message) for w in recwarn]


def test_sample_audio_with_another_module_is_one_sentence(trainings, tmp_path, capsys, monkeypatch):
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel

    from magnet_train.errors import UserError
    from magnet_train.training.callbacks import SampleAudio

    trainer = Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[SampleAudio()]
    )
    with pytest.raises(UserError, match=r"SampleAudio needs a .*BoringModel"):
        trainer.fit(BoringModel())
