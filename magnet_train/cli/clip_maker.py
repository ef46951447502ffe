"""Make and write the clips of `generate`: each a record of results.jsonl, and the audio file that it names.

Shapes: audio float [channels, samples].
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magnet_train.cli.clip_folder import Record
from magnet_train.cli.console import count
from magnet_train.cli.generate_request import GenerateRequest
from magnet_train.errors import UserError, cannot_read

if TYPE_CHECKING:
    from torch import Tensor

    from magnet_train.decoding import DecodingConfig
    from magnet_train.pipeline.file_edit import FileEdit
    from magnet_train.pipeline.magnet import Magnet

TOLERANCE = 0.05  # LU below the target that are not reported


class ClipMaker:
    """Makes and writes clips as requested; raises `UserError` for a recording or rescorer that cannot be read."""

    def __init__(self, magnet: Magnet, request: GenerateRequest, decoding: DecodingConfig) -> None:
        from magnet_train.models.precision import dtype_name

        self._magnet, self._request = magnet, request
        self.precision = dtype_name(magnet.dtype)
        self._settings: dict[str, Any] = {"decoding": decoding}
        if request.rescorer is not None:
            from magnet_train.pipeline.musicgen import MusicgenRescorer

            self._settings["rescorer"] = MusicgenRescorer.from_pretrained(request.rescorer, magnet.device)
        # on a CPU one by one, so that each is saved as soon as it is done
        self.batch_size = 1 if magnet.device.type == "cpu" else request.batch_size
        self.edits = _read_edits(magnet, request)
        # Of what the clips depend on and no record holds: weights, recording, length, device.
        self._digest = digest = hashlib.sha256(magnet.weights_sha256().encode())
        digest.update(json.dumps([request.seconds, magnet.device.type]).encode())
        if not self.edits:
            prompt = _read_prompt(magnet, request)
            self._settings |= {"seconds": request.seconds, "loop": request.loop, "prompt": prompt}
            if request.bars is not None:
                self._settings |= {"bars": request.bars, "bpm": request.bpm}
            if prompt is not None:
                digest.update(prompt.numpy().tobytes())
        self._quieter: list[float] = []  # LUFS of clips whose peaks do not allow the requested loudness

    def fingerprint(self, recording: str | None) -> str:
        """Return a hash of the model and of the recording, a key of `edits`, that a clip is made from."""
        digest = self._digest.copy()
        if recording is not None:
            with open(recording, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:16]

    def suffix(self, recording: str | None) -> str:
        """Return the suffix of a clip's file; `recording` is a key of `edits`."""
        return (
            f".{self._request.format or 'wav'}" if recording is None else self.edits[recording].format.suffix
        )

    def make(self, batch: list[Record], progress: Callable[[int, int], None]) -> list[Tensor]:
        """Make the clips of some records; `write` puts those of an edit into its region."""
        from magnet_train.decoding.generate import part_of

        clips: list[Tensor] = []
        parts = [list(part) for _, part in groupby(batch, key=lambda record: record.get("edit"))]
        for number, records in enumerate(parts):
            edit = self.edits.get(records[0].get("edit", ""))
            make = self._magnet.generate if edit is None else edit.make
            seen = part_of(progress, number, len(parts))
            texts = [record["text"] for record in records]
            clips += make(texts, progress=seen, **self._settings, **_own_settings(records))
        return clips

    def seconds(self, record: Record, clip: Tensor) -> float:
        """Return the length of a clip as it is written."""
        edit = self.edits.get(record.get("edit", ""))
        return clip.shape[-1] / self._magnet.sample_rate if edit is None else edit.seconds

    def write(self, path: Path, record: Record, audio: Tensor) -> None:
        """Write what `make` made for a record, [channels, samples]."""
        from magnet_train.audio import write_audio

        if edit := self.edits.get(record.get("edit", "")):
            edit.write(path, audio)
            return
        target = self._request.loudness
        reached = write_audio(path, audio, self._magnet.sample_rate, target)
        if target is not None and reached is not None and reached < target - TOLERANCE:
            self._quieter.append(reached)

    def notes(self) -> Iterator[str]:
        """Yield remarks on the written clips: loudness not reached, lengths of bars, what an edit kept."""
        if self._quieter:
            yield (
                f"{count(len(self._quieter), 'clip')} stayed below {self._request.loudness:g} LUFS (the lowest at "
                f"{min(self._quieter):.1f}), so that no peak exceeds -1 dB of full scale"
            )
        if self._request.bars is not None and self._request.bpm is not None:
            yield _describe_bars(self._magnet, self._request.bars, self._request.bpm)
        if self.edits:
            kinds = sorted({str(edit.format) for edit in self.edits.values()})
            yield f"outside the region every sample is the recording's ({'; '.join(kinds)})"
        if any(edit.mono_in_stereo for edit in self.edits.values()):
            yield "the model is mono: in a stereo recording both channels of the region have the same sound"


def _own_settings(records: list[Record]) -> dict[str, Any]:
    """Return the arguments of `Magnet.generate` in which the clips of a batch can differ."""
    seeds, indices = [record["seed"] for record in records], [record["index"] for record in records]
    own: dict[str, Any] = {"seed": seeds, "first_index": indices}
    if len(set(seeds)) == 1 and indices == list(range(indices[0], indices[0] + len(indices))):
        own = {"seed": seeds[0], "first_index": indices[0]}
    negative = [record.get("negative") for record in records]
    return own | {"negative": negative} if any(negative) else own


def _read_edits(magnet: Magnet, request: GenerateRequest) -> dict[str, FileEdit]:
    """Check the recordings to --edit, one or those of a folder, and return them by path."""
    if request.edit is None or request.region is None:
        return {}
    from magnet_train.pipeline.file_edit import FileEdit

    paths = [request.edit]
    if request.edit.is_dir():
        from datamodules.tokenize.readers.folders import readable_suffixes

        suffixes = readable_suffixes()
        try:
            found = sorted(path for path in request.edit.iterdir() if path.suffix.lower() in suffixes)
        except OSError as error:
            raise cannot_read(request.edit, error) from error
        paths = [path for path in found if path.is_file() and not path.name.startswith(".")]
        if not paths:
            raise UserError(f"--edit {request.edit} holds no audio files; give a folder of recordings.")
    return {str(path): FileEdit(magnet, path, request.region, request.format) for path in paths}


def _read_prompt(magnet: Magnet, request: GenerateRequest) -> Tensor | None:
    """Read --prompt up to a second beyond the end of the clip: a small file may hold days of silence.

    A prompt of that length is still refused for leaving nothing to generate.
    """
    import torch

    from magnet_train.audio import AudioStream
    from magnet_train.checkpoints.bundle import LONGEST_CLIP
    from magnet_train.pipeline.inputs import as_bars

    if request.prompt is None:
        return None
    seconds = magnet.segment_duration if request.seconds is None else request.seconds
    if request.bars is not None:
        seconds = as_bars(request.bars, request.bpm)
    end = 1 + (seconds if 0 < seconds <= LONGEST_CLIP else 0)  # Magnet refuses the others
    stream = AudioStream(request.prompt, magnet.sample_rate, magnet.codec.channels, end=end)
    audio = torch.cat(list(stream), dim=-1)
    if stream.shortfall is not None:
        warnings.warn(f"{request.prompt}: {stream.shortfall}", stacklevel=2)
    return audio


def _describe_bars(magnet: Magnet, bars: int, bpm: float) -> str:
    """Say how long a loop of bars is, and how far it was stretched."""
    from magnet_train.codecs.chunked import samples_per_frame
    from magnet_train.pipeline.inputs import as_bars

    seconds = as_bars(bars, bpm)
    samples = round(seconds * magnet.sample_rate)
    made = round(seconds * magnet.codec.frame_rate) * samples_per_frame(magnet.codec)
    cents = -1200 * math.log2(samples / made)
    shift = f", for which the pitch changed by {cents:+.1f} cents" if samples != made else ""
    return f"{count(bars, 'bar')} at {bpm:g} bpm are {samples:,} samples of {magnet.sample_rate:,} Hz{shift}"
