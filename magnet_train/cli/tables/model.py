"""Tables of `inspect` about a model in any format that we read: settings, origin, files and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from magnet_train.cli.console import escape, table

if TYPE_CHECKING:
    from torch import Tensor

    from magnet_train.checkpoints.bundle import ModelBundle


def model_tables(name: str) -> list[Table]:
    """Describe a checkpoint of ours, an export, a model or training checkpoint of audiocraft, or a hub id.

    Raises:
        UserError: It is none of these, or unreadable.
    """
    from magnet_train.checkpoints.load import HUB_FILES, read_bundle
    from magnet_train.storage.hub import find_folder

    path = Path(name) if Path(name).exists() else find_folder(name, "model", HUB_FILES)
    stored = read_bundle(path if Path(name).exists() else name, mapped=True)
    return [_settings(name, stored, path), _parameters(stored.weights)]


def _settings(title: str, stored: ModelBundle, path: Path) -> Table:
    from magnet_train.checkpoints.card import facts

    decoding = ", ".join(f"{name} {value}" for name, value in vars(stored.decoding).items())
    rows = {"kind": _kind(stored, path)}
    rows |= {name: text.replace("`", "") for name, text in facts(stored)}
    rows |= {"decoding": decoding}
    for file in sorted(file for file in (path, *path.rglob("*")) if file.is_file()):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        rows[f"file {file.relative_to(path.parent)}"] = f"{file.stat().st_size:,} bytes, sha256 {digest}"
    settings = table(escape(title), "", "")
    settings.columns[0].style = "bold"
    for name, text in rows.items():
        settings.add_row(escape(name), escape(text))
    return settings


def _kind(stored: ModelBundle, path: Path) -> str:
    from magnet_train.checkpoints.audiocraft.names import STATE_FILE

    weights = stored.training.get("weights")
    if stored.adapter:
        return "LoRA adapter, a checkpoint of magnet-train; it needs the model that it was made from"
    if path.is_dir():
        return "model of audiocraft" if (path / STATE_FILE).is_file() else "export of magnet-train"
    if not weights:
        return "model of audiocraft, its file alone or a training checkpoint"
    averaged = ", averaged weights with the raw ones beside them" if weights == "ema" else ""
    return f"checkpoint of magnet-train{averaged}"


def _parameters(weights: Mapping[str, Tensor]) -> Table:
    """Count weights by the first two parts of their names."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in weights.items():
        groups.setdefault(".".join(name.split(".")[:2]), []).append(tensor)
    counts = ("tensors", "stored numbers")
    parameters = table("weights", "part", *counts, "type", right=counts)
    for name, tensors in groups.items():
        parameters.add_row(escape(name), *_totals(tensors))
    parameters.add_row("all", *_totals(weights.values()), style="bold")
    return parameters


def _totals(tensors: Collection[Tensor]) -> tuple[str, str, str]:
    types = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
    return str(len(tensors)), f"{sum(tensor.numel() for tensor in tensors):,}", types
