import numpy as np
import pytest
import scipy.linalg

from gmem_jax import evaluate
from gmem_jax.data import sources


def gaussian(seed, n=500, width=12, shift=0.0):
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(width, width))
  return rng.normal(size=(n, width)) @ mix + shift


def test_distance_equals_the_matrix_square_root():
  a = evaluate.fit_gaussian(gaussian(0))
  b = evaluate.fit_gaussian(gaussian(1, shift=0.3))
  root = scipy.linalg.sqrtm(a.cov @ b.cov)
  expected = np.sum((a.mean - b.mean) ** 2) + np.trace(
    a.cov + b.cov - 2 * np.real(root)
  )
  assert evaluate.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
  assert evaluate.frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_distance_of_a_shift_is_its_square():
  x = gaussian(0)
  a, b = evaluate.fit_gaussian(x), evaluate.fit_gaussian(x + 2.0)
  assert evaluate.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
  assert evaluate.frechet_distance(a, b) == pytest.approx(4.0 * 12, rel=1e-9)


def test_singular_covariances_are_fine():
  x = gaussian(0, n=5)  # fewer samples than dimensions
  a, b = evaluate.fit_gaussian(x), evaluate.fit_gaussian(gaussian(1))
  assert np.isfinite(evaluate.frechet_distance(a, b))


@pytest.mark.parametrize(
  ("features", "match"),
  [
    (np.zeros((1, 3)), "at least two"),
    (np.zeros(3), "at least two"),
    (np.array([[1.0, np.nan], [0, 0]]), "NaN"),
  ],
)
def test_bad_features_are_refused(features, match):
  with pytest.raises(ValueError, match=match):
    evaluate.fit_gaussian(features)


def test_widths_must_agree():
  a = evaluate.fit_gaussian(gaussian(0, width=3))
  b = evaluate.fit_gaussian(gaussian(0, width=4))
  with pytest.raises(ValueError, match="widths differ"):
    evaluate.frechet_distance(a, b)


def test_memorisation_of_known_samples():
  train = np.array([[0.0, 0], [10, 0], [0, 10]])
  samples = np.array([[1.0, 0], [0, 9], [2, 0]])
  audit = evaluate.memorisation(samples, np.array([0, 2, 1]), train)
  assert audit.own_memory == pytest.approx(2 / 3)
  assert audit.sample_distance == pytest.approx((1 + 1 + 2) / 3)
  assert audit.real_distance == pytest.approx(10.0)


def test_classifier_features_separate_digits_from_noise():
  digits = sources.digits()
  kept, held = sources.split(digits, 360, seed=0)
  features = evaluate.classifier_features(kept.pixels, kept.labels, 0)
  real = evaluate.fit_gaussian(features(kept.pixels))
  noise = np.random.default_rng(0).integers(0, 256, held.pixels.shape, np.uint8)
  near = evaluate.frechet_distance(
    evaluate.fit_gaussian(features(held.pixels)), real
  )
  far = evaluate.frechet_distance(evaluate.fit_gaussian(features(noise)), real)
  assert features(held.pixels).shape == (360, 64)
  assert far > 10 * near
