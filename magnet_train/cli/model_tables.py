"""Tables about a checkpoint or an exported model; weights are counted, not read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from magnet_train.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


def model_tables(path: Path) -> list[Table]:
    """Describe a Lightning `.ckpt` of ours or an exported folder.

    Raises:
        UserError: It is neither, or unreadable.
    """
    return _export_tables(path) if path.is_dir() else _checkpoint_tables(path)


def _export_tables(folder: Path) -> list[Table]:
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "config.json").read_bytes())
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{folder} is not a readable export ({error}); export the checkpoint again."
        ) from error
    if not isinstance(config, dict) or not str(config.get("format", "")).startswith("magnet-train/"):
        raise UserError(
            f"{folder / 'config.json'} is not of magnet-train; name a folder that `export` wrote."
        )
    return [_settings(str(folder), config), _parameters(shapes)]


def _checkpoint_tables(path: Path) -> list[Table]:
    import torch

    try:  # mapped, so that a checkpoint of many gigabytes is described without being read
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path} is not a readable checkpoint ({reason}); name a .ckpt or a folder."
        ) from error
    state = (
        checkpoint.get("state_dict", checkpoint.get("best_state")) if isinstance(checkpoint, dict) else None
    )
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state_dict; name a .ckpt that `magnet-train fit` wrote.")
    config = dict(checkpoint.get("magnet_train") or {})
    for name in ("epoch", "global_step", "pytorch-lightning_version"):
        if name in checkpoint:
            config[name] = checkpoint[name]
    position = (checkpoint.get("callbacks") or {}).get("DataPosition")
    if position:
        config["data position"] = position
    config["EMA"] = "yes (weights below), raw weights kept" if "current_model_state" in checkpoint else "no"
    shapes = {name: tuple(value.shape) for name, value in state.items() if hasattr(value, "shape")}
    return [_settings(str(path), config), _parameters(shapes)]


def _settings(title: str, config: Mapping[str, Any]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _flatten(config):
        table.add_row(escape(name), escape(value))
    return table


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Walk nested settings as ("lm.dim", "1024")."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            text = json.dumps(value) if isinstance(value, list | tuple) else str(value)
            yield prefix + name, text if len(text) <= 200 else text[:199] + "…"


def _parameters(shapes: Shapes) -> Table:
    """Count weights by the first two parts of their names."""
    groups: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        size = 1
        for axis in shape:
            size *= axis
        groups.setdefault(".".join(name.split(".")[:2]), []).append(size)
    table = Table(title="weights", title_justify="left", title_style="bold")
    for column in ("part", "tensors", "numbers"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, sizes in groups.items():
        table.add_row(escape(name), str(len(sizes)), f"{sum(sizes):,}")
    total = sum(map(sum, groups.values()))
    table.add_row("all", str(len(shapes)), f"{total:,}", style="bold")
    return table
