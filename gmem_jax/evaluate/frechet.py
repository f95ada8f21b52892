"""The Fréchet distance of two Gaussians, and their statistics in one pass.

Shapes: n images, f feature width.
"""

import dataclasses

import numpy as np
import scipy.linalg

# Rows that are gathered before the covariance is updated: one product of this
# many rows costs far less than as many small ones.
_GATHERED = 1024


@dataclasses.dataclass(frozen=True)
class Gaussian:
  """Mean and covariance of features.

  Attributes:
    mean: float64 [f].
    cov: float64 [f, f], with n - 1.
  """

  mean: np.ndarray
  cov: np.ndarray


class Moments:
  """Count, mean and centred second moment of a stream of features.

  All sums are of centred values and in float64, so nothing cancels whatever
  the mean; two streams merge into what one would have given.

  Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
  for computing sample variances", 1979.
  """

  def __init__(self, width: int):
    """Starts an empty stream.

    Args:
      width: f.
    """
    self._count = 0
    self._mean = np.zeros(width)
    self._m2 = np.zeros((width, width))
    self._rows: list[np.ndarray] = []

  @property
  def count(self) -> int:
    """Features seen so far."""
    return self._count + sum(len(rows) for rows in self._rows)

  def add(self, features: np.ndarray) -> None:
    """Takes in features.

    Args:
      features: [n, f], any float type; they must not change afterwards.

    Raises:
      ValueError: If the width differs, or a feature is not finite.
    """
    if features.ndim != 2 or features.shape[1] != len(self._mean):
      raise ValueError(
        f"features {features.shape}: rows of {len(self._mean)} are expected"
      )
    if not np.isfinite(features).all():
      raise ValueError("features hold NaN or infinity")
    self._rows.append(features)
    if sum(len(rows) for rows in self._rows) >= _GATHERED:
      self._flush()

  def merge(self, other: "Moments") -> None:
    """Takes in another stream.

    Args:
      other: A stream of the same width.

    Raises:
      ValueError: If the widths differ.
    """
    if len(other._mean) != len(self._mean):
      raise ValueError(
        f"feature widths differ: {len(self._mean)}, {len(other._mean)}"
      )
    self._flush()
    other._flush()
    shift = self._shift(other._count, other._mean)
    self._m2 += other._m2
    self._m2 += np.outer(shift, shift)

  def gaussian(self) -> Gaussian:
    """The Gaussian of all features so far.

    Raises:
      ValueError: If there are fewer than two.
    """
    self._flush()
    if self._count < 2:
      raise ValueError(f"{self._count} features: at least two rows are needed")
    return Gaussian(self._mean.copy(), self._m2 / (self._count - 1))

  def arrays(self) -> dict[str, np.ndarray]:
    """All that `from_arrays` needs to go on from here."""
    self._flush()
    count = np.array(self._count)
    return {"count": count, "mean": self._mean, "m2": self._m2}

  @classmethod
  def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "Moments":
    """Goes on from what `arrays` gave.

    Args:
      arrays: Its result.
    """
    moments = cls(len(arrays["mean"]))
    moments._count = int(arrays["count"])
    moments._mean = np.array(arrays["mean"], np.float64)
    moments._m2 = np.array(arrays["m2"], np.float64)
    return moments

  def _flush(self) -> None:
    """Takes the gathered rows into the sums."""
    if not self._rows:
      return
    rows = np.concatenate(self._rows).astype(np.float64)
    self._rows = []
    mean = rows.mean(axis=0)
    rows -= mean
    shift = self._shift(len(rows), mean)
    rows = np.concatenate([rows, shift[None]])
    # numpy sees that this is symmetric and computes one half.
    self._m2 += rows.T @ rows

  def _shift(self, count: int, mean: np.ndarray) -> np.ndarray:
    """Merges counts and means; its outer product is what m2 gains by it."""
    total = self._count + count
    if not total:
      return np.zeros_like(mean)
    difference = mean - self._mean
    weight = self._count * count / total
    self._mean = self._mean + difference * (count / total)
    self._count = total
    return difference * np.sqrt(weight)


def fit_gaussian(features: np.ndarray) -> Gaussian:
  """Fits a Gaussian.

  Args:
    features: [n, f], n at least 2.

  Raises:
    ValueError: If there are fewer than two, or one is not finite.
  """
  if features.ndim != 2 or len(features) < 2:
    raise ValueError(f"features {features.shape}: at least two rows are needed")
  moments = Moments(features.shape[1])
  moments.add(features)
  return moments.gaussian()


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
  """The squared Fréchet distance of two Gaussians.

  |m_a - m_b|² + tr(S_a) + tr(S_b) - 2 tr((S_a^½ S_b S_a^½)^½), by symmetric
  eigendecompositions: no matrix square root that could turn complex.

  Args:
    a: One Gaussian.
    b: The other, of the same width.

  Returns:
    The distance, at least 0.

  Raises:
    ValueError: If the widths differ.

  Source: Heusel et al. 2017, §2 (FID).
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(f"feature widths differ: {a.mean.shape}, {b.mean.shape}")
  values, vectors = scipy.linalg.eigh(a.cov)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  product = scipy.linalg.eigvalsh(root @ b.cov @ root)
  trace_of_root = np.sqrt(np.maximum(product, 0)).sum()
  distance = (
    np.sum((a.mean - b.mean) ** 2)
    + np.trace(a.cov)
    + np.trace(b.cov)
    - 2 * trace_of_root
  )
  return float(max(distance, 0.0))
