"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Muon, Optimizer

from magnet_train.errors import UserError


class MuonAdamW(Optimizer):
    """Orthogonalise the updates of hidden matrices; embeddings, heads and norms are no such maps.

    Args:
        named_parameters: Names and parameters, all that train.
        lr: Of both parts; Muon's updates are scaled to the size of AdamW's, so that one rate fits both.
        weight_decay: Of both parts.
        momentum: Muon's.
        betas: AdamW's.
        hidden: Prefix of the names whose matrices Muon takes.

    Raises:
        UserError: Nothing under `hidden`, or the parameters are sharded.

    Source: https://kellerjordan.github.io/posts/muon; arXiv 2502.16982 for the scale.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        hidden: str = "lm.layers.",
    ) -> None:
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in named_parameters:
            (matrices if parameter.ndim == 2 and name.startswith(hidden) else rest).append(parameter)
        if not matrices:
            raise UserError(f"Muon found no matrix whose name begins with '{hidden}'; take AdamW.")
        if any(isinstance(matrix, DTensor) for matrix in matrices):
            # A shard of a matrix cannot be orthogonalised by itself.
            raise UserError("Muon needs whole matrices and this run shards them; take AdamW or strategy ddp.")
        super().__init__([*matrices, *rest], {"lr": lr})
        muon = Muon(
            matrices, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
        )
        adamw = AdamW(rest, lr=lr, weight_decay=weight_decay, betas=betas)
        self._parts: tuple[Optimizer, Optimizer] = (muon, adamw)
        self.param_groups = [*muon.param_groups, *adamw.param_groups]
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both parts."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's own groups and state: there is one of each to save."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state
