"""Settings of the decoder, and its schedule of steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from magnet_train.errors import UserError
from magnet_train.masking import mask_rate

FIRST_STEPS, MORE_STEPS = 20, 10  # of the first codebook, and of each other
MOST_STEPS = 10_000  # of a codebook, far more than the longest clips have frames to fill


@dataclass(frozen=True)
class DecodingConfig:
    """Settings of the iterative decoder.

    The defaults are those of the released music models except for the temperature: 1 and constant instead of 3 falling
    to 0, which made more clips right (`benchmarks/README.md`). Released models keep their own settings.

    Args:
        decoding_steps: Steps for each codebook, coarse to fine; one entry per codebook, each at least 1. Empty: 20 for
            the first codebook of each of the codec's streams and 10 for each other, see `for_codec`.
        span_arrangement: "nonoverlap" cuts the clip into chunks of `span_len` frames and masks whole chunks;
            "stride1" masks spans that may start anywhere; "spread" ranks nothing and fills single frames, in an order
            in which the frames of a step are far apart.
        span_scoring: Score of a chunk: "max" of its best token, "prod" of all its tokens. "stride1" always takes all.
        temperature: Temperature of each step, or with `anneal_temperature` of the first of a codebook; higher is more
            random.
        anneal_temperature: Let the temperature fall linearly to 0 over the steps of a codebook.
        top_p: Sample from the smallest set of tokens whose probability exceeds this, 0..1; 0 turns it off.
        top_k: Sample from this many most probable tokens when `top_p` is 0; 0 turns it off.
        use_sampling: False takes the most probable token.
        max_cfg_coef: Guidance while everything is masked; 1 turns it off.
        min_cfg_coef: Guidance when nothing is masked.
        rescorer_weight: Weight of a rescorer's probabilities when spans are ranked, 0..1; 0 turns it off.
        parity: Do exactly what the reference does: with "nonoverlap" T is trimmed to a multiple of `span_len`, and
            codebooks without steps stay masked.

    Source: arXiv 2401.04577, sections 3.3 and 3.4, and figure 4.
    """

    decoding_steps: tuple[int, ...] = ()
    span_arrangement: Literal["nonoverlap", "stride1", "spread"] = "nonoverlap"
    span_scoring: Literal["max", "prod"] = "max"
    temperature: float = 1.0
    anneal_temperature: bool = False
    top_p: float = 0.9
    top_k: int = 0
    use_sampling: bool = True
    max_cfg_coef: float = 10.0
    min_cfg_coef: float = 1.0
    rescorer_weight: float = 0.5
    parity: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return JSON primitives."""
        return {**vars(self), "decoding_steps": list(self.decoding_steps)}

    def for_codec(self, n_q: int, streams: int = 1) -> DecodingConfig:
        """Return the settings with `decoding_steps` for `n_q` codebooks, unless there are some."""
        steps = (FIRST_STEPS,) * streams + (MORE_STEPS,) * (n_q - streams)
        return self if self.decoding_steps else replace(self, decoding_steps=steps)

    def check(self, n_q: int, card: int) -> None:
        """Raise `UserError` if the settings do not fit `n_q` codebooks of `card` entries."""
        steps, least = list(self.decoding_steps), 0 if self.parity else 1
        fits = len(steps) == n_q or (self.parity and len(steps) < n_q)
        if not fits or not all(least <= number <= MOST_STEPS for number in steps):
            most = "at most " if self.parity else ""
            raise UserError(
                f"decoding_steps {steps} must hold {most}{n_q} numbers in {least}..{MOST_STEPS}, one for each codebook "
                "of the model."
            )
        for name, value in (("top_p", self.top_p), ("rescorer_weight", self.rescorer_weight)):
            if not 0.0 <= value <= 1.0:
                raise UserError(f"{name} {value} must lie in 0..1 (0 turns it off).")
        if not 0 <= self.top_k <= card:
            raise UserError(
                f"top_k {self.top_k} must lie in 0..{card}, the codebook's size (0 turns it off)."
            )
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature {self.temperature} must be a finite number of at least 0.")
        if not (math.isfinite(self.max_cfg_coef) and math.isfinite(self.min_cfg_coef)):
            raise UserError(
                f"guidance {self.max_cfg_coef}, {self.min_cfg_coef} (max_cfg_coef, min_cfg_coef) must be finite."
            )


@dataclass(frozen=True)
class DecodingStep:
    """One forward pass: its codebook, mask rate and sampling."""

    stage: int
    mask_rate: Tensor  # float32 scalar, share of the stage's units that are masked going in
    temperature: float
    cfg_coef: float


def decoding_schedule(decoding: DecodingConfig) -> Iterator[DecodingStep]:
    """Yield all steps in order, codebook by codebook.

    The mask rate follows the cosine from 1 to 0, and guidance goes with it from `max_cfg_coef` to `min_cfg_coef`. The
    temperature is constant, or falls linearly to 0 with `anneal_temperature`.
    """
    for stage, num_steps in enumerate(decoding.decoding_steps):
        for index, progress in enumerate(torch.linspace(0, 1, num_steps, dtype=torch.float32)):
            rate = mask_rate(progress)
            left = (num_steps - 1 - index) / num_steps if decoding.anneal_temperature else 1.0
            guidance = float(rate) * decoding.max_cfg_coef + (1 - float(rate)) * decoding.min_cfg_coef
            yield DecodingStep(stage, rate, decoding.temperature * left, guidance)
