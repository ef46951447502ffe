"""Table of training memory by model size, trained parameters, precision and batch size."""

from __future__ import annotations

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
_SMALLEST_IN_GB = 0.1 * GB
_T5_BASE = f"T5-base {109_628_544 * 4 / GB:.1f} GB"  # frozen, from its published sizes


class _Models(NamedTuple):
    sizes: dict[str, dict[str, Any]]  # arguments of `MagnetTransformer` by name
    frames: int  # of a clip
    seconds: float
    text: str  # the text encoder with a comma at the end; empty without one


def memory_tables(model: str | None) -> list[Table]:
    """Compute the table.

    Args:
        model: Anything that `Magnet.from_pretrained` reads; None takes the released sizes at 10 s.

    Raises:
        UserError: The model cannot be read.
    """
    from magnet_train.training.cost import training_memory
    from magnet_train.training.finetune import LoRA

    models = _released() if model is None else _stored(model)
    rows = []
    cases = list(product(models.sizes.items(), (None, LoRA()), (False, True)))
    for (name, lm), tuning, mixed in track(cases, "computing memory", "cases"):
        memory = training_memory(lm, models.frames, mixed, tuning)
        labels = (escape(name), "all" if tuning is None else "LoRA", "bf16-mixed" if mixed else "32-true")
        rows.append((labels, [memory.total(batch) for batch in BATCHES]))
    small = min(bytes for _, totals in rows for bytes in totals) < _SMALLEST_IN_GB
    unit, digits, name = (MB, 0, "MB") if small else (GB, 1, "GB")
    title = (
        f"memory of training on clips of {models.seconds:g} s ({models.frames} frames), {name}; "
        f"rank of LoRA {LoRA().rank}"
    )
    batches = [f"batch {batch}" for batch in BATCHES]
    memory_table = table(title, "model", "trains", "precision", *batches, right=batches)
    for labels, totals in rows:
        memory_table.add_row(*labels, *(f"{bytes / unit:.{digits}f}" for bytes in totals))
    memory_table.caption_justify = "left"
    memory_table.caption = escape(
        f"Computed from shapes, with AdamW and a moving average. On top: {models.text}the device's own needs "
        "(about 1 GB with CUDA), and fragmentation."
    )
    return [memory_table]


def _released() -> _Models:
    import yaml

    from magnet_train.cli.configs import packaged_config

    sizes = {}
    for size in SIZES:
        config = yaml.safe_load(Path(packaged_config(f"configs/model_scale/{size}.yaml")).read_text())
        sizes[size] = {**RELEASED, **config["model"]["init_args"]["lm"]["init_args"]}
    return _Models(sizes, RELEASED_FRAMES, RELEASED_FRAMES / 50, f"the text encoder ({_T5_BASE}), ")


def _stored(model: str) -> _Models:
    from magnet_train.checkpoints.card import describe_text
    from magnet_train.checkpoints.load import read_bundle

    bundle = read_bundle(model, mapped=Path(model).is_file())
    t5_base = bundle.text.get("name") == "t5-base"
    encoder = _T5_BASE if t5_base else describe_text(bundle.text).replace("`", "")
    return _Models(
        {Path(model).name: bundle.lm},
        bundle.codec.frames(bundle.segment_duration),
        bundle.segment_duration,
        "" if bundle.text.get("kind") == "none" else f"the text encoder ({encoder}), ",
    )
