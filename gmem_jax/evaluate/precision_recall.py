"""Precision and recall of samples by the manifolds of their features.

A sample is precise if it lies in the manifold of real images, a real image is
recalled if it lies in that of the samples. The manifold of a set is the union
of balls around its members that reach their third nearest neighbours.

Distances are squared, of centred features, in full float32 (the ADM suite's
are in float16, where that does not overflow). They are computed block by block
over all devices, rows of a block on each.

Shapes: m, n features of two sets, f feature width, b rows of a block.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float

from gmem_jax.parallel import sharding

NEIGHBOURS = 3
# Rows and columns of a block of distances, over all devices.
_BLOCK = 4096


def precision_recall(
  real: np.ndarray,
  samples: np.ndarray,
  mesh: Mesh,
  *,
  neighbours: int = NEIGHBOURS,
  block: int = _BLOCK,
) -> tuple[float, float]:
  """Precision and recall.

  Args:
    real: [m, f] features of real images.
    samples: [n, f] features of samples.
    mesh: The devices.
    neighbours: A ball reaches the neighbour of this number.
    block: Rows and columns of a block of distances, about.

  Returns:
    (fraction of samples in the real manifold, fraction of real images in the
    samples' manifold), each in [0, 1].

  Raises:
    ValueError: If the widths differ, or a set has too few members.

  Source: Kynkäänniemi et al., arXiv 1904.06991; Dhariwal and Nichol, arXiv
  2105.05233 (three neighbours, Inception features).
  """
  if real.shape[1] != samples.shape[1]:
    raise ValueError(f"feature widths differ: {real.shape}, {samples.shape}")
  for name, features in (("real images", real), ("samples", samples)):
    if len(features) <= neighbours:
      raise ValueError(
        f"precision and recall of {len(features)} {name}: more than"
        f" {neighbours} are needed"
      )
  ways = sharding.batch_ways(mesh)
  largest = max(len(real), len(samples))
  block = -(-min(block, largest) // ways) * ways
  centre = real.mean(axis=0, dtype=np.float64)
  real, samples = (
    (features - centre).astype(np.float32) for features in (real, samples)
  )
  radii = _radii(samples, neighbours, mesh, block)
  recall = _fraction_inside(real, samples, radii, mesh, block)
  radii = _radii(real, neighbours, mesh, block)
  precision = _fraction_inside(samples, real, radii, mesh, block)
  return precision, recall


def _squared_distances(
  rows: Float[Array, "b f"], columns: Float[Array, "n f"]
) -> Float[Array, "b n"]:
  products = jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)
  norms = (rows**2).sum(axis=1)[:, None] + (columns**2).sum(axis=1)[None]
  return jnp.maximum(norms - 2 * products, 0)


@functools.partial(jax.jit, donate_argnums=0)
def _nearest(
  found: Float[Array, "b k"],
  rows: Float[Array, "b f"],
  columns: Float[Array, "n f"],
  real: Bool[Array, " n"],
) -> Float[Array, "b k"]:
  """The smallest distances, of those found before and of new columns."""
  far = jnp.where(real, 0, jnp.inf).astype(jnp.float32)
  distances = _squared_distances(rows, columns) + far[None]
  together = jnp.concatenate([found, distances], axis=1)
  return -jax.lax.top_k(-together, found.shape[1])[0]


@jax.jit
def _inside(
  rows: Float[Array, "b f"],
  columns: Float[Array, "n f"],
  radii: Float[Array, " n"],
) -> Bool[Array, " b"]:
  """Whether each row lies in any column's ball."""
  return (_squared_distances(rows, columns) <= radii[None]).any(axis=1)


def _radii(
  features: np.ndarray, neighbours: int, mesh: Mesh, block: int
) -> np.ndarray:
  """Squared distances to the neighbour of a number, the feature not counted."""
  rows_at, whole = (
    NamedSharding(mesh, sharding.BATCH),
    sharding.replicated(mesh),
  )
  radii = []
  for start in range(0, len(features), block):
    rows = sharding.place(_block(features, start, block), rows_at)
    # The feature itself is the nearest.
    found = sharding.place(
      np.full((block, neighbours + 1), np.inf, np.float32), rows_at
    )
    for column in range(0, len(features), block):
      columns = sharding.place(_block(features, column, block), whole)
      real = column + np.arange(block) < len(features)
      found = _nearest(found, rows, columns, sharding.place(real, whole))
    radii.append(_fetch(found, whole)[: len(features) - start, -1])
  return np.concatenate(radii)


def _fraction_inside(
  features: np.ndarray,
  others: np.ndarray,
  radii: np.ndarray,
  mesh: Mesh,
  block: int,
) -> float:
  """The fraction of features that lie in a ball of the others."""
  rows_at, whole = (
    NamedSharding(mesh, sharding.BATCH),
    sharding.replicated(mesh),
  )
  count = 0
  for start in range(0, len(features), block):
    rows = sharding.place(_block(features, start, block), rows_at)
    inside = np.zeros(block, bool)
    for column in range(0, len(others), block):
      columns = sharding.place(_block(others, column, block), whole)
      # A negative radius: what fills up the block has no ball.
      reach = np.full(block, -1, np.float32)
      part = radii[column : column + block]
      reach[: len(part)] = part
      found = _inside(rows, columns, sharding.place(reach, whole))
      inside |= _fetch(found, whole)
    count += int(inside[: len(features) - start].sum())
  return count / len(features)


def _block(features: np.ndarray, start: int, block: int) -> np.ndarray:
  """Rows from `start` on, filled up to the block with zeros."""
  part = features[start : start + block]
  return np.pad(part, ((0, block - len(part)), (0, 0)))


def _fetch(value: jax.Array, whole: NamedSharding) -> np.ndarray:
  """A value that is spread over devices and hosts, on this host."""
  return np.asarray(jax.jit(lambda x: x, out_shardings=whole)(value))
