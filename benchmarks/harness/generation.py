"""Generation, whole and in parts: naive against ours.

Shapes: B clips, K codebooks, T frames, M frames that are masked, D = dim.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import BenchmarkConfig, NotExactError, Row, require_close
from harness.naive import Draw, draw_multinomial, naive_choose, naive_generate
from harness.restricted import attention_rows
from harness.timing import Clock, time_pair
from magnet_train.decoding import DecodingConfig, decoding_schedule, generate_tokens
from magnet_train.decoding.sampling import choose_tokens, exponential_noise
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.training.flops import Pass, forward_flops

LOGITS_TOLERANCE = 1e-5  # of the norm
MASKED_SHARE = 0.6  # of the frames of a codebook, about the mean over its steps
TEMPERATURE, CFG_COEF, TOP_P = 1.5, 5.0, 0.9  # in the middle of a codebook
FRAME_RATE = 50  # Hz
RELEASED = DecodingConfig(
    temperature=3.0, anneal_temperature=True, parity=True
)  # as the naive decoder samples
A_FEW_STEPS = replace(RELEASED, decoding_steps=(3, 2, 2, 2))


class NoiseDraw:
    """Draws from the nucleus with the noise that `generate_tokens` takes from a generator of the same seed."""

    def __init__(self, device: str, seed: int) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, nucleus: Tensor) -> Tensor:
        batch, num_frames, card = nucleus.shape
        noise = exponential_noise((batch, num_frames, card), self.generator, nucleus.device)
        return (nucleus / noise).argmax(dim=-1)


def measure_generation(
    setting: BenchmarkConfig, decoding_steps: tuple[int, ...], compiled: bool = False
) -> Iterator[Row]:
    """Yield a row for restricted attention, for heads and sampling, and for a whole generation of tokens."""
    clock = Clock(torch.device(setting.device))
    yield from attention_rows(setting, clock, 2 * setting.batch, backward=False)
    yield _tail_row(setting, clock)
    yield _generation_row(setting, decoding_steps, clock, compiled)


@torch.inference_mode()
def _tail_row(setting: BenchmarkConfig, clock: Clock) -> Row:
    """From hidden states to tokens, in the middle of a codebook."""
    heads = setting.models()[1].heads.detach().to(setting.dtype)
    states = setting.states(2 * setting.batch)
    num_masked = int(MASKED_SHARE * setting.frames)
    decoding = DecodingConfig(top_p=TOP_P)

    def naive(draw: Draw = draw_multinomial) -> Tensor:
        both = torch.stack([nn.functional.linear(states, head) for head in heads], dim=1)
        return naive_choose(both, 1, CFG_COEF, TEMPERATURE, TOP_P, draw)[0]

    def ours(seed: int = 0) -> Tensor:
        generator = torch.Generator(setting.device).manual_seed(seed)
        noise = exponential_noise((setting.batch, setting.frames, setting.card), generator, setting.device)
        conditional, null = nn.functional.linear(states[:, :num_masked], heads[1]).float().chunk(2)
        logits = null + (conditional - null) * CFG_COEF
        return choose_tokens(logits, TEMPERATURE, decoding, noise[:, :num_masked])[0]

    if setting.precision == "float32":
        require_same_tokens([ours(seed=1)], [naive(NoiseDraw(setting.device, 1))[:, :num_masked]])
    return {"part": "heads and sampling", **time_pair(clock, naive, ours, setting.rounds).summary()}


@torch.inference_mode()
def _generation_row(
    setting: BenchmarkConfig, decoding_steps: tuple[int, ...], clock: Clock, compiled: bool
) -> Row:
    """All steps of a generation with guidance; neither text encoder nor codec."""
    decoding = replace(RELEASED, decoding_steps=decoding_steps)
    frames = setting.frames - setting.frames % setting.SPAN_LEN
    shape = (setting.batch, setting.N_Q, frames)
    naive, ours = setting.models()
    naive, ours = naive.eval(), ours.eval()
    text, text_mask = setting.text()
    errors = check_logits(setting, naive, ours)

    made: dict[str, list[Tensor]] = {"naive": [], "ours": []}
    marks: dict[str, list[list[Any]]] = {"naive": [], "ours": []}  # by generation: before it, after each step

    def naive_tokens(steps: DecodingConfig = decoding) -> None:
        draw = NoiseDraw(setting.device, seed=len(made["naive"]))
        laps = [clock.mark()]
        tokens = naive_generate(
            naive, text, text_mask, shape, steps, setting.SPAN_LEN, draw, lambda: laps.append(clock.mark())
        )
        made["naive"].append(tokens)
        marks["naive"].append(laps)

    def our_tokens(steps: DecodingConfig = decoding) -> None:
        laps = [clock.mark()]
        tokens = generate_tokens(
            GuidedLogits(ours, text, text_mask),
            shape,
            steps,
            card=setting.card,
            span_len=setting.SPAN_LEN,
            generator=torch.Generator(setting.device).manual_seed(len(made["ours"])),
            progress=lambda done, total: laps.append(clock.mark()),
            device=setting.device,
        )
        made["ours"].append(tokens)
        marks["ours"].append(laps)

    if setting.precision != "float32":  # rounds its tokens apart; that both agree is shown before
        naive_tokens(A_FEW_STEPS)
        our_tokens(A_FEW_STEPS)
        require_same_tokens(made["ours"], made["naive"])
    naive, ours, text = naive.to(setting.dtype), ours.to(setting.dtype), text.to(setting.dtype)
    if compiled:
        naive.compile(mode="reduce-overhead")
        ours.states = torch.compile(ours.states, mode="reduce-overhead")  # type: ignore[method-assign]
    # Compiled code is made in the first generation, and its CUDA graphs in the second.
    warm_up = 3 if compiled else 2 if clock.warms_up else 0
    pair = time_pair(clock, naive_tokens, our_tokens, setting.rounds, warm_up)
    if setting.precision == "float32":
        require_same_tokens(made["ours"], made["naive"])
    seconds = statistics.median(pair.ours)
    return {
        "part": f"generation, {sum(decoding_steps)} steps",
        **pair.summary(),
        **{f"{name}_step_ms": _step_ms(clock, runs[-setting.rounds :]) for name, runs in marks.items()},
        "times_real_time": setting.batch * frames / FRAME_RATE / seconds,
        "frames_per_s": setting.batch * frames / seconds,
        "codes_per_s": setting.N_Q * setting.batch * frames / seconds,
        "useful_tflops": generation_flops(setting, decoding) / seconds / 1e12,
        "naive_peak_bytes": clock.peak_bytes(naive_tokens),
        "ours_peak_bytes": clock.peak_bytes(our_tokens),
        **errors,
    }


def _step_ms(clock: Clock, runs: list[list[Any]]) -> list[float]:
    """Return the median time of each step over some generations, ms."""
    laps = [[clock.between(*ends) for ends in pairwise(marks)] for marks in runs]
    return [1000 * statistics.median(step) for step in zip(*laps, strict=True)]


def check_logits(setting: BenchmarkConfig, naive: nn.Module, ours: MagnetTransformer) -> dict[str, float]:
    """Compare guided logits of an unrestricted and a restricted codebook.

    Raises:
        NotExactError: They differ.
    """
    tokens, (text, text_mask) = setting.tokens(), setting.text()
    guided = GuidedLogits(ours, text, text_mask)
    errors = []
    for stage in (0, 2):
        both = naive(
            tokens.repeat(2, 1, 1),
            stage,
            torch.cat([text, torch.zeros_like(text)]),
            torch.cat([text_mask, torch.zeros_like(text_mask)]),
        )
        conditional, null = both[:, stage].chunk(2)
        expected = null + (conditional - null) * CFG_COEF
        errors.append(require_close("logits", guided(tokens, stage, CFG_COEF), expected, LOGITS_TOLERANCE))
    return {"logits_error": max(errors)}


def require_same_tokens(ours: Sequence[Tensor], naive: Sequence[Tensor]) -> None:
    """Compare generations that had the same noise.

    Raises:
        NotExactError: A token differs.
    """
    for mine, theirs in zip(ours, naive, strict=True):
        if not torch.equal(mine, theirs):
            share = float((mine != theirs).float().mean())
            raise NotExactError(f"{share:.2%} of the tokens differ though the noise is the same: no ratio.")


def generation_flops(setting: BenchmarkConfig, decoding: DecodingConfig) -> float:
    """Count what a generation needs: guided steps twice, once with and once without the text."""
    frames = setting.frames - setting.frames % setting.SPAN_LEN
    total = 0.0
    for step in decoding_schedule(decoding):
        clips = setting.batch * (1 if step.cfg_coef == 1.0 else 2)
        chunks = max(int(step.mask_rate * (frames // setting.SPAN_LEN)), 1)
        answered = clips * chunks * setting.SPAN_LEN
        work = Pass(step.stage, clips, setting.batch, frames, setting.text_positions, answered, pruned=True)
        total += forward_flops(setting.lm_config, work)
    return total
