"""Whole generations, token for token, and what happens in each step of the traced ones."""

from __future__ import annotations

import pytest
import torch
from recorded import (
    REFERENCE,
    case_id,
    cases_of,
    load_conditions,
    load_lm,
    load_magnet,
    read_json,
    read_tensors,
    table_frames,
)

from magnet_train.decoding import DecodingConfig, decoding_schedule, generate_tokens, sampling
from magnet_train.models import GuidedLogits
from magnet_train.pipeline.parts import ModelParts


def settings_of(args) -> DecodingConfig:
    return DecodingConfig(
        decoding_steps=tuple(args["decoding_steps"]),
        span_arrangement=args["span_arrangement"],
        span_scoring=args["span_scoring"],
        temperature=args["temp"],
        anneal_temperature=args["anneal_temp"],
        top_p=args["top_p"],
        top_k=args["top_k"],
        use_sampling=args["use_sampling"],
        max_cfg_coef=args["max_cfg_coef"],
        min_cfg_coef=args["min_cfg_coef"],
        parity=True,
    )


def generate(model, case, logits_fn=None):
    lm = load_lm(model)
    hidden, mask = load_conditions(model, case["conditions"])
    batch = case["B"]
    guided = GuidedLogits(lm, hidden[:batch], mask[:batch])
    prompt = None
    if case["prompt_len"] is not None:
        prompt = read_tensors(f"generate_{model}/cases.safetensors")[f"{case['name']}.prompt"].long()
    return generate_tokens(
        guided if logits_fn is None else lambda *step: logits_fn(guided, *step),
        (batch, lm.n_q, case["args"]["max_gen_len"]),
        settings_of(case["args"]),
        card=lm.card,
        span_len=lm.span_len,
        prompt=prompt,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize(("model", "case"), cases_of("generate"), ids=case_id)
def test_generation(model, case, monkeypatch):
    if case["sampler"] == "argmax_of_filtered":
        monkeypatch.setattr(sampling, "sample_categorical", lambda probs, generator: probs.argmax(dim=-1))
    recorded = read_tensors(f"generate_{model}/cases.safetensors")[f"{case['name']}.tokens"].long()
    assert torch.equal(generate(model, case), recorded)


def released_cases():
    """Those of the length that a whole model makes; the recorded ones reach beyond it in places."""
    for model, case in cases_of("generate"):
        if case["args"]["max_gen_len"] <= table_frames(model):
            yield model, case


@pytest.mark.parametrize(("model", "case"), list(released_cases()), ids=case_id)
def test_generation_by_the_whole_model(model, case, monkeypatch):
    """As a user does it: the release folder in, captions in, tokens out. Only the text encoder is the recorded one."""
    if case["sampler"] == "argmax_of_filtered":
        monkeypatch.setattr(sampling, "sample_categorical", lambda probs, generator: probs.argmax(dim=-1))
    hidden, mask = load_conditions(model, case["conditions"])
    batch = case["B"]
    monkeypatch.setattr(ModelParts, "text", staticmethod(lambda texts: (hidden[:batch], mask[:batch])))
    magnet = load_magnet(model)
    recorded = read_tensors(f"generate_{model}/cases.safetensors")
    prompt = None if case["prompt_len"] is None else recorded[f"{case['name']}.prompt"].long()
    seconds = case["args"]["max_gen_len"] / read_json(f"lm_{model}/model.json")["frame_rate"]
    tokens = magnet.generate_tokens(
        ["recorded"] * batch,
        seconds=min(seconds, magnet.segment_duration),
        seed=0,
        decoding=settings_of(case["args"]),
        prompt=prompt,
    )
    assert torch.equal(tokens, recorded[f"{case['name']}.tokens"].long())


def traces():
    for folder in sorted(REFERENCE.glob("generate_*")):
        for file in sorted(folder.glob("trace_*.json")):
            yield folder.name.removeprefix("generate_"), file.stem


@pytest.mark.parametrize(("model", "trace"), list(traces()))
def test_trace(model, trace):
    """What the model is shown, how it is guided and what it answers, step by step."""
    description = read_json(f"generate_{model}/{trace}.json")
    tensors = read_tensors(f"generate_{model}/{trace}.safetensors")
    case = next(
        case for _, case in cases_of("generate") if _ == model and case["name"] == description["case"]
    )
    recorded_steps = description["steps"]
    seen = []

    def watch(guided, tokens, stage, cfg_coef):
        index = len(seen)
        logits = guided(tokens, stage, cfg_coef)
        step = recorded_steps[index]
        assert stage == step["stage"]
        assert cfg_coef == pytest.approx(step["cfg_coef"], abs=1e-6)
        assert torch.equal(tokens, tensors[f"{index}.tokens_in"].long())
        assert torch.equal(
            tokens[:, stage : stage + 1] == guided.lm.card, tensors[f"{index}.filled_mask"].bool()
        )
        if f"{index}.cfg_logits" in tensors:
            torch.testing.assert_close(logits[:, None], tensors[f"{index}.cfg_logits"], atol=5e-4, rtol=0)
        seen.append(step)
        return logits

    tokens = generate(model, case, watch)
    assert len(seen) == len(recorded_steps)
    assert torch.equal(tokens, tensors[f"{len(seen) - 1}.tokens_out"].long())
    for step, recorded in zip(decoding_schedule(settings_of(case["args"])), recorded_steps, strict=True):
        assert float(step.mask_rate) == pytest.approx(recorded["mask_p"], abs=1e-7)
        assert step.temperature == pytest.approx(recorded["t"], abs=1e-6)
