"""Description of one audio file: tempo, key, loudness and length, and the nearest tags by CLAP.

Shapes: audio float32 [channels, samples].
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from datamodules.tokenize.description import Description
from magnet_train.audio import AudioStream, audio_seconds
from magnet_train.audio.recording import Recording
from magnet_train.audio.resampling import LOUDNESS_BLOCK, integrated_loudness, ratio_of, resample
from magnet_train.audio.tempo_and_key import LEAST_CONFIDENCE, RATE, Estimate, estimate_key, estimate_tempo
from magnet_train.cli.clip_reading import MeasuredStream, Unusable
from magnet_train.cli.console import count
from magnet_train.errors import UserError
from magnet_train.evaluation.models import Clap
from magnet_train.evaluation.windows import through_windows
from magnet_train.storage.plain_text import lines_of, read_text

LONGEST = 120.0  # seconds analysed, from the middle of a file
MOST_TAGS = 5
_LOUDNESS_RATE = 48_000  # Hz, for which BS.1770 gives its filters
_BATCH = 16  # windows per call of CLAP
_MOST_BYTES = 2**20  # of a list of tags


def analyse(path: Path) -> Description | str:
    """Describe an audio file without tags, or return the reason why it is unreadable, silent or too short."""
    try:
        return _analyse(path)
    except Unusable as error:
        return str(error)
    except (UserError, OSError) as error:
        return f"unreadable: {error}"


def _analyse(path: Path) -> Description:
    found = path.stat()
    start, end = excerpt(path)
    recording = Recording(path)
    with recording.open(recording.parts[0]) as file:
        channels = min(2, file.channels)  # mono read as stereo would measure 3 LU louder
    stream = MeasuredStream(path, _LOUDNESS_RATE, channels, start, end)
    audio = torch.cat(list(stream), dim=-1)
    seconds = audio.shape[-1] / _LOUDNESS_RATE
    if stream.silence is not None:
        raise Unusable(stream.silence)
    if seconds < LOUDNESS_BLOCK:
        raise Unusable(f"too short: {seconds:.2f} s are less than {LOUDNESS_BLOCK:g} s")
    cut_off = end is None or stream.shortfall is not None
    fields = {"duration": round(start + seconds if cut_off else audio_seconds(path), 2)}
    loudness = integrated_loudness(audio, _LOUDNESS_RATE)
    if np.isfinite(loudness):
        fields["loudness"] = round(loudness, 1)
    mono = resample(audio.mean(dim=0), ratio_of(_LOUDNESS_RATE, RATE)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # librosa's, of filters longer than a short file
        estimates = {"bpm": estimate_tempo(mono), "key": estimate_key(mono)}
    description = Description(
        bytes=found.st_size,
        modified_ns=found.st_mtime_ns,
        fields=fields,
        seconds_heard=None if end is None else round(seconds, 2),
    )
    return _with_estimates(description, estimates)


def excerpt(path: Path, longest: float = LONGEST) -> tuple[float, float | None]:
    """Return start and end of the analysed part of a file (s); an end of None is that of the file."""
    seconds = audio_seconds(path)
    if seconds <= longest:
        return 0.0, None
    start = (seconds - longest) / 2
    return start, start + longest


def _with_estimates(description: Description, estimates: dict[str, Estimate | None]) -> Description:
    fields: dict[str, Any] = {}
    uncertain: dict[str, Any] = {}
    confidence: dict[str, Any] = {}
    for name, estimate in estimates.items():
        if estimate is None:
            continue
        confidence[name] = round(estimate.confidence, 3)
        value = estimate.value if isinstance(estimate.value, str) else _short(estimate.value)
        (fields if estimate.confidence >= LEAST_CONFIDENCE[name] else uncertain)[name] = value
    return replace(
        description, fields={**fields, **description.fields}, uncertain=uncertain, confidence=confidence
    )


def _short(number: float) -> float:
    """Round to a tenth; a whole number is an int, so that a caption says 120 and not 120.0."""
    rounded = round(number, 1)
    return int(rounded) if rounded.is_integer() else rounded


class Listener(Protocol):
    """A model that adds to the description of a file."""

    def has_heard(self, description: Description) -> bool:
        """Return whether a description holds this model's result."""

    def hear(self, path: Path, description: Description) -> Description:
        """Return the description with this model's result; raises `UserError` if the file cannot be read."""


class Tagger:
    """Zero-shot tagging: the tags of a list whose CLAP embeddings are nearest to that of a file.

    The confidence of a tag is its probability, a softmax over the similarities of the file's mean embedding with all
    tags, scaled as in the model's training. Tags of at least twice the probability of chance, or of 0.5, are kept.
    """

    def __init__(self, clap: Clap, tags: Sequence[str]) -> None:
        self._clap, self._tags = clap, tags
        self._texts = clap.embed_text(tags)
        self._scale = float(clap.model.logit_scale_a.detach().exp())
        self._least = min(0.5, 2 / len(tags))
        content = json.dumps([clap.origin.sha256, *tags])
        self._identity = hashlib.sha256(content.encode()).hexdigest()[:16]

    def has_heard(self, description: Description) -> bool:
        """Return whether a description holds tags of this model and list."""
        return description.tagged_with == self._identity

    def hear(self, path: Path, description: Description) -> Description:
        """Return a description with this model's tags; raises `UserError` if the file cannot be read."""
        stream = AudioStream(path, self._clap.sample_rate, 1, *excerpt(path))
        (windows,) = through_windows([stream], self._clap.embed_audio, self._clap.window_samples, _BATCH)
        if isinstance(windows, UserError):
            raise windows
        mean = windows.mean(axis=0)
        logits = self._scale * (self._texts @ (mean / np.linalg.norm(mean)))
        weights = np.exp(logits - logits.max())
        probabilities = weights / weights.sum()
        nearest = {self._tags[n]: float(probabilities[n]) for n in np.argsort(-probabilities)[:MOST_TAGS]}
        likely = [tag for tag, probability in nearest.items() if probability >= self._least]
        return replace(
            description,
            fields=_with_tags(description.fields, likely),
            uncertain=_with_tags(description.uncertain, [tag for tag in nearest if tag not in likely]),
            confidence={**description.confidence, "tags": {t: round(p, 3) for t, p in nearest.items()}},
            tagged_with=self._identity,
        )


def _with_tags(fields: Any, tags: list[str]) -> dict[str, Any]:
    others = {name: value for name, value in fields.items() if name != "tags"}
    return {**others, "tags": tags} if tags else others


def read_tags(path: Path) -> list[str]:
    """Read a list of tags, one on each line; raises `UserError` unless there are two different ones or more."""
    try:
        lines = lines_of(read_text(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(
            f"--tags {path} is unreadable ({error}); give a text file with a tag on each line."
        ) from error
    tags = list(dict.fromkeys(tag for line in lines if (tag := " ".join(line.split()))))
    if len(tags) < 2:
        raise UserError(f"--tags {path} has {count(len(tags), 'tag')}; write at least two, each on its line.")
    return tags
