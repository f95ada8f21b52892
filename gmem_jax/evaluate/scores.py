"""Images to scores: FID, sFID, Inception Score, precision and recall, ….

What each score reads, and one pass over the images that gives them all.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gmem_jax.evaluate import (
  accumulate,
  features as features_lib,
  frechet,
  kernel_distance,
  precision_recall,
  sliced_distance,
  sources,
  statistics,
)

# Score -> the feature whose Fréchet distance it is.
DISTANCES = {
  "fid": "pool",
  "sfid": "spatial",
  "frechet_dinov2": "dinov2",
  "frechet": "classifier",
}
# Of these, those of whole representations: sFID is of a part of one.
REPRESENTATIONS = ("fid", "frechet_dinov2", "frechet")
# Score -> the feature whose kernel distance it is.
KERNELS = {
  "kid": "pool",
  "kernel_dinov2": "dinov2",
  "kernel": "classifier",
}
# Score -> the feature whose kernel distance it is, with a Gaussian kernel.
GAUSSIAN_KERNELS = {
  "mmd_inception": "pool",
  "mmd_dinov2": "dinov2",
  "mmd": "classifier",
}
# Score -> the feature whose sliced distance it is.
SLICED = {
  "mind": "pool",
  "sliced_dinov2": "dinov2",
  "sliced": "classifier",
}
# Score -> (what compares rows and brings a standard error, their feature).
COMPARISONS = {
  score: (compare, feature)
  for compare, named in (
    (kernel_distance.kernel_distance, KERNELS),
    (kernel_distance.gaussian_distance, GAUSSIAN_KERNELS),
    (sliced_distance.sliced_distance, SLICED),
  )
  for score, feature in named.items()
}
# Score -> the feature whose manifolds are compared, and what ends the names of
# precision and recall in it.
MANIFOLDS = {
  "precision_recall": ("pool", ""),
  "precision_recall_dinov2": ("dinov2", "_dinov2"),
  "precision_recall_classifier": ("classifier", "_classifier"),
}
# Score -> the feature of which rows are compared.
ROWS = {score: feature for score, (_, feature) in COMPARISONS.items()} | {
  score: feature for score, (feature, _) in MANIFOLDS.items()
}
# Score -> the feature that it reads.
FEATURES = DISTANCES | ROWS | {"inception_score": "logits"}
SCORES = tuple(FEATURES)
# Reference images whose rows are kept: as many as in ADM's files.
REFERENCE_ROWS = 10_000
# What the Inception Score, which compares with nothing, is given.
NO_REFERENCE = statistics.Statistics({}, {}, {}, None, None, {})


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Scores images against a reference.

  Attributes:
    scores: Of `SCORES`.
    extractor: The networks they need.
    reference: What the images are compared with; see `reference.against`.
    repeats: Random halves of the images that give the standard errors; 0 for
      none.
    heldout: Images that were never trained on, see `compared_heldout`: they
      give recall and Fréchet distances a measure that copies cannot reach.
      None for none.
  """

  scores: tuple[str, ...]
  extractor: features_lib.Extractor
  reference: statistics.Statistics = NO_REFERENCE
  repeats: int = 0
  heldout: statistics.Statistics | None = None

  def check(self, source: sources.ImageSource, count: int) -> None:
    """Refuses images that cannot be scored, before any is made or read.

    Raises:
      ValueError: With the reason.
    """
    if count > source.count:
      raise ValueError(
        f"{count} images are asked for, there are {source.count}"
      )
    self.check_shape(source.shape, count, "the images")

  def check_shape(
    self, shape: tuple[int, int, int], count: int, what: str
  ) -> None:
    """The same of images of a shape H, W, ch; see `check_images`."""
    gaussians, _ = compared(self.scores)
    check_images(self.extractor, shape, count, gaussians, what)

  def __call__(
    self,
    source: sources.ImageSource,
    count: int,
    store: accumulate.PartialStore | None = None,
  ) -> dict[str, float]:
    """Scores the first images of a source.

    Returns:
      Name -> score; "precision_recall" gives "precision" and "recall". Each of
      them with "…_error", its standard error: see `errors`; of a kernel or
      sliced distance, see there. With held-out images also "recall_heldout" of
      each recall, and "frechet_ratio", see `frechet.ratio`.

    Raises:
      ValueError: See `check`; or an image cannot be read.
    """
    self.check(source, count)
    kept = self._features() if self.repeats else compared(self.scores)[1]
    sums = self._sums(count, kept)
    accumulate.measure("evaluate", source, count, self.extractor, sums, store)
    values = self._compute(sums)
    if self.repeats:
      values |= self.errors({name: sums.rows(name) for name in kept})
    return values

  def errors(self, features: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Standard errors of the scores that bring none of their own.

    The spread of the score over random halves of the images, which stands for
    that over other sets of as many: half of a set varies twice as much as all
    of it, and half of that is taken away by the images that two halves share.
    The reference stays as it is.

    Args:
      features: Name -> rows of all images [n f].

    Returns:
      "…_error" of each; none of a Fréchet distance whose halves would have a
      singular covariance.

    Source: Shao and Wu, "A general theory for jackknife variance estimation",
    1989 (the jackknife that deletes half).
    """
    (count,) = {len(rows) for rows in features.values()}
    half, widths = count // 2, self.extractor.widths
    names = tuple(
      score
      for score in self.scores
      if score not in COMPARISONS
      and (score not in DISTANCES or half > widths[DISTANCES[score]])
    )
    part = dataclasses.replace(self, scores=names)
    random, found = np.random.default_rng(0), []
    for _ in range(self.repeats if names else 0):
      chosen = np.sort(random.permutation(count)[:half])
      found.append(
        part.of_features({name: x[chosen] for name, x in features.items()})
      )
    told = set(found[0] if found else ())
    if set(self.scores) & set(REPRESENTATIONS) - set(names):
      told.discard("frechet_ratio")  # It would be of others.
    return {
      f"{name}_error": float(np.std([each[name] for each in found], ddof=1))
      for name in sorted(told)
    }

  def of_features(self, features: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The scores of images by their features, name -> [n f]."""
    used = {name: features[name] for name in self._features()}
    sums = self._sums(len(next(iter(used.values()))), compared(self.scores)[1])
    sums.add(used)
    return self._compute(sums)

  def _sums(self, count: int, kept: Iterable[str]) -> accumulate.Accumulator:
    """For so many images; all rows of the features `kept` stay."""
    gaussians, _ = compared(self.scores)
    return accumulate.Accumulator(
      self.extractor.widths,
      moments=sorted(gaussians),
      classes="inception_score" in self.scores,
      keep={name: np.arange(count) for name in kept},
    )

  def _features(self) -> list[str]:
    """Names of the features that the scores read."""
    return sorted({FEATURES[score] for score in self.scores})

  def _compute(self, sums: accumulate.Accumulator) -> dict[str, float]:
    values = {}
    for score in self.scores:
      if score in DISTANCES:
        name = DISTANCES[score]
        values[score] = frechet.frechet_distance(
          sums.moments[name].gaussian(), self.reference.gaussians[name]
        )
      elif score in COMPARISONS:
        compare, name = COMPARISONS[score]
        values[score], values[f"{score}_error"] = compare(
          sums.rows(name), self.reference.rows[name], self.extractor.mesh
        )
      elif score in MANIFOLDS:
        name, end = MANIFOLDS[score]
        values[f"precision{end}"], values[f"recall{end}"] = (
          precision_recall.precision_recall(
            self.reference.rows[name], sums.rows(name), self.extractor.mesh
          )
        )
      elif sums.score:
        values["inception_score"] = sums.score.score()
    if self.heldout is not None:
      values |= self._compute_heldout(self.heldout, sums, values)
    return values

  def _compute_heldout(
    self,
    heldout: statistics.Statistics,
    sums: accumulate.Accumulator,
    values: Mapping[str, float],
  ) -> dict[str, float]:
    """What held-out images say of the samples, by name."""
    found = {}
    for score in self.scores:
      if score in MANIFOLDS:
        name, end = MANIFOLDS[score]
        found[f"recall_heldout{end}"] = precision_recall.recall(
          heldout.rows[name], sums.rows(name), self.extractor.mesh
        )
    spaces = {
      score: DISTANCES[score]
      for score in self.scores
      if score in REPRESENTATIONS
    }
    if spaces:
      found["frechet_ratio"] = frechet.ratio(
        [values[score] for score in spaces],
        [
          (heldout.gaussians[name], self.reference.gaussians[name])
          for name in spaces.values()
        ],
      )
    return found


def networks_of(scores: Sequence[str]) -> set[str]:
  """Names of the networks that some scores need.

  Raises:
    ValueError: On an unknown score, or none.
  """
  unknown = sorted(set(scores) - set(SCORES))
  if unknown or not scores:
    raise ValueError(
      f"scores {unknown or 'none'}: at least one of {', '.join(SCORES)}"
    )
  return {statistics.NETWORK[FEATURES[score]] for score in scores}


def names_of(scores: Sequence[str]) -> list[str]:
  """What an evaluation calls its scores, without their errors."""
  names = []
  for score in scores:
    end = MANIFOLDS[score][1] if score in MANIFOLDS else None
    both = [f"precision{end}", f"recall{end}"]
    names += [score] if end is None else both
  return names


def compared(scores: Sequence[str]) -> tuple[set[str], set[str]]:
  """What is needed of a reference: (features for Gaussians, for rows)."""
  gaussians = {DISTANCES[s] for s in scores if s in DISTANCES}
  return gaussians, {ROWS[s] for s in scores if s in ROWS}


def compared_heldout(scores: Sequence[str]) -> tuple[set[str], set[str]]:
  """The same of held-out images: for the ratio, and for recall."""
  gaussians = {DISTANCES[s] for s in scores if s in REPRESENTATIONS}
  return gaussians, {MANIFOLDS[s][0] for s in scores if s in MANIFOLDS}


def require_reference(scores: Sequence[str], reference: str | None) -> None:
  """Refuses scores that need a reference where none is named.

  Raises:
    ValueError: Naming the scores that need one.
  """
  needing = [s for s in scores if s != "inception_score"]
  if needing and not reference:
    raise ValueError(f"{', '.join(needing)}: a reference is needed")


def check_images(
  extractor: features_lib.Extractor,
  shape: tuple[int, int, int],
  count: int,
  gaussians: set[str],
  what: str,
) -> None:
  """Refuses images that are too few, or that a network cannot read.

  `gaussians` are the features whose Gaussian is needed; `what` names the
  images, or the key that sets their number.

  Raises:
    ValueError: If a feature has as many dimensions as there are images: its
      covariance would not have full rank.
  """
  for name in sorted(gaussians):
    width = extractor.widths[name]
    if count <= width:
      raise ValueError(
        f"{what}: {count} images are too few for a covariance of {width}"
        f" dimensions ({name}): it would be singular, and the distance a number"
        f" of the sample size. At least {width + 1} are needed, 50,000 are"
        " usual"
      )
  extractor.check(shape)
