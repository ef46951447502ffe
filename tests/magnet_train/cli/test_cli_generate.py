"""`generate` through the real command line: WAVs that can be read, and nothing left behind by a mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from magnet_train.audio import AudioStream
from magnet_train.cli.clip_folder import ClipFolder
from magnet_train.cli.folder_lock import folder_lock
from magnet_train.cli.main import main
from magnet_train.pipeline.magnet import Magnet

RATE = 8000  # of the packaged codec
SAMPLES = 24 * 160


def generate(model: Path, out: Path, *options: str) -> int:
    return main(["generate", "--model", str(model), "--out", str(out), *options])


def results_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def write_tone(path: Path, seconds: float) -> Path:
    time = np.arange(int(seconds * 44100)) / 44100
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time), 44100)
    return path


def cuda_is_full() -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_texts_become_numbered_wavs(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clips"
    texts = ["A low bell / slow?", "../../etc/passwd"]
    assert generate(checkpoint, out, "--text", texts[0], "--text", texts[1]) == 0
    results = results_of(out)
    assert [result["text"] for result in results] == texts
    assert sorted(file.name for file in out.iterdir()) == sorted(
        [*(result["file"] for result in results), "results.jsonl"]
    )
    for number, result in enumerate(results):
        assert result["file"].startswith(str(number))
        audio, rate = soundfile.read(out / result["file"])
        assert rate == RATE
        assert audio.shape == (SAMPLES,)
        assert np.abs(audio).max() > 0
    assert "1.0 s of audio" in capsys.readouterr().out


def test_same_seed_same_sound(checkpoint: Path, tmp_path: Path) -> None:
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        assert generate(checkpoint, tmp_path / name, "--text", "a flute", "--seed", seed) == 0
    clips = [next((tmp_path / name).glob("*.wav")).read_bytes() for name in "abc"]
    assert clips[0] == clips[1] != clips[2]


def test_jsonl_prompts_keep_their_ids(checkpoint: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        '{"text": "a flute", "id": "x7"}\n{"text": "eine Glöcke", "id": "x8"}\n', encoding="utf-8"
    )
    assert generate(checkpoint, tmp_path / "clips", "--prompts", str(prompts), "--batch-size", "1") == 0
    assert [(r["id"], r["text"]) for r in results_of(tmp_path / "clips")] == [
        ("x7", "a flute"),
        ("x8", "eine Glöcke"),
    ]


def test_txt_prompts_a_line_each(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a flute\n\n  a bell \n")
    assert generate(checkpoint, tmp_path / "clips", "--prompts", str(tmp_path / "prompts.txt")) == 0
    assert [result["text"] for result in results_of(tmp_path / "clips")] == ["a flute", "a bell"]


def test_unconditional(checkpoint: Path, tmp_path: Path) -> None:
    assert generate(checkpoint, tmp_path / "clips", "--unconditional", "3", "--batch-size", "2") == 0
    assert [result["text"] for result in results_of(tmp_path / "clips")] == [None] * 3
    assert len(list((tmp_path / "clips").glob("*.wav"))) == 3


def test_options_reach_the_sampler(checkpoint: Path, tmp_path: Path) -> None:
    options = [
        "--steps",
        "2,1,1,1",
        "--cfg",
        "4,2",
        "--temperature",
        "1.5",
        "--top-p",
        "0.5",
        "--seconds",
        "0.2",
    ]
    choices = ["--arrangement", "stride1", "--scoring", "prod", "--greedy", "--constant-temperature"]
    assert generate(checkpoint, tmp_path / "clips", "--text", "a flute", *options, *choices) == 0
    decoding = results_of(tmp_path / "clips")[0]["decoding"]
    assert decoding["decoding_steps"] == [2, 1, 1, 1]
    assert (decoding["max_cfg_coef"], decoding["min_cfg_coef"]) == (4.0, 2.0)
    assert (decoding["temperature"], decoding["top_p"], decoding["use_sampling"]) == (1.5, 0.5, False)
    assert decoding["anneal_temperature"] is False
    assert (decoding["span_arrangement"], decoding["span_scoring"]) == ("stride1", "prod")
    audio, _ = soundfile.read(next((tmp_path / "clips").glob("*.wav")))
    assert audio.shape == (10 * 160,)


def test_defaults_are_the_models_own(checkpoint: Path, tmp_path: Path) -> None:
    assert generate(checkpoint, tmp_path / "clips", "--text", "a flute") == 0
    decoding = results_of(tmp_path / "clips")[0]["decoding"]
    assert decoding["decoding_steps"] == [3, 2, 2, 2]
    assert decoding["max_cfg_coef"] == 3.0


def test_prompt_is_resampled_and_continued(checkpoint: Path, tmp_path: Path) -> None:
    prompt = write_tone(tmp_path / "tone.wav", 0.2)
    assert generate(checkpoint, tmp_path / "clips", "--text", "a flute", "--prompt", str(prompt)) == 0
    audio, rate = soundfile.read(next((tmp_path / "clips").glob("*.wav")))
    assert (rate, audio.shape) == (RATE, (SAMPLES,))


def test_edit_changes_the_region_alone(checkpoint: Path, tmp_path: Path) -> None:
    time = np.arange(2 * RATE) / RATE
    original = tmp_path / "tone.wav"
    soundfile.write(original, 0.3 * np.sin(2 * np.pi * 220 * time), RATE, subtype="PCM_16")
    options = ["--edit", str(original), "--region", "1.0:1.2", "--text", "a flute", "--text", "a bell"]
    assert generate(checkpoint, tmp_path / "clips", *options) == 0
    before, _ = soundfile.read(original)
    for result in results_of(tmp_path / "clips"):
        assert (result["edit"], result["region"], result["seconds"]) == (str(original), [1.0, 1.2], 2.0)
        after, rate = soundfile.read(tmp_path / "clips" / result["file"])
        assert rate == RATE
        changed = np.flatnonzero(after != before)
        assert 0.99 * RATE <= changed.min() < 1.01 * RATE
        assert 1.19 * RATE < changed.max() <= 1.21 * RATE


def test_loop_is_another_clip_of_the_same_length(checkpoint: Path, tmp_path: Path) -> None:
    for name, options in (("open", []), ("loop", ["--loop"])):
        assert generate(checkpoint, tmp_path / name, "--text", "a flute", *options) == 0
    (straight,), (loop,) = results_of(tmp_path / "open"), results_of(tmp_path / "loop")
    assert loop["loop"] is True
    assert "loop" not in straight
    assert loop["seconds"] == straight["seconds"] == SAMPLES / RATE
    clips = [(tmp_path / name / straight["file"]).read_bytes() for name in ("open", "loop")]
    assert clips[0] != clips[1]


def test_a_rescorer_has_its_say(checkpoint: Path, musicgen: Path, tmp_path: Path) -> None:
    """In a process of its own, which hears of transformers' warnings as a user would."""
    settings = {
        "plain": [],
        "none": ["--rescorer-weight", "0"],
        "all": ["--rescorer-weight", "1"],
        "half": [],
    }
    clips, steps = {}, ["--steps", "6,4,2,2"]
    for name, weight in settings.items():
        options = ["--text", "a flute", "--text", "a low tone", "--batch-size", "1", *steps, *weight]
        if name != "plain":
            options += ["--rescorer", str(musicgen)]
        command = ["generate", "--model", str(checkpoint), "--out", str(tmp_path / name), *options]
        if name == "half":
            run = subprocess.run(
                [sys.executable, "-m", "magnet_train", *command], capture_output=True, text=True, check=True
            )
            assert "28/28 steps" in run.stderr  # 14 for each clip, rescored or not
            assert len(run.stderr.strip().splitlines()) == 1, run.stderr
        else:
            assert main(command) == 0
        results = results_of(tmp_path / name)
        assert [result.get("rescorer") for result in results] == [
            None if name == "plain" else str(musicgen)
        ] * 2
        clips[name] = [(tmp_path / name / result["file"]).read_bytes() for result in results]
    assert results_of(tmp_path / "half")[0]["decoding"]["rescorer_weight"] == 0.5
    assert clips["none"] == clips["plain"]
    assert clips["all"] != clips["plain"]
    assert clips["half"] != clips["plain"]


def test_a_rescorer_of_other_tokens_is_one_sentence_and_leaves_nothing(
    checkpoint: Path, tmp_path: Path, write_musicgen: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_musicgen(tmp_path / "other", vocab_size=64, pad_token_id=64, bos_token_id=64)
    capsys.readouterr()
    options = ["--text", "a flute", "--rescorer", str(tmp_path / "other")]
    assert generate(checkpoint, tmp_path / "clips", *options) == 1
    printed = capsys.readouterr().err.strip()
    assert printed.startswith(f"magnet-train: error: rescorer {tmp_path / 'other'} has card 64 ")
    assert "\n" not in printed
    assert not (tmp_path / "clips").exists()


def test_a_weight_of_the_rescorer_out_of_range(
    checkpoint: Path, musicgen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--text", "a flute", "--rescorer", str(musicgen), "--rescorer-weight", "1.5"]
    assert generate(checkpoint, tmp_path / "clips", *options) == 1
    assert "rescorer_weight 1.5 must lie in 0..1" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--text", ""], "--text"),
        (["--text", "a flute", "--edit", "nowhere.wav"], "--region"),
        (["--text", "a flute", "--region", "0.1:0.2"], "--edit"),
        (["--text", "a flute", "--edit", "nowhere.wav", "--region", "0.1:0.2"], "nowhere.wav"),
        (["--text", "a flute", "--edit", "a.wav", "--region", "0.1:0.2", "--loop"], "--loop"),
        (["--text", "a flute", "--edit", "a.wav", "--region", "0.1:0.2", "--seconds", "1"], "--seconds"),
        (["--text", "a flute", "--text", "  "], "caption 2"),
        (["--text", "a flute", "--steps", "2,1"], "decoding_steps"),
        (["--text", "a flute", "--steps", "2,1,0,1"], "decoding_steps"),
        (["--text", "a flute", "--top-p", "1.5"], "top_p"),
        (["--text", "a flute", "--temperature", "-1"], "temperature"),
        (["--text", "a flute", "--batch-size", "0"], "--batch_size"),
        (["--text", "a flute", "--prompt", "nowhere.wav"], "nowhere.wav"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--unconditional", "0"], "--unconditional"),
        (["--text", "a flute", "--seed", "-1"], "seed -1"),
        (["--text", "a flute", "--seed", "99999999999999999999"], "seed 99999999999999999999"),
        (["--text", "a flute", "--cfg", "nan"], "guidance nan"),
        (["--text", "a flute", "--temperature", "nan"], "temperature nan"),
        (["--text", "a flute", "--adapter-strength", "2"], "--adapter"),
        (["--text", "a flute", "--rescorer-weight", "1"], "--rescorer"),
        (["--text", "a flute", "--rescorer", "./nowhere"], "rescorer ./nowhere"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert generate(checkpoint, tmp_path / "clips", *options) == 1
    printed = capsys.readouterr().err.strip()
    error = printed.splitlines()[-1]
    assert error.startswith("magnet-train: error: ")
    assert named in error
    assert "steps" not in printed.replace(error, "")  # no bar that stands still
    assert list(tmp_path.iterdir()) == []


def test_an_unusable_target_is_reported_before_anything_is_made(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Magnet, "generate", pytest.fail)
    (tmp_path / "file").touch()
    assert generate(checkpoint, tmp_path / "file" / "a" / "b", "--text", "a flute") == 1
    assert f"cannot write {tmp_path / 'file' / 'a' / 'b'} (Not a directory); check" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_new_folders_go_again_when_nothing_comes_of_it(checkpoint: Path, tmp_path: Path) -> None:
    assert generate(checkpoint, tmp_path / "a" / "b", "--text", "a flute", "--seconds", "0") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "not json\n", '{"caption": "a flute"}\n', '{"text": ""}\n', '{"text": null}\n', "[1]\n"]
)
def test_unusable_prompt_files(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(content)
    assert generate(checkpoint, tmp_path / "clips", "--prompts", str(prompts)) == 1
    assert "prompts.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "clips").exists()


def test_prompt_longer_than_the_clip(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = write_tone(tmp_path / "tone.wav", 1.0)
    assert generate(checkpoint, tmp_path / "clips", "--text", "a flute", "--prompt", str(prompt)) == 1
    assert "prompt" in capsys.readouterr().err
    assert not (tmp_path / "clips").exists()


def write_silence(path: Path, seconds: int) -> Path:
    """Write a small FLAC, at the lowest rate that is read."""
    with soundfile.SoundFile(path, "w", 100, 1) as file:
        for _ in range(seconds // 3600):
            file.write(np.zeros(360_000, dtype=np.int16))
    assert path.stat().st_size < 200_000
    return path


def test_days_of_silence_are_not_read(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a prompt no more than a second beyond the clip, and of a recording to edit no more than its header."""
    silence = write_silence(tmp_path / "silence.flac", 2 * 86_400)
    read, resampled = [], AudioStream.__iter__
    monkeypatch.setattr(
        AudioStream, "__iter__", lambda stream: (read.append(b.shape[-1]) or b for b in resampled(stream))
    )
    for option, words in (("--prompt", "shorten the prompt"), ("--edit", "longer than 86,400 s")):
        region = ["--region", "1:1.2"] if option == "--edit" else []
        options = ["--text", "a flute", option, str(silence), *region]
        assert generate(checkpoint, tmp_path / "clips", *options) == 1
        assert words in capsys.readouterr().err
    assert 0 < sum(read) <= SAMPLES + RATE + 1
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize(
    "cause", [lambda: torch.empty(2**55), cuda_is_full, lambda: np.empty(2**55)], ids=["cpu", "cuda", "numpy"]
)
def test_memory_that_is_not_enough_is_one_sentence(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cause: Callable[[], None],
) -> None:
    monkeypatch.setattr(Magnet, "generate", lambda *_, **__: cause())
    assert generate(checkpoint, tmp_path / "clips", "--text", "a flute") == 1
    assert "shorter clips" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_batch_that_memory_does_not_hold_is_halved(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where clips are made in batches; those of a smaller batch are the same."""
    make, sizes = Magnet.generate, []
    most = 100

    def make_in_little_memory(magnet: Magnet, texts: list[str | None], **names: Any) -> torch.Tensor:
        sizes.append(len(texts))
        return make(magnet, texts, **names) if len(texts) <= most else cuda_is_full()

    monkeypatch.setattr(Magnet, "device", torch.device("cuda"))
    monkeypatch.setattr(Magnet, "generate", make_in_little_memory)
    contents = []
    for most in (100, 2):
        out = tmp_path / str(most)
        assert generate(checkpoint, out, "--unconditional", "7", "--batch_size", "5") == 0
        contents.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert contents[0] == contents[1]
    assert sizes == [5, 2, 5, 3, 2, 2, 2, 1]
    warning = "magnet-train: warning: memory does not suffice for 5 clips at once; continuing with 2."
    assert [line for line in capsys.readouterr().err.splitlines() if "memory" in line] == [warning]
    most = 0
    assert generate(checkpoint, tmp_path / "none", "--unconditional", "2") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("magnet-train: error: the memory of cuda is not enough")
    assert not (tmp_path / "none").exists()


def test_clips_are_written_while_the_next_ones_are_made(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not more than one batch behind: with the third batch, the first is on the disk."""
    make, add, begun, done = Magnet.generate, ClipFolder.add, threading.Event(), []

    def begin(magnet: Magnet, texts: list[str | None], *, first_index: int, **names: Any) -> torch.Tensor:
        if first_index == 1:
            begun.set()
        elif first_index >= 2:
            done.append((out / "results.jsonl").read_text().count("\n") >= first_index - 1)
        return make(magnet, texts, first_index=first_index, **names)

    def wait_and_add(folder: ClipFolder, *arguments: Any) -> None:
        assert begun.wait(60), "the next clip is not made before this one is written"
        add(folder, *arguments)

    out = tmp_path / "clips"
    monkeypatch.setattr(Magnet, "generate", begin)
    monkeypatch.setattr(ClipFolder, "add", wait_and_add)
    assert generate(checkpoint, out, "--unconditional", "4") == 0
    assert done == [True, True]
    assert [result["index"] for result in results_of(out)] == [0, 1, 2, 3]


@pytest.mark.parametrize("existed", [False, True])
def test_a_disk_that_fills_up_keeps_the_clips_that_are_done(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    no_file_larger_than: Any,
    existed: bool,
) -> None:
    out = tmp_path / "clips"
    options = ["--unconditional", "6", "--seconds", "0.1"]
    if existed:
        out.mkdir()
        (out / "mine.txt").write_text("mine")
    with no_file_larger_than(2_000):  # a clip has 1,644 bytes, the list of six more than 3,000
        assert generate(checkpoint, out, *options) == 1
    assert f"no room on disk for {out / 'results.jsonl'}" in capsys.readouterr().err
    kept = results_of(out)
    assert 1 <= len(kept) < 6
    mine = ["mine.txt"] if existed else []
    names = sorted([*(result["file"] for result in kept), "results.jsonl", *mine])
    assert sorted(file.name for file in out.iterdir()) == names
    assert generate(checkpoint, out, *options) == 0  # goes on once there is room
    assert results_of(out)[: len(kept)] == kept
    assert len(list(out.glob("*.wav"))) == 6


def test_a_disk_without_room_for_a_clip_leaves_nothing(
    checkpoint: Path, tmp_path: Path, no_file_larger_than: Any
) -> None:
    with no_file_larger_than(1_000):
        assert generate(checkpoint, tmp_path / "clips", "--unconditional", "2", "--seconds", "0.1") == 1
    assert list(tmp_path.iterdir()) == []


def test_results_are_not_overwritten(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate(checkpoint, tmp_path / "clips", "--text", "a flute") == 0
    before = {file.name: file.read_bytes() for file in (tmp_path / "clips").iterdir()}
    assert generate(checkpoint, tmp_path / "clips", "--text", "a bell") == 1
    assert "--out" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in (tmp_path / "clips").iterdir()} == before


def test_a_second_command_in_a_folder_names_the_first(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("magnet_train.cli.folder_lock.WAIT", 0.1)
    with folder_lock(tmp_path / "clips", "generate", "--out"):
        assert generate(checkpoint, tmp_path / "clips", "--text", "a flute") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{tmp_path / 'clips'} is in use by another generate (process {os.getpid()} on " in error
    assert error.endswith("choose another folder with --out.")
    assert not (tmp_path / "clips").exists()
    assert generate(checkpoint, tmp_path / "clips", "--text", "a flute") == 0
    assert len(list((tmp_path / "clips").iterdir())) == 2  # no lock is left


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_keeps_the_clips_that_are_done(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    out, make, handler = tmp_path / "clips", Magnet.generate, signal.getsignal(number)

    def interrupted(magnet: Magnet, *arguments: Any, first_index: int, **names: Any) -> torch.Tensor:
        if first_index == 1:
            os.kill(os.getpid(), number)
        return make(magnet, *arguments, first_index=first_index, **names)

    monkeypatch.setattr(Magnet, "generate", interrupted)
    assert generate(checkpoint, out, "--unconditional", "3") == code
    sentence = f"stopped; 1 of 3 clips are in {out}, and the same command resumes from there"
    assert capsys.readouterr().err.splitlines()[-1] == f"magnet-train: {sentence}"
    assert signal.getsignal(number) is handler
    monkeypatch.setattr(Magnet, "generate", make)
    assert generate(checkpoint, out, "--unconditional", "3") == 0
    assert "wrote 2 clips" in capsys.readouterr().out


def test_unreadable_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    assert generate(tmp_path / "bad.ckpt", tmp_path / "clips", "--text", "a flute") == 1
    assert "bad.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "clips").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--text", "a", "--unconditional", "2"],
        ["--text", "a", "--steps", "x"],
        ["--text", "a", "--scoring", "y"],
        ["--text", "a", "--edit", "a.wav", "--region", "1-2"],
        ["--text", "a", "--edit", "a.wav", "--prompt", "b.wav", "--region", "1:2"],
    ],
)
def test_wrong_usage_exits_2(checkpoint: Path, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        generate(checkpoint, tmp_path / "clips", *options)
    assert caught.value.code == 2


def test_top_k_alone_turns_top_p_off(checkpoint: Path, tmp_path: Path) -> None:
    assert generate(checkpoint, tmp_path / "clips", "--text", "a flute", "--top-k", "5") == 0
    decoding = results_of(tmp_path / "clips")[0]["decoding"]
    assert (decoding["top_k"], decoding["top_p"]) == (5, 0.0)


def test_precision_is_chosen_said_and_part_of_the_clip(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digests = []
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        assert generate(checkpoint, out, "--text", "a low bell", "--precision", precision) == 0
        assert f" s, {precision}) and results.jsonl" in capsys.readouterr().out
        (result,) = results_of(out)
        assert result["precision"] == precision
        digests.append(result["fingerprint"])
    assert digests[0] != digests[1]  # so a stopped command does not go on in another precision
    assert generate(checkpoint, tmp_path / "auto", "--text", "a low bell") == 0
    assert (
        results_of(tmp_path / "auto")[0]["precision"] == "float32"
    )  # a model this small is not faster in 16 bits
    assert generate(checkpoint, tmp_path / "half", "--text", "a low bell", "--precision", "float16") == 1
    assert "float16 needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--prompts", "/dev/zero"), "--prompts /dev/zero cannot be read (it has more than 268435456 bytes)"),
        (("--unconditional", "100000000000"), "--unconditional 100000000000 must lie in 1..1,000,000."),
        (("--prompts", "{list}"), 'line 1 of {list} should look like {{"text": "..."}} (it has no text)'),
    ],
)
def test_captions_without_end_are_refused(
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, str],
    sentence: str,
) -> None:
    listed = tmp_path / "list.jsonl"
    listed.write_text("[1, 2]\n")
    words = [word.format(list=listed) for word in options]
    assert generate(checkpoint, tmp_path / "out", *words) == 1
    assert sentence.format(list=listed) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_compiled_generates(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: 1 / 0)
    assert generate(checkpoint, tmp_path / "out", "--text", "a low bell", "--compile") == 0
    captured = capsys.readouterr()
    assert "warning: --compile has no effect: torch cannot compile here (" in captured.err
    assert len(results_of(tmp_path / "out")) == 1
