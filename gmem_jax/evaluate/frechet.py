"""The Fréchet distance of two Gaussians, fitted in one pass over features.

Shapes: n images, f feature width.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.linalg

# Rows gathered before the covariance is updated: one matmul with this many
# costs far less than one with each batch, and they are only 8 MB.
_GATHERED = 1024
# Of a covariance's trace: a distance that is rounding.
_NOTHING = 1e-6


@dataclasses.dataclass(frozen=True)
class Gaussian:
  """Mean and covariance of features.

  Attributes:
    mean: float64 [f].
    cov: float64 [f, f], divided by n - 1.
  """

  mean: np.ndarray
  cov: np.ndarray


class Moments:
  """Running count, mean and centred second moment of features.

  Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm
  for computing sample variances", 1979.
  """

  # E[x²] - E[x]² loses all digits where the mean is large beside the spread, so
  # every sum is of centred values and in float64. No features are kept, so
  # memory does not grow with the number of images.

  def __init__(self, width: int):
    """Starts with no features."""
    self._count = 0
    self._mean = np.zeros(width)
    self._m2 = np.zeros((width, width))
    self._rows: list[np.ndarray] = []

  def add(self, features: np.ndarray) -> None:
    """Adds features.

    Args:
      features: [n, f], any float type. Kept without a copy until there are
        enough of them, so they must not change afterwards.

    Raises:
      ValueError: If the width differs, or a feature is not finite.
    """
    if features.ndim != 2 or features.shape[1] != len(self._mean):
      raise ValueError(
        f"features {features.shape}: rows of {len(self._mean)} are expected"
      )
    # One NaN would make every later sum NaN, and the score with it.
    if not np.isfinite(features).all():
      raise ValueError("features hold NaN or infinity")
    self._rows.append(features)
    if sum(len(rows) for rows in self._rows) >= _GATHERED:
      self._flush()

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
    """The state, for `restore`."""
    self._flush()
    count = np.array(self._count)
    return {"count": count, "mean": self._mean, "m2": self._m2}

  def restore(self, arrays: dict[str, np.ndarray]) -> None:
    """Continues from what `arrays` returned."""
    self._count = int(arrays["count"])
    # Copies, as m2 is added to in place.
    self._mean, self._m2 = np.array(arrays["mean"]), np.array(arrays["m2"])

  def _flush(self) -> None:
    """Adds the gathered rows to the sums."""
    if not self._rows:
      return
    rows = np.concatenate(self._rows).astype(np.float64)
    self._rows = []
    mean = rows.mean(axis=0)
    rows -= mean
    total = self._count + len(rows)
    difference = mean - self._mean
    weight = self._count * len(rows) / total
    self._mean = self._mean + difference * (len(rows) / total)
    self._count = total
    # Moving both means to the common one adds an outer product to m2. As one
    # more row it costs nothing.
    rows = np.concatenate([rows, (difference * np.sqrt(weight))[None]])
    # numpy sees that this is symmetric and computes one half.
    self._m2 += rows.T @ rows


def ratio(
  distances: Sequence[float], real: Sequence[tuple[Gaussian, Gaussian]]
) -> float:
  """FDr^k: distances of samples in k representations over those of real images.

  Args:
    distances: Of the samples from a reference, in each representation.
    real: In each, held-out images and that reference.

  Returns:
    The mean of the k ratios: 1 is as far from the reference as held-out images
    are. Distances of different representations have no common scale; ratios do.

  Raises:
    ValueError: If held-out images are at no distance: they are the reference.

  Source: Yang et al., arXiv 2604.28190.
  """
  ratios = []
  for distance, (heldout, reference) in zip(distances, real, strict=True):
    own = frechet_distance(heldout, reference)
    if own <= _NOTHING * np.trace(reference.cov):
      raise ValueError(
        "the held-out images are those of the reference: at no distance from"
        " it, they are no measure"
      )
    ratios.append(distance / own)
  return float(np.mean(ratios))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
  """The squared Fréchet distance of two Gaussians, at least 0.

  |m_a - m_b|² + tr(S_a) + tr(S_b) - 2 tr((S_a^½ S_b S_a^½)^½).

  Raises:
    ValueError: If the widths differ.

  Source: Heusel et al. 2017, §2 (FID).
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(f"feature widths differ: {a.mean.shape}, {b.mean.shape}")
  # The usual form is the root of S_a S_b, which is not symmetric: its general
  # matrix root turns complex on singular covariances and takes 9 to 13 s at
  # f = 2048, where this symmetric form of the same trace takes 2 s.
  values, vectors = scipy.linalg.eigh(a.cov)
  # Rounding makes eigenvalues of about zero slightly negative.
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
