"""New banks from old ones; no bank ever changes.

Every edit returns a new bank that names its parent by digest, and which row of
the parent each of its rows was, so that what is kept beside the rows (image
names, frequencies) can follow.

Shapes: m bank rows, d feature width, n new rows.
"""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from gmem_jax.bank import (
  bank as bank_lib,
  interpolate as paths,
  lookup,
  storage,
)
from gmem_jax.config import networks, sections

# Rows whose neighbours are looked up at a time.
BATCH = 1024


@dataclasses.dataclass(frozen=True)
class Edited:
  """A new bank.

  Attributes:
    bank: The bank, on the host.
    info: Its description; `parent` is the old bank's digest.
    origin: [m] the row of the parent that each row was, -1 for a new one.
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
  """Adds memories at the end; the others keep their rows.

  Args:
    bank: The bank, on the host.
    info: Its description.
    features: Raw features by the bank's encoder.
    source: Where they come from.

  Returns:
    The new bank, stored as the old one is.

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
  origin = np.r_[np.arange(bank.size), np.full(len(features), -1)]
  edit = f"append {len(features)} rows" + (source and f" of {source}")
  if isinstance(bank, bank_lib.LowRankBank):
    coefficients = np.concatenate([bank.coefficients, added.coefficients])
    new = dataclasses.replace(bank, coefficients=coefficients)
  else:
    new = jax.tree.map(
      lambda a, b: np.concatenate([a, b]), bank_lib.on_host(bank), added
    )
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
  """Adds memories between two rows.

  Args:
    bank: The bank, on the host.
    info: Its description.
    first: A row.
    second: Another.
    weights: Of the first row, in [0, 1]; 1 is the first row itself. As many
      rows are added. "concat" and "mask" count them and use no weight.
    method: How to mix. "spherical" follows the arc, and mixes the norms.
    key: A random key, for "mask".

  Returns:
    The new bank.

  Raises:
    ValueError: On a row outside of the bank, a weight outside of [0, 1], or a
      mask without key.

  Source: the published banks' interpolation, where the weight is the first
  row's (in the published manipulation it is the second's).
  """
  bank_lib.check_rows(np.array([first, second]), bank.size, "interpolate")
  if not len(weights) or not ((weights >= 0) & (weights <= 1)).all():
    raise ValueError(
      f"interpolate: weights {weights.tolist()} must be in [0, 1], at least one"
    )
  both = bank_lib.features(bank, np.array([first, second]))
  made = _mix(method, jnp.asarray(both[0]), jnp.asarray(both[1]), weights, key)
  edit = f"interpolate rows {first} and {second}, {method}, {len(weights)} rows"
  found = append(bank, info, np.asarray(made))
  return dataclasses.replace(
    found, info=dataclasses.replace(found.info, edit=edit)
  )


def _mix(
  method: sections.Interpolation,
  a: Float[Array, " d"],
  b: Float[Array, " d"],
  weights: Float[np.ndarray, " n"],
  key: Key[Array, ""] | None,
) -> Float[Array, "n d"]:
  """Vectors between two, with these weights of the first."""
  n = len(weights)
  if method == "concat":
    return jnp.tile(paths.concat(a, b)[None], (n, 1))
  if method == "mask":
    if key is None:
      raise ValueError("interpolate: method='mask' needs a key")
    uniform = jax.random.uniform(key, (n, a.size), a.dtype)
    return jax.vmap(paths.mask, in_axes=(None, None, 0))(a, b, uniform)
  function = paths.linear if method == "linear" else paths.spherical
  # Their alpha is the second vector's.
  alphas = jnp.asarray(1 - weights, a.dtype)
  return jax.vmap(function, in_axes=(None, None, 0))(a, b, alphas)


def remove(
  bank: bank_lib.Bank, info: bank_lib.BankInfo, rows: Int[np.ndarray, " n"]
) -> Edited:
  """Takes memories out; those after them move up.

  Args:
    bank: The bank, on the host.
    info: Its description.
    rows: Rows to take out; one may be named twice.

  Returns:
    The new bank.

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
  """Takes out memories that repeat one that stays.

  Row by row: a row goes if its cosine with a row before it, which stays, is at
  least the threshold.

  Args:
    bank: The bank, on the host.
    info: Its description.
    threshold: The cosine, in (0, 1]; None: only rows equal bit for bit.
    on_rows: Called with the number of rows done since the last call.

  Returns:
    The new bank.

  Raises:
    ValueError: If the threshold is out of range.
  """
  if threshold is None:
    keep, edit = _first_of_equals(bank), "deduplicate equal rows"
    on_rows(bank.size)
  elif 0 < threshold <= 1:
    keep = _apart(bank_lib.decode(bank), threshold, on_rows)
    edit = f"deduplicate at cosine {threshold:g}"
  else:
    raise ValueError(f"deduplicate: threshold={threshold} must be in (0, 1]")
  return _keep(bank, info, keep, f"{edit}, {int((~keep).sum())} rows removed")


def _first_of_equals(bank: bank_lib.Bank) -> np.ndarray:
  """[m] whether a row is the first of its kind, as stored."""
  if isinstance(bank, bank_lib.LowRankBank):
    arrays = [np.asarray(bank.coefficients)]
  else:
    arrays = jax.tree.leaves(bank_lib.on_host(bank))
  seen, keep = set(), np.zeros(bank.size, bool)
  for i in range(bank.size):
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
      found.update(array[i].tobytes())
    digest = found.digest()
    keep[i] = digest not in seen
    seen.add(digest)
  return keep


def _apart(
  rows: Float[np.ndarray, "m d"], threshold: float, on_rows: Callable
) -> np.ndarray:
  """[m] whether a row is no repetition of one before it that stays."""
  size = len(rows)
  units = bank_lib.normalise(jnp.asarray(rows))
  bank = bank_lib.MemoryBank(units)
  search = jax.jit(lookup.nearest, static_argnames="k")
  keep = np.ones(size, bool)
  for start in range(0, size, BATCH):
    part = np.arange(start, min(start + BATCH, size))
    # Filled up: one shape, one compilation.
    batch = np.resize(part, min(BATCH, size))
    k, open_ = min(8, size), part
    near: dict[int, np.ndarray] = {}
    while len(open_):
      scores, found = jax.device_get(search(units[batch], bank, k=k))
      for row, score, other in zip(batch, scores, found, strict=True):
        near[int(row)] = other[score >= threshold]
      if k == size:
        break
      # Where all k are so close there may be more, which matters unless one
      # that stays is among them.
      open_ = part[[_undecided(near[int(r)], k, keep[:start]) for r in part]]
      if len(open_):
        k, batch = min(4 * k, size), np.resize(open_, len(batch))
    for row in part:
      others = near[int(row)]
      keep[row] = not keep[others[others < row]].any()
    on_rows(len(part))
  return keep


def _undecided(others: np.ndarray, k: int, keep: np.ndarray) -> bool:
  """Whether a row's k neighbours leave open if it repeats one that stays."""
  return len(others) == k and not keep[others[others < len(keep)]].any()


def compress(
  bank: bank_lib.Bank,
  info: bank_lib.BankInfo,
  target: networks.Storage | None = None,
  *,
  rank: int | None = None,
) -> Edited:
  """Stores the rows in less memory.

  Args:
    bank: The bank, on the host.
    info: Its description.
    target: How to store full rows; or
    rank: how many directions to keep.

  Returns:
    The new bank; `storage.error` tells what was lost.

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
  bank_lib.check_bank(bank)
  new = dataclasses.replace(
    info,
    size=bank.size,
    digest=bank_lib.digest(bank),
    parent=info.digest,
    edit=edit,
  )
  return Edited(bank, new, origin)
