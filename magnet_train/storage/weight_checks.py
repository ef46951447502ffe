"""Checks of untrusted weights, before a model is built: a small file must not cost much memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from magnet_train.errors import UserError
from magnet_train.storage.plain_text import few

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_BYTES_OF_A_LAYER = 64  # in a file, at least: name, shape and numbers


def require_backed(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise `UserError` for tensors with more elements than are stored, such as expanded or meta tensors."""
    wrong = [name for name, tensor in weights.items() if not _is_backed(tensor)]
    if wrong:
        raise UserError(
            f"{where} holds {few(wrong)} as something other than dense floating-point numbers; save the model again."
        )


def _is_backed(tensor: Tensor) -> bool:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.dtype not in _FLOATS:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def require_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise `UserError` for weights with NaN or infinite numbers."""
    wrong = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise UserError(
            f"{where} has NaN or infinite numbers in {few(wrong)}; take a checkpoint from before the training broke "
            "down, or copy the file again."
        )


def require_modest(
    folder: Path, name: str, what: str, layers: Callable[[], int], build: Callable[[], nn.Module], size: int
) -> None:
    """Refuse a configuration that describes more than its file of weights holds, before memory is allocated.

    Args:
        folder: Folder of config.json.
        name: The model's name or folder, for messages.
        what: "codec" or "text encoder".
        layers: Counts the layers of the configuration.
        build: Builds the model; called on the meta device, which allocates no memory.
        size: Bytes of the weights.

    Raises:
        UserError: The model has more numbers than the file could hold, or cannot be built.
    """
    config = folder / "config.json"
    too_large = UserError(
        f"{what} {name} cannot be loaded: {config} describes a model larger than the {size:,} bytes of its weights; "
        "copy it again."
    )
    try:
        if layers() * _BYTES_OF_A_LAYER > size:
            raise too_large
        with torch.device("meta"):
            model = build()
        numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{what} {name} cannot be loaded: {config} does not describe a model ({type(error).__name__}); copy it again."
        ) from error
    if numbers > size:  # a number takes at least a byte
        raise too_large
