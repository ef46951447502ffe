"""`tokenize` in real processes: killed, interrupted, shared out, and given a long file."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules.shards.verify import verify_shards

ROOT = Path(__file__).parents[3]
CLIPS = 48
pytestmark = pytest.mark.slow


def tokenize(audio: Path, out: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "magnet_train", "tokenize", "--audio", str(audio), "--out", str(out)]
    command += ["--codec", "quickstart", "--device", "cpu", "--files-per-shard", "5", *words]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell lets what it starts in the background ignore Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def ranks_of(number: int, launcher: str = "torchrun") -> Iterator[dict[str, str]]:
    """Yield what a launcher tells each of its processes."""
    names = {"torchrun": ("RANK", "WORLD_SIZE"), "slurm": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")}[launcher]
    for rank in range(number):
        yield dict(zip(names, (str(rank), str(number)), strict=True))


def wait(process: subprocess.Popen[str]) -> str:
    out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    return out


def decided(out: Path) -> int:
    """Count the files that the journals speak of."""
    return sum(path.read_bytes().count(b"\n") for path in (out / ".tokenize").glob("*.jsonl"))


def stop_after(processes: list[subprocess.Popen[str]], out: Path, files: int, kind: signal.Signals) -> None:
    """Send a signal once so many more files are decided."""
    goal, deadline = decided(out) + files, time.monotonic() + 240
    while decided(out) < goal:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in processes), "it ended before it was stopped"
        time.sleep(0.002)
    for process in processes:
        process.send_signal(kind)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of five formats and lengths, up to 50 s, with a duplicate and a silent one among them."""
    folder = tmp_path_factory.mktemp("audio")
    random = np.random.default_rng(0)
    for number in range(CLIPS):
        suffix, rate = [("wav", 44_100), ("flac", 16_000), ("ogg", 22_050), ("mp3", 32_000)][number % 4]
        seconds = 50 if number % 12 == 5 else random.uniform(1, 6)
        sound = 0.1 * random.standard_normal(round(seconds * rate)) * (number != 7)
        soundfile.write(folder / f"clip{number:02d}.{suffix}", sound, rate)
        (folder / f"clip{number:02d}.txt").write_text(f"noise {number}")
    (folder / "zz.wav").write_bytes((folder / "clip00.wav").read_bytes())
    (folder / "zz.txt").write_text("the first once more")
    return folder


@pytest.fixture(scope="module")
def undisturbed(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed") / "shards"
    printed = wait(tokenize(audio, out))
    assert f"wrote {CLIPS - 1} clips" in printed
    assert "left out 2 files (1 silent, 1 duplicate)" in printed
    return contents(out)


def test_killed_and_interrupted_it_goes_on(
    audio: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    for _ in range(5):  # on a busy machine the signal may find that everything is done already
        process = tokenize(audio, out, "--overwrite")
        stop_after([process], out, 2, signal.SIGINT)
        printed = process.communicate()[1]
        if process.returncode != 0:
            break
    assert process.returncode == 130
    assert "interrupted" in printed
    for files in (1, 9, 6):
        process = tokenize(audio, out)
        stop_after([process], out, files, signal.SIGKILL)
        process.communicate()
    wait(tokenize(audio, out))
    assert contents(out) == undisturbed


def test_two_killed_ranks_go_on(audio: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Two ranks as torchrun has them, then SLURM's two, then one alone."""
    out = tmp_path / "shards"
    for launcher, files in (("torchrun", 8), ("slurm", 12)):
        processes = [tokenize(audio, out, **rank) for rank in ranks_of(2, launcher)]
        stop_after(processes, out, files, signal.SIGKILL)
        for process in processes:
            process.communicate()
    wait(tokenize(audio, out))
    assert contents(out) == undisturbed


@pytest.fixture(scope="module")
def changed(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same folder with seven clips more, two less, one with other audio and two with other captions."""
    folder = tmp_path_factory.mktemp("changed") / "audio"
    shutil.copytree(audio, folder)  # keeps the times
    random = np.random.default_rng(1)
    for name in ("a", "clip03a", "clip20a", "clip21a", "clip22a", "y", "zzz"):
        soundfile.write(folder / f"{name}.wav", 0.1 * random.standard_normal(40_000), 16_000)
        (folder / f"{name}.txt").write_text(f"new noise {name}")
    (folder / "clip00.wav").unlink()  # so that zz.wav is no duplicate any more
    (folder / "clip31.mp3").unlink()
    soundfile.write(folder / "clip08.wav", 0.1 * random.standard_normal(40_000), 16_000)
    for name in ("clip13", "clip40"):
        (folder / f"{name}.txt").write_text(f"another caption of {name}")
    return folder


def test_grown_by_two_killed_ranks_and_one_more(
    audio: Path, undisturbed: dict[str, bytes], changed: Path, tmp_path: Path
) -> None:
    """Killed while they encode, they leave the folder as it was."""
    wait(tokenize(audio, tmp_path / "once"))
    shutil.copytree(tmp_path / "once", tmp_path / "killed")
    printed = wait(tokenize(changed, tmp_path / "once"))
    assert "once: 9 new, 3 removed, 2 captions changed, 42 kept" in printed
    assert verify_shards(tmp_path / "once") == []
    whole = contents(tmp_path / "once")
    kept = [name for name in undisturbed if name.endswith(".tar") and name in whole]
    assert len(kept) >= 4
    assert all(whole[name] == undisturbed[name] for name in kept)
    out = tmp_path / "killed"
    for files in (1, 2):
        processes = [tokenize(changed, out, **rank) for rank in ranks_of(2)]
        stop_after(processes, out, files, signal.SIGKILL)
        for process in processes:
            process.communicate()
        assert {name: data for name, data in contents(out).items() if "/" not in name} == undisturbed
        assert verify_shards(out) == []
    wait(tokenize(changed, out, "--workers", "3"))
    assert contents(out) == whole


def test_under_torchrun(audio: Path, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "shards"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "magnet_train", "tokenize", "--audio", str(audio), "--out", str(out)]
    command += ["--codec", "quickstart", "--device", "cpu", "--files-per-shard", "5"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"wrote {CLIPS - 1} clips") >= 1
    assert contents(out) == undisturbed


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path: Path) -> None:
    """Half an hour takes at most 60 MB more than two minutes; held as float32 it alone would take 115 MB."""
    peaks = []
    for minutes in (2, 30):
        folder = tmp_path / f"audio{minutes}"
        folder.mkdir()
        random = np.random.default_rng(0)
        with soundfile.SoundFile(folder / "long.wav", "w", 16_000, 1) as file:
            for _ in range(minutes * 2):
                file.write(0.1 * random.standard_normal(30 * 16_000))
        (folder / "long.txt").write_text("noise")
        # Equal runs differ by 40 MB, by the pages of libraries that are mapped: take the least of two.
        runs = []
        for run in range(2):
            process = tokenize(folder, tmp_path / f"shards{minutes}_{run}")
            _, status, usage = os.wait4(process.pid, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            runs.append(usage.ru_maxrss / 1024)  # kB on Linux
        peaks.append(min(runs))
    print(f"peak memory: {peaks[0]:.0f} MB for 2 minutes, {peaks[1]:.0f} MB for 30")
    assert peaks[1] - peaks[0] < 60
