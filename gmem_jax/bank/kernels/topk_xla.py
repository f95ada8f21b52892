"""The k largest inner products in two stages of plain XLA, on any platform.

The scores of some queries with all rows are computed, but never sorted: only
one number of each bin of rows takes part in the selection (`two_stage`). The
bank is on the left of the matmul, so that a single query reads it once, in
order, at the speed of memory. On a CPU, two stages of 131,072 rows take 19 to
26 ms for a query; `top_k(query @ rows.T)` took 107 to 165 ms.

Shapes: q queries, m bank rows, d width, k neighbours.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int8

from gmem_jax.bank.kernels import topk_reference, two_stage

# Scores in flight: bytes, and the number of queries that fit the caches.
_SCRATCH = 2**28
_CHUNK = 128
# Rows that are converted to float32 at a time: int8 rows few, to stay in the
# caches, and bfloat16 rows (which XLA converts well) many, to save memory.
_BLOCK = {"int8": 4096, "bfloat16": 2**17}


def top_k(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  scales: Float32[Array, " m"] | None,
  k: int,
  count: Int[Array, ""] | None = None,
) -> topk_reference.TopK:
  """See `topk_reference.top_k`, which it equals.

  There is nothing to certify: the maxima are of the very scores returned.
  """
  m = rows.shape[0]
  # One bin more than k, since select() also finds the best one left out.
  if two_stage.bins_of(m) <= k + 1:
    return topk_reference.top_k(query, rows, scales, k, count)

  def some(query):
    scores = two_stage.pad_rows(_scores(query, rows, scales, count), -jnp.inf)
    wide = scores.reshape(-1, two_stage.BIN, query.shape[0])
    bins, _ = two_stage.select(jnp.max(wide, axis=1), k)
    each = jnp.arange(query.shape[0])[:, None]
    candidates = wide[bins, :, each].reshape(query.shape[0], -1)
    best, index = two_stage.best_of(candidates, bins, k)
    return topk_reference.TopK(best, index, jnp.zeros((), jnp.int32))

  chunk = min(_CHUNK, max(_SCRATCH // (4 * m) // 8 * 8, 8))
  return two_stage.in_chunks(some, query, chunk)


def _scores(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  scales: Float32[Array, " m"] | None,
  count: Int[Array, ""] | None,
) -> Float32[Array, "m q"]:
  """All inner products, the bank's rows first."""
  m, q = rows.shape[0], query.shape[0]
  query = query.astype(jnp.float32)
  if rows.dtype == jnp.bfloat16 and q < 8:
    # A matmul of bfloat16 with few vectors is slow on CPU, with eight fast.
    query = jnp.pad(query, ((0, 8 - q), (0, 0)))

  def product(rows):
    return jnp.matmul(
      rows.astype(jnp.float32), query.T, precision=jax.lax.Precision.HIGHEST
    )

  block_size = _BLOCK.get(rows.dtype.name, m)
  if m > block_size:

    def block(number):
      start = number * block_size
      part = jax.lax.dynamic_slice_in_dim(rows, start, block_size)
      return product(part)

    scores = jax.lax.map(block, jnp.arange(m // block_size))
    scores = scores.reshape(-1, query.shape[0])
    rest = rows[m // block_size * block_size :]
    if rest.shape[0]:
      scores = jnp.concatenate([scores, product(rest)])
  else:
    scores = product(rows)
  scores = scores[:, :q]
  if scales is not None:
    scores = scores * scales[:, None]
  if count is not None:
    scores = jnp.where(jnp.arange(m)[:, None] < count, scores, -jnp.inf)
  return scores
