"""Decoding steps of each codebook for a quality: measured on real clips, and stored with the model.

Shapes: K codebooks, T frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from magnet_train.checkpoints.adapter import weights_sha256
from magnet_train.checkpoints.bundle import STEPS_PROFILE
from magnet_train.decoding import Progress, StepProfile
from magnet_train.decoding.generate import part_of
from magnet_train.decoding.step_profile import Quality, nats_by_passes
from magnet_train.errors import UserError
from magnet_train.pipeline.parts import ModelParts
from magnet_train.pipeline.request import guided_logits


def measure_passes(
    model: ModelParts, clips: Sequence[tuple[str | None, Tensor]], progress: Progress | None
) -> StepProfile:
    """Measure the step profile of a model and store it in its bundle; see `Magnet.measure_passes`."""
    if len(clips) < 2:
        raise UserError(f"a step profile needs 2 clips or more, not {len(clips)}; give more.")
    frames, nats = max(1, model.bundle.codec.frames(model.bundle.segment_duration)), []
    for number, (text, tokens) in enumerate(clips):
        nats.append(
            nats_by_passes(
                guided_logits(model, [text]),
                tokens[None, :, :frames].to(model.device),
                card=model.lm.card,
                first_index=number,
                progress=part_of(progress, number, len(clips)),
            )
        )
    profile = StepProfile.of(torch.cat(nats), _numbers_sha256(model.trained().state_dict()))
    facts = {**model.bundle.training, STEPS_PROFILE: profile.to_dict()}
    model.bundle = replace(model.bundle, training=facts)
    return profile


def chosen_passes(model: ModelParts, quality: Quality) -> tuple[int, ...]:
    """Return `decoding_steps` for a quality; see `Magnet.decoding_for`."""
    source, record = model.bundle.source, model.bundle.training.get(STEPS_PROFILE)
    remedy = "give --steps, or measure it with `magnet-train export --profile VAL_SHARDS`."
    if record is None:
        raise UserError(f"{source} has no measured step profile; {remedy}")
    profile = StepProfile.from_record(record, model.lm.n_q, source)
    if profile.sha256 != _numbers_sha256(model.bundle.weights):
        raise UserError(f"the step profile of {source} was measured on other weights; {remedy}")
    return profile.choose(quality)


def _numbers_sha256(weights: Mapping[str, Tensor]) -> str:
    """Hash weights as float32, the type of the model, whatever their type in the file."""
    return weights_sha256({name: tensor.float() for name, tensor in weights.items()})
