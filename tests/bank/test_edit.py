"""Edits make new banks that name their parent; bad ones are refused."""

import dataclasses

import jax
import numpy as np
import pytest

from gmem_jax.bank import bank as bank_lib, edit, storage

SIZE, WIDTH = 40, 12
FORMS = ("float32", "bfloat16", "int8", "rank")


@pytest.fixture(scope="module")
def rows():
  random = np.random.default_rng(1)
  return random.normal(size=(SIZE, WIDTH)).astype(np.float32)


def _bank(rows, form):
  if form == "rank":
    bank = storage.low_rank(rows, 6)
  else:
    bank = storage.encode(rows, form)
  return bank, bank_lib.make_info(bank, encoder="e", source="s", crop="c")


def _check(found, old, info):
  assert found.info.parent == info.digest
  assert found.info.digest == bank_lib.digest(found.bank) != info.digest
  assert found.info.size == found.bank.size == len(found.origin)
  assert found.info.edit
  for name in ("encoder", "source", "crop", "width"):
    assert getattr(found.info, name) == getattr(info, name)
  kept = found.origin >= 0
  np.testing.assert_array_equal(
    bank_lib.decode(found.bank)[kept], bank_lib.decode(old)[found.origin[kept]]
  )


@pytest.mark.parametrize("form", FORMS)
def test_append_keeps_the_rows_and_their_storage(rows, form):
  bank, info = _bank(rows, form)
  before = jax.tree.map(np.copy, bank)
  found = edit.append(bank, info, rows[:3] * 2, "x")
  _check(found, bank, info)
  assert found.bank.storage == bank.storage
  assert found.origin.tolist() == [*range(SIZE), -1, -1, -1]
  assert found.info.edit == "append 3 rows of x"
  if form != "rank":
    np.testing.assert_allclose(
      bank_lib.decode(found.bank)[SIZE:], rows[:3] * 2, atol=0.05
    )
  for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(bank), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_remove(rows, form):
  bank, info = _bank(rows, form)
  found = edit.remove(bank, info, np.array([0, 7, 7, 39]))
  _check(found, bank, info)
  assert found.origin.tolist() == [*range(1, 7), *range(8, 39)]


@pytest.mark.parametrize("method", ["linear", "spherical", "concat", "mask"])
def test_interpolation_weighs_the_first_row(rows, method):
  bank, info = _bank(rows, "float32")
  weights = np.array([1.0, 0.25, 0.0])
  key = jax.random.key(0)
  found = edit.interpolate(bank, info, 3, 9, weights, method=method, key=key)
  _check(found, bank, info)
  made, a, b = found.bank.rows[SIZE:], rows[3], rows[9]
  assert len(made) == 3
  if method in ("linear", "spherical"):
    np.testing.assert_allclose(made[0], a, atol=1e-5)
    np.testing.assert_allclose(made[2], b, atol=1e-5)
  if method == "linear":
    np.testing.assert_allclose(made[1], 0.25 * a + 0.75 * b, atol=1e-6)
  elif method == "spherical":
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    angle = np.arccos(cosine(a, b))
    assert np.arccos(cosine(made[1], b)) == pytest.approx(angle / 4, rel=1e-3)
  elif method == "concat":
    np.testing.assert_array_equal(made[1], np.r_[a[:6], b[6:]])
  else:
    assert ((made == a[None]) | (made == b[None])).all()


def test_equal_rows_leave_their_first(rows):
  again = np.concatenate([rows, rows[[4, 0, 4]], rows[[1]] * 2])
  for form in ("float32", "bfloat16", "int8"):
    bank, info = _bank(again, form)
    found = edit.deduplicate(bank, info)
    _check(found, bank, info)
    assert found.origin.tolist() == [*range(SIZE), SIZE + 3]


def _greedy(rows, threshold):
  units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  keep = []
  for i in range(len(rows)):
    if not keep or (units[keep] @ units[i]).max() < threshold:
      keep.append(i)
  return keep


@pytest.mark.parametrize("batch", [7, 1024])
def test_repetitions_go_row_by_row(monkeypatch, batch):
  """Clusters larger than the first look-up, over several batches."""
  monkeypatch.setattr(edit, "BATCH", batch)
  random = np.random.default_rng(0)
  centres = random.normal(size=(4, WIDTH))
  rows = centres[random.integers(0, 4, 90)] + 0.15 * random.normal(
    size=(90, WIDTH)
  )
  rows = rows.astype(np.float32)
  bank, info = _bank(rows, "float32")
  done = []
  for threshold in (0.5, 0.97):
    found = edit.deduplicate(bank, info, threshold, done.append)
    _check(found, bank, info)
    wanted = _greedy(rows, threshold)
    assert 4 <= len(wanted) < 90
    assert found.origin.tolist() == wanted
  assert sum(done) == 180


@pytest.mark.parametrize("form", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [300, 1024])
def test_a_threshold_of_1_finds_every_copy(monkeypatch, form, batch):
  """Also those whose cosine is rounded to below 1; what is near stays."""
  monkeypatch.setattr(edit, "BATCH", batch)
  random = np.random.default_rng(0)
  rows = random.normal(size=(800, 768)).astype(np.float32)
  # A cosine of about 1 - 5e-5, which bfloat16 keeps apart.
  near = rows[:20] + 0.01 * random.normal(size=(20, 768)).astype(np.float32)
  copies = np.concatenate([rows, np.float32(4) * rows])
  bank, info = _bank(np.concatenate([rows, near, copies]), form)
  found = edit.deduplicate(bank, info, 1.0)
  assert found.origin.tolist() == list(range(820))
  _check(found, bank, info)


def test_copies_go_also_where_rounding_hides_them(monkeypatch, rows):
  """Were the cosine of a row and its copy far too low."""
  monkeypatch.setattr(edit, "_apart", lambda rows, *_: np.ones(len(rows), bool))
  bank, info = _bank(np.concatenate([rows, rows]), "int8")
  found = edit.deduplicate(bank, info, 0.98)
  assert found.origin.tolist() == list(range(SIZE))


@pytest.mark.parametrize("target", ["bfloat16", "int8", 5])
def test_compress(rows, target):
  bank, info = _bank(rows, "float32")
  if isinstance(target, int):
    found = edit.compress(bank, info, rank=target)
  else:
    found = edit.compress(bank, info, target)
  assert found.info.parent == info.digest
  assert found.info.edit == f"store as {found.bank.storage}"
  assert found.bank.size == SIZE
  back = edit.compress(found.bank, found.info, "float32")
  np.testing.assert_array_equal(back.bank.rows, bank_lib.decode(found.bank))


def _nan(rows):
  rows = rows.copy()
  rows[2, 1] = np.nan
  return rows


REFUSED = {
  "append NaN": (lambda b, i, r: edit.append(b, i, _nan(r)), r"rows \[2\]"),
  "append zero": (
    lambda b, i, r: edit.append(b, i, r * (np.arange(SIZE) != 5)[:, None]),
    r"rows \[5\] are zero",
  ),
  "append nothing": (lambda b, i, r: edit.append(b, i, r[:0]), "no rows"),
  "append wide": (lambda b, i, r: edit.append(b, i, r[:, :8]), "width 8"),
  "row outside": (
    lambda b, i, r: edit.interpolate(b, i, 0, SIZE, np.array([0.5])),
    rf"\[{SIZE}\] are not in",
  ),
  "weight outside": (
    lambda b, i, r: edit.interpolate(b, i, 0, 1, np.array([1.5])), r"1\.5",
  ),
  "mask without key": (
    lambda b, i, r: edit.interpolate(
      b, i, 0, 1, np.array([0.5]), method="mask"
    ),
    "key",
  ),
  "remove outside": (
    lambda b, i, r: edit.remove(b, i, np.array([-1])), r"\[-1\] are not in",
  ),
  "remove all": (
    lambda b, i, r: edit.remove(b, i, np.arange(SIZE)), "no row would remain",
  ),
  "threshold": (lambda b, i, r: edit.deduplicate(b, i, 1.5), r"1\.5"),
  "two storages": (
    lambda b, i, r: edit.compress(b, i, "int8", rank=3), "either",
  ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_edits_are_refused_by_name(rows, case):
  function, message = REFUSED[case]
  dtype_kept = lambda x: x.astype(np.float32)  # noqa: E731
  bank, info = _bank(dtype_kept(rows), "float32")
  with pytest.raises(ValueError, match=message):
    function(bank, info, rows)


def test_a_bank_of_another_encoder_is_refused(rows):
  _, info = _bank(rows, "float32")
  bank_lib.check_encoder(info, "e", "key")
  bank_lib.check_encoder(dataclasses.replace(info, encoder=""), "f", "key")
  with pytest.raises(ValueError, match=r"key: it is f, .* made by e"):
    bank_lib.check_encoder(info, "f", "key")


def test_empty_and_zero_banks_are_refused(rows):
  for bad, message in (
    (rows[:0], "holds no rows"),
    (rows * np.float32(0), r"rows \[0, 1.*32 more are zero"),
  ):
    with pytest.raises(ValueError, match=message):
      bank_lib.make_info(
        bank_lib.MemoryBank(bad.astype(np.float32)), encoder="", source=""
      )
