"""`evaluate` through the real command line, on real files and on random models in the formats of the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from magnet_train.cli.main import main
from magnet_train.evaluation import Clap, frechet_distance

ROOT = Path(__file__).parents[3]
NOWHERE = "nobody/nothing"  # a hub id that is in no cache


def write_clip(
    path: Path, pitch: float, seconds: float = 1.0, rate: int = 24_000, text: str | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    noise = np.random.default_rng(int(pitch)).standard_normal(len(time))
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * time) + 0.02 * noise, rate)
    if text is not None:
        path.with_suffix(".txt").write_text(text)
    return path


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six generated clips and eight of the reference, at other rates and with captions; six have the same name."""
    generated, reference = tmp_path / "generated", tmp_path / "reference"
    for n in range(6):
        write_clip(generated / f"clip{n}.wav", 210 + 60 * n, text=f"a {['low', 'high'][n % 2]} bell")
    for n in range(8):
        kind = "flac" if n % 2 else "wav"
        write_clip(
            reference / f"clip{n}.{kind}", 200 + 60 * n, rate=44_100, text=f"a {['low', 'high'][n % 2]} flute"
        )
    return generated, reference


@pytest.fixture
def evaluate(
    clap_folder: Path, ast_folder: Path, tmp_path: Path
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run the command; gives exit code and the content of its .json."""

    def run(folders: tuple[Path, Path], *options: str) -> tuple[int, dict[str, Any]]:
        out = tmp_path / "evaluation.json"
        out.unlink(missing_ok=True)
        words = ["--generated", str(folders[0]), "--reference", str(folders[1]), "--out", str(out)]
        models = ["--clap", str(clap_folder), "--classifier", str(ast_folder)]
        code = main(["evaluate", *words, *models, "--device", "cpu", *options])
        return code, json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}

    return run


def test_all_three_measures_with_chance_and_ceiling(folders, evaluate, clap_folder, capsys):
    code, found = evaluate(folders)
    assert code == 0
    assert found["not_computed"] == {}
    fad, score, kl = (found["measures"][name] for name in ("fad_clap", "clap_score", "kl_ast"))
    assert (fad["generated_clips"], fad["reference_clips"], fad["dimensions"]) == (6, 8, 12)
    assert (fad["equal"]["clips"], fad["equal"]["reference_clips"]) == (4, 4)
    assert fad["equal"]["noise"]["mean"] > fad["equal"]["real"]["mean"]
    assert score["clips"] == 6
    assert score["real"]["clips"] == 8
    assert score["interval"][0] <= score["mean"] <= score["interval"][1]
    assert score["chance"] is not None
    assert kl["pairs"] == 6
    assert 0 < kl["mean"] < kl["chance"]  # pairs have nearly the same pitch
    assert found["pairs"]["unpaired_reference"] == ["clip6.wav", "clip7.flac"]
    assert found["generated"]["seconds"] == pytest.approx(6)
    assert found["models"]["clap"]["id"] == str(clap_folder)
    assert len(found["models"]["clap"]["sha256"]) == 64
    printed = capsys.readouterr().out
    for words in ("FAD-CLAP ↓", "equal sizes", "CLAP score ↑", "KL-AST ↓", "6 pairs", "6 captions"):
        assert words in printed
    assert "biased upwards: 6 generated and 8 real windows in 12 dimensions" in " ".join(printed.split())
    assert "None of these can be compared with the FAD, CLAP and KL of papers" in printed


def test_numbers_are_those_of_the_python_api(folders, evaluate, clap_folder):
    from magnet_train.audio import read_audio

    _, found = evaluate(folders)
    clap = Clap.from_pretrained(str(clap_folder))

    def embed(folder: Path) -> np.ndarray:
        files = sorted(file for file in folder.iterdir() if file.suffix != ".txt")
        return np.concatenate([clap.embed_audio([read_audio(file, 48_000, 1)[0]]) for file in files])

    ours, real = map(embed, folders)
    assert found["measures"]["fad_clap"]["distance"] == pytest.approx(frechet_distance(ours, real), abs=1e-5)
    text = clap.embed_text(["a low bell", "a high bell"] * 3)
    assert found["measures"]["clap_score"]["mean"] == pytest.approx(
        (ours * text).sum(axis=1).mean(), abs=1e-5
    )


def test_neither_run_nor_batch_nor_order_of_files_changes_numbers(folders, evaluate, tmp_path):
    _, first = evaluate(folders)
    _, again = evaluate(folders)
    assert again == first
    _, alone = evaluate(folders, "--batch_size", "1")
    _, other_seed = evaluate(folders, "--seed", "7")
    copies = (tmp_path / "a", tmp_path / "b")
    for folder, copy in zip(folders, copies, strict=True):
        copy.mkdir()
        for file in sorted(folder.iterdir(), reverse=True):
            shutil.copy(file, copy)
    _, copied = evaluate(copies)
    assert copied["measures"] == first["measures"]
    assert_close(alone["measures"], first["measures"])
    assert other_seed["measures"]["fad_clap"]["distance"] == first["measures"]["fad_clap"]["distance"]
    assert other_seed["measures"]["fad_clap"]["equal"] != first["measures"]["fad_clap"]["equal"]


def assert_close(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value)
    else:
        assert found == pytest.approx(expected, abs=1e-5)


def test_windows_that_memory_does_not_hold_go_in_smaller_batches(folders, evaluate, monkeypatch):
    _, whole = evaluate(folders)
    embed = Clap.embed_audio

    def embed_in_little_memory(clap, windows):
        if len(windows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return embed(clap, windows)

    monkeypatch.setattr(Clap, "embed_audio", embed_in_little_memory)
    code, found = evaluate(folders, "--batch_size", "6")
    assert code == 0
    assert found["notes"].count("Memory does not suffice for 6 windows at once; continuing with 3.") == 1
    distance = found["measures"]["fad_clap"]["distance"]
    assert distance == pytest.approx(whole["measures"]["fad_clap"]["distance"], abs=1e-5)
    assert found["measures"].keys() == whole["measures"].keys()


def test_a_window_that_memory_does_not_hold_is_no_matter_of_the_batch_size(folders, evaluate, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB. GPU 0 has 1 GiB free.")

    monkeypatch.setattr(Clap, "embed_audio", fail)
    code, found = evaluate(folders)
    assert code == 0
    reason = found["not_computed"]["fad_clap"]
    assert reason.startswith("memory does not suffice (CUDA out of memory. Tried to allocate 20 GiB);")
    assert "--batch_size" not in reason


def test_the_same_folder_twice_is_at_zero(folders, evaluate, capsys):
    _, found = evaluate((folders[1], folders[1]))
    assert found["measures"]["fad_clap"]["distance"] == pytest.approx(0, abs=1e-9)
    # not quite 0: a millionth is added to each probability
    assert found["measures"]["kl_ast"]["mean"] == pytest.approx(0, abs=1e-5)
    assert found["measures"]["clap_score"]["mean"] == found["measures"]["clap_score"]["real"]["mean"]
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "KL-AST ↓" in line]
    assert row.split()[2:6] == ["0.000", "0.000", "to", "0.000"]


def test_what_cannot_be_read_is_named_and_left_out(folders, evaluate, capsys):
    generated, _ = folders
    _, whole = evaluate(folders)
    (generated / "broken.wav").write_bytes(b"RIFF no more")
    (generated / "empty.wav").write_bytes(b"")
    (generated / "song.m4a").write_bytes(b"whatever")
    soundfile.write(generated / "nan.wav", np.full(24_000, np.nan), 24_000, subtype="FLOAT")
    code, found = evaluate(folders)
    assert code == 0
    reasons = {Path(file["path"]).name: file["reason"] for file in found["generated"]["left_out"]}
    assert reasons.keys() == {"broken.wav", "empty.wav", "song.m4a", "nan.wav"}
    assert "NaN or infinite" in reasons["nan.wav"]
    assert "convert it" in reasons["song.m4a"]
    assert found["measures"] == whole["measures"]
    assert "left out 4 generated files" in capsys.readouterr().out


def test_a_clip_beyond_any_level_is_left_out(folders, evaluate, capsys):
    _, whole = evaluate(folders)
    soundfile.write(folders[0] / "loud.wav", np.full(24_000, 1e30), 24_000, subtype="FLOAT")
    code, found = evaluate(folders)
    assert code == 0
    assert found["measures"] == whole["measures"]
    (file,) = found["generated"]["left_out"]
    assert Path(file["path"]).name == "loud.wav"
    assert "loud.wav holds floats up to 1e+30, beyond any scale of audio" in capsys.readouterr().out


def test_a_broken_clip_takes_its_pair_out_of_kl(folders, evaluate):
    (folders[0] / "clip2.wav").write_bytes(b"RIFF no more")
    _, found = evaluate(folders)
    assert found["measures"]["kl_ast"]["pairs"] == 5
    assert found["measures"]["fad_clap"]["generated_clips"] == 5
    assert found["measures"]["clap_score"]["clips"] == 5
    assert found["pairs"]["unpaired_generated"] == []
    assert found["pairs"]["unpaired_reference"] == ["clip2.wav", "clip6.wav", "clip7.flac"]


def test_silence_counts(folders, evaluate, capsys):
    soundfile.write(folders[0] / "clip2.wav", np.zeros(24_000), 24_000)
    _, found = evaluate(folders)
    assert found["generated"]["silent"] == ["clip2.wav"]
    assert found["measures"]["fad_clap"]["generated_clips"] == 6
    assert np.isfinite(found["measures"]["kl_ast"]["mean"])
    assert "1 generated clip of 6 silent" in capsys.readouterr().out


def test_long_clips_are_cut_into_windows(folders, evaluate):
    write_clip(folders[0] / "clip0.wav", 210, seconds=3.7, text="a low bell")  # windows of this CLAP: 1 s
    _, found = evaluate(folders)
    assert found["measures"]["fad_clap"]["generated_windows"] == 5 + 4
    assert found["measures"]["fad_clap"]["generated_clips"] == 6


def test_short_clips_against_long_ones_are_reported(folders, evaluate, capsys):
    for file in folders[0].glob("*.wav"):
        write_clip(file, 300, seconds=0.4)
    evaluate(folders)
    assert "filled to 40% by generated and to 100% by real clips" in " ".join(capsys.readouterr().out.split())


def test_no_captions_still_gives_the_rest(folders, evaluate, capsys):
    for folder in folders:
        for file in folder.glob("*.txt"):
            file.unlink()
    code, found = evaluate(folders)
    assert code == 0
    assert found["measures"].keys() == {"fad_clap", "kl_ast"}
    assert "none of the 6 clips" in found["not_computed"]["clap_score"]
    assert "not computed: CLAP score, since none of the 6 clips" in " ".join(capsys.readouterr().out.split())


def test_captions_of_the_reference_serve_its_pairs(folders, evaluate):
    for file in folders[0].glob("*.txt"):
        file.unlink()
    (folders[1] / "clip5.txt").unlink()
    _, found = evaluate(folders)
    assert found["measures"]["clap_score"]["clips"] == 5
    assert found["measures"]["clap_score"]["real"]["clips"] == 7


def test_an_unreadable_caption_is_reported(folders, evaluate, capsys):
    (folders[0] / "clip1.txt").unlink()
    (folders[0] / "clip1.json").write_text("{")
    (folders[1] / "clip1.txt").unlink()
    _, found = evaluate(folders)
    assert found["measures"]["clap_score"]["clips"] == 5
    assert "captions that cannot be read" in capsys.readouterr().out
    (problem,) = found["generated"]["unreadable_captions"]
    assert problem["path"].endswith("clip1.wav")


def test_one_clip_has_no_fad_but_a_pair(folders, evaluate):
    for file in sorted(folders[0].glob("*.wav"))[1:]:
        file.unlink()
    code, found = evaluate(folders)
    assert code == 0
    assert (
        "at least 2 usable clips are needed on each side, not 1 generated and 8 of the reference"
        in found["not_computed"]["fad_clap"]
    )
    assert found["measures"]["kl_ast"]["pairs"] == 1
    assert found["measures"]["kl_ast"]["interval"] is None
    assert found["measures"]["clap_score"]["chance"] is None


def test_other_names_have_no_kl(folders, evaluate):
    for file in sorted(folders[0].iterdir()):
        file.rename(file.with_name(f"x{file.name}"))
    _, found = evaluate(folders)
    assert found["measures"].keys() == {"fad_clap", "clap_score"}
    assert "no generated clip has a reference of the same name" in found["not_computed"]["kl_ast"]


def test_a_name_that_two_share_pairs_neither(folders, evaluate):
    write_clip(folders[0] / "more" / "clip3.wav", 300)
    _, found = evaluate(folders)
    assert found["measures"]["kl_ast"]["pairs"] == 5
    assert found["pairs"]["unpaired_generated"] == ["clip3.wav", "more/clip3.wav"]


def test_a_list_with_parts_of_files_is_a_reference(folders, evaluate, tmp_path):
    write_clip(tmp_path / "long.wav", 300, seconds=5)
    rows = [{"path": "long.wav", "start": n, "end": n + 1, "text": f"a {n}"} for n in range(5)]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, found = evaluate((folders[0], tmp_path / "list.jsonl"))
    assert found["reference"]["clips"] == 5
    assert found["reference"]["seconds"] == pytest.approx(5)
    assert found["measures"]["fad_clap"]["reference_windows"] == 5


def test_what_generate_wrote_is_understood(checkpoint, evaluate, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"text": "a low bell", "id": "bell"}, {"text": "a high flute", "id": "flute"}]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    made = tmp_path / "made"
    assert main(["generate", "--model", str(checkpoint), "--prompts", str(prompts), "--out", str(made)]) == 0
    write_clip(tmp_path / "real" / "flute.wav", 600)
    write_clip(tmp_path / "real" / "bell.wav", 200)
    code, found = evaluate((made, tmp_path / "real"))
    assert code == 0
    assert found["measures"]["clap_score"]["clips"] == 2
    assert found["pairs"]["pairs"] == [
        ["0_a_low_bell.wav", "bell.wav"],
        ["1_a_high_flute.wav", "flute.wav"],
    ]


def test_clips_without_a_caption_belong_to_no_number(checkpoint, evaluate, tmp_path):
    made, real = tmp_path / "made", tmp_path / "real"
    assert main(["generate", "--model", str(checkpoint), "--unconditional", "2", "--out", str(made)]) == 0
    for n in range(2):
        write_clip(real / f"{n}.wav", 200 + 300 * n, text="a low bell")
    _, found = evaluate((made, real))
    assert found["pairs"]["pairs"] == []
    assert found["generated"]["captions"] == 0


def test_results_that_are_damaged_cost_only_the_captions(folders, evaluate):
    (folders[0] / "results.jsonl").write_text('{"file": "clip0.wav", "text"')
    code, found = evaluate(folders)
    assert code == 0
    assert found["generated"]["unreadable_captions"][0]["path"].endswith("results.jsonl")


def test_a_missing_model_costs_only_its_measures(folders, evaluate, clap_folder, capsys):
    code, found = evaluate(folders, "--classifier", NOWHERE)
    assert code == 0
    assert found["measures"].keys() == {"fad_clap", "clap_score"}
    assert f"--classifier {NOWHERE} is neither a folder here nor" in found["not_computed"]["kl_ast"]
    assert "give a local folder" in found["not_computed"]["kl_ast"]
    assert found["models"].keys() == {"clap"}
    code, found = evaluate(folders, "--clap", NOWHERE)
    assert code == 0
    assert found["measures"].keys() == {"kl_ast"}
    assert found["not_computed"].keys() == {"fad_clap", "clap_score"}
    assert "not computed: FAD-CLAP and CLAP score, since --clap" in " ".join(capsys.readouterr().out.split())


def test_a_model_that_gives_no_numbers_costs_only_its_measures(folders, evaluate, clap_folder, tmp_path):
    folder = shutil.copytree(clap_folder, tmp_path / "clap")
    weights = load_file(folder / "model.safetensors")
    weights["audio_projection.linear2.bias"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    code, found = evaluate(folders, "--clap", str(folder))
    assert code == 0
    assert found["measures"].keys() == {"kl_ast"}
    assert "the model of --clap returns NaN or infinity for every clip" in found["not_computed"]["fad_clap"]


def test_names_that_are_not_text_and_names_like_markup(folders, evaluate, capfd):
    os.rename(os.fsencode(folders[0] / "clip1.wav"), os.fsencode(folders[0]) + b"/\xff[bold].wav")
    (folders[0] / "[red]x.wav").write_bytes(b"RIFF no more")
    (folders[0] / os.fsdecode(b"\xfe.wav")).write_bytes(b"RIFF no more")
    code, found = evaluate(folders)
    assert code == 0
    assert found["measures"]["fad_clap"]["generated_clips"] == 6
    assert len(found["generated"]["left_out"]) == 2
    assert "[red]x.wav" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--generated", "/nowhere"), "there is no folder or list at /nowhere"),
        (("--reference", "/nowhere"), "there is no folder or list at /nowhere"),
        (("--out", "."), "--out . is a folder"),
        (("--device", "abacus"), "--device abacus cannot be used"),
    ],
)
def test_mistakes_are_one_sentence(options, words, folders, evaluate, capsys):
    code, _ = evaluate(folders, *options)
    assert code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("magnet-train: error: ")
    assert words in line


def test_an_unusable_target_is_reported_before_anything_is_read(folders, evaluate, capsys, monkeypatch):
    monkeypatch.setattr("magnet_train.cli.evaluation.clips.read_side", pytest.fail)
    code, _ = evaluate(folders, "--out", "/proc/evaluation.json")
    assert code == 1
    assert "cannot write /proc/evaluation.json" in capsys.readouterr().err


def test_a_mistake_leaves_no_folder_behind(folders, evaluate, tmp_path):
    code, _ = evaluate((tmp_path / "nowhere", folders[1]), "--out", str(tmp_path / "new" / "a.json"))
    assert code == 1
    assert not (tmp_path / "new").exists()


def test_a_folder_without_audio(folders, evaluate, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    code, _ = evaluate((tmp_path / "empty", folders[1]))
    assert code == 1
    assert "empty holds no audio" in capsys.readouterr().err


def process(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "magnet_train", "evaluate", *map(str, words)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow  # starts Python and imports transformers three times
def test_exit_codes_of_a_real_process(folders, clap_folder):
    sides = ("--generated", folders[0], "--reference", folders[1])
    done = process(*sides, "--clap", clap_folder, "--classifier", NOWHERE)
    assert done.returncode == 0, done.stderr
    assert "FAD-CLAP ↓" in done.stdout
    assert "not computed: KL-AST" in done.stdout
    nothing = process(*sides, "--clap", NOWHERE, "--classifier", NOWHERE)
    assert nothing.returncode == 0, nothing.stderr
    assert nothing.stdout.count("not computed:") == 2
    assert "loudness (LUFS)" in nothing.stdout
    for file in folders[0].glob("*.wav"):
        file.write_bytes(b"RIFF no more")
    failed = process(*sides, "--clap", NOWHERE, "--classifier", NOWHERE)
    assert failed.returncode == 1
    assert failed.stderr.strip().splitlines()[-1].startswith("magnet-train: error: none of the measures")
    assert "Traceback" not in failed.stderr


def test_no_model_at_all_leaves_the_measures_of_sound_with_the_reasons(folders, evaluate):
    code, found = evaluate(folders, "--clap", NOWHERE, "--classifier", NOWHERE)
    assert code == 0
    assert found["measures"] == {}
    assert found["not_computed"].keys() == {"fad_clap", "clap_score", "kl_ast"}
    assert found["sound"]["generated"]["clips"] == 6


@pytest.mark.parametrize("wrong", [("--batch_size", "0"), ("--nonsense",), ("--seed", "x")])
def test_wrong_usage(wrong, folders, evaluate):
    with pytest.raises(SystemExit) as left:
        evaluate(folders, *wrong)
    assert left.value.code == 2


def test_defaults_are_those_of_the_python_api():
    from magnet_train.cli.commands import evaluate
    from magnet_train.evaluation import models

    assert (evaluate.CLAP, evaluate.CLASSIFIER) == (models.CLAP, models.CLASSIFIER)
