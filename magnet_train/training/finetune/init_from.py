"""Begin a training with another model's weights (`fit --init_from`), and set what of it trains (`--tuning`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from magnet_train.checkpoints.adapter import weights_sha256
from magnet_train.checkpoints.bundle import UNSPECIFIED, ModelBundle, load_weights
from magnet_train.checkpoints.card import note_on
from magnet_train.errors import UserError
from magnet_train.models.transformer import count_parameters
from magnet_train.training.finetune.trainable import LoRA, TrainableParameters
from magnet_train.training.module import MagnetModule

FROM_DATA = (
    "n_q",
    "card",
    "text_dim",
)  # have their source elsewhere: the codec of the data, the text encoder
TEXT_CLASSES = {"t5": "T5Text", "words": "WordText", "labels": "ClassLabels", "none": "NoText"}


def take_architecture(settings: Any, base: ModelBundle) -> None:
    """Let sizes and text encoder of a run be those of the model that it begins with.

    Args:
        settings: `model.init_args` of the configuration; its `lm` and `text` are replaced.
        base: The model to begin with.
    """
    for name, value in base.lm.items():
        if name not in FROM_DATA:
            settings.lm.init_args[name] = value
    settings.text.class_path, arguments = _text_settings(base)
    settings.text.init_args = type(settings)(**arguments)


def start(
    module: MagnetModule,
    base: ModelBundle | None,
    tuning: TrainableParameters | None,
    data: Mapping[str, Any],
) -> None:
    """Put in the weights, choose what trains, and let checkpoints say so.

    Args:
        module: As it was built.
        base: The model to begin with; None begins with random weights.
        tuning: What trains; None trains everything.
        data: Summary of the data, for checkpoints and model cards.

    Raises:
        UserError: The base has another codec or shape than this run, or LoRA has no base.
    """
    module.origin["data"] = dict(data)
    if base is not None:
        _require_same_codec(base, module)
        load_weights(nn.ModuleDict({"lm": module.lm, "text": module.text}), base.weights, base.source)
        module.origin["base"] = _identity(base)
        module.origin["licence"] = base.licence
        rank_zero_info(
            f"began with the weights of {base.source}: {count_parameters(module.lm):,} parameters, licence "
            f"{base.licence}. {note_on(base.licence)}".rstrip()
        )
    elif isinstance(tuning, LoRA):
        raise UserError("tuning: LoRA adds to a model that is there; name it with --init_from.")
    if tuning is not None:
        tuning.apply(module)
        module.origin.update(tuning.record())


def _require_same_codec(base: ModelBundle, module: MagnetModule) -> None:
    base.codec.require_same_tokens(module.codec, base.source, "the data")
    if not (base.codec.sha256 and module.codec.sha256) and base.codec.id != module.codec.id:
        rank_zero_warn(
            f"{base.source} speaks the tokens of codec {base.codec.id} and the data holds those of {module.codec.id}; "
            "whether they are the same cannot be told, since a hash is missing."
        )


def _identity(base: ModelBundle) -> dict[str, Any]:
    """Say which model it was; a file by its full path, since an adapter is of no use without it."""
    local = Path(base.source)
    identity = {
        "source": str(local.resolve()) if local.exists() else base.source,
        "hub": not local.exists(),
        "weights_sha256": weights_sha256(base.weights),
    }
    return identity if base.licence == UNSPECIFIED else {**identity, "licence": base.licence}


def _text_settings(base: ModelBundle) -> tuple[str, dict[str, Any]]:
    """Translate the text encoder's description into class and arguments."""
    arguments = dict(base.text)
    kind = str(arguments.pop("kind", None))
    if kind not in TEXT_CLASSES:
        raise UserError(f"{base.source} has a text encoder of unknown kind '{kind}'; update magnet-train.")
    if "name" in arguments:
        name = arguments.pop("name")
        arguments["tokenizer" if kind == "words" else "name"] = str(base.text_folder or name)
    if kind == "t5":
        arguments["pretrained"] = not arguments["trainable"]
        if base.text_folder is not None:
            arguments.pop("revision", None)
    return f"magnet_train.text.{TEXT_CLASSES[kind]}", arguments
