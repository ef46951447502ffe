"""Tables of `inspect` about a folder of shards.

Shapes: counts int64 [K, card] of the occurrences of each token of each codebook.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.shards.reading import ShardReader
from datamodules.shards.scan import Sample
from magnet_train.cli.console import duration, escape, facts_table, table, track

_EXAMPLES = 5
_WIDEST = 100  # characters of a caption
_FIRST_TOKENS = 10
_WORDS = (0, 1, 5, 9, 17, 33, 65, 129)  # where the rows of caption lengths begin
_BAR = 40  # characters of the longest bar


@dataclass
class _Statistics:
    """Statistics of the clips that were read."""

    counts: npt.NDArray[np.int64]  # [K, card]
    words: list[int] = field(default_factory=list)
    fields: Counter[str] = field(default_factory=Counter)  # clips in which each is filled in
    examples: list[Sample] = field(default_factory=list)


def shard_tables(folder: Path, most_clips: int) -> list[Table]:
    """Describe shards, with statistics of at most `most_clips` clips (0 for all); `UserError` if damaged."""
    reader = ShardReader(folder)
    total = len(reader)
    number = min(most_clips or total, total)
    statistics = _read(reader, np.linspace(0, total - 1, number).astype(np.int64))
    read = "all clips" if number == total else f"{number} of {total} clips"
    return [
        _overview(reader),
        _codebooks(statistics.counts, read),
        _captions(statistics, read),
        _caption_lengths(np.array(statistics.words)),
        _example_clips(statistics.examples, reader.manifest.codec.frame_rate),
        _first_tokens(statistics.examples[0]),
    ]


def _read(reader: ShardReader, chosen: npt.NDArray[np.int64]) -> _Statistics:
    codec = reader.manifest.codec
    found = _Statistics(np.zeros((codec.n_q, codec.card), dtype=np.int64))
    examples = set(chosen[:: max(1, len(chosen) // _EXAMPLES)][:_EXAMPLES].tolist())
    for clip in track(chosen.tolist(), "reading", "clips"):
        sample = reader[clip]
        for codebook, tokens in enumerate(sample.tokens):
            found.counts[codebook] += np.bincount(tokens, minlength=codec.card)
        found.words.append(len(str(sample.metadata.get("text", "")).split()))
        found.fields.update(name for name, value in sample.metadata.items() if value not in (None, ""))
        if clip in examples:
            found.examples.append(sample)
    return found


def _overview(reader: ShardReader) -> Table:
    manifest, codec = reader.manifest, reader.manifest.codec
    seconds = reader.index["frames"] / codec.frame_rate
    lengths = f"{seconds.min():.2f} / {np.median(seconds):.2f} / {seconds.max():.2f} s"
    facts = {
        "clips": f"{len(reader)}",
        "audio": duration(manifest.seconds),
        "clip length": f"{lengths} (shortest / median / longest)",
        "shards": f"{len(manifest.shards)}, {decimal(sum(shard.bytes for shard in manifest.shards))}",
        "codec": f"{codec.id}, weights {codec.sha256[:12]}",
        "codec audio": f"{codec.sample_rate} Hz, {'mono' if codec.channels == 1 else 'stereo'}",
        "tokens": f"{codec.codebooks} of {codec.card}, {codec.frame_rate:g} frames a second",
        "fingerprint": manifest.fingerprint,
    }
    return facts_table(str(reader.folder), facts)


def _codebooks(counts: npt.NDArray[np.int64], read: str) -> Table:
    """Show the use of each codebook: 2 ** entropy is the number of tokens in even use."""
    codebooks = table(f"tokens used ({read})", "codebook", "used", "dead", "in even use")
    for codebook, count in enumerate(counts):
        used = int((count > 0).sum())
        share = count[count > 0] / count.sum()
        effective = 2 ** -(share * np.log2(share)).sum()
        cells = (f"{used} of {len(count)}", f"{len(count) - used}", f"{effective:.0f}")
        codebooks.add_row(str(codebook), *cells)
    return codebooks


def _captions(statistics: _Statistics, read: str) -> Table:
    words = np.array(statistics.words)
    facts = {
        "words": f"{words.min()} / {np.median(words):g} / {words.max()} (fewest / median / most)",
        "empty": f"{(words == 0).sum()}",
        "filled in": ", ".join(f"{name} {n}" for name, n in statistics.fields.most_common(12)),
    }
    return facts_table(f"captions ({read})", facts)


def _caption_lengths(words: npt.NDArray[np.int64]) -> Table:
    """Draw a histogram of the number of words."""
    rows = np.searchsorted(_WORDS, words, side="right") - 1
    clips = np.bincount(rows, minlength=len(_WORDS))
    names = [str(a) if a + 1 == b else f"{a} to {b - 1}" for a, b in pairwise(_WORDS)]
    names.append(f"{_WORDS[-1]} or more")
    histogram = table("caption lengths", "words", "clips", "")
    bar = "#" if Console().options.ascii_only else "█"
    for row in range(rows.min(), rows.max() + 1):
        length = -(-int(clips[row]) * _BAR // int(clips.max()))
        histogram.add_row(names[row], str(clips[row]), bar * length)
    return histogram


def _example_clips(samples: list[Sample], frame_rate: float) -> Table:
    """Show clips with their captions, and with merged metadata where there is any."""
    merging = CaptionAugmentation(merge_metadata=1.0)
    captions = [str(sample.metadata.get("text", "")) for sample in samples]
    merged = [merging.caption(sample.metadata, seed=0, slot=slot) for slot, sample in enumerate(samples)]
    columns = {"text": captions}
    if merged != captions:
        columns["text with data.captions.merge_metadata"] = merged
    examples = table("examples", "key", "seconds", *columns)
    for sample, *texts in zip(samples, *columns.values(), strict=True):
        cut = [text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…" for text in texts]
        examples.add_row(escape(sample.key), f"{sample.tokens.shape[1] / frame_rate:.2f}", *map(escape, cut))
    return examples


def _first_tokens(sample: Sample) -> Table:
    first = table(f"first tokens of {escape(sample.key)}", "codebook", "frame 0, 1, ...")
    for codebook, tokens in enumerate(sample.tokens):
        first.add_row(str(codebook), " ".join(f"{token:>4}" for token in tokens[:_FIRST_TOKENS]))
    return first
