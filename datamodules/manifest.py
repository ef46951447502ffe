"""`manifest.json`: what a folder of shards holds and how to tell that it is unharmed.

It is written last: a folder that has one is complete.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from magnet_train.errors import UserError, cannot_read
from magnet_train.tokens import CodecInfo
from magnet_train.whole_files import whole_file

FORMAT = 1
MANIFEST_NAME = "manifest.json"
JOB_NAME = "tokenize.json"  # what tokenize was asked for; there from its beginning


@dataclass(frozen=True)
class ShardEntry:
    """What the manifest says of one tar.

    Args:
        file: Name within the folder.
        bytes: Size of the file.
        samples: Clips in it.
        frames: Token frames in it, over all clips.
        sha256: Hash of the file in hexadecimal.
    """

    file: str
    bytes: int
    samples: int
    frames: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """A folder of shards in one record.

    Args:
        codec: Who made the tokens.
        shards: One entry for each tar; an index row names a shard by its place here.
        index_sha256: Hash of the index sidecar in hexadecimal.
    """

    codec: CodecInfo
    shards: tuple[ShardEntry, ...]
    index_sha256: str

    @property
    def samples(self) -> int:
        """Clips in all shards."""
        return sum(shard.samples for shard in self.shards)

    @property
    def seconds(self) -> float:
        """Audio in all shards."""
        return sum(shard.frames for shard in self.shards) / self.codec.frame_rate

    @property
    def fingerprint(self) -> str:
        """Tell this set of clips from any other: 16 hexadecimal digits, the same wherever the folder lies."""
        text = "\n".join(shard.sha256 for shard in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` in one step.

    Raises:
        UserError: No room or no permission.
    """
    record = {
        "format": FORMAT,
        "codec": manifest.codec.to_dict(),
        "samples": manifest.samples,
        "seconds": round(manifest.seconds, 3),
        "index_sha256": manifest.index_sha256,
        "shards": [asdict(shard) for shard in manifest.shards],
    }
    with whole_file(folder / MANIFEST_NAME) as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a folder of shards.

    Raises:
        UserError: The folder or its manifest is missing, unreadable, or of a later format.
    """
    path = folder / MANIFEST_NAME
    try:
        return parse_manifest(path.read_bytes(), path)
    except FileNotFoundError as error:
        raise UserError(_explain_missing(folder)) from error
    except OSError as error:
        raise cannot_read(path, error, "copy it again or tokenize again") from error


def parse_manifest(content: bytes, path: Path | str) -> Manifest:
    """Decode the bytes of a `manifest.json`; `path` is named in errors.

    Raises:
        UserError: It is unreadable or of a later format.
    """
    try:
        record = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is unreadable ({error}); copy it again or tokenize again.") from error
    found = record.get("format") if isinstance(record, dict) else None
    if found != FORMAT:
        raise UserError(
            f"{path} is of format {found} and this version reads format {FORMAT}; tokenize again."
        )
    try:
        return Manifest(
            codec=CodecInfo.from_dict(record["codec"], where=f"codec in {path}"),
            shards=tuple(_read_entry(entry) for entry in record["shards"]),
            index_sha256=str(record["index_sha256"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} lacks or garbles {error}; copy it again or tokenize again.") from error


def _read_entry(entry: Mapping[str, Any]) -> ShardEntry:
    file = str(entry["file"])
    if Path(file).name != file:  # a manifest from elsewhere must not point out of its folder
        raise ValueError(f"shard name {file!r}")
    return ShardEntry(
        file=file,
        bytes=int(entry["bytes"]),
        samples=int(entry["samples"]),
        frames=int(entry["frames"]),
        sha256=str(entry["sha256"]),
    )


def _explain_missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"no folder at {folder}; make one with `magnet-train tokenize --audio DIR --out {folder}`."
    if (folder / JOB_NAME).exists():
        return f"{folder} is unfinished; give the tokenize command that began it again, and it goes on."
    if any(folder.glob("*.tar")):
        return (
            f"{folder} holds tars but no {MANIFEST_NAME}; if they are token shards from elsewhere, index "
            f"them with `magnet-train verify {folder} --write-index`."
        )
    return f"{folder} holds no shards; make some with `magnet-train tokenize --audio DIR --out {folder}`."
