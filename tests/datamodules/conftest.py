"""Small real shards with payloads that say which clip they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodules.writer import ShardWriter
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


@pytest.fixture
def make_shards(tmp_path: Path) -> MakeShards:
    """Return a function that writes `clips` clips, `frames` long (a number or a function of the clip)."""

    def make(
        clips: int = 10,
        frames: int | Callable[[int], int] = 60,
        name: str = "shards",
        shard_bytes: int = 2**20,
    ) -> Path:
        folder = tmp_path / name
        with ShardWriter(folder, CODEC, shard_bytes=shard_bytes) as writer:
            for number in range(clips):
                length = frames if isinstance(frames, int) else frames(number)
                writer.add(
                    f"clip{number:04d}",
                    clip_tokens(number, length),
                    {"text": f"sound {number}", "number": number},
                )
        return folder

    return make


@pytest.fixture(name="clip_tokens")
def clip_tokens_fixture() -> Callable[[int, int], np.ndarray]:
    """Return the function that says which tokens a clip of `make_shards` has."""
    return clip_tokens
