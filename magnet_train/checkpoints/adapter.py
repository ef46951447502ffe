"""LoRA adapters: their weights in a checkpoint, and merging them into a model.

Shapes: a linear map's weight [out, in] gets A [rank, in] and B [out, rank].
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from magnet_train.checkpoints.bundle import ModelBundle
from magnet_train.errors import UserError
from magnet_train.storage.weight_checks import require_finite

ADAPTER = "default"  # peft's name for a single adapter
A, B = f".lora_A.{ADAPTER}.weight", f".lora_B.{ADAPTER}.weight"


def is_adapter_weight(name: str) -> bool:
    return name.endswith((A, B))


def merge_adapter(base: ModelBundle, adapter: ModelBundle, strength: float = 1.0) -> ModelBundle:
    """Merge an adapter into the model it was trained on, or into one of the same shape.

    Adapters can be merged one after the other. At `strength` 0 the weights are those of the base, at 1 as trained.

    Returns:
        The model with weights W + strength * alpha / rank * B A, and the settings of the adapter.

    Raises:
        UserError: The two do not fit together.
    """
    if base.lm != adapter.lm:
        names = {**adapter.lm, **base.lm}  # either may leave out what is the default
        differing = [name for name in names if base.lm.get(name) != adapter.lm.get(name)]
        raise UserError(
            f"adapter {adapter.source} is for a model with another {', '.join(differing)} than {base.source}; "
            "name the base that it was trained on."
        )
    factor = strength * float(adapter.adapter["alpha"]) / int(adapter.adapter["rank"])
    weights, changed = base.weights, dict[str, Tensor]()
    for name, down in adapter.weights.items():
        if name.endswith(A):
            target = name.removesuffix(A)
            up = adapter.weights.get(target + B)
            own = weights.get(f"{target}.weight")
            if up is None or own is None or (up.shape[0], down.shape[1]) != tuple(own.shape):
                raise UserError(
                    f"adapter {adapter.source} has weights for {target} that do not fit {base.source}; save it again."
                )
            changed[f"{target}.weight"] = own.float() + factor * (up.float() @ down.float())
    require_finite(changed, f"{base.source} with adapter {adapter.source} at strength {strength:g}")
    return replace(
        adapter,
        weights=weights | changed,
        adapter={},
        text=base.text,
        text_folder=base.text_folder,
        codec_folder=base.codec_folder,
    )


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Return a hash of names and numbers, the same for the same weights in any file."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
