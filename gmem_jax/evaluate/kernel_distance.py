"""Kernel distances of two sets of features, with their standard errors.

Squared maximum mean discrepancies. With the kernel (x·y / f + 1)³, in
Inception's features, it is the Kernel Inception Distance (KID); with a Gaussian
one, in those of CLIP, CMMD. Where the estimate is unbiased two sets of one
distribution are at distance 0 on average, whatever their number, where a
Fréchet distance has a floor that depends on it.

Shapes: n, m features of two sets, f their width, g groups.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gmem_jax import progress
from gmem_jax.parallel import sharding

# Parts of the sets, each of which is left out once for the standard error.
GROUPS = 20
# Of the Gaussian kernel: its width, and what its distance is multiplied by.
SIGMA, SCALE = 10.0, 1000.0


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel, and how a distance is estimated by it.

  Attributes:
    function: (x·y, f) -> its value.
    unbiased: Whether no feature is paired with itself.
  """

  function: Callable[[Any, int], Any]
  unbiased: bool


_CUBIC = Kernel(lambda products, width: (products / width + 1) ** 3, True)
# Of features of length 1, |x - y|² is 2 - 2 x·y. Less 1, which cancels in the
# distance, but would take the digits of what is left.
_GAUSSIAN = Kernel(
  lambda products, width: jnp.expm1((products - 1) / SIGMA**2), False
)


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
  return _distance(samples, real, mesh, _CUBIC)


def gaussian_distance(
  samples: np.ndarray, real: np.ndarray, mesh: Mesh
) -> tuple[float, float]:
  """CMMD's distance of features [n f] and [m f], brought to length 1.

  `SCALE` times the squared discrepancy with a Gaussian kernel of width `SIGMA`.
  Every host must call.

  Returns:
    (distance, its standard error), see `kernel_distance`. The estimate is the
    biased one of the published code: never negative, and of two sets of one
    distribution at a floor that falls as 1 / n.

  Raises:
    ValueError: See `kernel_distance`; or a feature is zero.

  Source: Jayasumana et al., arXiv 2401.09603, and its code.
  """
  value, error = _distance(_units(samples), _units(real), mesh, _GAUSSIAN)
  return SCALE * value, SCALE * error


def _units(features: np.ndarray) -> np.ndarray:
  lengths = np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
  if not lengths.all():
    raise ValueError("a feature is zero, so it has no direction")
  return (features / lengths).astype(np.float32)


def _distance(
  samples: np.ndarray, real: np.ndarray, mesh: Mesh, kernel: Kernel
) -> tuple[float, float]:
  """A kernel's distance and its standard error."""
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
  within = [_sums(x, x, mesh, kernel, line, own=kernel.unbiased) for x in pair]
  between = _sums(*pair, mesh, kernel, line)
  line.close()
  counts = [np.array([len(part) for part in x]) for x in pair]

  def estimate(kept: np.ndarray) -> float:
    """From the groups that are kept."""
    n, m = (int(count[kept].sum()) for count in counts)
    ours, theirs = (sums[kept][:, kept].sum() for sums in within)
    less = int(kernel.unbiased)
    both = between[kept][:, kept].sum() / (n * m)
    return float(ours / (n * (n - less)) + theirs / (m * (m - less)) - 2 * both)

  numbers = np.arange(groups)
  others = np.array([estimate(numbers != left_out) for left_out in numbers])
  variance = (groups - 1) / groups * ((others - others.mean()) ** 2).sum()
  return estimate(np.ones(groups, bool)), float(np.sqrt(variance))


def _grouped(features: np.ndarray, groups: int) -> list[np.ndarray]:
  # Every group is spread over the set, which may be sorted by class.
  return [features[first::groups] for first in range(groups)]


def _sums(
  a: list[np.ndarray],
  b: list[np.ndarray],
  mesh: Mesh,
  kernel: Kernel,
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
    totals = np.asarray(_row_sums(x, *others, kernel, everywhere))
    sums[i] = totals[:, : len(group)].sum(axis=1, dtype=np.float64)
    if own:
      norms = (group.astype(np.float64) ** 2).sum(axis=1)
      sums[i, i] -= kernel.function(norms, group.shape[1]).sum()
    line.advance(1)
  return sums


def _padded(features: np.ndarray, rows: int) -> np.ndarray:
  missing = rows - len(features)
  return np.pad(features.astype(np.float32), ((0, missing), (0, 0)))


@functools.partial(jax.jit, static_argnames=("kernel", "everywhere"))
def _row_sums(x, groups, counts, kernel, everywhere):
  """The kernel of each row of x, summed over each group's rows [g n]."""

  # One group at a time: all products at once would be too much to hold.
  def one(group_and_count):
    group, count = group_and_count
    products = jnp.matmul(x, group.T, precision=jax.lax.Precision.HIGHEST)
    values = kernel.function(products, x.shape[1])
    return jnp.where(jnp.arange(len(group)) < count, values, 0).sum(axis=1)

  totals = jax.lax.map(one, (groups, counts))
  return jax.lax.with_sharding_constraint(totals, everywhere)
