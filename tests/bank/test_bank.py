import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gmem_jax.bank import bank


@pytest.fixture
def rows():
  return np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)


def test_snippets_are_unit_rows(rows):
  memory = bank.MemoryBank(rows=jnp.asarray(rows))
  index = jnp.array([3, 0, 49, 3])
  found = jax.jit(bank.snippets)(memory, index)
  expected = rows[[3, 0, 49, 3]]
  expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_normalise_keeps_zero_and_computes_in_float32():
  zero = bank.normalise(jnp.zeros((1, 4)))
  np.testing.assert_array_equal(zero, np.zeros((1, 4)))
  assert bank.normalise(jnp.ones((1, 4), jnp.bfloat16)).dtype == jnp.float32


def test_info_identifies_the_rows(rows):
  info = bank.make_info(
    bank.MemoryBank(jnp.asarray(rows)), encoder="e", source="s"
  )
  assert (info.size, info.width, info.parent) == (50, 16, "")
  assert info.digest == hashlib.sha256(rows.tobytes()).hexdigest()


def test_a_bank_with_nan_is_refused(rows):
  rows[7, 2] = np.nan
  with pytest.raises(ValueError, match=r"rows \[7\]"):
    bank.make_info(bank.MemoryBank(jnp.asarray(rows)), encoder="", source="")


def test_rows_outside_are_named():
  bank.check_rows(np.array([0, 9]), 10, "sample.rows")
  with pytest.raises(ValueError, match=r"sample\.rows.*\[-1, 10\]"):
    bank.check_rows(np.array([0, -1, 10]), 10, "sample.rows")


def test_draw_depends_on_seed_and_image_alone():
  images = jnp.arange(1000)
  rows = bank.draw_rows(3, images, 50)
  np.testing.assert_array_equal(
    rows[jnp.array([17, 400])], bank.draw_rows(3, jnp.array([17, 400]), 50)
  )
  assert not (rows == bank.draw_rows(4, images, 50)).all()


def test_draw_is_uniform():
  counts = np.bincount(bank.draw_rows(0, jnp.arange(5000), 50), minlength=50)
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
  expected = golden["sel_idx"]
  uniform = golden["sel_uniform"][:, 0].astype(np.float64)
  for tensor, count in ((noise, len(noise)), (constant, len(constant))):
    actual = bank.select_row(jnp.asarray(tensor), frequencies)
    # float32 decides on either side of a boundary; a uniform of exactly 1 is
    # out of the published code's range.
    gap = np.abs(uniform[:, None] - golden["sel_cumulative"][None]).min(axis=1)
    clear = (gap[:count] > 1e-6) | (uniform[:count] == 0)
    assert clear.sum() > count // 2
    np.testing.assert_array_equal(actual[clear], expected[:count][clear])
    assert np.all(actual < len(frequencies))


def test_rows_are_drawn_by_frequency():
  frequencies = np.array([0, 3, 0, 1, 6, 0])
  noise = jax.random.normal(jax.random.key(0), (20_000, 3, 3, 2))
  rows = bank.select_row(noise, frequencies)
  shares = np.bincount(rows, minlength=6) / len(rows)
  np.testing.assert_allclose(shares, frequencies / 10, atol=0.02)
  assert set(np.unique(rows)) == {1, 3, 4}


@pytest.mark.parametrize(("value", "row"), [(-9.0, 1), (9.0, 4)])
def test_extreme_noise_selects_a_row_that_occurred(value, row):
  noise = jnp.full((1, 2, 2, 1), value)
  rows = bank.select_row(noise, np.array([0, 3, 0, 1, 6, 0]))
  assert rows.tolist() == [row]
