"""Images to numbers: Fréchet distance and memorisation.

Shapes: n images, f feature width, d pixels.
"""

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
import scipy.linalg


@dataclasses.dataclass(frozen=True)
class Gaussian:
  """Mean and covariance of features.

  Attributes:
    mean: float64 [f].
    cov: float64 [f, f], with n - 1.
  """

  mean: np.ndarray
  cov: np.ndarray


def fit_gaussian(features: np.ndarray) -> Gaussian:
  """Fits a Gaussian.

  Args:
    features: [n, f], n at least 2.

  Raises:
    ValueError: If there are fewer than two, or one is not finite.
  """
  if features.ndim != 2 or len(features) < 2:
    raise ValueError(f"features {features.shape}: at least two rows are needed")
  features = features.astype(np.float64)
  if not np.isfinite(features).all():
    raise ValueError("features hold NaN or infinity")
  return Gaussian(features.mean(axis=0), np.cov(features, rowvar=False))


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


@dataclasses.dataclass(frozen=True)
class Memorisation:
  """How close samples come to the training images.

  Attributes:
    own_memory: Fraction of samples whose nearest training image is the one
      that their snippet was made of.
    sample_distance: Mean distance of a sample to its nearest training image.
    real_distance: The same for real images, themselves left out.
  """

  own_memory: float
  sample_distance: float
  real_distance: float


def memorisation(
  samples: np.ndarray, rows: np.ndarray, train: np.ndarray
) -> Memorisation:
  """Measures memorisation by Euclidean distance in pixels.

  Args:
    samples: [n, …] in [-1, 1].
    rows: [n] the training image that each sample's snippet was made of.
    train: [m, …] in [-1, 1].

  Returns:
    The measures; distances are of whole images, not per pixel.
  """
  flat, real = samples.reshape(len(samples), -1), train.reshape(len(train), -1)
  to_train = _distances(flat, real)
  within = _distances(real, real)
  np.fill_diagonal(within, np.inf)
  return Memorisation(
    own_memory=float(np.mean(to_train.argmin(axis=1) == rows)),
    sample_distance=float(to_train.min(axis=1).mean()),
    real_distance=float(within.min(axis=1).mean()),
  )


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Euclidean distances [n, m], float64."""
  a, b = a.astype(np.float64), b.astype(np.float64)
  squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
  return np.sqrt(np.maximum(squared, 0))


def classifier_features(
  images: np.ndarray, labels: np.ndarray, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
  """Trains a small classifier on real images; its hidden layer is a feature.

  For images so small that the Inception network would see nothing.

  Args:
    images: uint8 [n H W channels].
    labels: [n].
    seed: Seed of the classifier.

  Returns:
    uint8 images [k H W channels] -> features [k, 64].

  Raises:
    ModuleNotFoundError: If scikit-learn is not installed.
  """
  from sklearn import exceptions, neural_network

  def flat(x):
    return x.reshape(len(x), -1).astype(np.float64) / 255

  model = neural_network.MLPClassifier((64,), max_iter=50, random_state=seed)
  with warnings.catch_warnings():
    # Its features are wanted, not the last bit of its loss.
    warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
    model.fit(flat(images), labels)
  weights, bias = model.coefs_[0], model.intercepts_[0]
  return lambda x: np.maximum(flat(x) @ weights + bias, 0)
