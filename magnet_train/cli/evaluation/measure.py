"""Run the models of `evaluate` on its clips and compute each measure that can be computed.

Shapes: W windows of a clip, D numbers of the model for each; float64 [W, D] by `id(clip)`.
"""

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
from magnet_train.cli.evaluation.sound import SoundComparison, compare_sound
from magnet_train.cli.evaluation.training_clips import (
    TrainingDistance,
    TrainingShards,
    measure_training_distance,
)
from magnet_train.errors import UserError, memory_reason
from magnet_train.evaluation import AudioTagger, Clap, ClapScore, Fad, PairedDivergence
from magnet_train.evaluation.measures import Floats, measure_clap_score, measure_divergence, measure_fad
from magnet_train.evaluation.windows import as_noise, through_windows
from magnet_train.models.memory import MEMORY_ERRORS, FittingBatches, is_full_memory

FAD, CLAP_SCORE, KL = "fad_clap", "clap_score", "kl_ast"
SOUND, TRAINING = "sound", "training_distance"  # keys of reports
_T = TypeVar("_T")


@dataclass
class EvaluationResult:
    """Inputs, settings and results of an evaluation."""

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
    sound: SoundComparison | None = None
    training: TrainingDistance | None = None
    not_computed: dict[str, str] = field(default_factory=dict)  # measure -> reason, a sentence
    notes: list[str] = field(default_factory=list)  # reservations about the numbers

    def __post_init__(self) -> None:
        self.batches = FittingBatches(
            self.batch_size, "windows", lambda sentence: self.notes.append(f"{sentence.capitalize()}.")
        )

    @property
    def sides(self) -> dict[str, Side]:
        """Both sides by name."""
        return {"generated": self.generated, "reference": self.reference}

    @property
    def measures(self) -> dict[str, Fad | ClapScore | PairedDivergence]:
        """The measures by models that could be computed."""
        found = {FAD: self.fad, CLAP_SCORE: self.clap_score, KL: self.kl}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def pairs(self) -> list[Pair]:
        """Pairs of clips not known to be unusable."""
        return [pair for pair in self.matched if all(clip.problem is None for clip in pair)]

    def unpaired(self, side: Side) -> list[str]:
        """Return the names of a side's usable clips that are in no usable pair."""
        paired = {id(clip) for pair in self.pairs for clip in pair}
        return [clip.file.name for clip in side.clips if id(clip) not in paired]

    def attempt(self, names: Sequence[str], compute: Callable[[], _T]) -> _T | None:
        """Return the result of `compute`; on an error, record the reason for the measures `names` and return None."""
        try:
            return compute()
        except UserError as error:
            self.not_computed |= dict.fromkeys(names, str(error))
        except MEMORY_ERRORS as error:
            if not is_full_memory(error):
                raise
            # Batches of a model have been halved down to one window by then.
            reason = (
                f"memory does not suffice ({memory_reason(error)}); free some, or choose another --device."
            )
            self.not_computed |= dict.fromkeys(names, reason)
        return None


def measure(
    result: EvaluationResult, clap: str, classifier: str, shards: TrainingShards | None = None
) -> None:
    """Fill in what can be computed of the sound, and with a CLAP model and an AST, named by folder or hub id."""
    generated, reference = result.generated, result.reference
    result.sound = result.attempt(
        (SOUND,), lambda: compare_sound(generated, reference, result.matched, result.seed)
    )
    if shards is not None:
        result.training = result.attempt(
            (TRAINING,), lambda: measure_training_distance(shards, generated, reference)
        )
    with Console(stderr=True).status("loading models"):
        result.clap = result.attempt(
            (FAD, CLAP_SCORE), lambda: Clap.from_pretrained(clap, result.device, "--clap")
        )
        if result.matched:
            result.tagger = result.attempt(
                (KL,), lambda: AudioTagger.from_pretrained(classifier, result.device, "--classifier")
            )
        else:
            result.not_computed[KL] = (
                "no generated clip has a reference of the same name; give both files of a pair the same name, or put "
                "the references' names into the --prompts of `generate` as `id`."
            )
    if result.clap is not None:
        _measure_with_clap(result, result.clap)
    if (tagger := result.tagger) is not None:
        result.kl = result.attempt((KL,), lambda: _divergence(result, tagger))


def _measure_with_clap(result: EvaluationResult, clap: Clap) -> None:
    embedded = result.attempt((FAD, CLAP_SCORE), lambda: _embed_all(result, clap))
    if embedded is None:
        return
    ours, real, noise = ([*vectors.values()] for vectors in embedded)
    with Console(stderr=True).status("comparing"):
        result.fad = result.attempt((FAD,), lambda: measure_fad(ours, real, noise, result.seed))
        result.clap_score = result.attempt(
            (CLAP_SCORE,), lambda: _clap_score(result, clap, result.generated, embedded[0])
        )
        if result.clap_score is not None and result.reference.captioned:
            result.clap_score_real = _clap_score(result, clap, result.reference, embedded[1])
    if result.fad is not None:
        result.notes += _notes_on_fad(result, result.fad, clap.window_samples / clap.sample_rate)


def _embed_all(result: EvaluationResult, clap: Clap) -> tuple[dict[int, Floats], ...]:
    """Embed generated clips, real clips, and noise in place of the generated ones."""
    generated, reference = result.generated, result.reference
    clips = 2 * len(generated.clips) + len(reference.clips)
    with ProgressBar("FAD-CLAP", "clips", clips, transient=True) as bar:
        embed = partial(_embed, result, "--clap", clap, clap.embed_audio, bar)
        ours, real = embed(generated.clips), embed(reference.clips)
        noise = embed(generated.clips, noise=True)
    return {clip: vectors for clip, vectors in ours.items() if clip in noise}, real, noise


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
        embed = partial(_embed, result, "--classifier", tagger, tagger.probabilities, bar)
        ours, real = embed([clip for clip, _ in pairs]), embed([clip for _, clip in pairs])
    pairs = result.pairs  # without pairs that were unreadable
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
    ours = min(1.0, result.generated.seconds / (fad.generated_windows * window))
    real = min(1.0, result.reference.seconds / (fad.reference_windows * window))
    if abs(ours - real) > 0.1:
        notes.append(
            f"Windows of {window:g} s are filled to {ours:.0%} by generated and to {real:.0%} by real clips; short ones "
            "are repeated to fill them, which changes FAD-CLAP. Compare clips of the same length."
        )
    return notes


def _embed(
    result: EvaluationResult,
    option: str,
    model: Clap | AudioTagger,
    run: Callable[[Sequence[torch.Tensor]], Floats],
    bar: ProgressBar,
    clips: Sequence[EvaluatedClip],
    noise: bool = False,
) -> dict[int, Floats]:
    """Run a method of the model that `option` names on clips, or on equally loud white noise in their place.

    Clips that cannot be used get a `problem`; raises `UserError` if the numbers of all clips are non-finite.
    """
    audio = [clip.blocks(model.sample_rate) for clip in clips]
    if noise:
        named = zip(audio, clips, strict=True)
        audio = [as_noise(blocks, clip.file.name, result.seed) for blocks, clip in named]

    def run_in_parts(windows: Sequence[torch.Tensor]) -> Floats:
        return np.concatenate(list(result.batches.run(windows, run)))

    found = through_windows(audio, run_in_parts, model.window_samples, result.batch_size, bar.advance)
    numbers = [each for each in found if not isinstance(each, UserError)]
    if numbers and not any(np.isfinite(each).all() for each in numbers):
        raise UserError(
            f"the model of {option} returns NaN or infinity for every clip; its weights are damaged, name another."
        )
    embedded = {}
    for clip, each in zip(clips, found, strict=True):
        if isinstance(each, UserError):
            clip.problem = f"unreadable: {each}"
        elif not np.isfinite(each).all():
            clip.problem = (
                f"unreadable: {clip.file.label}: the model of {option} returns NaN or infinity for it, as for samples "
                "far beyond 1; render it again"
            )
        else:
            embedded[id(clip)] = each
    return embedded
