"""A caption that no shard may hold is left out before it is tokenized, with a reason."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from datamodules.shards.scan import MAX_CAPTION_LENGTH
from datamodules.shards.writer import metadata_bytes
from datamodules.tokenize.audio_files import AudioFile
from magnet_train.cli.clip_reading import Clip, Unusable
from magnet_train.codecs import load_codec


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"text": "x" * 10**6}, "its text has 1000000 characters"),
        ({"text": "x", "keywords": "y " * MAX_CAPTION_LENGTH}, "keywords"),
        ({"text": "x", "deep": json.loads("[" * 40 + "]" * 40)}, "nested deeper"),
        ({"text": "x", "notes": "y" * 2**20}, "bytes"),
    ],
)
def test_metadata_that_no_shard_may_hold(tmp_path: Path, fields: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        metadata_bytes(fields)
    soundfile.write(tmp_path / "a.wav", np.full(8000, 0.5), 8000)
    file = AudioFile(path=tmp_path / "a.wav", name="a.wav", key="a", start=None, end=None, fields=fields)
    with (
        ThreadPoolExecutor(1) as pool,
        pytest.raises(Unusable, match=f"unusable caption or metadata: .*{what}"),
    ):
        list(Clip(file, load_codec("quickstart"), None, False, pool).blocks())
