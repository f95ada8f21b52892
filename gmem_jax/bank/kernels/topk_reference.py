"""The k largest inner products in plain JAX: the specification of the kernels.

Shapes: q queries, m bank rows, d width, k neighbours.

Ties go to the lower row. Scores are float32 sums of float32 products, so two
rows may change places where their exact scores differ by less than
`rounding_bound`; nothing else may differ from the same search in real numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int8, Int32


class TopK(NamedTuple):
  """The result of a search.

  Attributes:
    scores: Inner products, descending.
    rows: Their bank rows; ascending among equal scores.
    fallbacks: How many queries the fast path could not certify, so that the
      plain path answered them.
  """

  scores: Float32[Array, "q k"]
  rows: Int32[Array, "q k"]
  fallbacks: Int32[Array, ""]


def scores(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  scales: Float32[Array, " m"] | None,
) -> Float32[Array, "q m"]:
  """All inner products, in float32 at the highest precision."""
  products = jnp.matmul(
    query.astype(jnp.float32),
    rows.astype(jnp.float32).T,
    precision=jax.lax.Precision.HIGHEST,
  )
  return products if scales is None else products * scales[None]


def top_k(
  query: Float[Array, "q d"],
  rows: Float[Array, "m d"] | Int8[Array, "m d"],
  scales: Float32[Array, " m"] | None,
  k: int,
  count: Int[Array, ""] | None = None,
) -> TopK:
  """The rows with the k largest inner products with each query.

  Args:
    query: Finite.
    rows: Finite.
    scales: int8 rows only: row i is `rows[i] * scales[i]`.
    k: In [1, m].
    count: Rows from this one on are padding: they come last, at -infinity.
  """
  every_score = scores(query, rows, scales)
  if count is not None:
    every_score = jnp.where(
      jnp.arange(rows.shape[0])[None] < count, every_score, -jnp.inf
    )
  best, index = jax.lax.top_k(every_score, k)
  return TopK(best, index, jnp.zeros((), jnp.int32))


def rounding_bound(
  query: Float[Array, "q d"], norm: Float[Array, ""]
) -> Float32[Array, " q"]:
  """How far apart the exact scores of rows that change places may be.

  A float32 sum of d products is off by at most d u |query| |row| in any order,
  with u = 2^-24. A search sums twice, to find the candidates and to score them,
  and the errors of both rows count. The first sum may also drop what two
  bfloat16 limbs leave of a float32 query: 2^-16 = 256 u. A few units allow for
  scales. `norm` is the largest Euclidean norm of a row.
  """
  units = 2 * (2 * query.shape[1] + 256 + 16)
  length = jnp.linalg.norm(query.astype(jnp.float32), axis=1)
  return units * 2.0**-24 * length * norm
