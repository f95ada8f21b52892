"""Arguments that the tests run the searches on.

Shapes: q queries, m bank rows, d width, k neighbours.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

# What rows look like:
#   random      normal; scores all differ
#   ties        small whole numbers: sums are exact, many scores are equal
#   duplicated  whole numbers, few distinct rows, each in many places
#   ascending   whole numbers, the best rows of the first query at the end
#   clustered   normal, around few centres: many scores nearly equal
KINDS = ("random", "ties", "duplicated", "ascending", "clustered")
# The kinds whose scores are exact in float32, so that nothing may differ.
EXACT = ("ties", "duplicated", "ascending")
DTYPES = ("float32", "bfloat16", "int8")

# The published bank: ImageNet's training images.
IMAGENET = 1_281_167
NEIGHBOURS = (1, 10, 64)


@dataclasses.dataclass(frozen=True)
class ArgSpec:
  """Shapes and types of one search.

  Attributes:
    q: Queries.
    m: Bank rows.
    d: Width.
    k: Neighbours.
    dtype: Of the rows, one of `DTYPES`.
  """

  q: int
  m: int
  d: int
  k: int
  dtype: str = "float32"

  def __str__(self) -> str:
    return f"{self.dtype}-q{self.q}-m{self.m}-d{self.d}-k{self.k}"


# m is a multiple of nothing, or of all; k is 1, m, or in between.
SMALL = tuple(
  ArgSpec(q, m, d, k, dtype)
  for dtype in DTYPES
  for q, m, d, k in (
    (5, 1501, 16, 1),
    (6, 2048, 16, 10),
    (4, 97, 16, 97),
    (3, 1283, 16, 37),
  )
)


def make(
  spec: ArgSpec, kind: str, seed: int
) -> tuple[Any, Any, Any | None, np.ndarray]:
  """Makes the arguments of a search on rows of one of `KINDS`.

  Returns:
    Queries (float32), rows, scales (int8 only), and the stored rows decoded in
    float64.
  """
  rng = np.random.default_rng([seed, KINDS.index(kind)])
  whole = kind in EXACT
  query = _table(rng, spec.q, spec.d, whole)
  rows = _table(rng, spec.m, spec.d, whole)
  if kind == "duplicated":
    rows = rows[rng.integers(0, max(spec.m // 20, 1), spec.m)]
  elif kind == "ascending":
    rows = rows[np.argsort(rows @ query[0], kind="stable")]
  elif kind == "clustered":
    centres = _table(rng, 4, spec.d, False)
    rows = centres[rng.integers(0, 4, spec.m)] + 1e-3 * rows
  if spec.dtype != "int8":
    stored = jnp.asarray(rows, spec.dtype)
    return jnp.asarray(query), stored, None, np.asarray(stored, np.float64)
  scales = np.ones(spec.m, np.float32)
  if not whole:
    scales = np.abs(rows).max(axis=1) / 127
  stored = np.round(rows / scales[:, None]).astype(np.int8)
  exact = stored.astype(np.float64) * scales[:, None].astype(np.float64)
  return (
    jnp.asarray(query),
    jnp.asarray(stored),
    jnp.asarray(scales),
    exact,
  )


def _table(
  rng: np.random.Generator, size: int, d: int, whole: bool
) -> np.ndarray:
  if not whole:
    return rng.standard_normal((size, d)).astype(np.float32)
  table = rng.integers(-2, 3, (size, d)).astype(np.float32)
  # No zero rows: they are refused.
  table[:, 0] = np.where(table.any(axis=1), table[:, 0], 1)
  return table
