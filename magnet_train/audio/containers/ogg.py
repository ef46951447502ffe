"""Ogg: chained streams, of which libsndfile reads the first, and streams without an end, which were truncated.

Source: RFC 3533, section 6.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import IO

from magnet_train.audio.containers.part import Part, bytes_at, find

_CAPTURE = b"OggS"
_HEADER = 27  # bytes, the last of which counts the segments
_FIRST, _LAST = 2, 4  # flags: of a page that begins a stream, of one that ends it


def ogg_parts(file: IO[bytes], size: int) -> list[Part]:
    """Find the links of a chain; each begins with the first pages of its streams."""
    found: list[Part] = []
    place = 0
    beginning = ended = False
    while place < size:
        header = bytes_at(file, place, _HEADER)
        if len(header) < _HEADER or header[:4] != _CAPTURE:
            place = find(file, re.compile(_CAPTURE), place + header.startswith(_CAPTURE), size)
            if place < 0:
                break
            if size - place < _HEADER:
                ended = False
                break
            continue
        flags = header[5]
        if flags & _FIRST and not beginning:
            if found:
                found[-1] = replace(found[-1], end=place, cut=not ended)
            found.append(Part(place if found else 0, size))
        beginning = bool(flags & _FIRST)
        place += _HEADER + header[26] + sum(file.read(header[26]))
        ended = bool(flags & _LAST) and place <= size
    if found:
        found[-1] = replace(found[-1], cut=not ended)
    return found
