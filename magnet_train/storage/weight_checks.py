"""Look at weights as they lie in a file, before anything is built or copied: few bytes must not cost much memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from magnet_train.errors import UserError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NAMED = 3  # of the weights that are wrong
_BYTES_OF_A_LAYER = 64  # at least, in any file of weights: its name, shape and numbers


def require_backed(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse tensors that are larger than the numbers stored for them: an expanded one, say, or one on no device.

    Raises:
        UserError: Names a few of them.
    """
    wrong = [name for name, tensor in weights.items() if not _is_backed(tensor)]
    if wrong:
        raise UserError(
            f"{where} holds no plain floating-point numbers for {_few(wrong)}; save the model again."
        )


def _is_backed(tensor: Tensor) -> bool:
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.dtype not in _FLOATS:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def require_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights with NaN or infinity, from which no clip can come.

    Raises:
        UserError: Names a few of them.
    """
    wrong = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if wrong:
        raise UserError(
            f"{where} has NaN or infinite numbers in {_few(wrong)}; take a checkpoint from before the training broke "
            "down, or copy the file again."
        )


def require_modest(
    folder: Path, name: str, what: str, layers: Callable[[], int], build: Callable[[], nn.Module], size: int
) -> None:
    """Compare the size that a configuration describes with that of the weights, before memory is taken for it.

    Args:
        folder: Where the configuration lies.
        name: As the user knows it.
        what: "codec" or "text encoder".
        layers: Counts the layers that it describes.
        build: Makes the model; called on the meta device, where numbers take no memory.
        size: Bytes of the weights.

    Raises:
        UserError: It describes more than the weights could fill, or nothing that can be built.
    """
    config = folder / "config.json"
    too_large = UserError(
        f"{what} {name} cannot be loaded: {config} describes more than the {size:,} bytes of its weights hold; copy it "
        "again."
    )
    try:
        if layers() * _BYTES_OF_A_LAYER > size:
            raise too_large
        with torch.device("meta"):
            model = build()
        numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    except (TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError, IndexError) as error:
        raise UserError(
            f"{what} {name} cannot be loaded: nothing can be built from {config} ({type(error).__name__}); copy it again."
        ) from error
    if numbers > size:  # a number takes a byte at least
        raise too_large


def _few(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
