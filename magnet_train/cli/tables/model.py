"""Tables about a model in any format that we read: what it is, where it comes from, which files hold it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from magnet_train.cli.cells import escape

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

    table = Table(title=escape(title), title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("kind", escape(_kind(stored, path)))
    for name, text in facts(stored):
        table.add_row(escape(name), escape(text.replace("`", "")))
    decoding = ", ".join(f"{name} {value}" for name, value in vars(stored.decoding).items())
    table.add_row("decoding", escape(decoding))
    for file in sorted(_files(path)):
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        name = str(file.relative_to(path.parent))
        table.add_row(escape(f"file {name}"), f"{file.stat().st_size:,} bytes, sha256 {digest}")
    return table


def _kind(stored: ModelBundle, path: Path) -> str:
    from magnet_train.checkpoints.audiocraft.names import STATE_FILE

    if stored.adapter:
        return "LoRA adapter, a checkpoint of magnet-train; it needs the model that it was made from"
    if path.is_dir():
        return "model of audiocraft" if (path / STATE_FILE).is_file() else "export of magnet-train"
    averaged = stored.training.get("weights") == "ema"
    if stored.training.get("weights"):
        return "checkpoint of magnet-train" + (
            ", averaged weights with the raw ones beside them" if averaged else ""
        )
    return "model of audiocraft, its file alone or a training checkpoint"


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    else:
        yield from (file for file in path.rglob("*") if file.is_file())


def _parameters(weights: Mapping[str, Tensor]) -> Table:
    """Count weights by the first two parts of their names."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in weights.items():
        groups.setdefault(".".join(name.split(".")[:2]), []).append(tensor)
    table = Table(title="weights", title_justify="left", title_style="bold")
    for column in ("part", "tensors", "stored numbers", "type"):
        table.add_column(column, justify="right" if column in ("tensors", "stored numbers") else "left")
    for name, tensors in groups.items():
        table.add_row(escape(name), str(len(tensors)), f"{_numel(tensors):,}", _types(tensors))
    everything = list(weights.values())
    table.add_row("all", str(len(everything)), f"{_numel(everything):,}", _types(everything), style="bold")
    return table


def _numel(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _types(tensors: list[Tensor]) -> str:
    return ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors}))
