"""The LightningModule: joins masking, model, loss and decoding, and holds no maths of its own.

Shapes: B clips, K codebooks, T frames. A batch is a dict, see `TokenBatch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from transformers import get_cosine_schedule_with_warmup

from magnet_train.checkpoints.layout import FORMAT, KEY, ORIGIN
from magnet_train.decoding import DecodingConfig, generate_tokens
from magnet_train.errors import UserError
from magnet_train.losses import masked_cross_entropy_sum
from magnet_train.masking import draw_stage, mask_for_stage, mask_rate, span_mask
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.tokens import CodecInfo

RATE, COIN, ORDER = 0, 1, 2  # columns of `noise`: mask rate, text-drop coin, and from here on the span order


class TokenBatch(TypedDict):
    """What a dataloader gives: `noise` makes masks a function of (seed, slot), whoever computes them."""

    tokens: Tensor  # int64 [B, K, T]; padded positions hold card
    valid: Tensor  # bool [B, T], False where the clip has ended
    noise: Tensor  # float32 [B, 2 + T], uniform in [0, 1)
    text: list[str]
    key: list[str]
    slot: Tensor  # int64 [B]


class MagnetModule(pl.LightningModule):
    """Train a MAGNeT: one codebook a step, spans masked on the cosine schedule.

    Args:
        codec: Who made the tokens (a `CodecInfo` or its record); linked from the data, so that n_q and card
            have one source.
        lm: Builds the model from (n_q, card, text_dim); in YAML its class and remaining arguments.
        text: Turns captions into states [B, S, dim] and a mask [B, S]; see `magnet_train.text`.
        optimizer: Builds the optimizer from the parameters that train.
        segment_duration: Length of a clip in seconds; linked from the data.
        seed: Draws the stages; linked from the data.
        warmup_steps: Optimizer steps over which the learning rate rises from 0; then it falls on a cosine
            to 0 at `trainer.max_steps`.
        cfg_dropout: Share of clips whose caption is hidden in training (0..1), for guidance in decoding.
        stage_weights: K relative probabilities of training each codebook; None trains all equally often.
        decoding: Settings of the sampler that runs in validation and goes into exports.
        sample_prompts: Captions that validation turns into audio each time, with fixed randomness.

    Raises:
        UserError: A clip is shorter than a span, or settings that do not fit the codec.

    Source: arXiv 2401.04577, sections 3 and 4.
    """

    def __init__(
        self,
        codec: CodecInfo | dict[str, Any],
        lm: Callable[[int, int, int], MagnetTransformer],
        text: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        segment_duration: float = 10.0,
        seed: int = 0,
        warmup_steps: int = 4000,
        cfg_dropout: float = 0.3,
        stage_weights: list[float] | None = None,
        decoding: DecodingConfig = DecodingConfig(),  # noqa: B008  frozen
        sample_prompts: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.codec = CodecInfo.from_dict(codec) if isinstance(codec, dict) else codec
        self.text = text
        self.lm = lm(self.codec.n_q, self.codec.card, text.dim)  # type: ignore[arg-type]
        # A function is not deep-copied; the command line's own callable holds a lock that EMA's copy trips over.
        self._build_optimizer: Callable[[list[nn.Parameter]], Optimizer] = lambda parameters: optimizer(
            parameters
        )
        self.segment_duration = segment_duration
        self.seed = seed
        self.warmup_steps = warmup_steps
        self.cfg_dropout = cfg_dropout
        self.stage_weights = stage_weights or [1.0] * self.codec.n_q
        self.decoding = decoding
        self.sample_prompts = sample_prompts or []
        self.origin: dict[
            str, Any
        ] = {}  # what training began with, for checkpoints; see `magnet_train.finetune`
        self.sampled_tokens: Tensor | None = None  # int64 [prompts, K, T] of the last validation
        self._check_settings()
        self.val_losses = nn.ModuleList(MeanMetric() for _ in range(self.codec.n_q))
        self.val_accuracies = nn.ModuleList(MeanMetric() for _ in range(self.codec.n_q))

    def _check_settings(self) -> None:
        frames = self.codec.frames(self.segment_duration)
        if frames < self.lm.span_len:
            raise UserError(
                f"segment_duration {self.segment_duration} s is {frames} frames, shorter than one span of "
                f"{self.lm.span_len}; make data.segment_duration longer."
            )
        if (
            len(self.stage_weights) != self.codec.n_q
            or min(self.stage_weights) < 0
            or not any(self.stage_weights)
        ):
            raise UserError(
                f"stage_weights {self.stage_weights} must hold {self.codec.n_q} numbers >= 0, one per codebook."
            )
        if not 0.0 <= self.cfg_dropout <= 1.0:
            raise UserError(f"cfg_dropout {self.cfg_dropout} must lie in 0..1.")
        self.decoding.check(self.codec.n_q, self.codec.card)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Learn one codebook; the same one on every rank.

        Returns:
            Scalar loss, nats per masked token of the whole batch over all ranks.
        """
        stage = draw_stage(self.seed, self.global_step, self.stage_weights)
        dropped = batch["noise"][:, COIN] < self.cfg_dropout
        loss_sum, _, count = self._stage_loss(batch, stage, dropped)
        # DDP averages gradients over ranks; this makes the average that of all masked tokens.
        everywhere = self.trainer.strategy.reduce(count, reduce_op="sum")
        loss = loss_sum * self.trainer.world_size / everywhere.clamp(min=1)
        batch_size = len(batch["text"])
        self.log("train/loss", loss, prog_bar=True, sync_dist=True, batch_size=batch_size)
        self.log(f"train/loss_codebook_{stage}", loss, sync_dist=True, batch_size=batch_size)
        return loss

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Measure every codebook on masks that are the same each time."""
        for stage in range(self.codec.n_q):
            loss_sum, correct, count = self._stage_loss(batch, stage, None)
            if count > 0:
                loss, accuracy = self._metrics_of(stage)
                loss.update(loss_sum / count, weight=count)
                accuracy.update(correct / count, weight=count)

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and accuracy by codebook, then sample the fixed prompts."""
        self._log_validation("val")
        if self.sample_prompts and self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self.sampled_tokens = self.sample(self.sample_prompts, seed=self.seed)

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Measure as in validation."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log as in validation, under `test/`."""
        self._log_validation("test")

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Generate a clip for each caption; int64 [B, K, T]."""
        return self.sample(batch["text"], seed=self.seed + batch_idx)

    def sample(self, texts: Sequence[str | None], seed: int) -> Tensor:
        """Generate clips of `segment_duration` with the module's decoding settings.

        Args:
            texts: B captions; None or "" generates without one.
            seed: Makes the result repeatable on the same device.

        Returns:
            int64 [B, K, T].
        """
        with torch.inference_mode():
            hidden, mask = self.text(texts)
        return generate_tokens(
            GuidedLogits(self.lm, hidden, mask),
            (len(texts), self.codec.n_q, self.codec.frames(self.segment_duration)),
            self.decoding,
            card=self.codec.card,
            span_len=self.lm.span_len,
            generator=torch.Generator(self.device).manual_seed(seed),
            device=self.device,
        )

    def draw_mask(self, noise: Tensor) -> Tensor:
        """Say which frames of the stage's codebook are masked; override it to try other masks.

        Args:
            noise: float [B, 2 + T], see `TokenBatch`; the only source of randomness, so that a resumed or
                differently cut run masks the same.

        Returns:
            bool [B, T].
        """
        return span_mask(mask_rate(noise[:, RATE]), noise[:, ORDER:], self.lm.span_len)

    def _stage_loss(
        self, batch: TokenBatch, stage: int, dropped: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return summed loss, number of right guesses and number of masked tokens, all scalars."""
        mask = self.draw_mask(batch["noise"])  # [B, T]
        learn = mask & batch["valid"]
        hidden, text_mask = self.text(batch["text"])
        if dropped is not None:
            text_mask = text_mask & ~dropped[:, None]
        visible = mask_for_stage(batch["tokens"], mask, stage, self.codec.mask_id)
        states = self.lm.hidden(visible, stage, hidden, text_mask)  # [B, T, D]
        targets = batch["tokens"][:, stage][learn]  # [N]
        logits = self.lm.head(states[learn], stage)  # [N, card]: the other positions have no loss
        correct = (logits.argmax(dim=-1) == targets).sum()
        return masked_cross_entropy_sum(logits, targets), correct, learn.sum()

    def _metrics_of(self, stage: int) -> tuple[MeanMetric, MeanMetric]:
        return cast(MeanMetric, self.val_losses[stage]), cast(MeanMetric, self.val_accuracies[stage])

    def _log_validation(self, prefix: str) -> None:
        losses = []
        for k in range(self.codec.n_q):
            loss, accuracy = self._metrics_of(k)
            mean = loss.compute()
            losses.append(mean)
            self.log(f"{prefix}/loss_codebook_{k}", mean)
            self.log(f"{prefix}/perplexity_codebook_{k}", mean.exp())
            self.log(f"{prefix}/accuracy_codebook_{k}", accuracy.compute())
            loss.reset()
            accuracy.reset()
        self.log(f"{prefix}/loss", torch.stack(losses).mean(), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, with warm-up and cosine by optimizer step."""
        if self.trainer.max_steps < 1:
            raise UserError("the learning rate needs to know where it ends; set trainer.max_steps.")
        optimizer = self._build_optimizer([p for p in self.parameters() if p.requires_grad])
        scheduler = get_cosine_schedule_with_warmup(optimizer, self.warmup_steps, self.trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is needed to build the model again, in primitives only."""
        decoding = dict(vars(self.decoding), decoding_steps=list(self.decoding.decoding_steps))
        checkpoint[KEY] = {
            "format": FORMAT,
            "lm": dict(self.lm.config),
            "text": self.text.spec(),  # type: ignore[operator]
            "codec": self.codec.to_dict(),
            "decoding": decoding,
            "segment_duration": self.segment_duration,
            **self.origin,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a model of other sizes or another codec.

        Raises:
            UserError: The checkpoint is not ours or does not fit.
        """
        stored = checkpoint.get(KEY)
        if stored is None:
            raise UserError("the checkpoint was not written by magnet-train; name one that `fit` saved.")
        self.codec.require_same_tokens(CodecInfo.from_dict(stored["codec"]), "the data", "the checkpoint")
        self.origin = {name: stored[name] for name in ORIGIN if name in stored} | self.origin
        for name, now in self.lm.config.items():
            then = stored["lm"].get(name)
            if then != now:
                raise UserError(
                    f"the checkpoint's model has {name} {then}, this run's has {now}; give the same config."
                )
