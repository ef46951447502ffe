"""Tables, masks, schedules and filtered distributions, exactly."""

from __future__ import annotations

import pytest
import torch
from recorded import read_json, read_tensors

from harness.attention import context_mask
from magnet_train.decoding import DecodingConfig, decoding_schedule
from magnet_train.decoding.sampling import filter_probs
from magnet_train.masking import least_probable_spans, mask_rate, span_count_table, span_mask

RECORDED = read_json("masking.json")


def bits(rows) -> torch.Tensor:
    return torch.tensor([[character == "1" for character in row] for row in rows])


def label(case) -> str:
    return "-".join(f"{key}{case[key]}" for key in ("T", "span_len", "context", "timesteps") if key in case)


@pytest.mark.parametrize("case", RECORDED["lut"], ids=label)
def test_count_table(case):
    assert list(span_count_table(case["T"], case["span_len"])) == case["lut"]


@pytest.mark.parametrize("case", RECORDED["spans_mask"], ids=label)
def test_span_masks(case):
    mask = span_mask(torch.tensor(case["mask_probs"]), torch.tensor(case["batch_randperm"]), case["span_len"])
    assert torch.equal(mask, bits(case["mask"]))


@pytest.mark.parametrize("case", RECORDED["non_spans_mask"], ids=label)
def test_single_frame_masks(case):
    mask = span_mask(torch.tensor(case["mask_probs"]), torch.tensor(case["batch_randperm"]), 1)
    assert torch.equal(mask, bits(case["mask"]))
    assert mask.sum(dim=-1).tolist() == case["n_masked"]


@pytest.mark.parametrize("case", RECORDED["restricted_attention"], ids=label)
def test_restricted_context(case):
    if case["stage1"] is None:
        assert case["context"] == -1
        return
    assert torch.equal(
        context_mask(case["T"], case["context"]), bits(case["stage1"]["allowed_rows_of_first_TxT"])
    )


@pytest.mark.parametrize("index", range(len(RECORDED["least_probable_span_masking"]["cases"])))
def test_least_probable_spans(index):
    case = RECORDED["least_probable_span_masking"]["cases"][index]
    mask = least_probable_spans(torch.tensor(case["scores"]), case["span_len"], case["num_masked_target"])
    assert torch.equal(mask, bits([case["mask"]])[0])


@pytest.mark.parametrize(
    "case", RECORDED["empirical_mask_rate"], ids=lambda c: f"{label(c)}-{c['mask_prob']}"
)
def test_mean_mask_rate(case):
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(case["n"], case["T"], generator=generator)
    if isinstance(case["mask_prob"], str):  # the schedule with a uniform draw for each clip
        rate = mask_rate(torch.rand(case["n"], generator=generator))
    else:
        rate = torch.full((case["n"],), case["mask_prob"])
    mask = span_mask(rate, order, case["span_len"])
    spread = max(case["std"], 1e-4)
    assert float(mask.float().mean()) == pytest.approx(case["mean"], abs=6 * spread / case["n"] ** 0.5 + 1e-4)


@pytest.mark.parametrize("case", RECORDED["schedule"], ids=label)
def test_schedule(case):
    settings = DecodingConfig(
        decoding_steps=(case["timesteps"],),
        temperature=3.0,
        anneal_temperature=True,
        max_cfg_coef=10.0,
        min_cfg_coef=1.0,
    )
    for step, recorded in zip(decoding_schedule(settings), case["steps"], strict=True):
        assert float(step.mask_rate) == pytest.approx(recorded["mask_p"], abs=1e-7)
        assert max(int(step.mask_rate * case["num_to_generate"]), 1) == recorded["num_masked"]
        assert step.temperature == pytest.approx(recorded["t_temp3"])
        assert step.cfg_coef == pytest.approx(recorded["cfg_coef_10_1"], abs=1e-6)


def test_training_and_decoding_share_the_schedule():
    progress = torch.linspace(0, 1, 20)
    rates = torch.stack([step.mask_rate for step in decoding_schedule(DecodingConfig(decoding_steps=(20,)))])
    assert torch.equal(mask_rate(progress), rates)


@pytest.mark.parametrize("case", read_json("sampling.json"), ids=lambda case: str(case["i"]))
def test_filtered_distribution(case):
    tensors = read_tensors("sampling.safetensors")
    index = case["i"]
    probs = torch.softmax(tensors["logits"] / case["effective_temp"], dim=-1)
    torch.testing.assert_close(probs, tensors[f"{index}.softmax"], atol=1e-6, rtol=0)
    filtered = filter_probs(probs, case["top_p"], case["top_k"])
    torch.testing.assert_close(filtered, tensors[f"{index}.filtered"], atol=1e-6, rtol=0)
    scored = probs if case["top_p"] > 0 else filtered
    torch.testing.assert_close(scored, tensors[f"{index}.probs_used_for_scores"], atol=1e-6, rtol=0)
