"""The distance that a perfect generator would have."""

import numpy as np

from gmem_jax.evaluate import accumulate, frechet, scores as scores_lib, sources

# Random splits that are averaged.
SPLITS = 10


def frechet_floor(
  evaluator: scores_lib.Evaluator,
  real: sources.ImageSource,
  score: str,
  count: int,
) -> float:
  """The Fréchet distance of real images from other real ones.

  A finite number of images is at a distance from its own distribution: samples
  at this one could not be told from real images by it. Every host must call.

  Args:
    evaluator: Has the networks.
    real: Real images, more than `count`.
    score: A Fréchet distance of `scores.DISTANCES`.
    count: As many real images as there are samples to judge are compared with
      all others.

  Returns:
    The mean over `SPLITS` random splits.

  Raises:
    ValueError: If there are not two images more than `count`.
  """
  if real.count < count + 2:
    raise ValueError(
      f"the floor of {count} images: at least {count + 2} real ones are needed,"
      f" there are {real.count}"
    )
  name = scores_lib.DISTANCES[score]
  extractor = evaluator.extractor
  sums = accumulate.Accumulator(
    extractor.widths, keep={name: np.arange(real.count)}
  )
  accumulate.measure("floor", real, real.count, extractor, sums, None)
  features = sums.rows(name)
  random = np.random.default_rng(0)
  distances = []
  for _ in range(SPLITS):
    order = random.permutation(real.count)
    pair = features[order[:count]], features[order[count:]]
    distances.append(frechet.frechet_distance(*map(_fit, pair)))
  return float(np.mean(distances))


def _fit(features: np.ndarray) -> frechet.Gaussian:
  moments = frechet.Moments(features.shape[1])
  moments.add(features)
  return moments.gaussian()
