"""Run the quickstart: synthesise captioned clips, run the commands a user would type, score what they generate.

Shapes: audio float [samples].
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from rich.progress import track

from magnet_train.apps.html_page import Audio
from magnet_train.apps.quickstart.demonstrations import demonstrate
from magnet_train.apps.quickstart.page import Example, write_page
from magnet_train.apps.quickstart.presets import Caption, Preset
from magnet_train.apps.quickstart.report import Report, read_metrics
from magnet_train.apps.quickstart.synthetic import SyntheticWorld
from magnet_train.cli.main import INTERRUPTED, main
from magnet_train.codecs import Codec, load_codec
from magnet_train.errors import UserError
from magnet_train.storage.atomic_io import explain_disk_errors
from magnet_train.training.stop_request import PREEMPTED

SEEN, UNSEEN, UNCONDITIONAL = 240, 96, 120  # clips to generate and score
FOLDERS = ("audio", "shards", "run", "prompts", "generated")  # in --out, removed by --overwrite
REPORT, PAGE = "report.json", "index.html"
SHOWN = 6  # captions on the page


def run_quickstart(
    out: Path, preset: Preset, seed: int, overwrite: bool, fit_options: Sequence[str] = ()
) -> Report:
    """Synthesise clips, train on them, generate and score.

    Args:
        out: Folder for all files; must be empty unless `overwrite`.
        preset: World, oracle, codec and configuration.
        seed: Seed of the clips, the training and the generation.
        overwrite: Remove the files of an earlier run from `out`.
        fit_options: Further options of `fit`, such as `--trainer.max_steps 100`.

    Raises:
        UserError: `out` is not empty or cannot be written to, or a command failed.
        SystemExit: With 2, for wrong `fit_options`.
    """
    fit = _fit_command(out, preset, seed, fit_options)
    _check_options(fit)
    _empty_folder(out, overwrite)
    started = time.monotonic()

    world, oracle = preset.world(seed), preset.oracle
    _make_shards(out, world, preset.codec, "train", preset.training)
    _make_shards(out, world, preset.codec, "validation", preset.validation)
    run_command(*fit)

    seen, unseen = world.captions(SEEN, "test"), world.captions(UNSEEN, "test", unseen=True)
    generated = _generate(out, seed, "seen", "--prompts", _write_prompts(out, "seen", seen))
    of_unseen = _generate(out, seed, "unseen", "--prompts", _write_prompts(out, "unseen", unseen))
    unconditional = _generate(out, seed, "unconditional", "--unconditional", str(UNCONDITIONAL))

    codec = load_codec(preset.codec)
    real = [audio for _, audio in world.clips(SEEN, "test")]
    decoded = through_codec(codec, real)
    readings = oracle.read_clips(generated)
    metrics = out / "run" / "metrics.csv"
    report = Report(
        minutes=(time.monotonic() - started) / 60,
        n=len(seen),
        accuracy=oracle.accuracy(seen, readings),
        unseen=oracle.accuracy(unseen, oracle.read_clips(of_unseen)),
        ceiling=oracle.accuracy(seen, oracle.read_clips(decoded)),
        chance=oracle.chance(seen, readings, seed),
        unconditional=oracle.chance(seen[:UNCONDITIONAL], oracle.read_clips(unconditional), seed),
        val_loss_per_codebook=[
            losses[-1] for _, losses in read_metrics(metrics, "val/loss_codebook_").values()
        ],
    )
    report.write(out / REPORT)
    rows = list(zip(seen, real, decoded, generated, strict=True))[:SHOWN]
    examples = [Example(caption.text, *clips) for caption, *clips in rows]
    _make_page(out, seed, report, preset, examples, codec)
    _print_result(out, report, preset)
    return report


def run_command(*words: str) -> None:
    """Print a command as a user would type it, and run it in this process.

    Raises:
        UserError: The command failed.
        KeyboardInterrupt: A signal stopped it.
    """
    print(f"\n$ magnet-train {shlex.join(words)}", flush=True)
    code = main(words)
    if code in (PREEMPTED, INTERRUPTED):
        raise KeyboardInterrupt("the quickstart is stopped; start again with --overwrite")
    if code != 0:
        raise UserError(
            f"`magnet-train {words[0]}` failed, so the quickstart stops; fix the error above, and start again "
            "with --overwrite."
        )


@torch.inference_mode()
def through_codec(codec: Codec, clips: Sequence[Audio], batch: int = 40) -> list[Audio]:
    """Encode and decode clips of one length, float [samples] each."""
    decoded: list[Audio] = []
    for first in track(range(0, len(clips), batch), "through the codec"):
        audio = torch.from_numpy(np.stack(clips[first : first + batch]))[:, None]
        decoded.extend(codec.decode(codec.encode(audio))[:, 0].numpy())
    return decoded


def _fit_command(out: Path, preset: Preset, seed: int, options: Sequence[str]) -> list[str]:
    shards, command = out / "shards", ["fit"]
    for config in preset.configs:
        command += ["-c", f"configs/{config}.yaml"]
    command += ["--data.shards", str(shards / "train"), "--data.val_shards", str(shards / "validation")]
    command += ["--seed_everything", str(seed), "--data.seed", str(seed), "--run", str(out / "run")]
    return [*command, *options]


def _check_options(fit: Sequence[str]) -> None:
    """Parse the options of `fit` without running it, so that a wrong one is reported at once."""
    from magnet_train.cli import lightning

    with contextlib.redirect_stdout(io.StringIO()):  # --print_config prints the whole configuration
        try:
            lightning.run([*fit, "--print_config"])
        except SystemExit as done:
            if done.code != 0:
                raise


def _empty_folder(out: Path, overwrite: bool) -> None:
    """Check that `out` is empty or missing, after removing the files of an earlier run if `overwrite`."""
    with explain_disk_errors(out):
        if overwrite and out.is_dir():
            for name in FOLDERS:
                shutil.rmtree(out / name, ignore_errors=True)
            for path in (out / REPORT, out / PAGE):
                path.unlink(missing_ok=True)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(
                f"{out} is not an empty folder; choose another --out, or --overwrite the files of an earlier run."
            )


def _make_shards(out: Path, world: SyntheticWorld, codec: str, split: str, clips: int) -> None:
    """Write captioned audio, and turn it into tokens by the commands."""
    folder, shards = out / "audio" / split, str(out / "shards" / split)
    world.write(folder, clips, split)
    print(f"wrote {clips} captioned WAV files of {world.seconds:g} s to {folder}")
    run_command("tokenize", "--audio", str(folder), "--out", shards, "--codec", codec)
    run_command("verify", shards)


def _write_prompts(out: Path, name: str, captions: Sequence[Caption]) -> str:
    """Write a file for `generate --prompts`, and return its path."""
    path = out / "prompts" / f"{name}.jsonl"
    with explain_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": c.text}) + "\n" for c in captions), encoding="utf-8")
    return str(path)


def _generate(out: Path, seed: int, name: str, *prompts: str) -> list[Audio]:
    """Generate clips by the command, and return the audio of its files in the order of the prompts."""
    folder, model = out / "generated" / name, str(out / "run" / "last.ckpt")
    run_command("generate", "--model", model, *prompts, "--out", str(folder), "--seed", str(seed))
    results = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [soundfile.read(folder / json.loads(line)["file"], dtype="float32")[0] for line in results]


def _make_page(
    out: Path, seed: int, report: Report, preset: Preset, examples: Sequence[Example], codec: Codec
) -> None:
    """Let the model do what else it can, and write the page."""
    recordings = sorted((out / "audio" / "validation").glob("*.wav"))
    shown = demonstrate(run_command, out, seed, preset.loop, examples[1].caption, recordings)
    metrics = out / "run" / "metrics.csv"
    verdict = report.verdict(preset)
    write_page(out / PAGE, report, verdict, examples, shown, metrics, codec.card, codec.sample_rate)


def _print_result(out: Path, report: Report, preset: Preset) -> None:
    model = shlex.quote(str(out / "run" / "last.ckpt"))
    print(f"\nwrote {out / REPORT}; clips are in {out / 'generated'}")
    print(f"and {out / PAGE}, which plays them in any browser")
    print(report.verdict(preset))
    print(f"Try it: magnet-train generate --model {model} --text '{preset.example}' --out clips")
    print(f"or on a page in the browser: magnet-train demo --model {model} --open")
