"""Exact nearest neighbours in the memory bank.

Shapes: q queries, m bank rows, d width, k neighbours.

Scores are inner products with the rows as they are stored. For neighbours by
cosine, as memory snippets are unit vectors, search the unit rows:

    unit_bank = lookup.unit(bank, multiple=8)  # once
    scores, rows = lookup.nearest(bank_lib.normalise(query), unit_bank, k)
"""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int8, Int32

from gmem_jax.bank import bank as bank_lib, sharded_lookup
from gmem_jax.bank.kernels import topk_gpu, topk_reference, topk_tpu, topk_xla

IMPLEMENTATIONS = ("gpu", "reference", "tpu", "xla")
# Queries that `nearest_by_cosine` looks up at a time.
BATCH = 256


def nearest(
  query: Float[Array, "q d"],
  bank: bank_lib.MemoryBank,
  k: int,
  *,
  implementation: str | None = None,
  placement: sharded_lookup.Placement | None = None,
) -> tuple[Float32[Array, "q k"], Int32[Array, "q k"]]:
  """Finds the k bank rows with the largest inner products with each query.

  Exact: a float64 search of the stored rows finds the same, up to rows whose
  scores differ by less than `topk_reference.rounding_bound`. Works inside of
  jit. No gradient passes: which rows are nearest has none.

  Args:
    query: Finite and not zero.
    bank: The bank to search; padding is never found.
    k: In [1, m].
    implementation: "gpu" and "tpu": the Pallas kernels; "xla": two stages, on
      any platform; "reference": all scores, and a top-k of them. None takes
      the best for the platform that the call is lowered for.
    placement: Where queries and rows live in a computation over several
      devices; None: on one device.

  Returns:
    Scores, descending, and row numbers; ties go to the lower row.

  Raises:
    ValueError: If the arguments do not fit, see `check_shapes`, or there is no
      such implementation.
    NotImplementedError: If the named implementation cannot serve.
  """
  best = nearest_counted(
    query, bank, k, implementation=implementation, placement=placement
  )
  return best.scores, best.rows


def nearest_counted(
  query: Float[Array, "q d"],
  bank: bank_lib.MemoryBank,
  k: int,
  *,
  implementation: str | None = None,
  placement: sharded_lookup.Placement | None = None,
) -> topk_reference.TopK:
  """Does what `nearest` does, and counts the queries that fell back."""
  check_shapes(query, bank, k)
  if implementation not in (None, *IMPLEMENTATIONS):
    raise ValueError(
      f"implementation={implementation!r} is none of {IMPLEMENTATIONS}"
    )
  # The gradient through the scores would scatter into a table as large as the
  # bank, which is data and not trained.
  query, bank = jax.lax.stop_gradient((query, bank))

  def one(query, rows, scales, k, count):
    return _search(implementation, query, rows, scales, k, count)

  if placement is None:
    # Without padding there is no mask to compile.
    count = jnp.int32(bank.size) if bank.padding else None
    return one(query, bank.rows, bank.scales, k, count)
  return sharded_lookup.search(one, query, bank, k, placement)


def _search(
  implementation: str | None,
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  scales: Float32[Array, " m"] | None,
  k: int,
  count: Int[Array, ""] | None,
) -> topk_reference.TopK:
  """The search of one device."""

  def call(module):
    return lambda *arrays: module.top_k(*arrays[:3], k, arrays[3])

  def call_or_xla(module):
    try:
      module.check(query, rows, k)
    except NotImplementedError as error:
      # A newer jax would be faster; rows that no kernel serves are usual.
      # Python shows the warning of a line once.
      old = module is topk_gpu and not topk_gpu.SUPPORTED
      if old and jax.default_backend() == "gpu":
        warnings.warn(f"{error}. XLA searches instead, slower", stacklevel=2)
      return call(topk_xla)
    return call(module)

  arrays = (query, rows, scales, count)
  if implementation == "reference":
    return call(topk_reference)(*arrays)
  if implementation == "xla":
    return call(topk_xla)(*arrays)
  # The platform is known when the call is lowered, not when it is traced. A
  # kernel asked for by name has no default: elsewhere the lowering fails.
  if implementation == "tpu":
    topk_tpu.check(query, rows, k)
    return jax.lax.platform_dependent(*arrays, tpu=call(topk_tpu))
  if implementation == "gpu":
    topk_gpu.check(query, rows, k)
    return jax.lax.platform_dependent(*arrays, cuda=call(topk_gpu))
  return jax.lax.platform_dependent(
    *arrays,
    tpu=call_or_xla(topk_tpu),
    cuda=call_or_xla(topk_gpu),
    default=call(topk_xla),
  )


def place_units(bank: bank_lib.Bank) -> bank_lib.MemoryBank:
  """The `unit` rows of any bank, on a device, for `nearest_by_cosine`."""
  if isinstance(bank, bank_lib.LowRankBank):
    bank = bank_lib.MemoryBank(bank_lib.decode(bank))
  return jax.jit(unit)(jax.device_put(bank))


def nearest_by_cosine(
  queries: np.ndarray, units: bank_lib.MemoryBank, k: int
) -> tuple[Float32[np.ndarray, "q k"], Int32[np.ndarray, "q k"]]:
  """Looks up any number of features on the host: the one search by cosine.

  Args:
    queries: Features [q d] of any length but zero.
    units: Of `place_units`, which is done once for all searches.
    k: In [1, m].

  Returns:
    Cosines, descending, and row numbers.

  Raises:
    ValueError: If the arguments do not fit, see `check_shapes`.
  """
  if np.ndim(queries) != 2:
    raise ValueError(
      f"features of shape {np.shape(queries)}: [n, {units.width}] is needed"
    )
  queries = np.asarray(bank_lib.normalise(queries))
  find = jax.jit(nearest, static_argnames="k")
  # Of no query at all, one that is then left out.
  total = max(1, len(queries))
  batch, parts = min(BATCH, total), []
  for start in range(0, total, batch):
    part = queries[start : start + batch]
    # Filled up with repetitions: one shape is one compilation.
    filled = jnp.asarray(np.resize(part, (batch, part.shape[1])))
    best = jax.device_get(find(filled, units, k=k))
    parts.append([x[: len(part)] for x in best])
  scores, rows = (np.concatenate(x) for x in zip(*parts, strict=True))
  return scores, rows


def unit(
  bank: bank_lib.MemoryBank, *, multiple: int = 1
) -> bank_lib.MemoryBank:
  """The bank with every row at unit length, for lookup by cosine.

  Make it once: it reads all rows. The result is for lookup alone: bfloat16 rows
  are rounded a second time, so snippets are drawn from the raw bank.

  Args:
    bank: Raw rows, none of them zero.
    multiple: Pads the rows to a multiple of this. The GPU kernel needs 8; a
      bank whose rows are split must go on dividing over its devices.
  """
  bank = _pad(bank, -bank.rows.shape[0] % multiple)
  if bank.scales is None:
    return dataclasses.replace(
      bank, rows=bank_lib.normalise(bank.rows).astype(bank.rows.dtype)
    )
  # int8 rows keep their bits, and only their scales change: rounding them again
  # would cost accuracy for nothing.
  length = jnp.linalg.norm(bank.rows.astype(jnp.float32), axis=1)
  scales = 1 / jnp.maximum(length, 1e-12)
  residuals = bank.residuals
  if residuals is not None:
    residuals = residuals * scales / jnp.maximum(bank.scales, 1e-38)
  return dataclasses.replace(bank, scales=scales, residuals=residuals)


def _pad(bank: bank_lib.MemoryBank, missing: int) -> bank_lib.MemoryBank:
  """Appends zero rows, which are no memories."""
  if not missing:
    return bank

  def pad(leaf):
    return jnp.pad(leaf, ((0, missing),) + ((0, 0),) * (leaf.ndim - 1))

  padded = jax.tree.map(pad, bank)
  return dataclasses.replace(padded, padding=bank.padding + missing)


def check_shapes(
  query: Float[Array, "q d"], bank: bank_lib.MemoryBank, k: int
) -> None:
  """Checks all that shapes and types can tell.

  Raises:
    ValueError: If the widths differ, k is out of range, the bank is empty, or
      int8 rows and scales do not come together.
  """
  if bank.size == 0:
    raise ValueError("the bank is empty: there is nothing to look up")
  if query.shape[1] != bank.width:
    raise ValueError(
      f"queries of width {query.shape[1]} and bank rows of width {bank.width}:"
      " made by different encoders?"
    )
  if not 1 <= k <= bank.size:
    raise ValueError(f"k={k} is not in [1, {bank.size}], the bank's size")
  if (bank.rows.dtype == jnp.int8) != (bank.scales is not None):
    raise ValueError(
      f"bank rows of type {bank.rows.dtype}"
      f" {'without' if bank.scales is None else 'with'} scales"
    )
