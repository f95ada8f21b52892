"""The sliced Wasserstein distance of two sets of features, with its error.

Features are projected onto random directions; along each, optimal transport
between two sets of one size pairs their values in order. In Inception's
features this is the Monge Inception Distance (MIND), for which 5,000 images
tell as much as 50,000 for FID.

Shapes: n, m features of two sets, f their width, d directions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gmem_jax import progress
from gmem_jax.evaluate import accumulate
from gmem_jax.parallel import sharding

DIRECTIONS = 1_000
# Parts of the sets, each of which is left out once for the standard error.
GROUPS = 10


def sliced_distance(
  samples: np.ndarray, real: np.ndarray, mesh: Mesh
) -> tuple[float, float]:
  """The distance of features [n f] and [m f]; every host must call.

  Of the larger set as many members as the smaller one has are taken, evenly
  spaced. The directions are the same in every call.

  Returns:
    (distance, its standard error): 3 f times the squared distance, averaged
    over the directions. Two sets of one distribution are not at distance 0 but
    at a floor, which falls as 1 / n: compare at equal numbers. The error is
    that of the jackknife and covers the choice of both sets.

  Raises:
    ValueError: If the widths differ, or a set has fewer than `GROUPS` * 2
      members.

  Source: Berthet et al., arXiv 2605.06797.
  """
  if samples.shape[1] != real.shape[1]:
    raise ValueError(f"feature widths differ: {samples.shape}, {real.shape}")
  for name, features in (("samples", samples), ("real images", real)):
    if len(features) < 2 * GROUPS:
      raise ValueError(
        f"sliced distance of {len(features)} {name}: at least"
        f" {2 * GROUPS} are needed"
      )
  count = min(len(samples), len(real))
  pair = [x[accumulate.evenly(len(x), count)] for x in (samples, real)]
  everywhere = sharding.replicated(mesh)
  directions = sharding.place(
    _directions(samples.shape[1], sharding.batch_ways(mesh)),
    NamedSharding(mesh, sharding.BATCH),
  )
  projected = [
    _project(sharding.place(x.astype(np.float32), everywhere), directions)
    for x in pair
  ]
  line = progress.Progress("sliced", 0, 1 + GROUPS, unit="distance")
  value = _distance(projected, samples.shape[1], everywhere)
  line.advance(1)
  others = []
  # Equal groups, spread over sets that may be sorted by class.
  for first in range(GROUPS):
    kept = np.arange(count) % GROUPS != first
    kept[count - count % GROUPS :] = True
    rows = sharding.place(np.flatnonzero(kept), everywhere)
    parts = [_take(x, rows) for x in projected]
    others.append(_distance(parts, samples.shape[1], everywhere))
    line.advance(1)
  line.close()
  variance = (GROUPS - 1) * np.var(others)
  return value, float(np.sqrt(variance))


def _directions(width: int, ways: int) -> np.ndarray:
  """Unit vectors [d f]; as many of zero at the end as make d divide `ways`."""
  random = np.random.default_rng(0).standard_normal((DIRECTIONS, width))
  unit = random / np.linalg.norm(random, axis=1, keepdims=True)
  return np.pad(unit.astype(np.float32), ((0, -DIRECTIONS % ways), (0, 0)))


@jax.jit
def _project(x, directions):
  """Values [d n] of features [n f] along each direction."""
  return jnp.matmul(directions, x.T, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _take(projected, rows):
  return projected[:, rows]


def _distance(
  pair: list[jax.Array], width: int, everywhere: NamedSharding
) -> float:
  """The distance of two sets of values [d n], projected from a width."""
  squared = np.asarray(_transported(*pair, everywhere))
  return float(3 * width * squared.sum(dtype=np.float64) / DIRECTIONS)


@functools.partial(jax.jit, static_argnames="everywhere")
def _transported(a, b, everywhere):
  """Mean squared distances [d] of values [d n] that are paired in order."""
  squared = (jnp.sort(a, axis=1) - jnp.sort(b, axis=1)) ** 2
  return jax.lax.with_sharding_constraint(squared.mean(axis=1), everywhere)
