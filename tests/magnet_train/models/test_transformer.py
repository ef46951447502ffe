"""What the model may see, and how many parameters it has; exact logits are in tests/reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny_model import tiny, tokens_of

from magnet_train.cli.configs import packaged_config
from magnet_train.errors import UserError
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.models.transformer import count_parameters

# The first three: counted from the released configurations with T5-base. tiny: counted once, here.
PRESETS = {"small": 420_371_456, "medium": 1_838_737_920, "large": 3_256_956_928, "tiny": 10_693_376}


@pytest.mark.parametrize(("name", "parameters"), PRESETS.items())
def test_preset_sizes(name, parameters):
    text = Path(packaged_config(f"configs/model_scale/{name}.yaml")).read_text()
    overlay = yaml.safe_load(text)
    with torch.device("meta"):
        lm = MagnetTransformer(4, 2048, **overlay["model"]["init_args"]["lm"]["init_args"])
    assert count_parameters(lm) == parameters
    assert f"{parameters:,}" in text


@pytest.mark.parametrize("frames", [1, 2, 7, 104, 131])
def test_any_length(frames):
    assert tiny()(tokens_of(2, frames), 1).shape == (2, frames, 16)


@pytest.mark.parametrize("streams", [1, 2])
def test_restricted_context_reaches_layers_times_context(streams):
    lm = tiny(subcodes_context=3, streams=streams)
    tokens = tokens_of(1, 60)
    changed = tokens.clone()
    changed[..., 30] = (changed[..., 30] + 1) % 16
    for stage in range(4):
        difference = (lm(tokens, stage) - lm(changed, stage)).abs().amax(dim=-1)[0]
        far = torch.cat([difference[: 30 - 6], difference[30 + 6 + 1 :]])
        if stage < streams:
            assert far.max() > 0
        else:
            assert far.max() == 0
            assert difference[24:37].min() > 0


@pytest.mark.parametrize(
    ("frame_rate", "lengths"),
    [(50, (3, 5)), (44_100 / 512, (5, 9)), (12.5, (1, 1)), (25, (2, 2)), (75, (4, 8))],
)
def test_lengths_that_are_not_given_are_60_and_100_ms(frame_rate, lengths):
    lm, given = tiny(), tiny(span_len=3, subcodes_context=-1)
    assert (lm.span_len, lm.subcodes_context) == (3, 5)
    for model, expected in ((lm, lengths), (given, (3, -1))):
        model.set_codec(frame_rate, streams=2)
        assert (model.span_len, model.subcodes_context, model.streams) == (*expected, 2)
        assert MagnetTransformer(**model.config).config == model.config
    assert "streams" not in tiny().config  # as in files from before


@pytest.mark.parametrize("changes", [{"streams": 3}, {"streams": 0}, {"streams": 2, "n_q": 3}])
def test_streams_that_do_not_fit(changes):
    with pytest.raises(UserError, match="streams"):
        tiny(**changes)


def test_clips_do_not_depend_on_the_batch():
    lm = tiny()
    text = torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 2 + [False] * 3, [True] * 5])
    both = lm(tokens_of(2, 20), 0, text, mask)
    alone = lm(tokens_of(2, 20)[:1], 0, text[:1, :2], mask[:1, :2])
    torch.testing.assert_close(both[:1], alone)
    parity = tiny(text_key_mask=False)
    assert (
        parity(tokens_of(2, 20), 0, text, mask)[:1]
        - parity(tokens_of(2, 20)[:1], 0, text[:1, :2], mask[:1, :2])
    ).abs().max() > 1e-3


@pytest.mark.parametrize("text_key_mask", [True, False])
def test_null_condition_is_no_text(text_key_mask):
    lm = tiny(text_key_mask=text_key_mask)
    tokens = tokens_of(2, 20)
    hidden = lm(tokens, 2, torch.randn(2, 5, 12), torch.zeros(2, 5))
    torch.testing.assert_close(hidden, lm(tokens, 2))


def test_only_the_stage_head_learns_and_the_others_get_zeros():
    lm = tiny()
    lm(tokens_of(1, 20), 2).sum().backward()
    norms = lm.heads.grad.flatten(1).norm(dim=1)
    assert norms[2] > 0
    assert norms[[0, 1, 3]].tolist() == [0, 0, 0]
    assert all(
        p.grad is not None for name, p in lm.named_parameters() if "cross" not in name and "text" not in name
    )


def test_guidance_of_one_is_the_conditional_prediction():
    lm = tiny()
    tokens, text, mask = tokens_of(2, 20), torch.randn(2, 5, 12), torch.ones(2, 5, dtype=torch.bool)
    guided = GuidedLogits(lm, text, mask)
    torch.testing.assert_close(guided(tokens, 1, 1.0), lm(tokens, 1, text, mask))
    torch.testing.assert_close(guided(tokens, 1, 0.0), lm(tokens, 1))
    torch.testing.assert_close(GuidedLogits(lm, text)(tokens, 1, 3.0), guided(tokens, 1, 3.0))
    torch.testing.assert_close(GuidedLogits(lm, None)(tokens, 1, 3.0), lm(tokens, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 30},
        {"num_heads": 5},
        {"num_heads": 0},
        {"num_layers": 0},
        {"span_len": 0},
        {"subcodes_context": -2},
    ],
)
def test_sizes_that_do_not_fit(changes):
    with pytest.raises(UserError, match="must be"):
        tiny(**changes)


def test_inputs_that_do_not_fit():
    lm = tiny()
    with pytest.raises(ValueError, match="tokens of shape"):
        lm(tokens_of(1, 20)[:, :3], 0)
    with pytest.raises(ValueError, match="stage 4"):
        lm(tokens_of(1, 20), 4)


def test_config_builds_the_same_model():
    lm = tiny()
    assert MagnetTransformer(**lm.config).config == lm.config
