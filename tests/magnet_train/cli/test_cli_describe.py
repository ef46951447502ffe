"""`describe` on real files through the command line, and `tokenize` after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from known_music import chords, clicks

from magnet_train.audio.tempo_and_key import RATE
from magnet_train.cli.describing import LONGEST, analyse, excerpt
from magnet_train.cli.main import main
from magnet_train.evaluation import Clap

ROOT = Path(__file__).parents[3]


def sine(seconds: float, level: float = 1.0, channels: int = 1, rate: int = 48_000) -> np.ndarray:
    tone = level * np.sin(2 * np.pi * 997 * np.arange(round(seconds * rate)) / rate)
    return np.repeat(tone[:, None], channels, axis=1)


def described(audio: Path) -> dict:
    return json.loads(audio.with_name(audio.name + ".describe.json").read_text())


def everything(folder: Path) -> dict[Path, tuple[int, bytes]]:
    """Time and bytes of each file."""
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Music, files that cannot be used, and what a person wrote beside one."""
    folder = tmp_path_factory.mktemp("music")
    (folder / "deep").mkdir()
    soundfile.write(folder / "click.wav", clicks(120, 12.0), RATE)
    soundfile.write(folder / "deep" / "chords.flac", chords("A minor", 1), RATE)
    (folder / "deep" / "chords.json").write_text('{"text": "a song", "bpm": 77}')
    soundfile.write(folder / "silent.wav", np.zeros(RATE), RATE)
    soundfile.write(folder / "short.wav", clicks(120, 0.3), RATE)
    (folder / "broken.wav").write_bytes(b"RIFF nothing else")
    (folder / "film.ape").write_bytes(b"MAC ")
    return folder


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    """What the command prints; it is run once."""
    done = subprocess.run(
        [sys.executable, "-m", "magnet_train", "describe", str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def copy(folder: Path, output: str, tmp_path: Path) -> Path:
    """The folder after `describe`, to change; files keep their times."""
    return shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy2)


def test_the_fields_are_those_of_the_music(folder, output):
    click = described(folder / "click.wav")
    assert (click["fields"]["bpm"], click["fields"]["duration"]) == (120, 12.0)
    assert "key" in click["uncertain"]
    assert click["confidence"]["bpm"] > 0.55
    song = described(folder / "deep" / "chords.flac")
    assert song["fields"]["key"] == "A minor"


def test_the_table_and_the_reasons(output):
    lines = output.splitlines()
    row = next(line for line in lines if "click.wav" in line)
    assert "120 (0." in row
    assert "? (0.00)" in row
    assert "12.0 s" in row
    assert any(line.startswith("silent.wav: silent") for line in lines)
    assert any(line.startswith("short.wav: too short: 0.30 s") for line in lines)
    assert any(line.startswith("broken.wav: unreadable: ") for line in lines)
    assert any(line.startswith("film.ape: ape is not read") for line in lines)
    assert "described 2 of 6 files" in output


def test_other_files_are_untouched(folder, output):
    assert (folder / "deep" / "chords.json").read_text() == '{"text": "a song", "bpm": 77}'
    assert len(list(folder.rglob("*.describe.json"))) == 2
    assert not list(folder.rglob(".*"))


def test_again_only_what_has_changed(copy, capsys):
    before = everything(copy)
    assert main(["describe", str(copy), "--workers", "1"]) == 0
    assert everything(copy) == before
    assert "described 2 of 6 files, 2 of them before" in capsys.readouterr().out
    soundfile.write(copy / "click.wav", clicks(100, 12.0), RATE)
    assert main(["describe", str(copy), "--workers", "1"]) == 0
    assert described(copy / "click.wav")["fields"]["bpm"] == 100
    changed = [path.name for path, state in everything(copy).items() if before.get(path) != state]
    assert changed == ["click.wav", "click.wav.describe.json"]


def test_a_damaged_description_is_left_alone(copy, capsys):
    target = copy / "click.wav.describe.json"
    target.write_text("{")
    assert main(["describe", str(copy), "--workers", "1"]) == 0
    assert target.read_text() == "{"
    assert "click.wav: click.wav.describe.json is unreadable" in capsys.readouterr().out


@pytest.mark.parametrize("give_json", [True, False])
def test_tokenize_merges_them(copy, tmp_path, give_json, capsys):
    if not give_json:
        (copy / "deep" / "chords.json").unlink()
    (copy / "click.wav").unlink()
    words = [
        "--audio",
        str(copy),
        "--out",
        str(tmp_path / "shards"),
        "--codec",
        "quickstart",
        "--device",
        "cpu",
    ]
    assert main(["tokenize", *words, "--caption_template", "a song in {key}"]) == 0
    assert "fields of `describe` in a .describe.json" in capsys.readouterr().out
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar") as tar:
        (name,) = (name for name in tar.getnames() if name.endswith(".json"))
        metadata = json.load(tar.extractfile(name))
    assert metadata["text"] == ("a song" if give_json else "a song in A minor")
    assert metadata["key"] == "A minor"
    assert metadata["loudness"] == described(copy / "deep" / "chords.flac")["fields"]["loudness"]
    assert not give_json or metadata["bpm"] == 77


def test_the_nearest_tags(copy, clap_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    tags = tmp_path / "tags.txt"
    tags.write_text("slow piano\nhigh bell\n\n  low   flute\nhigh bell\na\n", encoding="utf-8")
    before = described(copy / "click.wav")
    words = ["describe", str(copy), "--clap", str(clap_folder), "--tags", str(tags)]
    words += ["--device", "cpu", "--workers", "1"]
    assert main(words) == 0
    found = described(copy / "click.wav")
    assert {**found["fields"], "tags": 0} == {**before["fields"], "tags": 0}
    assert found["confidence"]["bpm"] == before["confidence"]["bpm"]
    known = ["slow piano", "high bell", "low flute", "a"]
    probability = found["confidence"]["tags"]
    assert sorted(probability) == sorted(known)
    assert sum(probability.values()) == pytest.approx(1, abs=0.01)
    assert list(probability.values()) == sorted(probability.values(), reverse=True)
    relied_on = found["fields"].get("tags", [])
    assert relied_on == [tag for tag in probability if probability[tag] >= 0.5]
    assert relied_on + found["uncertain"].get("tags", []) == list(probability)
    # the same by hand
    clap = Clap.from_pretrained(str(clap_folder))
    similarity = clap.embed_text(known) @ _embedding(clap, copy / "click.wav")
    logits = float(clap.model.logit_scale_a.detach().exp()) * similarity
    expected = np.exp(logits) / np.exp(logits).sum()
    assert [probability[tag] for tag in known] == pytest.approx(expected, abs=1e-3)
    assert "slow piano" in capsys.readouterr().out
    # nothing to do; another list; without the options the tags stay
    state = everything(copy)
    assert main(words) == 0
    assert main(["describe", str(copy), "--workers", "1"]) == 0
    assert everything(copy) == state
    tags.write_text("slow\nhigh\n")
    assert main(words) == 0
    assert sorted(described(copy / "click.wav")["confidence"]["tags"]) == ["high", "slow"]


def _embedding(clap: Clap, path: Path) -> np.ndarray:
    from magnet_train.audio import read_audio

    (mono,) = read_audio(path, clap.sample_rate, 1)
    windows = [
        mono[start : start + clap.window_samples] for start in range(0, len(mono), clap.window_samples)
    ]
    mean = clap.embed_audio(windows).mean(axis=0)
    return mean / np.linalg.norm(mean)


def test_loudness_is_that_of_the_standard(tmp_path):
    """BS.1770: a sine of 997 Hz at full scale in one channel is at -3.01 LUFS, in both at 0."""
    for channels, rate, level, expected in (
        (1, 48_000, 1.0, -3.01),
        (2, 48_000, 1.0, 0.0),
        (1, 44_100, 0.1, -23.01),
        (1, 8_000, 0.1, -23.01),
    ):
        path = tmp_path / f"{channels}_{rate}_{level}.wav"
        soundfile.write(path, sine(5, level, channels, rate), rate, subtype="FLOAT")
        assert analyse(path).fields["loudness"] == pytest.approx(expected, abs=0.1)


def test_of_a_long_file_the_middle_is_heard(tmp_path):
    path = tmp_path / "long.wav"
    minute = np.tile(clicks(120, 20.0), 3)
    soundfile.write(path, np.concatenate([0 * minute, 0 * minute, *[minute] * 4]), RATE)
    assert excerpt(path) == (120.0, 120.0 + LONGEST)
    found = analyse(path)
    assert found.fields["duration"] == 360.0
    assert found.seconds_heard == LONGEST
    assert found.fields["bpm"] == 120


def test_of_a_truncated_file_what_is_there(tmp_path):
    path = tmp_path / "cut.wav"
    soundfile.write(path, clicks(120, 20.0), RATE)
    path.write_bytes(path.read_bytes()[: 2 * 10 * RATE + 44])
    assert analyse(path).fields["duration"] == pytest.approx(10, abs=0.01)


def test_a_file_that_a_table_lists_twice(tmp_path, capsys):
    """Two captions of one file are two rows, and two parts of one are two clips."""
    for name in ("a.wav", "b.wav"):
        soundfile.write(tmp_path / name, clicks(120, 4.0), RATE)
    rows = "a.wav,,one", "a.wav,,two", "b.wav,0,three", "b.wav,2,four", "gone.wav,,five"
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,start,text", *rows]) + "\n")
    assert main(["describe", str(tmp_path), "--workers", "1"]) == 0
    assert {path.name for path in tmp_path.glob("*.json")} == {"a.wav.describe.json", "b.wav.describe.json"}
    printed = capsys.readouterr().out
    assert "duplicate" not in printed
    assert "gone.wav: missing" in printed
    assert "described 2 of 3 files" in printed
    words = ["tokenize", "--audio", str(tmp_path), "--out", str(tmp_path / "s"), "--codec", "quickstart"]
    assert main([*words, "--device", "cpu"]) == 0
    # parts have no fields of the whole
    assert "1 of 5 files have fields of `describe`" in capsys.readouterr().out


def test_a_folder_without_anything_usable(tmp_path, capsys):
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    before = everything(tmp_path)
    assert main(["describe", str(tmp_path), "--workers", "1"]) == 1
    assert "none of 1 file in" in capsys.readouterr().err
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is not a folder"),
        (
            ["hf://datasets/someone/songs/data"],
            "download it first with `hf download someone/songs --repo-type dataset --local-dir FOLDER`",
        ),
        (["{0}"], "holds no audio"),
        (["{0}", "--clap", "x"], "--clap NAME and --tags FILE belong together"),
        (["{0}", "--tags", "x"], "--clap NAME and --tags FILE belong together"),
        (["{1}", "--clap", "x", "--tags", "{0}/none.txt"], "--tags"),
        (["{1}", "--clap", "{0}", "--tags", "{0}/one.txt"], "has 1 tag; write at least two"),
        (["{1}", "--clap", "{0}/missing", "--tags", "{0}/two.txt"], "CLAP model"),
    ],
)
def test_wrong_usage_is_one_sentence(words, said, folder, output, tmp_path, capsys):
    (tmp_path / "one.txt").write_text("piano\n\npiano\n")
    (tmp_path / "two.txt").write_text("piano\nflute\n")
    before = everything(folder)
    assert main(["describe", *(word.format(tmp_path, folder) for word in words)]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert everything(folder) == before


def test_a_folder_that_cannot_be_written_to(tmp_path, no_file_larger_than, capsys):
    soundfile.write(tmp_path / "click.wav", clicks(120, 5.0), RATE)
    with no_file_larger_than(64):
        assert main(["describe", str(tmp_path), "--workers", "1"]) == 1
    assert "no room on disk for" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["click.wav"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_at_any_moment_it_goes_on(number, tmp_path):
    for bpm in range(80, 140, 10):
        soundfile.write(tmp_path / f"{bpm}.wav", clicks(bpm, 8.0), RATE)
    words = [sys.executable, "-m", "magnet_train", "describe", str(tmp_path)]
    process = subprocess.Popen(
        words, cwd=ROOT, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    while process.poll() is None and not list(tmp_path.glob("*.describe.json")):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT) if number == signal.SIGINT else process.kill()
    _, error = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGINT:
        assert "of 6 files; the same command continues with the rest" in error
        assert "Traceback" not in error
    early = everything(tmp_path)
    done = [path for path in early if path.name.endswith(".describe.json")]
    assert 0 < len(done) < 6
    assert all(json.loads(path.read_text())["fields"] for path in done)
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    for bpm in range(80, 140, 10):
        assert described(tmp_path / f"{bpm}.wav")["fields"]["bpm"] == pytest.approx(bpm, rel=0.01)
    assert {path: everything(tmp_path)[path] for path in done} == {path: early[path] for path in done}
