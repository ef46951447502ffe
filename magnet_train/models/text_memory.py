"""The forms in which a text waits to be attended to: as states, as keys and values, or folded into weights.

Training projects the states anew in every layer. A generation reads the same text in each of its steps, so
what does not depend on the frames is computed once.

Shapes: R clips with a text, T frames, S text positions, D = dim, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from magnet_train.models.attention import Projections, TextMemory, attention


class TextStates(NamedTuple):
    """States float [R, S, D], projected by each layer that reads them."""

    states: Tensor
    readable: Tensor | None  # bool [R, 1, 1, S]; None: everything

    @property
    def num_rows(self) -> int:
        return self.states.shape[0]

    def attend(self, projections: Projections, x: Tensor) -> Tensor:
        k, v = projections.k_proj(self.states), projections.v_proj(self.states)
        return TextKeys(k, v, self.readable).attend(projections, x)


class TextKeys(NamedTuple):
    """Keys and values float [R, S, D] of one layer."""

    k: Tensor
    v: Tensor
    readable: Tensor | None

    @property
    def num_rows(self) -> int:
        return self.k.shape[0]

    def attend(self, projections: Projections, x: Tensor) -> Tensor:
        out = attention(projections.q_proj(x), self.k, self.v, projections.num_heads, self.readable)
        return projections.out_proj(out)  # type: ignore[no-any-return]


class FoldedText(NamedTuple):
    """Keys through the query projection and values through the output projection of one layer.

    q K^T = x (W_q^T K^T) and (A V) W_o^T = A (V W_o^T), so that frames need no projections of their own: S
    products per head instead of D.
    """

    k: Tensor  # float [R, H, S, D], scaled
    v: Tensor  # float [R, H, S, D]
    readable: Tensor | None

    @property
    def num_rows(self) -> int:
        return self.k.shape[0]

    def attend(self, projections: Projections, x: Tensor) -> Tensor:
        scores = x @ self.k.flatten(1, 2).mT
        scores = scores.view(*x.shape[:2], *self.k.shape[1:3])  # [R, T, H, S]
        if self.readable is not None:
            scores = scores.masked_fill(~self.readable, float("-inf"))
        weights = scores.softmax(dim=-1).flatten(2)  # [R, T, H x S]
        return weights @ self.v.flatten(1, 2)


def prepare(text: TextStates, projections: Projections) -> TextMemory:
    """Do once what of reading `text` does not depend on the frames.

    Weights that are not plain (an adapter stands in their place, or they are spread over devices) are only
    ever used through their modules.
    """
    linears = (projections.q_proj, projections.k_proj, projections.v_proj, projections.out_proj)
    if not all(type(linear) is nn.Linear and type(linear.weight) is nn.Parameter for linear in linears):
        return text
    keys = TextKeys(projections.k_proj(text.states), projections.v_proj(text.states), text.readable)
    head_dim = projections.q_proj.out_features // projections.num_heads
    if text.states.shape[1] > head_dim // 2:  # folding pays below head_dim; from half of it on, hardly
        return keys
    return _fold(keys, projections, head_dim)


def _fold(keys: TextKeys, projections: Projections, head_dim: int) -> FoldedText:
    num_heads = projections.num_heads
    k = keys.k.view(*keys.k.shape[:2], num_heads, head_dim)
    v = keys.v.view(*keys.v.shape[:2], num_heads, head_dim)
    k = torch.einsum("rshe,hed->rhsd", k, projections.q_proj.weight.view(num_heads, head_dim, -1))
    v = torch.einsum("rshe,dhe->rhsd", v, projections.out_proj.weight.view(-1, num_heads, head_dim))
    return FoldedText(k * head_dim**-0.5, v, keys.readable)
