"""`manifest.json`: codec, shards, sizes and hashes of a folder of shards.

It is written last: a folder with a manifest is complete.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datamodules.shards.files import MalformedError, read_whole
from magnet_train.errors import UserError, cannot_read
from magnet_train.storage.atomic_io import atomic_write
from magnet_train.storage.plain_text import parse_object
from magnet_train.tokens import CodecInfo

FORMAT = 1
MANIFEST_NAME = "manifest.json"
JOB_NAME = "tokenize.json"  # settings of the tokenize command; written before the first shard
WORK_NAME = ".tokenize"  # folder of its unfinished work
# About 170,000 shards; decoded, the worst JSON takes 25 times as much memory.
MAX_MANIFEST_BYTES = 32 * 2**20

_CODEC_RANGES: dict[str, tuple[float, float]] = {  # the widest published codecs have 32 codebooks
    "sample_rate": (1, 10**6),
    "channels": (1, 2),
    "frame_rate": (0.01, 10**6),
    "n_q": (1, 256),
    "card": (1, 2**16),  # tokens are uint16
    "streams": (1, 2),
}
_MAX_NAME_LENGTH = 255
_SHA256 = re.compile(r"[0-9a-f]{1,64}")
_QUOTED = 60  # characters of a value in an error
_REMEDY = "copy it again or tokenize again"


@dataclass(frozen=True)
class ShardEntry:
    """One tar in the manifest."""

    file: str  # name within the folder
    bytes: int  # size of the file
    samples: int  # clips in it
    frames: int  # token frames in it, over all clips
    sha256: str  # of the file, in hexadecimal


@dataclass(frozen=True)
class Manifest:
    """The record of a folder of shards."""

    codec: CodecInfo  # that made the tokens
    shards: tuple[ShardEntry, ...]  # an index row names a shard by its place here
    index_sha256: str  # of the index sidecar, in hexadecimal

    @property
    def samples(self) -> int:
        """Clips in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def seconds(self) -> float:
        """Length of the audio in all shards (s)."""
        return sum(shard.frames for shard in self.shards) / self.codec.frame_rate

    @property
    def fingerprint(self) -> str:
        """Identify this set of clips: 16 hexadecimal digits that do not depend on where the folder lies."""
        text = "\n".join(shard.sha256 for shard in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically.

    Raises:
        UserError: No room or no permission, or more shards than a manifest can list.
    """
    record = {
        "format": FORMAT,
        "codec": manifest.codec.to_dict(),
        "samples": manifest.samples,
        "seconds": round(manifest.seconds, 3),
        "index_sha256": manifest.index_sha256,
        "shards": [asdict(shard) for shard in manifest.shards],
    }
    content = json.dumps(record, indent=1).encode() + b"\n"
    if len(content) > MAX_MANIFEST_BYTES:
        raise UserError(
            f"{folder} has {len(manifest.shards)} shards, more than a manifest of {MAX_MANIFEST_BYTES} bytes "
            "can list; put more clips into each."
        )
    with atomic_write(folder / MANIFEST_NAME) as file:
        file.write(content)


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a folder of shards.

    Raises:
        UserError: The folder or its manifest is missing, unreadable, or of a later format.
    """
    path = folder / MANIFEST_NAME
    try:
        return parse_manifest(read_whole(path, MAX_MANIFEST_BYTES), path)
    except FileNotFoundError as error:
        raise UserError(_explain_missing(folder)) from error
    except MalformedError as error:
        raise UserError(f"{path} {error}; {_REMEDY}.") from error
    except OSError as error:
        raise cannot_read(path, error, _REMEDY) from error


def parse_manifest(content: bytes, path: Path | str) -> Manifest:
    """Decode and check the bytes of a `manifest.json`; `path` is named in errors.

    Raises:
        UserError: It is unreadable, of a later format, or holds impossible values.
    """
    try:
        record = parse_object(content)
    except ValueError as error:
        raise UserError(f"{path} is unreadable ({error}); {_REMEDY}.") from error
    found = record.get("format")
    if type(found) is not int or found != FORMAT:
        raise UserError(
            f"{path} has format {_quote(found)} and this version reads format {FORMAT}; tokenize again."
        )
    try:
        codec = read_codec(_field(record, "codec", _is_a(dict)), where=f"codec in {path}")
        entries = _field(record, "shards", _is_a(list))
        shards = tuple(_read_entry(entry, f"shards[{place}]") for place, entry in enumerate(entries))
        index_sha256 = _field(record, "index_sha256", _is_sha256)
    except MalformedError as error:
        raise UserError(f"{path} is invalid at {error}; {_REMEDY}.") from error
    names = Counter(shard.file for shard in shards)
    if len(names) < len(shards):
        raise UserError(f"{path} lists {names.most_common(1)[0][0]} twice; {_REMEDY}.")
    manifest = Manifest(codec, shards, index_sha256)
    if not manifest.samples:
        raise UserError(f"{path} lists no clips; {_REMEDY}.")
    return manifest


def read_codec(record: Mapping[str, Any], where: str) -> CodecInfo:
    """Read the fields of a `CodecInfo`, and check the ranges of format 1; `where` names file and key in errors.

    Raises:
        UserError: A field is missing, of another type, or out of range.
    """
    for name, value in record.items():
        low, high = _CODEC_RANGES.get(name, (None, None))
        if name in ("id", "sha256", "kind"):
            fits = isinstance(value, str) and len(value) <= _MAX_NAME_LENGTH and value.isprintable()
            wanted = f"printable text of at most {_MAX_NAME_LENGTH} characters"
        elif low is not None and high is not None:
            kinds = (int, float) if name == "frame_rate" else (int,)
            fits = type(value) in kinds and low <= value <= high
            wanted = f"{'a' if float in kinds else 'a whole'} number in {low:g}..{high}"
        else:
            continue  # from a later version
        if not fits:
            raise UserError(f"{where} has {name} {_quote(value)} and needs {wanted}; {_REMEDY}.")
    return CodecInfo.from_dict(record, where=where)


def check_shard_name(file: str) -> None:
    """Raise MalformedError unless the name is that of a tar in the folder itself: manifests may come from elsewhere."""
    fits = file.endswith(".tar") and not file.startswith(".") and "/" not in file and "\\" not in file
    if not fits or not file.isprintable() or len(file.encode()) > _MAX_NAME_LENGTH:
        raise MalformedError(f"shard name {_quote(file)}")


def _read_entry(record: Any, where: str) -> ShardEntry:
    if not isinstance(record, dict):
        raise MalformedError(f"{where} {_quote(record)}")
    try:
        file = _field(record, "file", _is_a(str))
        check_shard_name(file)
        counts = {name: _field(record, name, _is_count) for name in ("bytes", "samples", "frames")}
        shard = ShardEntry(file=file, sha256=_field(record, "sha256", _is_sha256), **counts)
    except MalformedError as error:
        raise MalformedError(f"{where}: {error}") from error
    if shard.frames < shard.samples:
        raise MalformedError(f"{where}: {shard.samples} samples in {shard.frames} frames")
    return shard


def _field(record: Mapping[str, Any], name: str, is_valid: Callable[[Any], bool]) -> Any:
    if name not in record:
        raise MalformedError(f"{name}, which is missing")
    if not is_valid(record[name]):
        raise MalformedError(f"{name} {_quote(record[name])}")
    return record[name]


def _is_a(kind: type) -> Callable[[Any], bool]:
    return lambda value: type(value) is kind


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63  # exactly: True is an int to Python


def _is_sha256(value: Any) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _quote(value: Any) -> str:
    """Return a value for an error: escaped, and only its beginning."""
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__}"
    text = ascii(value)
    return text if len(text) <= _QUOTED else text[:_QUOTED] + "..."


def _explain_missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"no folder at {folder}; make one with `magnet-train tokenize --audio DIR --out {folder}`."
    if (folder / JOB_NAME).exists():
        return f"{folder} is unfinished; give the tokenize command that began it again to complete it."
    if any(folder.glob("*.tar")):
        return (
            f"{folder} holds tars but no {MANIFEST_NAME}; if they are token shards from elsewhere, index "
            f"them with `magnet-train verify {folder} --write_index`."
        )
    return f"{folder} holds no shards; make some with `magnet-train tokenize --audio DIR --out {folder}`."
