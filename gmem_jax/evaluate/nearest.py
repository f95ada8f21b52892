"""Nearest neighbours by Euclidean distance, with the bank's exact lookup.

The lookup finds the largest inner products. |q - x|² = |q|² - 2 (q·x - ½|x|²),
so with -½|x|² as one more number of each point x, and 1 of each query q, the
largest inner product is the nearest point.

Shapes: n queries, m points, f their width, k neighbours.
"""

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float

from gmem_jax.bank import bank as bank_lib, lookup, sharded_lookup
from gmem_jax.parallel import sharding


def nearest(
  queries: Float[np.ndarray, "n f"],
  points: Float[np.ndarray, "m f"],
  k: int,
  *,
  radii: Float[np.ndarray, " m"] | float = 0.0,
  mesh: Mesh | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """The k nearest points of each query; both are float32.

  Squared `radii` of balls around the points are subtracted from their squared
  distances: what is found is then the nearest ball, and the query is inside
  unless the result is positive. A mesh splits the queries over its devices;
  every host must call, and receives all.

  Returns:
    (squared distances [n k] ascending, numbers of the points [n k]). Distances
    are rounded as float32 sums of size |q|² are.
  """
  squared = (queries**2).sum(axis=1)
  # Any constant c will do for -½|x|²/c and c. This one makes the new numbers as
  # large as the old ones; with 1, scores and their rounding errors would grow
  # with |x|².
  scale = np.sqrt(squared.mean(dtype=np.float64)).astype(np.float32) or 1
  shift = (radii - (points**2).sum(axis=1)) / (2 * scale)
  rows = np.concatenate([points, shift[:, None]], axis=1, dtype=np.float32)
  one = np.full((len(queries), 1), scale, np.float32)
  search = np.concatenate([queries, one], axis=1)
  if mesh is None:
    scores, numbers = _search(search, bank_lib.MemoryBank(rows), k, None)
  else:
    missing = -len(search) % sharding.batch_ways(mesh)
    search = np.pad(search, ((0, missing), (0, 0)), mode="edge")
    everywhere = sharding.replicated(mesh)
    scores, numbers = _search(
      sharding.place(search, NamedSharding(mesh, sharding.BATCH)),
      bank_lib.MemoryBank(sharding.place(rows, everywhere)),
      k,
      mesh,
    )
  n = len(queries)
  squared = squared[:, None] - 2 * np.asarray(scores)[:n]
  return squared, np.asarray(numbers)[:n]


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _search(query, bank, k, mesh):
  if mesh is None:
    return lookup.nearest(query, bank, k)
  placement = sharded_lookup.Placement(mesh)
  found = lookup.nearest(query, bank, k, placement=placement)
  # On every host.
  return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))
