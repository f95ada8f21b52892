import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.sample import draw_rows


def test_draw_depends_on_seed_and_image_alone():
  images = jnp.arange(1000)
  rows = draw_rows.draw_rows(3, images, 50)
  np.testing.assert_array_equal(
    rows[jnp.array([17, 400])], draw_rows.draw_rows(3, jnp.array([17, 400]), 50)
  )
  assert not (rows == draw_rows.draw_rows(4, images, 50)).all()


def test_draw_is_uniform():
  counts = np.bincount(
    draw_rows.draw_rows(0, jnp.arange(5000), 50), minlength=50
  )
  # Chi-square with 49 degrees of freedom: 99.99 % lie below 97.
  assert ((counts - 100) ** 2 / 100).sum() < 97


def _load(golden_dir):
  with np.load(golden_dir / "sit_tiny.npz", allow_pickle=False) as file:
    return {key: file[key] for key in file.files if key.startswith("sel_")}


@pytest.mark.golden
def test_published_picks(golden_dir):
  golden = _load(golden_dir)
  frequencies = golden["sel_freq"]
  noise = np.moveaxis(golden["sel_noise_first8"], 1, -1)
  # Of the others the file keeps the mean alone, which is all that counts.
  means = golden["sel_noise_mean"][:, None, None, None]
  constant = np.broadcast_to(means, (len(means), *noise.shape[1:]))
  # A uniform number of exactly 1 is out of the published code's range.
  expected = np.minimum(golden["sel_idx"], len(frequencies) - 1)
  assert (golden["sel_idx"] == len(frequencies)).sum() == 1
  for tensor, count in ((noise, len(noise)), (constant, len(constant))):
    actual = draw_rows.select_row(tensor, frequencies)
    np.testing.assert_array_equal(actual, expected[:count])


def test_a_row_of_the_published_bank_is_found_exactly():
  """640,000 rows, whose cumulative frequencies float32 cannot hold."""
  random = np.random.default_rng(0)
  frequencies = random.integers(0, 5, 640_000)
  normal = random.standard_normal(4000).astype(np.float32)
  rows = draw_rows.select_row(normal[:, None, None, None], frequencies)
  erf = np.float32([math.erf(x / np.float32(2**0.5)) for x in normal])
  # In integers, which round nothing: a uniform number is a multiple of 2^-25.
  numerators = (np.float64(0.5 * (1 + erf)) * 2**25).astype(np.int64)
  found = np.cumsum(frequencies) * 2**25
  total = int(frequencies.sum())
  expected = np.searchsorted(found, numerators * total, side="right")
  np.testing.assert_array_equal(rows, expected)


def test_rows_are_drawn_by_frequency():
  frequencies = np.array([0, 3, 0, 1, 6, 0])
  noise = jax.random.normal(jax.random.key(0), (20_000, 3, 3, 2))
  rows = draw_rows.select_row(noise, frequencies)
  shares = np.bincount(rows, minlength=6) / len(rows)
  np.testing.assert_allclose(shares, frequencies / 10, atol=0.02)
  assert set(np.unique(rows)) == {1, 3, 4}


@pytest.mark.parametrize(("value", "row"), [(-9.0, 1), (9.0, 4)])
def test_extreme_noise_selects_a_row_that_occurred(value, row):
  noise = jnp.full((1, 2, 2, 1), value)
  rows = draw_rows.select_row(noise, np.array([0, 3, 0, 1, 6, 0]))
  assert rows.tolist() == [row]
