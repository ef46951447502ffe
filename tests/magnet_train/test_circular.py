"""Loops: a model sees across the seam, whichever frame the clip is cut at, and the codec's ends fit together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from magnet_train.circular import CircularLogits, decode_circular
from magnet_train.codecs import QUICKSTART, load_codec
from magnet_train.decoding import DecodingConfig, generate_tokens
from magnet_train.masking import at_frames

CARD, FRAMES, HOP = 8, 20, 160


class NearestVisible:
    """Copies the nearest token that is visible in the clip as it is shown, the surer the nearer it is."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def __call__(self, tokens: Tensor, stage: int, cfg_coef: float) -> Tensor:
        self.shown.append(tokens)
        row = tokens[0, stage]
        places = torch.arange(len(row))
        visible = places[row != CARD]
        away, nearest = (places[:, None] - visible).abs().min(dim=1)
        return F.one_hot(row[visible[nearest]], CARD) * (9.0 - away)[None, :, None].clamp(min=0.5)

    def at(self, tokens: Tensor, stage: int, cfg_coef: float, frames: Tensor) -> Tensor:
        return at_frames(self(tokens, stage, cfg_coef), frames)


def test_answers_belong_to_the_frames_that_were_asked_for() -> None:
    tokens = torch.randint(CARD, (1, 1, FRAMES), generator=torch.Generator().manual_seed(0))
    frames = torch.tensor([[19, 0, 7]])
    for ask in range(6):
        circular = CircularLogits(NearestVisible())
        for _ in range(ask):
            circular(tokens, 0, 1.0)
        assert torch.equal(circular.at(tokens, 0, 1.0, frames).argmax(-1), tokens[0][:, frames[0]])
        assert torch.equal(circular(tokens, 0, 1.0).argmax(-1), tokens[0])


def test_the_cut_wanders_over_the_whole_clip() -> None:
    model = NearestVisible()
    circular = CircularLogits(model)
    marked = torch.zeros(1, 1, FRAMES, dtype=torch.int64)
    marked[..., 0] = 1
    for _ in range(FRAMES):
        circular(marked, 0, 1.0)
    cuts = sorted(-int(shown[0, 0].argmax()) % FRAMES for shown in model.shown)
    gaps = torch.tensor([*cuts, FRAMES]).diff()
    assert cuts[0] == 0
    assert int(gaps.max()) <= 2


def test_the_end_of_a_loop_takes_after_its_beginning() -> None:
    prompt = torch.full((1, 1, FRAMES), CARD - 1)
    prompt[..., 10:14] = 3
    keep = torch.zeros(1, FRAMES, dtype=torch.bool)
    keep[:, 0:4] = keep[:, 10:14] = True
    decoding = DecodingConfig(decoding_steps=(8,), use_sampling=False)

    def fill(logits_fn: object) -> list[int]:
        tokens = generate_tokens(
            logits_fn,  # type: ignore[arg-type]
            (1, 1, FRAMES),
            decoding,
            card=CARD,
            span_len=1,
            prompt=prompt,
            keep=keep,
        )
        return tokens[0, 0, 14:].tolist()

    assert fill(NearestVisible()) == [3, 3, 3, 3, 3, 3]
    assert fill(CircularLogits(NearestVisible())) == [3, 3, 3, 7, 7, 7]


def test_audio_of_a_loop_does_not_depend_on_where_it_begins() -> None:
    codec = load_codec(QUICKSTART)
    tone = 0.3 * torch.sin(2 * torch.pi * 262 * torch.arange(64 * HOP) / codec.sample_rate)
    tokens = codec.encode(tone[None, None])
    here = decode_circular(codec, tokens)
    assert here.shape == (1, 1, 64 * HOP)
    turned = decode_circular(codec, tokens.roll(-25, dims=-1)).roll(25 * HOP, dims=-1)
    torch.testing.assert_close(turned, here, atol=1e-4, rtol=0)
    cut = codec.decode(tokens.roll(-25, dims=-1)).roll(25 * HOP, dims=-1)
    assert float((cut - here).abs().max()) > 1e-2
