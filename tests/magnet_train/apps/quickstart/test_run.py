"""The run: it runs commands, reads what they wrote and stops when one of them fails.

The whole chain, with real training, is in test_beat.py (slow) and `make quickstart`.
"""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tones
from harness.tones.presets import QUICKSTARTS
from harness.tones.world import ToneWorld
from magnet_train.apps.quickstart import run
from magnet_train.apps.quickstart.presets import PRESETS
from magnet_train.apps.quickstart.report import Report
from magnet_train.apps.quickstart.run import run_command, through_codec
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec
from magnet_train.errors import UserError


@pytest.fixture
def small(monkeypatch):
    """Few clips, so that a run takes seconds."""
    for name, count in (("SEEN", 16), ("UNSEEN", 6), ("UNCONDITIONAL", 16)):
        monkeypatch.setattr(run, name, count)
    for presets in (PRESETS, QUICKSTARTS):
        for name, preset in presets.items():
            monkeypatch.setitem(presets, name, replace(preset, training=24, validation=8))


FEW_STEPS = ["--fit", "--trainer.max_steps", "4", "--trainer.val_check_interval", "2"]


def check_page(out, printed):
    """The page is whole: six captions, four demonstrations by commands that were run, and nothing outside it."""
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.endswith("</html>\n")
    assert len(page) < 6_000_000
    assert page.count("<audio ") == page.count("<img ") == 6 * 3 + 5
    assert page.count(" loop ") == 1
    for title in ("A loop", "An edit", "A continuation", "A long clip"):
        assert f"<h3>{title}</h3>" in page
    commands = [html.unescape(command) for command in re.findall("<pre>(.+?)</pre>", page)]
    assert len(commands) == 4
    assert all(f"\n$ {command}\n" in printed for command in commands)
    assert all(f"codebook {codebook}: " in page for codebook in range(4))
    assert not re.search(r"(src|href)=.(?!data:)", page)


@pytest.mark.parametrize(
    "preset",
    ["drums_and_bass", *(pytest.param(name, marks=pytest.mark.slow) for name in ("band", *QUICKSTARTS))],
)
def test_the_whole_chain_runs_and_reports(tmp_path, small, capfd, preset):
    out = tmp_path / "quickstart"
    words = ["--out", str(out), "--preset", preset, "--seed", "3", *FEW_STEPS]
    if preset in QUICKSTARTS:
        tones.main(words)
    else:
        assert main(["quickstart", *words]) == 0
    printed = capfd.readouterr().out
    for command in ("tokenize --audio", "verify", "fit -c configs/base.yaml", "generate --model"):
        assert f"\n$ magnet-train {command}" in printed
    verdict, *next_steps = printed.strip().splitlines()[-3:]
    assert verdict.startswith(("It did not learn:", "It learned in part:"))
    assert all(f"--model {out / 'run' / 'last.ckpt'}" in line for line in next_steps)
    report = Report(**json.loads((out / "report.json").read_text()))
    assert report.n == 16
    assert len(report.val_loss_per_codebook) == 4
    assert all(4 < loss < 9 for loss in report.val_loss_per_codebook)  # uniform over 256 is 5.5
    assert len(list((out / "generated" / "unconditional").glob("*.wav"))) == 16
    check_page(out, printed)

    assert main(["quickstart", "--out", str(out)]) == 1
    assert "--overwrite" in capfd.readouterr().err


def test_overwriting_removes_only_what_a_run_made(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "index.html").write_text("<!doctype html>")
    run._empty_folder(tmp_path, overwrite=True)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not an empty folder"):
        run._empty_folder(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_wrong_options_of_fit_are_told_before_anything_is_made(tmp_path, capfd):
    out = tmp_path / "quickstart"
    with pytest.raises(SystemExit, match="2"):
        main(["quickstart", "--out", str(out), "--fit", "--trainer.max_stepz", "3"])
    printed = capfd.readouterr()
    assert printed.err.startswith("magnet-train: error: there is no option '--trainer.max_stepz'")
    assert printed.out == ""
    assert main(["quickstart", "--out", str(out), "--fit", "-c", "nowhere.yaml"]) == 1
    assert "there is no file nowhere.yaml" in capfd.readouterr().err
    assert not out.exists()


def test_a_negative_seed(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["quickstart", "--seed", "-1"])
    assert "argument --seed: -1 is not at least 0" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path, small, capfd):
    (tmp_path / "file").touch()
    assert main(["quickstart", "--out", str(tmp_path / "file" / "q")]) == 1
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert line.startswith(
        f"magnet-train: error: cannot write {tmp_path}/file/q/audio/train (Not a directory)"
    )
    (tmp_path / "q" / "report.json").mkdir(parents=True)  # --overwrite removes a file of that name
    assert main(["quickstart", "--out", str(tmp_path / "q"), "--overwrite"]) == 1
    assert "cannot write" in capfd.readouterr().err


def test_a_command_that_fails_stops_the_run(tmp_path, capsys):
    with pytest.raises(UserError, match="`magnet-train verify` failed"):
        run_command("verify", str(tmp_path / "nothing here"))
    printed = capsys.readouterr()
    assert f"$ magnet-train verify '{tmp_path}/nothing here'" in printed.out  # quoted for the shell
    assert "magnet-train: error:" in printed.err


@pytest.mark.parametrize("code", [75, 130])
def test_a_command_that_a_signal_stopped_stops_the_run(monkeypatch, code):
    monkeypatch.setattr(run, "main", lambda words: code)
    with pytest.raises(KeyboardInterrupt, match="quickstart is stopped; start again with --overwrite"):
        run_command("generate")


def test_prompts_are_files_that_generate_reads(tmp_path):
    captions = ToneWorld("full", 1).captions(3, "test")
    path = Path(run._write_prompts(tmp_path, "seen", captions))
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == [caption.text for caption in captions]


def test_through_codec_is_encode_and_decode():
    clips = [audio for _, audio in ToneWorld(seed=1).clips(5)]
    codec = load_codec("quickstart")
    decoded = through_codec(codec, clips, batch=2)
    assert [clip.shape for clip in decoded] == [(10240,)] * 5
    with torch.inference_mode():
        alone = codec.decode(codec.encode(torch.from_numpy(clips[4])[None, None]))[0, 0]
    torch.testing.assert_close(torch.from_numpy(decoded[4]), alone, atol=1e-4, rtol=0)
