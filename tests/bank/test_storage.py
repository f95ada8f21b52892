"""Storage forms: what they keep, what they lose, what they refuse."""

import ml_dtypes
import numpy as np
import pytest

from gmem_jax.bank import bank as bank_lib, storage


@pytest.fixture
def rows():
  random = np.random.default_rng(0)
  sizes = np.exp(2 * random.normal(size=(100, 1)))
  return (sizes * random.normal(size=(100, 24))).astype(np.float32)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "int8"])
def test_decoding_and_reading_agree(rows, name):
  bank = storage.encode(rows, name)
  assert (bank.storage, bank.size, bank.width) == (name, 100, 24)
  decoded = bank_lib.decode(bank)
  index = np.array([5, 0, 99, 5])
  np.testing.assert_array_equal(bank_lib.features(bank, index), decoded[index])
  units = bank_lib.snippets(bank, index)
  np.testing.assert_allclose(np.linalg.norm(units, axis=1), 1, rtol=1e-6)


def test_float32_is_exact_and_bfloat16_rounds(rows):
  assert storage.encode(rows, "float32").rows is rows
  half = bank_lib.decode(storage.encode(rows, "bfloat16"))
  np.testing.assert_array_equal(half, rows.astype(ml_dtypes.bfloat16))


def test_int8_errs_by_half_a_scale_and_tells_the_residual(rows):
  bank = storage.encode(rows, "int8")
  lost = rows - bank_lib.decode(bank)
  assert (np.abs(lost) <= bank.scales[:, None] * 0.5001).all()
  np.testing.assert_allclose(
    bank.residuals, np.linalg.norm(lost, axis=1), rtol=1e-4
  )
  # Each row has its own scale: small rows are as exact as large ones.
  relative = bank.residuals / np.linalg.norm(rows, axis=1)
  assert relative.max() < 0.01
  assert np.abs(bank.rows).max(axis=1).tolist() == [127] * 100


def test_int8_of_tiny_rows_stays_finite():
  tiny = np.full((1, 4), 1e-40, np.float32)
  decoded = bank_lib.decode(storage.encode(tiny, "int8"))
  assert np.isfinite(decoded).all()


@pytest.mark.parametrize("size", [100, 20])
def test_low_rank_is_the_best_approximation(rows, size):
  rows = rows[:size]
  bank = storage.low_rank(rows, 5)
  assert (bank.size, bank.width, bank.rank) == (size, 24, 5)
  centred = rows - rows.mean(axis=0)[None]
  u, s, v = np.linalg.svd(centred.astype(np.float64), full_matrices=False)
  best = (u[:, :5] * s[None, :5]) @ v[:5] + rows.mean(axis=0)[None]
  np.testing.assert_allclose(
    bank_lib.decode(bank), best, atol=1e-5 * np.abs(rows).max()
  )
  np.testing.assert_allclose(bank.singular_values, s[:5], rtol=1e-5)
  index = np.array([3, size - 1])
  np.testing.assert_allclose(
    bank_lib.features(bank, index), bank_lib.decode(bank)[index], rtol=1e-4,
    atol=1e-4,
  )  # fmt: skip


def test_a_row_of_a_low_rank_bank_projects_onto_itself(rows):
  bank = storage.low_rank(rows, 5)
  again = storage.like(bank_lib.decode(bank), bank)
  np.testing.assert_allclose(
    bank_lib.decode(again), bank_lib.decode(bank), atol=1e-3
  )


def test_a_rank_that_the_rows_do_not_span_is_refused(rows):
  flat = rows[:, :1] * np.ones((1, 8), np.float32) + np.float32(1)
  with pytest.raises(ValueError, match=r"rank=2.*span 1 "):
    storage.low_rank(flat, 2)
  with pytest.raises(ValueError, match="rank=0"):
    storage.low_rank(rows, 0)


def test_error_is_measured(rows):
  off = rows.copy()
  off[3] = -rows[3]
  lost = storage.error(rows, off)
  norms = np.linalg.norm(rows, axis=1)
  wanted = 2 * norms[3] / np.sqrt((norms**2).sum())
  assert lost.relative == pytest.approx(wanted, rel=1e-5)
  assert lost.worst_cosine == pytest.approx(-1)
  assert lost.mean_cosine == pytest.approx(0.98)
