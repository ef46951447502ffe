"""Translate names between the reference's state dict and ours.

Values travel as they are (fp16 stays fp16); only names and the packing of q, k, v and of the heads change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

HEAD = re.compile(r"linears\.(\d+)\.weight")
PACKED = "in_proj_weight"  # rows [q; k; v]
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
WRAPPED = ".mha."  # attention by nn.MultiheadAttention instead of the reference's own: the same tensors, one level down

# Our piece of a name for the reference's. No entry is a part of another's result, so the order does not matter.
TO_THEIRS = {
    "embeddings.": "emb.",
    "text_proj.": "condition_provider.conditioners.description.output_proj.",
    "layers.": "transformer.layers.",
    ".self_attention.": ".self_attn.",
    ".norm_self.": ".norm1.",
    ".norm_feed_forward.": ".norm2.",
    ".linear_in.": ".linear1.",
    ".linear_out.": ".linear2.",
}
TO_OURS = {theirs: ours for ours, theirs in TO_THEIRS.items()}


def unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors of any attention backend of the reference the names that released models have."""
    return {name.replace(WRAPPED, "."): tensor for name, tensor in state.items()}


def from_audiocraft_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a release's tensors our names, with q, k, v apart and the K heads in one."""
    ours: dict[str, Tensor] = {}
    heads: dict[int, Tensor] = {}
    for name, tensor in state.items():
        head = HEAD.fullmatch(name)
        if head:
            heads[int(head[1])] = tensor
        elif name.endswith(PACKED):
            prefix = _translate(name.removesuffix(PACKED), TO_OURS)
            for projection, part in zip(PROJECTIONS, tensor.chunk(3), strict=True):
                ours[f"{prefix}{projection}.weight"] = part
        else:
            ours[_translate(name, TO_OURS)] = tensor
    if heads:
        ours["heads"] = torch.stack([heads[k] for k in sorted(heads)])
    return ours


def to_audiocraft_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give our tensors the reference's names; the inverse of `from_audiocraft_names`."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "heads":
            theirs.update({f"linears.{k}.weight": head for k, head in enumerate(tensor)})
        elif name.endswith(".q_proj.weight"):
            prefix = name.removesuffix("q_proj.weight")
            packed = torch.cat([state[f"{prefix}{projection}.weight"] for projection in PROJECTIONS])
            theirs[_translate(prefix, TO_THEIRS) + PACKED] = packed
        elif not name.endswith((".k_proj.weight", ".v_proj.weight")):
            theirs[_translate(name, TO_THEIRS)] = tensor
    return theirs


def _translate(name: str, pieces: Mapping[str, str]) -> str:
    for old, new in pieces.items():
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name
