"""Time and memory of `tokenize` on many files without encoding: list, compare, write; then 1 % more, then other captions."""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from datamodules.tokenize.audio_files import find_audio
from datamodules.tokenize.job import ShardJob
from datamodules.tokenize.sources import take_stats
from magnet_train.tokens import CodecInfo

CODEC = CodecInfo("none", "0" * 64, 16_000, 1, 50.0, n_q=4, card=64)
IN_A_FOLDER, IN_A_SHARD = 1_000, 256


def path_of(audio: Path, number: int) -> Path:
    return audio / f"{number // IN_A_FOLDER:04d}" / f"{number:07d}.wav"


def add_files(audio: Path, numbers: range) -> None:
    """Write files of a few bytes, which nobody reads, with captions."""
    for number in numbers:
        path = path_of(audio, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * (number % 97))
        path.with_suffix(".txt").write_text(f"song {number}")


@contextmanager
def measured(step: str) -> Iterator[None]:
    begin = time.process_time()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  {step:24}{time.process_time() - begin:7.1f} s of a core, peak {peak:5.0f} MB", flush=True)


def tokenize(audio: Path, shards: Path) -> None:
    """Do what the command does, with made-up tokens."""
    with measured("list"):
        files = find_audio(audio).files
    with measured("sizes and times"):
        sources = take_stats(files)
    with measured("compare"):
        job = ShardJob(shards, CODEC, {}, sources, IN_A_SHARD)
    print(f"  {job.plan}")
    tokens = np.zeros((CODEC.n_q, 5), np.int64)
    with measured("shards"):
        for unit, mine in job.units():
            with unit:
                for file in mine:
                    metadata = {"text": "a song", "source": file.name}
                    unit.add(file.name, file.key, tokens, metadata, f"audio of {file.name}")
                unit.finish()
    with measured("put together"):
        job.finish(lambda file: {"text": "another", "source": file.name})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    files: int = parser.parse_args().files
    with tempfile.TemporaryDirectory() as folder:
        audio, shards = Path(folder) / "audio", Path(folder) / "shards"
        add_files(audio, range(files))
        print(f"{files} files")
        tokenize(audio, shards)
        add_files(audio, range(files, files + files // 100))
        print("1 % more")
        tokenize(audio, shards)
        for number in range(0, files, max(1, files // 100)):
            path_of(audio, number).with_suffix(".txt").write_text("another caption")
        print("a hundred other captions")
        tokenize(audio, shards)


if __name__ == "__main__":
    main()
