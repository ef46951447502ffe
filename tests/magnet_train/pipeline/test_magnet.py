"""The Python interface: shapes, repeatability, prompts, and what it refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from magnet_train import DecodingConfig, Magnet
from magnet_train.errors import UserError

HOP = 160  # samples a frame of the packaged codec: 8 kHz, 50 Hz


@pytest.fixture(scope="module")
def magnet(checkpoint: Path) -> Magnet:
    return Magnet.from_pretrained(checkpoint)


def test_audio_has_the_promised_shape(magnet: Magnet) -> None:
    audio = magnet.generate(["a low bell", None], seed=0)
    assert audio.dtype == torch.float32
    assert audio.shape == (2, 1, 24 * HOP)
    assert magnet.sample_rate == 8000
    assert bool(audio.isfinite().all())


def test_seconds_set_the_length(magnet: Magnet) -> None:
    assert magnet.generate_tokens(["a low bell"], seconds=0.2, seed=0).shape == (1, 4, 10)
    assert magnet.generate(["a low bell"], seconds=0.2, seed=0).shape == (1, 1, 10 * HOP)


def test_tokens_are_codes_and_audio_is_their_decoding(magnet: Magnet) -> None:
    tokens = magnet.generate_tokens(["a low bell", "a flute"], seed=3)
    assert tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < magnet.lm.card
    assert torch.equal(magnet.generate(["a low bell", "a flute"], seed=3), magnet.codec.decode(tokens))


def test_same_seed_same_tokens(magnet: Magnet) -> None:
    first = magnet.generate_tokens(["a low bell"], seed=7)
    torch.rand(3)  # the global generator plays no part
    assert torch.equal(magnet.generate_tokens(["a low bell"], seed=7), first)
    assert not torch.equal(magnet.generate_tokens(["a low bell"], seed=8), first)


def test_the_text_matters_and_none_is_the_empty_text(magnet: Magnet) -> None:
    none = magnet.generate_tokens([None], seed=1)
    assert torch.equal(magnet.generate_tokens([""], seed=1), none)
    assert not torch.equal(magnet.generate_tokens(["a low bell"], seed=1), none)


def test_decoding_replaces_the_stored_settings(magnet: Magnet) -> None:
    calls: list[tuple[int, int]] = []
    decoding = DecodingConfig(decoding_steps=(2, 1, 1, 1), use_sampling=False)
    first = magnet.generate_tokens(
        ["a flute"], seed=0, decoding=decoding, progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(done, 5) for done in range(1, 6)]
    assert torch.equal(magnet.generate_tokens(["a flute"], seed=9, decoding=decoding), first)  # greedy


def test_token_prompt_stays(magnet: Magnet) -> None:
    prompt = torch.randint(magnet.lm.card, (1, 4, 9), generator=torch.Generator().manual_seed(2))
    tokens = magnet.generate_tokens(["a flute"], seed=0, prompt=prompt)
    assert tokens.shape == (1, 4, 24)
    assert torch.equal(tokens[..., :9], prompt)


@pytest.mark.parametrize("batched", [False, True])
def test_audio_prompt_begins_every_clip(magnet: Magnet, batched: bool) -> None:
    prompt = 0.1 * torch.randn(1, 8 * HOP, generator=torch.Generator().manual_seed(2))
    codes = magnet.codec.encode(prompt[None])
    given = prompt[None].repeat(2, 1, 1) if batched else prompt
    audio = magnet.generate(["a flute", "a bell"], seed=0, prompt=given)
    tokens = magnet.generate_tokens(["a flute", "a bell"], seed=0, prompt=codes.repeat(2, 1, 1))
    assert torch.equal(tokens[..., :8], codes.repeat(2, 1, 1))
    torch.testing.assert_close(audio, magnet.codec.decode(tokens))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan"), 1e12])
def test_lengths_out_of_range(magnet: Magnet, seconds: float) -> None:
    with pytest.raises(UserError, match="out of range"):
        magnet.generate_tokens(["a flute"], seconds=seconds)
    with pytest.raises(UserError, match="out of range"):
        magnet.generate(["a flute"], seconds=seconds, prompt=torch.zeros(1, 8 * HOP))


@pytest.mark.parametrize(("frames", "seconds"), [(30, None), (24, None), (60, 60 / 50)])
def test_a_prompt_that_leaves_nothing_to_make(magnet: Magnet, frames: int, seconds: float | None) -> None:
    with pytest.raises(UserError, match="nothing to make"):
        magnet.generate(["a flute"], seconds=seconds, prompt=torch.zeros(1, frames * HOP))


def test_steps_of_the_wrong_length(magnet: Magnet) -> None:
    with pytest.raises(UserError, match="decoding_steps"):
        magnet.generate_tokens(["a flute"], decoding=DecodingConfig(decoding_steps=(2, 1)))


def test_clip_shorter_than_a_span(magnet: Magnet) -> None:
    with pytest.raises(UserError, match="span"):
        magnet.generate_tokens(["a flute"], seconds=0.03)


def test_refuses_a_codec_with_other_weights(checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["magnet_train"]["codec"]["sha256"] = "ab" * 32
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="sha256"):
        _ = Magnet.from_pretrained(tmp_path / "other.ckpt").codec


def test_another_codec_in_an_export_is_not_remedied_by_tokenizing(magnet: Magnet, tmp_path: Path) -> None:
    magnet.save_pretrained(tmp_path / "export")
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    config["codec"]["sha256"] = "ab" * 32
    (tmp_path / "export" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=r"holds those of .*; put codec quickstart there, or export the model"
    ):
        _ = Magnet.from_pretrained(tmp_path / "export").codec


@pytest.mark.parametrize("shape", [(2, 1600), (3, 1, 1600), (1, 10), (1, 0)])
def test_prompt_of_an_impossible_shape(magnet: Magnet, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="prompt"):
        magnet.generate(["a flute", "a bell"], prompt=torch.zeros(shape))


@pytest.mark.parametrize("texts", ["a flute", []])
def test_texts_are_a_list_of_clips(magnet: Magnet, texts: list[str | None]) -> None:
    with pytest.raises(UserError, match="list"):
        magnet.generate_tokens(texts)


def test_unknown_device(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="cudaa"):
        Magnet.from_pretrained(checkpoint, device="cudaa")


def test_a_model_can_be_asked_and_trained_on_what_it_made(magnet: Magnet) -> None:
    tokens = magnet.generate_tokens(["a low bell"], seed=0)
    logits = magnet.lm(tokens, stage=0, text=None)  # DESIGN's example
    assert logits.shape == (1, 24, magnet.lm.card)
    logits.sum().backward()
    magnet.lm.zero_grad()
    magnet.generate(["a low bell"], seed=0).mul_(0.5)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_that_no_generator_takes(magnet: Magnet, seed: int) -> None:
    with pytest.raises(UserError, match=f"seed {seed}"):
        magnet.generate_tokens(["a low bell"], seed=seed)


@pytest.mark.parametrize("wrong", [999, 256, -1])
def test_prompts_of_tokens_that_no_codebook_has(magnet: Magnet, wrong: int) -> None:
    prompt = torch.zeros(1, 4, 5, dtype=torch.int64)
    prompt[0, 2, 3] = wrong
    with pytest.raises(UserError, match=str(wrong)):
        magnet.generate_tokens(["a low bell"], prompt=prompt)


def test_a_compiled_model_makes_the_same_clip(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    plain, compiled = Magnet.from_pretrained(checkpoint), Magnet.from_pretrained(checkpoint)
    # traces and guards like inductor, without minutes of C++
    monkeypatch.setattr(compiled.lm, "compile_layers", partial(compiled.lm.compile_layers, backend="eager"))
    assert compiled.compile() > 0
    assert all(layer._compiled_call_impl is not None for layer in compiled.lm.layers)
    clips = [magnet.generate_tokens(["a flute", None], seed=3) for magnet in (plain, compiled)]
    assert torch.equal(*clips)
    torch._dynamo.reset()


def test_without_a_compiler_nothing_is_compiled(magnet: Magnet, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(magnet.lm, "compile_layers", partial(magnet.lm.compile_layers, backend=fail))
    with pytest.raises(UserError, match=r"No working C\+\+ compiler found.*; install a C\+\+ compiler"):
        magnet.compile()
    assert magnet.generate_tokens(["a flute"], seed=3).shape == (1, 4, 24)
