"""The table of `inspect --memory`: memory of training by model size, trained part, precision and batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from magnet_train.cli.console import escape, table, track

GB, MB = 1e9, 1e6
BATCHES = (1, 4, 8, 16)
SIZES = ("small", "medium", "large")
RELEASED: dict[str, Any] = {"n_q": 4, "card": 2048, "text_dim": 768}
RELEASED_FRAMES = 500  # 10 s at 50 Hz
_LEAST = 0.1 * GB  # below which the table is in MB
_T5_BASE = f"T5-base {109_628_544 * 4 / GB:.1f} GB"  # frozen, from its published sizes


def memory_tables(model: str | None) -> list[Table]:
    """Compute the table for one model, or for the shipped sizes.

    Args:
        model: Anything that `Magnet.from_pretrained` reads; None for the shipped sizes at 10 s.

    Raises:
        UserError: The model cannot be read.
    """
    from magnet_train.training.finetune.trainable import LoRA
    from magnet_train.training.memory import training_memory

    models, frames, seconds, text = _shipped() if model is None else _stored(model)
    cases = list(product(models.items(), (None, LoRA()), (False, True)))
    rows = []
    for (name, lm), tuning, mixed in track(cases, "adding up", "cases"):
        memory = training_memory(lm, frames, mixed, tuning)
        trains, precision = "all" if tuning is None else "LoRA", "bf16-mixed" if mixed else "32-true"
        rows.append((name, trains, precision, [memory.total(batch) for batch in BATCHES]))
    small = min(bytes for *_, totals in rows for bytes in totals) < _LEAST
    unit, digits = (MB, 0) if small else (GB, 1)
    title = (
        f"memory of training on clips of {seconds:g} s ({frames} frames), {'MB' if small else 'GB'}; "
        f"rank of LoRA {LoRA().rank}"
    )
    batches = [f"batch {batch}" for batch in BATCHES]
    memory_table = table(title, "model", "trains", "precision", *batches, right=batches)
    for name, trains, precision, totals in rows:
        sizes = (f"{bytes / unit:.{digits}f}" for bytes in totals)
        memory_table.add_row(escape(name), trains, precision, *sizes)
    memory_table.caption = escape(
        f"Computed from shapes, with AdamW and a moving average. On top: {text}the device's own needs "
        "(about 1 GB with CUDA), and fragments."
    )
    memory_table.caption_justify = "left"
    return [memory_table]


class _Models(NamedTuple):
    """The models of the table."""

    sizes: dict[str, dict[str, Any]]  # arguments of `MagnetTransformer` by name
    frames: int  # of a clip
    seconds: float
    text: str  # name and size of the text encoder, followed by ", "; empty without one


def _shipped() -> _Models:
    text = f"the text encoder ({_T5_BASE}), "
    return _Models(dict(_shipped_sizes()), RELEASED_FRAMES, RELEASED_FRAMES / 50, text)


def _shipped_sizes() -> Iterator[tuple[str, dict[str, Any]]]:
    import yaml

    from magnet_train.cli.configs import packaged_config

    for size in SIZES:
        config = yaml.safe_load(Path(packaged_config(f"configs/model_scale/{size}.yaml")).read_text())
        yield size, {**RELEASED, **config["model"]["init_args"]["lm"]["init_args"]}


def _stored(model: str) -> _Models:
    from magnet_train.checkpoints.card import describe_text
    from magnet_train.checkpoints.load import read_stored

    stored = read_stored(model, mapped=Path(model).is_file())
    encoder = (
        _T5_BASE if stored.text.get("name") == "t5-base" else describe_text(stored.text).replace("`", "")
    )
    return _Models(
        {Path(model).name: stored.lm},
        stored.codec.frames(stored.segment_duration),
        stored.segment_duration,
        "" if stored.text.get("kind") == "none" else f"the text encoder ({encoder}), ",
    )
