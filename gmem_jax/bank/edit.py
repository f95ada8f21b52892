"""New banks from old ones; no bank ever changes.

Every edit returns a new bank that names its parent by digest, and the parent's
row of each of its rows, so that what is kept beside the rows (image names,
frequencies) can follow.

Every function takes a bank on the host with its description.

Shapes: m bank rows, d feature width, n new rows.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from gmem_jax.bank import (
  bank as bank_lib,
  interpolate as interpolate_lib,
  lookup,
  storage,
)
from gmem_jax.config import networks, sections

# Rows that `deduplicate` compares at a time.
BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Edited:
  """A new bank.

  Attributes:
    bank: The bank, on the host.
    info: Its description; `parent` is the old bank's digest.
    origin: [m] the parent's row that each row was, -1 for a new one.
  """

  bank: bank_lib.Bank
  info: bank_lib.BankInfo
  origin: Int[np.ndarray, " m"]


def append(
  bank: bank_lib.Bank,
  info: bank_lib.BankInfo,
  features: Float[np.ndarray, "n d"],
  source: str = "",
) -> Edited:
  """Adds raw features at the end, stored as the other rows are.

  Raises:
    ValueError: If there are none, their width differs, or one is zero or not
      finite.
  """
  bank_lib.check_features(features, "features")
  if features.shape[1] != bank.width:
    raise ValueError(
      f"features of width {features.shape[1]} do not fit a bank of width"
      f" {bank.width}"
    )
  added: Any = storage.like(features, bank)
  if isinstance(bank, bank_lib.LowRankBank):
    # Only the coefficients are by row; the directions stay the parent's.
    coefficients = np.concatenate([bank.coefficients, added.coefficients])
    new = dataclasses.replace(bank, coefficients=coefficients)
  else:
    new = jax.tree.map(
      lambda a, b: np.concatenate([a, b]), bank_lib.on_host(bank), added
    )
  origin = np.r_[np.arange(bank.size), np.full(len(features), -1)]
  edit = f"append {len(features)} rows" + (source and f" of {source}")
  return _edited(new, info, origin, edit)


def interpolate(
  bank: bank_lib.Bank,
  info: bank_lib.BankInfo,
  first: int,
  second: int,
  weights: Float[np.ndarray, " n"],
  *,
  method: sections.Interpolation = "linear",
  key: Key[Array, ""] | None = None,
) -> Edited:
  """Adds memories between two rows at the end.

  `weights` are the first row's, in [0, 1], one for each new memory. For the
  methods see `interpolate.mix`; "mask" needs a random key.

  Raises:
    ValueError: On a row outside of the bank, a weight outside of [0, 1], or a
      mask without key.
  """
  bank_lib.check_rows(np.array([first, second]), bank.size, "interpolate")
  if not len(weights) or not ((weights >= 0) & (weights <= 1)).all():
    raise ValueError(
      f"interpolate: weights {weights.tolist()} must be in [0, 1], at least one"
    )
  a, b = map(jnp.asarray, bank_lib.features(bank, np.array([first, second])))
  # The weight is the first row's, as in the published banks. Positions are
  # counted from it, as in the published manipulation of snippets.
  alphas = jnp.asarray(1 - weights, a.dtype)
  new = append(
    bank, info, np.asarray(interpolate_lib.mix(method, a, b, alphas, key))
  )
  edit = f"interpolate rows {first} and {second}, {method}, {len(weights)} rows"
  return dataclasses.replace(new, info=dataclasses.replace(new.info, edit=edit))


def remove(
  bank: bank_lib.Bank, info: bank_lib.BankInfo, rows: Int[np.ndarray, " n"]
) -> Edited:
  """Takes rows out; those after them move up.

  A row may be named twice.

  Raises:
    ValueError: On a row outside of the bank, or if none would remain.
  """
  bank_lib.check_rows(rows, bank.size, "remove")
  keep = np.ones(bank.size, bool)
  keep[rows] = False
  if not keep.any():
    raise ValueError("remove: no row would remain")
  return _keep(bank, info, keep, f"remove {int((~keep).sum())} rows")


def deduplicate(
  bank: bank_lib.Bank,
  info: bank_lib.BankInfo,
  threshold: float | None = None,
  on_rows: Callable[[int], Any] = lambda n: None,
) -> Edited:
  """Takes out rows that repeat one that stays.

  Row by row: a row goes if its cosine with an earlier row that stays is at
  least the threshold.

  Without a threshold stored rows are compared bit for bit. `on_rows` is called
  with the number of rows done since its last call.

  Raises:
    ValueError: If the threshold is out of range.
  """
  if threshold is None:
    keep, edit = _first_of_equals(bank), "deduplicate equal rows"
    on_rows(bank.size)
  elif 0 < threshold <= 1:
    # Rows that are equal repeat each other, whatever rounding makes of that.
    keep = _first_of_equals(bank)
    keep &= _apart(bank_lib.decode(bank), threshold, on_rows)
    edit = f"deduplicate at cosine {threshold:g}"
  else:
    raise ValueError(f"deduplicate: threshold={threshold} must be in (0, 1]")
  return _keep(bank, info, keep, f"{edit}, {int((~keep).sum())} rows removed")


def _first_of_equals(bank: bank_lib.Bank) -> Bool[np.ndarray, " m"]:
  """Whether each row, as stored, is the first of its kind."""
  if isinstance(bank, bank_lib.LowRankBank):
    arrays = [np.asarray(bank.coefficients)]
  else:
    arrays = jax.tree.leaves(bank_lib.on_host(bank))
  # Digests instead of rows: a set of 1.28 million rows would be a second bank.
  seen, keep = set(), np.zeros(bank.size, bool)
  for i in range(bank.size):
    row = hashlib.blake2b(digest_size=16)
    for array in arrays:
      row.update(array[i].tobytes())
    keep[i] = row.digest() not in seen
    seen.add(row.digest())
  return keep


def _apart(
  rows: Float[np.ndarray, "m d"],
  threshold: float,
  on_rows: Callable[[int], Any],
) -> Bool[np.ndarray, " m"]:
  """Whether each row repeats no earlier row that stays."""
  size, batch = len(rows), min(BATCH, len(rows))
  # Rounding leaves the cosine of parallel rows a little below 1, or above; by
  # 1.6e-6 at most among 1,600 rows of width 768.
  threshold = min(threshold, 1 - 4e-6)
  units = np.asarray(bank_lib.normalise(rows))
  keep = np.zeros(size, bool)
  # The rows that stay, in their places among zeros: a zero row's cosine is
  # below every threshold. So the table keeps its shape, and is compiled once.
  stay = jnp.zeros((-(-size // batch) * batch, rows.shape[1]))

  @jax.jit
  def nearest(block, stay):
    return lookup.nearest(block, bank_lib.MemoryBank(stay), 1)[0][:, 0]

  put = jax.jit(
    lambda stay, block, at: jax.lax.dynamic_update_slice(stay, block, (at, 0)),
    donate_argnums=0,
  )
  for start in range(0, size, batch):
    part = units[start : start + batch]
    block = np.pad(part, ((0, batch - len(part)), (0, 0)))
    apart = np.asarray(nearest(block, stay)) < threshold
    close = block @ block.T >= threshold
    # In order, as only a row that stays removes others.
    for i in range(len(part)):
      if apart[i]:
        apart[i + 1 :] &= ~close[i, i + 1 :]
    keep[start : start + len(part)] = apart[: len(part)]
    stay = put(stay, np.where(apart[:, None], block, 0), start)
    on_rows(len(part))
  return keep


def compress(
  bank: bank_lib.Bank,
  info: bank_lib.BankInfo,
  target: networks.Storage | None = None,
  *,
  rank: int | None = None,
) -> Edited:
  """Stores full rows in less memory, or keeps `rank` directions of them.

  `storage.error` measures what is lost.

  Raises:
    ValueError: If not exactly one is given, or the rank is out of range.
  """
  rows = bank_lib.decode(bank)
  if (target is None) == (rank is None):
    raise ValueError("compress: give either a storage or a rank")
  if rank is not None:
    new: bank_lib.Bank = storage.low_rank(rows, rank)
  else:
    assert target is not None
    new = storage.encode(rows, target)
  return _edited(new, info, np.arange(bank.size), f"store as {new.storage}")


def _keep(bank, info, keep, edit) -> Edited:
  """The bank of the rows that stay."""
  if isinstance(bank, bank_lib.LowRankBank):
    coefficients = np.asarray(bank.coefficients)[keep]
    new = dataclasses.replace(bank, coefficients=coefficients)
  else:
    new = jax.tree.map(lambda x: x[keep], bank_lib.on_host(bank))
  return _edited(new, info, np.flatnonzero(keep), edit)


def _edited(bank, info, origin, edit) -> Edited:
  """A new bank with its description."""
  # Also what an edit computes can be no memory: opposite rows mix to zero.
  bank_lib.check_bank(bank)
  new = dataclasses.replace(
    info,
    size=bank.size,
    digest=bank_lib.digest(bank),
    parent=info.digest,
    edit=edit,
  )
  return Edited(bank, new, origin)
