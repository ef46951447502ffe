"""Read the reference's release format and translate names between its state dict and ours.

A release is `state_dict.bin`: `{"best_state": tensors, "xp.cfg": YAML text, "version", "exported"}`, read with
`weights_only=True`. Values travel as they are (fp16 stays fp16); only names and the packing of q, k, v change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from magnet_train.checkpoints.stored import load_plain
from magnet_train.errors import UserError

STATE_FILE = "state_dict.bin"
HEAD = re.compile(r"linears\.(\d+)\.weight")
PACKED = "in_proj_weight"  # rows [q; k; v]
PROJECTIONS = ("q_proj", "k_proj", "v_proj")

# Our piece of a name for the reference's. No entry is a part of another's result, so the order does not matter.
NAMES = {
    "embeddings.": "emb.",
    "text_proj.": "condition_provider.conditioners.description.output_proj.",
    "layers.": "transformer.layers.",
    ".self_attention.": ".self_attn.",
    ".norm_self.": ".norm1.",
    ".norm_feed_forward.": ".norm2.",
    ".linear_in.": ".linear1.",
    ".linear_out.": ".linear2.",
}


@dataclass(frozen=True)
class AudiocraftModel:
    """What a release says about a model.

    Args:
        lm_config: Arguments of `MagnetTransformer`.
        state_dict: Its weights under our names, in the stored dtype.
        segment_duration: Length of a training clip, seconds.
        frame_rate: Token frames per second (Hz).
        sample_rate: Audio samples per second (Hz).
        channels: Audio channels.
        text_name: The text encoder, "t5-base" say.
        codec_name: The codec, "facebook/encodec_32khz" say.
        decoding: The `generate.lm` section of its configuration, as it stands.
    """

    lm_config: dict[str, Any]
    state_dict: dict[str, Tensor]
    segment_duration: float
    frame_rate: float
    sample_rate: int
    channels: int
    text_name: str
    codec_name: str
    decoding: dict[str, Any]


def read_audiocraft(path: Path) -> AudiocraftModel:
    """Read a release folder or its bare `state_dict.bin`.

    Raises:
        UserError: The file is missing, damaged, would run code, or lacks what a model needs.
    """
    file = path / STATE_FILE if path.is_dir() else path
    package = load_plain(file)
    if not isinstance(package, dict) or not {"best_state", "xp.cfg"} <= package.keys():
        raise UserError(f"{file} lacks 'best_state' or 'xp.cfg'; it is not a model that audiocraft exported.")
    try:
        return _read_package(package)
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"{file} has a configuration without {error}; export it again from audiocraft."
        ) from error


def _read_package(package: Mapping[str, Any]) -> AudiocraftModel:
    config = yaml.safe_load(package["xp.cfg"])
    lm = config["transformer_lm"]
    state_dict = from_audiocraft_names(package["best_state"])
    return AudiocraftModel(
        lm_config={
            "n_q": int(lm["n_q"]),
            "card": int(lm["card"]),
            "dim": int(lm["dim"]),
            "num_heads": int(lm["num_heads"]),
            "num_layers": int(lm["num_layers"]),
            # The name in the YAML does not bind the width of the text encoder; the weights do.
            "text_dim": int(state_dict["text_proj.weight"].shape[1]),
            "span_len": int(config["masking"]["span_len"]),  # transformer_lm.span_len is often a placeholder
            "subcodes_context": int(lm["subcodes_context"]),
            "text_key_mask": False,  # the reference keeps padded text as keys
        },
        state_dict=state_dict,
        segment_duration=float(config["dataset"]["segment_duration"]),  # likewise
        frame_rate=float(lm["compression_model_framerate"]),
        sample_rate=int(config["sample_rate"]),
        channels=int(config["channels"]),
        text_name=str(config["conditioners"]["description"]["t5"]["name"]),
        codec_name=str(config["compression_model_checkpoint"]).removeprefix("//pretrained/"),
        decoding=dict(config["generate"]["lm"]),
    )


def from_audiocraft_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the reference's tensors our names, with q, k, v apart and the K heads in one."""
    ours: dict[str, Tensor] = {}
    heads: dict[int, Tensor] = {}
    for name, tensor in state.items():
        head = HEAD.fullmatch(name)
        if head:
            heads[int(head[1])] = tensor
        elif name.endswith(PACKED):
            prefix = _translate(name.removesuffix(PACKED), {theirs: mine for mine, theirs in NAMES.items()})
            for projection, part in zip(PROJECTIONS, tensor.chunk(3), strict=True):
                ours[f"{prefix}{projection}.weight"] = part
        else:
            ours[_translate(name, {theirs: mine for mine, theirs in NAMES.items()})] = tensor
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
            theirs[_translate(prefix, NAMES) + PACKED] = packed
        elif not name.endswith((".k_proj.weight", ".v_proj.weight")):
            theirs[_translate(name, NAMES)] = tensor
    return theirs


def _translate(name: str, pieces: Mapping[str, str]) -> str:
    for old, new in pieces.items():
        if old.startswith("."):
            name = name.replace(old, new)
        elif name.startswith(old):
            name = new + name.removeprefix(old)
    return name
