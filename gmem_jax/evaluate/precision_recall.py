"""Precision and recall of samples by the manifolds of their features.

A sample is precise if it lies in the manifold of real images, a real image is
recalled if it lies in that of the samples. The manifold of a set is the union
of balls around its members that reach their third nearest neighbours.

Shapes: m, n features of two sets, f feature width.
"""

import numpy as np
from jax.sharding import Mesh

from gmem_jax.evaluate import nearest as nearest_lib

NEIGHBOURS = 3


def precision_recall(
  real: np.ndarray, samples: np.ndarray, mesh: Mesh
) -> tuple[float, float]:
  """Precision and recall of features [m, f] and [n, f]; every host must call.

  Returns:
    (fraction of samples in the real manifold, fraction of real images in the
    samples' manifold), each in [0, 1].

  Raises:
    ValueError: If the widths differ, or a set has too few members.

  Source: Kynkäänniemi et al., arXiv 1904.06991; Dhariwal and Nichol, arXiv
  2105.05233 (three neighbours, Inception features).
  """
  _check_numbers(real, samples)
  real, samples = _centred(real, samples)
  precision = _fraction_inside(samples, real, mesh)
  return precision, _fraction_inside(real, samples, mesh)


def recall(real: np.ndarray, samples: np.ndarray, mesh: Mesh) -> float:
  """The second half of `precision_recall`, as of held-out images."""
  _check_numbers(real, samples)
  return _fraction_inside(*_centred(real, samples), mesh)


def _check_numbers(real: np.ndarray, samples: np.ndarray) -> None:
  if real.shape[1] != samples.shape[1]:
    raise ValueError(f"feature widths differ: {real.shape}, {samples.shape}")
  for name, features in (("real images", real), ("samples", samples)):
    if len(features) <= NEIGHBOURS:
      raise ValueError(
        f"precision and recall of {len(features)} {name}: more than"
        f" {NEIGHBOURS} are needed"
      )


def _centred(
  real: np.ndarray, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  # Distances do not change, their rounding does: float32 products of large
  # numbers cancel. (The ADM suite takes float16, and float32 on overflow.)
  center = real.mean(axis=0, dtype=np.float64)
  return (
    (real - center).astype(np.float32),
    (samples - center).astype(np.float32),
  )


def _fraction_inside(
  features: np.ndarray, others: np.ndarray, mesh: Mesh
) -> float:
  """The fraction of features that lie in the manifold of the others."""
  # Each is its own nearest neighbour.
  squared, _ = nearest_lib.nearest(others, others, NEIGHBOURS + 1, mesh=mesh)
  radii = np.maximum(squared[:, -1], 0)
  # In any ball if in the nearest one: no need to compare with all of them.
  beyond, _ = nearest_lib.nearest(features, others, 1, radii=radii, mesh=mesh)
  # The ball of an image that is there four times has no radius, and a copy of
  # it is at its centre: rounding must not put it outside.
  rounding = 1e-6 * (features**2).sum(axis=1)
  return float(np.mean(beyond[:, 0] <= rounding))
