"""Measure generated sound against real sound: FAD-CLAP, CLAP score and KL-AST, each beside chance and what real
sound gets.

What cannot be computed says why and the rest is still reported; the exit code is 1 if nothing could be. None of
the numbers can be compared with those of papers, which come from other models (VGGish, LAION's CLAP, PaSST):
compare runs of this command with one another.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from magnet_train.cli.formatting import at_least
from magnet_train.cli.model_options import add_device_option, chosen_device
from magnet_train.errors import UserError, first_line
from magnet_train.storage.atomic_io import explain_disk_errors

CLAP = "laion/larger_clap_music"  # the defaults of magnet_train.evaluation, which is not imported for --help
CLASSIFIER = "MIT/ast-finetuned-audioset-10-10-0.4593"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what can be set on the command line."""
    parser.add_argument(
        "--generated",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of generated clips (wav, flac, ogg, mp3; any rate and length), as `generate` writes it with "
        "captions in results.jsonl, or with a .txt or .json beside each",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of real clips, or a .jsonl or .csv that lists them, as `tokenize` takes it; clips of the same name as "
        "a generated one, or named as its id in results.jsonl, are its pair",
    )
    parser.add_argument(
        "--clap",
        default=CLAP,
        metavar="NAME",
        help="folder or hub id of a CLAP model of transformers; laion/clap-htsat-unfused for sound effects "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--classifier",
        default=CLASSIFIER,
        metavar="NAME",
        help="folder or hub id of an audio spectrogram transformer (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write all numbers, models and versions to this .json as well",
    )
    parser.add_argument(
        "--batch-size",
        type=at_least(1),
        default=16,
        metavar="B",
        help="windows of about 10 s computed at once; changes numbers by rounding only (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=at_least(0),
        default=0,
        help="of the noise, the random splits and the intervals (default: %(default)s)",
    )
    add_device_option(parser)


def run(args: argparse.Namespace) -> None:
    """Measure, print a table and write the numbers.

    Raises:
        UserError: There is no audio on a side, or none of the measures could be computed.
    """
    if args.out is not None:
        if args.out.is_dir():
            raise UserError(
                f"--out {args.out} is a folder; name a file, such as {args.out / 'evaluation.json'}."
            )
        there = next(folder for folder in args.out.absolute().parents if folder.exists())
        with explain_disk_errors(args.out), tempfile.TemporaryFile(dir=there):
            pass  # cannot be written: told now rather than after the work
    from rich.console import Console

    from magnet_train.cli.evaluation.clips import pair, read_side
    from magnet_train.cli.evaluation.measures import EvaluationResult, measure
    from magnet_train.cli.evaluation.report import print_report, write_report

    errors = Console(stderr=True)
    with errors.status("looking for clips"):
        generated, reference = read_side(args.generated), read_side(args.reference)
        findings = EvaluationResult(generated, reference, pair(generated, reference), _device(args.device))
    measure(findings, args.clap, args.classifier, args.batch_size, args.seed, errors)
    print_report(Console(), findings)
    if args.out is not None:
        write_report(args.out, findings, args)
        print(f"wrote {args.out}")
    if not findings.measures:
        raise UserError("none of the measures could be computed; see above why.")


def _device(name: str | None) -> str:
    import torch

    device = chosen_device(name)
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter where it has no CUDA
        raise UserError(
            f"--device {device} cannot be used ({first_line(error)}); choose cpu or cuda."
        ) from error
    return device
