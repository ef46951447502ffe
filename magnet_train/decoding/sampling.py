"""Sampling: the noise of a clip, top-p and top-k, and tokens with their probabilities from logits.

Shapes: B clips, T frames, M queried frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from magnet_train.decoding.config import DecodingConfig

# One for all clips, one for each clip, or torch's global one.
Generators = torch.Generator | Sequence[torch.Generator] | None
ROUNDING = 1e-5  # above the error of sums of probabilities in float32
MIN_TEMPERATURE = 1e-2  # the annealed temperature ends at 0, where softmax is undefined


def clip_generators(seed: int, indices: Iterable[int], device: torch.device | str) -> list[torch.Generator]:
    """Return a generator for each clip, a function of (seed, index) alone, whatever batch or rank makes the clip.

    Devices of one kind draw the same numbers.
    """
    return [torch.Generator(device).manual_seed(_clip_seed(seed, index)) for index in indices]


def _clip_seed(seed: int, index: int) -> int:
    """Hash (seed, index) to 0..2^63-1; their sum would give clip 1 of seed 0 the noise of clip 0 of seed 1."""
    pair = b"".join(number.to_bytes(16, "little", signed=True) for number in (seed, index))
    return int.from_bytes(hashlib.blake2b(pair, digest_size=8).digest(), "little") >> 1


def filter_probs(probs: Tensor, top_p: float, top_k: int) -> Tensor:
    """Set the probability of the less probable tokens to 0, and renormalise.

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


def exponential_noise(
    shape: tuple[int, int, int], generator: Generators, device: torch.device | str
) -> Tensor:
    """Draw exponential noise float32 [B, T, card] for `sample_categorical`.

    It is drawn for all frames, so that a frame's noise does not depend on which others are computed.
    """
    return uniform(shape, generator, device).log_().neg_()


def uniform(shape: tuple[int, ...], generator: Generators, device: torch.device | str) -> Tensor:
    """Draw float32 `shape` from 0..1; the first dimension is the clips, each of which may have a generator."""
    if isinstance(generator, Sequence):
        return torch.stack([uniform(shape[1:], each, device) for each in generator])
    return torch.rand(shape, generator=generator, device=device, dtype=torch.float32)


def sample_categorical(probs: Tensor, noise: Tensor) -> Tensor:
    """Draw one id from each distribution, int64 [...]: the token with the smallest noise / probability.

    Rounding matters only where two tokens nearly tie, so the same noise gives the same token in a batch of any size.

    Args:
        probs: float [..., card], normalised or not.
        noise: float [..., card], see `exponential_noise`.
    """
    return (probs / noise).argmax(dim=-1)


def sample_nucleus(probs: Tensor, top_p: float, noise: Tensor) -> Tensor:
    """Draw from the smallest set of tokens whose probability exceeds `top_p`, sorting few rows.

    A token drawn from all tokens that lies in the set is also the one drawn from the set. A sum shows whether it does;
    only the other rows are sorted.

    Args:
        probs: float [N, card].
        top_p: Above 0.
        noise: float [N, card], see `exponential_noise`.

    Returns:
        int64 [N], the result of `filter_probs` and `sample_categorical`.
    """
    if probs.device.type != "cpu":  # the number of rows to sort would synchronise with the GPU
        return sample_categorical(filter_probs(probs, top_p, 0), noise)
    token = sample_categorical(probs, noise)
    own = probs.gather(-1, token[:, None])
    # With all tokens of equal probability before it: neither ties nor rounding admit a token that sorting leaves out.
    before = ((probs * (probs >= own)).sum(dim=-1, keepdim=True) - own)[:, 0]
    rows = (before > top_p - ROUNDING).nonzero()[:, 0]
    token[rows] = sample_categorical(filter_probs(probs[rows], top_p, 0), noise[rows])
    return token


def choose_tokens(
    logits: Tensor, temperature: float, decoding: DecodingConfig, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sample a token for each frame, and return its probability.

    Args:
        logits: float [B, M, card], guided.
        temperature: Of this step; at least `MIN_TEMPERATURE` is used.
        decoding: Which tokens are candidates.
        noise: float [B, M, card], see `exponential_noise`; None without sampling.

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
