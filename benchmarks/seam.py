"""Count the tokens that change when a codec encodes a file in pieces instead of at once.

    python benchmarks/seam.py --codec facebook/encodec_32khz --audio song.flac

Pieces are those of tokenize: 30 s with 2 s of context on each side. The file should be a few minutes long; it is
encoded whole as well, which takes memory in proportion.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from magnet_train.audio import read_audio
from magnet_train.audio.chunked import CHUNK_SECONDS, CONTEXT_SECONDS, encode_audio
from magnet_train.codecs import load_codec


def main() -> None:
    """Encode one file both ways and print what differs, by codebook."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--codec", required=True, help="as for tokenize")
    parser.add_argument("--audio", type=Path, required=True, help="a file of more than 34 s")
    parser.add_argument(
        "--context", type=float, default=CONTEXT_SECONDS, help="seconds (default: %(default)s)"
    )
    args = parser.parse_args()
    codec = load_codec(args.codec)
    audio = read_audio(args.audio, codec.sample_rate, codec.channels)
    whole = codec.encode(audio[None])[0]  # [K, T]
    differs = whole != encode_audio(codec, audio, CHUNK_SECONDS, args.context)
    frames = differs.shape[1]
    print(
        f"{args.codec}: {frames} frames in pieces of {CHUNK_SECONDS:g} s with {args.context:g} s of context"
    )
    table = Table("codebook", "differing tokens")
    for codebook, changed in enumerate(differs.sum(dim=1).tolist()):
        table.add_row(str(codebook), f"{changed} ({changed / frames:.2%})")
    Console().print(table)
    # of each piece's tokens, how far from its beginning the last change is: what the codec forgets how fast
    places = differs.any(dim=0).nonzero().flatten() % round(CHUNK_SECONDS * codec.frame_rate)
    if len(places):
        print(f"the last change is {int(places.max()) / codec.frame_rate:.2f} s into a piece")


if __name__ == "__main__":
    main()
