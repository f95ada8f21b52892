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
