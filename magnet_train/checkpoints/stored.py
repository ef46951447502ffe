"""A model as it lies in a file: settings in primitives, weights by name."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magnet_train.decoding import DecodingConfig
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

LM, TEXT = "lm.", "text."  # prefixes of the weights' names


@dataclass(frozen=True)
class StoredModel:
    """What every format we read gives.

    Args:
        source: Where it was read from, for messages.
        lm: Arguments of `MagnetTransformer`.
        text: `spec()` of the text encoder.
        codec: Who made the tokens.
        decoding: Default settings of the sampler.
        segment_duration: Longest clip in seconds.
        weights: Tensors named `lm.*` and, for a trained text encoder, `text.*`.
        codec_folder: Local copy of the codec that travels with the model.
        text_folder: Local copy of tokenizer and text encoder.
        training: Steps and the like, for tables and cards.
    """

    source: str
    lm: dict[str, Any]
    text: dict[str, Any]
    codec: CodecInfo
    decoding: DecodingConfig
    segment_duration: float
    weights: dict[str, Tensor]
    codec_folder: Path | None = None
    text_folder: Path | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def weights_of(self, prefix: str) -> dict[str, Tensor]:
        """Return the weights whose names begin with `prefix`, without it."""
        return {name.removeprefix(prefix): w for name, w in self.weights.items() if name.startswith(prefix)}


def decoding_from_dict(record: Mapping[str, Any], where: str) -> DecodingConfig:
    """Read stored sampler settings.

    Raises:
        UserError: A field is unknown to this version.
    """
    try:
        return DecodingConfig(**{**record, "decoding_steps": tuple(record["decoding_steps"])})
    except (TypeError, KeyError) as error:
        raise UserError(f"{where} has decoding settings that this version does not know ({error}); update it.") from error


def load_plain(path: Path) -> Any:
    """Read a torch file without running code.

    Raises:
        UserError: The file is missing, damaged, or holds more than plain data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path.") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} cannot be read as plain weights ({reason[:120]}); copy or save it again.") from error


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put weights into `module`, every name accounted for.

    Raises:
        UserError: Names are missing, unexpected or of another shape; all of them are listed.
    """
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in own]
    problems += [
        f"{name} is {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        raise UserError(f"{where} does not fit its own description: {'; '.join(problems)}; export the model again.")
    module.load_state_dict(dict(weights))
