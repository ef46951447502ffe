"""A job of many units: killed, resumed, shared out, it ends with the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.shards.reading import ShardReader
from datamodules.shards.verify import verify_shards
from datamodules.tokenize import job as shard_job
from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.job import ShardJob, clear_shards
from datamodules.tokenize.sources import Source
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

CODEC = CodecInfo(id="tiny", sha256="ab" * 32, sample_rate=16000, channels=1, frame_rate=50.0, n_q=4, card=64)
FILES = 60
PER_SHARD = 9


def work(folder: Path, rank: int = 0, ranks: int = 1, seconds: float = 0.0, **options: Any) -> Any:
    """Fill a folder with `FILES` clips: every seventh is left out, every tenth has the audio of the first."""
    job = make_job(folder, **options)
    if not job.complete:
        fill(job, rank, ranks, seconds)
    return job.finish(no_caption)


def make_job(folder: Path, files: Iterable[int] = range(FILES), **options: Any) -> ShardJob:
    sources = [
        Source(AudioFile(Path(f"file{place}"), f"clip{place:03d}.wav"), [[1, 1], None, None])
        for place in files
    ]
    return ShardJob(folder, CODEC, {"source": "made up", **options}, sources, PER_SHARD)


def no_caption(file: AudioFile) -> str:
    raise AssertionError(f"{file} has its caption already")


def fill(job: ShardJob, rank: int = 0, ranks: int = 1, seconds: float = 0.0) -> None:
    for unit, files in job.units(rank, ranks):
        if unit.finished:
            continue
        with unit:
            for file in files[len(unit.outcomes) :]:
                time.sleep(seconds)
                place = int(file.label.removeprefix("file"))
                if place % 7 == 3:
                    unit.leave_out(file.label, "silent")
                else:
                    audio = "the first" if place % 10 == 0 else f"sound {place}"
                    tokens = np.random.default_rng(place).integers(0, 64, (4, 30 + place))
                    unit.add(file.label, file.key, tokens, {"text": audio}, audio)
            unit.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "shards"
    work(folder)
    return folder


def start(folder: Path, rank: int = 0, ranks: int = 1) -> multiprocessing.Process:
    """Work in a process of its own; forked, since importing torch takes longer than the work."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder, rank, ranks, 0.004))
    process.start()
    return process


def decided(folder: Path) -> int:
    """Count the files that the journals speak of."""
    return sum(path.read_bytes().count(b"\n") for path in (folder / ".tokenize").glob("*.jsonl"))


def kill_after(folder: Path, processes: list[multiprocessing.Process], files: int) -> bool:
    """Kill all processes once `files` more files are decided; return whether they were alive until then."""
    goal = decided(folder) + files
    while decided(folder) < goal and all(process.is_alive() for process in processes):
        time.sleep(0.001)
    alive = any(process.is_alive() for process in processes)
    for process in processes:
        process.kill()
        process.join()
    return alive


def test_what_an_undisturbed_job_writes(undisturbed: Path) -> None:
    assert verify_shards(undisturbed) == []
    reader = ShardReader(undisturbed)
    left_out = [json.loads(line) for line in (undisturbed / "report.jsonl").read_text().splitlines()]
    duplicates = [line for line in left_out if line["reason"].startswith("duplicate")]
    assert [line["path"] for line in duplicates] == ["file20", "file30", "file40", "file50"]  # 10 is silent
    assert {line["reason"] for line in duplicates} == {"duplicate: the same audio as file0"}
    assert len(left_out) == 4 + len([n for n in range(FILES) if n % 7 == 3])
    assert len(reader) == FILES - len(left_out)
    assert [path.name for path in sorted(undisturbed.glob("*.tar"))] == [
        f"shard-{number:06d}.tar" for number in range(7)
    ]
    assert not (undisturbed / ".tokenize").exists()
    for number in range(len(reader)):
        place = int(reader[number].key.removeprefix("clip"))
        expected = np.random.default_rng(place).integers(0, 64, (4, 30 + place))
        np.testing.assert_array_equal(reader[number].tokens, expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_change_no_byte(undisturbed: Path, tmp_path: Path, ranks: int) -> None:
    finished = [work(tmp_path / "shards", rank, ranks) for rank in range(ranks)]
    assert [each is not None for each in finished] == [False] * (ranks - 1) + [True]
    assert contents(tmp_path / "shards") == contents(undisturbed)


def test_a_killed_job_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for files in (1, 7, 3, 12, 10, 2):
        assert kill_after(folder, [start(folder)], files), "it ended before it was killed"
    assert not (folder / "manifest.json").exists()
    before = decided(folder)
    assert before >= 35
    work(folder)
    assert contents(folder) == contents(undisturbed)


def test_two_killed_ranks_go_on_as_three(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    for files in (5, 15):
        assert kill_after(folder, [start(folder, rank, 2) for rank in range(2)], files)
    for process in [start(folder, rank, 3) for rank in range(3)]:
        process.join(60)
        assert process.exitcode == 0
    assert contents(folder) == contents(undisturbed)


def finish_together(folder: Path, barrier: Any) -> None:
    job = make_job(folder)
    barrier.wait()
    assert job.finish(no_caption) is not None


def test_ranks_that_finish_at_the_same_moment(undisturbed: Path, tmp_path: Path) -> None:
    """The second process finds the folder of unfinished work removed, or being removed."""
    context = multiprocessing.get_context("fork")
    for turn in range(10):
        folder = tmp_path / f"shards{turn}"
        job = make_job(folder)
        for rank in range(3):  # all but the end of it
            fill(job, rank, 3)
        barrier = context.Barrier(4)
        processes = [context.Process(target=finish_together, args=(folder, barrier)) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 4
        assert contents(folder) == contents(undisturbed)


def test_a_folder_removed_while_its_lock_is_opened(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = []

    class Overtaken(shard_job.FileLock):
        """Another process ends the job between making the folder and opening the lock."""

        def acquire(self, *arguments: Any, **names: Any) -> Any:
            if len(removed) < 2:
                removed.append(Path(self.lock_file).parent)
                shutil.rmtree(removed[-1])
                raise FileNotFoundError(self.lock_file)
            return super().acquire(*arguments, **names)

    job = make_job(tmp_path / "shards")
    fill(job)
    assert job.finish(no_caption) is not None
    monkeypatch.setattr(shard_job, "FileLock", Overtaken)
    assert job.finish(no_caption) is not None
    assert len(removed) == 2
    assert contents(tmp_path / "shards") == contents(undisturbed)


@pytest.mark.parametrize("cut", [1, 100, 513])
def test_a_tar_that_lags_behind_its_journal(undisturbed: Path, tmp_path: Path, cut: int) -> None:
    """As after a power cut: the journal reached the disk and the end of the tar did not, or is all zeros."""
    folder = tmp_path / "shards"
    assert kill_after(folder, [start(folder)], 14)
    tar = max((folder / ".tokenize").glob("*.tar"))
    data = tar.read_bytes()
    tar.write_bytes(data[: len(data) - cut] + bytes(cut if cut == 513 else 0))
    work(folder)
    assert contents(folder) == contents(undisturbed)


def test_a_journal_cut_in_the_middle_of_a_line(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    assert kill_after(folder, [start(folder)], 5)
    (journal,) = (folder / ".tokenize").glob("000000-*.jsonl")
    journal.write_bytes(journal.read_bytes()[:-9])
    work(folder)
    assert contents(folder) == contents(undisturbed)


@pytest.mark.parametrize("limit", [700, 9_000, 24_000])
def test_no_room_on_disk_and_room_again(
    undisturbed: Path, tmp_path: Path, no_file_larger_than: Any, limit: int
) -> None:
    with no_file_larger_than(limit), pytest.raises(UserError, match=r"no room on disk for .*\.tokenize"):
        work(tmp_path / "shards")
    work(tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(undisturbed)


@pytest.mark.parametrize("name", ["scan_written", "atomic_write"])
def test_stopped_at_the_end_of_a_shard(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nothing of the shard is done again: its journal is whole."""
    import datamodules.tokenize.work_unit as module

    def stop(*words: Any) -> Any:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(module, name, stop)
        with pytest.raises(StopError):
            work(tmp_path / "shards")
    unit, places = next(make_job(tmp_path / "shards").units())
    with unit:
        assert len(unit.outcomes) == len(places)
    work(tmp_path / "shards")
    assert contents(tmp_path / "shards") == contents(undisturbed)


class StopError(Exception):
    """Stands for a kill at a certain place."""


def test_a_finished_job_is_left_as_it_is(undisturbed: Path) -> None:
    before = contents(undisturbed)
    assert work(undisturbed).manifest.samples == len(ShardReader(undisturbed))
    assert contents(undisturbed) == before


def test_other_settings_are_refused(undisturbed: Path) -> None:
    before = contents(undisturbed)
    with pytest.raises(UserError, match="was begun with --source made up, and now there is --source other"):
        work(undisturbed, source="other")
    other = CodecInfo(**{**CODEC.to_dict(), "sha256": "cd" * 32})
    with pytest.raises(
        UserError, match=r"tiny \(weights abababababab, 4 codebooks\), .* tiny \(weights cdcdcd"
    ):
        ShardJob(undisturbed, other, {"source": "made up"}, [], PER_SHARD)
    assert contents(undisturbed) == before


def test_the_same_codec_in_another_place_goes_on(undisturbed: Path) -> None:
    before = contents(undisturbed)
    moved = CodecInfo(**{**CODEC.to_dict(), "id": "/elsewhere/tiny"})
    assert ShardJob(undisturbed, moved, {"source": "made up"}, [], PER_SHARD).is_usable
    assert contents(undisturbed) == before


def test_two_processes_do_not_write_one_shard(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    with next(make_job(folder).units())[0]:
        second, _ = next(make_job(folder).units())
        with pytest.raises(UserError, match="another process is writing"), second:
            pass


def test_shards_of_another_make_are_refused(make_shards: Any) -> None:
    with pytest.raises(UserError, match="holds shards already"):
        work(make_shards())


def test_only_shards_are_cleared(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    assert kill_after(folder, [start(folder)], 20)
    (folder / "mine.txt").write_text("mine")
    before = contents(folder)
    with pytest.raises(UserError, match="does not hold shards only"):
        clear_shards(folder)
    assert contents(folder) == before
    (folder / "mine.txt").unlink()
    clear_shards(folder)
    assert list(folder.iterdir()) == []
    clear_shards(tmp_path / "nowhere")


def test_strict_names_a_duplicate(tmp_path: Path) -> None:
    job = make_job(tmp_path / "shards", range(2))
    ((unit, _),) = job.units()
    with unit:
        for name in ("a", "b"):
            unit.add(name, name, np.zeros((4, 5), int), {"text": ""}, "the same")
        unit.finish()
    with pytest.raises(UserError, match=r"b cannot be used \(duplicate: the same audio as a\)"):
        job.finish(no_caption, strict=True)
    assert job.finish(no_caption) is not None
    assert len(ShardReader(tmp_path / "shards")) == 1


def test_a_report_can_be_shown_and_parsed(tmp_path: Path) -> None:
    job = make_job(tmp_path / "shards", range(2))
    ((unit, _),) = job.units()
    with unit:
        unit.add("a", "a", np.zeros((4, 5), int), {"text": ""}, "a")
        unit.leave_out("\x1b[31m日本\n\udcff.wav", "silent")
        unit.finish()
    finished = job.finish(no_caption)
    assert finished is not None
    text = (tmp_path / "shards" / "report.jsonl").read_text(encoding="utf-8")
    assert text.removesuffix("\n").isprintable()
    assert "日本" in text
    # a byte that is not UTF-8 is written as an escape, since JSON cannot hold it
    assert [file.path for file in finished.left_out] == ["\x1b[31m日本\n\\xff.wav"]


def test_nothing_usable_leaves_nothing(tmp_path: Path) -> None:
    job = make_job(tmp_path / "new" / "shards", range(1))
    ((unit, _),) = job.units()
    with unit:
        unit.leave_out("a.wav", "silent")
        unit.finish()
    with pytest.raises(UserError, match=r"the only file cannot be used \(1 silent\), a\.wav because: silent"):
        job.finish(no_caption)
    assert list(tmp_path.iterdir()) == []
