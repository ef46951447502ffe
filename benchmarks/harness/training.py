"""Training steps, whole and in parts: naive against ours.

Shapes: B clips, K codebooks, T frames, N masked positions, D = dim.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.attention import attention_rows
from harness.config import BenchmarkConfig, require_close, require_small
from harness.naive import NaiveTransformer, naive_loss
from harness.timing import Clock, Pair, Row, time_pair
from magnet_train.masking import mask_for_stage, mask_rate, span_mask
from magnet_train.models import MagnetTransformer
from magnet_train.training.cost import Pass, training_flops
from magnet_train.training.objective import masked_cross_entropy_sum

CFG_DROPOUT = 0.3
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-6  # of the norm of all gradients together
WEIGHT_TOLERANCE = (
    1e-5  # of the norm of one weight's gradient; small ones are sums of thousands of larger terms
)


class TrainingBatch:
    """A batch of `config`, with the shapes that the CPU knows without asking the device.

    Three clips in ten, rounded down, have no text.
    """

    def __init__(self, config: BenchmarkConfig) -> None:
        self.tokens = config.tokens()
        self.text, present = config.text()
        self.rows = list(range(config.batch - int(CFG_DROPOUT * config.batch)))
        self.text_mask = present.clone()
        self.text_mask[len(self.rows) :] = False
        generator = torch.Generator().manual_seed(1)
        rate = mask_rate((torch.arange(config.batch) + 0.5) / config.batch)  # mean 0.64
        order = torch.rand(config.batch, config.frames, generator=generator)
        mask = span_mask(rate, order, config.SPAN_LEN)
        self.positions = mask.flatten().nonzero()[:, 0].to(config.device)  # int64 [N]
        self.learn = mask.to(config.device)  # bool [B, T]


def our_step_loss(lm: MagnetTransformer, batch: TrainingBatch, stage: int) -> Tensor:
    """Mean cross-entropy of a stage, from the logits of the masked positions only."""
    visible = mask_for_stage(batch.tokens, batch.learn, stage, lm.mask_id)
    states = lm.hidden(visible, stage, batch.text, batch.text_mask, batch.rows)
    targets = batch.tokens[:, stage].flatten()[batch.positions]
    logits = lm.head(states.flatten(0, 1)[batch.positions], stage)
    return masked_cross_entropy_sum(logits, targets) / len(targets)


def naive_step_loss(model: NaiveTransformer, batch: TrainingBatch, stage: int) -> Tensor:
    """Mean cross-entropy of a stage, from the logits of all codebooks and frames."""
    visible = mask_for_stage(batch.tokens, batch.learn, stage, model.card)
    logits = model(visible, stage, batch.text, batch.text_mask)
    return naive_loss(logits, batch.tokens, batch.learn, stage)


def check_training(
    naive: NaiveTransformer, ours: MagnetTransformer, batch: TrainingBatch
) -> dict[str, float]:
    """Compare losses and gradients of an unrestricted and a restricted stage.

    Returns:
        The largest relative errors: of the losses, of all gradients as one vector, of one weight's gradient.

    Raises:
        NotExactError: One is too large.
    """
    losses, gradients, weights = [], [], []
    for stage in (0, 2):
        expected_loss, expected = _loss_and_gradients(naive, naive_step_loss, batch, stage)
        loss, found = _loss_and_gradients(ours, our_step_loss, batch, stage)
        losses.append(require_close("losses", loss, expected_loss, LOSS_TOLERANCE))
        names = sorted(expected.keys() & found.keys())
        for name in names:
            error = require_close(f"gradients of {name}", found[name], expected[name], WEIGHT_TOLERANCE)
            weights.append(error)
        # Norms of norms: one vector of all gradients would copy them.
        differences = torch.stack([(found[name] - expected[name]).norm() for name in names])
        norms = torch.stack([expected[name].norm() for name in names])
        gradients.append(require_small("gradients", differences.norm() / norms.norm(), GRADIENT_TOLERANCE))
    return {"loss_error": max(losses), "gradient_error": max(gradients), "weight_error": max(weights)}


def _loss_and_gradients(
    model: nn.Module, loss_of: Callable[[Any, TrainingBatch, int], Tensor], batch: TrainingBatch, stage: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the gradient of each weight that contributes to it; clear the model's gradients."""
    loss = loss_of(model, batch, stage)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def measure_training(config: BenchmarkConfig, compiled: bool = False) -> Iterator[Row]:
    """Yield a row for restricted attention, for head and loss, for each stage's step, and for their mean."""
    clock = Clock(torch.device(config.device))
    yield from attention_rows(config, clock, config.batch, backward=True)
    yield _head_row(config, clock)
    yield from _step_rows(config, clock, compiled)


def _head_row(config: BenchmarkConfig, clock: Clock) -> Row:
    """Forward and backward pass of heads and loss."""
    heads = nn.Parameter(config.models()[1].heads.detach().to(config.dtype))
    batch = TrainingBatch(config)
    states = config.states(config.batch).requires_grad_()
    targets = batch.tokens[:, 1].flatten()[batch.positions]

    def naive() -> Tensor:
        logits = torch.stack([nn.functional.linear(states, head) for head in heads], dim=1)
        return naive_loss(logits, batch.tokens, batch.learn, 1)

    def ours() -> Tensor:
        logits = nn.functional.linear(states.flatten(0, 1)[batch.positions], heads[1])
        return masked_cross_entropy_sum(logits, targets) / len(targets)

    tolerance = LOSS_TOLERANCE if config.precision == "float32" else 1e-3
    error = require_close("losses", ours().detach(), naive().detach(), tolerance)
    pair = time_pair(
        clock,
        lambda: torch.autograd.grad(naive(), (states, heads)),
        lambda: torch.autograd.grad(ours(), (states, heads)),
        config.rounds,
    )
    return {"part": "heads and loss", **pair.summary(), "error": error}


def _step_rows(config: BenchmarkConfig, clock: Clock, compiled: bool) -> Iterator[Row]:
    """Whole steps: forward pass, backward pass, optimizer."""
    naive, ours = config.models()
    batch = TrainingBatch(config)
    errors = check_training(naive, ours, batch)
    naive, ours = naive.to(config.dtype), ours.to(config.dtype)
    batch.text = batch.text.to(config.dtype)
    if compiled:
        naive.compile()
        for layer in ours.layers:
            layer.compile()
    naive_optimizer = torch.optim.AdamW(naive.parameters(), lr=1e-5)
    our_optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-5, fused=True)

    def step(
        model: Any, loss_of: Callable[..., Tensor], optimizer: torch.optim.Optimizer, stage: int
    ) -> None:
        loss_of(model, batch, stage).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()  # after the step: the other side needs the memory

    pairs, flops, peaks = [], [], {}
    for stage in range(config.N_Q):
        naive_step = partial(step, naive, naive_step_loss, naive_optimizer, stage)
        our_step = partial(step, ours, our_step_loss, our_optimizer, stage)
        peaks = {
            "naive_peak_bytes": clock.peak_bytes(naive_step),
            "ours_peak_bytes": clock.peak_bytes(our_step),
        }
        pair = time_pair(clock, naive_step, our_step, config.rounds, warm_up=2 if compiled else 1)
        sizes = (config.batch, len(batch.rows), config.frames, config.text_positions, len(batch.positions))
        flops.append(training_flops(config.lm_config, Pass(stage, *sizes)))
        pairs.append(pair)
        rates = config.rates(config.frames, flops[-1], statistics.median(pair.ours))
        yield {"part": f"step, codebook {stage}", **pair.summary(), **rates, **peaks}
    mean = Pair(
        [statistics.mean(rounds) for rounds in zip(*(pair.naive for pair in pairs), strict=True)],
        [statistics.mean(rounds) for rounds in zip(*(pair.ours for pair in pairs), strict=True)],
    )
    rates = config.rates(config.frames, statistics.mean(flops), statistics.median(mean.ours))
    yield {"part": "step", **mean.summary(), **rates, **peaks, **errors}
