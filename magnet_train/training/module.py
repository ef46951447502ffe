"""The LightningModule: connects data, masking, model, objective and decoding to the trainer.

Shapes: B clips, K codebooks, T frames. A batch is a dict, see `TokenBatch`.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from magnet_train.checkpoints.bundle import FORMAT, KEY, ORIGIN, settings_record
from magnet_train.decoding import DecodingConfig, clip_generators, generate_tokens
from magnet_train.errors import UserError, first_line
from magnet_train.masking import draw_stage, mask_rate, span_mask, stratified_stages
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.models.memory import FittingBatches
from magnet_train.models.transformer import LEFT_OUT
from magnet_train.text import TextEncoder
from magnet_train.tokens import CONDITION, SCHEDULE, SPANS, CodecInfo, TokenBatch
from magnet_train.training.lightning_internals import loaded_checkpoint
from magnet_train.training.metrics import MaskedTokenMetrics
from magnet_train.training.objective import (
    LossSums,
    StagePrediction,
    gradient_scale,
    predict_masked,
    sum_losses,
)
from magnet_train.training.optim import WarmupCosine
from magnet_train.training.parallel import (
    is_sharded,
    local_part,
    recompute_activations,
    shard,
)

ON_HOST = ("noise", "valid", "slot")  # entries of a batch that stay on the CPU
# Optimizer settings that have to be finite; others use inf for "no limit", such as Prodigy's growth_rate.
_FINITE = {"lr", "betas", "eps", "weight_decay", "momentum"}


class TrainedBatch(NamedTuple):
    """What a micro-batch trained on, for `ThroughputMonitor`."""

    stages: list[int]  # codebook of each of the B clips
    is_scored: Tensor  # bool [B, T], frames with a loss
    with_text: list[int]  # clips with a caption
    text_positions: int  # S, padded length of the captions


class MagnetModule(pl.LightningModule):
    """Train a MAGNeT: spans of one codebook masked on the cosine schedule.

    Args:
        codec: The codec of the tokens (a `CodecInfo` or its record); linked from the data.
        lm: Builds the model from (n_q, card, text_dim); in YAML its class and remaining arguments.
        text: Text encoder: captions to states [B, S, dim] and a mask [B, S].
        optimizer: Builds the optimizer from the names and parameters that train.
        schedule: Builds the schedule of the learning rate from (optimizer, warmup_steps, trainer.max_steps).
        segment_duration: Length of a clip in seconds; linked from the data.
        seed: Seed of samples in validation and prediction, and of the codebook that a `reference` step draws; linked from
            the data.
        warmup_steps: Optimizer steps over which the learning rate rises from 0.
        cfg_dropout: Share of clips whose caption is hidden in training (0..1), for guidance in decoding.
        stage_weights: K relative probabilities of training each codebook; None trains all equally often.
        stage_sampling: `stratified` trains all codebooks in each step, each clip on one of them; `reference`
            draws one codebook for each step.
        decoding: Sampler settings of validation, also stored in checkpoints and exports.
        sample_prompts: Captions that each validation turns into audio, with the same seed every time.
        recompute_activations: Checkpoint activations: keep only the input of each layer for the backward pass.
        compile: Compile the layers with `torch.compile`.

    Raises:
        UserError: A clip is shorter than a span, or a setting does not fit the codec.

    Source: arXiv 2401.04577, sections 3 and 4.
    """

    def __init__(
        self,
        codec: CodecInfo | dict[str, Any],
        lm: Callable[[int, int, int], MagnetTransformer],
        text: TextEncoder,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Callable[[Optimizer, int, int], LambdaLR] = WarmupCosine,
        segment_duration: float = 10.0,
        seed: int = 0,
        warmup_steps: int = 4000,
        cfg_dropout: float = 0.3,
        stage_weights: list[float] | None = None,
        stage_sampling: Literal["reference", "stratified"] = "stratified",
        decoding: DecodingConfig = DecodingConfig(),  # noqa: B008  frozen
        sample_prompts: list[str] | None = None,
        recompute_activations: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.codec = CodecInfo.from_dict(codec) if isinstance(codec, dict) else codec
        self.text = text
        self.lm = lm(self.codec.n_q, self.codec.card, text.dim)
        self.lm.set_codec(self.codec.frame_rate, self.codec.streams)
        # Wrapped in functions, which deepcopy leaves alone: the CLI's callables hold a lock that cannot be copied.
        self._build_optimizer: Callable[[Iterable[Any]], Optimizer] = lambda named: optimizer(named)
        self._build_schedule: Callable[[Optimizer], LambdaLR] = lambda built: schedule(
            built, warmup_steps, self.trainer.max_steps
        )
        self.segment_duration = segment_duration
        self.seed = seed
        self.warmup_steps = warmup_steps
        self.cfg_dropout = cfg_dropout
        self.stage_weights = stage_weights or [1.0] * self.codec.n_q
        self.stage_sampling = stage_sampling
        self.decoding = decoding.for_codec(self.codec.n_q, self.codec.streams)
        self.sample_prompts = sample_prompts or []
        self.origin: dict[str, Any] = {}  # `ORIGIN` of checkpoints; see `magnet_train.training.finetune`
        self.sampled_tokens: Tensor | None = None  # int64 [prompts, K, T] of the last validation
        self.sampling_seconds = 0.0  # that these took
        self.trained_batch: TrainedBatch | None = None  # the last one
        self.recompute_activations, self.compile_layers = recompute_activations, compile
        self._configured = False
        if warmup_steps < 0:
            raise UserError(f"model.warmup_steps is {warmup_steps}; give 0 or more.")
        self._check_settings()
        self.validation_metrics = MaskedTokenMetrics(self.codec.n_q)
        self._sums: Tensor | None = None  # float32 [2, K], losses and counts since the last optimizer step
        self.mean_scale = torch.ones(())  # scales the summed micro-batch losses to the mean (nats/token)

    def _check_settings(self) -> None:
        frames = self.codec.frames(self.segment_duration)
        if frames < self.lm.span_len:
            raise UserError(
                f"segment_duration {self.segment_duration} s is {frames} frames, shorter than one span of "
                f"{self.lm.span_len}; make data.segment_duration longer."
            )
        weights = self.stage_weights
        if len(weights) != self.codec.n_q or not any(weights) or not all(0 <= w < math.inf for w in weights):
            raise UserError(
                f"stage_weights {self.stage_weights} must hold {self.codec.n_q} finite numbers >= 0, one per codebook, not "
                "all 0."
            )
        if not 0.0 <= self.cfg_dropout <= 1.0:
            raise UserError(f"cfg_dropout {self.cfg_dropout} must lie in 0..1.")
        self.decoding.check(self.codec.n_q, self.codec.card)

    def configure_model(self) -> None:
        """Checkpoint activations, compile and shard the model as configured, once."""
        if self._configured:
            return
        self._configured = True
        if self.recompute_activations:
            recompute_activations(self.lm)
        if self.compile_layers:
            try:
                self.lm.compile_layers()
            except UserError as error:
                warnings.warn(f"model.compile has no effect: {error}", stacklevel=2)
        if self.device_mesh is not None:
            shard(self.lm, self.text, self.device_mesh["data_parallel"], str(self.trainer.precision))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Keep on the CPU what determines tensor shapes, so the step never synchronises with the GPU."""
        stay = {name: batch[name] for name in ON_HOST if name in batch}
        move = {name: value for name, value in batch.items() if name not in stay}
        return super().transfer_batch_to_device(move, device, dataloader_idx) | stay

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Compute the summed loss of a micro-batch.

        Returns:
            Scalar, nats of all scored tokens over the frames of one clip; `optimizer_step` scales its gradient.
        """
        stages = self.stages_of(batch)
        mask = self.draw_mask(batch["noise"])  # [B, T]
        text, text_mask = self.text(batch["text"])
        keep_condition = batch["noise"][:, CONDITION] >= self.cfg_dropout
        text_mask = text_mask & keep_condition.to(text_mask.device, non_blocking=True)[:, None]
        with_text = [
            clip for clip, keep in enumerate(keep_condition.tolist()) if keep and batch["text"][clip]
        ]
        self.trained_batch = TrainedBatch(stages, mask & batch["valid"], with_text, text.shape[1])
        run_all_stages = self.stage_sampling == "stratified" and is_sharded(self.lm)
        predictions = predict_masked(
            self.lm,
            batch["tokens"],
            mask,
            batch["valid"],
            stages,
            text,
            text_mask,
            with_text,
            run_all_stages,
        )
        sums = self.sum_losses(predictions)
        step_sums = torch.stack([sums.nats, sums.counts])
        self._sums = step_sums if self._sums is None else self._sums + step_sums
        return sums.total / mask.shape[-1]

    def sum_losses(self, predictions: Iterator[StagePrediction]) -> LossSums:
        """Sum the cross-entropy of a micro-batch by codebook; override it to try another loss.

        The gradient of a step is that of `total`, summed over its micro-batches and ranks and divided by the sum of
        `counts`. Logged losses are `nats` by `counts`. Iterate over all predictions: each runs a part of the model.
        """
        return sum_losses(predictions, self.codec.n_q, self.device)

    def on_train_start(self) -> None:
        self._sums = None  # of an accumulation that an earlier run did not finish

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step with the gradient of the mean loss over all scored tokens of all ranks and micro-batches.

        The gradients are scaled within the closure: before clipping and callbacks look at them, and before AMP
        unscales (the two scalings commute). See `gradient_scale`.
        """

        def differentiate() -> Any:
            loss = optimizer_closure() if optimizer_closure is not None else None
            self._complete_gradients()
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, differentiate)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the trainer is configured, also with a fused optimizer under bf16-mixed.

        Lightning refuses fused optimizers in any mixed precision, since they undo AMP's loss scale after the clipping.
        bfloat16 has no loss scale.
        """
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or GradClipAlgorithmType.NORM)
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val, algorithm)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def _complete_gradients(self) -> None:
        assert self._sums is not None
        sums = self.trainer.strategy.reduce(self._sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        self._sums = None
        nats, counts = sums  # [K] each
        count = counts.sum().clamp(min=1)
        micro_batches = self.trainer.world_size * self.trainer.accumulate_grad_batches
        frames = self.codec.frames(self.segment_duration)
        self.mean_scale, scale = gradient_scale(count, frames, micro_batches)
        gradients = [local_part(p.grad) for p in self.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, scale)
        self.log("train/loss", nats.sum() / count, prog_bar=True, batch_size=1)
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            for k, scored in enumerate(counts.tolist()):
                if scored:
                    self.log(f"train/loss_codebook_{k}", nats[k] / scored, batch_size=1)

    def stages_of(self, batch: TokenBatch) -> list[int]:
        """Return the codebook that each clip trains, B numbers."""
        if self.stage_sampling == "stratified":
            return stratified_stages(batch["slot"], self.stage_weights).tolist()
        return [draw_stage(self.seed, self.global_step, self.stage_weights)] * len(batch["text"])

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Measure every codebook, on the same masks in each validation."""
        mask = self.draw_mask(batch["noise"])
        rate = mask.float().mean(dim=-1).to(self.device, non_blocking=True)
        text, text_mask = self.text(batch["text"])
        for k in range(self.codec.n_q):
            stages = [k] * len(batch["text"])
            (prediction,) = predict_masked(
                self.lm, batch["tokens"], mask, batch["valid"], stages, text, text_mask
            )
            self.validation_metrics.update(prediction, rate)

    def on_validation_epoch_end(self) -> None:
        """Log loss, perplexity and accuracy by codebook, then sample the fixed prompts."""
        self._log_validation("val")
        wanted = self.sample_prompts and not self.trainer.sanity_checking
        if wanted:
            began = time.monotonic()
            with self.trainer.precision_plugin.forward_context():
                self.sampled_tokens = self._sample_prompts()
            self.sampling_seconds = time.monotonic() - began

    def _sample_prompts(self) -> Tensor:
        """Generate the fixed prompts, int64 [prompts, K, T]; ranks make equal shares, and each gets all."""
        prompts, ranks = self.sample_prompts, self.trainer.world_size
        share = range(self.global_rank, -(-len(prompts) // ranks) * ranks, ranks)
        indices = [min(index, len(prompts) - 1) for index in share]  # the last one fills the shares up
        tokens = self.sample([prompts[index] for index in indices], self.seed, indices)
        if ranks == 1:
            return tokens
        gathered = self.all_gather(tokens)  # [ranks, share, K, T]
        assert isinstance(gathered, Tensor)
        return gathered.transpose(0, 1).flatten(0, 1)[: len(prompts)]

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self._log_validation("test")

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Generate a clip for each caption, int64 [B, K, T]; a clip's index is its slot."""
        return self.sample(batch["text"], self.seed, batch["slot"].tolist())

    def sample(self, texts: Sequence[str | None], seed: int, indices: Sequence[int] | None = None) -> Tensor:
        """Generate clips of `segment_duration` with the module's decoding settings, int64 [B, K, T].

        A clip depends on (weights, caption, seed, index) alone, see `Magnet.generate`; the indices are 0..B-1 when None.
        """
        clips = list(zip(texts, range(len(texts)) if indices is None else indices, strict=True))
        size = 1 if self.device.type == "cpu" else len(clips)

        def make(batch: Sequence[tuple[str | None, int]]) -> Tensor:
            return self._sample([text for text, _ in batch], seed, [index for _, index in batch])

        # Ranks that share the weights run the model together, so none changes its batches alone.
        least = size if is_sharded(self.lm) else 1
        return torch.cat(list(FittingBatches(size, "clips", least=least).run(clips, make)))

    def _sample(self, texts: Sequence[str | None], seed: int, indices: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            text, text_mask = self.text(texts)
        return generate_tokens(
            GuidedLogits(self.lm, text, text_mask, hide_padding=True),
            (len(texts), self.codec.n_q, self.codec.frames(self.segment_duration)),
            self.decoding,
            card=self.codec.card,
            span_len=self.lm.span_len,
            generator=clip_generators(seed, indices, self.device),
            device=self.device,
        )

    def draw_mask(self, noise: Tensor) -> Tensor:
        """Draw the masked frames of each clip's codebook, bool [B, T]; override it to try other masks.

        `noise`, float [B, 2 + T] of the batch, is the only source of randomness, so masks depend on (seed, slot) alone.
        """
        return span_mask(mask_rate(noise[:, SCHEDULE]), noise[:, SPANS:], self.lm.span_len)

    def _log_validation(self, prefix: str) -> None:
        for name, value in self.validation_metrics.compute().items():
            self.log(f"{prefix}/{name}", value, prog_bar=name == "loss")
        self.validation_metrics.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer and the learning-rate schedule, which advances each optimizer step."""
        if self.trainer.max_steps < 1:
            raise UserError("the learning-rate schedule needs the length of the run; set trainer.max_steps.")
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        try:
            optimizer = self._build_optimizer(named)
        except ValueError as error:
            raise UserError(
                f"model.optimizer cannot be built from its settings ({first_line(error)}); correct them."
            ) from error
        for name, value in optimizer.defaults.items():
            values = value if isinstance(value, (tuple, list)) else [value]
            numbers = [number for number in values if isinstance(number, float)]
            if any(map(math.isnan, numbers)) or (name in _FINITE and any(map(math.isinf, numbers))):
                raise UserError(f"model.optimizer.{name} is {value}; give a finite number.")
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled and self.trainer.gradient_clip_val and optimizer.defaults.get("fused"):
            raise UserError(
                "a fused optimizer cannot clip gradients at trainer.precision 16-mixed; use bf16-mixed, or set "
                "model.optimizer.init_args.fused to false."
            )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._build_schedule(optimizer), "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model, as primitives; see `magnet_train.checkpoints.bundle` for all keys."""
        settings = settings_record(
            self.lm.config, self.text.spec(), self.codec, self.decoding, self.segment_duration
        )
        checkpoint[KEY] = {"format": FORMAT, **settings, **self.origin}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint holds this model and codec; lengths that were not given are those of the checkpoint.

        Raises:
            UserError: The checkpoint is not ours, or has another codec or model.
        """
        self.require_same_model(checkpoint, loaded_checkpoint(self))

    def require_same_model(self, checkpoint: Mapping[str, Any], where: str) -> None:
        """Check the content of the checkpoint `where`; raises as `on_load_checkpoint`."""
        stored = checkpoint.get(KEY)
        if stored is None:
            raise UserError(f"{where} was not written by magnet-train; name one that `fit` saved.")
        CodecInfo.from_dict(stored["codec"]).require_same_tokens(self.codec, where, "the data")
        self.origin = {name: stored[name] for name in ORIGIN if name in stored} | self.origin
        theirs = {**LEFT_OUT, **stored["lm"]}
        self.lm.set_lengths(theirs["span_len"], theirs["subcodes_context"])
        for name, now in {**LEFT_OUT, **self.lm.config}.items():
            then = theirs.get(name)
            if then != now:
                raise UserError(
                    f"{where} has a model with {name} {then} and this run has model.lm.{name} {now}; give the same config."
                )
