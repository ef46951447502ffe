"""Read and write audio files, whole or in blocks. The only file that imports torchaudio (for resampling).

Shapes: audio float32 [channels, samples], full scale -1..1.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import struct
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from magnet_train.errors import UserError, cannot_read
from magnet_train.whole_files import whole_file

# Sample rates whose ratio has larger terms get the nearest ratio with smaller ones: the filter bank has
# target x source taps, gigabytes for 22051 -> 32000 Hz. The pitch moves by less than a cent.
_LARGEST_RATIO_TERM = 2000
_LOWEST_RATE = 100  # Hz; below it the ratio would round to zero, and nothing could be heard
_BLOCK_SECONDS = 10.0
_STEPS_16_BIT = 2**15  # on each side of zero
# torchaudio's defaults, named since the overlap of blocks follows from them
_FILTER_WIDTH = 6  # zero crossings of the sinc on each side
_ROLLOFF = 0.99  # of the lower Nyquist frequency


class AudioStream:
    """Read a wav, flac, ogg or mp3 file as a model wants it, a block at a time: memory does not grow with it.

    Joined, the blocks are what `read_audio` returns.

    Args:
        path: The file; any rate, any number of channels.
        sample_rate: Rate of the answer (Hz).
        channels: 1 (the mean of all) or 2 (mono doubled; of more than two, the first: front left and right).
        start: Seconds to leave out at the beginning.
        end: Where to stop, in seconds; None, or what lies behind the end, reads to the end.

    Raises:
        UserError: While iterating: the file is absent, is no audio, has no samples, samples that are no
            numbers or a rate that is none of audio.
    """

    def __init__(
        self, path: str | Path, sample_rate: int, channels: int, start: float = 0.0, end: float | None = None
    ) -> None:
        if channels not in (1, 2):
            raise ValueError(f"channels must be 1 or 2, got {channels}")
        self.path, self.sample_rate, self.channels = path, sample_rate, channels
        self.start, self.end = start, end
        self._digest = hashlib.blake2b(digest_size=16)

    def __iter__(self) -> Iterator[Tensor]:
        """Yield float32 [channels, samples], about ten seconds at a time."""
        with _open(self.path) as file:
            yield from resample_blocks(self._blocks(file), file.samplerate, self.sample_rate)

    @property
    def digest(self) -> str:
        """Hash of rate, channels and samples read so far, as decoded: the same for a wav and its flac."""
        return self._digest.hexdigest()

    def _blocks(self, file: soundfile.SoundFile) -> Iterator[Tensor]:
        """Yield what the file holds at its own rate, float32 [channels, samples]."""
        left = self._seek(file)
        self._digest.update(f"{file.samplerate} {file.channels}".encode())
        empty = True
        while left > 0:
            samples = file.read(
                min(left, round(_BLOCK_SECONDS * file.samplerate)), dtype="float32", always_2d=True
            )
            if not len(samples):  # the header promised more
                break
            left -= len(samples)
            empty = False
            self._digest.update(samples.data)
            block = torch.from_numpy(samples.T.copy())
            if not block.isfinite().all():
                raise UserError(f"{self.path} holds samples that are not numbers; render it again.")
            yield _with_channels(block, self.channels)
        if empty:
            raise UserError(
                f"{self.path} holds no audio samples{self._where()}; remove it or record it again."
            )

    def _seek(self, file: soundfile.SoundFile) -> int:
        """Go to the start of the segment and return how many samples to read from there."""
        total: int = file.frames
        rate: int = file.samplerate
        first = round(min(total, self.start * rate))
        last = total if self.end is None else round(min(total, self.end * rate))
        if first:
            file.seek(first)
        return last - first

    def _where(self) -> str:
        return f" after {self.start:g} s" if self.start else ""


def audio_seconds(path: str | Path) -> float:
    """Say how long an audio file is, by its header.

    Raises:
        UserError: The file is absent, is no audio or has a rate that is none of audio.
    """
    with _open(path) as file:
        return float(file.frames / file.samplerate)


def read_audio(path: str | Path, sample_rate: int, channels: int) -> Tensor:
    """Read a wav, flac, ogg or mp3 file as a model wants it.

    Args:
        path: The file; any rate, any number of channels.
        sample_rate: Rate of the answer (Hz).
        channels: 1 (the mean of all) or 2 (mono doubled; of more than two, the first: front left and right).

    Returns:
        float32 [channels, samples].

    Raises:
        UserError: The file is absent, is no audio, has no samples, samples that are no numbers or a rate
            that is none of audio.
    """
    return torch.cat(list(AudioStream(path, sample_rate, channels)), dim=-1)


def resample(audio: Tensor, source_rate: int, target_rate: int) -> Tensor:
    """Change the rate of audio.

    Args:
        audio: float32 [..., samples].
        source_rate: Rate of `audio` (Hz).
        target_rate: Rate of the answer (Hz).

    Returns:
        float32 [..., samples * target_rate / source_rate, rounded up].
    """
    return audio if source_rate == target_rate else _windowed_sinc(audio, _ratio(source_rate, target_rate))


def resample_blocks(blocks: Iterable[Tensor], source_rate: int, target_rate: int) -> Iterator[Tensor]:
    """Resample audio that comes in blocks; joined, the answer is what `resample` makes of the whole.

    The filter turns each group of `ratio.numerator` samples into `ratio.denominator` and looks a little to
    both sides. So a group is given out once what follows it is there, and some groups before it are kept.

    Args:
        blocks: float32 [channels, samples], of any lengths.
        source_rate: Rate of `blocks` (Hz).
        target_rate: Rate of the answer (Hz).
    """
    if source_rate == target_rate:
        yield from blocks
        return
    ratio = _ratio(source_rate, target_rate)
    group, resampled_group = ratio.numerator, ratio.denominator
    reach = math.ceil(_FILTER_WIDTH * group / (min(group, resampled_group) * _ROLLOFF))  # samples
    margin = -(-reach // group) + 1  # groups
    held: Tensor | None = None
    given = 0  # groups of `held` that were given out
    for block in blocks:
        held = block if held is None else torch.cat([held, block], dim=-1)
        ready = held.shape[-1] // group - margin
        if ready <= given:
            continue
        yield _windowed_sinc(held, ratio)[:, given * resampled_group : ready * resampled_group]
        dropped = max(0, ready - margin)
        held, given = held[:, dropped * group :].clone(), ready - dropped
    if held is not None:
        yield _windowed_sinc(held, ratio)[:, given * resampled_group :]


def _ratio(source_rate: int, target_rate: int) -> Fraction:
    return Fraction(source_rate, target_rate).limit_denominator(_LARGEST_RATIO_TERM)


def _windowed_sinc(audio: Tensor, ratio: Fraction) -> Tensor:
    from torchaudio.functional import resample as windowed_sinc

    resampled: Tensor = windowed_sinc(
        audio, ratio.numerator, ratio.denominator, lowpass_filter_width=_FILTER_WIDTH, rolloff=_ROLLOFF
    )
    return resampled


def write_audio(path: str | Path, audio: Tensor, sample_rate: int) -> None:
    """Write a 16-bit WAV file, whole or not at all.

    Audio beyond full scale is turned down as a whole, since clipping would be heard.

    Args:
        path: The file; folders above it are made.
        audio: float [channels, samples], channels 1 or 2.
        sample_rate: Its rate (Hz).

    Raises:
        UserError: There is no room, or the folder cannot be written to.
        ValueError: Samples are not numbers, or the shape is not [channels, samples].
    """
    if audio.ndim != 2 or not audio.isfinite().all():
        raise ValueError(
            f"audio for {path} must be finite [channels, samples], got shape {list(audio.shape)}"
        )
    path = Path(path)
    audio = audio.detach().float().cpu()
    peak = float(audio.abs().max()) if audio.numel() else 0.0
    samples = (audio / max(peak, 1.0)).T.numpy()  # [samples, channels]
    with whole_file(path) as file:
        file.write(encode_wav(samples, sample_rate))


def encode_wav(samples: npt.NDArray[np.float32 | np.int16], sample_rate: int) -> bytes:
    """Encode float32 or int16 [samples] or [samples, channels] as a 16-bit WAV.

    Not straight into a file: libsndfile would not say why it could not write to a disk.
    """
    encoded = io.BytesIO()
    soundfile.write(encoded, samples, sample_rate, format="WAV", subtype="PCM_16")
    return encoded.getvalue()


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """Open an audio file, and say in one sentence why that, or reading it, is not possible.

    Raises:
        UserError: It is absent, is no audio or has a rate that is none of audio.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no audio file {path}; check the path.")
    try:
        Path(path).open("rb").close()  # libsndfile would only say that there is a system error
        with soundfile.SoundFile(os.fsencode(path)) as file:  # names need not be text
            if file.samplerate < _LOWEST_RATE:
                raise UserError(
                    f"{path} says it has {file.samplerate} samples a second; correct its sample rate."
                )
            yield file
    except OSError as error:
        raise cannot_read(path, error) from error
    except (soundfile.SoundFileError, MemoryError, TypeError) as error:  # a lying header; headerless .raw
        raise UserError(
            f"cannot read {path} as audio ({_reason(error)}); convert it to wav, flac, ogg or mp3."
        ) from error


def _with_channels(audio: Tensor, channels: int) -> Tensor:
    if audio.shape[0] == channels:
        return audio
    if channels == 1:
        return audio.mean(dim=0, keepdim=True)
    return audio.expand(2, -1) if audio.shape[0] == 1 else audio[:2]


def _reason(error: Exception) -> str:
    """Return libsndfile's words without its file name and full stop."""
    return str(error).rsplit(": ", 1)[-1].rstrip(".")


def fits_16_bit(audio: Tensor) -> bool:
    """Tell whether 16 bits hold every sample exactly."""
    steps = audio * _STEPS_16_BIT
    return bool(((steps == steps.round()) & (steps >= -_STEPS_16_BIT) & (steps < _STEPS_16_BIT)).all())


def write_edit(path: str | Path, audio: Tensor, recording: Tensor, sample_rate: int) -> None:
    """Write a WAV of an edited recording, whole or not at all, in which what was not edited stays as it is.

    It has 16 bits where they hold the recording exactly, else 32-bit floats: those keep samples beyond full scale,
    where `write_audio` would turn all of it down.

    Args:
        path: The file.
        audio: float [channels, samples], the recording with a region made anew.
        recording: What it was, of that shape.
        sample_rate: Its rate (Hz).

    Raises:
        UserError: There is no room, or the folder cannot be written to.
    """
    samples = audio.detach().float().cpu().T  # [samples, channels]
    if fits_16_bit(recording):
        steps = (samples * _STEPS_16_BIT).round().clamp(-_STEPS_16_BIT, _STEPS_16_BIT - 1)
        encoded = encode_wav(steps.to(torch.int16).numpy(), sample_rate)
    else:
        encoded = _encode_float_wav(samples.contiguous().numpy(), sample_rate)
    with whole_file(Path(path)) as file:
        file.write(encoded)


def _encode_float_wav(samples: npt.NDArray[np.float32], sample_rate: int) -> bytes:
    """Encode float32 [samples, channels] as a 32-bit float WAV; libsndfile would put the time of day into it."""
    data = samples.astype("<f4").tobytes()
    channels = samples.shape[1]
    layout = struct.pack(
        "<HHIIHHH", 3, channels, sample_rate, 4 * channels * sample_rate, 4 * channels, 32, 0
    )
    chunks = [(b"fmt ", layout), (b"fact", struct.pack("<I", len(samples))), (b"data", data)]
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(chunk)) + chunk for name, chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body
