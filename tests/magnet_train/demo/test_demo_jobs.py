"""Orders become the clips that the command line makes; one at a time, and whoever cancels makes room."""

from __future__ import annotations

import logging
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch

from magnet_train.cli.main import main
from magnet_train.demo.desk import LONGEST_QUEUE, Desk, Stopped
from magnet_train.demo.job import LONGEST_RECORDING, Update, recording_seconds
from magnet_train.demo.order import Kind, Order, read_steps
from magnet_train.demo.pictures import GIVEN
from magnet_train.demo.studio import Studio
from magnet_train.errors import UserError
from magnet_train.magnet import Magnet

Fill = Callable[..., Order]


def last(updates: Iterator[Update], folder: Path | None = None) -> Update:
    """Follow a job to its end; copy its files while they are there."""
    update = None
    for update in updates:
        for file in (*(clip.audio for clip in update.clips), *filter(None, [update.kept])):
            if folder is not None:
                shutil.copy(file, folder / file.name)
    assert update is not None
    return update


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that no other process uses."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def long(studio: Studio) -> dict[str, object]:
    """Settings that take minutes."""
    return {"decoding": replace(studio.magnet.decoding, decoding_steps=(20_000,) * 4), "clips": 4}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.TEXT, {}),
        (Kind.TEXT, {"text": ""}),
        (Kind.TEXT, {"text": '--it\'s "loud" & $HOME\n#', "clips": 2, "seconds": 0.3}),
        (Kind.TEXT, {"steps": (2, 1, 3, 1), "temperature": 1.25, "top_p": 0.5, "cfg": (-1.5, 2.0)}),
        (Kind.CONTINUE, {"kept_seconds": 0.2, "from_end": True}),
        (Kind.CONTINUE, {"kept_seconds": 0.2, "from_end": False}),
        (Kind.EDIT, {"region": (0.5, 0.75), "clips": 2}),
        (Kind.LOOP, {}),
    ],
)
def test_the_command_beside_a_clip_makes_it_again(
    studio: Studio,
    order: Fill,
    recording: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Kind,
    fields: dict,
) -> None:
    if "steps" in fields:
        cfg = fields.pop("cfg")
        names = {"steps": "decoding_steps", "temperature": "temperature", "top_p": "top_p"}
        changes = {names[name]: value for name, value in fields.items()}
        fields = {
            "decoding": replace(studio.magnet.decoding, max_cfg_coef=cfg[0], min_cfg_coef=cfg[1], **changes)
        }
    if kind in (Kind.CONTINUE, Kind.EDIT):
        fields = fields | {"recording": recording}
    monkeypatch.chdir(tmp_path)  # where the recording lies, and what was kept of it
    update = last(studio.make(order(kind, **fields), "me"), tmp_path)
    assert (update.state, update.share) == ("done", 1.0), update.message
    assert [clip.seed for clip in update.clips] == [3, 4][: len(update.clips)]
    assert {clip.loops for clip in update.clips} == {kind is Kind.LOOP}
    for clip in update.clips:
        words = shlex.split(clip.settings, comments=True)
        assert words[:2] == ["magnet-train", "generate"]
        assert main(words[1:]) == 0
        again = next((tmp_path / f"clip_seed_{clip.seed}").glob("*.wav"))
        assert again.read_bytes() == (tmp_path / clip.audio.name).read_bytes()


def test_a_continuation_begins_with_what_was_kept(
    studio: Studio, order: Fill, recording: Path, tmp_path: Path
) -> None:
    kept = order(Kind.CONTINUE, recording=recording, kept_seconds=0.25)
    assert last(studio.make(kept, "me"), tmp_path).kept.name == "my song_last_0.25_s.wav"
    samples, rate = soundfile.read(tmp_path / "my song_last_0.25_s.wav")
    assert (len(samples), rate) == (2000, 8000)


def test_an_edit_leaves_the_rest_alone(studio: Studio, order: Fill, recording: Path, tmp_path: Path) -> None:
    update = last(studio.make(order(Kind.EDIT, recording=recording, region=(0.5, 0.7)), "me"), tmp_path)
    edited, _ = soundfile.read(tmp_path / update.clips[0].audio.name)
    assert len(edited) == 1.5 * 8000
    # Before the region and its fade of 10 ms: the tone itself, resampled; within it, something else.
    time_axis = np.arange(len(edited)) / 8000
    tone = 0.15 * (np.sin(2 * np.pi * 220 * time_axis) + np.sin(2 * np.pi * 330 * time_axis))
    assert np.abs(edited - tone)[800:3900].max() < 1e-3
    assert np.abs(edited - tone)[4100:5500].max() > 1e-2


def test_the_picture_of_an_edit_is_as_long_as_the_recording(
    studio: Studio, order: Fill, recording: Path
) -> None:
    for update in studio.make(order(Kind.EDIT, recording=recording, region=(0.5, 0.7)), "me"):
        if update.clips:
            pixels = matplotlib.image.imread(update.clips[0].order)  # [K, T, RGBA], 0..1
    grey = np.abs(pixels - GIVEN).max(axis=-1) < 0.01
    assert grey.shape == (4, 75)  # 1.5 s at 50 frames a second
    assert grey[:, :25].all()
    assert grey[:, 35:].all()
    assert not grey[:, 25:35].any()


def test_progress_counts_steps_of_all_clips(studio: Studio, order: Fill) -> None:
    decoding = replace(studio.magnet.decoding, decoding_steps=(60, 60, 60, 60))
    updates = list(studio.make(order(decoding=decoding, clips=2), "me"))
    working = [update for update in updates if update.state == "working" and update.share]
    assert [update.share for update in working] == sorted(update.share for update in working)
    assert any("step " in update.message and "of 240, about " in update.message for update in working)
    assert updates[-1].message.startswith("Made 2 clips in ")


def test_what_a_visitor_can_mend_is_a_message(
    studio: Studio, order: Fill, recording: Path, tmp_path: Path, temporary: Path
) -> None:
    text = tmp_path / "words.wav"
    text.write_text("no sound")
    too_long = tmp_path / "hours.wav"
    soundfile.write(too_long, np.zeros(int(LONGEST_RECORDING * 1000) + 1000), 1000)
    for kind, fields, words in [
        (Kind.TEXT, {"seconds": 9.0}, "this page makes up to 0.48 s"),
        (Kind.TEXT, {"clips": 5}, "choose 1 to 4"),
        (Kind.TEXT, {"seed": -1}, "choose a whole number"),
        (Kind.EDIT, {}, "There is no recording yet"),
        (Kind.EDIT, {"recording": recording, "region": (2.0, 1.0)}, "is not a part of a recording"),
        (Kind.EDIT, {"recording": text, "region": (0.0, 1.0)}, "as audio"),
        (Kind.EDIT, {"recording": too_long, "region": (0.0, 1.0)}, "lasts 10.0 minutes; cut it"),
        (Kind.CONTINUE, {"recording": recording, "kept_seconds": 0.48}, "leaves nothing to make"),
        (Kind.CONTINUE, {"recording": recording, "kept_seconds": 0.001}, "shorter than one frame"),
    ]:
        update = last(studio.make(order(kind, **fields), "me"))
        assert (update.state, update.clips) == ("failed", ())
        assert words in update.message
        assert "Traceback" not in update.message
    assert not list(temporary.iterdir())
    assert last(studio.make(order(), "me")).state == "done"


def test_a_bug_is_told_to_the_terminal(
    studio: Studio, order: Fill, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret path /root")

    monkeypatch.setattr(studio.magnet, "generate", fail)
    with caplog.at_level(logging.ERROR):
        update = last(studio.make(order(), "me"))
    assert update.state == "failed"
    assert "not your fault (ZeroDivisionError)" in update.message
    assert "secret" not in update.message
    assert "secret path" in caplog.text
    monkeypatch.undo()
    assert last(studio.make(order(), "me")).state == "done"


def test_cancelled_after_the_step_at_work(studio: Studio, order: Fill, temporary: Path) -> None:
    began = time.monotonic()
    states = []
    for update in studio.make(order(**long(studio)), "me"):
        states.append(update.state)
        studio.cancel("somebody else")
        if update.share:
            studio.cancel("me")
    assert states[-1] == "stopped"
    assert time.monotonic() - began < 20
    assert not list(temporary.iterdir())
    assert last(studio.make(order(), "me")).state == "done"


def test_one_at_a_time_and_others_see_their_place(studio: Studio, order: Fill, temporary: Path) -> None:
    began = time.monotonic()
    first = studio.make(order(**long(studio)), "first")
    assert next(first).state == "working"
    second, third = studio.make(order(), "second"), studio.make(order(), "third")
    assert next(second).message.startswith("1 job comes before yours")
    assert next(third).message.startswith("2 jobs come before yours")
    assert "still being made" in last(studio.make(order(), "second")).message
    studio.cancel("second")  # while it waits
    assert last(second).state == "stopped"
    assert next(third).message.startswith("1 job comes before yours")
    first.close()  # the visitor has gone
    assert last(third).state == "done"
    assert time.monotonic() - began < 20
    assert not list(temporary.iterdir())


def test_a_full_queue_refuses() -> None:
    desk = Desk()
    tickets = [desk.enter(str(number)) for number in range(LONGEST_QUEUE)]
    with pytest.raises(UserError, match="try again"):
        desk.enter("one more")
    desk.leave(tickets[0])
    desk.enter("one more")
    desk.stop_all()
    for ticket in tickets[1:]:
        with pytest.raises(Stopped):
            desk.wait_for_turn(ticket)


def test_all_stop_when_the_server_does(studio: Studio, order: Fill) -> None:
    jobs = [studio.make(order(**long(studio)), name) for name in "ab"]
    for job in jobs:
        next(job)
    threading.Timer(0.1, studio.close).start()
    assert [last(job).state for job in jobs] == ["stopped", "stopped"]


@pytest.mark.parametrize("text", ["20, 10,5 1", "1 1 1 500"])
def test_steps_are_read(text: str) -> None:
    assert len(read_steps(text, 4)) == 4


@pytest.mark.parametrize(
    "text", ["", "1,1,1", "1,1,1,1,1", "1,1,1,0", "1,1,1,501", "1,1,1,-1", "1,1,1,²", "a,b,c,d"]
)
def test_steps_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="one for each codebook"):
        read_steps(text, 4)


def test_watching_changes_nothing_and_sees_every_token(studio: Studio, checkpoint: Path) -> None:
    tokens = studio.magnet.generate_tokens(["a flute"], seed=1)
    assert torch.equal(tokens, Magnet.from_pretrained(checkpoint).generate_tokens(["a flute"], seed=1))
    found = studio.magnet.order
    assert found is not None
    # Steps 3, 2, 2, 2: a codebook's tokens are found in its own steps, in its last one at the latest.
    for row, (first, end) in zip(found, [(1, 3), (4, 5), (6, 7), (8, 9)], strict=True):
        assert first <= int(row.min())
        assert int(row.max()) == end
    studio.magnet.generate_tokens(["a flute"], seed=1, prompt=tokens[..., :10])
    assert not studio.magnet.order[:, :10].any()
    assert studio.magnet.order[:, 10:].all()


def test_length_of_a_recording(recording: Path) -> None:
    assert recording_seconds(recording) == 1.5
