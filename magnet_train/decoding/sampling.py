"""Turn logits into tokens: which are candidates, which one is drawn, how probable it was.

Shapes: B clips, T frames, M frames that were asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magnet_train.decoding.config import DecodingConfig

ROUNDING = 1e-5  # more than sums of probabilities in float32 are off by
MIN_TEMPERATURE = 1e-2  # the annealed temperature ends at 0, where softmax is undefined


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


def exponential_noise(
    shape: tuple[int, int, int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device | str,
) -> Tensor:
    """Draw what `sample_categorical` needs, float32 [B, T, card], exponentially distributed.

    Drawn for every frame, so that a frame's share does not depend on which others are computed.
    """
    return uniform(shape, generator, device).log_().neg_()


def uniform(
    shape: tuple[int, ...],
    generator: torch.Generator | Sequence[torch.Generator] | None,
    device: torch.device | str,
) -> Tensor:
    """Draw float32 `shape` from 0..1, the first dimension being the clips, each of which may have a generator."""
    if isinstance(generator, Sequence):
        return torch.stack([torch.rand(shape[1:], generator=each, device=device) for each in generator])
    return torch.rand(shape, generator=generator, device=device)


def sample_categorical(probs: Tensor, noise: Tensor) -> Tensor:
    """Draw one id for each distribution by an exponential race: the token that arrives first.

    Rounding matters only where two arrive at once, so that the same noise gives the same token whatever the
    size of the batch was.

    Args:
        probs: float [..., card]; they need not add up to 1.
        noise: float [..., card], see `exponential_noise`.

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
        noise: float [N, card], see `exponential_noise`.

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
