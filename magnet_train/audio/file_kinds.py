"""What is at a path: a file, something that must not be opened, or content that is not audio; and errors that say so."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import soundfile

from magnet_train.errors import UserError, cannot_read

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe (fifo)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_DOWNLOAD = "download it again or remove it"
_CONVERT = "convert it with `ffmpeg -i IN OUT.flac`"
_BEGINNINGS = (
    (rb"(\xef\xbb\xbf)?\s*(?i:<!doctype html|<html|<head|<body|<\?xml)", "a web page", _DOWNLOAD),
    (rb"....ftyp", "an MP4 or M4A file", _CONVERT),
    (rb"\xff[\xf1\xf9]", "an AAC file", _CONVERT),
    (rb"PK\x03\x04", "a zip archive", _DOWNLOAD),
    (rb"%PDF", "a PDF", _DOWNLOAD),
    (rb"\x89PNG", "a PNG picture", _DOWNLOAD),
    (rb"\xff\xd8\xff", "a JPEG picture", _DOWNLOAD),
    (rb"GIF8", "a GIF picture", _DOWNLOAD),
    (rb"\x1f\x8b", "a gzip file", _DOWNLOAD),
    (rb"\x1aE\xdf\xa3", "a WebM or Matroska file", _CONVERT),
    (rb"0&\xb2u\x8ef\xcf\x11", "a WMA file", _CONVERT),
    (rb"MAC ", "a Monkey's Audio file", _CONVERT),
    (rb"wvpk", "a WavPack file", _CONVERT),
    (rb"version https://git-lfs", "a git-lfs pointer and not the file itself", _DOWNLOAD),
)

# Messages of libsndfile that are not the reason.
_REASONS = {
    "SF_INFO struct incomplete": "its header has an impossible sample rate, number of channels or length",
    "File does not exist or is not a regular file": "it contains no MP3 frames that can be decoded",
}


def why_not_a_file(path: str | Path) -> str | None:
    """Check, without opening it, that a path is a file with content: a pipe would block, a device may never end.

    Returns:
        What is wrong, to follow the path in a sentence: "is a pipe (fifo), not a file"; None if nothing is.
    """
    try:
        found = os.stat(path)
    except ValueError:
        return "is not a valid path: it contains a NUL character"
    except OSError as error:
        return _why_not_found(path, error)
    if stat.S_ISREG(found.st_mode):
        return None if found.st_size else "is empty (0 bytes)"
    kind = next((kind for is_kind, kind in _KINDS if is_kind(found.st_mode)), "something else")
    return f"is {kind}, not a file"


def _why_not_found(path: str | Path, error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a link in a loop of links"
    with contextlib.suppress(OSError):
        return f"is a link to {os.readlink(path)}, which does not exist"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "does not exist"
    return f"cannot be read ({error.strerror})"


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn errors of opening or reading an audio file into one sentence.

    Raises:
        UserError: Names the file and what to do.
    """
    try:
        yield
    except OSError as error:
        raise cannot_read(path, error) from error
    # a false header, or a headerless .raw
    except (soundfile.SoundFileError, MemoryError, TypeError, ValueError) as error:
        kind, remedy = _kind_and_remedy(path) or ("", "")
        if kind:
            raise UserError(f"{path} is {kind}; {remedy}.") from error
        raise UserError(
            f"cannot read {path} as audio ({_reason(error)}); convert it to wav, flac, ogg or mp3."
        ) from error


def _reason(error: Exception) -> str:
    """Return libsndfile's message without its file name and full stop, or a better one."""
    words = str(error).rsplit(": ", 1)[-1].rstrip(".")
    return next((better for theirs, better in _REASONS.items() if theirs in words), words)


def _kind_and_remedy(path: str | Path) -> tuple[str, str] | None:
    """Recognise common files that are not read as audio by their first bytes.

    Returns:
        The kind ("a web page") and what to do about the file; None if the kind is unknown.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(512)
    except OSError:
        return None
    return next(
        ((kind, remedy) for pattern, kind, remedy in _BEGINNINGS if re.match(pattern, start, re.DOTALL)), None
    )
