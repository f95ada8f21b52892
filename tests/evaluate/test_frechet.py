import re

import numpy as np
import pytest
import scipy.linalg

from gmem_jax.evaluate import frechet
from tests.evaluate import fakes


def gaussian(seed, n=500, width=12, shift=0.0):
  rng = np.random.default_rng(seed)
  mix = rng.normal(size=(width, width))
  return rng.normal(size=(n, width)) @ mix + shift


def test_distance_equals_the_matrix_square_root():
  a = fakes.fit_gaussian(gaussian(0))
  b = fakes.fit_gaussian(gaussian(1, shift=0.3))
  root = scipy.linalg.sqrtm(a.cov @ b.cov)
  expected = np.sum((a.mean - b.mean) ** 2) + np.trace(
    a.cov + b.cov - 2 * np.real(root)
  )
  assert frechet.frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
  assert frechet.frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)


def test_distance_of_a_shift_is_its_square():
  x = gaussian(0)
  a, b = fakes.fit_gaussian(x), fakes.fit_gaussian(x + 2.0)
  assert frechet.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
  assert frechet.frechet_distance(a, b) == pytest.approx(4.0 * 12, rel=1e-9)


def test_singular_covariances_are_fine():
  x = gaussian(0, n=5)  # fewer samples than dimensions
  a, b = fakes.fit_gaussian(x), fakes.fit_gaussian(gaussian(1))
  assert np.isfinite(frechet.frechet_distance(a, b))


@pytest.mark.parametrize(
  ("features", "match"),
  [
    (np.zeros((1, 3)), "at least two"),
    (np.zeros(3), "rows of 3"),
    (np.zeros((4, 2)), "rows of 3"),
    (np.array([[1.0, np.nan, 0], [0, 0, 0]]), "NaN"),
  ],
)
def test_bad_features_are_refused(features, match):
  def fit():
    moments = frechet.Moments(3)
    moments.add(features)
    return moments.gaussian()

  with pytest.raises(ValueError, match=match):
    fit()


def test_widths_must_agree():
  a = fakes.fit_gaussian(gaussian(0, width=3))
  b = fakes.fit_gaussian(gaussian(0, width=4))
  with pytest.raises(ValueError, match="widths differ"):
    frechet.frechet_distance(a, b)


def test_moments_do_not_depend_on_the_parts():
  """Also where the mean is a million times the spread."""
  x = gaussian(0, n=3000) + 1e6
  whole = fakes.fit_gaussian(x)
  parts = frechet.Moments(12)
  for start in range(0, len(x), 7):
    parts.add(x[start : start + 7])
  centred = x - 1e6  # numpy loses digits of a mean like this
  np.testing.assert_allclose(whole.cov, np.cov(centred.T), rtol=1e-9)
  assert parts.arrays()["count"] == len(x)
  np.testing.assert_allclose(parts.gaussian().mean, whole.mean, rtol=1e-14)
  np.testing.assert_allclose(parts.gaussian().cov, whole.cov, rtol=1e-9)


def test_moments_go_on_from_their_arrays():
  x = gaussian(0)
  first = frechet.Moments(12)
  first.add(x[:100])
  second = frechet.Moments(12)
  second.restore(first.arrays())
  second.add(x[100:])
  assert second.arrays()["count"] == len(x)
  np.testing.assert_allclose(second.gaussian().cov, np.cov(x.T), rtol=1e-12)


@pytest.mark.golden
def test_golden_distances(golden_dir):
  """Of the published code: scipy's matrix square root of the product."""
  with np.load(golden_dir / "inception.npz") as data:
    names = [n for n in data.files if n.startswith("fid")]
    arrays = {name: data[name] for name in names}
  one, two = arrays["fid_feats1"], arrays["fid_feats2"]
  a, b = fakes.fit_gaussian(one), fakes.fit_gaussian(two)
  distance = frechet.frechet_distance(a, b)
  print("fid:", abs(distance / arrays["fid"] - 1))
  assert distance == pytest.approx(float(arrays["fid"]), rel=1e-6)
  assert frechet.frechet_distance(a, a) == pytest.approx(
    float(arrays["fid_same"]), abs=1e-6
  )
  np.testing.assert_allclose(a.mean, arrays["fid_mu1"], rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(
    np.diag(a.cov), arrays["fid_sigma1_diag"], rtol=1e-6
  )
  few = [re.fullmatch(r"fid_few(\d+)_(\d+)", name) for name in names]
  few = [match for match in few if match]
  assert few
  for match in few:  # fewer rows than dimensions: singular
    n, m = map(int, match.groups())
    distance = frechet.frechet_distance(
      fakes.fit_gaussian(one[:n]), fakes.fit_gaussian(two[:m])
    )
    expected = float(arrays[match.group()])
    print(match.group(), abs(distance / expected - 1))
    assert distance == pytest.approx(expected, rel=1e-3)
