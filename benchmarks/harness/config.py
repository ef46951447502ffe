"""Sizes of a benchmark, its inputs and models, and the check that both versions compute the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.naive import NaiveTransformer
from magnet_train.models import MagnetTransformer


class NotExactError(Exception):
    """The two versions disagree, so their ratio would be meaningless."""


@dataclass(frozen=True)
class BenchmarkConfig:
    """Sizes of a benchmark of training or generation."""

    dim: int = 1024
    heads: int = 16
    layers: int = 24
    card: int = 2048
    frames: int = 500  # T, 50 a second
    batch: int = 1  # B, clips
    text_positions: int = 24  # S, tokens of each caption
    rounds: int = 5  # turns of each version
    device: str = "cpu"
    precision: str = "float32"  # or bfloat16; of weights and activations

    N_Q = 4
    SPAN_LEN = 3
    TEXT_DIM = 768
    CONTEXT = 5  # frames each side

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
            "subcodes_context": self.CONTEXT,
        }

    def models(self) -> tuple[NaiveTransformer, MagnetTransformer]:
        """Build both models on the same random float32 weights, which they share in memory; gradients are separate."""
        torch.manual_seed(0)
        ours = MagnetTransformer(**self.lm_config).to(self.device)
        naive = NaiveTransformer(self.lm_config, self.frames).to(self.device)
        naive.load_state_dict(ours.state_dict(), assign=True)
        return naive, ours

    def tokens(self) -> Tensor:
        """Draw int64 [B, K, T]."""
        shape = (self.batch, self.N_Q, self.frames)
        return torch.randint(self.card, shape, generator=self._seeded()).to(self.device)

    def text(self) -> tuple[Tensor, Tensor]:
        """Draw text states float32 [B, S, text_dim], with their mask bool [B, S], all true."""
        shape = (self.batch, self.text_positions, self.TEXT_DIM)
        mask = torch.ones(shape[:2], dtype=torch.bool, device=self.device)
        return torch.randn(shape, generator=self._seeded()).to(self.device), mask

    def states(self, batch: int, seed: int = 0) -> Tensor:
        """Draw float [batch, T, D], as hidden states or queries."""
        shape = (batch, self.frames, self.dim)
        return torch.randn(shape, generator=self._seeded(seed)).to(self.device, self.dtype)

    def rates(self, frames: int, flops: float, seconds: float) -> dict[str, float]:
        """Return the rates of a step or generation of `frames` frames a clip."""
        return {
            "frames_per_s": self.batch * frames / seconds,
            "codes_per_s": self.N_Q * self.batch * frames / seconds,
            "useful_tflops": flops / seconds / 1e12,
        }

    def _seeded(self, seed: int = 0) -> torch.Generator:
        return torch.Generator().manual_seed(seed)


def require_close(what: str, ours: Tensor, naive: Tensor, tolerance: float) -> float:
    """Return |ours - naive| / |naive|.

    Raises:
        NotExactError: It is above `tolerance`.
    """
    error = (ours - naive).norm() / naive.norm().clamp(min=1e-30)
    return require_small(what, error.detach(), tolerance)


def require_small(what: str, error: Tensor, tolerance: float) -> float:
    """Return a relative error.

    Raises:
        NotExactError: It is above `tolerance`, or NaN.
    """
    if not float(error) <= tolerance:
        raise NotExactError(
            f"{what} differ by {float(error):.1e} of their norm, more than {tolerance:.0e}: no ratio."
        )
    return float(error)
