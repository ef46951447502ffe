"""Tables about a folder of shards.

Shapes: counts int64 [K, card] of how often each token of each codebook was seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from datamodules.caption_augmentation import CaptionAugmentation
from datamodules.shards.reading import Sample, ShardReader
from magnet_train.cli.cells import escape
from magnet_train.cli.formatting import duration, size

_EXAMPLES = 5
_WIDEST = 100  # characters of a caption
_FIRST_TOKENS = 10
_WORDS = (0, 1, 5, 9, 17, 33, 65, 129)  # where the rows of caption lengths begin
_BAR = 40  # characters of the longest bar


@dataclass
class _Statistics:
    """What a walk over the clips finds."""

    counts: npt.NDArray[np.int64]  # [K, card]
    words: list[int] = field(default_factory=list)
    fields: Counter[str] = field(default_factory=Counter)
    examples: list[Sample] = field(default_factory=list)


def shard_tables(folder: Path, most_clips: int) -> list[Table]:
    """Describe a folder of shards.

    Args:
        folder: Shards with manifest and index.
        most_clips: Clips to read for the statistics, evenly spread; 0 reads all.

    Raises:
        UserError: The folder or a clip is damaged.
    """
    reader = ShardReader(folder)
    total = len(reader)
    chosen = np.arange(total)
    if 0 < most_clips < total:
        chosen = np.linspace(0, total - 1, most_clips).astype(np.int64)
    statistics = _read(reader, chosen)
    read = "all clips" if len(chosen) == total else f"{len(chosen)} of {total} clips"
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
    shown = set(chosen[:: max(1, len(chosen) // _EXAMPLES)][:_EXAMPLES].tolist())
    bar = Console(stderr=True)
    for clip in track(chosen.tolist(), "reading clips", transient=True, console=bar):
        sample = reader[clip]
        for codebook, tokens in enumerate(sample.tokens):
            found.counts[codebook] += np.bincount(tokens, minlength=codec.card)
        found.words.append(len(str(sample.metadata.get("text", "")).split()))
        found.fields.update(sample.metadata.keys())
        if clip in shown:
            found.examples.append(sample)
    return found


def _overview(reader: ShardReader) -> Table:
    manifest, codec = reader.manifest, reader.manifest.codec
    seconds = reader.index["frames"] / codec.frame_rate
    table = _table(escape(f"{reader.folder}"), "", "")
    table.add_row("clips", f"{len(reader)}")
    table.add_row("audio", duration(manifest.seconds))
    table.add_row("clip length", f"{seconds.min():.2f} / {np.median(seconds):.2f} / {seconds.max():.2f} s "
                                 "(shortest / median / longest)")  # fmt: skip
    table.add_row("shards", f"{len(manifest.shards)}, {size(sum(s.bytes for s in manifest.shards))}")
    table.add_row("codec", f"{escape(codec.id)}, weights {escape(codec.sha256[:12])}")
    table.add_row("codec audio", f"{codec.sample_rate} Hz, {'mono' if codec.channels == 1 else 'stereo'}")
    table.add_row("tokens", f"{codec.n_q} codebooks of {codec.card}, {codec.frame_rate:g} frames a second")
    table.add_row("fingerprint", escape(manifest.fingerprint))
    return table


def _codebooks(counts: npt.NDArray[np.int64], read: str) -> Table:
    """Say how much of each codebook is used: 2 ** entropy is the number of tokens in even use."""
    table = _table(f"tokens used ({read})", "codebook", "used", "dead", "in even use")
    for codebook, count in enumerate(counts):
        used = int((count > 0).sum())
        share = count[count > 0] / count.sum()
        effective = 2 ** -(share * np.log2(share)).sum()
        table.add_row(str(codebook), f"{used} of {len(count)}", f"{len(count) - used}", f"{effective:.0f}")
    return table


def _captions(statistics: _Statistics, read: str) -> Table:
    words = np.array(statistics.words)
    table = _table(f"captions ({read})", "", "")
    table.add_row("words", f"{words.min()} / {np.median(words):g} / {words.max()} (fewest / median / most)")
    table.add_row("empty", f"{int((words == 0).sum())}")
    table.add_row("fields", ", ".join(f"{escape(name)} {n}" for name, n in statistics.fields.most_common(12)))
    return table


def _caption_lengths(words: npt.NDArray[np.int64]) -> Table:
    """Draw how many captions have how many words."""
    rows = np.searchsorted(_WORDS, words, side="right") - 1
    table = _table("caption lengths", "words", "clips", "")
    most = int(np.bincount(rows).max())
    bar = "#" if Console().options.ascii_only else "█"
    for row in range(int(rows.min()), int(rows.max()) + 1):
        clips = int((rows == row).sum())
        table.add_row(_range_of_words(row), str(clips), bar * -(-clips * _BAR // most))
    return table


def _range_of_words(row: int) -> str:
    first = _WORDS[row]
    if row + 1 == len(_WORDS):
        return f"{first} or more"
    last = _WORDS[row + 1] - 1
    return str(first) if first == last else f"{first} to {last}"


def _example_clips(examples: list[Sample], frame_rate: float) -> Table:
    """Show clips as a model gets them: the caption, and the one with merged metadata if there is any."""
    merging = CaptionAugmentation(merge_metadata=1.0)
    captions = [str(sample.metadata.get("text", "")) for sample in examples]
    merged = [merging.caption(sample.metadata, seed=0, slot=slot) for slot, sample in enumerate(examples)]
    columns = ["key", "seconds", "text"]
    if merged != captions:
        columns.append("text with data.captions.merge_metadata")
    table = _table("examples", *columns)
    for sample, *texts in zip(examples, captions, merged, strict=True):
        shown = [escape(_cut(text)) for text in texts[: len(columns) - 2]]
        table.add_row(escape(sample.key), f"{sample.tokens.shape[1] / frame_rate:.2f}", *shown)
    return table


def _first_tokens(sample: Sample) -> Table:
    table = _table(f"first tokens of {escape(sample.key)}", "codebook", "frame 0, 1, ...")
    for codebook, tokens in enumerate(sample.tokens):
        table.add_row(str(codebook), " ".join(f"{token:>4}" for token in tokens[:_FIRST_TOKENS]))
    return table


def _cut(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
