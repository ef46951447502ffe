"""A folder of shards given other files: what it adds, replaces and keeps, and that a kill leaves a sound state."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules.sampling.order import ORDER_VERSION
from datamodules.sampling.position import require_same_order
from datamodules.shards.manifest import read_manifest
from datamodules.shards.reading import ShardReader
from datamodules.shards.verify import verify_shards
from datamodules.token_datamodule import TokenDataModule
from datamodules.tokenize.audio_files import AudioFile
from datamodules.tokenize.job import NothingUsableError, ShardJob
from datamodules.tokenize.report import read_report
from datamodules.tokenize.sources import Source
from magnet_train.errors import UserError
from magnet_train.tokens import CodecInfo

CODEC = CodecInfo(id="tiny", sha256="ab" * 32, sample_rate=16000, channels=1, frame_rate=50.0, n_q=4, card=64)
PER_SHARD = 4
STEPS = ("replace", "rename", "unlink", "rmdir", "fsync", "ftruncate", "mkdir")  # calls that change the disk


class File:
    """A made-up file: `take` is its audio, and two files of the same take sound the same."""

    def __init__(
        self, name: str, take: int, text: str = "a sound", take_time: int = 1, **fields: Any
    ) -> None:
        self.name, self.take, self.take_time = name, take, take_time
        self.metadata = {"text": text, "source": name, **fields}

    @property
    def tokens(self) -> np.ndarray:
        return np.random.default_rng(self.take).integers(0, 64, (4, 20 + self.take % 7))

    @property
    def source(self) -> Source:
        caption = [len(json.dumps(self.metadata)), zlib.crc32(json.dumps(self.metadata).encode())]
        return Source(AudioFile(Path(self.name), self.name), [[self.take, self.take_time], None, caption])


def grow(folder: Path, files: Iterable[File], rank: int = 0, ranks: int = 1, encode: bool = True) -> Any:
    """Run the job for these files; a take below 0 is silent."""
    by_name = {file.name: file for file in files}
    job = ShardJob(folder, CODEC, {}, [file.source for file in by_name.values()], PER_SHARD)
    for unit, mine in job.units(rank, ranks):
        if unit.finished:
            continue
        with unit:
            for listed in mine[len(unit.outcomes) :]:
                assert encode, f"{listed.name} was encoded again"
                file = by_name[listed.name]
                if file.take < 0:
                    unit.leave_out(file.name, "silent")
                else:
                    unit.add(file.name, listed.key, file.tokens, file.metadata, f"take {file.take}")
            unit.finish()
    return job.finish(lambda listed: by_name[listed.name].metadata)


def plan(folder: Path, files: Iterable[File]) -> str:
    return str(ShardJob(folder, CODEC, {}, [file.source for file in files], PER_SHARD).plan)


def songs(numbers: Iterable[int]) -> list[File]:
    return [File(f"song{number:02d}.wav", number, f"song {number}") for number in numbers]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tars(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Bytes, time and inode of each tar."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino)
        for path in folder.glob("*.tar")
    }


def samples(folder: Path) -> dict[str, tuple[str, list[list[int]]]]:
    """Caption and tokens by key, after a check of all bytes."""
    assert verify_shards(folder) == []
    reader = ShardReader(folder)
    every = [reader[number] for number in range(len(reader))]
    return {sample.key: (sample.metadata["text"], sample.tokens.tolist()) for sample in every}


def expected(files: Iterable[File]) -> dict[str, tuple[str, list[list[int]]]]:
    return {file.name.removesuffix(".wav"): (file.metadata["text"], file.tokens.tolist()) for file in files}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten songs in three shards."""
    grow(tmp_path / "shards", songs(range(10)))
    return tmp_path / "shards"


def test_new_files_make_new_shards(folder: Path) -> None:
    before = tars(folder)
    more = [*songs(range(10)), *songs(range(20, 25))]
    assert plan(folder, more) == "5 new, 0 removed, 0 captions changed, 10 kept"
    grow(folder, more)
    after = tars(folder)
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == ["shard-000003.tar", "shard-000004.tar"]
    assert samples(folder) == expected(more)
    assert not (folder / ".tokenize").exists()


def test_the_same_files_change_nothing(folder: Path) -> None:
    grow(folder, [*songs(range(10)), *songs([30])])
    before = contents(folder)
    grow(folder, [*songs(range(10)), *songs([30])], encode=False)
    assert contents(folder) == before


def test_removed_files_leave_their_shard_and_stay_in_the_report(folder: Path) -> None:
    before = tars(folder)
    left = songs([0, 1, 3, 4, 5, 6, 7])  # all of the third shard go
    assert plan(folder, left) == "0 new, 3 removed, 0 captions changed, 7 kept"
    grow(folder, left, encode=False)
    after = tars(folder)
    assert sorted(after) == ["shard-000000-1.tar", "shard-000001.tar"]
    assert after["shard-000001.tar"] == before["shard-000001.tar"]
    assert samples(folder) == expected(left)
    report = read_report(folder).left_out
    assert [skipped.path for skipped in report] == ["song02.wav", "song08.wav", "song09.wav"]
    assert {skipped.reason.partition(":")[0] for skipped in report} == {"removed"}
    grow(folder, [*left, *songs([8, 40])])  # one comes back, and the numbers of shards go on
    assert sorted(tars(folder)) == ["shard-000000-1.tar", "shard-000001.tar", "shard-000003.tar"]
    assert samples(folder) == expected([*left, *songs([8, 40])])
    assert [skipped.path for skipped in read_report(folder).left_out] == ["song02.wav", "song09.wav"]


def test_changed_audio_is_removed_and_new(folder: Path) -> None:
    before = tars(folder)
    files = songs(range(10))
    files[5] = File("song05.wav", 77, "song 5")
    assert plan(folder, files) == "1 new, 1 removed, 0 captions changed, 9 kept"
    grow(folder, files)
    assert samples(folder) == expected(files)
    assert sorted(tars(folder)) == [
        "shard-000000.tar",
        "shard-000001-1.tar",
        "shard-000002.tar",
        "shard-000003.tar",
    ]
    assert tars(folder)["shard-000000.tar"] == before["shard-000000.tar"]
    assert read_report(folder).left_out == []


def test_changed_captions_need_no_audio(folder: Path) -> None:
    before = tars(folder)
    files = songs(range(10))
    files[9] = File("song09.wav", 9, "a better caption")
    assert plan(folder, files) == "0 new, 0 removed, 1 caption changed, 9 kept"
    grow(folder, files, encode=False)
    assert samples(folder) == expected(files)
    after = tars(folder)
    assert after.keys() == {"shard-000000.tar", "shard-000001.tar", "shard-000002-1.tar"}
    assert after["shard-000000.tar"] == before["shard-000000.tar"]
    files[9] = File("song09.wav", 9, "an even better caption")
    grow(folder, files, encode=False)
    assert "shard-000002-2.tar" in tars(folder)
    assert samples(folder) == expected(files)


def test_a_caption_that_is_gone_takes_the_sample_with_it(folder: Path) -> None:
    files = songs(range(10))
    files[2] = File("song02.wav", 2, "")
    job = ShardJob(folder, CODEC, {}, [file.source for file in files], PER_SHARD)
    job.finish(lambda file: "no caption: it is blank")
    assert samples(folder).keys() == expected(files).keys() - {"song02"}
    assert [skipped.reason for skipped in read_report(folder).left_out] == ["no caption: it is blank"]
    files[2] = File("song02.wav", 2, "back again")
    grow(folder, files)
    assert samples(folder) == expected(files)
    assert read_report(folder).left_out == []


def test_a_touched_caption_that_says_the_same(folder: Path) -> None:
    before = tars(folder)
    sources = [file.source for file in songs(range(10))]
    sources[4].stats[2] = [1, 2]
    job = ShardJob(folder, CODEC, {}, sources, PER_SHARD)
    assert str(job.plan) == "0 new, 0 removed, 1 caption changed, 9 kept"
    job.finish(lambda file: {"text": "song 4", "source": "song04.wav"})
    assert tars(folder) == before
    assert ShardJob(folder, CODEC, {}, sources, PER_SHARD).complete


def test_duplicates_of_old_audio(folder: Path) -> None:
    files = [File("a.wav", 3), *songs(range(10)), File("z.wav", 4), File("zz.wav", 50), File("zzz.wav", 50)]
    grow(folder, files)
    assert samples(folder).keys() == {*expected(songs(range(10))), "zz"}
    reasons = {skipped.path: skipped.reason for skipped in read_report(folder).left_out}
    assert reasons == {
        "a.wav": "duplicate: the same audio as song03.wav",
        "z.wav": "duplicate: the same audio as song04.wav",
        "zzz.wav": "duplicate: the same audio as zz.wav",
    }
    grow(folder, files, encode=False)
    # the original goes: its duplicate takes its place
    grow(folder, [file for file in files if file.name != "song03.wav"])
    assert samples(folder)["a"][1] == files[0].tokens.tolist()
    assert "song03" not in samples(folder)


def test_files_that_were_left_out_are_not_tried_again_unless_they_change(folder: Path) -> None:
    silent = File("silent.wav", -1)
    grow(folder, [*songs(range(10)), silent])
    grow(folder, [*songs(range(9)), silent], encode=False)
    assert plan(folder, [*songs(range(9)), silent]) == "0 new, 0 removed, 0 captions changed, 9 kept"
    assert [skipped.path for skipped in read_report(folder).left_out] == ["silent.wav", "song09.wav"]
    grow(folder, [*songs(range(9)), File("silent.wav", 60)])
    assert "silent" in samples(folder)


def test_new_keys_avoid_old_ones(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    grow(folder, [File("a b.wav", 1)])
    assert samples(folder).keys() == {"a_b"}
    grow(folder, [File("a !b.wav", 2), File("a b.wav", 1)])
    first, second = samples(folder).items()
    assert first == ("a_b", ("a sound", File("", 1).tokens.tolist()))
    assert second[0].startswith("a_b-")
    assert second[1][1] == File("", 2).tokens.tolist()


def test_without_any_sample_left_the_folder_stays(folder: Path) -> None:
    before = contents(folder)
    with pytest.raises(NothingUsableError):
        grow(folder, [File("silent.wav", -1)])
    assert contents(folder) == before


def test_a_folder_of_an_earlier_version_does_not_grow(folder: Path) -> None:
    import gzip

    path = folder / "sources.jsonl.gz"
    lines = [json.loads(line)[:5] for line in gzip.decompress(path.read_bytes()).splitlines()]
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    before = contents(folder)
    grow(folder, songs(range(10)), encode=False)
    with pytest.raises(UserError, match=r"does not say what became of each file, so .* use --overwrite"):
        grow(folder, songs(range(11)))
    assert contents(folder) == before


def test_a_list_that_changes_before_the_first_end(tmp_path: Path) -> None:
    """Units whose files are the same are not made again, and the others are."""
    folder = tmp_path / "shards"
    job = ShardJob(folder, CODEC, {}, [file.source for file in songs(range(10))], PER_SHARD)
    for unit, files in job.units():
        with unit:
            for file in files:
                number = int(file.name[4:6])
                unit.add(
                    file.name, file.key, songs([number])[0].tokens, songs([number])[0].metadata, str(number)
                )
            unit.finish()
    files = [*songs(range(9)), *songs([50])]
    encoded = []

    class Watched(File):
        @property
        def tokens(self) -> np.ndarray:
            encoded.append(self.name)
            return super().tokens

    grow(folder, [Watched(file.name, file.take, file.metadata["text"]) for file in files])
    assert encoded == ["song08.wav", "song50.wav"]
    assert samples(folder) == expected(files)


# One change of every kind.
CHANGED = [
    *songs([0, 1]),
    File("song03.wav", 3, "another caption"),
    *songs([4, 5, 6, 7]),
    File("song08.wav", 80, "song 8"),
    *songs(range(20, 29)),
    File("song30.wav", 5, "a duplicate"),
]


def run_killed_at(step: int, work: Callable[[], Any]) -> bool:
    """Work in a process that is killed at its n-th change of the disk; return whether it was."""

    def killed() -> None:
        calls = itertools.count()
        for name in STEPS:
            real = getattr(os, name)

            def counted(*words: Any, _real: Any = real, **options: Any) -> Any:
                if next(calls) == step:
                    os._exit(9)
                return _real(*words, **options)

            setattr(os, name, counted)
        work()
        os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode in (0, 9)
    return process.exitcode == 9


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grown") / "shards"
    grow(folder, songs(range(10)))
    shutil.copytree(folder, folder.with_name("before"))
    grow(folder, CHANGED)
    return folder


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_step(grown: Path, tmp_path: Path, every: int) -> None:
    """Before the new manifest the folder is as it was, and after it as it shall be; the job goes on from both."""
    before, after = samples(grown.with_name("before")), samples(grown)
    states = []
    for step in itertools.count(0, every):
        folder = tmp_path / f"shards{step}"
        shutil.copytree(grown.with_name("before"), folder)
        was_killed = run_killed_at(step, lambda folder=folder: grow(folder, CHANGED))  # type: ignore[misc]
        now = samples(folder)
        assert now in (before, after)
        states.append(now == after)
        # once more, at another step of what is left
        run_killed_at(step % 7, lambda folder=folder: grow(folder, CHANGED))  # type: ignore[misc]
        assert samples(folder) in (before, after)
        grow(folder, CHANGED)
        assert contents(folder) == contents(grown)
        if not was_killed:
            break
    assert step > 40
    assert states == sorted(states), "once there, the new state stays"
    assert 0 < sum(states) < len(states)


@pytest.mark.parametrize("every", [17, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_every_step_of_the_first_time(tmp_path: Path, every: int) -> None:
    files = [*songs(range(10)), File("song20.wav", 5, "a duplicate")]
    grow(tmp_path / "undisturbed", files)
    for step in itertools.count(0, every):
        folder = tmp_path / f"shards{step}"
        was_killed = run_killed_at(step, lambda folder=folder: grow(folder, files))  # type: ignore[misc]
        if (folder / "manifest.json").exists():
            assert samples(folder) == samples(tmp_path / "undisturbed")
        grow(folder, files)
        assert contents(folder) == contents(tmp_path / "undisturbed")
        if not was_killed:
            break
    assert step > 40


@pytest.mark.parametrize("every", [37, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_and_then_other_files(grown: Path, tmp_path: Path, every: int) -> None:
    """What the killed job had made ready is not taken for the files of the next one."""
    others = [*songs(range(8)), *songs(range(40, 46))]
    for step in itertools.count(0, every):
        folder = tmp_path / f"shards{step}"
        shutil.copytree(grown.with_name("before"), folder)
        if not run_killed_at(step, lambda folder=folder: grow(folder, CHANGED)):  # type: ignore[misc]
            break
        grow(folder, others)
        assert samples(folder) == expected(others)
        assert not (folder / ".tokenize").exists()


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_change_no_byte(grown: Path, tmp_path: Path, ranks: int) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(grown.with_name("before"), folder)
    finished = [grow(folder, CHANGED, rank, ranks) for rank in range(ranks)]
    assert [each is not None for each in finished] == [False] * (ranks - 1) + [True]
    assert contents(folder) == contents(grown)
    assert grow(folder, CHANGED, encode=False) is not None


def test_ranks_at_the_same_time(grown: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(5):
        folder = tmp_path / f"shards{turn}"
        shutil.copytree(grown.with_name("before"), folder)
        processes = [context.Process(target=grow, args=(folder, CHANGED, rank, 3)) for rank in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 3
        assert contents(folder) == contents(grown)


# ----- readers while the folder changes


def test_a_reader_keeps_what_stays_and_notices_what_goes(folder: Path) -> None:
    reader, unread = ShardReader(folder), ShardReader(folder)
    assert reader[0].key == "song00"
    files = [*songs(range(1, 10)), *songs([20])]
    grow(folder, files)
    assert reader[1].tokens.tolist() == songs([1])[0].tokens.tolist()  # open since before
    assert unread[5].key == "song05"  # its shard stayed
    with pytest.raises(UserError, match=r"was changed by tokenize while it was in use.*--init_from"):
        unread[0]


def test_a_reader_of_a_shard_of_the_same_name(folder: Path) -> None:
    """As after --overwrite with another codec: same names, keys and offsets, other tokens."""
    reader = ShardReader(folder)
    shutil.rmtree(folder)
    grow(folder, [File(f"song{number:02d}.wav", 700 + number, f"song {number}") for number in range(10)])
    with pytest.raises(UserError, match="was changed by tokenize"):
        reader[0]


def test_a_reader_in_another_process_wants_the_same_index(folder: Path) -> None:
    pickled = pickle.dumps(ShardReader(folder))
    assert pickle.loads(pickled)[3].key == "song03"
    grow(folder, songs(range(11)))
    with pytest.raises(UserError, match="was changed by tokenize"):
        pickle.loads(pickled)


def test_opened_all_the_time(grown: Path, tmp_path: Path) -> None:
    """Readers that open the folder again and again meanwhile find the old samples or the new ones."""
    folder = tmp_path / "shards"
    before = grown.with_name("before")
    wanted = [len(ShardReader(before)), len(ShardReader(grown))]
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        process = multiprocessing.get_context("fork").Process(target=grow, args=(folder, CHANGED))
        process.start()
        seen = []
        while process.is_alive():
            reader = ShardReader(folder)
            seen.append(len(reader))
            assert reader.manifest in (read_manifest(before), read_manifest(grown))
        process.join()
        assert process.exitcode == 0
        assert set(seen) <= set(wanted)


def test_training_notices_a_folder_that_grew(folder: Path) -> None:
    data, late = (TokenDataModule(folder, segment_duration=0.2) for _ in range(2))
    data.setup()
    grow(folder, songs(range(11)))
    with pytest.raises(UserError, match="was changed by tokenize"):
        late.setup()
    now = TokenDataModule(folder, segment_duration=0.2)
    now.setup()
    position = {"slots": 5, "order_version": ORDER_VERSION, **data.identity()}
    with pytest.raises(
        UserError, match=r"clips 9 and this run has 10; resume with the same data.*--init_from"
    ):
        require_same_order(position, now.identity(), "last.ckpt")


def test_a_tar_of_someone_else_is_not_removed(folder: Path) -> None:
    (folder / "shard-mine.tar").write_bytes(b"mine")
    grow(folder, songs(range(1, 11)))
    assert (folder / "shard-mine.tar").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "moves", ['{"../kept.tar": null}', '{"shard-000009.tar": "../../kept.tar"}', "[1]", "{"]
)
def test_a_foreign_next_state_reaches_nothing_outside_the_folder(folder: Path, moves: str) -> None:
    kept = folder.parent / "kept.tar"
    kept.write_bytes(b"kept")
    before = contents(folder)
    ready = folder / ".tokenize" / "ready"
    ready.mkdir(parents=True)
    (ready / "moves.json").write_text(moves)
    (ready / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    with pytest.raises(UserError, match=r"moves\.json is damaged"):
        grow(folder, songs(range(10)))
    shutil.rmtree(folder / ".tokenize")
    assert (kept.read_bytes(), contents(folder)) == (b"kept", before)
