"""Fine-tuning: start from another model's weights (`fit --init_from`), and train some of them (`--tuning`)."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from magnet_train.checkpoints.adapter import ADAPTER, is_adapter_weight, weights_sha256
from magnet_train.checkpoints.bundle import UNSPECIFIED, ModelBundle, load_weights
from magnet_train.checkpoints.card import note_on
from magnet_train.errors import UserError
from magnet_train.models.transformer import LEFT_OUT, count_parameters
from magnet_train.text import KINDS
from magnet_train.training.module import MagnetModule

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "linear_in", "linear_out")
LINKED = ("n_q", "card", "text_dim", "streams")  # set by the codec of the data and by the text encoder


class TrainableParameters(ABC):
    """Strategy that selects the trainable parameters of a module with an `lm` and a `text`."""

    @abstractmethod
    def apply(self, module: nn.Module) -> None:
        """Freeze all other parameters."""

    def record(self) -> dict[str, Any]:
        """Return the origin that a checkpoint records; empty where it holds the whole model."""
        return {}


class Freeze(TrainableParameters):
    """Freeze parts of the model.

    Args:
        parts: Patterns of parameter names, with * and ?: "text.*" is the text encoder, "lm.embeddings.*" and
            "lm.heads" are the layers that depend on the codec, "lm.layers.0.*" is the first layer.
    """

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts

    def apply(self, module: nn.Module) -> None:
        """Freeze the parameters that match.

        Raises:
            UserError: A pattern matches no parameter, or no parameter is left to train.
        """
        parameters = dict(module.named_parameters())
        for pattern in self.parts:
            names = fnmatch.filter(parameters, pattern)
            if not names:
                raise UserError(
                    f"tuning.parts: {pattern} matches no parameter; names begin with lm. or text., such as "
                    "lm.layers.0.self_attention.q_proj.weight."
                )
            for name in names:
                parameters[name].requires_grad_(False)
        if not any(parameter.requires_grad for parameter in parameters.values()):
            raise UserError("tuning.parts freezes all parameters; leave some to train.")


class LoRA(TrainableParameters):
    """Train low-rank additions to the linear maps of the layers; the model itself is frozen.

    Checkpoints hold only the additions; reading one needs the base model.

    Args:
        rank: Rank of each addition, at least 1.
        alpha: Scale; the additions are multiplied by alpha / rank.
        dropout: On the input of the additions in training, 0 <= dropout < 1.
        targets: Linear maps that get an addition in each layer, some of q_proj, k_proj, v_proj, out_proj, linear_in and
            linear_out.

    Raises:
        UserError: A number is out of range, or a target is unknown.

    Source: arXiv 2106.09685.
    """

    def __init__(
        self, rank: int = 16, alpha: float = 16.0, dropout: float = 0.0, targets: tuple[str, ...] = LINEARS
    ) -> None:
        if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
            raise UserError(
                f"tuning has rank {rank}, alpha {alpha} and dropout {dropout}; give rank >= 1, alpha > 0 and "
                "0 <= dropout < 1."
            )
        if not targets or set(targets) - set(LINEARS):
            raise UserError(f"tuning.targets is {list(targets)}; give some of {', '.join(LINEARS)}.")
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, tuple(targets)

    def apply(self, module: nn.Module) -> None:
        """Add to `module.lm`, freeze all else, and keep the frozen weights out of the state dict."""
        module.requires_grad_(False)
        config = LoraConfig(
            r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=list(self.targets)
        )
        inject_adapter_in_model(config, module.lm, adapter_name=ADAPTER)
        frozen = {name for name in module.state_dict() if not is_adapter_weight(name)}

        def drop_frozen(_: nn.Module, state_dict: dict[str, Any], prefix: str, __: Any) -> None:
            for name in frozen:
                state_dict.pop(prefix + name, None)

        def keep_frozen(loading: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
            own = dict(loading.named_parameters(remove_duplicate=False)) | dict(loading.named_buffers())
            for name in frozen:
                state_dict.setdefault(prefix + name, own[name].detach())

        module.register_state_dict_post_hook(drop_frozen)  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(keep_frozen)  # type: ignore[no-untyped-call]

    def record(self) -> dict[str, Any]:
        """Return what merging the additions needs."""
        return {
            "adapter": {"kind": "lora", "rank": self.rank, "alpha": self.alpha, "targets": list(self.targets)}
        }


def take_architecture(settings: Any, base: ModelBundle) -> None:
    """Replace the sizes and the text encoder in `model.init_args` of a configuration by those of the base model.

    Raises:
        UserError: This version does not know the text encoder.
    """
    for name, value in {**LEFT_OUT, **base.lm}.items():
        if name not in LINKED:
            settings.lm.init_args[name] = value
    arguments = dict(base.text)
    kind = str(arguments.pop("kind", None))
    if kind not in KINDS:
        raise UserError(f"{base.source} has a text encoder of unknown kind '{kind}'; update magnet-train.")
    if "name" in arguments:
        name = arguments.pop("name")
        arguments["tokenizer" if kind == "words" else "name"] = str(
            name if "words" in arguments else base.text_folder or name
        )
    if kind == "t5":
        arguments["pretrained"] = not arguments["trainable"]
        if base.text_folder is not None:
            arguments.pop("revision", None)
    settings.text.class_path = f"{KINDS[kind].__module__}.{KINDS[kind].__qualname__}"
    settings.text.init_args = type(settings)(**arguments)


def start(
    module: MagnetModule,
    base: ModelBundle | None,
    tuning: TrainableParameters | None,
    data: Mapping[str, Any],
) -> None:
    """Load the base weights, select the trainable parameters, and record both and a summary of the data.

    Args:
        module: Module with random weights.
        base: Model of `--init_from`; None keeps the random weights.
        tuning: Strategy of `--tuning`; None trains everything.
        data: Summary of the data, for checkpoints and model cards.

    Raises:
        UserError: The base has another codec or shape than this run, or LoRA has no base.
    """
    module.origin["data"] = dict(data)
    if base is not None:
        base.codec.require_same_tokens(module.codec, base.source, "the data")
        if not (base.codec.sha256 and module.codec.sha256) and base.codec.id != module.codec.id:
            rank_zero_warn(
                f"{base.source} was trained on tokens of codec {base.codec.id} and the data has those of "
                f"{module.codec.id}; a hash is missing, so check that both are the same codec."
            )
        load_weights(nn.ModuleDict({"lm": module.lm, "text": module.text}), base.weights, base.source)
        module.origin["base"] = _identity(base)
        module.origin["licence"] = base.licence
        rank_zero_info(
            f"started from the weights of {base.source}: {count_parameters(module.lm):,} parameters, licence "
            f"{base.licence}. {note_on(base.licence)}".rstrip()
        )
    elif isinstance(tuning, LoRA):
        raise UserError("tuning: LoRA needs a base model; name one with --init_from.")
    if tuning is not None:
        tuning.apply(module)
        module.origin.update(tuning.record())


def _identity(base: ModelBundle) -> dict[str, Any]:
    """Identify the base model; by its full path if it is local, since an adapter needs it."""
    local = Path(base.source)
    identity = {
        "source": str(local.resolve()) if local.exists() else base.source,
        "hub": not local.exists(),
        "weights_sha256": weights_sha256(base.weights),
    }
    return identity if base.licence == UNSPECIFIED else {**identity, "licence": base.licence}
