"""Generation, whole and in parts: naive against ours.

Shapes: B clips, K codebooks, T frames, M masked frames, D = dim.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from harness.attention import attention_rows
from harness.config import BenchmarkConfig, NotExactError, require_close
from harness.naive import Draw, draw_multinomial, naive_choose, naive_generate
from harness.timing import Clock, Row, time_pair
from magnet_train.decoding import DecodingConfig, decoding_schedule, generate_tokens
from magnet_train.decoding.sampling import choose_tokens, exponential_noise
from magnet_train.models import GuidedLogits, MagnetTransformer
from magnet_train.training.cost import Pass, forward_flops

LOGITS_TOLERANCE = 1e-5  # of the norm
MASKED_SHARE = 0.6  # of the frames of a codebook, about the mean over its steps
TEMPERATURE, CFG_COEF, TOP_P = 1.5, 5.0, 0.9  # in the middle of a codebook
FRAME_RATE = 50  # Hz
RELEASED = DecodingConfig(temperature=3.0, anneal_temperature=True, parity=True)  # as naive decoders sample
A_FEW_STEPS = replace(RELEASED, decoding_steps=(3, 2, 2, 2))


class NoiseDraw:
    """Draws from the nucleus, with the noise that `generate_tokens` takes from a generator of the same seed."""

    def __init__(self, device: str, seed: int) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, nucleus: Tensor) -> Tensor:
        batch, num_frames, card = nucleus.shape
        noise = exponential_noise((batch, num_frames, card), self.generator, nucleus.device)
        return (nucleus / noise).argmax(dim=-1)


class Generations:
    """Repeated generations of one version, with the tokens and the marks of the clock of each."""

    def __init__(self, clock: Clock, generate: Callable[[DecodingConfig, int, Callable[[], None]], Tensor]):
        self.clock, self._generate = clock, generate
        self.tokens: list[Tensor] = []
        self._marks: list[list[Any]] = []  # by generation: before it, and after each step

    def run(self, decoding: DecodingConfig) -> None:
        """Generate once more, with the number of earlier generations as the seed."""
        marks = [self.clock.mark()]
        seed = len(self.tokens)
        self.tokens.append(self._generate(decoding, seed, lambda: marks.append(self.clock.mark())))
        self._marks.append(marks)

    def step_ms(self, rounds: int) -> list[float]:
        """Return the median time of each step over the last generations, ms."""
        times = [[self.clock.between(*ends) for ends in pairwise(marks)] for marks in self._marks[-rounds:]]
        return [1000 * statistics.median(step) for step in zip(*times, strict=True)]


def measure_generation(
    config: BenchmarkConfig, decoding_steps: tuple[int, ...], compiled: bool = False
) -> Iterator[Row]:
    """Yield a row for restricted attention, for heads and sampling, and for a whole generation of tokens."""
    clock = Clock(torch.device(config.device))
    yield from attention_rows(config, clock, 2 * config.batch, backward=False)
    yield _sampling_row(config, clock)
    yield _generation_row(config, decoding_steps, clock, compiled)


@torch.inference_mode()
def _sampling_row(config: BenchmarkConfig, clock: Clock) -> Row:
    """From hidden states to tokens, in the middle of a codebook."""
    heads = config.models()[1].heads.detach().to(config.dtype)
    states = config.states(2 * config.batch)
    num_masked = int(MASKED_SHARE * config.frames)
    decoding = DecodingConfig(top_p=TOP_P)

    def naive(draw: Draw = draw_multinomial) -> Tensor:
        both = torch.stack([nn.functional.linear(states, head) for head in heads], dim=1)
        return naive_choose(both, 1, CFG_COEF, TEMPERATURE, TOP_P, draw)[0]

    def ours(seed: int = 0) -> Tensor:
        generator = torch.Generator(config.device).manual_seed(seed)
        noise = exponential_noise((config.batch, config.frames, config.card), generator, config.device)
        conditional, null = nn.functional.linear(states[:, :num_masked], heads[1]).float().chunk(2)
        logits = null + (conditional - null) * CFG_COEF
        return choose_tokens(logits, TEMPERATURE, decoding, noise[:, :num_masked])[0]

    if config.precision == "float32":
        require_same_tokens([ours(seed=1)], [naive(NoiseDraw(config.device, 1))[:, :num_masked]])
    return {"part": "heads and sampling", **time_pair(clock, naive, ours, config.rounds).summary()}


@torch.inference_mode()
def _generation_row(
    config: BenchmarkConfig, decoding_steps: tuple[int, ...], clock: Clock, compiled: bool
) -> Row:
    """All steps of a generation with guidance, without text encoder and codec."""
    decoding = replace(RELEASED, decoding_steps=decoding_steps)
    frames = _whole_spans(config)
    shape = (config.batch, config.N_Q, frames)
    naive_model, our_model = config.models()
    naive_model.eval()
    our_model.eval()
    text, text_mask = config.text()
    errors = check_logits(config, naive_model, our_model)

    def naive_tokens(steps: DecodingConfig, seed: int, after_step: Callable[[], None]) -> Tensor:
        draw = NoiseDraw(config.device, seed)
        return naive_generate(naive_model, text, text_mask, shape, steps, config.SPAN_LEN, draw, after_step)

    def our_tokens(steps: DecodingConfig, seed: int, after_step: Callable[[], None]) -> Tensor:
        return generate_tokens(
            GuidedLogits(our_model, text, text_mask),
            shape,
            steps,
            card=config.card,
            span_len=config.SPAN_LEN,
            generator=torch.Generator(config.device).manual_seed(seed),
            progress=lambda done, total: after_step(),
            device=config.device,
        )

    naive, ours = Generations(clock, naive_tokens), Generations(clock, our_tokens)
    if config.precision != "float32":  # which rounds the two differently: they are compared before
        naive.run(A_FEW_STEPS)
        ours.run(A_FEW_STEPS)
        require_same_tokens(ours.tokens, naive.tokens)
    text = text.to(config.dtype)
    naive_model.to(config.dtype)
    our_model.to(config.dtype)
    if compiled:
        naive_model.compile(mode="reduce-overhead")
        our_model.states = torch.compile(our_model.states, mode="reduce-overhead")  # type: ignore[method-assign]
    # The first generation compiles, and the second captures CUDA graphs.
    warm_up = 3 if compiled else 2 if clock.on_gpu else 0
    works = (lambda: naive.run(decoding), lambda: ours.run(decoding))
    pair = time_pair(clock, *works, config.rounds, warm_up)
    if config.precision == "float32":
        require_same_tokens(ours.tokens, naive.tokens)
    seconds = statistics.median(pair.ours)
    return {
        "part": f"generation, {sum(decoding_steps)} steps",
        **pair.summary(),
        "naive_step_ms": naive.step_ms(config.rounds),
        "ours_step_ms": ours.step_ms(config.rounds),
        "times_real_time": config.batch * frames / FRAME_RATE / seconds,
        **config.rates(frames, generation_flops(config, decoding), seconds),
        "naive_peak_bytes": clock.peak_bytes(works[0]),
        "ours_peak_bytes": clock.peak_bytes(works[1]),
        **errors,
    }


def check_logits(config: BenchmarkConfig, naive: nn.Module, ours: MagnetTransformer) -> dict[str, float]:
    """Compare guided logits of an unrestricted and a restricted codebook.

    Raises:
        NotExactError: They differ.
    """
    tokens, (text, text_mask) = config.tokens(), config.text()
    with_null = [torch.cat([x, torch.zeros_like(x)]) for x in (text, text_mask)]
    guided = GuidedLogits(ours, text, text_mask)
    errors = []
    for stage in (0, 2):
        conditional, null = naive(tokens.repeat(2, 1, 1), stage, *with_null)[:, stage].chunk(2)
        expected = null + (conditional - null) * CFG_COEF
        errors.append(require_close("logits", guided(tokens, stage, CFG_COEF), expected, LOGITS_TOLERANCE))
    return {"logits_error": max(errors)}


def require_same_tokens(ours: Sequence[Tensor], naive: Sequence[Tensor]) -> None:
    """Compare generations with the same noise.

    Raises:
        NotExactError: A token differs.
    """
    for our_tokens, naive_tokens in zip(ours, naive, strict=True):
        if not torch.equal(our_tokens, naive_tokens):
            share = float((our_tokens != naive_tokens).float().mean())
            raise NotExactError(f"{share:.2%} of the tokens differ though the noise is the same: no ratio.")


def generation_flops(config: BenchmarkConfig, decoding: DecodingConfig) -> float:
    """Count the FLOPs that a generation needs: guided steps run with and without the text."""
    frames = _whole_spans(config)
    total = 0.0
    for step in decoding_schedule(decoding):
        clips = config.batch * (1 if step.cfg_coef == 1.0 else 2)
        spans = max(int(step.mask_rate * (frames // config.SPAN_LEN)), 1)
        answered = clips * spans * config.SPAN_LEN
        work = Pass(step.stage, clips, config.batch, frames, config.text_positions, answered, pruned=True)
        total += forward_flops(config.lm_config, work)
    return total


def _whole_spans(config: BenchmarkConfig) -> int:
    """Return T rounded down to whole spans."""
    return config.frames - config.frames % config.SPAN_LEN
