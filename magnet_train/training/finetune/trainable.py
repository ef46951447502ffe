"""What of a model trains: all but some parts, or a low-rank addition alone."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from magnet_train.checkpoints.adapter import ADAPTER, is_adapter_weight
from magnet_train.errors import UserError

LINEARS = ("q_proj", "k_proj", "v_proj", "out_proj", "linear_in", "linear_out")


class TrainableParameters(ABC):
    """What of a model trains."""

    @abstractmethod
    def apply(self, module: nn.Module) -> None:
        """Let the rest of the module, which has an `lm` and a `text`, stay as it is."""

    def record(self) -> dict[str, Any]:
        """Say what a checkpoint has to know to be read; nothing where it holds the whole model."""
        return {}


class Freeze(TrainableParameters):
    """Leave parts of the model as they are.

    Args:
        parts: Patterns of parameter names, with * and ?: "text.*" the text encoder, "lm.embeddings.*" and
            "lm.heads" what speaks the codec's tokens, "lm.layers.0.*" the first layer.
    """

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts

    def apply(self, module: nn.Module) -> None:
        """Freeze them.

        Raises:
            UserError: A pattern meets no parameter, or nothing is left to train.
        """
        parameters = dict(module.named_parameters())
        for pattern in self.parts:
            names = fnmatch.filter(parameters, pattern)
            if not names:
                raise UserError(
                    f"tuning.parts: no parameter is called {pattern}; names begin with lm. or text., such as "
                    "lm.layers.0.self_attention.q_proj.weight."
                )
            for name in names:
                parameters[name].requires_grad_(False)
        if not any(parameter.requires_grad for parameter in parameters.values()):
            raise UserError("tuning.parts freezes all parameters; leave some to train.")


class LoRA(TrainableParameters):
    """Train low-rank additions to the layers' linear maps; the model itself stays as it is.

    Checkpoints hold the additions alone: reading one needs the model that training began with.

    Args:
        rank: Of each addition; its size grows with it.
        alpha: The addition counts alpha / rank times.
        dropout: On the input of the additions in training, 0..1.
        targets: Which linear maps of each layer get one, of q_proj, k_proj, v_proj, out_proj, linear_in, linear_out.

    Raises:
        UserError: A number is out of range, or a target is no linear map of the model.

    Source: arXiv 2106.09685.
    """

    def __init__(
        self,
        rank: int = 16,
        alpha: float = 16.0,
        dropout: float = 0.0,
        targets: tuple[str, ...] = LINEARS,
    ) -> None:
        if rank < 1 or alpha <= 0 or not 0 <= dropout < 1:
            raise UserError(
                f"tuning: rank {rank} must be at least 1, alpha {alpha} above 0 and dropout {dropout} in 0..1."
            )
        wrong = set(targets) - set(LINEARS)
        if wrong or not targets:
            raise UserError(f"tuning.targets {list(targets)} must be some of {', '.join(LINEARS)}.")
        self.rank, self.alpha, self.dropout, self.targets = rank, alpha, dropout, tuple(targets)

    def apply(self, module: nn.Module) -> None:
        """Add them to `module.lm`, freeze all else, and keep the frozen weights out of its state dict."""
        module.requires_grad_(False)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(self.targets),
        )
        inject_adapter_in_model(config, module.lm, adapter_name=ADAPTER)
        frozen = {name for name in module.state_dict() if not is_adapter_weight(name)}

        def leave_out(_: nn.Module, state_dict: dict[str, Any], prefix: str, __: Any) -> None:
            for name in frozen:
                state_dict.pop(prefix + name, None)

        def take_as_they_are(loading: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
            own = dict(loading.named_parameters(remove_duplicate=False)) | dict(loading.named_buffers())
            for name in frozen:
                state_dict.setdefault(prefix + name, own[name].detach())

        module.register_state_dict_post_hook(leave_out)  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(take_as_they_are)  # type: ignore[no-untyped-call]

    def record(self) -> dict[str, Any]:
        """Say what a checkpoint has to know to put the additions in their place."""
        return {
            "adapter": {"kind": "lora", "rank": self.rank, "alpha": self.alpha, "targets": list(self.targets)}
        }
