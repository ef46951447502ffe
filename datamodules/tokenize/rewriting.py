"""Copy a shard without some of its samples, or with new metadata; all other bytes stay the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

from datamodules.shards.files import MalformedError, PlainFile
from datamodules.shards.scan import group_members, read_sample
from datamodules.shards.tar import BLOCK, Member, walk_tar
from datamodules.shards.writer import end_of_archive, sample_bytes
from magnet_train.errors import UserError, cannot_read
from magnet_train.tokens import CodecInfo

Edit: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]  # metadata -> new metadata


def copy_samples(source: Path, target: IO[bytes], edits: Mapping[str, Edit | None], codec: CodecInfo) -> int:
    """Write a tar of the samples of `source`, and return their number.

    Args:
        source: A tar that `tokenize` made.
        target: The new tar.
        edits: Key -> None to drop the sample, or a function that returns its new metadata.
        codec: Codec of the tokens.

    Raises:
        UserError: `source` is damaged or cannot be read.
    """
    try:
        tar = PlainFile(source)
    except OSError as error:
        raise cannot_read(source, error) from error
    samples = size = 0
    try:
        with tar:
            for key, members in group_members(walk_tar(tar)):
                edit = edits.get(key)
                if edit is not None:
                    sample, _, _ = read_sample(key, members, tar, codec)
                    size += target.write(sample_bytes(key, sample.tokens, edit(sample.metadata), codec))
                elif key not in edits:
                    start = members[0].header
                    size += target.write(tar.read(start, _end(members[-1]) - start))
                samples += edit is not None or key not in edits
    except MalformedError as error:
        raise UserError(
            f"{source} is damaged: {error}; copy it again, or tokenize all files again with --overwrite."
        ) from error
    target.write(end_of_archive(size))
    return samples


def _end(member: Member) -> int:
    return member.offset + -(-member.size // BLOCK) * BLOCK
