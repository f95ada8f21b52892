"""Principal components of more vectors than fit into memory.

Letters: `n` vectors, `d` their width, `k` directions.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

# Of the largest variance: directions of less are rounding errors.
_NEGLIGIBLE = 1e-9


class Principal(NamedTuple):
  """The directions in which vectors vary, most variance first.

  Attributes:
    mean: float64 [d].
    basis: float64 [d k], orthonormal.
    variances: float64 [k], along each direction.
    total: Variance in all d directions together.
  """

  mean: Float[np.ndarray, " d"]
  basis: Float[np.ndarray, "d k"]
  variances: Float[np.ndarray, " k"]
  total: float


class Sums:
  """Sums over vectors that are seen once, batch by batch."""

  def __init__(self, width: int):
    """Starts with no vector of that width."""
    # In float64: the covariance is a difference of large sums.
    self._count = 0
    self._sum = np.zeros(width)
    self._square = np.zeros((width, width))

  def add(self, vectors: Float[np.ndarray, "n d"]) -> None:
    """Adds a batch."""
    vectors = np.asarray(vectors, np.float64)
    self._count += len(vectors)
    self._sum += vectors.sum(axis=0)
    self._square += vectors.T @ vectors

  def principal(self, most: int) -> Principal:
    """The directions of most variance: so many, or all that vary at all.

    Raises:
      ValueError: If no vector was added.
    """
    if not self._count:
      raise ValueError("no vector was added")
    mean = self._sum / self._count
    covariance = self._square / self._count - np.outer(mean, mean)
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    varying = int((variances > _NEGLIGIBLE * max(variances[0], 1e-12)).sum())
    kept = min(most, varying)
    basis = directions[:, :kept]
    # A direction and its opposite fit as well: the largest entry decides.
    largest = np.abs(basis).argmax(axis=0)
    basis = basis * np.sign(basis[largest, np.arange(kept)])
    return Principal(mean, basis, variances[:kept], float(variances.sum()))
