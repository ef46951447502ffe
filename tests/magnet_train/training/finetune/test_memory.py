"""The computed memory against what is really allocated, on a small model."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from magnet_train.cli.main import main
from magnet_train.models import MagnetTransformer
from magnet_train.training.cost import CAPTION_TOKENS, training_memory
from magnet_train.training.finetune import Freeze, LoRA, TrainableParameters

SIZES: dict[str, Any] = {"n_q": 4, "card": 256, "text_dim": 64, "dim": 128, "num_heads": 4, "num_layers": 4}
RECORDED = Path(__file__).parents[3] / "reference" / "data"


def peak_of_training(
    batch: int, frames: int, mixed: bool, tuning: TrainableParameters | None, trace: Path
) -> int:
    """Train two steps for real, as Lightning orders them, and return the most bytes that were allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        lm = MagnetTransformer(**SIZES)
        if tuning is not None:
            tuning.apply(nn.ModuleDict({"lm": lm}))
        trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        average = [parameter.detach().clone() for parameter in trained]
        optimizer = torch.optim.AdamW(trained)
        tokens = torch.randint(SIZES["card"], (batch, 4, frames))
        text = torch.randn(batch, CAPTION_TOKENS, SIZES["text_dim"])
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
                logits = lm(tokens, 1, text)
                loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert average
    profiler.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text())["traceEvents"]
    allocated = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    return int(max(allocated) - allocated[0])


@pytest.mark.parametrize("tuning", [None, LoRA(), Freeze(["lm.embeddings.*"])], ids=["all", "lora", "freeze"])
@pytest.mark.parametrize("mixed", [False, True], ids=["float32", "mixed"])
@pytest.mark.parametrize(("batch", "frames"), [(4, 200)])
def test_computed_memory_is_what_is_allocated(
    batch: int, frames: int, mixed: bool, tuning: TrainableParameters | None, tmp_path: Path
) -> None:
    """The rest, up to 8 % at this size, are buffers that live for one operation."""
    real = peak_of_training(batch, frames, mixed, tuning, tmp_path / "trace.json")
    computed = training_memory(SIZES, frames, mixed, tuning).total(batch)
    assert 0.92 < computed / real <= 1.01


def test_table_of_a_model(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["inspect", "--memory", str(RECORDED / "lm_a")]) == 0
    shown = capsys.readouterr().out
    assert shown.count("LoRA  ") == 2
    assert "batch 16" in shown
    assert "AdamW" in shown
    assert "frames), MB; rank" in shown  # a few MB
    assert " 0.0" not in shown
    assert "the text encoder (T5-base 0.4 GB), the device" in " ".join(shown.split())
    # of the shipped sizes, as in docs/finetune.md
    assert main(["inspect", "--memory"]) == 0
    shown = capsys.readouterr().out
    assert "frames), GB; rank" in shown
    assert "134.3" in shown
    assert "T5-base 0.4 GB" in shown


def test_table_names_the_models_own_text_encoder(checkpoint: Path, capsys: Any) -> None:
    assert main(["inspect", "--memory", str(checkpoint)]) == 0
    assert "On top: the text encoder (T5 quickstart, trained along, captions" in " ".join(
        capsys.readouterr().out.split()
    )


def test_nothing_to_inspect(capsys: Any) -> None:
    assert main(["inspect"]) == 1
    assert "name a folder of shards or a model to inspect" in capsys.readouterr().err
