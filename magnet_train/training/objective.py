"""The training objective of MAGNeT: mask one codebook of each clip, predict it, sum the cross-entropy.

Shapes: B clips, K codebooks, T frames, S text positions, D = dim, N scored positions (masked, and within the clip).

Source: arXiv 2401.04577, section 3.1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train.masking import mask_for_stage


class StageModel(Protocol):
    """The part of `MagnetTransformer` that the objective calls."""

    streams: int

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
    """The model's prediction at the scored positions of one codebook."""

    stage: int
    logits: Tensor  # float [N, card]
    targets: Tensor  # int64 [N]
    clips: Tensor  # int64 [N], the clip of each position, 0..B-1


class LossSums(NamedTuple):
    """Cross-entropy of a batch, summed and counted; see `gradient_scale` for the mean."""

    total: Tensor  # scalar with gradient, nats
    nats: Tensor  # float32 [K], by codebook, detached
    counts: Tensor  # float32 [K], scored positions by codebook


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
    """Mask the codebook of each clip and those above, run the model, and predict the masked frames.

    `mask`, `valid` and `stages` determine tensor shapes and stay on the CPU, so the step never synchronises with the GPU.

    Args:
        lm: The model.
        tokens: int64 [B, K, T].
        mask: bool [B, T], masked frames of each clip's codebook.
        valid: bool [B, T], False in padded frames, which are not scored.
        stages: The codebook that each clip trains, B numbers 0..K-1.
        text: float [B, S, text_dim] or None.
        text_mask: bool [B, S] or None.
        with_text: Clips that have a text, see `MagnetTransformer.hidden`; None if the caller does not know.
        run_all_stages: Call the model for every codebook, see `group_by_context`.

    Yields:
        One prediction for each codebook in `stages`, or for all of them, in ascending order.
    """

    def to_device(on_host: Tensor) -> Tensor:
        return on_host.to(tokens.device, non_blocking=True)

    is_scored = (mask & valid).cpu()  # [B, T]
    stage_of_clip = torch.tensor(stages)
    masked_tokens = mask_for_stage(tokens, to_device(mask), to_device(stage_of_clip), lm.mask_id)
    for run_stages, clips in group_by_context(stages, tokens.shape[1], run_all_stages, lm.streams):
        host_index = torch.tensor(clips)
        index = to_device(host_index)
        rows_with_text = (
            None if with_text is None else [n for n, clip in enumerate(clips) if clip in with_text]
        )
        states = lm.hidden(  # [rows, T, D], a row for each of `clips`
            masked_tokens[index],
            run_stages[0],
            _select(text, index),
            _select(text_mask, index),
            rows_with_text,
        )
        for stage in run_stages:
            in_stage = is_scored[host_index] & (stage_of_clip[host_index] == stage)[:, None]  # [rows, T]
            row, frame = map(to_device, in_stage.nonzero(as_tuple=True))  # [N] each
            targets = tokens[index[row], stage, frame]
            yield StagePrediction(stage, lm.head(states[row, frame], stage), targets, index[row])


def group_by_context(
    stages: Sequence[int], n_q: int, run_all_stages: bool, streams: int = 1
) -> Iterator[tuple[Sequence[int], list[int]]]:
    """Yield the codebooks and clips of each pass: the first of each stream attends to all frames, the others to a few.

    With `run_all_stages` every codebook is run, also those of no clip: with FSDP all ranks take part in every call. A
    pass without clips runs clip 0, of which nothing is scored.
    """
    for codebooks in (range(streams), range(streams, n_q)):
        clips = [clip for clip, stage in enumerate(stages) if stage in codebooks]
        run_stages = codebooks if run_all_stages else sorted({stages[clip] for clip in clips})
        if run_stages:
            yield run_stages, clips or [0]


def _select(values: Tensor | None, clips: Tensor) -> Tensor | None:
    return values if values is None or len(clips) == len(values) else values[clips]


def masked_cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum the cross-entropy of logits float [N, card] and targets int64 [N], a float32 scalar in nats.

    The sum, not the mean: the number of scored positions over all ranks and micro-batches is not known yet. It is 0 with
    a zero gradient when N is 0.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def sum_losses(predictions: Iterator[StagePrediction], n_q: int, device: torch.device) -> LossSums:
    """Sum the cross-entropy of `predict_masked` by codebook; `device` is where the model computes."""
    nats, counts = torch.zeros(2, n_q, device=device)
    total = torch.zeros((), device=device)
    for stage, logits, targets, _ in predictions:
        stage_loss = masked_cross_entropy_sum(logits, targets)
        nats[stage], counts[stage] = stage_loss.detach(), len(targets)
        total = total + stage_loss
    return LossSums(total, nats, counts)


def gradient_scale(count: Tensor, frames: int, micro_batches: int) -> tuple[Tensor, Tensor]:
    """Return the factors that turn summed losses, and their gradients, into the mean over all scored positions.

    The number of scored positions is known only once the last micro-batch has been masked. So each micro-batch
    backpropagates its sum divided by the frames of one clip, and DDP, FSDP and gradient accumulation average the
    gradients over micro-batches.

    Args:
        count: Scalar, scored positions of all ranks and accumulated batches; at least 1.
        frames: Frames of one clip, by which each micro-batch divided its sum.
        micro_batches: Ranks times accumulated batches.

    Returns:
        The factors of the losses and of the gradients.
    """
    loss_scale = frames / count
    return loss_scale, micro_batches * loss_scale
