"""Names of the reference: files, settings, and tensors with their translation to ours and back.

Values stay as they are (fp16 stays fp16); only names and the packing of q, k, v and of the heads change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from magnet_train.models.positions import rotary_frequencies

STATE_FILE, CODEC_FILE = "state_dict.bin", "compression_state_dict.bin"
PRETRAINED = "//pretrained/"  # before a hub id in the reference's configurations
THEIR_STORE = "//"  # begins a name in a private store of the reference's authors
TEXT_WEIGHT = "condition_provider.conditioners.description.output_proj.weight"
OURS = "magnet_train"  # section that our exports add to the configuration, and the reference ignores

# Settings that the architecture needs, where the reference knows others. A missing setting has this value.
ARCHITECTURE: dict[str, Any] = {
    "lm_model": "transformer_lm_magnet",
    "codebooks_pattern.modeling": "parallel",
    "codebooks_pattern.parallel.empty_initial": -1,
    "fuser.cross": ["description"],
    "fuser.sum": [],
    "fuser.prepend": [],
    "fuser.input_interpolate": [],
    "fuser.cross_attention_pos_emb": False,
    "conditioners.description.model": "t5",
    "conditioners.description.t5.finetune": False,
    "conditioners.description.t5.normalize_text": False,
    "transformer_lm.hidden_scale": 4,
    "transformer_lm.activation": "gelu",
    "transformer_lm.norm": "layer_norm",
    "transformer_lm.norm_first": True,
    "transformer_lm.bias_ff": False,
    "transformer_lm.bias_attn": False,
    "transformer_lm.bias_proj": False,
    "transformer_lm.past_context": None,
    "transformer_lm.causal": False,
    "transformer_lm.layer_scale": None,
    "transformer_lm.xpos": False,
    "transformer_lm.qk_layer_norm": False,
    "transformer_lm.qk_layer_norm_cross": False,
    "transformer_lm.kv_repeat": 1,
}

# Of `transformer_lm.positional_embedding`, and ours.
POSITIONS = {"sin": "sinusoidal", "rope": "rotary"}

_RENAMED = {"temperature": "temp", "anneal_temperature": "anneal_temp"}
_SHARED = ("top_p", "top_k", "use_sampling", "max_cfg_coef", "min_cfg_coef")
# Setting of `generate.lm` -> ours.
DECODING = {
    _RENAMED.get(name, name): name
    for name in ("decoding_steps", "span_arrangement", "span_scoring", *_RENAMED, *_SHARED)
}

FREQUENCIES = "rope.frequencies"  # of rotary positions: buffers, which the reference stores and asks for
HEAD = re.compile(r"linears\.(\d+)\.weight")
PACKED = "in_proj_weight"  # rows [q; k; v]
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
WRAPPED = ".mha."  # instead of "." where attention is nn.MultiheadAttention, and not the reference's own

# Pieces of our names and the reference's. No entry is a part of another's result, so the order does not matter.
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


def from_audiocraft_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a release's tensors to ours, with q, k, v apart and the K heads in one; frequencies are left out."""
    ours: dict[str, Tensor] = {}
    heads: dict[int, Tensor] = {}
    for name, tensor in state.items():
        head = HEAD.fullmatch(name)
        if name.endswith(FREQUENCIES):
            continue
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
    """Rename our tensors to the reference's; the inverse of `from_audiocraft_names`, without frequencies."""
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


def rope_frequencies(lm: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the reference's buffers of a model with rotary positions by their names, float32 [D/2H]; else none."""
    if lm.get("positions") != "rotary":
        return {}
    prefixes = ["transformer.", *(f"transformer.layers.{i}.self_attn." for i in range(lm["num_layers"]))]
    return {prefix + FREQUENCIES: rotary_frequencies(lm["dim"] // lm["num_heads"]) for prefix in prefixes}


def _translate(name: str, pieces: Mapping[str, str]) -> str:
    for old, new in pieces.items():
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name
