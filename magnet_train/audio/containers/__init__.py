"""What lies in an audio file beside what libsndfile reads of it.

Recordings joined end to end, samples behind a count that is too small, and an end that is missing.
"""

from __future__ import annotations

import os
from pathlib import Path

from magnet_train.audio.containers.chunked import chunked_parts
from magnet_train.audio.containers.flac import flac_parts
from magnet_train.audio.containers.mp3 import mp3_parts
from magnet_train.audio.containers.ogg import ogg_parts
from magnet_train.audio.containers.part import Part, PartFile
from magnet_train.audio.containers.sniff import remedy_for, what_it_is

__all__ = ["Part", "PartFile", "parts_of", "remedy_for", "what_it_is"]


def parts_of(path: str | Path) -> list[Part]:
    """Find the recordings that a file holds one after another, usually one.

    Headers are followed, samples are not decoded; memory is bounded whatever the headers say.

    Args:
        path: A regular file that can be read.

    Returns:
        At least one; of a container that is not known here, the whole file.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:4] == b"OggS":
            found = ogg_parts(file, size)
        elif start[:4] == b"fLaC":
            found = flac_parts(file, size)
        elif start[:3] == b"ID3" or (len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0):
            found = mp3_parts(file, size)
        else:
            found = chunked_parts(file, size)
    return found or [Part(0, size)]
