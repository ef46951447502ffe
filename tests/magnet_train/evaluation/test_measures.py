"""The three measures on numbers made by hand, each beside the chance and the ceiling that are known for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from magnet_train.errors import UserError
from magnet_train.evaluation import (
    bootstrap_interval,
    frechet_distance,
    kl_divergence,
    measure_clap_score,
    measure_divergence,
    measure_fad,
)


def clips(n: int, seed: int, shift: float = 0.0, windows: int = 2, dims: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((windows, dims)) + shift for _ in range(n)]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class TestFad:
    def test_all_windows_against_all(self):
        ours, real = clips(5, 0), clips(7, 1, shift=1)
        fad = measure_fad(ours, real)
        assert fad.distance == frechet_distance(np.concatenate(ours), np.concatenate(real))
        assert (fad.generated_clips, fad.generated_windows) == (5, 10)
        assert (fad.reference_clips, fad.reference_windows, fad.dimensions) == (7, 14, 4)

    def test_clips_like_the_real_ones_get_what_real_ones_get(self):
        fad = measure_fad(clips(300, 0), clips(600, 1), clips(300, 2, shift=5))
        assert fad.equal is not None
        assert fad.equal.noise is not None
        assert fad.equal.clips == fad.equal.reference_clips == 300
        assert fad.equal.generated.mean == pytest.approx(fad.equal.real.mean, abs=0.03)
        assert fad.equal.noise.mean == pytest.approx(4 * 5**2, rel=0.05)

    def test_sizes_are_equal_as_far_as_possible(self):
        few_generated = measure_fad(clips(3, 0), clips(20, 1)).equal
        assert few_generated is not None
        assert (few_generated.clips, few_generated.reference_clips) == (3, 17)
        many_generated = measure_fad(clips(50, 0), clips(9, 1)).equal
        assert many_generated is not None
        assert (many_generated.clips, many_generated.reference_clips) == (4, 5)
        assert many_generated.noise is None

    def test_three_real_clips_cannot_be_split(self):
        assert measure_fad(clips(5, 0), clips(3, 1)).equal is None

    def test_clips_are_split_and_not_their_windows(self):
        # Two kinds of song, each of windows all alike: halves by window would be the same, halves by clip are not.
        songs = [np.full((8, 1), float(n)) + 1e-3 * np.arange(8)[:, None] for n in range(4)]
        equal = measure_fad(songs, songs).equal
        assert equal is not None
        assert equal.real.mean > 0.05

    def test_real_clips_are_never_compared_with_themselves(self):
        axes = np.eye(4)  # a clip on each axis, so that every split into two and two has the same distance
        equal = measure_fad(list(axes[:, None]), list(axes[:, None])).equal
        assert equal is not None
        assert equal.real.mean == pytest.approx(frechet_distance(axes[:2], axes[2:]))
        assert equal.real.std == pytest.approx(0, abs=1e-12)

    def test_too_few_windows_are_reported(self):
        assert measure_fad(clips(2, 0), clips(50, 1)).too_few
        assert not measure_fad(clips(50, 0), clips(50, 1)).too_few

    def test_same_seed_same_numbers(self):
        first, again, other = (measure_fad(clips(9, 0), clips(20, 1), seed=seed) for seed in (1, 1, 2))
        assert first == again
        assert first.distance == other.distance
        assert first.equal != other.equal

    def test_one_clip_is_refused(self):
        with pytest.raises(UserError, match=r"at least 2 usable clips .* not 1 generated and 5 of"):
            measure_fad(clips(1, 0), clips(5, 1))


class TestClapScore:
    def test_mean_cosine_and_chance(self):
        axes = np.eye(3)
        audio = [axes[[0]], axes[[1]], axes[[2]]]
        score = measure_clap_score(audio, axes, ["a", "b", "c"])
        assert (score.mean, score.chance, score.clips) == (1, 0, 3)

    def test_chance_is_the_mean_over_unlike_captions(self):
        rng = np.random.default_rng(0)
        audio = [unit(rng.standard_normal((w, 5))) for w in (1, 2, 3, 1, 2)]
        captions = ["a", "b", "a", "c", "b"]
        text = unit(rng.standard_normal((5, 5)))
        pairs = [(i, j) for i in range(5) for j in range(5) if captions[i] != captions[j]]
        expected = np.mean([np.mean(audio[i] @ text[j]) for i, j in pairs])
        score = measure_clap_score(audio, text, captions)
        assert score.chance == pytest.approx(expected)
        assert score.mean == pytest.approx(np.mean([np.mean(audio[i] @ text[i]) for i in range(5)]))

    def test_one_caption_for_all_has_no_chance(self):
        score = measure_clap_score([np.eye(2)[[0]]] * 2, np.eye(2), ["a", "a"])
        assert score.chance is None

    def test_no_caption(self):
        with pytest.raises(UserError, match="no captions"):
            measure_clap_score([], np.empty((0, 2)), [])


class TestDivergence:
    def test_two_classes_by_hand(self):
        # KL((.5, .5) || (.9, .1)) = ln(5/3) for .9 * .1 = .09: .5 ln(.25/.09)
        values = kl_divergence([[0.5, 0.5], [1.0, 0.0]], [[0.9, 0.1], [0.25, 0.75]])
        assert values == pytest.approx([0.5 * np.log(0.25 / 0.09), np.log(4)], rel=1e-4)

    def test_direction_and_epsilon_are_those_of_the_reference_implementation(self):
        # audiocraft.metrics.kld.kl_divergence: kl_div((generated + 1e-6).log(), reference).sum(-1)
        rng = np.random.default_rng(0)
        real, ours = rng.dirichlet(np.ones(6) * 0.1, 4), rng.dirichlet(np.ones(6) * 0.1, 4)
        expected = torch.nn.functional.kl_div(
            (torch.from_numpy(ours) + 1e-6).log(), torch.from_numpy(real), reduction="none"
        ).sum(-1)
        np.testing.assert_allclose(kl_divergence(real, ours), expected.numpy())

    def test_equal_is_zero_and_impossible_is_finite(self):
        certain = np.eye(3)
        assert kl_divergence(certain, certain) == pytest.approx(0, abs=1e-5)
        assert kl_divergence(certain, certain[::-1]).max() == pytest.approx(-np.log(1e-6))

    def test_chance_is_the_mean_over_other_pairs(self):
        rng = np.random.default_rng(0)
        real, ours = rng.dirichlet(np.ones(6), 5), rng.dirichlet(np.ones(6), 5)
        found = measure_divergence(real, ours)
        others = [(i, j) for i in range(5) for j in range(5) if i != j]
        assert found.mean == pytest.approx(kl_divergence(real, ours).mean())
        assert found.chance == pytest.approx(np.mean([kl_divergence(real[i], ours[j]) for i, j in others]))
        assert found.other_real == pytest.approx(
            np.mean([kl_divergence(real[i], real[j]) for i, j in others])
        )
        assert found.pairs == 5

    def test_one_pair_has_no_chance_and_no_interval(self):
        found = measure_divergence([[0.5, 0.5]], [[0.5, 0.5]])
        assert (found.pairs, found.chance, found.other_real, found.interval) == (1, None, None, None)

    def test_no_pair(self):
        with pytest.raises(UserError, match="no pairs"):
            measure_divergence([], [])


class TestInterval:
    def test_is_near_two_standard_errors(self):
        values = np.random.default_rng(0).normal(3, 2, 400)
        low, high = bootstrap_interval(values, seed=1) or (0, 0)
        error = values.std() / 20
        assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.02)
        assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.02)

    def test_holds_the_true_mean_19_times_in_20(self):
        rng = np.random.default_rng(5)
        intervals = [bootstrap_interval(rng.exponential(1, 60)) or (0, 0) for _ in range(100)]
        assert 85 <= sum(low < 1 < high for low, high in intervals) <= 99

    def test_seed_decides_and_one_value_has_none(self):
        values = [1.0, 2.0, 5.0]
        assert bootstrap_interval(values, 1) == bootstrap_interval(values, 1)
        assert bootstrap_interval([1.0]) is None
