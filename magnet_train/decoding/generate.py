"""Fill a clip codebook by codebook in a few parallel steps: keep what is sure, mask the rest again.

Knows neither model nor trainer: it asks a callable for logits. Shapes: B clips, K codebooks, T frames,
M frames that are asked for, L = span_len frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from magnet_train.decoding.config import DecodingConfig, DecodingStep, decoding_schedule
from magnet_train.decoding.remasking import remasking_for
from magnet_train.decoding.rescoring import Rescorer, Rescoring
from magnet_train.decoding.sampling import choose_tokens, exponential_noise
from magnet_train.errors import UserError
from magnet_train.masking import at_frames

# (tokens [B, K, T], stage, cfg_coef) -> logits [B, T, card]
LogitsFn = Callable[[Tensor, int, float], Tensor]
Progress = Callable[[int, int], None]  # (steps done, steps in all)


@runtime_checkable
class LogitsAtFrames(Protocol):
    """A `LogitsFn` that can also answer for some of the frames, for less work."""

    def __call__(self, tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        """Return logits float [B, T, card]."""

    def at(self, tokens: Tensor, stage: int, cfg_coef: float, frames: Tensor) -> Tensor:
        """Return logits float [B, M, card] of the frames int64 [B, M]."""


@torch.no_grad()  # not inference_mode: a model could not be trained or asked for gradients on its tensors
def generate_tokens(
    logits_fn: LogitsFn,
    shape: tuple[int, int, int],
    decoding: DecodingConfig,
    *,
    card: int,
    span_len: int,
    prompt: Tensor | None = None,
    keep: Tensor | None = None,
    rescorer: Rescorer | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Generate tokens, or fill the gaps between given ones.

    Args:
        logits_fn: Called once per step as `logits_fn(tokens, stage, cfg_coef)` with int64 [B, K, T] (`card` =
            masked); returns guided logits float [B, T, card] of codebook `stage`. Its method `at` is called
            instead if it has one, see `LogitsAtFrames`.
        shape: (B, K, T).
        decoding: Steps, sampling and guidance.
        card: Entries in each codebook, and the mask id.
        span_len: L, frames in a span that the model was trained for.
        prompt: int64 [B, K, P], P <= T, tokens given from the start of the clip on.
        keep: bool [B, K, T] or [B, T], which tokens of a prompt of T frames stay; all of them by default.
        rescorer: A second model that helps to rank the spans, with weight `decoding.rescorer_weight`; called
            after each step but the last of a codebook, see `Rescorer`.
        generator: Makes sampling repeatable; on `device`. One for each clip makes a clip independent of the
            others in its batch.
        progress: Called after each step with (steps done, steps in all).
        device: Where the tokens live.

    Returns:
        int64 [B, K, T], ids 0..card-1. In parity mode T is trimmed to a multiple of L, and codebooks
        without steps hold `card`.

    Raises:
        UserError: The clip is shorter than a span, the prompt is longer than the clip, or the settings do
            not fit.

    Source: arXiv 2401.04577, figure 4; SEMANTICS of the reference in tests/reference.
    """
    batch, n_q, num_frames = shape
    decoding.check(n_q, card)
    if num_frames < span_len:
        raise UserError(
            f"a clip of {num_frames} frames is shorter than one span of {span_len}; ask for more seconds."
        )
    if decoding.parity and decoding.span_arrangement == "nonoverlap":
        num_frames -= num_frames % span_len
    given, kept = given_tokens(prompt, keep, (batch, n_q, num_frames), card, device)
    keep = kept.to(device)
    tokens = given.clone()
    schedule = list(decoding_schedule(decoding))
    remasking = remasking_for(decoding, num_frames, span_len, generator, device)
    rescoring = Rescoring(rescorer, decoding, schedule)
    stage = -1
    for done, step in enumerate(schedule, start=1):
        if step.stage != stage:
            stage = step.stage
            current = given[:, stage]  # [B, T], the codebook at work
            scores = remasking.start(kept[:, stage]).to(device)
        chosen, most = remasking.choose(scores, step.mask_rate)
        current = current.masked_fill(chosen & ~keep[:, stage], card)
        masked = current == card
        tokens[:, stage] = current
        # Clips that need fewer frames than others have some computed that nothing reads.
        frames = (chosen | masked).int().argsort(dim=-1, descending=True, stable=True)[:, :most]  # [B, M]
        logits = _logits_at(logits_fn, tokens, step, frames)
        noise = None
        if decoding.use_sampling:
            noise = at_frames(exponential_noise((batch, num_frames, card), generator, device), frames)
        sampled, sampled_probs = choose_tokens(logits, step.temperature, decoding, noise)
        current = torch.where(masked, current.scatter(1, frames, sampled), current)
        tokens[:, stage] = current
        probs = torch.ones((batch, num_frames), device=device).scatter(1, frames, sampled_probs)
        probs = rescoring.mix(probs, masked, tokens, stage, done - 1)
        scores = remasking.score(probs, chosen, masked)
        if progress is not None:
            progress(done, len(schedule))
    return tokens


def _logits_at(logits_fn: LogitsFn, tokens: Tensor, step: DecodingStep, frames: Tensor) -> Tensor:
    """Ask for logits float32 [B, M, card] of the frames int64 [B, M]."""
    if isinstance(logits_fn, LogitsAtFrames):
        return logits_fn.at(tokens, step.stage, step.cfg_coef, frames).float()
    logits = logits_fn(tokens, step.stage, step.cfg_coef).float()
    return at_frames(logits, frames)


def given_tokens(
    prompt: Tensor | None,
    keep: Tensor | None,
    shape: tuple[int, int, int],
    card: int,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Lay a prompt into an otherwise masked clip; return it and, on the CPU, what of it stays: [B, K, T].

    Raises:
        UserError: The prompt is longer than the clip, holds ids that are none, or `keep` does not fit it.
    """
    given = torch.full(shape, card, dtype=torch.int64, device=device)
    if prompt is None:
        if keep is not None:
            raise UserError("keep says which tokens of a prompt stay, but there is no prompt.")
        return given, torch.zeros(shape, dtype=torch.bool)
    if prompt.shape[:2] != shape[:2] or prompt.shape[-1] > shape[-1]:
        raise UserError(
            f"the prompt has {prompt.shape[-1]} frames (shape {list(prompt.shape)}) but the clip only {shape[-1]} "
            f"(shape {list(shape)}); shorten the prompt or ask for more seconds."
        )
    length = prompt.shape[-1]
    if keep is None:
        keep = torch.ones(prompt.shape, dtype=torch.bool)
    elif keep.dim() == 2:
        keep = keep[:, None].expand(-1, shape[1], -1)
    if keep.shape != prompt.shape:
        raise UserError(
            f"keep of shape {list(keep.shape)} should have that of the prompt, {list(prompt.shape)}."
        )
    stays = torch.zeros(shape, dtype=torch.bool)
    stays[..., :length] = keep.cpu()
    known = prompt.cpu()[stays[..., :length]]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < card:
        raise UserError(
            f"the prompt holds tokens from {int(known.min())} to {int(known.max())}, but codebooks have {card} entries; "
            "encode it with the model's own codec."
        )
    given[..., :length] = prompt.to(device)
    return given.masked_fill(~stays.to(device), card), stays
