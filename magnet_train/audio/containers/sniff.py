"""Say what a file is that is not the audio its name promises."""

from __future__ import annotations

import re

_BEGINNINGS = {
    b"PK\x03\x04": "a zip archive",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"\x1f\x8b": "a gzip file",
    b"\x1aE\xdf\xa3": "a WebM or Matroska file",
    b"0&\xb2u\x8ef\xcf\x11": "a WMA file",
    b"MAC ": "a Monkey's Audio file",
    b"wvpk": "a WavPack file",
    b"version https://git-lfs": "a git-lfs pointer and not the file itself",
}
_NOT_READ = ("a WebM", "a WMA", "a Monkey", "a WavPack", "an MP4", "an AAC")  # audio, for ffmpeg to convert
_WEB_PAGE = re.compile(rb"\s*(<!doctype html|<html|<head|<body|<\?xml)", re.IGNORECASE)


def what_it_is(start: bytes) -> str | None:
    """Name the kind of a file by its first bytes: "a web page", None if nothing is known.

    Args:
        start: A few hundred of them.
    """
    if _WEB_PAGE.match(start.removeprefix(b"\xef\xbb\xbf")):
        return "a web page"
    if start[4:8] == b"ftyp":
        return "an MP4 or M4A file"
    if start[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return "an AAC file"
    return next((kind for beginning, kind in _BEGINNINGS.items() if start.startswith(beginning)), None)


def remedy_for(kind: str) -> str:
    """Say what to do about a file of a kind that is not read."""
    if kind.startswith(_NOT_READ):
        return "convert it with `ffmpeg -i IN OUT.flac`"
    return "download it again or remove it"
