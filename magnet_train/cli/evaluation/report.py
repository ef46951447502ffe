"""What `evaluate` found, as a table that a person can read and as a .json with everything."""

from __future__ import annotations

import argparse
import json
import platform
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from datamodules.tokenize.report import Skipped, few_of, printable, summarize
from magnet_train import __version__
from magnet_train.cli.evaluation.clips import Side
from magnet_train.cli.evaluation.measures import CLAP_SCORE, FAD, KL, EvaluationResult
from magnet_train.cli.formatting import count, duration
from magnet_train.storage.atomic_io import atomic_write

_FORMAT = 1
_LABELS = {FAD: "FAD-CLAP", CLAP_SCORE: "CLAP score", KL: "KL-AST"}


def print_report(console: Console, findings: EvaluationResult) -> None:
    """Print the numbers, how to read them, and what is missing and why."""
    for name, side in (("generated", findings.generated), ("reference", findings.reference)):
        console.print(f"{name}: {escape(_describe(side))}", soft_wrap=True, highlight=False)
    if findings.measures:
        console.print(_table(findings))
    for line in _explanations(findings):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for line in [*findings.notes, *_notes_on_clips(findings)]:
        console.print(f"note: {line}", soft_wrap=True, highlight=False, markup=False)
    for names, reason in _missing(findings):
        console.print(f"not computed: {names}, since {reason}", soft_wrap=True, highlight=False, markup=False)


def _describe(side: Side) -> str:
    length = duration(sum(clip.seconds for clip in side.clips))
    read = any(clip.seconds for clip in side.clips)
    return f"{side.path}, {count(len(side.clips), 'clip')}{f', {length}' if read else ''}"


def _table(findings: EvaluationResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("measure", no_wrap=True)
    for name in ("generated", "spread", "chance", "real sound"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("of")
    for row in _rows(findings):
        table.add_row(*row)
    return table


def _rows(findings: EvaluationResult) -> Iterator[tuple[str, str, str, str, str, str]]:
    """Yield measure, generated with its spread, chance, real sound, and how many clips."""
    fad, score, kl = findings.fad, findings.clap_score, findings.kl
    if fad is not None:
        sizes = f"{fad.generated_clips} to {count(fad.reference_clips, 'clip')}"
        yield "FAD-CLAP ↓", _number(fad.distance), "", "", "", sizes
        if fad.equal is not None:
            equal = fad.equal
            noise = None if equal.noise is None else equal.noise.mean
            sizes = f"{equal.clips} to {count(equal.reference_clips, 'clip')}"
            spread, real = f"± {equal.generated.std:.3f}", _number(equal.real.mean)
            yield "  equal sizes", _number(equal.generated.mean), spread, _number(noise), real, sizes
    if score is not None:
        best = "" if findings.clap_score_real is None else _number(findings.clap_score_real.mean)
        captions, spread = count(score.clips, "caption"), _interval(score.interval)
        yield "CLAP score ↑", _number(score.mean), spread, _number(score.chance), best, captions
    if kl is not None:
        spread, pairs = _interval(kl.interval), count(kl.pairs, "pair")
        yield "KL-AST ↓", _number(kl.mean), spread, _number(kl.chance), _number(0.0), pairs


def _explanations(findings: EvaluationResult) -> Iterator[str]:
    if findings.fad is not None:
        yield "FAD-CLAP: how far the clips as a whole lie from real ones, in CLAP's space; 0 or more, lower is better."
        if findings.fad.equal is not None:
            yield (
                "  Equal sizes: as many generated clips, clips of white noise as loud (chance) and real clips, each against "
                f"the rest of the reference; mean ± standard deviation of {findings.fad.equal.splits} random splits."
            )
    if findings.clap_score is not None:
        yield (
            "CLAP score: cosine between clip and caption, -1 to 1, higher is better. Chance: captions of other clips. Real "
            "sound: the reference with its own captions. Spread: 95 % interval over clips."
        )
    if findings.kl is not None:
        other = findings.kl.other_real
        unrelated = "" if other is None else f" The references of other pairs get {_number(other)}."
        yield (
            "KL-AST: how differently a classifier hears the clips of a pair, in nats; 0 or more, lower is better. Chance: "
            f"generated clips of other pairs. Real sound: the reference itself.{unrelated}"
        )
    if findings.measures:
        yield "None of these can be compared with the FAD, CLAP and KL of papers, which come from other models."


def _notes_on_clips(findings: EvaluationResult) -> Iterator[str]:
    for name, side in (("generated", findings.generated), ("reference", findings.reference)):
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
        if findings.clap_score is not None and missing and side.captioned:
            yield f"{count(missing, f'{name} clip')} without a caption: not in the CLAP score."
    pairs = findings.pairs
    if findings.kl is not None:
        for name, side in (("generated", findings.generated), ("reference", findings.reference)):
            unpaired = pairs.unpaired(side)
            if unpaired:
                shown = ", ".join(unpaired[:3]) + (", ..." if len(unpaired) > 3 else "")
                yield f"{count(len(unpaired), f'{name} clip')} without a pair, not in KL-AST: {shown}"


def _few(files: list[Skipped]) -> str:
    shown = "; ".join(map(_sentence, few_of(files, 3)))
    return shown + ("; ..." if len(files) > 3 else "")


def _sentence(file: Skipped) -> str:
    """Say which file and why, the name once: the sentences of readers hold it already."""
    details = file.reason.partition(": ")[2]
    return printable((details if file.path in details else f"{file.path}: {file.reason}").rstrip("."))


def _missing(findings: EvaluationResult) -> Iterator[tuple[str, str]]:
    """Yield measures with the reason that they share."""
    for reason in dict.fromkeys(findings.not_computed.values()):
        names = [_LABELS[name] for name, other in findings.not_computed.items() if other == reason]
        yield " and ".join(names), reason


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:z.3f}"  # z: KL can come out a millionth below 0


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:z.3f} to {interval[1]:z.3f}"


def write_report(path: Path, findings: EvaluationResult, args: argparse.Namespace) -> None:
    """Write everything that is known, numbers unrounded.

    Raises:
        UserError: No room or no permission.
    """
    content: dict[str, Any] = {
        "format": _FORMAT,
        "command": _command(args),
        "measures": {name: asdict(value) for name, value in findings.measures.items()},
        "not_computed": findings.not_computed,
        "notes": [*findings.notes, *_notes_on_clips(findings)],
        "generated": _side(findings.generated),
        "reference": _side(findings.reference),
        "pairs": {
            "pairs": [[clip.file.name for clip in pair] for pair in findings.pairs.pairs],
            "unpaired_generated": findings.pairs.unpaired(findings.generated),
            "unpaired_reference": findings.pairs.unpaired(findings.reference),
        },
        "models": _models(findings),
        "settings": {"seed": args.seed, "batch_size": args.batch_size, "device": findings.device},
        "versions": {
            "magnet_train": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
    if findings.clap_score_real is not None:
        content["measures"][CLAP_SCORE]["real"] = asdict(findings.clap_score_real)
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _command(args: argparse.Namespace) -> str:
    """Write the command with every option, so that defaults that change later do not change it."""
    words = ["magnet-train", "evaluate"]
    for name, value in vars(args).items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _side(side: Side) -> dict[str, Any]:
    return {
        "path": str(side.path),
        "clips": len(side.clips),
        "seconds": sum(clip.seconds for clip in side.clips),
        "captions": len(side.captioned),
        "silent": [clip.file.name for clip in side.clips if clip.silent],
        "left_out": [file._asdict() for file in side.left_out],
        "partial": [file._asdict() for file in side.partial],
        "unreadable_captions": [file._asdict() for file in side.problems],
    }


def _models(findings: EvaluationResult) -> dict[str, Any]:
    models: dict[str, Any] = {}
    if findings.clap is not None:
        models["clap"] = {
            **asdict(findings.clap.origin),
            "dimensions": findings.clap.dimensions,
            "sample_rate": findings.clap.sample_rate,
            "window_seconds": findings.clap.window_samples / findings.clap.sample_rate,
        }
    if findings.tagger is not None:
        models["classifier"] = {
            **asdict(findings.tagger.origin),
            "classes": findings.tagger.classes,
            "sample_rate": findings.tagger.sample_rate,
            "window_seconds": findings.tagger.window_samples / findings.tagger.sample_rate,
        }
    return models
