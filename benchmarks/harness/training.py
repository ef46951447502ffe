"""Training steps, whole and in parts: naive against ours.

Shapes: B clips, K codebooks, T frames, N masked positions, D = dim.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import BenchmarkConfig, Row, require_close, require_small
from harness.naive import NaiveTransformer, naive_loss, naive_step_loss
from harness.restricted import attention_rows
from harness.timing import Clock, Pair, time_pair
from magnet_train.masking import mask_for_stage, mask_rate, span_mask
from magnet_train.models import MagnetTransformer
from magnet_train.training.flops import Pass, training_flops
from magnet_train.training.objective import masked_cross_entropy_sum

CFG_DROPOUT = 0.3
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-6  # of the norm of all gradients together
WEIGHT_TOLERANCE = (
    1e-5  # of the norm of one weight's; small ones are float32 sums of thousands of larger terms
)


class TrainingBatch:
    """A batch with the numbers that a host knows without asking the device.

    Args:
        setting: Sizes. Three clips in ten have no text, rounded down.
    """

    def __init__(self, setting: BenchmarkConfig) -> None:
        self.tokens = setting.tokens()
        self.text, present = setting.text()
        self.num_dropped = int(CFG_DROPOUT * setting.batch)
        self.rows = list(range(setting.batch - self.num_dropped))
        self.text_mask = present.clone()
        self.text_mask[len(self.rows) :] = False
        generator = torch.Generator().manual_seed(1)
        rate = mask_rate((torch.arange(setting.batch) + 0.5) / setting.batch)  # mean 0.64
        order = torch.rand(setting.batch, setting.frames, generator=generator)
        mask = span_mask(rate, order, setting.SPAN_LEN)
        self.positions = mask.flatten().nonzero()[:, 0].to(setting.device)  # int64 [N]
        self.learn = mask.to(setting.device)  # bool [B, T]


def our_step_loss(lm: MagnetTransformer, batch: TrainingBatch, stage: int) -> Tensor:
    """Mean cross-entropy of a stage, by way of the masked positions alone."""
    visible = mask_for_stage(batch.tokens, batch.learn, stage, lm.mask_id)
    states = lm.hidden(visible, stage, batch.text, batch.text_mask, batch.rows)
    targets = batch.tokens[:, stage].flatten()[batch.positions]
    logits = lm.head(states.flatten(0, 1)[batch.positions], stage)
    return masked_cross_entropy_sum(logits, targets) / len(targets)


def _naive_step_loss(model: nn.Module, batch: TrainingBatch, stage: int) -> Tensor:
    return naive_step_loss(model, batch.tokens, batch.learn, stage, batch.text, batch.text_mask)


def check_training(
    naive: NaiveTransformer, ours: MagnetTransformer, batch: TrainingBatch
) -> dict[str, float]:
    """Compare losses and gradients of an unrestricted and a restricted stage.

    Returns:
        The largest relative differences: of the losses, of all gradients as one vector, of one weight's.

    Raises:
        NotExactError: One is too large.
    """
    losses, gradients, weights = [], [], []
    for stage in (0, 2):
        expected_loss, expected = _loss_and_gradients(naive, _naive_step_loss, batch, stage)
        loss, found = _loss_and_gradients(ours, our_step_loss, batch, stage)
        losses.append(require_close("losses", loss, expected_loss, LOSS_TOLERANCE))
        names = sorted(expected.keys() & found.keys())
        for name in names:
            what = f"gradients of {name}"
            weights.append(require_close(what, found[name], expected[name], WEIGHT_TOLERANCE))
        # Norms of norms: one vector of all gradients would be another copy of them.
        differences = torch.stack([(found[name] - expected[name]).norm() for name in names])
        norms = torch.stack([expected[name].norm() for name in names])
        gradients.append(require_small("gradients", differences.norm() / norms.norm(), GRADIENT_TOLERANCE))
    return {"loss_error": max(losses), "gradient_error": max(gradients), "weight_error": max(weights)}


def _loss_and_gradients(
    model: nn.Module, loss_of: Callable[[Any, TrainingBatch, int], Tensor], batch: TrainingBatch, stage: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and what each weight that had a part in it gets; leave the model without gradients."""
    loss = loss_of(model, batch, stage)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return loss.detach(), gradients


def measure_training(setting: BenchmarkConfig, compiled: bool = False) -> Iterator[Row]:
    """Yield a row for restricted attention, for head and loss, for each stage's step, and for their mean."""
    clock = Clock(torch.device(setting.device))
    yield from attention_rows(setting, clock, setting.batch, backward=True)
    yield _tail_row(setting, clock)
    yield from _step_rows(setting, clock, compiled)


def _tail_row(setting: BenchmarkConfig, clock: Clock) -> Row:
    """Forward and backward of heads and loss."""
    heads = nn.Parameter(setting.models()[1].heads.detach().to(setting.dtype))
    batch = TrainingBatch(setting)
    states = setting.states(setting.batch).requires_grad_()
    targets = batch.tokens[:, 1].flatten()[batch.positions]

    def naive() -> Tensor:
        logits = torch.stack([nn.functional.linear(states, head) for head in heads], dim=1)
        return naive_loss(logits, batch.tokens, batch.learn, 1)

    def ours() -> Tensor:
        logits = nn.functional.linear(states.flatten(0, 1)[batch.positions], heads[1])
        return masked_cross_entropy_sum(logits, targets) / len(targets)

    tolerance = LOSS_TOLERANCE if setting.precision == "float32" else 1e-3
    error = require_close("losses", ours().detach(), naive().detach(), tolerance)
    pair = time_pair(
        clock,
        lambda: torch.autograd.grad(naive(), (states, heads)),
        lambda: torch.autograd.grad(ours(), (states, heads)),
        setting.rounds,
    )
    return {"part": "heads and loss", **pair.summary(), "error": error}


def _step_rows(setting: BenchmarkConfig, clock: Clock, compiled: bool) -> Iterator[Row]:
    """Whole steps: forward, backward, optimizer."""
    naive, ours = setting.models()
    batch = TrainingBatch(setting)
    errors = check_training(naive, ours, batch)
    naive, ours = naive.to(setting.dtype), ours.to(setting.dtype)
    batch.text = batch.text.to(setting.dtype)
    if compiled:
        naive.compile()
        for layer in ours.layers:
            layer.compile()
    naive_optimizer = torch.optim.AdamW(naive.parameters(), lr=1e-5)
    our_optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-5, fused=True)

    def stepper(optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
        def step() -> None:
            loss_of().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()  # afterwards: the other side needs the memory

        return step

    pairs, flops, peaks = [], [], []
    for stage in range(setting.N_Q):
        naive_step = stepper(naive_optimizer, lambda stage=stage: _naive_step_loss(naive, batch, stage))  # type: ignore[misc]
        our_step = stepper(our_optimizer, lambda stage=stage: our_step_loss(ours, batch, stage))  # type: ignore[misc]
        peaks.append(
            {
                "naive_peak_bytes": clock.peak_bytes(naive_step),
                "ours_peak_bytes": clock.peak_bytes(our_step),
            }
        )
        pairs.append(time_pair(clock, naive_step, our_step, setting.rounds, warm_up=2 if compiled else 1))
        work = Pass(
            stage,
            setting.batch,
            len(batch.rows),
            setting.frames,
            setting.text_positions,
            len(batch.positions),
        )
        flops.append(training_flops(setting.lm_config, work))
        yield {
            "part": f"step, codebook {stage}",
            **pairs[-1].summary(),
            **_rates(setting, flops[-1], pairs[-1]),
            **peaks[-1],
        }
    mean = Pair(
        *(
            [statistics.mean(rounds) for rounds in zip(*side, strict=True)]
            for side in ([pair.naive for pair in pairs], [pair.ours for pair in pairs])
        )
    )
    rates = _rates(setting, statistics.mean(flops), mean)
    yield {"part": "step", **mean.summary(), **rates, **peaks[-1], **errors}


def _rates(setting: BenchmarkConfig, flops: float, pair: Pair) -> dict[str, float]:
    seconds = statistics.median(pair.ours)
    frames = setting.batch * setting.frames
    return {
        "frames_per_s": frames / seconds,
        "codes_per_s": setting.N_Q * frames / seconds,
        "useful_tflops": flops / seconds / 1e12,
    }
