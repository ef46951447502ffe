"""The training objective: cross-entropy where the stage's codebook is masked and the clip has audio.

Shapes: B clips, K codebooks, T frames, S text positions, N masked frames of a stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train.masking import mask_for_stage


class StageModel(Protocol):
    """The part of `MagnetTransformer` that the objective needs."""

    @property
    def mask_id(self) -> int: ...

    def hidden(
        self,
        tokens: Tensor,
        stage: int,
        text: Tensor | None,
        text_mask: Tensor | None,
        rows: Sequence[int] | None,
    ) -> Tensor: ...

    def head(self, hidden: Tensor, stage: int) -> Tensor: ...


class StagePrediction(NamedTuple):
    """What the model says about the masked frames of one codebook."""

    stage: int
    logits: Tensor  # float [N, card]
    targets: Tensor  # int64 [N]
    rows: Tensor  # int64 [N], the clip that each belongs to


def predict_masked(
    lm: StageModel,
    tokens: Tensor,
    mask: Tensor,
    valid: Tensor,
    stages: Sequence[int],
    text: Tensor | None = None,
    text_mask: Tensor | None = None,
    with_text: Collection[int] | None = None,
    run_all_stages: bool = False,
) -> Iterator[StagePrediction]:
    """Predict what is masked, codebook by codebook; each clip is about one of them.

    Which stage a clip has makes a difference to the layers in one way only, restricted context or not: clips
    of the first codebook go through them together, and so do all the others.

    What shapes the work, which frames are masked and which clips have a text, is worked out on the host: a
    GPU that is never asked runs ahead of it undisturbed.

    Args:
        lm: The model.
        tokens: int64 [B, K, T].
        mask: bool [B, T], frames that are hidden in the stage's codebook; best on the CPU, as `valid`.
        valid: bool [B, T]; padded frames are not predicted.
        stages: B codebooks, on the host: they shape the work.
        text: float [B, S, text_dim] or None.
        text_mask: bool [B, S] or None.
        with_text: Clips that have a text, see `MagnetTransformer.hidden`; None if the caller does not know.
        run_all_stages: Call the model for all codebooks, also those without a clip: ranks that share a model out
            wait for each other in every call.

    Yields:
        One prediction for each codebook in `stages`, or for all, in ascending order.
    """

    def send(host: Tensor) -> Tensor:
        return host.to(tokens.device, non_blocking=True)

    learn = (mask & valid).cpu()
    stage_of_row = torch.tensor(stages)
    visible = mask_for_stage(tokens, send(mask), send(stage_of_row), lm.mask_id)
    first, others = range(1), range(1, tokens.shape[1])
    for alike in (first, others):
        rows = [row for row, stage in enumerate(stages) if stage in alike]
        asked_stages = alike if run_all_stages else sorted({stages[row] for row in rows})
        if not asked_stages:
            continue
        rows = rows or [0]  # a clip that has nothing to say here
        everything = len(rows) == len(stages)
        index = torch.tensor(rows)
        there = send(index)
        states = lm.hidden(  # [rows, T, D]
            visible if everything else visible[there],
            asked_stages[0],
            text if everything or text is None else text[there],
            text_mask if everything or text_mask is None else text_mask[there],
            None if with_text is None else [place for place, row in enumerate(rows) if row in with_text],
        )
        for stage in asked_stages:
            asked = learn[index] & (stage_of_row[index] == stage)[:, None]  # [rows, T]
            clip, frame = map(send, asked.nonzero(as_tuple=True))
            targets = tokens[there[clip], stage, frame]
            # The other frames have no loss, so the head is not asked about them.
            yield StagePrediction(stage, lm.head(states[clip, frame], stage), targets, there[clip])


def masked_cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Add up the cross-entropy (nats) of the masked positions.

    The sum, not the mean: the caller divides by the masked count of the whole batch over all ranks, so that
    the loss does not depend on how the batch is cut.

    Args:
        logits: float [N, card], of the N masked positions.
        targets: int64 [N], ids 0..card-1.

    Returns:
        float32 scalar; 0 with a zero gradient when N is 0.

    Source: arXiv 2401.04577, section 3.1.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")
