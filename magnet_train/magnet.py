"""A whole model for use: text in, audio out.

Shapes: tokens int64 [B, K, T]; audio float [B, channels, samples].
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from magnet_train.checkpoints.export import save_export
from magnet_train.checkpoints.load import read_model
from magnet_train.checkpoints.stored import StoredModel, load_weights
from magnet_train.codecs import QUICKSTART, Codec, load_codec
from magnet_train.decoding import DecodingConfig, Progress, generate_tokens
from magnet_train.errors import UserError
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.text import TextEncoder, text_encoder_from_spec


class Magnet:
    """Model, text encoder and codec together.

    Args:
        stored: Settings and weights, from `from_pretrained` say.
        device: Where to compute.

    Raises:
        UserError: The weights do not fit the settings.
    """

    def __init__(self, stored: StoredModel, device: str = "cpu") -> None:
        self._stored = stored
        self.device = _device(device)
        self.decoding: DecodingConfig = stored.decoding
        self.segment_duration = stored.segment_duration
        self.lm = _build_lm(stored)
        self.text: TextEncoder = text_encoder_from_spec(stored.text, stored.text_folder)
        load_weights(self._parts(), stored.weights, stored.source)
        self.lm.eval().to(self.device)
        self.text.eval().to(self.device)
        self._codec: Codec | None = None

    @classmethod
    def from_pretrained(cls, path_or_hub_id: str | Path, device: str = "cpu", raw: bool = False) -> Self:
        """Load a model.

        Args:
            path_or_hub_id: Folder of our export, a checkpoint that `fit` saved, or a hub id.
            device: Where to compute.
            raw: For a checkpoint, take the weights without their moving average.

        Raises:
            UserError: There is nothing readable.
        """
        return cls(read_model(path_or_hub_id, raw), device)

    @property
    def codec(self) -> Codec:
        """The codec, loaded when first used.

        Raises:
            UserError: It cannot be found, or is not the one whose tokens the model speaks.
        """
        if self._codec is None:
            name = str(self._stored.codec_folder or self._stored.codec.id)
            codec = load_codec(name, device=str(self.device))
            self._stored.codec.require_same_tokens(codec.info, "the model", name)
            self._codec = codec
        return self._codec

    @property
    def sample_rate(self) -> int:
        """Samples per second of what `generate` returns (Hz)."""
        return self._stored.codec.sample_rate

    def generate(
        self,
        texts: Sequence[str | None],
        seconds: float | None = None,
        seed: int | None = None,
        decoding: DecodingConfig | None = None,
        prompt: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Make audio.

        Args:
            texts: B captions; None or "" makes a clip without one.
            seconds: Length; the model's segment_duration when None, and at most that.
            seed: Makes the result repeatable on the same device.
            decoding: Sampler settings; the model's own when None.
            prompt: Audio [channels, samples] or [B, channels, samples] at `sample_rate` to continue.
            progress: Called as progress(steps done, steps in all).

        Returns:
            float32 [B, channels, samples] on the CPU.

        Raises:
            UserError: Too long, prompt longer than the clip, or settings that do not fit.
        """
        tokens = None
        if prompt is not None:
            tokens = self._encode_prompt(
                prompt, len(texts), self.segment_duration if seconds is None else seconds
            )
        return self.codec.decode(self.generate_tokens(texts, seconds, seed, decoding, tokens, progress)).cpu()

    def generate_tokens(
        self,
        texts: Sequence[str | None],
        seconds: float | None = None,
        seed: int | None = None,
        decoding: DecodingConfig | None = None,
        prompt: Tensor | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Make tokens; as `generate`, but `prompt` is int64 [B, K, P] and so is the result, [B, K, T]."""
        seconds = self.segment_duration if seconds is None else seconds
        if not 0 < seconds <= self.segment_duration:
            raise UserError(
                f"{seconds:g} s cannot be made in one go: the model was trained on clips of "
                f"{self.segment_duration:g} s; ask for more than 0 and at most that."
            )
        if not texts or isinstance(texts, str):
            raise UserError(f"texts is {texts!r}; give a list with one caption or None for each clip.")
        with torch.inference_mode():
            hidden, mask = self.text(texts)
        guided = GuidedLogits(self.lm, hidden, mask) if bool(mask.any()) else GuidedLogits(self.lm, None)
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        return generate_tokens(
            guided,
            (len(texts), self.lm.n_q, self._stored.codec.frames(seconds)),
            decoding or self.decoding,
            card=self.lm.card,
            span_len=self.lm.span_len,
            prompt=prompt,
            generator=generator,
            progress=progress,
            device=self.device,
        )

    def _encode_prompt(self, prompt: Tensor, clips: int, seconds: float) -> Tensor:
        """Turn audio [channels, samples] or [B, channels, samples] into tokens int64 [B, K, P]."""
        codec = self._stored.codec
        prompt = prompt if prompt.dim() == 3 else prompt[None]
        if prompt.dim() != 3 or prompt.shape[0] not in (1, clips) or prompt.shape[1] != codec.channels:
            raise UserError(
                f"the prompt's shape {list(prompt.shape)} should be [{clips}, {codec.channels}, samples], or the same "
                "without the number of clips."
            )
        length = prompt.shape[-1] / codec.sample_rate
        if length < 1 / codec.frame_rate:
            raise UserError(
                f"the prompt of {length:g} s is shorter than one frame of {1 / codec.frame_rate:g} s."
            )
        if codec.frames(length) > codec.frames(seconds):
            raise UserError(
                f"the prompt lasts {length:g} s but the clip only {seconds:g} s; shorten the prompt or ask for more."
            )
        return self.codec.encode(prompt).expand(clips, -1, -1)

    def _parts(self) -> nn.ModuleDict:
        return nn.ModuleDict({"lm": self.lm, "text": self.text})

    def save_pretrained(self, folder: str | Path, licence: str = "unspecified") -> None:
        """Write an export folder that `from_pretrained` reads: self-contained unless codec or text are on the hub.

        Args:
            folder: Target; must not exist or be empty.
            licence: SPDX id or a word, for the model card.

        Raises:
            UserError: The target holds something, or cannot be written.
        """
        with tempfile.TemporaryDirectory() as scratch:
            text_folder = self._stored.text_folder
            name = self._stored.text.get("name")
            local = name is not None and name != QUICKSTART and Path(name).is_dir()
            if text_folder is None and name and (local or self.text.trainable):
                text_folder = Path(scratch)
                self.text.save(text_folder)
            codec_folder = self._stored.codec_folder
            codec = Path(self._stored.codec.id)
            if codec_folder is None and (codec.is_dir() or codec.is_absolute()):
                _ = self.codec  # refuses one that is gone or has changed since it made the tokens
                codec_folder = codec
            weights = dict(self._parts().state_dict())
            stored = replace(
                self._stored, weights=weights, codec_folder=codec_folder, text_folder=text_folder
            )
            save_export(stored, Path(folder), licence)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch raises the latter when it was built without CUDA
        raise UserError(
            f"device {name} is not there ({str(error).splitlines()[0][:80]}); try cpu."
        ) from error


def _build_lm(stored: StoredModel) -> MagnetTransformer:
    try:
        lm = MagnetTransformer(**stored.lm)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{stored.source} describes no model that can be built ({error}); export it again."
        ) from error
    codec = stored.codec
    if (lm.n_q, lm.card) != (codec.n_q, codec.card):
        raise UserError(
            f"{stored.source} has a model of {lm.n_q} codebooks of {lm.card} entries but a codec of {codec.n_q} of "
            f"{codec.card}; export it again."
        )
    return lm
