"""Export a checkpoint or any other model as a folder: ours (safetensors, model card), or audiocraft's pair of files."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from magnet_train.cli.options import AdapterOptions, SamplerOptions, add_adapter_options, add_sampler_options


@dataclass(frozen=True)
class ExportRequest(AdapterOptions, SamplerOptions):
    """The options of `export`."""

    checkpoint: str
    out: Path
    format: Literal["magnet", "audiocraft"]
    raw: bool
    licence: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train export`."""
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="checkpoint of `fit` (runs/x/last.ckpt), or any model: a folder of `export`, a release of audiocraft "
        "(folder or state_dict.bin), a hub id",
    )
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write; must be empty or new")
    add(
        "--format",
        choices=["magnet", "audiocraft"],
        default="magnet",
        help="magnet: safetensors, config.json and a card; audiocraft: state_dict.bin and "
        "compression_state_dict.bin, which its MAGNeT.get_pretrained(DIR) reads (default: magnet)",
    )
    add("--raw", action="store_true", help="take the trained weights instead of their moving average")
    add_adapter_options(parser)
    add(
        "--licence",
        metavar="ID",
        help="licence for the model card, an SPDX id such as CC-BY-4.0 (default: that of the base model)",
    )
    add_sampler_options(parser)


def run(args: argparse.Namespace) -> None:
    """Read the model and write the folder.

    Raises:
        UserError: The model cannot be read, the folder cannot be written, or audiocraft could not read it.
    """
    request = ExportRequest(**vars(args))
    from magnet_train.checkpoints.audiocraft.read import CODEC_FILE
    from magnet_train.checkpoints.card import NO_CODEC
    from magnet_train.checkpoints.licence import note_on
    from magnet_train.models.transformer import count_parameters
    from magnet_train.pipeline.magnet import Magnet

    magnet = Magnet.from_pretrained(request.checkpoint, raw=request.raw)
    request.add_adapter(magnet)
    magnet.decoding = request.decoding(magnet)
    magnet.save_pretrained(request.out, licence=request.licence, format=request.format)
    weights = {"ema": ", averaged weights", "raw": ", raw weights"}.get(
        str(magnet.training.get("weights")), ""
    )
    size = f"a transformer of {count_parameters(magnet.lm):,} parameters"
    print(f"wrote {request.out}: {size}{weights}, licence {request.licence or magnet.licence}")
    if note_on(magnet.licence):  # the base's, whatever --licence is
        print(note_on(magnet.licence))
    if request.format == "audiocraft":
        if not (request.out / CODEC_FILE).exists():
            print(NO_CODEC)
        print(f"try it: audiocraft.models.MAGNeT.get_pretrained('{request.out}')")
    else:
        print(f"try it: magnet-train generate --model {request.out} --text '...' --out clips")
