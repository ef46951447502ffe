"""Read the clips of `evaluate`, put them through the models and compute each measure that can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from magnet_train.cli.evaluation.clips import EvaluatedClip, Pairs, Side
from magnet_train.cli.formatting import count
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
from magnet_train.evaluation.frechet import Floats

if TYPE_CHECKING:
    from rich.console import Console
    from torch import Tensor

FAD, CLAP_SCORE, KL = "fad_clap", "clap_score", "kl_ast"
_T = TypeVar("_T")


@dataclass
class EvaluationResult:
    """What there was to measure and what came of it.

    Args:
        generated: One side.
        reference: The other.
        pairs: Which clips of the two belong together.
        device: Where it was computed.
        clap: The model, if it could be loaded.
        tagger: The classifier, if it could be loaded.
        fad: FAD-CLAP.
        clap_score: CLAP score of the generated clips.
        clap_score_real: Of the reference with its own captions.
        kl: KL-AST.
        not_computed: Why a measure is missing, in a sentence.
        notes: What to keep in mind when reading the numbers.
    """

    generated: Side
    reference: Side
    pairs: Pairs
    device: str
    clap: Clap | None = None
    tagger: AudioTagger | None = None
    fad: Fad | None = None
    clap_score: ClapScore | None = None
    clap_score_real: ClapScore | None = None
    kl: PairedDivergence | None = None
    not_computed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def measures(self) -> dict[str, Fad | ClapScore | PairedDivergence]:
        """Those that were computed."""
        found = {FAD: self.fad, CLAP_SCORE: self.clap_score, KL: self.kl}
        return {name: value for name, value in found.items() if value is not None}

    def attempt(self, names: Sequence[str], make: Callable[[], _T]) -> _T | None:
        """Make something, or note why these measures cannot be computed without it."""
        try:
            return make()
        except UserError as error:
            self.not_computed |= dict.fromkeys(names, str(error))
        except torch.OutOfMemoryError:
            self.not_computed |= dict.fromkeys(
                names, "the memory of the device is full; give a smaller --batch-size."
            )
        return None


def measure(
    findings: EvaluationResult, clap: str, classifier: str, batch_size: int, seed: int, console: Console
) -> None:
    """Compute all measures that can be computed.

    Args:
        findings: To be filled in.
        clap: Folder or hub id of a CLAP model.
        classifier: Folder or hub id of an AST.
        batch_size: Windows to compute at once.
        seed: Of noise, splits and intervals.
        console: For the progress bar.
    """
    with console.status("loading models"):
        findings.clap = findings.attempt(
            (FAD, CLAP_SCORE), lambda: Clap.from_pretrained(clap, findings.device, "--clap")
        )
        findings.tagger = findings.attempt((KL,), lambda: _load_tagger(findings, classifier))
    _with_clap(findings, batch_size, seed, console)
    _with_tagger(findings, batch_size, seed, console)


def _load_tagger(findings: EvaluationResult, name: str) -> AudioTagger:
    if not findings.pairs.listed:
        raise UserError(
            "no generated clip has a reference of the same name; give both files of a pair the same name, or "
            "put the references' names into the --prompts of `generate` as `id`."
        )
    return AudioTagger.from_pretrained(name, findings.device, "--classifier")


def _with_clap(findings: EvaluationResult, batch_size: int, seed: int, console: Console) -> None:
    clap = findings.clap
    if clap is None:
        return
    ears = _Embedder("--clap", clap.embed_audio, clap.sample_rate, clap.window_samples, batch_size)
    generated, reference = findings.generated, findings.reference

    def hear_all() -> tuple[dict[int, Floats], dict[int, Floats], dict[int, Floats]]:
        with _progress("FAD-CLAP", 2 * len(generated.clips) + len(reference.clips), console) as clip_done:
            ours = ears.hear(generated.clips, clip_done)
            real = ears.hear(reference.clips, clip_done)
            noise = ears.hear(generated.clips, clip_done, noise_seed=seed)
            ours = {clip: heard for clip, heard in ours.items() if clip in noise}
            return ours, real, noise

    heard = findings.attempt((FAD, CLAP_SCORE), hear_all)
    if heard is None:
        return
    ours, real, noise = heard
    with console.status("comparing"):
        findings.fad = findings.attempt(
            (FAD,),
            lambda: measure_fad(list(ours.values()), list(real.values()), list(noise.values()), seed),
        )
        findings.clap_score = findings.attempt(
            (CLAP_SCORE,), lambda: _clap_score(clap, generated, ours, batch_size, seed)
        )
        if findings.clap_score is not None and reference.captioned:
            findings.clap_score_real = _clap_score(clap, reference, real, batch_size, seed)
    if findings.fad is not None:
        findings.notes += _notes_on_fad(findings, findings.fad, clap)


def _clap_score(clap: Clap, side: Side, vectors: dict[int, Floats], batch_size: int, seed: int) -> ClapScore:
    if not side.clips:
        raise UserError(f"no file in {side.path} can be read; replace them.")
    if not side.captioned:
        raise UserError(
            f"none of the {count(len(side.clips), 'clip')} in {side.path} has a caption; put a .txt beside each, or "
            "keep the results.jsonl that `generate` writes."
        )
    captions = [str(clip.caption) for clip in side.captioned]
    texts = clap.embed_text(captions, batch_size)
    return measure_clap_score([vectors[id(clip)] for clip in side.captioned], texts, captions, seed)


def _with_tagger(findings: EvaluationResult, batch_size: int, seed: int, console: Console) -> None:
    tagger = findings.tagger
    if tagger is None:
        return
    ears = _Embedder(
        "--classifier", tagger.probabilities, tagger.sample_rate, tagger.window_samples, batch_size
    )

    def compare() -> PairedDivergence:
        with _progress("KL-AST", 2 * len(findings.pairs.pairs), console) as clip_done:
            ours = ears.hear([clip for clip, _ in findings.pairs.pairs], clip_done)
            real = ears.hear([clip for _, clip in findings.pairs.pairs], clip_done)
        pairs = findings.pairs.pairs  # without those that turned out to be unreadable
        return measure_divergence(
            [real[id(clip)].mean(axis=0) for _, clip in pairs],
            [ours[id(clip)].mean(axis=0) for clip, _ in pairs],
            seed,
        )

    findings.kl = findings.attempt((KL,), compare)


def _notes_on_fad(findings: EvaluationResult, fad: Fad, clap: Clap) -> list[str]:
    notes = []
    if fad.too_few:
        notes.append(
            f"FAD-CLAP of all clips is biased upwards: {fad.generated_windows} generated and {fad.reference_windows} "
            f"real windows in {fad.dimensions} dimensions. Compare only with numbers of as many windows, or in the row of "
            "equal sizes."
        )
    if fad.equal is None:
        notes.append("FAD-CLAP has no comparison at equal sizes: that takes 4 clips of the reference.")
    window = clap.window_samples / clap.sample_rate  # s
    ours, real = (
        min(1.0, sum(clip.seconds for clip in side.clips) / (windows * window))
        for side, windows in (
            (findings.generated, fad.generated_windows),
            (findings.reference, fad.reference_windows),
        )
    )
    if abs(ours - real) > 0.1:
        notes.append(
            f"Windows of {window:g} s are filled to {ours:.0%} by generated and to {real:.0%} by real clips; short ones "
            "are repeated to fill them, which FAD-CLAP notices. Compare clips of the same length."
        )
    return notes


class _Embedder:
    """A model that takes windows of audio, and what it wants.

    Args:
        option: Which option named it.
        model: Takes windows, gives float64 [windows, D].
        sample_rate: Of its audio (Hz).
        window_samples: Longest window.
        batch_size: Windows at once.
    """

    def __init__(
        self,
        option: str,
        model: Callable[[Sequence[Tensor]], Floats],
        sample_rate: int,
        window_samples: int,
        batch_size: int,
    ) -> None:
        self._option, self._model, self._sample_rate = option, model, sample_rate
        self._window_samples, self._batch_size = window_samples, batch_size

    def hear(
        self,
        clips: Sequence[EvaluatedClip],
        clip_done: Callable[[], None],
        noise_seed: int | None = None,
    ) -> dict[int, Floats]:
        """Return float64 [W, D] of each clip by `id(clip)`; those that cannot be read are marked.

        Args:
            clips: To read.
            clip_done: Called after each.
            noise_seed: Take noise as loud in their place.

        Raises:
            UserError: The model gives no numbers for any clip.
        """
        audio = [clip.blocks(self._sample_rate) for clip in clips]
        if noise_seed is not None:
            audio = [
                as_noise(blocks, clip.file.name, noise_seed)
                for blocks, clip in zip(audio, clips, strict=True)
            ]
        results = through_windows(audio, self._model, self._window_samples, self._batch_size, clip_done)
        numbers = [result for result in results if not isinstance(result, UserError)]
        if numbers and not any(np.isfinite(result).all() for result in numbers):
            raise UserError(
                f"the model of {self._option} gives finite numbers for no clip; its weights are damaged."
            )
        heard = {}
        for clip, result in zip(clips, results, strict=True):
            if isinstance(result, UserError):
                clip.problem = f"unreadable: {result}"
            elif not np.isfinite(result).all():
                clip.problem = (
                    f"unreadable: {clip.file.label}: the model of {self._option} gives no finite numbers for it, as for "
                    "samples far beyond 1; render it again"
                )
            else:
                heard[id(clip)] = result
        return heard


@contextmanager
def _progress(what: str, clips: int, console: Console) -> Iterator[Callable[[], None]]:
    """Show a bar of clips with rate and time left; calling what it gives advances it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("clips, {task.fields[rate]}/s, left"),
    )
    # transient: what follows says how many clips there were, without those that cannot be read
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(f"listening for {what}", total=clips, rate="-")

        def advance() -> None:
            bar.advance(task)
            bar.update(task, rate=f"{bar.tasks[0].speed or 0:.1f}")

        yield advance
