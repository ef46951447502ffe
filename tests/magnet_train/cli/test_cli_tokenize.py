"""`tokenize` through the real command line and the packaged codec, on real audio files."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from datamodules.shards.reading import ShardReader
from datamodules.shards.verify import verify_shards
from magnet_train.audio import read_audio
from magnet_train.audio.resampling import ratio_of, resample
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec


def write_tone(
    path: Path, seconds: float = 1.0, rate: int = 16_000, channels: int = 1, pitch: float = 440.0
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    tone = 0.3 * np.sin(2 * np.pi * pitch * time) * np.exp(-time)
    soundfile.write(path, np.repeat(tone[:, None], channels, axis=1), rate)


def write_caption(audio: Path, text: str) -> None:
    audio.with_suffix(".json").write_text(json.dumps({"text": text, "bpm": 90}))


def tokenize(*words: object) -> int:
    return main(["tokenize", *map(str, words), "--codec", "quickstart", "--device", "cpu"])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Five usable files of several formats, rates and lengths, and one for each way of being useless."""
    folder = tmp_path / "audio"
    write_tone(folder / "mono.wav", 1.0, 16_000)
    write_tone(folder / "deep" / "stereo.wav", 2.0, 44_100, 2)
    write_tone(folder / "lossless.flac", 1.5, 48_000)
    write_tone(folder / "vorbis.ogg", 0.7, 22_050)
    write_tone(folder / "layer three.mp3", 1.2, 44_100, 2)
    for path in list(folder.rglob("*.*")):
        write_caption(path, f"a tone called {path.stem}")
    (folder / "broken.wav").write_bytes(b"RIFF, they said")
    soundfile.write(folder / "silent.wav", np.zeros(16_000), 16_000)
    soundfile.write(folder / "blip.wav", np.full(20, 0.5), 16_000)  # 10 samples at the codec's 8 kHz
    for name in ("broken", "silent", "blip"):
        write_caption(folder / f"{name}.wav", "useless")
    write_tone(folder / "mute about itself.wav")
    return folder


def test_a_mixed_folder(mixed: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "shards"
    assert tokenize("--audio", mixed, "--out", out) == 0
    reader = ShardReader(out)
    codec = load_codec("quickstart")
    assert reader.manifest.codec == codec.info
    lengths = {"deep__stereo": 2.0, "layer_three": 1.2, "lossless": 1.5, "mono": 1.0, "vorbis": 0.7}
    samples = [reader[number] for number in range(len(reader))]
    assert [sample.key for sample in samples] == list(lengths)
    for sample in samples:
        assert sample.tokens.shape[0] == codec.n_q
        assert abs(sample.tokens.shape[1] - lengths[sample.key] * codec.frame_rate) <= 6  # mp3 pads its ends
    assert samples[0].metadata == {"text": "a tone called stereo", "bpm": 90, "source": "deep/stereo.wav"}
    assert verify_shards(out) == []
    report = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    reasons = {Path(line["path"]).name: line["reason"] for line in report}
    assert set(reasons) == {"broken.wav", "silent.wav", "blip.wav", "mute about itself.wav"}
    assert reasons["broken.wav"].startswith("unreadable")
    assert reasons["silent.wav"] == "silent"
    assert reasons["blip.wav"].startswith("too short: 10 samples")
    assert reasons["mute about itself.wav"].startswith("no caption")
    printed = capsys.readouterr().out
    assert "wrote 5 clips" in printed
    assert "left out 4 files" in printed


def test_tokens_are_the_codecs_own(mixed: Path, tmp_path: Path) -> None:
    assert tokenize("--audio", mixed, "--out", tmp_path / "shards", "--workers", 1) == 0
    codec = load_codec("quickstart")
    sample = ShardReader(tmp_path / "shards")[2]
    audio = read_audio(mixed / "lossless.flac", codec.sample_rate, codec.channels)
    np.testing.assert_array_equal(sample.tokens, codec.encode(audio[None])[0].numpy())


def test_workers_change_no_byte(mixed: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        assert tokenize("--audio", mixed, "--out", tmp_path / f"w{workers}", "--workers", workers) == 0
    for path in (tmp_path / "w1").iterdir():
        assert path.read_bytes() == (tmp_path / "w3" / path.name).read_bytes()


def test_a_manifest(mixed: Path, tmp_path: Path) -> None:
    lines = [{"path": "mono.wav", "text": "one", "genre": "test"}, {"path": "gone.wav", "text": "two"}]
    (mixed / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert tokenize("--audio", mixed / "list.jsonl", "--out", tmp_path / "shards") == 0
    assert ShardReader(tmp_path / "shards")[0].metadata == {
        "text": "one",
        "genre": "test",
        "bpm": 90,  # from the .json beside it
        "source": "mono.wav",
    }
    (line,) = (tmp_path / "shards" / "report.jsonl").read_text().splitlines()
    assert "gone.wav" in line


def test_strict_stops_at_the_first_and_goes_on_without_strict(
    mixed: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "new" / "shards"
    assert tokenize("--audio", mixed, "--out", out, "--strict") == 1
    error = capsys.readouterr().err
    assert "blip.wav cannot be used (too short" in error
    assert not (out / "manifest.json").exists()
    assert tokenize("--audio", mixed, "--out", out) == 0
    assert len(ShardReader(out)) == 5
    (mixed / "blip.wav").unlink()
    assert tokenize("--audio", mixed, "--out", out, "--strict", "--overwrite") == 1
    assert "broken.wav cannot be used (unreadable" in capsys.readouterr().err


def test_nothing_usable_leaves_nothing(tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "audio"
    folder.mkdir()
    assert tokenize("--audio", folder, "--out", tmp_path / "shards") == 1
    assert "holds no audio" in capsys.readouterr().err
    soundfile.write(folder / "a.wav", np.zeros(16_000), 16_000)
    assert tokenize("--audio", folder, "--out", tmp_path / "shards") == 1
    assert "1 no caption" in capsys.readouterr().err
    write_caption(folder / "a.wav", "x")
    assert tokenize("--audio", folder, "--out", tmp_path / "shards") == 1
    assert "the only file cannot be used (1 silent)" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_nothing_usable_shows_a_few_reasons(tmp_path: Path, capsys: Any) -> None:
    """Of six without a caption four, as there is one of another kind to show."""
    folder = tmp_path / "audio"
    for name in "abcdefg":
        write_tone(folder / f"{name}.wav")
    (folder / "g.json").write_text("{")
    assert tokenize("--audio", folder, "--out", tmp_path / "shards") == 1
    *_, first, second, third, fourth, fifth, error = capsys.readouterr().err.splitlines()
    reason = "no caption: no .json or .txt beside it, and no tags in it"
    assert [first, third, fourth, fifth] == [f"{folder / name}.wav: {reason}" for name in "abcd"]
    assert second.startswith(f"{folder / 'g'}.wav: unreadable caption: g.json")
    assert error.startswith(
        "magnet-train: error: none of the 7 files can be used (6 no caption, 1 unreadable"
    )


def test_a_folder_in_use_is_not_touched(mixed: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "shards"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert tokenize("--audio", mixed, "--out", out) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("words", [[], ["--audio", "x"], ["--audio", "x", "--out", "y", "--workers", "0"]])
def test_wrong_usage(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tokenize", *words])


def test_not_a_number_is_unusable(tmp_path: Path, capsys: Any) -> None:
    samples = np.full(16_000, 0.1, dtype=np.float32)
    samples[5] = np.nan
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", samples, 16_000, subtype="FLOAT")
    write_caption(tmp_path / "audio" / "a.wav", "x")
    assert tokenize("--audio", tmp_path / "audio", "--out", tmp_path / "shards") == 1
    assert "1 unreadable" in capsys.readouterr().err


def test_a_file_that_may_not_be_read(
    mixed: Path, tmp_path: Path, without_rights: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (mixed / "mono.wav").chmod(0)
    words = ("tokenize", "--audio", mixed, "--out", tmp_path / "shards", "--codec", "quickstart")
    assert without_rights(*words).returncode == 0
    problem = "cannot be read (Permission denied); correct its permissions."
    assert report_of(tmp_path / "shards")["mono.wav"] == f"unreadable: {mixed / 'mono.wav'} {problem}"
    (mixed / "list.jsonl").touch(0)
    refused = without_rights("tokenize", "--audio", mixed / "list.jsonl", "--out", tmp_path / "other")
    assert refused.returncode == 1
    assert refused.stderr.endswith(
        "list.jsonl cannot be read (Permission denied); correct its permissions.\n"
    )


def report_of(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    return {Path(line["path"]).name: line["reason"] for line in lines}


def test_duplicates_keep_the_first(tmp_path: Path) -> None:
    """A copy, and the same samples as flac; the first in the list stays, in its own shard."""
    folder = tmp_path / "audio"
    write_tone(folder / "b.wav", 1.0)
    (folder / "c.wav").write_bytes((folder / "b.wav").read_bytes())
    samples, rate = soundfile.read(folder / "b.wav", dtype="int16")
    soundfile.write(folder / "d.flac", samples, rate)
    write_tone(folder / "e.wav", 1.0, pitch=300)
    for path in list(folder.iterdir()):
        write_caption(path, path.stem)
    assert tokenize("--audio", folder, "--out", tmp_path / "shards", "--files-per-shard", 1) == 0
    reader = ShardReader(tmp_path / "shards")
    assert [reader[n].key for n in range(len(reader))] == ["b", "e"]
    assert [shard.file for shard in reader.manifest.shards] == ["shard-000000.tar", "shard-000003.tar"]
    assert verify_shards(tmp_path / "shards") == []
    reason = f"duplicate: the same audio as {folder / 'b.wav'}"
    assert report_of(tmp_path / "shards") == {"c.wav": reason, "d.flac": reason}


def test_parts_of_a_file_and_a_template(tmp_path: Path) -> None:
    write_tone(tmp_path / "long.wav", 8.0)
    (tmp_path / "t.csv").write_text(
        "path,genre,instrument,start_s,end_s\n"
        "long.wav,rock,guitar,0,2\n"
        "long.wav,jazz,piano,3.5,5\n"
        "long.wav,jazz,,5,6\n"
        "long.wav,pop,synth,30,31\n"
    )
    words = ("--audio", tmp_path / "t.csv", "--caption-template", "{genre} with {instrument}")
    assert tokenize(*words, "--out", tmp_path / "shards") == 0
    reader = ShardReader(tmp_path / "shards")
    samples = [reader[number] for number in range(len(reader))]
    assert [(sample.metadata["text"], sample.metadata["start"]) for sample in samples] == [
        ("rock with guitar", 0.0),
        ("jazz with piano", 3.5),
    ]
    assert [sample.tokens.shape[1] for sample in samples] == [100, 75]  # 50 frames a second
    codec = load_codec("quickstart")
    audio = read_audio(tmp_path / "long.wav", 16_000, 1)[:, 56_000:80_000]
    expected = codec.encode(resample(audio, ratio_of(16_000, codec.sample_rate))[None])[0].numpy()
    np.testing.assert_array_equal(samples[1].tokens, expected)
    reasons = report_of(tmp_path / "shards")
    assert reasons["long.wav from 5 s to 6 s"] == "no caption: the template wants instrument"
    assert reasons["long.wav from 30 s to 31 s"] == "beyond the end of the file: it has 8 s"


def frames_by_start(out: Path) -> list[tuple[float, int]]:
    reader = ShardReader(out)
    samples = [reader[number] for number in range(len(reader))]
    return [(sample.metadata["start"], sample.tokens.shape[1]) for sample in samples]


def test_a_list_means_its_start_and_end(tmp_path: Path) -> None:
    """At 50 frames a second; no file is taken for a clip that was cut already, however little is missing."""
    write_tone(tmp_path / "short.wav", 3.0)
    write_tone(tmp_path / "long.wav", 10.0)
    parts = [("short.wav", 1, 3), ("short.wav", 50, 60), ("short.wav", 2, 3.5), ("short.wav", 3, None)]
    parts += [("long.wav", 0.5, 10.05), ("long.wav", 0, 9.5)]
    lines = [{"path": path, "text": "x", "start": start, "end": end} for path, start, end in parts]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert tokenize("--audio", tmp_path / "list.jsonl", "--out", tmp_path / "shards") == 0
    assert frames_by_start(tmp_path / "shards") == [(1.0, 100), (0.5, 475), (0.0, 475)]
    reason = "beyond the end of the file: it has 3 s"
    assert report_of(tmp_path / "shards") == {
        "short.wav from 50 s to 60 s": reason,
        "short.wav from 2 s to 3.5 s": reason,
        "short.wav from 3 s": reason,
    }


def test_audiocaps_may_be_cut_already(tmp_path: Path) -> None:
    """Its clips have 10 s: of a file of 10.5 s all is taken, of one of 25 s what there is of the clip."""
    for name, seconds in (("cut", 10.5), ("whole", 25.0), ("early", 14.0), ("gone", 25.0)):
        noise = 0.1 * np.random.default_rng(len(name)).standard_normal(round(seconds * 8_000))
        soundfile.write(tmp_path / f"{name}.wav", noise, 8_000)
    (tmp_path / "train.csv").write_text(
        "audiocap_id,youtube_id,start_time,caption\n1,cut,130,a\n2,whole,12,b\n3,early,9,c\n4,gone,30,d\n"
    )
    assert tokenize("--audio", tmp_path / "train.csv", "--out", tmp_path / "shards") == 0
    assert frames_by_start(tmp_path / "shards") == [(130.0, 525), (12.0, 500), (9.0, 250)]
    assert list(report_of(tmp_path / "shards")) == ["gone.wav from 30 s to 40 s"]


def test_a_finished_folder_is_left_as_it_is(mixed: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "shards"
    assert tokenize("--audio", mixed, "--out", out) == 0
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()}
    capsys.readouterr()
    assert tokenize("--audio", mixed, "--out", out) == 0
    assert "was finished before: 5 clips" in capsys.readouterr().out
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.iterdir()} == before


@pytest.mark.parametrize("change", ["template", "shard"])
def test_other_settings_are_refused(mixed: Path, tmp_path: Path, capsys: Any, change: str) -> None:
    out = tmp_path / "shards"
    words: list[object] = ["--audio", mixed, "--out", out]
    assert tokenize(*words) == 0
    changed = {"template": ["--caption-template", "{bpm}"], "shard": ["--files-per-shard", 3]}[change]
    write_tone(mixed / "one more.wav")
    assert tokenize(*words, *changed) == 1
    error = capsys.readouterr().err
    assert "was begun with" in error
    assert "--overwrite" in error
    assert {"template": "--caption_template", "shard": "--files_per_shard 3"}[change] in error
    assert tokenize(*words, *changed, "--overwrite") == 0
    assert verify_shards(out) == []


def test_overwrite_is_for_one_process_and_for_shards(
    mixed: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert tokenize("--audio", mixed, "--out", tmp_path / "out", "--overwrite") == 1
    assert "does not hold shards only" in capsys.readouterr().err
    assert (tmp_path / "out" / "mine.txt").exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert tokenize("--audio", mixed, "--out", tmp_path / "out", "--overwrite") == 1
    assert "--overwrite is for one process" in capsys.readouterr().err


def test_a_rank_does_its_share(
    mixed: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--audio", mixed, "--files-per-shard", 2)
    assert tokenize(*words, "--out", tmp_path / "alone") == 0
    for rank in ("1", "0"):
        monkeypatch.setenv("SLURM_PROCID", rank)
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
        assert tokenize(*words, "--out", tmp_path / "shared") == 0
    printed = capsys.readouterr().out
    assert "rank 1 of 2 has done its share" in printed
    assert printed.count("wrote 5 clips") == 2
    for path in (tmp_path / "alone").iterdir():
        assert path.read_bytes() == (tmp_path / "shared" / path.name).read_bytes()


def test_a_batch_script_without_srun_is_one_process(
    mixed: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")):
        monkeypatch.setenv(name, value)
    assert tokenize("--audio", mixed, "--files-per-shard", 2, "--out", tmp_path / "shards") == 0
    assert "wrote 5 clips" in capsys.readouterr().out


def test_the_bar_counts_audio(mixed: Path) -> None:
    """Of 1.0 + 2.0 s: one file was done before, the other is half done."""
    import time

    from datamodules.tokenize.audio_files import list_audio
    from magnet_train.cli.ranks import Ranks
    from magnet_train.cli.tokenize_progress import TokenizeProgress

    by_name = {file.name: file for file in list_audio(mixed)}
    with TokenizeProgress(
        [by_name["mono.wav"], by_name["deep/stereo.wav"]], 8_000, Ranks(0, 1, 0)
    ) as progress:
        deadline = time.monotonic() + 60
        while progress.ends is None and time.monotonic() < deadline:
            time.sleep(0.01)
        progress.skip(1)
        assert len(list(progress.count_audio([torch.zeros(1, 8_000)]))) == 1
        (task,) = progress.bar._bar.tasks
        assert (task.completed, task.total) == (2.0, 3.0)
        assert task.description.startswith("2.0 s of 3.0 s  1 of 2 files  ")
        assert "x real time" in task.description
        assert task.description.endswith(" left")


def test_the_remedy_for_sound_that_is_not_read(mixed: Path, tmp_path: Path, capsys: Any) -> None:
    for name in ("a.ape", "b.APE", "c.ac3"):
        (mixed / name).write_bytes(b"x")
    assert tokenize("--audio", mixed, "--out", tmp_path / "shards") == 0
    printed = capsys.readouterr().out
    assert '2 ape files not read; to convert all in a folder: for f in *.ape; do ffmpeg -i "$f"' in printed
    assert "1 ac3 file not read" in printed


def test_names_that_are_not_text(tmp_path: Path) -> None:
    folder = tmp_path / "[red] audio"
    write_tone(folder / "plain.wav")
    for pitch, name in ((200, b"\xff\xfe.wav"), (300, "日本\n.wav".encode())):
        target = os.fsencode(folder) + b"/" + name
        write_tone(folder / "temporary.wav", pitch=pitch)
        os.rename(folder / "temporary.wav", target)
        Path(os.fsdecode(target)).with_suffix(".txt").write_text("strange")
    assert tokenize("--audio", folder, "--out", tmp_path / "shards") == 0
    reader = ShardReader(tmp_path / "shards")
    assert sorted(reader[n].metadata["source"] for n in range(len(reader))) == ["??.wav", "日本\n.wav"]
    assert verify_shards(tmp_path / "shards") == []
