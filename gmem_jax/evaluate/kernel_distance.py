"""The kernel distance of two sets of features, with its standard error.

The squared maximum mean discrepancy with the kernel (x·y / f + 1)³: in
Inception's features the Kernel Inception Distance (KID). Its estimate is
unbiased: two sets of one distribution are at distance 0 on average, whatever
their number, where a Fréchet distance has a floor that depends on it.

Shapes: n, m features of two sets, f their width, g groups.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gmem_jax import progress
from gmem_jax.parallel import sharding

# Parts of the sets, each of which is left out once for the standard error.
GROUPS = 20


def kernel_distance(
  samples: np.ndarray, real: np.ndarray, mesh: Mesh
) -> tuple[float, float]:
  """The distance of features [n f] and [m f]; every host must call.

  Returns:
    (distance, its standard error). A distance may be negative, by about the
    error. The error is that of the jackknife: it covers the choice of both
    sets, not that of the network's training, and is half as large again as it
    should be where the distributions are the same.

  Raises:
    ValueError: If the widths differ, or a set has fewer than four members.

  Source: Bińkowski et al., arXiv 1801.01401, but one estimate of all features
  instead of a mean over random subsets of 1,000: the same expectation, and the
  smallest variance.
  """
  if samples.shape[1] != real.shape[1]:
    raise ValueError(f"feature widths differ: {samples.shape}, {real.shape}")
  for name, features in (("samples", samples), ("real images", real)):
    if len(features) < 4:
      raise ValueError(
        f"kernel distance of {len(features)} {name}: at least 4 are needed"
      )
  groups = min(GROUPS, len(samples) // 2, len(real) // 2)
  pair = _grouped(samples, groups), _grouped(real, groups)
  line = progress.Progress("kernel", 0, 3 * groups, unit="group")
  within = [_sums(x, x, mesh, line, own=True) for x in pair]
  between = _sums(*pair, mesh, line)
  line.close()
  counts = [np.array([len(part) for part in x]) for x in pair]
  value = _unbiased(within, between, counts, np.ones(groups, bool))
  others = np.array(
    [
      _unbiased(within, between, counts, np.arange(groups) != left_out)
      for left_out in range(groups)
    ]
  )
  variance = (groups - 1) / groups * ((others - others.mean()) ** 2).sum()
  return value, float(np.sqrt(variance))


def _grouped(features: np.ndarray, groups: int) -> list[np.ndarray]:
  # Every group is spread over the set, which may be sorted by class.
  return [features[first::groups] for first in range(groups)]


def _sums(
  a: list[np.ndarray],
  b: list[np.ndarray],
  mesh: Mesh,
  line: progress.Progress,
  *,
  own: bool = False,
) -> np.ndarray:
  """Sums of the kernel over each group of one set and each of another [g g].

  `own`: both are one set, and no member is paired with itself.
  """
  # One shape for all groups, and the same number of rows on every device.
  ways = sharding.batch_ways(mesh)
  rows = -(-len(a[0]) // ways) * ways
  split = NamedSharding(mesh, sharding.BATCH)
  everywhere = sharding.replicated(mesh)
  counts = np.array([len(group) for group in b])
  others = sharding.place(
    (np.stack([_padded(group, len(b[0])) for group in b]), counts), everywhere
  )
  sums = np.zeros((len(a), len(b)))
  for i, group in enumerate(a):
    x = sharding.place(_padded(group, rows), split)
    totals = np.asarray(_row_sums(x, *others, everywhere))
    sums[i] = totals[:, : len(group)].sum(axis=1, dtype=np.float64)
    if own:
      norms = (group.astype(np.float64) ** 2).sum(axis=1)
      sums[i, i] -= ((norms / group.shape[1] + 1) ** 3).sum()
    line.advance(1)
  return sums


def _padded(features: np.ndarray, rows: int) -> np.ndarray:
  missing = rows - len(features)
  return np.pad(features.astype(np.float32), ((0, missing), (0, 0)))


@functools.partial(jax.jit, static_argnames="everywhere")
def _row_sums(x, groups, counts, everywhere):
  """The kernel of each row of x, summed over each group's rows [g n]."""

  # One group at a time: all products at once would be too much to hold.
  def one(group_and_count):
    group, count = group_and_count
    products = jnp.matmul(x, group.T, precision=jax.lax.Precision.HIGHEST)
    kernel = (products / x.shape[1] + 1) ** 3
    return jnp.where(jnp.arange(len(group)) < count, kernel, 0).sum(axis=1)

  totals = jax.lax.map(one, (groups, counts))
  return jax.lax.with_sharding_constraint(totals, everywhere)


def _unbiased(
  within: list[np.ndarray],
  between: np.ndarray,
  counts: list[np.ndarray],
  kept: np.ndarray,
) -> float:
  """The estimate from the groups that are kept."""
  n, m = (int(count[kept].sum()) for count in counts)
  own = [sums[kept][:, kept].sum() for sums in within]
  return float(
    own[0] / (n * (n - 1))
    + own[1] / (m * (m - 1))
    - 2 * between[kept][:, kept].sum() / (n * m)
  )
