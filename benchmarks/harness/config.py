"""What is measured: sizes, inputs and the two models of the same weights."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from harness.naive import NaiveTransformer
from magnet_train.models import MagnetTransformer

Row = dict[str, Any]  # a line of the table and of the JSON


class NotExactError(Exception):
    """The two versions disagree, so that a ratio between them would mean nothing."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Sizes of a benchmark.

    Args:
        dim: Width of the model.
        heads: Attention heads.
        layers: Transformer layers.
        card: Entries in each of the 4 codebooks.
        frames: T, frames in a clip (50 a second).
        batch: B, clips.
        text_positions: Tokens of each caption.
        rounds: Turns of each version.
        device: Where to compute.
        precision: float32 or bfloat16, of weights and activations alike.
    """

    dim: int = 1024
    heads: int = 16
    layers: int = 24
    card: int = 2048
    frames: int = 500
    batch: int = 1
    text_positions: int = 24
    rounds: int = 5
    device: str = "cpu"
    precision: str = "float32"

    N_Q = 4
    SPAN_LEN = 3
    TEXT_DIM = 768

    @property
    def dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.precision]

    @property
    def lm_config(self) -> dict[str, Any]:
        """Arguments of `MagnetTransformer`."""
        return {
            "n_q": self.N_Q,
            "card": self.card,
            "text_dim": self.TEXT_DIM,
            "dim": self.dim,
            "num_heads": self.heads,
            "num_layers": self.layers,
            "span_len": self.SPAN_LEN,
            "subcodes_context": 5,
        }

    def models(self) -> tuple[NaiveTransformer, MagnetTransformer]:
        """Build both on the same random weights, in float32.

        They share the memory of the weights, so that larger models fit; each has gradients of its own.
        """
        torch.manual_seed(0)
        ours = MagnetTransformer(**self.lm_config).to(self.device)
        naive = NaiveTransformer(self.lm_config, self.frames).to(self.device)
        naive.load_state_dict(ours.state_dict(), assign=True)
        return naive, ours

    def tokens(self) -> Tensor:
        """Draw int64 [B, K, T]."""
        return torch.randint(self.card, (self.batch, self.N_Q, self.frames), generator=self._seeded()).to(
            self.device
        )

    def text(self) -> tuple[Tensor, Tensor]:
        """Draw text states float32 [B, S, text_dim] and their mask bool [B, S], all true."""
        shape = (self.batch, self.text_positions, self.TEXT_DIM)
        mask = torch.ones(shape[:2], dtype=torch.bool, device=self.device)
        return torch.randn(shape, generator=self._seeded()).to(self.device), mask

    def states(self, batch: int, seed: int = 0) -> Tensor:
        """Draw float [batch, T, D], as hidden states or queries."""
        shape = (batch, self.frames, self.dim)
        return torch.randn(shape, generator=self._seeded(seed)).to(self.device, self.dtype)

    def _seeded(self, seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    def describe(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}


def require_close(what: str, ours: Tensor, naive: Tensor, tolerance: float) -> float:
    """Compare by the norm of the difference.

    Returns:
        |ours - naive| / |naive|.

    Raises:
        NotExactError: It is above `tolerance`.
    """
    error = (ours - naive).norm() / naive.norm().clamp(min=1e-30)
    return require_small(what, error.detach(), tolerance)


def require_small(what: str, error: Tensor, tolerance: float) -> float:
    """Return a relative difference.

    Raises:
        NotExactError: It is above `tolerance`, or no number.
    """
    if not float(error) <= tolerance:
        raise NotExactError(
            f"{what} differ by {float(error):.1e} of their norm, more than {tolerance:.0e}: no ratio."
        )
    return float(error)
