"""A table of the memory that training takes: by model size, what trains, precision and batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import track
from rich.table import Table

GB = 1e9
BATCHES = (1, 4, 8, 16)
SIZES = ("small", "medium", "large")
RELEASED: dict[str, Any] = {"n_q": 4, "card": 2048, "text_dim": 768}
RELEASED_FRAMES = 500  # 10 s at 50 Hz
T5_BASE = 109_628_544 * 4  # bytes of the frozen text encoder, from its published sizes


def memory_tables(model: str | None) -> list[Table]:
    """Compute the table for one model, or for the released sizes.

    Args:
        model: Anything that `Magnet.from_pretrained` reads; None takes the shipped sizes at 10 s.

    Raises:
        UserError: The model cannot be read.
    """
    from magnet_train.finetune.memory import training_memory
    from magnet_train.finetune.tuning import LoRA

    models, frames, seconds = _shipped() if model is None else _stored(model)
    title = f"memory of training on clips of {seconds:g} s ({frames} frames), GB; rank of LoRA {LoRA().rank}"
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in ("model", "trains", "precision", *(f"batch {batch}" for batch in BATCHES)):
        table.add_column(column, justify="right" if column.startswith("batch") else "left")
    cases = list(product(models.items(), (None, LoRA()), (False, True)))
    for (name, lm), tuning, mixed in track(cases, "adding up", transient=True):
        memory = training_memory(lm, frames, mixed, tuning)
        trains, precision = "all" if tuning is None else "LoRA", "bf16-mixed" if mixed else "32-true"
        cells = [f"{memory.total(batch) / GB:.1f}" for batch in BATCHES]
        table.add_row(escape(name), trains, precision, *cells)
    table.caption = (
        f"Computed from shapes, with AdamW and a moving average. On top: the text encoder (T5-base {T5_BASE / GB:.1f} GB), "
        "what the device keeps for itself (about 1 GB with CUDA), and fragments."
    )
    table.caption_justify = "left"
    return [table]


def _shipped() -> tuple[dict[str, dict[str, Any]], int, float]:
    return dict(_shipped_sizes()), RELEASED_FRAMES, RELEASED_FRAMES / 50


def _shipped_sizes() -> Iterator[tuple[str, dict[str, Any]]]:
    import yaml

    from magnet_train.cli.configs import packaged_config

    for size in SIZES:
        config = yaml.safe_load(Path(packaged_config(f"configs/model_scale/{size}.yaml")).read_text())
        yield size, {**RELEASED, **config["model"]["init_args"]["lm"]["init_args"]}


def _stored(model: str) -> tuple[dict[str, dict[str, Any]], int, float]:
    from magnet_train.checkpoints.load import read_stored

    stored = read_stored(model, mapped=Path(model).is_file())
    return (
        {Path(model).name: stored.lm},
        stored.codec.frames(stored.segment_duration),
        stored.segment_duration,
    )
