"""A request yields the clips that the command line generates, and can be cancelled."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch

from magnet_train.apps.demo.page import _failure_html
from magnet_train.apps.demo.request import MAX_RECORDING, ClipRequest, recording_seconds
from magnet_train.apps.demo.service import Cancelled, Clip, ClipService
from magnet_train.cli.main import main
from magnet_train.errors import UserError

Read = Callable[..., ClipRequest]


def make(service: ClipService, request: ClipRequest) -> list[Clip]:
    return list(service.make(request, "me", lambda share, message: None))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"text": ""},
        {"text": '--it\'s "loud" & $HOME\n#', "clips": 2, "seconds": 0.3},
        {"steps": "2, 1, 3, 1", "temperature": 1.25, "top_p": 0.5, "guidance": -1.5, "last_guidance": 2.0},
        {"constant_temperature": True, "temperature": 1.0},
        {"task": "Continue a recording", "kept_seconds": 0.2, "which": "the last", "clips": 2},
        {"task": "Continue a recording", "kept_seconds": 0.2, "which": "the first"},
        {"task": "Change a part", "start": 0.5, "end": 0.75, "clips": 2},
        {"task": "Change a part", "start": 0.5, "end": 0.75, "format": "flac", "negative": "a bell"},
        {"task": "Loop"},
        {"task": "Loop", "bars": 1, "bpm": 503, "format": "flac"},
        {"negative": "-a bell", "loudness": -23, "clips": 2},
        {"loudness": -20.5, "format": "mp3"},
    ],
)
def test_the_command_of_a_clip_makes_the_same_clip(
    service: ClipService,
    request_of: Read,
    recording: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)  # the folder of the recording and of its prompts
    request = request_of(recording=str(recording), **fields)
    clips = make(service, request)
    assert len(clips) == request.clips
    assert {clip.loops for clip in clips} == {fields.get("task") == "Loop"}
    for clip in clips:
        if clip.prompt is not None:
            (tmp_path / clip.prompt.name).write_bytes(clip.prompt.read_bytes())
        words = shlex.split(clip.command, comments=True)
        assert words[:2] == ["magnet-train", "generate"]
        assert main(words[1:]) == 0
        again = next((tmp_path / words[-1]).glob(f"*.{request.format}"))
        assert again.read_bytes() == clip.audio.read_bytes()
    assert len({clip.audio.read_bytes() for clip in clips}) == len(clips)


def test_a_continuation_starts_with_the_kept_seconds(
    service: ClipService, request_of: Read, recording: Path
) -> None:
    kept = request_of(task="Continue a recording", recording=str(recording), kept_seconds=0.25)
    clip = make(service, kept)[0]
    assert clip.prompt is not None
    assert clip.prompt.name == "my song_last_0.25_s.wav"
    samples, rate = soundfile.read(clip.prompt)
    assert (len(samples), rate) == (2000, 8000)


def test_an_edit_leaves_the_rest_alone(service: ClipService, request_of: Read, recording: Path) -> None:
    clip = make(service, request_of(task="Change a part", recording=str(recording), start=0.5, end=0.7))[0]
    edited, rate = soundfile.read(clip.audio, dtype="int16")
    original, _ = soundfile.read(recording, dtype="int16")
    assert (rate, edited.shape) == (44_100, original.shape)
    changed = np.flatnonzero((edited != original).any(axis=1)) / rate
    assert 0.49 <= changed.min() < 0.51  # the region and its fades of 10 ms
    assert 0.69 < changed.max() <= 0.71


def test_a_picture_has_axes(service: ClipService, request_of: Read) -> None:
    clip = make(service, request_of())[0]
    pixels = matplotlib.image.imread(clip.picture)  # [height, width, RGBA], 0..1
    assert pixels.shape[:2] == (240, 700)
    assert (pixels[:, :20, :3].min(), pixels[-10:, :, :3].min()) < (0.5, 0.5)  # labels of both axes
    assert pixels[0, 0, :3].min() == 1.0


def test_progress_counts_all_clips(service: ClipService, request_of: Read) -> None:
    reports: list[tuple[float, str]] = []
    list(service.make(request_of(clips=2), "me", lambda share, message: reports.append((share, message))))
    shares = [share for share, _ in reports]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert reports[0][1].startswith("Clip 1 of 2, about ")
    assert reports[-1][1].startswith("Clip 2 of 2, about ")


def test_user_errors_are_one_sentence(
    service: ClipService, request_of: Read, recording: Path, tmp_path: Path
) -> None:
    text, long = tmp_path / "words.wav", tmp_path / "hours.wav"
    text.write_text("no sound")
    soundfile.write(long, np.zeros(int(MAX_RECORDING * 1000) + 1000), 1000)
    edit, proceed = {"task": "Change a part"}, {"task": "Continue a recording"}
    for fields, words in [
        ({**edit, "recording": str(recording), "start": 2.0, "end": 1.0}, "is not within the recording"),
        ({**edit, "recording": str(text), "start": 0.0, "end": 1.0}, "as audio"),
        ({**edit, "recording": str(long), "start": 0.0, "end": 1.0}, "lasts 10.0 minutes; cut it"),
        ({**proceed, "recording": str(recording), "kept_seconds": 0.001}, "shorter than one frame"),
    ]:
        with pytest.raises(UserError, match=words):
            make(service, request_of(**fields))
    assert len(make(service, request_of())) == 1


def test_cancelled_after_the_step_in_progress(service: ClipService, request_of: Read) -> None:
    steps = []

    def report(share: float, message: str) -> None:
        steps.append(share)
        service.cancel("somebody else")
        if len(steps) == 3:
            service.cancel("me")

    with pytest.raises(Cancelled):
        list(service.make(request_of(clips=4), "me", report))
    assert len(steps) == 3
    assert len(make(service, request_of())) == 1


def test_all_requests_stop_with_the_server(service: ClipService, request_of: Read) -> None:
    begun = threading.Event()
    ended: list[type] = []

    def work() -> None:
        try:
            list(service.make(request_of(steps="500, 500, 500, 500", clips=4), "a", lambda *_: begun.set()))
        except Cancelled:
            ended.append(Cancelled)

    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    service.close()  # waits for the step in progress
    thread.join(30)
    assert ended == [Cancelled]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_full_memory_is_no_internal_error(error: RuntimeError) -> None:
    assert "ran out of memory" in _failure_html(error)


def test_folders_cannot_be_guessed(service: ClipService, request_of: Read) -> None:
    folders = {make(service, request_of())[0].audio.parent for _ in range(2)}
    assert len(folders) == 2
    assert all(len(folder.name) == 32 and folder.parent == service.folder for folder in folders)


def test_length_of_a_recording(recording: Path) -> None:
    assert recording_seconds(recording) == 1.5
