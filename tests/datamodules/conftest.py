"""Small real shards with payloads that identify the clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.shard_writer import ShardWriter
from magnet_train.tokens import CodecInfo

CODEC = CodecInfo(id="tiny", sha256="ab" * 32, sample_rate=16000, channels=1, frame_rate=50.0, n_q=4, card=64)


def clip_tokens(number: int, frames: int) -> np.ndarray:
    """Tokens [4, frames]: the first codebook holds the clip's number, the second the frame, mod 64."""
    tokens = np.zeros((4, frames), dtype=np.int64)
    tokens[0] = number % 64
    tokens[1] = np.arange(frames) % 64
    tokens[2:] = np.random.default_rng(number).integers(0, 64, (2, frames))
    return tokens


MakeShards = Callable[..., Path]


@pytest.fixture
def codec() -> CodecInfo:
    return CODEC


@pytest.fixture(scope="session")
def write_shards() -> MakeShards:
    """Return a function that writes `clips` clips into a folder, `frames` long (a number or a function of the clip)."""

    def write(
        folder: Path,
        clips: int = 10,
        frames: int | Callable[[int], int] = 60,
        shard_bytes: int = 2**20,
        metadata: Callable[[int], dict[str, Any]] = lambda number: {},
    ) -> Path:
        with ShardWriter(folder, CODEC, shard_bytes=shard_bytes) as writer:
            for number in range(clips):
                length = frames if isinstance(frames, int) else frames(number)
                writer.add(
                    f"clip{number:04d}",
                    clip_tokens(number, length),
                    {"text": f"sound {number}", "number": number, **metadata(number)},
                )
        return folder

    return write


@pytest.fixture
def make_shards(tmp_path: Path, write_shards: MakeShards) -> MakeShards:
    """Return `write_shards` with a name in the test's own folder."""
    return lambda clips=10, frames=60, name="shards", **options: write_shards(
        tmp_path / name, clips, frames, **options
    )


@pytest.fixture(name="clip_tokens")
def clip_tokens_fixture() -> Callable[[int, int], np.ndarray]:
    """Return the function that makes the tokens of a clip of `make_shards`."""
    return clip_tokens
