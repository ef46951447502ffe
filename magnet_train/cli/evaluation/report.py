"""The result of `evaluate`: a table with explanations, and a .json with everything."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from rich import box
from rich.console import Console
from rich.table import Table

from datamodules.tokenize.report import Skipped, few_of, summarize
from magnet_train import __version__
from magnet_train.cli.console import count, duration, table
from magnet_train.cli.evaluation.clips import Side
from magnet_train.cli.evaluation.measure import CLAP_SCORE, FAD, KL, SOUND, TRAINING, EvaluationResult
from magnet_train.cli.evaluation.sound_report import (
    Row,
    explain_sound,
    explain_training,
    interval,
    number,
    sound_notes,
    sound_rows,
    training_notes,
    training_rows,
)
from magnet_train.storage.atomic_io import atomic_write
from magnet_train.storage.plain_text import printable

_FORMAT = 1
_LABELS = {
    FAD: "FAD-CLAP",
    CLAP_SCORE: "CLAP score",
    KL: "KL-AST",
    SOUND: "measures of sound",
    TRAINING: "training distance",
}


def print_report(result: EvaluationResult) -> None:
    """Print the numbers, how to read them, and which are missing and why."""
    console = Console()
    show = partial(console.print, soft_wrap=True, highlight=False, markup=False)
    for name, side in result.sides.items():
        length = f", {duration(side.seconds)}" if side.seconds else ""
        show(f"{name}: {printable(str(side.path))}, {count(len(side.clips), 'clip')}{length}")
    if result.measures:
        console.print(_table(_model_rows(result)))
    if rows := [*sound_rows(result.sound), *training_rows(result.training)]:
        console.print(_table(rows))
    for line in (*_explanations(result), *(f"note: {note}" for note in _notes(result))):
        show(line)
    for reason in dict.fromkeys(result.not_computed.values()):
        names = [_LABELS[name] for name, other in result.not_computed.items() if other == reason]
        show(f"not computed: {' and '.join(names)}, since {reason}")


def _table(rows: Iterable[Row]) -> Table:
    values = ("generated", "spread", "chance", "real sound")
    filled = table(None, "measure", *values, "of", right=values)
    filled.box, filled.pad_edge, filled.collapse_padding = box.SIMPLE_HEAD, False, True
    for column in filled.columns[:-1]:
        column.no_wrap = True
    for row in rows:
        filled.add_row(*row)
    return filled


def _model_rows(result: EvaluationResult) -> Iterator[Row]:
    fad, score, kl = result.fad, result.clap_score, result.kl
    if fad is not None:
        sizes = f"{fad.generated_clips} to {count(fad.reference_clips, 'clip')}"
        yield "FAD-CLAP ↓", number(fad.distance), "", "", "", sizes
        if (equal := fad.equal) is not None:
            noise = None if equal.noise is None else equal.noise.mean
            sizes = f"{equal.clips} to {count(equal.reference_clips, 'clip')}"
            spread, real = f"± {equal.generated.std:.3f}", number(equal.real.mean)
            yield "  equal sizes", number(equal.generated.mean), spread, number(noise), real, sizes
    if score is not None:
        best = "" if result.clap_score_real is None else number(result.clap_score_real.mean)
        captions, spread = count(score.clips, "caption"), interval(score.interval)
        yield "CLAP score ↑", number(score.mean), spread, number(score.chance), best, captions
    if kl is not None:
        spread, pairs = interval(kl.interval), count(kl.pairs, "pair")
        yield "KL-AST ↓", number(kl.mean), spread, number(kl.chance), number(0.0), pairs


def _explanations(result: EvaluationResult) -> Iterator[str]:
    if result.fad is not None:
        yield "FAD-CLAP: Fréchet distance of generated from real clips in CLAP's space; 0 or more, lower is better."
        if result.fad.equal is not None:
            yield (
                "  Equal sizes: equally many generated clips, clips of white noise as loud (chance) and real clips, each "
                "against the rest of the reference; mean ± standard deviation of "
                f"{result.fad.equal.splits} random splits."
            )
    if result.clap_score is not None:
        yield (
            "CLAP score: cosine between clip and caption, -1 to 1, higher is better. Chance: captions of other clips. Real "
            "sound: the reference with its own captions. Spread: 95 % interval over clips."
        )
    if result.kl is not None:
        other = result.kl.other_real
        unrelated = "" if other is None else f" The references of other pairs get {number(other)}."
        yield (
            "KL-AST: divergence of a classifier's answers to the clips of a pair, in nats; 0 or more, lower is better. "
            f"Chance: generated clips of other pairs. Real sound: the reference itself.{unrelated}"
        )
    if result.measures:
        yield "None of these can be compared with the FAD, CLAP and KL of papers, which come from other models."
    if result.sound is not None:
        yield from explain_sound(result.sound)
    if result.training is not None:
        yield from explain_training(result.training)


def _notes(result: EvaluationResult) -> Iterator[str]:
    yield from result.notes
    if result.sound is not None:
        yield from sound_notes(result.sound)
    if result.training is not None:
        yield from training_notes(result.training)
    for name, side in result.sides.items():
        silent = sum(clip.silent for clip in side.clips)
        if silent:
            yield f"{count(silent, f'{name} clip')} of {len(side.clips)} silent; they count like all others."
        if side.left_out:
            files = count(len(side.left_out), f"{name} file")
            yield f"left out {files} ({summarize(side.left_out)}): {_few(side.left_out)}"
        if side.partial:
            yield f"{count(len(side.partial), f'{name} file')} read in part: {_few(side.partial)}"
        if side.problems:
            yield f"captions that cannot be read: {_few(side.problems)}"
        missing = len(side.clips) - len(side.captioned)
        if result.clap_score is not None and missing and side.captioned:
            yield f"{count(missing, f'{name} clip')} without a caption: not in the CLAP score."
    for name, side in result.sides.items() if result.kl is not None else ():
        unpaired = result.unpaired(side)
        if unpaired:
            named = ", ".join(unpaired[:3]) + (", ..." if len(unpaired) > 3 else "")
            yield f"{count(len(unpaired), f'{name} clip')} without a pair, not in KL-AST: {named}"


def _few(files: list[Skipped]) -> str:
    """Name up to three files with reasons; a reason that contains the file's name stands alone."""
    sentences = []
    for path, reason in few_of(files, 3):
        details = reason.partition(": ")[2]
        sentences.append(printable((details if path in details else f"{path}: {reason}").rstrip(".")))
    return "; ".join(sentences) + ("; ..." if len(files) > 3 else "")


def write_report(path: Path, result: EvaluationResult, command: str) -> None:
    """Write the whole result with unrounded numbers; raises `UserError` without room or permission."""
    content: dict[str, Any] = {
        "format": _FORMAT,
        "command": command,
        "measures": {name: asdict(value) for name, value in result.measures.items()},
        "not_computed": result.not_computed,
        "notes": list(_notes(result)),
        **{name: _side(side) for name, side in result.sides.items()},
        "pairs": {
            "pairs": [[clip.file.name for clip in pair] for pair in result.pairs],
            "unpaired_generated": result.unpaired(result.generated),
            "unpaired_reference": result.unpaired(result.reference),
        },
        "models": _models(result),
        "settings": {"seed": result.seed, "batch_size": result.batch_size, "device": result.device},
        "versions": {
            "magnet_train": __version__,
            **{library.__name__: library.__version__ for library in (torch, transformers, numpy)},
            "python": platform.python_version(),
        },
    }
    beside = {SOUND: result.sound, TRAINING: result.training}
    content |= {name: asdict(value) for name, value in beside.items() if value is not None}
    if result.clap_score_real is not None:
        content["measures"][CLAP_SCORE]["real"] = asdict(result.clap_score_real)
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _side(side: Side) -> dict[str, Any]:
    return {
        "path": str(side.path),
        "clips": len(side.clips),
        "seconds": side.seconds,
        "captions": len(side.captioned),
        "silent": [clip.file.name for clip in side.clips if clip.silent],
        "left_out": [file._asdict() for file in side.left_out],
        "partial": [file._asdict() for file in side.partial],
        "unreadable_captions": [file._asdict() for file in side.problems],
    }


def _models(result: EvaluationResult) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for name, model, width in (("clap", result.clap, "dimensions"), ("classifier", result.tagger, "classes")):
        if model is not None:
            rate, window = model.sample_rate, model.window_samples / model.sample_rate
            models[name] = {**asdict(model.origin), width: getattr(model, width)}
            models[name] |= {"sample_rate": rate, "window_seconds": window}
    return models
