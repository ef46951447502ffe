"""Large models and large batches: activation checkpointing, gradient accumulation, FSDP2."""

from __future__ import annotations

from functools import partial

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer

ENTRY_POINTS = ("hidden", "head", "states", "read_text")  # methods called from outside, beside `forward`


def recompute_activations(lm: MagnetTransformer) -> None:
    """Checkpoint activations: keep only the input of each layer for the backward pass, for a third more compute."""
    for layer in lm.layers:
        # torch's wrapper module would rename the weights. Layers draw no random numbers.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def accumulate(trainer: pl.Trainer, batch_size: int, global_batch: int | None) -> None:
    """Set the trainer's gradient accumulation so that a step has `global_batch` clips; None leaves it as it is.

    Raises:
        UserError: `global_batch` is not a multiple of `batch_size` (of one device) times the devices, or contradicts
            accumulate_grad_batches.
    """
    if global_batch is None:
        return
    at_once = batch_size * trainer.world_size
    parts, rest = divmod(global_batch, at_once)
    if rest or parts < 1:
        raise UserError(
            f"--global_batch {global_batch} is not a multiple of data.batch_size {batch_size} times "
            f"{trainer.world_size} devices, which is {at_once}; change one of them."
        )
    if trainer.accumulate_grad_batches not in (1, parts):
        raise UserError(
            f"--global_batch {global_batch} takes {parts} batches of {at_once} clips and "
            f"trainer.accumulate_grad_batches says {trainer.accumulate_grad_batches}; give one of the two."
        )
    trainer.accumulate_grad_batches = parts


def shard(lm: MagnetTransformer, text: nn.Module, mesh: DeviceMesh, precision: str) -> None:
    """Shard the model with FSDP2: weights, gradients and optimizer state, by layer and text encoder.

    Args:
        lm: The model.
        text: The text encoder.
        mesh: All ranks, in one dimension.
        precision: The trainer's; with bf16-mixed, layers are gathered and computed in bfloat16.
    """
    policy = MixedPrecisionPolicy()
    if precision == "bf16-mixed":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    text_units = [text] if any(True for _ in text.parameters()) else []
    for module in (*lm.layers, lm, *text_units):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    for method in ENTRY_POINTS:
        register_fsdp_forward_method(lm, method)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def reshard(module: nn.Module) -> None:
    """Free gathered parameters, so that each is this rank's shard again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, or the tensor itself if it is not sharded; same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
