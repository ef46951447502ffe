"""The decoder against fake models whose answers are known; exact generations are in tests/reference."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math

import pytest
import torch

from magnet_train.decoding import DecodingConfig, decoding_schedule, generate_tokens
from magnet_train.decoding.remasking import bit_reversed_order
from magnet_train.decoding.sampling import exponential_noise, filter_probs, sample_categorical, sample_nucleus
from magnet_train.errors import UserError

CARD, SPAN = 11, 3
STEPS = (5, 3, 2, 2)


def target_of(batch: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(CARD, (batch, 4, frames), generator=torch.Generator().manual_seed(seed))


class Oracle:
    """Knows the answer, and remembers what it was asked."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target, self.calls = target, []

    def __call__(self, tokens, stage, cfg_coef):
        self.calls.append((tokens.clone(), stage, cfg_coef))
        return torch.nn.functional.one_hot(self.target[:, stage], CARD).float() * 50


def random_logits(tokens, stage, cfg_coef):
    generator = torch.Generator().manual_seed(int(tokens.sum()) + stage)
    return torch.randn(tokens.shape[0], tokens.shape[2], CARD, generator=generator)


def generate(logits_fn, shape, **options):
    decoding = options.pop("decoding", DecodingConfig(decoding_steps=STEPS))
    options.setdefault("generator", torch.Generator().manual_seed(0))
    return generate_tokens(
        logits_fn, shape, decoding, card=CARD, span_len=options.pop("span_len", SPAN), **options
    )


@pytest.mark.parametrize("arrangement", ["nonoverlap", "stride1", "spread"])
@pytest.mark.parametrize("frames", [30, 31, 32])
@pytest.mark.parametrize("span_len", [1, 3])
def test_an_oracle_gives_back_its_target(arrangement, frames, span_len):
    target = target_of(2, frames)
    oracle = Oracle(target)
    decoding = DecodingConfig(decoding_steps=STEPS, span_arrangement=arrangement)
    assert torch.equal(generate(oracle, (2, 4, frames), decoding=decoding, span_len=span_len), target)
    assert len(oracle.calls) == sum(STEPS)
    assert [stage for _, stage, _ in oracle.calls] == [k for k, n in enumerate(STEPS) for _ in range(n)]


@pytest.mark.parametrize("arrangement", ["nonoverlap", "stride1", "spread"])
@pytest.mark.parametrize("scoring", ["max", "prod"])
def test_no_mask_is_left_and_seeds_repeat(arrangement, scoring):
    decoding = DecodingConfig(decoding_steps=STEPS, span_arrangement=arrangement, span_scoring=scoring)
    first = generate(random_logits, (3, 4, 32), decoding=decoding)
    assert first.max() < CARD
    assert first.shape == (3, 4, 32)
    assert torch.equal(first, generate(random_logits, (3, 4, 32), decoding=decoding))
    other = generate(random_logits, (3, 4, 32), decoding=decoding, generator=torch.Generator().manual_seed(1))
    assert not torch.equal(first, other)


class FromTheLeft:
    """A strategy of one's own: the last frames are masked again."""

    def start(self, keep):
        self.open = (~keep).sum(dim=-1)
        return torch.zeros(keep.shape)

    def choose(self, scores, rate):
        count = (rate * self.open).int().clamp(min=1)
        frames = scores.shape[-1]
        return torch.arange(frames) >= frames - count[:, None], int(count.max())

    def score(self, probs, chosen, masked):
        return probs


@pytest.mark.parametrize("arrangement", ["nonoverlap", "spread"])
def test_a_strategy_of_ones_own(arrangement):
    oracle = Oracle(target_of(2, 30))
    decoding = DecodingConfig(decoding_steps=STEPS, span_arrangement=arrangement)

    def rescorer(tokens, stage):
        return torch.ones(tokens.shape[0], tokens.shape[2])

    made = generate(oracle, (2, 4, 30), decoding=decoding, remasking=FromTheLeft(), rescorer=rescorer)
    assert torch.equal(made, oracle.target)
    for tokens, stage, _ in oracle.calls:
        masked = tokens[:, stage] == CARD
        assert torch.equal(masked, masked.sort(dim=-1).values)  # known on the left
    assert [int((tokens[0, 0] == CARD).sum()) for tokens, stage, _ in oracle.calls if stage == 0] == [
        *(30, 27, 21, 11, 1)  # 30 * cos(pi/2 * step/4), at least 1
    ]


def test_stages_see_only_what_is_known():
    oracle = Oracle(target_of(1, 30))
    generate(oracle, (1, 4, 30))
    for tokens, stage, _ in oracle.calls:
        assert (tokens[:, :stage] < CARD).all()
        assert (tokens[:, stage + 1 :] == CARD).all()


def test_what_was_kept_never_changes_within_a_stage():
    seen = []

    def watch(tokens, stage, cfg_coef):
        seen.append((stage, tokens[0, stage].clone()))
        return random_logits(tokens, stage, cfg_coef)

    generate(watch, (1, 4, 30))
    for (stage, before), (later_stage, after) in itertools.pairwise(seen):
        if stage == later_stage:
            kept = (before != CARD) & (after != CARD)
            assert torch.equal(before[kept], after[kept])
            assert (after == CARD).sum() <= (before == CARD).sum()


@pytest.mark.parametrize("arrangement", ["nonoverlap", "stride1", "spread"])
def test_kept_tokens_stay_wherever_they_are(arrangement):
    prompt = target_of(2, 32, seed=3)
    keep = torch.ones(2, 4, 32, dtype=torch.bool)
    keep[0, :, 10:17] = False
    keep[1, 2, 5:9] = False
    decoding = DecodingConfig(decoding_steps=STEPS, span_arrangement=arrangement)
    out = generate(random_logits, (2, 4, 32), decoding=decoding, prompt=prompt, keep=keep)
    assert torch.equal(out[keep], prompt[keep])
    assert (out < CARD).all()
    assert not torch.equal(out[~keep], prompt[~keep])


@pytest.mark.parametrize("arrangement", ["nonoverlap", "stride1", "spread"])
@pytest.mark.parametrize("seed", range(10))
def test_gaps_shorter_than_a_span_are_filled(arrangement, seed):
    """A span may cover kept frames and miss open ones."""
    draw = torch.Generator().manual_seed(seed)
    prompt, keep = target_of(2, 40, seed=3), torch.ones(2, 40, dtype=torch.bool)
    for start in torch.randint(38, (4,), generator=draw).tolist():
        keep[0, start : start + 2] = keep[1, start] = False
    decoding = DecodingConfig(decoding_steps=STEPS, span_arrangement=arrangement)
    out = generate(random_logits, (2, 4, 40), decoding=decoding, prompt=prompt, keep=keep)
    kept = keep[:, None].expand(-1, 4, -1)
    assert torch.equal(out[kept], prompt[kept])
    assert (out < CARD).all()


def frames_filled(seen):
    """Frames filled by each step of the first codebook, from what the model was shown."""
    hidden = [tokens[:, 0] == CARD for tokens, stage, _ in seen if stage == 0]
    hidden.append(torch.zeros_like(hidden[0]))
    return [before & ~after for before, after in itertools.pairwise(hidden)]


def test_spread_fills_frames_that_are_far_apart():
    """N frames of 64 in this order leave gaps between the powers of two around 64 / N."""
    oracle = Oracle(target_of(2, 64))
    generate(oracle, (2, 4, 64), decoding=DecodingConfig(decoding_steps=STEPS, span_arrangement="spread"))
    steps = frames_filled(oracle.calls)
    assert [int(step[0].sum()) for step in steps] == [
        5,
        14,
        21,
        23,
        1,
    ]  # 64 - int(64 cos(pi/2 i/4)), differences
    known = torch.zeros(2, 64, dtype=torch.bool)
    for step in steps[:2]:
        known |= step
        for row in known:
            places = row.nonzero()[:, 0].tolist()
            gaps = [(b - a) % 64 for a, b in zip(places, places[1:] + places[:1], strict=True)]
            assert max(gaps) <= 2 * 2 ** math.ceil(math.log2(64 / len(places)))
            assert min(gaps) >= 2 ** math.floor(math.log2(64 / len(places)))
    assert not torch.equal(steps[0][0], steps[0][1])  # each clip begins elsewhere


def test_spread_goes_around_what_is_kept():
    prompt, keep = target_of(1, 32, seed=3), torch.ones(1, 32, dtype=torch.bool)
    keep[:, 8:24] = False
    oracle = Oracle(target_of(1, 32))
    decoding = DecodingConfig(decoding_steps=(4, 1, 1, 1), span_arrangement="spread")
    generate(oracle, (1, 4, 32), decoding=decoding, prompt=prompt, keep=keep)
    filled = frames_filled(oracle.calls)
    assert [int(step.sum()) for step in filled] == [3, 5, 7, 1]  # 16, 13, 8, 1 open before each step
    assert not any((step & keep).any() for step in filled)


def test_bits_read_backwards():
    assert bit_reversed_order(8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert bit_reversed_order(6).tolist() == [0, 3, 1, 4, 2, 5]  # 0, 4, 2, 6, 1, 5, 3, 7 times 6/8, once each
    assert bit_reversed_order(1).tolist() == [0]


@pytest.mark.parametrize("length", [5, 65, 300, 500, 513])
def test_each_frame_goes_into_a_largest_gap(length):
    order = bit_reversed_order(length).tolist()
    assert sorted(order) == list(range(length))
    for filled in range(2, length):
        known = sorted(order[:filled])
        gaps = [after - before for before, after in zip(known, [*known[1:], known[0] + length], strict=True)]
        assert max(gaps) - gaps[bisect.bisect(known, order[filled]) - 1] <= 1  # rounded to whole frames


def test_keep_of_frames_means_all_codebooks():
    prompt = target_of(1, 30)
    keep = torch.zeros(1, 30, dtype=torch.bool)
    keep[:, 20:] = True
    out = generate(random_logits, (1, 4, 30), prompt=prompt, keep=keep)
    assert torch.equal(out[..., 20:], prompt[..., 20:])


def test_everything_kept_comes_back():
    prompt = target_of(1, 30)
    assert torch.equal(generate(random_logits, (1, 4, 30), prompt=prompt), prompt)


def test_a_clip_keeps_its_length_unless_parity_is_asked_for():
    assert generate(random_logits, (1, 4, 32)).shape[-1] == 32
    parity = DecodingConfig(decoding_steps=STEPS, parity=True)
    assert generate(random_logits, (1, 4, 32), decoding=parity).shape[-1] == 30


def test_progress_counts_to_the_end():
    seen = []
    generate(random_logits, (1, 4, 30), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i + 1, sum(STEPS)) for i in range(sum(STEPS))]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"decoding_steps": (5, 3)}, "decoding_steps"),
        ({"decoding_steps": (5, 3, 2, 0)}, "decoding_steps"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": CARD + 1}, "top_k"),
        ({"temperature": -1.0}, "temperature"),
    ],
)
def test_settings_that_do_not_fit(change, words):
    decoding = dataclasses.replace(DecodingConfig(decoding_steps=STEPS), **change)
    with pytest.raises(UserError, match=words):
        generate(random_logits, (1, 4, 30), decoding=decoding)


def test_prompts_that_do_not_fit():
    with pytest.raises(UserError, match="40 frames"):
        generate(random_logits, (1, 4, 30), prompt=target_of(1, 40))
    with pytest.raises(UserError, match="keep"):
        generate(random_logits, (1, 4, 30), keep=torch.ones(1, 30, dtype=torch.bool))
    with pytest.raises(UserError, match="keep"):
        generate(random_logits, (1, 4, 30), prompt=target_of(1, 30), keep=torch.ones(1, 29, dtype=torch.bool))
    with pytest.raises(UserError, match="shorter than one span"):
        generate(random_logits, (1, 4, 2))


def test_schedule_of_the_paper():
    # facts of the released settings: 166 chunks, 20 steps
    released = DecodingConfig(decoding_steps=(20,), temperature=3.0, anneal_temperature=True)
    steps = list(decoding_schedule(released))
    counts = [max(int(step.mask_rate * 166), 1) for step in steps]
    assert counts[:4] == [166, 165, 163, 160]
    assert counts[-3:] == [27, 13, 1]
    assert steps[0].temperature == pytest.approx(2.85)
    assert steps[-1].temperature == 0.0
    assert steps[0].cfg_coef == 10.0
    assert steps[-1].cfg_coef == pytest.approx(1.0, abs=1e-5)


def test_filters_renormalise():
    probs = torch.softmax(torch.randn(5, CARD, generator=torch.Generator().manual_seed(0)), dim=-1)
    for top_p, top_k in ((0.5, 0), (0.0, 3), (0.0, 0), (1.0, 0)):
        filtered = filter_probs(probs, top_p, top_k)
        torch.testing.assert_close(filtered.sum(dim=-1), torch.ones(5))
    assert ((filter_probs(probs, 0.0, 3) > 0).sum(dim=-1) == 3).all()
    assert ((filter_probs(probs, 1e-9, 0) > 0).sum(dim=-1) == 1).all()


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("kind", ["smooth", "sharp", "tied", "flat"])
def test_the_nucleus_is_the_sorted_one(kind, top_p):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 256, generator=generator)
    logits = {
        "smooth": logits,
        "sharp": 8 * logits,
        "tied": torch.round(2 * logits) / 2,  # a dozen values: the edge of the set runs through equals
        "flat": torch.zeros_like(logits),
    }[kind]
    probs = logits.softmax(dim=-1)
    noise = exponential_noise((1, 2000, 256), generator, "cpu")[0]
    nucleus = filter_probs(probs, top_p, 0)
    tokens = sample_nucleus(probs, top_p, noise)
    assert torch.equal(tokens, sample_categorical(nucleus, noise))
    assert (nucleus.gather(-1, tokens[..., None]) > 0).all()


def test_the_nucleus_is_drawn_by_probability():
    draws = 200_000
    probs = torch.tensor([0.05, 0.4, 0.02, 0.3, 0.2, 0.03])
    noise = exponential_noise((1, draws, 6), torch.Generator().manual_seed(0), "cpu")[0]
    tokens = sample_nucleus(probs.expand(draws, -1), 0.6, noise)
    expected = filter_probs(probs, 0.6, 0)
    assert (expected > 0).tolist() == [False, True, False, True, False, False]
    shares = torch.bincount(tokens, minlength=6) / draws
    torch.testing.assert_close(shares, expected, atol=5 / draws**0.5, rtol=0)


def test_impossible_tokens_are_never_drawn():
    probs = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    noise = exponential_noise((1, 10_000, 5), torch.Generator().manual_seed(0), "cpu")[0]
    noise[0] = torch.inf  # of a uniform number that was 0: arrives last
    noise[0, 3] = 1.0
    tokens = sample_categorical(probs.expand(10_000, -1), noise)
    assert tokens[0] == 3
    assert set(tokens.tolist()) == {1, 3}


class AnswersAtFrames:
    """The same answers, and how many frames were asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, tokens, stage, cfg_coef):
        raise AssertionError("asked for all frames")

    def at(self, tokens, stage, cfg_coef, frames):
        self.asked.append(frames.shape[1])
        logits = random_logits(tokens, stage, cfg_coef)
        return logits.gather(1, frames[..., None].expand(-1, -1, CARD))


@pytest.mark.parametrize("arrangement", ["nonoverlap", "stride1", "spread"])
@pytest.mark.parametrize("frames", [30, 32])
@pytest.mark.parametrize("prompt_frames", [None, 10])
def test_only_masked_frames_are_asked_for(arrangement, frames, prompt_frames):
    decoding = DecodingConfig(decoding_steps=STEPS, span_arrangement=arrangement)
    prompt = None if prompt_frames is None else target_of(2, prompt_frames)
    options = {"decoding": decoding, "prompt": prompt}
    answers = AnswersAtFrames()
    given = generate(answers, (2, 4, frames), **options)
    options["generator"] = torch.Generator().manual_seed(0)
    assert torch.equal(given, generate(random_logits, (2, 4, frames), **options))
    if arrangement == "nonoverlap" and prompt is None and frames == 30:
        assert answers.asked[:5] == [30, 27, 21, 9, 3]  # 3 x max(int(10 cos(pi/2 i/4)), 1)
    assert sum(answers.asked) < 0.8 * frames * len(answers.asked)


def test_a_generator_each_makes_clips_independent_of_their_batch():
    def logits(tokens, stage, cfg_coef):
        return torch.cat([random_logits(row[None], stage, cfg_coef) for row in tokens])

    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    keep = torch.zeros(3, 30, dtype=torch.bool)
    keep[1, :12] = True
    prompt = target_of(3, 30)
    together = generate(logits, (3, 4, 30), prompt=prompt, keep=keep, generator=generators(5, 6, 7))
    for row, seed in enumerate((5, 6, 7)):
        part = slice(row, row + 1)
        alone = generate(logits, (1, 4, 30), prompt=prompt[part], keep=keep[part], generator=generators(seed))
        assert torch.equal(together[part], alone)


@pytest.mark.parametrize("sampling", [True, False])
def test_a_step_asks_the_device_nothing(sampling):
    """On the meta device nothing could answer: `.item()`, `.nonzero()` and a copy to the CPU all raise there."""

    def logits(tokens, stage, cfg_coef):
        return torch.zeros(tokens.shape[0], tokens.shape[2], CARD, device="meta")

    decoding = DecodingConfig(decoding_steps=STEPS, use_sampling=sampling)
    tokens = generate_tokens(logits, (2, 4, 32), decoding, card=CARD, span_len=SPAN, device="meta")
    assert tokens.shape == (2, 4, 32)
