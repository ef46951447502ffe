"""Write a model folder from a checkpoint or any other model: ours (safetensors, model card), or audiocraft's pair."""

from __future__ import annotations

import argparse
from pathlib import Path

from magnet_train.cli.model_options import add_adapter, add_adapter_options, check_adapter
from magnet_train.cli.sampler_options import add_sampler_options, chosen_decoding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `magnet-train export`."""
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="PATH",
        help="what `fit` saved (runs/x/last.ckpt), or any model: a folder that `export` wrote, a release of "
        "audiocraft (folder or state_dict.bin), a hub id",
    )
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder to write; must not hold anything"
    )
    parser.add_argument(
        "--format",
        choices=["magnet", "audiocraft"],
        default="magnet",
        help="magnet: safetensors, config.json and a card; audiocraft: state_dict.bin and "
        "compression_state_dict.bin, which its MAGNeT.get_pretrained(DIR) reads (default: magnet)",
    )
    parser.add_argument(
        "--raw", action="store_true", help="take the weights as trained instead of their moving average"
    )
    add_adapter_options(parser)
    parser.add_argument(
        "--licence",
        metavar="ID",
        help="licence for the model card, an SPDX id such as CC-BY-4.0 (default: that of the model it was made from)",
    )
    add_sampler_options(parser)


def run(args: argparse.Namespace) -> None:
    """Read the model and write the folder.

    Raises:
        UserError: The model cannot be read, the folder cannot be written, or audiocraft could not read it.
    """
    check_adapter(args)
    from magnet_train.checkpoints.audiocraft.names import CODEC_FILE
    from magnet_train.checkpoints.card import NO_CODEC, note_on
    from magnet_train.models.transformer import count_parameters
    from magnet_train.pipeline.magnet import Magnet

    magnet = Magnet.from_pretrained(args.checkpoint, raw=args.raw)
    add_adapter(magnet, args)
    magnet.decoding = chosen_decoding(magnet.decoding, args)
    magnet.decoding.check(magnet.lm.n_q, magnet.lm.card)
    magnet.save_pretrained(args.out, licence=args.licence, format=args.format)
    weights = magnet.training.get("weights")
    which = {"ema": ", averaged weights", "raw": ", raw weights"}.get(str(weights), "")
    size = f"a transformer of {count_parameters(magnet.lm):,} parameters"
    print(f"wrote {args.out}: {size}{which}, licence {args.licence or magnet.licence}")
    if note_on(magnet.licence):  # the base's, whatever --licence says
        print(note_on(magnet.licence))
    if args.format == "audiocraft":
        if not (args.out / CODEC_FILE).exists():
            print(NO_CODEC)
        print(f"try it: audiocraft.models.MAGNeT.get_pretrained('{args.out}')")
    else:
        print(f"try it: magnet-train generate --model {args.out} --text '...' --out clips")
