"""Fill a clip codebook by codebook in a few parallel steps: keep what is sure, mask the rest again.

Knows neither model nor trainer: it asks a callable for logits. Shapes: B clips, K codebooks, T frames,
L = span_len frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train.errors import UserError
from magnet_train.masking import at_frames, least_probable_spans, mask_rate

# (tokens [B, K, T], stage, cfg_coef) -> logits [B, T, card]
LogitsFn = Callable[[Tensor, int, float], Tensor]
Progress = Callable[[int, int], None]  # (steps done, steps in all)

SETTLED = -1e4  # score of what must not be masked again; every true score is above it
ROUNDING = 1e-5  # more than sums of probabilities in float32 are off by
MIN_TEMPERATURE = 1e-2  # the annealed temperature ends at 0, where softmax is undefined


@runtime_checkable
class LogitsAtFrames(Protocol):
    """A `LogitsFn` that can also answer for some of the frames, for less work."""

    def __call__(self, tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        """Return logits float [B, T, card]."""

    def at(self, tokens: Tensor, stage: int, cfg_coef: float, frames: Tensor) -> Tensor:
        """Return logits float [B, M, card] of the frames int64 [B, M]."""


@dataclass(frozen=True)
class DecodingConfig:
    """Settings of the iterative decoder; the defaults are those of the released music models.

    Args:
        decoding_steps: Steps for each codebook, coarse to fine; one entry per codebook, each at least 1.
        span_arrangement: "nonoverlap" cuts the clip into chunks of `span_len` frames and masks whole chunks;
            "stride1" masks spans that may start anywhere.
        span_scoring: How a chunk is judged: "max" by its best token, "prod" by all of them together.
            "stride1" always takes all.
        temperature: At the start of each codebook; higher is more random.
        anneal_temperature: Let it fall linearly to 0 over the steps of a codebook.
        top_p: Sample from the smallest set of tokens whose probability exceeds this, 0..1; 0 turns it off.
        top_k: Sample from this many most probable tokens when `top_p` is 0; 0 turns it off.
        use_sampling: False takes the most probable token each time.
        max_cfg_coef: Guidance while everything is masked; 1 is none.
        min_cfg_coef: Guidance when nothing is masked any more.
        parity: Do exactly what the reference does where we differ: T is trimmed to a multiple of `span_len`,
            and codebooks without steps stay masked.

    Source: arXiv 2401.04577, section 3.3 and figure 4.
    """

    decoding_steps: tuple[int, ...] = (20, 10, 10, 10)
    span_arrangement: Literal["nonoverlap", "stride1"] = "nonoverlap"
    span_scoring: Literal["max", "prod"] = "max"
    temperature: float = 3.0
    anneal_temperature: bool = True
    top_p: float = 0.9
    top_k: int = 0
    use_sampling: bool = True
    max_cfg_coef: float = 10.0
    min_cfg_coef: float = 1.0
    parity: bool = False

    def check(self, n_q: int, card: int) -> None:
        """Raise `UserError` if the settings do not fit `n_q` codebooks of `card` entries."""
        steps = list(self.decoding_steps)
        if not self.parity and (len(steps) != n_q or min(steps) < 1):
            raise UserError(
                f"decoding_steps {steps} must hold {n_q} numbers of at least 1, one for each codebook of the model."
            )
        if not 0.0 <= self.top_p <= 1.0:
            raise UserError(f"top_p {self.top_p} must lie in 0..1 (0 turns it off).")
        if not 0 <= self.top_k <= card:
            raise UserError(
                f"top_k {self.top_k} must lie in 0..{card}, the codebook's size (0 turns it off)."
            )
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature {self.temperature} must be a number and not negative.")
        if not (math.isfinite(self.max_cfg_coef) and math.isfinite(self.min_cfg_coef)):
            raise UserError(f"guidance {self.max_cfg_coef}, {self.min_cfg_coef} must be two finite numbers.")


@dataclass(frozen=True)
class DecodingStep:
    """One forward pass: what it is about and how it samples."""

    stage: int
    mask_rate: Tensor  # float32 scalar, share of the stage's units that are masked going in
    temperature: float
    cfg_coef: float


def decoding_schedule(decoding: DecodingConfig) -> Iterator[DecodingStep]:
    """List all steps in order, codebook by codebook.

    The mask rate goes from 1 to 0 on the cosine, the temperature falls linearly from just below its start
    to 0, and guidance moves from `max_cfg_coef` to `min_cfg_coef` with the mask rate.
    """
    for stage, num_steps in enumerate(decoding.decoding_steps):
        for index, progress in enumerate(torch.linspace(0, 1, num_steps)):
            rate = mask_rate(progress)
            left = (num_steps - 1 - index) / num_steps if decoding.anneal_temperature else 1.0
            guidance = float(rate) * decoding.max_cfg_coef + (1 - float(rate)) * decoding.min_cfg_coef
            yield DecodingStep(stage, rate, decoding.temperature * left, guidance)


def filter_probs(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """Zero the improbable tokens and renormalise.

    Args:
        probs: float [..., card].
        top_p: Keep a token while the probability of those before it is at most this; 0 = off.
        top_k: Without `top_p`, keep this many, and ties with the last of them; 0 = off.

    Returns:
        float [..., card], in vocabulary order.
    """
    if top_p > 0.0:
        ranked, index = torch.sort(probs, dim=-1, descending=True, stable=True)
        before = ranked.cumsum(dim=-1) - ranked
        kept = torch.zeros_like(probs).scatter(-1, index, ranked * (before <= top_p))
    elif top_k > 0:
        kept = probs * (probs >= probs.topk(top_k, dim=-1).values[..., -1:])
    else:
        return probs
    return kept / kept.sum(dim=-1, keepdim=True)


def race_noise(
    shape: tuple[int, int, int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device | str,
) -> Tensor:
    """Draw what `sample_categorical` needs, float32 [B, T, card], exponentially distributed.

    Drawn for every frame, so that a frame's share does not depend on which others are computed.
    """
    if isinstance(generator, Sequence):
        uniform = torch.stack([torch.rand(shape[1:], generator=each, device=device) for each in generator])
    else:
        uniform = torch.rand(shape, generator=generator, device=device)
    return uniform.log_().neg_()


def sample_categorical(probs: Tensor, noise: Tensor) -> Tensor:
    """Draw one id for each distribution by an exponential race: the token that arrives first.

    Rounding matters only where two arrive at once, so that the same noise gives the same token whatever the
    size of the batch was.

    Args:
        probs: float [..., card]; they need not add up to 1.
        noise: float [..., card], see `race_noise`.

    Returns:
        int64 [...].
    """
    return (probs / noise).argmax(dim=-1)


def sample_nucleus(probs: Tensor, top_p: float, noise: Tensor) -> Tensor:
    """Draw from the smallest set of tokens whose probability exceeds `top_p`, sorting as little as possible.

    If the winner of a race of all tokens lies in the set, it is also the winner among the set. One sum tells
    whether it does, and only where it does not the set has to be found.

    Args:
        probs: float [N, card].
        top_p: Above 0.
        noise: float [N, card], see `race_noise`.

    Returns:
        int64 [N], what `filter_probs` and `sample_categorical` give.
    """
    if probs.device.type != "cpu":  # to learn how many rows there are to sort would be to wait for a GPU
        return sample_categorical(filter_probs(probs, top_p, 0), noise)
    token = sample_categorical(probs, noise)
    own = probs.gather(-1, token[:, None])
    # With all its equals before it, so that neither ties nor rounding let a token in that sorting leaves out.
    before = ((probs * (probs >= own)).sum(dim=-1, keepdim=True) - own)[:, 0]
    rows = (before > top_p - ROUNDING).nonzero()[:, 0]
    token[rows] = sample_categorical(filter_probs(probs[rows], top_p, 0), noise[rows])
    return token


def choose_tokens(
    logits: Tensor, temperature: float, decoding: DecodingConfig, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sample a token at every frame and say how probable it was.

    Args:
        logits: float [B, M, card], guided.
        temperature: Of this step; at least `MIN_TEMPERATURE` is used.
        decoding: Which tokens are candidates.
        noise: float [B, M, card], see `race_noise`; None without sampling.

    Returns:
        Ids int64 [B, M] and their probabilities float [B, M]. As in the reference the probabilities are
        those before `top_p` but after `top_k`.
    """
    probs = torch.softmax(logits / max(temperature, MIN_TEMPERATURE), dim=-1)
    if noise is None:
        tokens = logits.argmax(dim=-1)
    elif decoding.top_p > 0.0:
        tokens = sample_nucleus(probs.flatten(0, 1), decoding.top_p, noise.flatten(0, 1)).view(
            probs.shape[:2]
        )
    else:
        probs = filter_probs(probs, 0.0, decoding.top_k)
        tokens = sample_categorical(probs, noise)
    return tokens, probs.gather(-1, tokens[..., None])[..., 0]


class Remasking(Protocol):
    """Chooses which frames of a codebook are masked again before a step, from how improbable they were.

    How many that can be is known before the step, so that a GPU need not be asked.
    """

    def start(self, keep: Tensor) -> Tensor:
        """Return scores before the first step, given what stays (bool [B, T]); both on the CPU."""

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        """Return the frames to mask for a wanted mask rate, bool [B, T], and how many frames a clip
        needs at most, these and those still open.
        """

    def score(self, probs: Tensor, chosen: Tensor, filled: Tensor) -> Tensor:
        """Score again from the probabilities float [B, T] of the tokens just sampled.

        `chosen` [B, T] is what `choose` returned, `filled` [B, T] what was then really filled.
        """


class ChunkRemasking:
    """Masks whole chunks of L neighbouring frames; a chunk that was kept once stays for good.

    Args:
        num_frames: T; when it is no multiple of L the last chunk is shorter.
        chunk_len: L; 1 decides token by token.
        scoring: "max" or "prod", see `DecodingConfig`.
    """

    def __init__(self, num_frames: int, chunk_len: int, scoring: str) -> None:
        self.num_frames, self.chunk_len, self.scoring = num_frames, chunk_len, scoring
        self.missing = -num_frames % chunk_len  # frames that the last chunk lacks

    def start(self, keep: Tensor) -> Tensor:
        settled = self._chunks(F.pad(keep, (0, self.missing), value=True)).all(dim=-1)
        self.num_open = (~settled).sum(dim=-1)  # [B]
        return torch.zeros(settled.shape).masked_fill(settled, SETTLED)

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        count = (rate * self.num_open).int().clamp(min=1)  # [B], truncated in float32
        rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        chunks = rank < count.to(scores.device, non_blocking=True)[:, None]
        frames = chunks.repeat_interleave(self.chunk_len, dim=-1)[:, : self.num_frames]
        return frames, min(int(count.max()) * self.chunk_len, self.num_frames)

    def score(self, probs: Tensor, chosen: Tensor, filled: Tensor) -> Tensor:
        # A short last chunk is judged as if its last token went on.
        chunks = self._chunks(F.pad(probs, (0, self.missing), mode="replicate"))
        scores = 1 - chunks.amax(dim=-1) if self.scoring == "max" else -chunks.log().sum(dim=-1)
        return scores.masked_fill(~chosen[:, :: self.chunk_len], SETTLED)

    def _chunks(self, frames: Tensor) -> Tensor:
        """Cut [B, whole chunks x L] into [B, chunks, L]."""
        return frames.view(frames.shape[0], -1, self.chunk_len)


class OverlappingRemasking:
    """Masks spans of L frames that may start anywhere; fixed tokens between bad ones can be masked again.

    Args:
        span_len: L.
    """

    def __init__(self, span_len: int) -> None:
        self.span_len = span_len

    def start(self, keep: Tensor) -> Tensor:
        self.num_open = (~keep).sum(dim=-1)  # [B]
        return torch.zeros(keep.shape).masked_fill(keep, SETTLED)

    def choose(self, scores: Tensor, rate: Tensor) -> tuple[Tensor, int]:
        counts = (rate * self.num_open).int().clamp(min=1).tolist()
        rows = zip(scores.cpu(), counts, strict=True)  # the search asks often: better there than on a GPU
        frames = torch.stack([least_probable_spans(row, self.span_len, count) for row, count in rows])
        # The first mask may miss frames, which are open all the same and get filled.
        return frames.to(scores.device), max(*counts, int(frames.sum(dim=-1).max()))

    def score(self, probs: Tensor, chosen: Tensor, filled: Tensor) -> Tensor:
        return (-probs.log()).masked_fill(~filled, SETTLED)


def remasking_for(decoding: DecodingConfig, num_frames: int, span_len: int) -> Remasking:
    """Pick the remasking that the settings ask for."""
    if span_len <= 1:
        return ChunkRemasking(num_frames, 1, "prod")
    if decoding.span_arrangement == "stride1":
        return OverlappingRemasking(span_len)
    return ChunkRemasking(num_frames, span_len, decoding.span_scoring)


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
    given, kept = _given_tokens(prompt, keep, (batch, n_q, num_frames), card, device)
    keep = kept.to(device)
    tokens = given.clone()
    schedule = list(decoding_schedule(decoding))
    remasking = remasking_for(decoding, num_frames, span_len)
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
            noise = at_frames(race_noise((batch, num_frames, card), generator, device), frames)
        sampled, sampled_probs = choose_tokens(logits, step.temperature, decoding, noise)
        current = torch.where(masked, current.scatter(1, frames, sampled), current)
        tokens[:, stage] = current
        probs = torch.ones((batch, num_frames), device=device).scatter(1, frames, sampled_probs)
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


def _given_tokens(
    prompt: Tensor | None,
    keep: Tensor | None,
    shape: tuple[int, int, int],
    card: int,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """Lay the prompt into an otherwise masked clip; return it and, on the CPU, what of it stays: [B, K, T]."""
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
    known = prompt.cpu()[keep.cpu()]
    if known.numel() and not 0 <= int(known.min()) <= int(known.max()) < card:
        raise UserError(
            f"the prompt holds tokens from {int(known.min())} to {int(known.max())}, but codebooks have {card} entries; "
            "encode it with the model's own codec."
        )
    given[..., :length] = prompt.to(device)
    return given.masked_fill(~stays.to(device), card), stays
