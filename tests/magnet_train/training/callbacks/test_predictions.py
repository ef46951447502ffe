"""What `predict` writes: tokens as they are, whole files or none."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.text import NoText
from magnet_train.tokens import CodecInfo
from magnet_train.training.callbacks import WritePredictions
from magnet_train.training.module import MagnetModule


def write(folder: Path, tokens: torch.Tensor, card: int) -> None:
    module = MagnetModule(
        codec=CodecInfo("large", "0" * 64, 8000, 1, 50.0, n_q=tokens.shape[1], card=card),
        lm=partial(MagnetTransformer, dim=4, num_heads=1, num_layers=1),
        text=NoText(),
    )
    trainer: Any = SimpleNamespace(default_root_dir=folder, global_rank=0, precision="32-true")
    writer = WritePredictions(audio=False)
    writer.on_predict_start(trainer, module)
    slots = torch.arange(len(tokens))
    slots[-1] = -1  # the last row only fills the batch up
    batch = {"slot": slots, "key": ["a/b"] * len(tokens), "text": [""] * len(tokens)}
    writer.write_on_batch_end(trainer, module, tokens, None, batch, 0, 0)


@pytest.mark.parametrize(("card", "dtype"), [(2**15, np.int16), (2**15 + 1, np.uint16)])
def test_tokens_of_large_codebooks_come_back(tmp_path: Path, card: int, dtype: type) -> None:
    tokens = torch.tensor([[[0, card - 1]], [[0, 1]]]).expand(2, 4, 2)
    write(tmp_path, tokens, card)
    written = np.load(tmp_path / "predictions" / "000000.npy", allow_pickle=False)
    assert written.dtype == dtype
    assert written.tolist() == tokens[0].tolist()
    assert len(list((tmp_path / "predictions").glob("*.npy"))) == 1


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, no_file_larger_than: Any) -> None:
    with no_file_larger_than(1000), pytest.raises(UserError, match=r"no room on disk for .*000000\.npy"):
        write(tmp_path, torch.zeros(2, 4, 500, dtype=torch.int64), 16)
    assert [file.name for file in (tmp_path / "predictions").iterdir()] == ["predictions_0.jsonl"]
