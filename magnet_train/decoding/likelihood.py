"""How probable the decoder is to make given tokens: an exact number, where no ranking decides what stays.

Shapes: B clips, K codebooks, T frames, M frames that are filled by a step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from magnet_train.decoding.config import DecodingConfig, decoding_schedule
from magnet_train.decoding.generate import LogitsFn, Progress
from magnet_train.decoding.remasking import SpreadRemasking
from magnet_train.decoding.sampling import MIN_TEMPERATURE, filter_probs
from magnet_train.errors import UserError


@torch.no_grad()
def log_likelihood(
    logits_fn: LogitsFn,
    tokens: Tensor,
    decoding: DecodingConfig,
    *,
    card: int,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Return the log-probability with which the decoder makes these tokens, steps, temperature and guidance included.

    With the "spread" arrangement the frames that a step fills depend on no token, and those of a step are sampled
    independently of each other. So the probability of a clip is a product over steps, which the model is asked for as
    often as in decoding. It tells how many steps are enough and which of two models is better without a clip being
    made; a ranking of spans has no such number. It is that of a decoder that begins where this call begins, at a
    frame drawn for each clip and codebook.

    Args:
        logits_fn: See `generate_tokens`.
        tokens: int64 [B, K, T], ids 0..card-1, real clips for instance.
        decoding: With `span_arrangement` "spread" and sampling. With `top_p` or `top_k` most real clips have
            probability 0.
        card: Entries in each codebook, and the mask id.
        generator: Draws the first frame; as for `generate_tokens`.
        progress: Called after each step with (steps done, steps in all).

    Returns:
        float64 [B, K] in nats, 0 or less: of each codebook given those below it. -inf where the decoder cannot make the
        tokens.

    Raises:
        UserError: Another arrangement, no sampling, or settings that do not fit.

    Source: the idea is that of arXiv 2603.01367 (DUEL), whose orders may depend on tokens.
    """
    batch, n_q, num_frames = tokens.shape
    decoding.check(n_q, card)
    if decoding.span_arrangement != "spread" or not decoding.use_sampling:
        raise UserError(
            f'the likelihood needs span_arrangement "spread" and use_sampling, not "{decoding.span_arrangement}" and '
            f"{decoding.use_sampling}: whatever ranks tokens, or takes the best, has none that could be computed."
        )
    device = tokens.device
    schedule = list(decoding_schedule(decoding))
    order = SpreadRemasking(num_frames, generator, device)
    nats = torch.zeros(batch, n_q, dtype=torch.float64, device=device)
    for done, step in enumerate(schedule, start=1):
        k = step.stage
        if done == 1 or schedule[done - 2].stage != k:
            scores = order.start(torch.zeros(batch, num_frames, dtype=torch.bool)).to(device)
        hidden, _ = order.choose(scores, step.mask_rate)
        shown = tokens.clone()
        shown[:, k] = tokens[:, k].masked_fill(hidden, card)
        shown[:, k + 1 :] = card
        logits = logits_fn(shown, k, step.cfg_coef).double()
        probs = filter_probs(
            torch.softmax(logits / max(step.temperature, MIN_TEMPERATURE), dim=-1),
            decoding.top_p,
            decoding.top_k,
        )
        if done < len(schedule) and schedule[done].stage == k:  # what stays hidden counts later
            later, _ = order.choose(scores, schedule[done].mask_rate)
            hidden = hidden & ~later
        own = probs.gather(-1, tokens[:, k, :, None])[..., 0].log()
        nats[:, k] += own.where(hidden, 0).sum(dim=-1)
        if progress is not None:
            progress(done, len(schedule))
    return nats
