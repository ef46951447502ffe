"""How bad shards are described: what is wrong, in which shard, at which key."""

from __future__ import annotations

from dataclasses import dataclass


class MalformedError(ValueError):
    """Bytes that are not what format 1 promises; says what, and leaves where to the caller."""


class ShrunkError(MalformedError):
    """A file ended before the bytes that it had when it was opened."""


@dataclass(frozen=True)
class Issue:
    """One thing that is wrong with a folder of shards.

    Args:
        shard: File name within the folder.
        key: Sample within the shard, or None where the shard as a whole is meant.
        what: What is wrong, in words.
        remedy: What to do about it.
    """

    shard: str
    key: str | None
    what: str
    remedy: str = "copy it again or tokenize again"

    def __str__(self) -> str:
        where = self.shard if self.key is None else f"{self.shard}, key {self.key}"
        return f"{where}: {self.what}"
