"""A model that was trained for half of the quickstart: it has learned, and its loops and long clips keep the beat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magnet_train import Magnet
from magnet_train.apps.quickstart.report import Report
from magnet_train.apps.quickstart.tones.captions import PITCHES, Caption, Event
from magnet_train.apps.quickstart.tones.oracle import accuracy, evenness, read_clips
from magnet_train.apps.quickstart.tones.world import ToneWorld
from magnet_train.cli.main import main
from magnet_train.codecs.chunked import decode_loop

CLIPS = 72
# Relative to straight clips of the same captions. benchmarks/beat.py measures .95 in fully trained models; half of the
# steps and fewer clips scatter more. A loop that loses the beat is below .4.
KEPT = 0.85


def pulse_train(period: int, count: int) -> np.ndarray:
    """Return `count` pulses of a sine, `period` samples apart."""
    time = np.arange(period)
    pulse = np.sin(2 * np.pi * 440 * time / 8000) * (time < 0.55 * period)
    return 0.5 * np.concatenate([np.zeros(160), np.tile(pulse, count), np.zeros(160)])


def test_evenness_counts_a_single_stumble() -> None:
    caption = Caption("", (Event(next(iter(PITCHES)), "sine", "fast"),))
    even = pulse_train(1440, 8)
    assert evenness([caption], [even]) == 1.0
    stumbling = np.concatenate([even[: 160 + 4 * 1440], np.zeros(700), even[160 + 4 * 1440 :]])
    assert evenness([caption], [stumbling]) == pytest.approx(6 / 7)


def test_steady_sounds_and_pairs_do_not_count_for_evenness() -> None:
    slow, fast = (Event("c4", "sine", rhythm) for rhythm in ("slow", "fast"))
    captions = [
        Caption("", (fast,)),
        Caption("", (slow, fast)),
        Caption("", (Event("c4", "sine", "steady"),)),
    ]
    assert evenness(captions, [pulse_train(1440, 5)] * 3) == 1.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a quickstart of 1,200 steps."""
    out = tmp_path_factory.mktemp("quickstart") / "out"
    steps = ["--trainer.max_steps", "1200", "--trainer.val_check_interval", "600"]
    assert main(["quickstart", "--preset", "tones", "--out", str(out), "--fit", *steps]) == 0
    return out


@pytest.mark.slow
def test_quickstart_learns(trained: Path) -> None:
    """In half of the steps it does not reach the goals, but is far above chance."""
    report = Report(**json.loads((trained / "report.json").read_text()))
    for name in report.accuracy:
        assert report.ceiling[name] >= 0.95
        assert report.accuracy[name] > report.chance[name] + 0.35, (name, report)
        assert report.unconditional[name] < report.chance[name] + 0.15


@pytest.mark.slow
def test_the_page_plays_in_chromium(trained: Path, open_from_disk: Any) -> None:
    seconds, widths = open_from_disk(trained / "index.html")
    clip = seconds[0]
    # six captions with three clips each, four turns of a loop, an edit before and after, a continuation, four windows
    assert seconds == pytest.approx([clip] * 18 + [4 * clip, clip, clip, 2 * clip, 4 * clip], abs=0.05)
    assert len(widths) == len(seconds)
    assert (trained / "index.html").stat().st_size < 6_000_000


@pytest.mark.slow
def test_loops_and_long_clips_keep_the_beat(trained: Path) -> None:
    magnet = Magnet.from_pretrained(trained / "run" / "last.ckpt")
    captions = ToneWorld().captions(CLIPS, "test")
    texts = [caption.text for caption in captions]
    straight = magnet.codec.decode(magnet.generate_tokens(texts, seed=0))[:, 0].numpy()
    loops = decode_loop(magnet.codec, magnet.generate_tokens(texts, seed=0, loop=True))[:, 0].numpy()
    long = magnet.codec.decode(magnet.generate_tokens(texts, 3 * magnet.segment_duration, seed=0))[
        :, 0
    ].numpy()

    expected = accuracy(captions, read_clips(straight))
    for clips in (loops, long):
        for attribute, share in accuracy(captions, read_clips(clips)).items():
            assert share >= KEPT * expected[attribute], (attribute, share, expected)
    even = evenness(captions, straight)
    assert evenness(captions, np.concatenate([loops, loops], axis=1)) >= KEPT * even
    assert evenness(captions, long) >= KEPT * even
