"""Exact log-likelihood of tokens under the decoder, for decoding orders that do not depend on tokens.

Shapes: B clips, K codebooks, T frames.

Source: arXiv 2603.01367 (DUEL) for the idea, whose orders may depend on tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from magnet_train.decoding.config import DecodingConfig, decoding_schedule
from magnet_train.decoding.generate import LogitsFn, Progress
from magnet_train.decoding.remasking import SpreadRemasking
from magnet_train.decoding.sampling import MIN_TEMPERATURE, Generators, filter_probs
from magnet_train.errors import UserError
from magnet_train.masking import mask_for_stage


@torch.no_grad()
def log_likelihood(
    logits_fn: LogitsFn,
    tokens: Tensor,
    decoding: DecodingConfig,
    *,
    card: int,
    generator: Generators = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return the log-likelihood of tokens under the decoder, with its steps, temperature and guidance.

    With the "spread" arrangement the order depends on no token, and the frames of a step are sampled independently, so
    the likelihood of a clip is a product over steps. `generator` draws the frame at which the order starts, for each
    clip and codebook.

    Args:
        logits_fn: See `LogitsFn`; called once per step.
        tokens: int64 [B, K, T], ids 0..card-1.
        decoding: With `span_arrangement` "spread" and sampling. With `top_p` or `top_k` most recordings have
            probability 0.
        card: Entries in each codebook, and the mask id.
        generator: Draws the first frame; like `progress` as for `generate_tokens`.
        progress: Called after each step.

    Returns:
        float64 [B, K] in nats, each codebook given those below it; -inf where the decoder cannot make the tokens.

    Raises:
        UserError: Another arrangement, no sampling, or settings that do not fit.
    """
    batch, n_q, num_frames = tokens.shape
    decoding = decoding.for_codec(n_q)
    decoding.check(n_q, card)
    if decoding.span_arrangement != "spread" or not decoding.use_sampling:
        raise UserError(
            'the likelihood needs span_arrangement "spread" and use_sampling true, not '
            f'"{decoding.span_arrangement}" and {decoding.use_sampling}: it cannot be computed for other decoders.'
        )
    schedule = list(decoding_schedule(decoding))
    order = SpreadRemasking(num_frames, generator, tokens.device)
    nats = torch.zeros(batch, n_q, dtype=torch.float64, device=tokens.device)
    for done, step in enumerate(schedule, start=1):
        k = step.stage
        if done == 1 or schedule[done - 2].stage != k:
            scores = order.start(torch.zeros(batch, num_frames, dtype=torch.bool)).to(tokens.device)
        masked, _ = order.choose(scores, step.mask_rate)
        scored = masked
        if done < len(schedule) and schedule[done].stage == k:  # frames that stay masked are scored later
            scored = masked & ~order.choose(scores, schedule[done].mask_rate)[0]
        logits = logits_fn(mask_for_stage(tokens, masked, k, card), k, step.cfg_coef).double()
        probs = torch.softmax(logits / max(step.temperature, MIN_TEMPERATURE), dim=-1)  # [B, T, card]
        probs = filter_probs(probs, decoding.top_p, decoding.top_k)
        own = probs.gather(-1, tokens[:, k, :, None])[..., 0].log()
        nats[:, k] += own.where(scored, 0).sum(dim=-1)
        if progress is not None:
            progress(done, len(schedule))
    return nats
