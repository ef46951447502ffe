"""Count the tokens that change when a codec encodes a file in chunks instead of whole.

    python benchmarks/seam.py --codec facebook/encodec_32khz --audio song.flac

Chunks are those of tokenize: 30 s with the codec's context on each side. The file should be a few minutes long; it is also
encoded whole, which takes memory in proportion to its length.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from magnet_train.audio import read_audio
from magnet_train.codecs import load_codec
from magnet_train.codecs.chunked import CHUNK_SECONDS, encode_blocks


def main() -> None:
    """Encode one file both ways, and print the differing tokens of each codebook."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codec", required=True, help="codec, as in tokenize")
    parser.add_argument("--audio", type=Path, required=True, help="file of more than 34 s")
    parser.add_argument(
        "--context",
        type=float,
        help="context on each side, s (default: the codec's)",
    )
    args = parser.parse_args()
    codec = load_codec(args.codec)
    context = codec.context_seconds if args.context is None else args.context
    audio = read_audio(args.audio, codec.sample_rate, codec.channels)
    whole = codec.encode(audio[None])[0]  # [K, T]
    differs = whole != encode_blocks(codec, [audio], CHUNK_SECONDS, context)
    frames = differs.shape[1]
    print(f"{args.codec}: {frames} frames in chunks of {CHUNK_SECONDS:g} s with {context:g} s of context")
    table = Table("codebook", "differing tokens")
    for codebook, changed in enumerate(differs.sum(dim=1).tolist()):
        table.add_row(str(codebook), f"{changed} ({changed / frames:.2%})")
    Console().print(table)
    # Distance of the last change from the beginning of its chunk: how long the codec remembers.
    places = differs.any(dim=0).nonzero().flatten() % round(CHUNK_SECONDS * codec.frame_rate)
    if len(places):
        print(f"the last change is {int(places.max()) / codec.frame_rate:.2f} s into a chunk")


if __name__ == "__main__":
    main()
