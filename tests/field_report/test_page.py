"""The cases of the field report of November 2026 about the page, with gradio's server in this process.

`tests/magnet_train/apps/demo/test_demo_hostile.py` tries many more of each kind on a page in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from visitor import Visitor

from magnet_train.apps.demo.page import build_page
from magnet_train.apps.demo.server import free_port, private_folder, serving
from magnet_train.apps.demo.service import ClipService, ModelSource
from magnet_train.checkpoints.bundle import ModelBundle
from magnet_train.codecs import load_codec
from magnet_train.decoding import DecodingConfig
from magnet_train.models import MagnetTransformer
from magnet_train.pipeline.magnet import Magnet
from magnet_train.text import WordText

SECONDS = 0.48


def tiny_magnet() -> Magnet:
    """A model of random weights with the packaged codec and words."""
    codec, text = load_codec("quickstart").info, WordText(dim=16)
    lm = {"n_q": codec.n_q, "card": codec.card, "text_dim": 16, "dim": 16, "num_heads": 2, "num_layers": 1}
    weights = {f"lm.{name}": tensor for name, tensor in MagnetTransformer(**lm).state_dict().items()}
    weights |= {f"text.{name}": tensor for name, tensor in text.state_dict().items()}
    decoding = DecodingConfig(decoding_steps=(3, 2, 2, 2))
    return Magnet(ModelBundle("tiny", lm, text.spec(), codec, decoding, SECONDS, weights))


@pytest.fixture(scope="module")
def page() -> Iterator[tuple[str, Path]]:
    """A served page: its URL, and the folder of its uploads and clips."""
    magnet = tiny_magnet()
    with private_folder("127.0.0.1") as folder:
        service = ClipService(magnet, ModelSource("tiny", "cpu", "float32"), folder)
        with serving(build_page(service, "tiny"), "127.0.0.1", free_port("127.0.0.1", 0), folder) as url:
            yield url, folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A recording that was not uploaded."""
    path = tmp_path / "secret.wav"
    soundfile.write(path, np.zeros(4000), 8000)
    return path


def edit(visitor: Visitor, path: str | Path) -> str:
    return visitor.ask(task="Change a part", recording=visitor.recording(path), start=0.1, end=0.3)


@pytest.mark.case("C1")
def test_only_uploads_are_read(page: tuple[str, Path], secret: Path) -> None:
    url, folder = page
    visitor = Visitor(url)
    for path in (
        secret,
        "/etc/passwd",
        f"{folder}/../{secret.name}",
        f"file://{secret}",
        "https://example.org/a.wav",
    ):
        assert "not an upload of this page" in edit(visitor, path), path
    assert not list(folder.rglob("secret*"))
    assert not list(folder.rglob("passwd*"))
    status, uploaded = visitor.upload("own.wav", secret.read_bytes())
    assert status == 200
    assert "state done" in edit(visitor, uploaded)


@pytest.mark.case("C2")
def test_a_device_does_not_hang_the_page(page: tuple[str, Path]) -> None:
    visitor = Visitor(page[0])
    began = time.monotonic()
    for path in ("/dev/zero", "/dev/random", "/dev/stdin"):
        assert "not an upload of this page" in edit(visitor, path)
    assert "state done" in visitor.ask()
    assert time.monotonic() - began < 60


@pytest.mark.case("B25")
def test_a_text_without_bound_is_refused_by_its_length(page: tuple[str, Path]) -> None:
    visitor = Visitor(page[0])
    began = time.monotonic()
    assert visitor.join(text="x" * 20_000_000)[0] == 413
    assert "at most 1000 characters" in visitor.ask(text="x" * 1001)
    assert "state done" in visitor.ask(text="x" * 1000)
    assert time.monotonic() - began < 60
