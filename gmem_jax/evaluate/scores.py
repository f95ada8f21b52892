"""Images to scores: one pass over them, compared with a reference."""

import dataclasses
import pathlib

from gmem_jax.evaluate import (
  accumulate as tally_lib,
  catalogue,
  features as extractor_lib,
  frechet,
  measure,
  precision_recall,
  reference as reference_lib,
  sources,
  statistics,
)


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Scores images against a reference.

  Attributes:
    scores: Of `catalogue.SCORES`.
    extractor: The networks they need.
    reference: What the images are catalogue.compared with.
  """

  scores: tuple[str, ...]
  extractor: extractor_lib.Extractor
  reference: statistics.Statistics

  def against(
    self,
    path: pathlib.Path,
    shape: tuple[int, int, int],
    store: measure.Store | None,
    *,
    published: bool = False,
  ) -> "Evaluator":
    """The same with another reference; see `reference.open_reference`.

    Args:
      path: The reference.
      shape: H, W, ch of the images that are compared.
      store: Where a killed pass continues from, or None.
      published: See `statistics.check_networks`.
    """
    reference = reference_lib.open_reference(
      path, self.scores, self.extractor, shape, store, published=published
    )
    return dataclasses.replace(self, reference=reference)

  def check(self, source: sources.Source, count: int) -> None:
    """Refuses images that cannot be scored, before any is made or read.

    Args:
      source: The images.
      count: How many of them.

    Raises:
      ValueError: With the reason.
    """
    if count > source.count:
      raise ValueError(
        f"{count} images are asked for, there are {source.count}"
      )
    gaussians, _ = catalogue.compared(self.scores)
    catalogue.check_count(count, gaussians, self.extractor.widths, "the images")
    self.extractor.check(source.shape)

  def __call__(
    self,
    source: sources.Source,
    count: int,
    store: measure.Store | None = None,
  ) -> dict[str, float]:
    """Scores the first images of a source.

    Args:
      source: The images.
      count: How many.
      store: Where a killed evaluation continues from, or None.

    Returns:
      Name -> score.

    Raises:
      ValueError: If they cannot be scored.
    """
    self.check(source, count)
    gaussians, rows = catalogue.compared(self.scores)
    tally = tally_lib.Tally(
      self.extractor.widths,
      moments=sorted(gaussians),
      classes="inception_score" in self.scores,
      keep={name: tally_lib.evenly(count, count) for name in rows},
    )
    measure.measure("evaluate", source, count, self.extractor, tally, store)
    return self._compute(tally)

  def _compute(self, tally: tally_lib.Tally) -> dict[str, float]:
    found = {}
    for score in self.scores:
      if score in catalogue.DISTANCES:
        name = catalogue.DISTANCES[score]
        found[score] = frechet.frechet_distance(
          tally.moments[name].gaussian(), self.reference.gaussians[name]
        )
      elif score == "precision_recall":
        found["precision"], found["recall"] = precision_recall.precision_recall(
          self.reference.rows["pool"], tally.rows("pool"), self.extractor.mesh
        )
      elif tally.score:
        found["inception_score"] = tally.score.score()
    return found
