"""Edit an audio file: a region is generated at the model's rate and channels, and the rest of the file stays.

Shapes: B versions, T frames of the clip that the model sees; audio float32 [channels, samples].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magnet_train.audio import AudioStream, sample_format, write_spliced
from magnet_train.audio.resampling import ratio_of, resample
from magnet_train.checkpoints.bundle import LONGEST_CLIP
from magnet_train.codecs.chunked import samples_per_frame
from magnet_train.decoding.editing import fade_weights, plan_edit
from magnet_train.errors import UserError
from magnet_train.pipeline.inputs import as_region
from magnet_train.pipeline.magnet import Magnet

_AROUND = 1.0  # seconds read on both sides of the clip, so that it is resampled as in the whole file
_MOST_GAIN = 2.0  # of a channel relative to the mean of both


class FileEdit:
    """Regenerate a region of an audio file, which keeps its rate, channels and sample type.

    Args:
        magnet: The model.
        path: The recording, of up to a day.
        region: Start and end (s).
        container: "wav" or "flac" in place of the recording's own.

    Raises:
        UserError: The file cannot be read, or the region leaves it or is too long.
    """

    def __init__(
        self, magnet: Magnet, path: str | Path, region: tuple[float, float], container: str | None = None
    ) -> None:
        self.format = sample_format(path, container)
        self.seconds = self.format.samples / self.format.sample_rate
        if self.seconds > LONGEST_CLIP:
            raise UserError(
                f"{path} is longer than {LONGEST_CLIP:,.0f} s; cut out the part to edit, with some seconds on both sides."
            )
        self._magnet, codec = magnet, magnet.codec
        self._hop = samples_per_frame(codec)
        # Samples of the file for one of the model.
        self._ratio = ratio_of(self.format.sample_rate, codec.sample_rate)
        self._samples = math.ceil(self.format.samples / self._ratio)  # at the model's rate
        try:
            length = self._samples / codec.sample_rate
            self._edit = plan_edit(as_region(region), length, codec.frame_rate, magnet.segment_duration)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    @property
    def mono_in_stereo(self) -> bool:
        """Whether the model is mono and the file stereo, so that both channels of the region have the same sound."""
        return (self._magnet.codec.channels, self.format.channels) == (1, 2)

    def make(self, texts: Sequence[str | None], **settings: Any) -> Tensor:
        """Make B versions of the clip around the region, [B, channels, T * samples a frame] for `write`.

        `settings` are those of `Magnet.edit` from `seed` on. In a stereo file, each channel of a mono model's output
        is scaled to the level of that channel in the clip.
        """
        channels = 2 if self.mono_in_stereo else self._magnet.codec.channels
        clip = self._read(channels)
        mono = clip.mean(dim=0, keepdim=True)
        made = self._magnet.regenerate(
            mono if self.mono_in_stereo else clip, self._edit.keep, texts, **settings
        )
        if not self.mono_in_stereo:
            return made
        level = clip.square().mean(dim=-1, keepdim=True).sqrt()  # [2, 1]
        return made * (level / mono.square().mean().sqrt().clamp(min=1e-9)).clamp(max=_MOST_GAIN)

    def write(self, path: str | Path, made: Tensor) -> None:
        """Write the recording with one of the versions, [channels, T * samples a frame], in its region.

        Raises:
            UserError: The recording breaks off, or the file cannot be written.
        """
        begin, end = self._edit.clip_first * self._hop, self._edit.clip_end * self._hop
        aligned = begin - begin % self._ratio.denominator  # where samples of both rates coincide
        part = torch.nn.functional.pad(made, (begin - aligned, 0))
        if self._ratio != 1:
            part = resample(part, 1 / self._ratio)
        if len(part) != self.format.channels:
            part = part.mean(dim=0, keepdim=True).expand(self.format.channels, -1)
        first = int(aligned * self._ratio)
        place = first + torch.arange(part.shape[-1])
        region = [round(frame * self._hop * self._ratio) for frame in (self._edit.first, self._edit.end)]
        weight = fade_weights(place, region[0], region[1], self.format.sample_rate)
        weight *= (place >= math.ceil(begin * self._ratio)) & (place < math.ceil(end * self._ratio))
        write_spliced(path, self.format, part.clamp(-1, 1), first, weight)

    def _read(self, channels: int) -> Tensor:
        """Read the clip around the region at the model's rate."""
        rate, ratio = self._magnet.codec.sample_rate, self._ratio
        begin = self._edit.clip_first * self._hop
        end = min(self._edit.clip_end * self._hop, self._samples)
        lead = (
            max(0, begin - round(_AROUND * rate)) // ratio.denominator
        )  # where samples of both rates coincide
        start = lead * ratio.numerator / self.format.sample_rate
        stop = float(Fraction(end) * ratio / self.format.sample_rate) + _AROUND
        stream = AudioStream(self.format.path, rate, channels, start, stop)
        audio = torch.cat(list(stream), dim=-1)[:, begin - lead * ratio.denominator :][:, : end - begin]
        if (missing := end - begin - audio.shape[-1]) > _AROUND / 10 * rate:
            raise UserError(
                f"{self.format.path} breaks off before the end of the region; save its readable part as another file."
            )
        return torch.nn.functional.pad(audio, (0, missing))
