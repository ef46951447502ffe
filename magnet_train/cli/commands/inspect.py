"""Describe a folder of shards or a model of any format, or compute the memory that training takes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from magnet_train.cli.console import escape, facts_table, table, track
from magnet_train.cli.options import declare, flag, option, whole_number
from magnet_train.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from magnet_train.checkpoints.bundle import ModelBundle

GB, MB = 1e9, 1e6
BATCHES = (1, 4, 8, 16)
SIZES = ("small", "medium", "large")
RELEASED: dict[str, Any] = {"n_q": 4, "card": 2048, "text_dim": 768}
RELEASED_FRAMES = 500  # 10 s at 50 Hz
_SMALLEST_IN_GB = 0.1 * GB
_T5_BASE = f"T5-base {109_628_544 * 4 / GB:.1f} GB"  # frozen, from its published sizes


@dataclass(frozen=True)
class InspectRequest:
    """The options of `inspect`."""

    path: str | None = option(
        "folder of shards; .ckpt of `fit`, exported folder, model or training checkpoint of audiocraft, hub id",
        positional=True,
        nargs="?",
    )
    clips: int = option(
        "clips of a shards folder to read for the statistics, evenly spread; 0 reads all",
        type=whole_number(0),
        default=5000,
        metavar="N",
    )
    memory: bool = flag(
        "compute the memory that training takes, by precision, batch size and LoRA: of the model at the path, or of the "
        "shipped sizes without a path"
    )


add_arguments = declare(InspectRequest)


def run(request: InspectRequest) -> None:
    """Print tables about the shards or the model at the path; raises `UserError` if there is neither."""
    console = Console()
    for each in _tables(request):
        console.print(each)


def _tables(request: InspectRequest) -> Collection[Table]:
    if request.memory:
        return [_memory_table(*(_released() if request.path is None else _stored(request.path)))]
    if request.path is None:
        raise UserError("name a folder of shards or a model to inspect; `inspect --help` lists the kinds.")
    from magnet_train.checkpoints.audiocraft.names import STATE_FILE
    from magnet_train.checkpoints.export import CONFIG
    from magnet_train.checkpoints.load import HUB_FILES, read_bundle
    from magnet_train.storage.hub import find_folder, is_hub_id

    name, path = request.path, Path(request.path)
    if not path.exists() and not is_hub_id(name):
        raise UserError(
            f"there is nothing at {path}; name a folder of shards, a .ckpt, or the folder of a model."
        )
    if path.is_dir() and not any((path / file).exists() for file in (CONFIG, STATE_FILE)):
        from magnet_train.cli.shard_tables import shard_tables

        return shard_tables(path, request.clips)
    found = path if path.exists() else find_folder(name, "model", HUB_FILES)
    bundle = read_bundle(path if path.exists() else name, mapped=True)
    return _settings(name, bundle, found), _weights(bundle)


def _settings(name: str, bundle: ModelBundle, path: Path) -> Table:
    from magnet_train.checkpoints.card import facts

    rows = {"kind": _kind(bundle, path)}
    rows |= {name: text.replace("`", "") for name, text in facts(bundle)}
    rows["decoding"] = ", ".join(f"{name} {value}" for name, value in vars(bundle.decoding).items())
    for file in sorted(file for file in (path, *path.rglob("*")) if file.is_file()):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        rows[f"file {file.relative_to(path.parent)}"] = f"{file.stat().st_size:,} bytes, sha256 {digest}"
    settings = facts_table(name, rows)
    settings.columns[0].style = "bold"
    return settings


def _kind(bundle: ModelBundle, path: Path) -> str:
    from magnet_train.checkpoints.audiocraft.names import STATE_FILE

    weights = bundle.training.get("weights")
    if bundle.adapter:
        return "LoRA adapter, a checkpoint of magnet-train; it needs the model that it was made from"
    if path.is_dir():
        return "model of audiocraft" if (path / STATE_FILE).is_file() else "export of magnet-train"
    if not weights:
        return "model of audiocraft, its file alone or a training checkpoint"
    averaged = ", averaged weights with the raw ones beside them" if weights == "ema" else ""
    return f"checkpoint of magnet-train{averaged}"


def _weights(bundle: ModelBundle) -> Table:
    """Count weights by the first two parts of their names."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in bundle.weights.items():
        groups.setdefault(".".join(name.split(".")[:2]), []).append(tensor)
    counts = ("tensors", "stored numbers")
    weights = table("weights", "part", *counts, "type", right=counts)
    for name, tensors in groups.items():
        weights.add_row(escape(name), *_totals(tensors))
    weights.add_row("all", *_totals(bundle.weights.values()), style="bold")
    return weights


def _totals(tensors: Collection[Tensor]) -> tuple[str, str, str]:
    from magnet_train.models.precision import dtype_name

    types = ", ".join(sorted({dtype_name(tensor.dtype) for tensor in tensors}))
    return str(len(tensors)), f"{sum(tensor.numel() for tensor in tensors):,}", types


def _released() -> tuple[dict[str, dict[str, Any]], int, float, str]:
    """Return the arguments of `_memory_table` for the released sizes at 10 s."""
    import yaml

    from magnet_train.cli.configs import packaged_config

    sizes = {}
    for size in SIZES:
        config = yaml.safe_load(Path(packaged_config(f"configs/model_scale/{size}.yaml")).read_text())
        sizes[size] = {**RELEASED, **config["model"]["init_args"]["lm"]["init_args"]}
    return sizes, RELEASED_FRAMES, RELEASED_FRAMES / 50, f"the text encoder ({_T5_BASE}), "


def _stored(model: str) -> tuple[dict[str, dict[str, Any]], int, float, str]:
    from magnet_train.checkpoints.card import describe_text
    from magnet_train.checkpoints.load import read_bundle

    bundle = read_bundle(model, mapped=True)
    t5_base = bundle.text.get("name") == "t5-base"
    encoder = _T5_BASE if t5_base else describe_text(bundle.text).replace("`", "")
    on_top = "" if bundle.text.get("kind") == "none" else f"the text encoder ({encoder}), "
    seconds = bundle.segment_duration
    return {Path(model).name: bundle.lm}, bundle.codec.frames(seconds), seconds, on_top


def _memory_table(sizes: dict[str, dict[str, Any]], frames: int, seconds: float, on_top: str) -> Table:
    """Compute training memory for models, given as arguments of `MagnetTransformer` by name, on clips of a length."""
    from magnet_train.training.cost import training_memory
    from magnet_train.training.finetune import LoRA

    rows = []
    cases = list(product(sizes.items(), (None, LoRA()), (False, True)))
    for (name, lm), tuning, mixed in track(cases, "computing memory", "cases"):
        memory = training_memory(lm, frames, mixed, tuning)
        labels = (escape(name), "all" if tuning is None else "LoRA", "bf16-mixed" if mixed else "32-true")
        rows.append((labels, [memory.total(batch) for batch in BATCHES]))
    small = min(bytes for _, totals in rows for bytes in totals) < _SMALLEST_IN_GB
    unit, digits, name = (MB, 0, "MB") if small else (GB, 1, "GB")
    title = (
        f"memory of training on clips of {seconds:g} s ({frames} frames), {name}; rank of LoRA {LoRA().rank}"
    )
    batches = [f"batch {batch}" for batch in BATCHES]
    filled = table(title, "model", "trains", "precision", *batches, right=batches)
    for labels, totals in rows:
        filled.add_row(*labels, *(f"{bytes / unit:.{digits}f}" for bytes in totals))
    filled.caption_justify = "left"
    filled.caption = escape(
        f"Computed from shapes, with AdamW and a moving average. On top: {on_top}the device's own needs "
        "(about 1 GB with CUDA), and fragmentation."
    )
    return filled
