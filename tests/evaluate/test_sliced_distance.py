"""The sliced distance beside its definition, and its standard error."""

import jax
import numpy as np
import pytest

from gmem_jax.evaluate import sliced_distance
from gmem_jax.parallel import sharding

MESH = sharding.make_mesh(sharding.MeshConfig(data=-1, fsdp=1, tensor=1))


def normal(seed, n, shift=0.0, width=16):
  random = np.random.default_rng(seed)
  return (random.normal(size=(n, width)) + shift).astype(np.float32)


def measure(x, y, mesh=MESH):
  return sliced_distance.sliced_distance(x, y, mesh)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_it_is_what_is_defined(shift):
  x, y = normal(0, 57, shift), normal(1, 57)
  directions = sliced_distance._directions(16, 1).astype(np.float64)
  assert directions.shape == (1000, 16)
  np.testing.assert_allclose((directions**2).sum(axis=1), 1, rtol=1e-6)
  a, b = (np.sort(directions @ z.T, axis=1) for z in (x, y))
  value, error = measure(x, y)
  assert value == pytest.approx(3 * 16 * ((a - b) ** 2).mean(), rel=1e-5)
  assert error > 0


def test_two_gaussians_apart():
  """Along a direction u the means differ by u · shift: 3 |shift|² in all."""
  value, error = measure(normal(0, 3000, 1.5), normal(1, 3000))
  assert value == pytest.approx(3 * 16 * 1.5**2, rel=0.1)
  assert error < 0.05 * value


def test_a_larger_set_gives_as_many_as_the_smaller():
  x, y = normal(0, 90, 0.3), normal(1, 30)
  assert measure(x, y)[0] == pytest.approx(measure(x[::3], y)[0], rel=1e-6)
  assert measure(y, x)[0] == pytest.approx(measure(x, y)[0], rel=1e-6)


def test_a_set_is_at_no_distance_from_itself():
  x = normal(0, 40)
  assert measure(x, x[::-1].copy())[0] == pytest.approx(0, abs=1e-9)


def test_the_devices_change_nothing():
  x, y = normal(0, 90, 0.3), normal(1, 90)
  one = sharding.make_mesh(
    sharding.MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1]
  )
  assert measure(x, y, one) == pytest.approx(measure(x, y), rel=1e-6)


def test_the_error_is_the_spread_of_the_distance():
  """Over other sets of the same two distributions."""
  pairs = [measure(normal(i, 60, 0.6), normal(1000 + i, 60)) for i in range(30)]
  values, errors = np.array(pairs).T
  assert errors.mean() == pytest.approx(values.std(ddof=1), rel=0.4)


@pytest.mark.parametrize(
  ("x", "y", "message"),
  [
    (normal(0, 19), normal(1, 30), "of 19 samples: at least 20"),
    (normal(0, 30), normal(1, 19), "of 19 real images: at least 20"),
    (normal(0, 30), normal(1, 30, width=8), "widths differ"),
  ],
)
def test_what_would_mean_nothing_is_refused(x, y, message):
  with pytest.raises(ValueError, match=message):
    measure(x, y)
