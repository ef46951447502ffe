"""Logits, losses and gradients against the recorded ones."""

from __future__ import annotations

import pytest
import torch
from recorded import case_id, cases_of, load_conditions, load_lm, read_json, read_tensors

from magnet_train.checkpoints.audiocraft.names import rope_frequencies, to_audiocraft_names
from magnet_train.masking import mask_for_stage
from magnet_train.models.transformer import count_parameters
from magnet_train.training.objective import masked_cross_entropy_sum


@pytest.mark.parametrize(("model", "case"), cases_of("lm", "logits.json"), ids=case_id)
def test_logits(model, case):
    lm = load_lm(model)
    tensors = read_tensors(f"lm_{model}/logits.safetensors")
    hidden, mask = load_conditions(model, case["conditions"])
    rows = slice(*case["rows"])
    checked = 0
    for stage in range(lm.n_q):
        if f"{case['case']}.logits_s{stage}" not in tensors:
            continue
        shared = tensors.get(f"{case['case']}.tokens")
        tokens = tensors[f"{case['case']}.tokens_s{stage}"] if shared is None else shared
        with torch.no_grad():
            logits = lm(tokens.long(), stage, hidden[rows], mask[rows])
        torch.testing.assert_close(logits, tensors[f"{case['case']}.logits_s{stage}"], atol=5e-5, rtol=0)
        checked += 1
    assert checked


@pytest.mark.parametrize(("model", "case"), cases_of("loss"), ids=case_id)
def test_loss_and_gradients(model, case):
    lm = load_lm(model)
    tensors = read_tensors(f"loss_{model}/cases.safetensors")
    name, stage = case["case"], case["stage"]
    tokens = tensors[f"{name}.tokens"].long()
    stage_mask = tensors[f"{name}.stage_mask"].bool()
    valid = tensors[f"{name}.padding_mask"].bool()[:, stage]
    hidden, text_mask = load_conditions(model, case["conditions"])
    start, stop = case["rows"]
    text_mask = text_mask[start:stop].clone()
    text_mask[case["rows_with_attention_mask_zeroed"]] = False

    lm.zero_grad()
    states = lm.hidden(
        mask_for_stage(tokens, stage_mask, stage, lm.mask_id), stage, hidden[start:stop], text_mask
    )
    learn = stage_mask & valid
    loss = masked_cross_entropy_sum(lm.head(states[learn], stage), tokens[:, stage][learn]) / learn.sum()
    loss.backward()

    assert int(learn.sum()) == case["n_loss_positions"]
    assert loss.item() == pytest.approx(case["ce"], rel=1e-5)
    gradients = to_audiocraft_names({name: p.grad for name, p in lm.named_parameters()})
    assert gradients.keys() == case["grad_norms"].keys()
    for parameter, norm in case["grad_norms"].items():
        assert float(gradients[parameter].norm()) == pytest.approx(norm, rel=1e-4, abs=1e-7), parameter
    total = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert float(total) == pytest.approx(case["total_grad_norm"], rel=1e-4)
    for key, recorded in tensors.items():
        if key.startswith(f"{name}.grad."):
            torch.testing.assert_close(
                gradients[key.removeprefix(f"{name}.grad.")], recorded, rtol=1e-3, atol=2e-6
            )


@pytest.mark.parametrize("model", sorted({model for model, _ in cases_of("lm", "logits.json")}))
def test_every_parameter_has_a_place(model):
    description = read_json(f"lm_{model}/model.json")
    lm = load_lm(model)
    assert count_parameters(lm) == description["n_params"]
    theirs = to_audiocraft_names(lm.state_dict()) | rope_frequencies(lm.config)
    shapes = {name: list(tensor.shape) for name, tensor in theirs.items()}
    assert shapes == description["state_dict"]
