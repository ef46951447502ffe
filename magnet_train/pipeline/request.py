"""A request for clips, from the arguments of `Magnet` to tokens.

Shapes: B clips, K codebooks, T frames of a clip, P frames of a prompt; tokens int64 [B, K, T].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from magnet_train.codecs.chunked import encode_blocks
from magnet_train.decoding import (
    DecodingConfig,
    LogitsAtFrames,
    Progress,
    Rescorer,
    clip_generators,
    generate_tokens,
)
from magnet_train.decoding.editing import ROUNDING
from magnet_train.decoding.generate import given_tokens
from magnet_train.decoding.sliding_window import close_loop, continue_tokens
from magnet_train.errors import UserError
from magnet_train.models import GuidedLogits
from magnet_train.pipeline import inputs
from magnet_train.pipeline.parts import ModelParts

if TYPE_CHECKING:
    from magnet_train.pipeline.musicgen import RescoringModel


@dataclass(frozen=True)
class ClipRequest:
    """The arguments of `Magnet.generate_tokens`; see there."""

    texts: Sequence[str | None]
    seconds: float
    seed: int | Sequence[int] | None  # None takes torch's global generator
    decoding: DecodingConfig
    progress: Progress | None
    rescorer: RescoringModel | None
    first_index: int | Sequence[int]
    prompt: Tensor | None = None
    keep: Tensor | None = None
    loop: bool = False
    negative: str | Sequence[str | None] | None = None
    as_reference: bool = False  # make the batch at once, with the padding after shorter captions visible

    def checked(self, model: ModelParts) -> ClipRequest:
        """Return the request with each argument in its type.

        Raises:
            UserError: An argument has the wrong type, is out of range or does not fit the model.
        """
        seconds, texts = inputs.as_seconds(self.seconds), inputs.as_captions(self.texts)
        clips = len(texts)
        seed = None if self.seed is None else inputs.as_numbers(self.seed, "seed", clips)
        index = inputs.as_numbers(self.first_index, "first_index", clips)
        if not isinstance(self.first_index, Sequence):
            index = [first + row for row, first in enumerate(index)]
        if not isinstance(self.decoding, DecodingConfig):
            raise UserError(f"decoding is {self.decoding!r}; give a DecodingConfig.")
        prompt = None if self.prompt is None else inputs.as_tokens(self.prompt, len(texts), model.lm.n_q)
        keep = None if self.keep is None else inputs.as_mask(self.keep)
        kept = 0 if prompt is None or not (keep is None or bool(keep.all())) else prompt.shape[-1]
        if kept and kept == model.bundle.codec.frames(seconds):
            raise UserError("the prompt is as long as the clip, which leaves nothing to make; shorten it.")
        decoding = self.decoding.for_codec(model.lm.n_q, model.lm.streams)
        strongest = max(self.decoding.max_cfg_coef, self.decoding.min_cfg_coef)
        negative = inputs.as_negative(self.negative, texts, strongest)
        given = {"texts": texts, "seconds": seconds, "prompt": prompt, "keep": keep, "negative": negative}
        return replace(self, decoding=decoding, seed=seed, first_index=index, **given)  # type: ignore[arg-type]

    def clip(self, row: int, progress: Progress | None) -> ClipRequest:
        """Return the request for clip number `row` of a checked request alone."""

        def part(values: Any) -> Any:
            return None if values is None else values[row : row + 1]

        return replace(
            self,
            texts=[self.texts[row]],
            seed=part(self.seed),
            first_index=part(self.first_index),
            negative=part(self.negative),
            prompt=part(self.prompt),
            keep=part(self.keep),
            progress=progress,
        )


def encode_prompt(model: ModelParts, audio: object, request: ClipRequest) -> Tensor:
    """Encode audio [channels, samples] or [B, channels, samples] as the prompt of a checked request, int64 [B, K, P].

    Raises:
        UserError: The audio has the wrong type or shape, is shorter than a frame, or as long as the clip.
    """
    codec, clips, seconds = model.bundle.codec, len(request.texts), request.seconds
    prompt = inputs.as_audio(audio, codec.channels, "prompt", 3)
    prompt = prompt if prompt.dim() == 3 else prompt[None]
    if prompt.shape[0] not in (1, clips):
        raise UserError(
            f"the prompt's shape {list(prompt.shape)} should be [{clips}, {codec.channels}, samples], or the same "
            "without the number of clips."
        )
    length = prompt.shape[-1] / codec.sample_rate
    if length < 1 / codec.frame_rate:
        raise UserError(
            f"the prompt of {length:g} s is shorter than one frame of {1 / codec.frame_rate:g} s; give a longer one."
        )
    # `Codec.encode` rounds the number of frames up.
    if math.ceil(length * codec.frame_rate - ROUNDING) >= codec.frames(seconds):
        raise UserError(
            f"the prompt lasts {length:g} s and the clip {seconds:g} s, which leaves nothing to make; shorten the "
            "prompt or ask for more seconds."
        )
    tokens = torch.stack([encode_blocks(model.codec, [clip]) for clip in prompt])
    return tokens.expand(clips, -1, -1)


def make_tokens(model: ModelParts, request: ClipRequest) -> Tensor:
    """Make the tokens of a checked request, int64 [B, K, T].

    On a CPU clips are made one by one, so that each is the same in any batch: the last bits of a row of a matrix
    product depend on the number of rows. That takes a model of 128 dimensions twice the time; larger ones were not
    measured.
    """
    if request.as_reference or model.device.type != "cpu":
        return _make_batch(model, request)
    steps = _StepsOfClips(request.progress, len(request.texts))
    rows = range(len(request.texts))
    return torch.cat([_make_batch(model, request.clip(row, steps.of(row))) for row in rows])


def _make_batch(model: ModelParts, request: ClipRequest) -> Tensor:
    lm, codec, decoding = model.lm, model.bundle.codec, request.decoding
    shape = (len(request.texts), lm.n_q, codec.frames(request.seconds))
    window = codec.frames(model.bundle.segment_duration)
    _check_window(model, request, shape[2] > window)
    fill = partial(
        generate_tokens,
        guided_logits(model, request.texts, request.negative, padding=request.as_reference),
        (*shape[:2], min(shape[2], window)),
        decoding,
        card=lm.card,
        span_len=lm.span_len,
        rescorer=_rescorer(model, request),
        generator=_generators(model, request),
        device=model.device,
    )
    prompt, keep = request.prompt, request.keep
    if shape[2] <= window:
        tokens = fill(prompt=prompt, keep=keep, progress=request.progress)
    else:
        given, _ = given_tokens(prompt, None, shape, lm.card, model.device)
        length = 0 if prompt is None else prompt.shape[-1]
        tokens = continue_tokens(given, length, window, fill, partial(_features, model), request.progress)
    if not request.loop:
        return tokens
    _, stays = given_tokens(prompt, keep, shape, lm.card, model.device)
    return close_loop(tokens, stays, window, 2 * lm.span_len, fill, partial(_features, model))


def _check_window(model: ModelParts, request: ClipRequest, too_long: bool) -> None:
    """Raise `UserError` for loops in parity mode, and for a long clip that can only be made in one window."""
    parity = request.decoding.parity
    if request.loop and parity:
        raise UserError(
            "parity mode follows the reference implementation, which has no loops; leave one of the two out."
        )
    if too_long and (parity or request.keep is not None):
        what, longest = "in parity mode" if parity else "with `keep`", f"{model.bundle.segment_duration:g} s"
        raise UserError(
            f"a clip {what} cannot be longer than the model's window of {longest}, but {request.seconds:g} s were "
            f"requested; request at most {longest}."
        )


def _features(model: ModelParts, tokens: Tensor) -> Tensor:
    """Return the sum of the codebooks' embeddings, float [B, D, T]: similar for frames that sound alike."""
    with torch.no_grad():
        return model.lm.embed(tokens).float().transpose(1, 2)


def guided_logits(
    model: ModelParts,
    texts: Sequence[str | None],
    negative: Sequence[str | None] | None = None,
    padding: bool = False,
) -> LogitsAtFrames:
    """Return the `logits_fn` of captions, each encoded alone, or with the `padding` of its batch visible."""
    if negative is not None and not any(negative):
        negative = None
    with torch.no_grad():
        hidden, mask = model.text([*texts, *(negative or ())])
    if not bool(mask.any()):
        return GuidedLogits(model.lm, None)
    return GuidedLogits(model.lm, hidden, mask, hide_padding=not padding, negative=negative is not None)


def _generators(model: ModelParts, request: ClipRequest) -> list[torch.Generator] | None:
    if request.seed is None:
        return None
    draws = zip(request.seed, request.first_index, strict=True)  # type: ignore[arg-type]
    return [clip_generators(seed, [index], model.device)[0] for seed, index in draws]


def _rescorer(model: ModelParts, request: ClipRequest) -> Rescorer | None:
    if request.rescorer is None:
        return None
    request.rescorer.require_same_tokens(model.bundle.codec)
    if request.decoding.rescorer_weight == 0:
        return None
    return request.rescorer.for_texts(request.texts)


class _StepsOfClips:
    """Adds up the steps of clips that are made one after the other; their numbers of steps may differ."""

    def __init__(self, progress: Progress | None, clips: int) -> None:
        self.progress, self.clips = progress, clips
        self.taken = 0

    def of(self, row: int) -> Progress | None:
        """Return the progress callable of clip number `row`."""
        progress, before = self.progress, self.taken
        if progress is None:
            return None

        def report(done: int, total: int) -> None:
            self.taken = before + done
            progress(self.taken, before + total * (self.clips - row))

        return report
