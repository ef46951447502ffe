"""Parts of an audio file that libsndfile does not find by itself: recordings joined end to end, samples beyond a count
that is too small, and truncated ends.
"""

from __future__ import annotations

from magnet_train.audio.containers.chunks import chunk_parts
from magnet_train.audio.containers.flac_ogg import flac_parts, ogg_parts
from magnet_train.audio.containers.mp3 import mp3_parts
from magnet_train.audio.containers.part import Part, PartFile
from magnet_train.storage.file_source import FileSource, open_source, size_of

__all__ = ["Part", "PartFile", "parts_of"]


def parts_of(path: FileSource) -> list[Part]:
    """Find the recordings that a regular file holds one after another: usually one, the whole file.

    Headers are followed and samples are not decoded; memory is bounded whatever the headers say.
    """
    size = size_of(path)
    with open_source(path) as file:
        start = file.read(4)
        if start == b"OggS":
            find_parts = ogg_parts
        elif start == b"fLaC":
            find_parts = flac_parts
        elif start[:3] == b"ID3" or (len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0):
            find_parts = mp3_parts
        else:
            find_parts = chunk_parts
        return find_parts(file, size) or [Part(0, size)]
