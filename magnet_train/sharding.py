"""Share a model out among ranks (FSDP2), and get at a rank's own part of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from magnet_train.models import MagnetTransformer

ENTRANCES = ("hidden", "head", "states", "read_text")  # what else than `forward` is called from outside


def shard(lm: MagnetTransformer, text: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """Share weights, gradients and optimizer state out among the ranks of `mesh`, layer by layer.

    Args:
        lm: The model.
        text: The text encoder; sharded as one where it trains.
        mesh: All ranks, in one dimension.
        precision: The trainer's; with bf16-mixed the layers are gathered, and work, in bfloat16.
    """
    policy = MixedPrecisionPolicy()
    if precision == "bf16-mixed":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in lm.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(lm, mesh=mesh, mp_policy=policy)
    for method in filter(lambda name: hasattr(lm, name), ENTRANCES):
        register_fsdp_forward_method(lm, method)
    if any(True for _ in text.parameters()):
        fully_shard(text, mesh=mesh, mp_policy=policy)


def is_sharded(module: nn.Module) -> bool:
    """Say whether `module` was shared out."""
    return isinstance(module, FSDPModule)


def reshard(module: nn.Module) -> None:
    """Let go of what is still gathered, so that each parameter is this rank's part again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, which is all of it where nothing is shared out; same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
