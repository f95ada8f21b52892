"""The kernel distance beside its definition, and its standard error."""

import jax
import numpy as np
import pytest
from sklearn.metrics import pairwise

from gmem_jax.evaluate import kernel_distance
from gmem_jax.parallel import sharding

MESH = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))


def normal(seed, n, shift=0.0, width=16):
  random = np.random.default_rng(seed)
  return (random.normal(size=(n, width)) + shift).astype(np.float32)


def defined(x, y):
  """The unbiased estimate, written out in float64."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  kernel = [
    (a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))
  ]
  n, m = len(x), len(y)
  for own in kernel[:2]:
    np.fill_diagonal(own, 0)
  own, other, both = (each.sum() for each in kernel)
  return own / (n * (n - 1)) + other / (m * (m - 1)) - 2 * both / (n * m)


@pytest.mark.parametrize("sizes", [(4, 7), (57, 57), (203, 61), (40, 400)])
def test_it_is_what_is_defined(sizes):
  x, y = normal(0, sizes[0], 0.3), normal(1, sizes[1])
  value, error = kernel_distance.kernel_distance(x, y, MESH)
  assert value == pytest.approx(defined(x, y), rel=1e-5)
  assert error > 0


def test_the_devices_change_nothing():
  x, y = normal(0, 90, 0.3), normal(1, 50)
  one = sharding.make_mesh(
    sharding.MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]
  )
  assert kernel_distance.kernel_distance(x, y, one) == pytest.approx(
    kernel_distance.kernel_distance(x, y, MESH), rel=1e-6
  )


@pytest.mark.parametrize("shift", [0.0, 0.6])
def test_the_error_is_the_spread_of_the_distance(shift):
  """Over other sets of the same two distributions."""
  pairs = [
    kernel_distance.kernel_distance(
      normal(i, 60, shift), normal(1000 + i, 40), MESH
    )
    for i in range(30)
  ]
  values, errors = np.array(pairs).T
  spread = values.std(ddof=1)
  if shift:
    assert errors.mean() == pytest.approx(spread, rel=0.4)
  else:  # The jackknife is on the safe side; and there is no bias.
    assert spread < errors.mean() < 2 * spread
    assert abs(values.mean()) < 3 * spread / 30**0.5
    assert values.min() < 0


@pytest.mark.parametrize(
  ("x", "y", "message"),
  [
    (normal(0, 3), normal(1, 9), "of 3 samples: at least 4"),
    (normal(0, 9), normal(1, 3), "of 3 real images: at least 4"),
    (normal(0, 9), normal(1, 9, width=8), "widths differ"),
  ],
)
def test_what_would_mean_nothing_is_refused(x, y, message):
  with pytest.raises(ValueError, match=message):
    kernel_distance.kernel_distance(x, y, MESH)


def cmmd(x, y):
  """As published, by scikit-learn's kernel in float64."""
  x, y = (
    z.astype(np.float64) / np.linalg.norm(z.astype(np.float64), axis=1)[:, None]
    for z in (x, y)
  )
  gamma = 1 / (2 * 10**2)
  own, other, both = (
    pairwise.rbf_kernel(a, b, gamma).mean() for a, b in ((x, x), (y, y), (x, y))
  )
  return 1000 * (own + other - 2 * both)


@pytest.mark.parametrize("sizes", [(4, 7), (57, 57), (203, 61), (40, 400)])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_gaussian_distance_is_that_of_cmmd(sizes, shift):
  x, y = normal(0, sizes[0], shift), normal(1, sizes[1])
  value, error = kernel_distance.gaussian_distance(x, y, MESH)
  assert value == pytest.approx(cmmd(x, y), rel=1e-4)
  assert error > 0
  # Lengths say nothing.
  again, _ = kernel_distance.gaussian_distance(x * 100, y / 100, MESH)
  assert again == pytest.approx(value, rel=1e-4)


def test_the_gaussian_distance_of_a_set_from_itself_is_nothing():
  x = normal(0, 300, 5.0, 384)
  value, _ = kernel_distance.gaussian_distance(x, x.copy(), MESH)
  assert abs(value) < 1e-6
  # Nor does a small one drown in what float32 rounds, of numbers about 1.
  y = normal(1, 300, 5.0, 384)
  value, _ = kernel_distance.gaussian_distance(x, y, MESH)
  assert value == pytest.approx(cmmd(x, y), rel=1e-3)
  assert value < 0.01


def test_the_devices_change_no_gaussian_distance():
  x, y = normal(0, 90, 0.3), normal(1, 50)
  one = sharding.make_mesh(
    sharding.MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]
  )
  assert kernel_distance.gaussian_distance(x, y, one) == pytest.approx(
    kernel_distance.gaussian_distance(x, y, MESH), rel=1e-5
  )


def test_the_error_of_the_gaussian_distance_is_its_spread():
  pairs = [
    kernel_distance.gaussian_distance(
      normal(i, 60, 0.6), normal(1000 + i, 40), MESH
    )
    for i in range(30)
  ]
  values, errors = np.array(pairs).T
  assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.4)


def test_a_feature_without_direction_is_refused():
  x = normal(0, 9)
  x[3] = 0
  with pytest.raises(ValueError, match="a feature is zero"):
    kernel_distance.gaussian_distance(x, normal(1, 9), MESH)
