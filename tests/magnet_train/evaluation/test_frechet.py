"""The Fréchet distance against closed forms, and against the formula computed another way."""

from __future__ import annotations

import numpy as np
import pytest

from magnet_train.evaluation import Gaussian, frechet_distance


def exact_cloud(mean: np.ndarray, root: np.ndarray, n: int = 40) -> np.ndarray:
    """Vectors [n, D] whose sample mean and covariance (root.T @ root) are these, to rounding."""
    rng = np.random.default_rng(3)
    points = rng.standard_normal((n, len(mean)))
    white, _ = np.linalg.qr(points - points.mean(axis=0))  # orthonormal columns of mean 0
    return mean + np.sqrt(n - 1) * white @ root


def by_eigenvalues(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook formula: tr (C1 C2)^½ is the sum of the roots of the product's eigenvalues."""
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shared = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0)).sum()
    shift = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    return float(shift + np.trace(first) + np.trace(second) - 2 * shared)


def test_one_dimension_is_shift_and_difference_of_deviations():
    a = exact_cloud(np.array([1.0]), np.array([[2.0]]))
    b = exact_cloud(np.array([4.0]), np.array([[0.5]]))
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + 1.5**2)


def test_diagonal_covariances_add_up_by_dimension():
    mean_a, mean_b = np.array([0.0, 1.0, -2.0]), np.array([0.5, 1.0, 1.0])
    std_a, std_b = np.array([1.0, 2.0, 0.1]), np.array([3.0, 2.0, 0.7])
    distance = frechet_distance(exact_cloud(mean_a, np.diag(std_a)), exact_cloud(mean_b, np.diag(std_b)))
    assert distance == pytest.approx(np.square(mean_a - mean_b).sum() + np.square(std_a - std_b).sum())


def test_rotated_gaussian_of_known_distance():
    # C1 = diag(4, 1), C2 = diag(1, 4): they commute, so the distance is (2-1)² + (1-2)²
    a = exact_cloud(np.zeros(2), np.diag([2.0, 1.0]))
    assert frechet_distance(a, a[:, ::-1]) == pytest.approx(2.0)


def test_a_shift_costs_its_square():
    a = np.random.default_rng(0).standard_normal((30, 8))
    shift = np.linspace(-1, 1, 8)
    assert frechet_distance(a, a + shift) == pytest.approx(np.square(shift).sum())


@pytest.mark.parametrize("n", [5, 8, 50])
def test_equal_sets_are_at_zero_in_any_order(n):
    a = np.random.default_rng(0).standard_normal((n, 8))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(a, a[::-1]) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(100, 80), (100, 6), (5, 7)])
def test_equals_the_textbook_formula_at_full_and_lower_rank(n, m):
    rng = np.random.default_rng(1)
    mix = rng.standard_normal((10, 10))
    a, b = rng.standard_normal((n, 10)) @ mix, rng.standard_normal((m, 10)) + 0.3
    # the eigenvalues of a product without full rank are only good to the root of rounding
    assert frechet_distance(a, b) == pytest.approx(by_eigenvalues(a, b), rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_nearly_degenerate_covariances_stay_exact():
    # deviations over ten decades, where a square root of a product of covariances would drown in rounding
    std = 10.0 ** -np.arange(10)
    a = exact_cloud(np.zeros(10), np.diag(std))
    b = exact_cloud(np.zeros(10), np.diag(2 * std))
    assert frechet_distance(a, b) == pytest.approx(np.square(std).sum(), rel=1e-9)


def test_few_vectors_make_it_larger():
    rng = np.random.default_rng(2)
    cloud = rng.standard_normal((4000, 20))
    distances = [frechet_distance(cloud[:n], cloud[2000 : 2000 + n]) for n in (15, 60, 2000)]
    assert distances[0] > distances[1] > distances[2] > 0


def test_what_gives_no_covariance_is_refused():
    for wrong in (np.zeros((1, 4)), np.zeros(4), np.full((3, 4), np.nan)):
        with pytest.raises(ValueError, match="finite"):
            Gaussian.of(wrong)
