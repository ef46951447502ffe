"""The iterative decoder: fills a clip codebook by codebook, each in a few steps that sample many frames at once.

It knows neither model nor trainer, only a `LogitsFn`. Shapes: B clips, K codebooks, T frames, M queried frames,
L = span_len frames.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from magnet_train.decoding.config import DecodingConfig, DecodingStep, decoding_schedule
from magnet_train.decoding.remasking import Remasking, remasking_for
from magnet_train.decoding.sampling import Generators, choose_tokens, exponential_noise
from magnet_train.errors import UserError
from magnet_train.masking import at_frames

Progress = Callable[[int, int], None]  # (steps done, steps in all)


def part_of(progress: Progress | None, number: int, parts: int) -> Progress | None:
    """Return the progress of part `number` of `parts` equal ones, reported to that of the whole."""
    return None if progress is None else lambda done, total: progress(number * total + done, parts * total)


class LogitsFn(Protocol):
    """The contract between the decoder and a model; a plain function fulfils it as well."""

    def __call__(self, tokens: Tensor, stage: int, cfg_coef: float, /) -> Tensor:
        """Return guided logits of one codebook.

        Args:
            tokens: int64 [B, K, T]; the id `card` is a masked token.
            stage: k, 0..K-1, the codebook to predict.
            cfg_coef: Guidance: 1 is the prediction given the text, more exaggerates it.

        Returns:
            float [B, T, card].
        """


@runtime_checkable
class LogitsAtFrames(LogitsFn, Protocol):
    """A `LogitsFn` that can also compute some of the frames alone, for less work."""

    def at(self, tokens: Tensor, stage: int, cfg_coef: float, frames: Tensor, /) -> Tensor:
        """Return logits float [B, M, card] of the frames int64 [B, M]."""


class Rescorer(Protocol):
    """A second model that helps to rank spans by its probabilities of the sampled tokens.

    Source: arXiv 2401.04577, section 3.4.
    """

    def __call__(self, tokens: Tensor, stage: int) -> Tensor:
        """Return the probability float [B, T], 0..1, of the token of codebook `stage` at each frame.

        Called after each step except the last of a codebook, which ranks nothing.

        Args:
            tokens: int64 [B, K, T]. Codebook `stage` and those below are filled; those above hold the mask id, except
                for given tokens.
            stage: k.
        """


@torch.no_grad()  # not inference_mode: its tensors cannot be used in autograd later
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
    remasking: Remasking | None = None,
    generator: Generators = None,
    progress: Progress | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Generate tokens, or fill the gaps between given ones.

    Args:
        logits_fn: Called once per step; its method `at` is called instead if it is a `LogitsAtFrames`.
        shape: (B, K, T).
        decoding: Steps, sampling and guidance.
        card: Entries in each codebook, and the mask id.
        span_len: L, frames in a span that the model was trained for.
        prompt: int64 [B, K, P], P <= T, tokens at the beginning of the clip.
        keep: bool [B, K, P] or [B, P], the tokens of the prompt that stay; None keeps all.
        rescorer: Helps to rank spans, with weight `decoding.rescorer_weight`.
        remasking: A strategy of one's own, instead of that of `decoding.span_arrangement`.
        generator: Makes sampling repeatable; on `device`. One for each clip makes clips independent of their batch.
        progress: Called after each step with (steps done, steps in all).
        device: Device of the tokens.

    Returns:
        int64 [B, K, T], ids 0..card-1. In parity mode with "nonoverlap" T is trimmed to a multiple of L, and
        codebooks without steps hold `card`.

    Raises:
        UserError: The clip is shorter than a span, the prompt is longer than the clip, settings do not fit, or there is
            a rescorer although the arrangement ranks nothing.

    Source: arXiv 2401.04577, figure 4; the reference's semantics are in tests/reference.
    """
    batch, n_q, num_frames = shape
    decoding = decoding.for_codec(n_q)
    decoding.check(n_q, card)
    if num_frames < span_len:
        raise UserError(
            f"a clip of {num_frames} frames is shorter than one span of {span_len}; ask for more seconds."
        )
    if rescorer is not None and remasking is None and decoding.span_arrangement == "spread":
        raise UserError(
            'span_arrangement "spread" does not rank spans; choose another arrangement, or leave the rescorer out.'
        )
    if decoding.parity and decoding.span_arrangement == "nonoverlap":
        num_frames -= num_frames % span_len
    tokens, kept = given_tokens(prompt, keep, (batch, n_q, num_frames), card, device)
    if remasking is None:
        remasking = remasking_for(decoding, num_frames, span_len, generator, device)
    draw_noise = partial(exponential_noise, (batch, num_frames, card), generator, device)
    rescorer = rescorer if decoding.rescorer_weight > 0 else None
    return _fill(logits_fn, tokens, kept, decoding, card, remasking, rescorer, draw_noise, progress)


def _fill(
    logits_fn: LogitsFn,
    tokens: Tensor,
    kept: Tensor,
    decoding: DecodingConfig,
    card: int,
    remasking: Remasking,
    rescorer: Rescorer | None,
    draw_noise: Callable[[], Tensor],
    progress: Progress | None,
) -> Tensor:
    """Fill the masked tokens [B, K, T] in place; `kept`, on the CPU, is true for tokens of the prompt that stay."""
    kept_on_device = kept.to(tokens.device)
    schedule = list(decoding_schedule(decoding))
    stage = -1
    for steps_done, step in enumerate(schedule, start=1):
        if step.stage != stage:
            stage = step.stage
            scores = remasking.start(kept[:, stage]).to(tokens.device)
        remasked, most_masked = remasking.choose(scores, step.mask_rate)
        codebook = tokens[:, stage].masked_fill(remasked & ~kept_on_device[:, stage], card)  # [B, T]
        masked = codebook == card
        tokens[:, stage] = codebook
        # Masked frames first: no clip has more than `most_masked`. Clips with fewer are padded to M with other frames,
        # whose results are discarded.
        order = torch.where(masked, 2, remasked.int())
        frames = order.argsort(dim=-1, descending=True, stable=True)[:, :most_masked]  # [B, M]
        logits = _logits_at(logits_fn, tokens, step, frames)
        noise = at_frames(draw_noise(), frames) if decoding.use_sampling else None
        sampled, sampled_probs = choose_tokens(logits, step.temperature, decoding, noise)  # [B, M]
        tokens[:, stage] = torch.where(masked, codebook.scatter(1, frames, sampled), codebook)
        probs = torch.ones_like(codebook, dtype=torch.float32).scatter(1, frames, sampled_probs)  # [B, T]
        if rescorer is not None and steps_done < len(schedule) and schedule[steps_done].stage == stage:
            second = rescorer(tokens, stage).to(probs.dtype)
            mixed = decoding.rescorer_weight * second + (1 - decoding.rescorer_weight) * probs
            probs = probs.where(~masked, mixed)
        scores = remasking.score(probs, remasked, masked)
        if progress is not None:
            progress(steps_done, len(schedule))
    return tokens


def _logits_at(logits_fn: LogitsFn, tokens: Tensor, step: DecodingStep, frames: Tensor) -> Tensor:
    if isinstance(logits_fn, LogitsAtFrames):
        return logits_fn.at(tokens, step.stage, step.cfg_coef, frames).float()
    return at_frames(logits_fn(tokens, step.stage, step.cfg_coef).float(), frames)


def given_tokens(
    prompt: Tensor | None,
    keep: Tensor | None,
    shape: tuple[int, int, int],
    card: int,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Put a prompt into a masked clip; return the clip and, as bool on the CPU, which tokens stay, both [B, K, T].

    Raises:
        UserError: The prompt is longer than the clip or has ids beyond the codebook, or `keep` does not fit it.
    """
    given = torch.full(shape, card, dtype=torch.int64, device=device)
    if prompt is None:
        if keep is not None:
            raise UserError("keep selects tokens of a prompt; give the prompt as well.")
        return given, torch.zeros(shape, dtype=torch.bool)
    if prompt.shape[:2] != shape[:2]:
        raise UserError(
            f"the prompt has shape {list(prompt.shape)}; give {shape[0]} clips of {shape[1]} codebooks, as the result has."
        )
    if prompt.shape[-1] > shape[-1]:
        raise UserError(
            f"the prompt has {prompt.shape[-1]} frames but the clip only {shape[-1]}; shorten the prompt or ask for more "
            "seconds."
        )
    if keep is None:
        keep = torch.ones(prompt.shape, dtype=torch.bool)
    elif keep.dim() == 2:
        keep = keep[:, None].expand(-1, shape[1], -1)
    if keep.shape != prompt.shape:
        raise UserError(
            f"keep has shape {list(keep.shape)} and should have the prompt's, {list(prompt.shape)}."
        )
    length = prompt.shape[-1]
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
