"""Run the models of `evaluate` on its clips and compute each measure that can be computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console

from magnet_train.cli.console import ProgressBar, count
from magnet_train.cli.evaluation.clips import EvaluatedClip, Pair, Side
from magnet_train.errors import UserError
from magnet_train.evaluation import (
    AudioTagger,
    Clap,
    ClapScore,
    Fad,
    PairedDivergence,
    as_noise,
    measure_clap_score,
    measure_divergence,
    measure_fad,
    through_windows,
)
from magnet_train.evaluation.measures import Floats

FAD, CLAP_SCORE, KL = "fad_clap", "clap_score", "kl_ast"
_T = TypeVar("_T")


@dataclass
class EvaluationResult:
    """What was compared, how, and the measures that could be computed."""

    generated: Side
    reference: Side
    matched: list[Pair]  # before any file was opened
    device: str
    batch_size: int  # windows per call of a model
    seed: int  # of noise, random splits and intervals
    clap: Clap | None = None
    tagger: AudioTagger | None = None
    fad: Fad | None = None
    clap_score: ClapScore | None = None
    clap_score_real: ClapScore | None = None  # of the reference with its own captions
    kl: PairedDivergence | None = None
    not_computed: dict[str, str] = field(default_factory=dict)  # measure -> reason, a sentence
    notes: list[str] = field(default_factory=list)  # reservations about the numbers

    @property
    def measures(self) -> dict[str, Fad | ClapScore | PairedDivergence]:
        """Those that were computed."""
        found = {FAD: self.fad, CLAP_SCORE: self.clap_score, KL: self.kl}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def pairs(self) -> list[Pair]:
        """Pairs of which both clips can be used, as far as is known."""
        return [pair for pair in self.matched if all(clip.problem is None for clip in pair)]

    def unpaired(self, side: Side) -> list[str]:
        """Return the names of a side's usable clips that are in no usable pair."""
        paired = {id(clip) for pair in self.pairs for clip in pair}
        return [clip.file.name for clip in side.clips if id(clip) not in paired]

    def attempt(self, names: Sequence[str], compute: Callable[[], _T]) -> _T | None:
        """Compute something, or record why these measures are missing."""
        try:
            return compute()
        except UserError as error:
            self.not_computed |= dict.fromkeys(names, str(error))
        except torch.OutOfMemoryError:
            reason = "the memory of the device is full; give a smaller --batch_size."
            self.not_computed |= dict.fromkeys(names, reason)
        return None


def measure(result: EvaluationResult, clap: str, classifier: str) -> None:
    """Fill in every measure that can be computed.

    Args:
        result: To fill in.
        clap: Folder or hub id of a CLAP model.
        classifier: Folder or hub id of an AST.
    """
    with Console(stderr=True).status("loading models"):
        result.clap = result.attempt(
            (FAD, CLAP_SCORE), lambda: Clap.from_pretrained(clap, result.device, "--clap")
        )
        result.tagger = result.attempt((KL,), lambda: _load_tagger(result, classifier))
    if result.clap is not None:
        _measure_with_clap(result, result.clap)
    if result.tagger is not None:
        tagger = result.tagger
        result.kl = result.attempt((KL,), lambda: _divergence(result, tagger))


def _load_tagger(result: EvaluationResult, name: str) -> AudioTagger:
    if not result.matched:
        raise UserError(
            "no generated clip has a reference of the same name; give both files of a pair the same name, or "
            "put the references' names into the --prompts of `generate` as `id`."
        )
    return AudioTagger.from_pretrained(name, result.device, "--classifier")


def _measure_with_clap(result: EvaluationResult, clap: Clap) -> None:
    generated, reference = result.generated, result.reference

    def embed_all() -> tuple[dict[int, Floats], ...]:
        clips = 2 * len(generated.clips) + len(reference.clips)
        with ProgressBar("FAD-CLAP", "clips", clips, transient=True) as bar:
            embed = partial(_embed, "--clap", clap, clap.embed_audio, result.batch_size, bar.advance)
            ours, real = embed(generated.clips), embed(reference.clips)
            noise = embed(generated.clips, noise_seed=result.seed)
        return {clip: vectors for clip, vectors in ours.items() if clip in noise}, real, noise

    embedded = result.attempt((FAD, CLAP_SCORE), embed_all)
    if embedded is None:
        return
    ours, real, noise = ([*vectors.values()] for vectors in embedded)
    with Console(stderr=True).status("comparing"):
        result.fad = result.attempt((FAD,), lambda: measure_fad(ours, real, noise, result.seed))
        result.clap_score = result.attempt(
            (CLAP_SCORE,), lambda: _clap_score(result, clap, generated, embedded[0])
        )
        if result.clap_score is not None and reference.captioned:
            result.clap_score_real = _clap_score(result, clap, reference, embedded[1])
    if result.fad is not None:
        result.notes += _notes_on_fad(result, result.fad, clap.window_samples / clap.sample_rate)


def _clap_score(result: EvaluationResult, clap: Clap, side: Side, vectors: dict[int, Floats]) -> ClapScore:
    if not side.clips:
        raise UserError(f"no file in {side.path} can be read; replace them.")
    if not side.captioned:
        raise UserError(
            f"none of the {count(len(side.clips), 'clip')} in {side.path} has a caption; put a .txt beside each, or "
            "keep the results.jsonl that `generate` writes."
        )
    captions = [str(clip.caption) for clip in side.captioned]
    texts = clap.embed_text(captions, result.batch_size)
    return measure_clap_score([vectors[id(clip)] for clip in side.captioned], texts, captions, result.seed)


def _divergence(result: EvaluationResult, tagger: AudioTagger) -> PairedDivergence:
    pairs = result.pairs
    with ProgressBar("KL-AST", "clips", 2 * len(pairs), transient=True) as bar:
        embed = partial(_embed, "--classifier", tagger, tagger.probabilities, result.batch_size, bar.advance)
        ours, real = embed([clip for clip, _ in pairs]), embed([clip for _, clip in pairs])
    pairs = result.pairs  # without those that turned out to be unreadable
    return measure_divergence(
        [real[id(clip)].mean(axis=0) for _, clip in pairs],
        [ours[id(clip)].mean(axis=0) for clip, _ in pairs],
        result.seed,
    )


def _notes_on_fad(result: EvaluationResult, fad: Fad, window: float) -> list[str]:
    """Return reservations about a FAD of windows of `window` seconds."""
    notes = []
    if fad.too_few:
        notes.append(
            f"FAD-CLAP of all clips is biased upwards: {fad.generated_windows} generated and {fad.reference_windows} "
            f"real windows in {fad.dimensions} dimensions. Compare only at equal numbers of windows, or in the row of "
            "equal sizes."
        )
    if fad.equal is None:
        notes.append("FAD-CLAP has no comparison at equal sizes: that takes 4 clips of the reference.")
    sides = ((result.generated, fad.generated_windows), (result.reference, fad.reference_windows))
    ours, real = (
        min(1.0, sum(clip.seconds for clip in side.clips) / (windows * window)) for side, windows in sides
    )
    if abs(ours - real) > 0.1:
        notes.append(
            f"Windows of {window:g} s are filled to {ours:.0%} by generated and to {real:.0%} by real clips; short ones "
            "are repeated to fill them, which changes FAD-CLAP. Compare clips of the same length."
        )
    return notes


def _embed(
    option: str,
    model: Clap | AudioTagger,
    run: Callable[[Sequence[torch.Tensor]], Floats],
    batch_size: int,
    clip_done: Callable[[], None],
    clips: Sequence[EvaluatedClip],
    noise_seed: int | None = None,
) -> dict[int, Floats]:
    """Return float64 [W, D] of each clip by `id(clip)`; those that cannot be used get a `problem`.

    Args:
        option: The option that named the model, for errors.
        model: Gives sample rate and window.
        run: Its method from windows to float64 [windows, D].
        batch_size: Windows per call.
        clip_done: Called after each clip.
        clips: To read.
        noise_seed: Take white noise of the same level in their place.

    Raises:
        UserError: The model gives finite numbers for no clip.
    """
    audio = [clip.blocks(model.sample_rate) for clip in clips]
    if noise_seed is not None:
        audio = [
            as_noise(blocks, clip.file.name, noise_seed) for blocks, clip in zip(audio, clips, strict=True)
        ]
    results = through_windows(audio, run, model.window_samples, batch_size, clip_done)
    numbers = [result for result in results if not isinstance(result, UserError)]
    if numbers and not any(np.isfinite(result).all() for result in numbers):
        raise UserError(f"the model of {option} gives finite numbers for no clip; its weights are damaged.")
    embedded = {}
    for clip, result in zip(clips, results, strict=True):
        if isinstance(result, UserError):
            clip.problem = f"unreadable: {result}"
        elif not np.isfinite(result).all():
            clip.problem = (
                f"unreadable: {clip.file.label}: the model of {option} gives no finite numbers for it, as for samples far "
                "beyond 1; render it again"
            )
        else:
            embedded[id(clip)] = result
    return embedded
