"""Compare generated with real audio: FAD-CLAP, CLAP score and KL-AST, each with its value for chance and for real audio;
and log-mel distance, spectrum, tempo, loudness, clipping and silence, which need no models. With --shards, the distance
from the nearest training clips shows whether clips are copies.

A measure that cannot be computed is reported with the reason; the exit code is 1 only if none can be. FAD, CLAP score
and KL use other models than papers do (VGGish, LAION's CLAP, PaSST), so compare them only with one another.
"""

from __future__ import annotations

import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from magnet_train.cli.options import DeviceOptions, declare, option, whole_number
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import explain_disk_errors

CLAP = "laion/larger_clap_music"  # the defaults of magnet_train.evaluation, which is not imported for --help
CLASSIFIER = "MIT/ast-finetuned-audioset-10-10-0.4593"


@dataclass(frozen=True)
class EvaluateRequest(DeviceOptions):
    """The options of `evaluate`."""

    generated: Path = option(
        "folder of generated clips (wav, flac, ogg, mp3; any rate and length), with captions in the results.jsonl of "
        "`generate`, or in a .txt or .json beside each",
        required=True,
        metavar="DIR",
    )
    reference: Path = option(
        "folder of real clips, or a .jsonl or .csv that lists them, as for `tokenize`; a clip with the name of a "
        "generated one, or with its id in results.jsonl, is its pair",
        required=True,
        metavar="DIR",
    )
    clap: str = option(
        "folder or hub id of a transformers CLAP model; laion/clap-htsat-unfused for sound effects",
        default=CLAP,
        metavar="NAME",
    )
    classifier: str = option(
        "folder or hub id of an audio spectrogram transformer", default=CLASSIFIER, metavar="NAME"
    )
    shards: Path | None = option(
        "folder of shards that the model was trained on: find the nearest training clip of each generated clip",
        metavar="DIR",
    )
    val_shards: Path | None = option(
        "with --shards: folder of held-out shards to compare with; without it, the reference", metavar="DIR"
    )
    out: Path | None = option("write all numbers, models and versions to this .json as well", metavar="FILE")
    batch_size: int = option(
        "windows of about 10 s per call of a model; changes numbers by rounding only",
        type=whole_number(1),
        default=16,
        metavar="B",
    )
    seed: int = option("seed of noise, random splits and intervals", type=whole_number(0), default=0)

    def __post_init__(self) -> None:
        if self.val_shards is not None and self.shards is None:
            raise UserError("--val_shards needs --shards DIR; give both, or leave the held-out ones out.")

    def command(self) -> str:
        """Return the command with every option, so that a later change of a default does not change its meaning."""
        words = ["magnet-train", "evaluate"]
        for name, value in vars(self).items():
            words += [] if value is None else [f"--{name}", str(value)]
        return shlex.join(words)


add_arguments = declare(EvaluateRequest)


def run(request: EvaluateRequest) -> None:
    """Print a table and write the numbers; raises `UserError` without audio, or if nothing can be computed."""
    if request.out is not None:
        _require_writable(request.out)
    from rich.console import Console

    from magnet_train.cli.evaluation.clips import pair, read_side
    from magnet_train.cli.evaluation.measure import EvaluationResult, measure
    from magnet_train.cli.evaluation.report import print_report, write_report
    from magnet_train.cli.evaluation.training_clips import TrainingShards

    device = request.chosen_device()
    shards = (
        None if request.shards is None else TrainingShards.open(request.shards, request.val_shards, device)
    )
    with Console(stderr=True).status("looking for clips"):
        generated, reference = read_side(request.generated), read_side(request.reference)
        pairs = pair(generated, reference)
    result = EvaluationResult(generated, reference, pairs, device, request.batch_size, request.seed)
    measure(result, request.clap, request.classifier, shards)
    print_report(result)
    if request.out is not None:
        write_report(request.out, result, request.command())
        print(f"wrote {request.out}")
    if not result.measures and result.sound is None:
        raise UserError("none of the measures could be computed; the reasons are above.")


def _require_writable(out: Path) -> None:
    """Refuse a file that cannot be written, before the work rather than after it."""
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file, such as {out / 'evaluation.json'}.")
    existing = next(folder for folder in out.absolute().parents if folder.exists())
    with explain_disk_errors(out), tempfile.TemporaryFile(dir=existing):
        pass
