"""Clips by themselves: a clip depends on (seed, index) alone, and what is made is kept, right and at its own level."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from magnet_train import DecodingConfig, Magnet
from magnet_train.checkpoints.audiocraft import read as audiocraft
from magnet_train.checkpoints.bundle import ModelBundle
from magnet_train.cli.main import main
from magnet_train.codecs import load_codec
from magnet_train.errors import UserError
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.text import WordText
from magnet_train.training.module import MagnetModule

HOP, RATE, SECONDS = 160, 8000, 0.48  # of the packaged codec, and of the model's clips: 24 frames
TEXTS = [
    "calm flute on low do",
    None,
    "noise",
    "a quick trumpet on la, then a calm flute on low do",
    "fast flute",
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a random model whose vocabulary is the quickstart's words."""
    torch.manual_seed(0)
    codec, words = load_codec("quickstart").info, WordText("quickstart", dim=32)
    lm = MagnetTransformer(codec.n_q, codec.card, 32, dim=64, num_heads=4, num_layers=2)
    parts = {"lm": lm, "text": words}
    stored = ModelBundle(
        source="a test",
        lm=lm.config,
        text=words.spec(),
        codec=codec,
        decoding=DecodingConfig(decoding_steps=(4, 2, 2, 2), max_cfg_coef=3.0),
        segment_duration=SECONDS,
        weights={
            f"{part}.{name}": tensor
            for part, module in parts.items()
            for name, tensor in module.state_dict().items()
        },
    )
    path = tmp_path_factory.mktemp("model") / "model"
    Magnet(stored).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def magnet(folder: Path) -> Magnet:
    return Magnet.from_pretrained(folder)


def generate(model: Path, out: Path, *options: str) -> int:
    return main(["generate", "--model", str(model), "--out", str(out), *options])


def results_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def tone(peak: float, seconds: float, rate: int = RATE) -> np.ndarray:
    return peak * np.sin(2 * np.pi * 220 * np.arange(round(seconds * rate)) / rate)


# Alone or in a batch


def ways() -> dict[str, Callable[[Magnet, list[str | None], int], torch.Tensor]]:
    prompt = torch.from_numpy(tone(0.3, 0.2)).float()[None]
    song = torch.from_numpy(tone(0.3, 2.0)).float()[None]
    make = partial(Magnet.generate, seed=3)
    return {
        "straight": lambda m, texts, first: make(m, texts, first_index=first),
        "tokens": lambda m, texts, first: m.generate_tokens(texts, seed=3, first_index=first),
        "stride1": lambda m, texts, first: make(
            m, texts, first_index=first, decoding=replace(m.decoding, span_arrangement="stride1")
        ),
        "spread": lambda m, texts, first: make(
            m, texts, first_index=first, decoding=replace(m.decoding, span_arrangement="spread")
        ),
        "prompt": lambda m, texts, first: make(m, texts, first_index=first, prompt=prompt),
        "windows": lambda m, texts, first: make(m, texts, first_index=first, seconds=1.0),
        "loop": lambda m, texts, first: make(m, texts, first_index=first, loop=True),
        "edit": lambda m, texts, first: m.edit(song, (1.0, 1.2), texts, seed=3, first_index=first),
    }


@pytest.mark.case("A21")
@pytest.mark.parametrize("way", ways())
def test_a_clip_is_the_same_alone_and_in_any_batch(magnet: Magnet, way: str) -> None:
    make = ways()[way]
    whole = make(magnet, TEXTS, 0)
    assert torch.equal(torch.cat([make(magnet, TEXTS[:3], 0), make(magnet, TEXTS[3:], 3)]), whole)
    for index, text in enumerate(TEXTS):
        assert torch.equal(make(magnet, [text], index)[0], whole[index])


def test_clips_of_one_caption_differ_by_index_and_by_seed(magnet: Magnet) -> None:
    """Not by their sum: clip 1 of seed 0 is not clip 0 of seed 1."""
    make = partial(magnet.generate_tokens, ["noise"] * 3)
    clips = [clip for seed in range(3) for clip in make(seed=seed)]
    assert len({clip.numpy().tobytes() for clip in clips}) == 9


def test_a_model_that_was_trained_with_padding_as_keys_reads_each_caption_as_if_alone() -> None:
    """As released models were. On a GPU clips are made in batches, where the padding would be more than rounding."""
    torch.manual_seed(0)
    lm = MagnetTransformer(4, 16, 8, dim=32, num_heads=4, num_layers=2, text_key_mask=False).eval()
    text, tokens = torch.randn(2, 9, 8), torch.randint(17, (2, 4, 12))
    mask = torch.arange(9) < torch.tensor([[9], [3]])
    alone = GuidedLogits(lm, text[1:, :3], mask[1:, :3])(tokens[1:], 0, 3.0)
    torch.testing.assert_close(GuidedLogits(lm, text, mask, hide_padding=True)(tokens, 0, 3.0)[1:], alone)
    assert not torch.allclose(GuidedLogits(lm, text, mask)(tokens, 0, 3.0)[1:], alone, atol=1e-3)


@pytest.mark.case("A21")
def test_the_command_makes_one_clip_again(folder: Path, tmp_path: Path) -> None:
    texts = [word for text in ["noise", "fast flute", "calm noise"] for word in ("--text", text)]
    assert generate(folder, tmp_path / "all", *texts, "--seed", "5") == 0
    last = results_of(tmp_path / "all")[2]
    assert (last["seed"], last["index"]) == (5, 2)
    assert not {"place_in_batch", "batch_size"} & set(last)
    assert (
        generate(folder, tmp_path / "one", "--text", "calm noise", "--seed", "5", "--first-index", "2") == 0
    )
    assert files_of(tmp_path / "one")[last["file"]] == files_of(tmp_path / "all")[last["file"]]


@pytest.mark.case("A19")
def test_a_predicted_clip_depends_on_its_slot_and_not_on_rank_or_batch() -> None:
    torch.manual_seed(0)
    codec = load_codec("quickstart").info
    module = MagnetModule(
        codec,
        partial(MagnetTransformer, dim=32, num_heads=4, num_layers=2),
        WordText("quickstart", dim=16),
        segment_duration=SECONDS,
        decoding=DecodingConfig(decoding_steps=(3, 2, 2, 2)),
    ).eval()

    def predict(*slots: int) -> torch.Tensor:
        batch = {"text": ["fast noise"] * len(slots), "slot": torch.tensor(slots)}
        return module.predict_step(batch, 0)  # type: ignore[arg-type]

    alone = predict(
        0, 1, 2, 3
    )  # one rank; below, two, as `EvaluationBatchSampler` shares slots out, -1 filling up
    assert torch.equal(torch.cat([predict(0, 1), predict(2, 3, -1)[:2]]), alone)
    assert len({clip.numpy().tobytes() for clip in alone}) == 4


# The sampler's defaults


@pytest.mark.case("A24")
def test_new_models_sample_at_temperature_1_and_released_ones_as_they_were() -> None:
    base = yaml.safe_load((ROOT / "configs/base.yaml").read_text())["model"]["init_args"]["decoding"]
    assert DecodingConfig(**{**base, "decoding_steps": tuple(base["decoding_steps"])}) == DecodingConfig()
    assert DecodingConfig().for_codec(4).decoding_steps == (20, 10, 10, 10)
    assert (DecodingConfig().temperature, DecodingConfig().anneal_temperature) == (1.0, False)
    released = DecodingConfig(**audiocraft._decoding({}, {}))
    assert (released.temperature, released.anneal_temperature) == (3.0, True)
    assert (released.max_cfg_coef, released.min_cfg_coef) == (10.0, 1.0)
    for overlay in (ROOT / "configs").rglob("*.yaml"):  # a temperature alone would not say whether it falls
        decoding = (
            yaml.safe_load(overlay.read_text()).get("model", {}).get("init_args", {}).get("decoding", {})
        )
        assert ("temperature" in decoding) == ("anneal_temperature" in decoding), overlay


@pytest.mark.case("A24")
def test_export_stores_the_sampler_that_it_is_given(folder: Path, tmp_path: Path) -> None:
    own = Magnet.from_pretrained(folder).decoding
    export = ["export", "--checkpoint", str(folder), "--out"]
    assert main([*export, str(tmp_path / "same")]) == 0
    assert Magnet.from_pretrained(tmp_path / "same").decoding == own
    given = ["--temperature", "2.5", "--no-constant-temperature", "--top_p", "0.5", "--cfg=4,2"]
    assert main([*export, str(tmp_path / "other"), *given]) == 0
    wanted = replace(
        own, temperature=2.5, anneal_temperature=True, top_p=0.5, max_cfg_coef=4.0, min_cfg_coef=2.0
    )
    assert Magnet.from_pretrained(tmp_path / "other").decoding == wanted
    assert main([*export, str(tmp_path / "bad"), "--steps", "2,1"]) == 1
    assert not (tmp_path / "bad").exists()


# Words


@pytest.mark.case("A26")
def test_words_that_the_vocabulary_lacks_are_named_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["Dark noise with distant bells", "fast noise", "dark noise"]
    model = Magnet.from_pretrained(folder)
    with pytest.warns(UserWarning, match="vocabulary lacks 'Dark', 'with', 'distant', 'bells'"):
        model.generate_tokens(texts[:2], seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate_tokens(["fast noise", None], seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            options = [word for text in texts for word in ("--text", text)]
            assert generate(folder, tmp_path / "clips", *options) == 0
    printed = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(printed) == 1
    assert "'distant', 'bells'" in printed[0]


@pytest.mark.case("A4")
@pytest.mark.parametrize("suffix", [".JSONL", ".Jsonl", ".jsonl"])
def test_jsonl_prompts_in_any_case(folder: Path, tmp_path: Path, suffix: str) -> None:
    prompts = tmp_path / f"P{suffix}"
    prompts.write_text('{"text": "fast noise", "id": "x"}\n')
    assert generate(folder, tmp_path / "clips", "--prompts", str(prompts)) == 0
    assert [(result["text"], result["id"]) for result in results_of(tmp_path / "clips")] == [
        ("fast noise", "x")
    ]


# Interrupted


def command(folder: Path, out: Path, clips: int, *options: str) -> list[str]:
    words = [
        "generate",
        "--model",
        str(folder),
        "--out",
        str(out),
        "--unconditional",
        str(clips),
        "--seed",
        "1",
    ]
    return [*words, *options]


@pytest.mark.slow
@pytest.mark.case("B11")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_stopped_command_goes_on_and_ends_with_the_same_bytes(
    folder: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = command(folder, tmp_path / "clips", 60, "--steps", "20,10,10,10")
    process = subprocess.Popen(
        [sys.executable, "-m", "magnet_train", *words],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a shell's background job ignores it
    )
    results = tmp_path / "clips" / "results.jsonl"
    deadline = time.monotonic() + 300
    try:
        # One more than is asked for below: a line that is being made sure of may be taken back.
        while not (results.exists() and results.read_bytes().count(b"\n") >= 4):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        printed = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == code
    kept = len(results_of(tmp_path / "clips"))
    assert 3 <= kept < 60
    if code > 0:
        assert f"{kept} of 60 clips are in" in printed.splitlines()[-1]
        assert "Traceback" not in printed
    before = files_of(tmp_path / "clips")
    torch.set_num_threads(1)
    assert main(words) == 0
    after = files_of(tmp_path / "clips")
    assert len(after) == 61
    assert all(after[name] == content for name, content in before.items() if name.endswith(".wav"))
    assert after["results.jsonl"].startswith(before["results.jsonl"])
    assert main([word.replace(str(tmp_path / "clips"), str(tmp_path / "other")) for word in words]) == 0
    assert files_of(tmp_path / "other") == after


@pytest.mark.case("B11")
def test_a_torn_line_a_lost_file_and_a_finished_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clips"
    assert main(command(folder, out, 3)) == 0
    whole = files_of(out)
    lines = whole["results.jsonl"].splitlines(keepends=True)
    for torn in (b"", lines[0][:40], lines[0] + lines[1][:-1], lines[0] + b'{"file": "\xff'):
        (out / "results.jsonl").write_bytes(torn)
        (out / ".1_unconditional.wav.partial").write_bytes(b"RIFF")
        assert main(command(folder, out, 3)) == 0
        assert files_of(out) == whole
    (out / results_of(out)[1]["file"]).unlink()
    assert main(command(folder, out, 3)) == 0
    assert files_of(out) == whole
    capsys.readouterr()
    assert main(command(folder, out, 3)) == 0
    assert "3 clips had been made before" in capsys.readouterr().out
    assert files_of(out) == whole


@pytest.mark.case("B11")
@pytest.mark.parametrize(
    "other",
    [
        ["--seed", "2"],
        ["--temperature", "2"],
        ["--seconds", "0.2"],
        ["--loop"],
        ["--first_index", "1"],
        ["fewer"],
    ],
    ids=lambda words: words[0],
)
def test_another_command_into_the_same_folder_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: list[str]
) -> None:
    out = tmp_path / "clips"
    assert main(command(folder, out, 2)) == 0
    before = files_of(out)
    capsys.readouterr()
    again = command(folder, out, 1) if other == ["fewer"] else command(folder, out, 2, *other)
    assert main(again) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[-1].startswith(f"magnet-train: error: {out} holds clips of another command")
    assert files_of(out) == before


@pytest.mark.case("B11")
def test_another_model_under_the_same_name_is_another_command(folder: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "model", tmp_path / "clips"
    changed = Magnet.from_pretrained(folder)
    changed.save_pretrained(model)
    assert main(command(model, out, 2)) == 0
    with torch.no_grad():
        changed.lm.heads[0, 0, 0] += 1
    model.rename(tmp_path / "before")
    changed.save_pretrained(model)
    assert main(command(model, out, 2)) == 1


# Prompts and recordings


@pytest.mark.case("B27")
@pytest.mark.parametrize("seconds", [0.461, 0.465, 0.48, 0.6])
def test_a_prompt_that_leaves_nothing_to_make(magnet: Magnet, seconds: float) -> None:
    """A frame of 20 ms that is begun is filled up by the codec."""
    with pytest.raises(UserError, match="nothing to make"):
        magnet.generate(["noise"], seed=0, prompt=torch.zeros(1, round(seconds * RATE)))
    assert magnet.generate(["noise"], seed=0, prompt=torch.zeros(1, 23 * HOP)).shape == (1, 1, 24 * HOP)


@pytest.mark.case("B27")
def test_tokens_and_regions_that_leave_nothing_to_make(magnet: Magnet) -> None:
    tokens = magnet.generate_tokens(["noise"], seed=0)
    for keep in (None, torch.ones(1, 24, dtype=torch.bool)):
        with pytest.raises(UserError, match="nothing to make"):
            magnet.generate_tokens(["noise"], prompt=tokens, keep=keep)
    with pytest.raises(UserError, match="too short"):
        magnet.edit(torch.zeros(1, RATE), (0.2, 0.2 + 1e-9), ["noise"])


@pytest.mark.case("B10")
@pytest.mark.parametrize(
    "kind", ["float64", "float16", "int16", "int32", "torch.float64", ">f4", "reversed", "[samples]"]
)
def test_audio_of_other_types_is_converted(magnet: Magnet, kind: str) -> None:
    audio = np.round(tone(0.5, 0.2) * 64)[None] / 64  # all types hold it exactly
    given: Any = {
        "int16": lambda: (audio * 2**15).astype(np.int16),
        "int32": lambda: (audio * 2**31).astype(np.int32),
        "torch.float64": lambda: torch.from_numpy(audio),
        "reversed": lambda: audio[:, ::-1].copy()[:, ::-1],
        "[samples]": lambda: audio[0],
    }.get(kind, lambda: audio.astype(kind))()
    float32 = torch.from_numpy(audio).float()
    make = partial(magnet.generate, ["noise"], seed=np.int64(3), seconds=np.float32(0.4))
    assert torch.equal(make(prompt=given), magnet.generate(["noise"], seed=3, seconds=0.4, prompt=float32))
    edited = magnet.edit(given, np.array([0.04, 0.1]), ["noise"], seed=0)
    assert torch.equal(edited, magnet.edit(float32, (0.04, 0.1), ["noise"], seed=0))


@pytest.mark.case("B10")
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt": "song.wav"}, "prompt is str"),
        ({"prompt": [0.0] * 800}, "prompt is list"),
        ({"prompt": np.zeros((800, 1))}, "shape"),
        ({"prompt": np.zeros((1, 1, 1, 800))}, "shape"),
        ({"prompt": np.zeros((2, 1, 800))}, "shape"),
        ({"prompt": np.full((1, 800), np.nan)}, "finite"),
        ({"prompt": np.zeros((1, 800), np.int64)}, "int64"),
        ({"prompt": np.zeros((1, 800), complex)}, "complex"),
        ({"prompt": np.array([["a"]])}, "prompt"),
        ({"seed": 3.0}, "seed is 3.0"),
        ({"seed": "3"}, "seed is '3'"),
        ({"seed": np.int64(-1)}, "seed -1"),
        ({"first_index": -1}, "first_index -1"),
        ({"texts": "noise"}, "texts is 'noise'"),
        ({"texts": None}, "texts is None"),
        ({"texts": []}, "list"),
        ({"texts": [3]}, "texts\\[0\\] is 3"),
        ({"texts": [["noise"]]}, "texts\\[0\\]"),
        ({"seconds": "long"}, "seconds is 'long'"),
        ({"decoding": {"top_p": 0.5}}, "DecodingConfig"),
    ],
)
def test_what_is_no_argument_is_one_sentence(magnet: Magnet, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        magnet.generate(**{"texts": ["noise"], **options})
    assert "\n" not in str(caught.value)


@pytest.mark.case("B10")
def test_other_mistakes_in_python(magnet: Magnet, tmp_path: Path) -> None:
    tokens = magnet.generate_tokens(("noise",), seed=0)  # any sequence
    assert torch.equal(
        magnet.generate_tokens(np.array(["noise"]), seed=0, prompt=tokens[..., :4].to(torch.int16).numpy())[
            ..., :4
        ],
        tokens[..., :4],
    )
    for wrong in (
        lambda: magnet.save_pretrained(tmp_path / "x", format="onnx"),  # type: ignore[arg-type]
        lambda: magnet.edit(torch.zeros(1, RATE), 3, ["noise"]),  # type: ignore[arg-type]
        lambda: magnet.edit(torch.zeros(1, RATE), (0.1, 0.2, 0.3), ["noise"]),  # type: ignore[arg-type]
        lambda: magnet.generate_tokens(["noise"], prompt=torch.zeros(1, 4, 5)),
        lambda: magnet.generate_tokens(["noise"], prompt=torch.zeros(4, 5, dtype=torch.int64)),
        lambda: magnet.generate_tokens(["noise"], prompt=tokens, keep=[True] * 24),  # type: ignore[arg-type]
        lambda: magnet.generate_tokens(["noise"], prompt=tokens, keep=torch.ones(1, 24)),
    ):
        with pytest.raises(UserError):
            wrong()
    assert not (tmp_path / "x").exists()


@pytest.mark.case("A11")
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_an_edit_of_a_loud_master_changes_nothing_outside_the_region(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rate: int
) -> None:
    song = tmp_path / "song.wav"
    soundfile.write(song, tone(1.26, 2.0, rate), rate, subtype="FLOAT")
    options = ["--edit", str(song), "--region", "1.0:1.2", "--text", "noise"]
    assert generate(folder, tmp_path / "clips", *options) == 0
    assert "32-bit float" in capsys.readouterr().out
    before, _ = soundfile.read(song, dtype="float32")
    file = tmp_path / "clips" / results_of(tmp_path / "clips")[0]["file"]
    after, written_rate = soundfile.read(file, dtype="float32")
    assert (written_rate, soundfile.info(file).subtype) == (rate, "FLOAT")
    assert before.max() > 1.25
    assert np.array_equal(after[: int(0.98 * rate)], before[: int(0.98 * rate)])
    assert np.array_equal(after[int(1.22 * rate) :], before[int(1.22 * rate) :])
    assert not np.array_equal(after[rate : int(1.2 * rate)], before[rate : int(1.2 * rate)])


@pytest.mark.case("A11")
def test_an_edit_of_a_16_bit_recording_keeps_every_sample(folder: Path, tmp_path: Path) -> None:
    """Near full scale too, where libsndfile's scaling of floats is off by one step."""
    song = tmp_path / "song.wav"
    soundfile.write(song, np.arange(-(2**15), 2**15, 4, dtype=np.int16), RATE)
    options = ["--edit", str(song), "--region", "1.0:1.2", "--text", "noise"]
    assert generate(folder, tmp_path / "clips", *options) == 0
    before, _ = soundfile.read(song, dtype="int16")
    file = tmp_path / "clips" / results_of(tmp_path / "clips")[0]["file"]
    after, _ = soundfile.read(file, dtype="int16")
    assert soundfile.info(file).subtype == "PCM_16"
    outside = np.r_[0 : int(0.98 * RATE), int(1.22 * RATE) : len(before)]
    assert np.array_equal(after[outside], before[outside])


def test_a_prompt_whose_header_promises_2_ghz_is_one_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    song = tmp_path / "song.wav"
    soundfile.write(song, tone(0.3, 0.2), RATE)
    content = bytearray(song.read_bytes())
    content[24:28] = (2**31 - 1).to_bytes(4, "little")
    song.write_bytes(content)
    assert generate(folder, tmp_path / "clips", "--text", "noise", "--prompt", str(song)) == 1
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("magnet-train: error: ")
    assert not (tmp_path / "clips").exists()


def test_decoding_of_a_record_can_be_read_back(folder: Path, tmp_path: Path) -> None:
    assert generate(folder, tmp_path / "clips", "--text", "noise", "--top-k", "5") == 0
    decoding = results_of(tmp_path / "clips")[0]["decoding"]
    own = Magnet.from_pretrained(folder).decoding
    assert decoding == json.loads(json.dumps(asdict(replace(own, top_k=5, top_p=0.0))))
