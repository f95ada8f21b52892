"""Published banks: rows, appended rows, interpolated rows, low rank."""

import numpy as np
import pytest

from gmem_jax.bank import bank as bank_lib, edit, storage
from gmem_jax.files.torch_reader import torch_file

pytestmark = pytest.mark.golden

TOLERANCE = 1e-4


def _close(actual, expected):
  error = np.abs(np.asarray(actual) - expected).max()
  assert error <= TOLERANCE * np.abs(expected).max(), error


@pytest.fixture(scope="module")
def golden(golden_dir):
  with np.load(golden_dir / "bank.npz", allow_pickle=False) as file:
    return {key: file[key] for key in file.files}


@pytest.fixture(scope="module")
def full(golden_dir):
  return bank_lib.MemoryBank(
    np.array(torch_file.load(golden_dir / "bank_full.pth"))
  )


@pytest.fixture(scope="module")
def low(golden_dir):
  held = torch_file.load(golden_dir / "bank_dmd.pth")
  return bank_lib.LowRankBank(
    *(np.array(held[n]) for n in ("C", "M", "S", "mean"))
  )


def _info(bank):
  return bank_lib.make_info(bank, encoder="", source="golden")


def _rows(index, bank):
  """Their negative indices count from the end; ours are refused."""
  return np.where(index < 0, index + bank.size, index)


@pytest.mark.parametrize("name", ["full", "dmd"])
def test_rows(golden, full, low, name):
  bank = full if name == "full" else low
  for key, wanted in (("idx", "get"), ("idx_tensor", "get_tensor")):
    rows = _rows(golden[key], bank)
    _close(bank_lib.features(bank, rows), golden[f"{name}_{wanted}"])
    _close(bank_lib.decode(bank)[rows], golden[f"{name}_{wanted}"])


def test_snippets_are_normalised_at_the_call(golden, full):
  rows = _rows(golden["idx_tensor"], full)
  _close(bank_lib.snippets(full, rows), golden["selected_normalised"])


def test_the_full_bank_grows_as_published(golden, full):
  found = edit.append(full, _info(full), golden["snippet"][None])
  assert found.bank.size == golden["full_len_after_exact"]
  last = bank_lib.decode(found.bank)[-1]
  np.testing.assert_array_equal(last, golden["full_add_exact"])
  np.testing.assert_array_equal(last, golden["full_get_exact"])
  bank, info = found.bank, found.info
  for n, (first, second, weight) in enumerate(golden["pairs"]):
    rows = _rows(np.array([first, second]).astype(int), full)
    found = edit.interpolate(bank, info, *map(int, rows), np.array([weight]))
    bank, info = found.bank, found.info
    made = bank_lib.decode(bank)[-1]
    _close(made, golden["full_get_interpolated"][n])
    _close(made, golden["full_add_interpolated"][n])
  assert len(golden["pairs"])
  assert bank.size == golden["full_len_after_all"]
  np.testing.assert_array_equal(bank.rows[: full.size], full.rows)


def test_the_low_rank_bank_grows_as_published(golden, full, low):
  bank, info = low, _info(low)
  for row, wanted in (
    (golden["snippet"], "dmd_add_exact"),
    (full.rows[0], "dmd_add_exact_row0"),
  ):
    found = edit.append(bank, info, row[None])
    bank, info = found.bank, found.info
    _close(bank_lib.decode(bank)[-1], golden[wanted])
  for n, (first, second, weight) in enumerate(golden["pairs"]):
    rows = _rows(np.array([first, second]).astype(int), low)
    found = edit.interpolate(bank, info, *map(int, rows), np.array([weight]))
    bank, info = found.bank, found.info
    # The published bank gave the coefficients; what they decode to is meant.
    _close(bank.coefficients[-1], golden["dmd_get_interpolated_latent"][n])
    made = bank_lib.decode(bank)[-1]
    _close(made, golden["dmd_get_interpolated_decoded"][n])
    _close(made, golden["dmd_add_interpolated"][n])
  assert len(golden["pairs"])
  assert bank.size == golden["dmd_len_after_all"]
  appended = golden["dmd_appended_C"]
  _close(bank.coefficients[-len(appended) :], appended)


def test_low_rank_of_the_full_bank_is_the_published_one(golden, full, low):
  made = storage.low_rank(full.rows, low.rank)
  _close(made.singular_values, golden["dmd_S"])
  _close(made.mean, low.mean)
  # Directions have arbitrary signs: rows are compared.
  _close(bank_lib.decode(made), bank_lib.decode(low))
  centred = full.rows - full.rows.mean(axis=0, dtype=np.float64)[None]
  lost = storage.error(
    centred.astype(np.float32),
    (bank_lib.decode(made) - made.mean[None]),
  )
  wanted = float(golden["dmd_reconstruction_rel_error"])
  assert lost.relative == pytest.approx(wanted, rel=TOLERANCE)
