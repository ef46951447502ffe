"""MusicGen as a rescorer, on folders of random ones: its probabilities, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MusicgenForConditionalGeneration

from magnet_train import DecodingConfig, Magnet
from magnet_train.codecs import load_codec, packaged_codec
from magnet_train.decoding import Rescorer
from magnet_train.errors import UserError
from magnet_train.pipeline.musicgen import MusicgenRescorer
from magnet_train.text.encoder import Tokenizer
from magnet_train.tokens import CodecInfo

CARD, N_Q, FRAMES = 256, 4, 9
TEXTS = ["a calm flute on low do", "noise", None]  # of different lengths


@pytest.fixture(scope="module")
def rescorer(musicgen: Path) -> MusicgenRescorer:
    return MusicgenRescorer.from_pretrained(musicgen)


@pytest.fixture(scope="module")
def whole(musicgen: Path) -> MusicgenForConditionalGeneration:
    return MusicgenForConditionalGeneration.from_pretrained(musicgen).eval()


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(CARD, (len(TEXTS), N_Q, FRAMES), generator=torch.Generator().manual_seed(1))


def read(whole: MusicgenForConditionalGeneration, text: str | None, ids: Tensor) -> Tensor:
    """Let transformers' whole MusicGen read columns int64 [K, columns]; return logits [K, columns, card]."""
    if text is None:
        null = whole.get_unconditional_inputs(1)
        known: dict[str, Any] = {
            "encoder_outputs": null.encoder_outputs,
            "attention_mask": null.attention_mask,
        }
    else:
        text_ids, mask = Tokenizer("quickstart", 256)([text])
        known = {"input_ids": text_ids, "attention_mask": mask.long()}
    with torch.no_grad():
        logits: Tensor = whole(**known, decoder_input_ids=ids).logits
    return logits


@pytest.mark.parametrize("row", range(len(TEXTS)))
@pytest.mark.parametrize("stage", range(N_Q))
def test_it_is_what_musicgen_says_of_the_next_token(
    rescorer: MusicgenRescorer,
    whole: MusicgenForConditionalGeneration,
    tokens: Tensor,
    stage: int,
    row: int,
) -> None:
    """A token at a time, each with no more of the clip than MusicGen has made before it."""
    candidate = tokens.clone()
    candidate[:, stage + 1 :] = CARD
    expected = []
    for frame in range(FRAMES):
        columns = frame + stage + 1
        ids = torch.full((N_Q, columns), CARD)
        for codebook in range(stage + 1):
            for column in range(1 + codebook, columns):
                if column - 1 - codebook < FRAMES:
                    ids[codebook, column] = candidate[row, codebook, column - 1 - codebook]
        probs = read(whole, TEXTS[row], ids)[stage, -1].softmax(dim=-1)
        expected.append(probs[candidate[row, stage, frame]])
    found = rescorer.for_texts(TEXTS)(candidate, stage)[row]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-3, atol=1e-6)
    assert float(torch.stack(expected).log().std()) > 0.3


@pytest.mark.parametrize("stage", range(N_Q))
def test_a_whole_clip_is_laid_out_as_transformers_does_it(
    rescorer: MusicgenRescorer, whole: MusicgenForConditionalGeneration, tokens: Tensor, stage: int
) -> None:
    clip = tokens[:1]
    first = torch.full((N_Q, 1), CARD)
    start_and_clip = torch.cat([first, clip[0]], dim=-1)
    _, ids = whole.decoder.build_delay_pattern_mask(start_and_clip, CARD, max_length=FRAMES + N_Q)
    probs = read(whole, TEXTS[0], ids)[stage].softmax(dim=-1)
    expected = torch.stack([probs[t + stage, clip[0, stage, t]] for t in range(FRAMES)])
    found = rescorer.for_texts(TEXTS[:1])(clip, stage)[0]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_clips_of_a_batch_are_judged_as_alone(rescorer: MusicgenRescorer, tokens: Tensor) -> None:
    together = rescorer.for_texts(TEXTS)(tokens, 1)
    for row, text in enumerate(TEXTS):
        alone = rescorer.for_texts([text])(tokens[row : row + 1], 1)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-7)


def test_the_text_matters(rescorer: MusicgenRescorer, tokens: Tensor) -> None:
    same = tokens[:1].repeat(2, 1, 1)
    probs = rescorer.for_texts(["a calm flute on low do", "noise"])(same, 0)
    assert float((probs[0].log() - probs[1].log()).abs().max()) > 0.01


def test_generating_with_it(checkpoint: Path, rescorer: MusicgenRescorer) -> None:
    magnet = Magnet.from_pretrained(checkpoint)
    texts = ["a low bell", None]

    def made(weight: float, **options: Any) -> Tensor:
        decoding = DecodingConfig(decoding_steps=(6, 4, 2, 2), rescorer_weight=weight)
        return magnet.generate_tokens(texts, seed=3, decoding=decoding, **options)

    without = made(0.5)
    assert torch.equal(made(0.0, rescorer=rescorer), without)
    assert not torch.equal(made(1.0, rescorer=rescorer), without)
    assert torch.equal(made(1.0, rescorer=rescorer), made(1.0, rescorer=rescorer))
    prompt = without[..., :8]
    assert torch.equal(made(1.0, rescorer=rescorer, prompt=prompt)[..., :8], prompt)
    assert not torch.equal(made(1.0, rescorer=rescorer, loop=True), made(0.5, loop=True))


class Watching:
    """Finds all tokens equally probable, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def require_same_tokens(self, codec: CodecInfo) -> None:
        pass

    def for_texts(self, texts: Sequence[str | None]) -> Rescorer:
        def judge(tokens: Tensor, stage: int) -> Tensor:
            self.shown.append(tokens.clone())
            return torch.ones(len(texts), tokens.shape[-1])

        return judge


def test_a_loop_is_judged_with_its_ends_side_by_side(checkpoint: Path) -> None:
    magnet = Magnet.from_pretrained(checkpoint)
    prompt = torch.randint(CARD, (1, N_Q, 8), generator=torch.Generator().manual_seed(4))
    watching = Watching()
    magnet.generate_tokens(["a bell"], seed=0, prompt=prompt, rescorer=watching, loop=True)
    assert torch.equal(watching.shown[0][..., :8], prompt)
    last = watching.shown[-1][0]
    assert not torch.equal(last[:, :8], prompt[0])
    assert any(torch.equal(last.roll(-turn, dims=-1)[:, :8], prompt[0]) for turn in range(1, 24))


def test_without_weight_it_does_not_even_read_the_texts(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Watching, "for_texts", lambda *_: pytest.fail("read the texts"))
    decoding = DecodingConfig(decoding_steps=(2, 2, 2, 2), rescorer_weight=0.0)
    Magnet.from_pretrained(checkpoint).generate_tokens(["a bell"], decoding=decoding, rescorer=Watching())


def test_editing_with_it(checkpoint: Path, rescorer: MusicgenRescorer) -> None:
    magnet = Magnet.from_pretrained(checkpoint)
    audio = 0.1 * torch.randn(1, 24 * 160, generator=torch.Generator().manual_seed(2))

    def edited(**options: Any) -> Tensor:
        decoding = DecodingConfig(decoding_steps=(6, 4, 2, 2), rescorer_weight=1.0)
        return magnet.edit(audio, (0.1, 0.35), ["a low bell"], seed=3, decoding=decoding, **options)

    out = edited(rescorer=rescorer)
    assert torch.equal(out[0, :, : 4 * 160], audio[:, : 4 * 160])
    assert not torch.equal(out, edited())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("n_q", 8, "n_q 4 .* 8"),
        ("card", 2048, "card 256 .* 2048"),
        ("sample_rate", 32000, "sample_rate 8000 .* 32000"),
        ("frame_rate", 25.0, "frame_rate 50 .* 25"),
    ],
)
def test_other_tokens_are_refused(rescorer: MusicgenRescorer, name: str, value: Any, words: str) -> None:
    codec = load_codec("quickstart").info
    rescorer.require_same_tokens(codec)
    with pytest.raises(UserError, match=words):
        rescorer.require_same_tokens(replace(codec, **{name: value}))


def test_a_model_of_another_codec_is_refused_before_anything_is_made(
    checkpoint: Path, tmp_path: Path, write_musicgen: Callable[..., None]
) -> None:
    write_musicgen(tmp_path, vocab_size=64, pad_token_id=64, bos_token_id=64)
    other = MusicgenRescorer.from_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=f"{tmp_path.name} has card 64 but codec quickstart of the model has 256"
    ):
        Magnet.from_pretrained(checkpoint).generate_tokens(["a bell"], rescorer=other)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"audio_channels": 2}, "stereo"), ({"pad_token_id": 3}, "pad_token_id 3 .* config.json")],
)
def test_other_kinds_of_musicgen_are_refused(
    tmp_path: Path, write_musicgen: Callable[..., None], settings: dict[str, int], words: str
) -> None:
    write_musicgen(tmp_path, **settings)
    with pytest.raises(UserError, match=words):
        MusicgenRescorer.from_pretrained(tmp_path)


def test_folders_that_hold_none(tmp_path: Path, musicgen: Path) -> None:
    with pytest.raises(UserError, match=r"rescorer \./nowhere does not exist"):
        MusicgenRescorer.from_pretrained("./nowhere")
    with pytest.raises(
        UserError, match=r"not a transformers model of type musicgen: .* model_type encodec; use facebook"
    ):
        MusicgenRescorer.from_pretrained(packaged_codec())
    copy = Path(shutil.copytree(musicgen, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    del weights["decoder.lm_heads.1.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"lacks the weights decoder\.lm_heads\.1\.weight"):
        MusicgenRescorer.from_pretrained(copy)
    (copy / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be loaded"):
        MusicgenRescorer.from_pretrained(copy)
    (copy / "config.json").write_text(json.dumps({"model_type": "unheard_of"}))
    with pytest.raises(UserError, match="model_type unheard_of; use facebook"):
        MusicgenRescorer.from_pretrained(copy)


def test_the_codecs_weights_are_not_needed(
    tmp_path: Path, musicgen: Path, rescorer: MusicgenRescorer, tokens: Tensor
) -> None:
    copy = Path(shutil.copytree(musicgen, tmp_path / "copy"))
    weights = load_file(copy / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in weights.items() if not name.startswith("audio_encoder.")},
        copy / "model.safetensors",
        {"format": "pt"},
    )
    found = MusicgenRescorer.from_pretrained(copy).for_texts(TEXTS)(tokens, 0)
    assert torch.equal(found, rescorer.for_texts(TEXTS)(tokens, 0))
