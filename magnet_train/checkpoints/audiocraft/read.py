"""Reading of the reference's formats: a release (`state_dict.bin`, `compression_state_dict.bin`), a training checkpoint.

A release is `{"best_state": tensors, "xp.cfg": YAML text, "version", "exported"}`; a training checkpoint has the
tensors under `best_state.model` and the configuration as OmegaConf objects. Beside a release lies the codec, or
`{"pretrained": hub id}`. All is read as plain data.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from magnet_train.checkpoints.audiocraft.names import (
    ARCHITECTURE,
    CODEC_FILE,
    DECODING,
    OURS,
    POSITIONS,
    PRETRAINED,
    STATE_FILE,
    TEXT_WEIGHT,
    WRAPPED,
    from_audiocraft_names,
    rope_frequencies,
    to_audiocraft_names,
)
from magnet_train.checkpoints.bundle import (
    ModelBundle,
    bundle_from_record,
    require_all,
    require_lm,
    require_small,
)
from magnet_train.checkpoints.card import licence_of
from magnet_train.checkpoints.torch_file import load_plain, to_plain
from magnet_train.errors import UserError
from magnet_train.models import MagnetTransformer
from magnet_train.storage.weight_checks import require_backed, require_finite

MAX_CAPTION_TOKENS = 512  # the reference never cuts a caption; T5 was trained on this many

# Settings of the released music models, for files without them.
RELEASED = {"decoding_steps": (20, 10, 10, 10), "temperature": 3.0, "anneal_temperature": True}

_ABSENT = object()
_MALFORMED = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError)


def is_audiocraft(package: object) -> bool:
    """Return whether a torch file's content is a release or a training checkpoint of the reference."""
    return isinstance(package, Mapping) and {"best_state", "xp.cfg"} <= package.keys()


def read_audiocraft(path: Path, package: Any = None) -> ModelBundle:
    """Read a release folder, its bare `state_dict.bin`, or a training checkpoint; `package` is its content if read.

    Raises:
        UserError: The file is missing, damaged, would run code, lacks parts of a model, or describes another
            architecture than MAGNeT's.
    """
    file = path / STATE_FILE if path.is_dir() else path
    package = load_plain(file) if package is None else package
    if not is_audiocraft(package):
        raise UserError(f"{file} lacks 'best_state' or 'xp.cfg'; it is not a model that audiocraft exported.")
    try:
        config = _config_of(package)
        _require_architecture(config, file)
        return _read_package(config, _weights_of(package), file)
    except (*_MALFORMED, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{file} has a configuration that no model can be built from ({type(error).__name__}: {reason}); export it "
            "again from audiocraft."
        ) from error


def _config_of(package: Mapping[str, Any]) -> dict[str, Any]:
    config = to_plain(package["xp.cfg"])
    config = yaml.safe_load(config) if isinstance(config, str) else config
    if not isinstance(config, dict):
        raise TypeError("xp.cfg has no fields")
    require_small(config, "xp.cfg")
    return config


def _weights_of(package: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the state dict of a release, of a training checkpoint or of a sharded one, by the names of a release."""
    best = (package.get("fsdp_best_state") or {}).get("model") or package["best_state"]
    best = best.get("model", best)
    tensors = {str(name): tensor for name, tensor in best.items() if isinstance(tensor, Tensor)}
    return {name.replace(WRAPPED, "."): tensor for name, tensor in tensors.items()}


def _require_architecture(config: Mapping[str, Any], file: Path) -> None:
    wrong = []
    for name, needed in ARCHITECTURE.items():
        value: Any = config
        for part in name.split("."):
            value = value.get(part, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT and value != needed:
            wrong.append(f"{name} {reprlib.repr(value)} instead of {needed!r}")
    positions = config["transformer_lm"].get("positional_embedding", "sin")
    if positions not in list(POSITIONS):
        known = " or ".join(map(repr, POSITIONS))
        wrong.append(f"transformer_lm.positional_embedding {reprlib.repr(positions)} instead of {known}")
    if wrong:
        raise UserError(
            f"{file} has another architecture than magnet-train builds: {'; '.join(wrong)}; train or export a model with "
            "the released settings."
        )


def _read_package(config: dict[str, Any], state: dict[str, Tensor], file: Path) -> ModelBundle:
    ours = config.get(OURS, {})
    if TEXT_WEIGHT not in state:
        raise UserError(f"{file} has no weights named {TEXT_WEIGHT}; it is not a model conditioned on text.")
    # The name in the YAML does not determine the width of the text encoder; the weights do.
    lm = _lm_config(config, text_dim=int(state[TEXT_WEIGHT].shape[-1]))
    require_backed(state, str(file))
    require_lm(lm, state, str(file))
    require_all(reference_layout(lm), state, str(file))
    require_finite(state, str(file))
    _require_frequencies(lm, state, file)
    codec_id, codec_folder = _codec_beside(file, str(config["compression_model_checkpoint"]))
    codec = {
        "id": codec_id,
        "sha256": "",  # unknown, which fits any codec
        "sample_rate": config["sample_rate"],
        "channels": config["channels"],
        "frame_rate": config["transformer_lm"]["compression_model_framerate"],
        "n_q": lm["n_q"],
        "card": lm["card"],
    }
    text = {
        "kind": "t5",
        "name": str(config["conditioners"]["description"]["t5"]["name"]),
        "trainable": False,
        "max_length": MAX_CAPTION_TOKENS,
    }
    record = {
        "lm": lm,
        "text": text | dict(ours.get("text", {})),
        "codec": codec | dict(ours.get("codec", {})),
        "decoding": _decoding(config, ours),
        "segment_duration": config["dataset"]["segment_duration"],  # as with span_len
        "licence": ours.get("licence") or licence_of(file.parent),
        **{name: ours.get(name) for name in ("training", "data", "base")},
    }
    weights = {f"lm.{name}": tensor for name, tensor in from_audiocraft_names(state).items()}
    return bundle_from_record(record, str(file), weights, source=str(file), codec_folder=codec_folder)


def _lm_config(config: Mapping[str, Any], text_dim: int) -> dict[str, Any]:
    lm = config["transformer_lm"]
    return {
        **{name: int(lm[name]) for name in ("n_q", "card")},
        "text_dim": text_dim,
        **{name: int(lm[name]) for name in ("dim", "num_heads", "num_layers")},
        "span_len": int(config["masking"]["span_len"]),  # transformer_lm.span_len is often a placeholder
        "subcodes_context": int(lm["subcodes_context"]),
        # The reference keeps padded text as keys; our exports record how the model was trained.
        "text_key_mask": bool(config.get(OURS, {}).get("text_key_mask", False)),
        **({"positions": "rotary"} if lm.get("positional_embedding") == "rope" else {}),
    }


def reference_layout(lm: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the reference's state dict for the arguments of a `MagnetTransformer`, on the meta device."""
    with torch.device("meta"):
        try:
            model = MagnetTransformer(**lm)
        except UserError as error:  # names our options, where the caller names the file
            raise ValueError(str(error)) from error
        return to_audiocraft_names(model.state_dict()) | rope_frequencies(lm)


def _require_frequencies(lm: Mapping[str, Any], state: Mapping[str, Tensor], file: Path) -> None:
    for name, needed in rope_frequencies(lm).items():
        # Most releases hold 16-bit weights, and these buffers with them.
        if not torch.allclose(state[name].float(), needed, rtol=5e-3, atol=1e-6):
            raise UserError(
                f"{file} has {name} of another period than 10,000; train or export a model with the released settings."
            )


def _decoding(config: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the decoder: in full from an export of ours, else those of the reference."""
    theirs = config.get("generate", {}).get("lm", {})
    given = {name: theirs[their] for their, name in DECODING.items() if theirs.get(their) is not None}
    parity = bool(ours.get("parity", True))
    return {**RELEASED, **given, **ours.get("decoding", {}), "parity": parity}


def _codec_beside(state_file: Path, named: str) -> tuple[str, Path | None]:
    """Return the name of a release's codec, and the folder of its weights if the release has them."""
    file = state_file.parent / CODEC_FILE
    named = named.removeprefix(PRETRAINED)
    if not file.is_file():
        return named, None
    package = load_plain(file)
    if isinstance(package, Mapping) and isinstance(package.get("pretrained"), str):
        return package["pretrained"].removeprefix(PRETRAINED), None
    if not is_audiocraft(package):
        raise UserError(f"{file} holds neither a codec nor a codec's name; copy it from the release again.")
    return named, file.parent
