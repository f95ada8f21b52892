"""What real images score in the place of samples: the floor of each score."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from gmem_jax.evaluate import (
  accumulate,
  frechet,
  scores as scores_lib,
  sources,
  statistics,
)
from gmem_jax.parallel import processes

_log = logging.getLogger(__name__)

# Random splits that are averaged, unless a caller says otherwise.
SPLITS = 10
# Images that scores without a covariance need, less one.
_FEWEST = 19


class Floor(NamedTuple):
  """The scores of real images, compared with other real ones.

  A finite number of images is at a distance from its own distribution: samples
  at this one could not be told from real images by it.

  Attributes:
    scores: Score -> its mean over random splits.
    deviations: Score -> its standard deviation over them.
    count: Real images in the place of the samples.
    others: Real images that they are compared with.
  """

  scores: dict[str, float]
  deviations: dict[str, float]
  count: int
  others: int


def sizes(
  evaluator: scores_lib.Evaluator, real: int, count: int
) -> tuple[int, int]:
  """How many of some real images stand for samples, and how many for others.

  Args:
    evaluator: Has the scores.
    real: Number of real images.
    count: Number of samples to judge. Half of the real images, where they are
      fewer than twice as many.

  Raises:
    ValueError: If there are too few of them.
  """
  count = min(count, real // 2)
  others = min(real - count, max(count, scores_lib.REFERENCE_ROWS))
  gaussians, _ = scores_lib.compared(evaluator.scores)
  widths = evaluator.extractor.widths
  least = max((widths[name] for name in gaussians), default=_FEWEST)
  if count <= least:
    raise ValueError(
      f"the floor: more than {2 * least} real images are needed, there are"
      f" {real}"
    )
  return count, others


def of_reference(
  evaluator: scores_lib.Evaluator,
  real: sources.ImageSource | None,
  count: int,
  store: accumulate.PartialStore | None,
) -> Floor | None:
  """The floor from a reference's images, or None where there can be none.

  Args:
    evaluator: Its `repeats` are the number of splits.
    real: The images, or None if it holds statistics alone.
    count: Number of samples to judge.
    store: See `measure`.
  """
  if not evaluator.repeats:
    return None
  try:
    if real is None:
      raise ValueError("the floor: the reference holds no images")
    sizes(evaluator, real.count, count)
  except ValueError as error:
    if processes.is_main():
      _log.warning("%s", error)
    return None
  return measure(evaluator, real, count, evaluator.repeats, store)


def measure(
  evaluator: scores_lib.Evaluator,
  real: sources.ImageSource,
  count: int,
  splits: int = SPLITS,
  store: accumulate.PartialStore | None = None,
) -> Floor:
  """Scores real images against other real ones; every host must call.

  Args:
    evaluator: Has the scores and networks; its reference is not used.
    real: Real images.
    count: Number of samples to judge, see `sizes`.
    splits: Random splits, at least two.
    store: Where a killed pass continues from, or None.

  Raises:
    ValueError: If there are too few images.
  """
  count, others = sizes(evaluator, real.count, count)
  total = count + others
  # Spread, as the images of a folder are often sorted by class.
  spread = accumulate.evenly(real.count, total)
  source = sources.Arrays(
    {"floor": total, "of": real.info}, total, real.shape,
    lambda numbers: real.read(spread[numbers]), real.collective,
  )  # fmt: skip
  names = {scores_lib.FEATURES[score] for score in evaluator.scores}
  extractor = evaluator.extractor
  sums = accumulate.Accumulator(
    extractor.widths, keep={name: np.arange(total) for name in names}
  )
  accumulate.measure("floor", source, total, extractor, sums, store)
  features = {name: sums.rows(name) for name in names}
  random, found = np.random.default_rng(0), []
  for _ in range(splits):
    order = random.permutation(total)
    ours, theirs = (
      {name: rows[part] for name, rows in features.items()}
      for part in (order[:count], order[count:])
    )
    against = dataclasses.replace(
      evaluator, reference=_reference(evaluator, theirs)
    )
    found.append(against.of_features(ours))
  values = {
    name: [each[name] for each in found]
    for name in found[0]
    if not name.endswith("_error")
  }
  return Floor(
    {name: float(np.mean(each)) for name, each in values.items()},
    {name: float(np.std(each, ddof=1)) for name, each in values.items()},
    count,
    others,
  )


def _reference(
  evaluator: scores_lib.Evaluator, features: Mapping[str, np.ndarray]
) -> statistics.Statistics:
  """Real images as a reference: as many rows are kept as of any other."""
  gaussians, rows = scores_lib.compared(evaluator.scores)
  count = len(next(iter(features.values())))
  kept = accumulate.evenly(count, scores_lib.REFERENCE_ROWS)
  return statistics.Statistics(
    {name: _fit(features[name]) for name in gaussians},
    {name: features[name][kept] for name in rows},
    {},
    count,
    None,
    {},
  )


def _fit(features: np.ndarray) -> frechet.Gaussian:
  moments = frechet.Moments(features.shape[1])
  moments.add(features)
  return moments.gaussian()
