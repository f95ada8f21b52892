"""From a config to the evaluator that scores its images."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from gmem_jax.config import sections
from gmem_jax.data import sources as data_sources
from gmem_jax.evaluate import (
  accumulate,
  features,
  networks,
  reference,
  scores,
  sources,
)
from gmem_jax.files import paths

_REFERENCE_HELP = (
  ": the run's training images are not in memory, so it must be ADM's .npz,"
  " images, or statistics of them (python -m gmem_jax.evaluate stats --help)"
)


def make_evaluator(
  config: sections.Config,
  mesh: Mesh,
  own: data_sources.Images | None,
) -> scores.Evaluator:
  """Loads the networks; `with_reference` adds the reference.

  `own` are the run's training images if they are in memory.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  section = config.eval
  names = scores.networks_of(section.scores)
  options = {
    "inception": ("config.eval.inception_weights", section.inception_weights),
    # The network of the memory bank: no second key for the same weights.
    "dinov2": (
      "config.encoder.features_weights",
      config.encoder.features_weights,
    ),
  }
  loaded = networks.load(names, options, section.preprocessing)
  if "classifier" in names:
    loaded.append(_classifier(config, own))
  extractor = features.Extractor(loaded, mesh, section.device_batch)
  return scores.Evaluator(section.scores, extractor, repeats=section.repeats)


def _classifier(
  config: sections.Config, own: data_sources.Images | None
) -> networks.FeatureNetwork:
  if own is None or (own.labels < 0).any():
    raise ValueError(
      f"config.eval.scores={config.eval.scores}: 'frechet' trains a small"
      f" classifier on labelled images, and config.data.source="
      f"{config.data.source!r} has none in memory: take 'fid' or"
      " 'frechet_dinov2'"
    )
  return networks.train_classifier(
    own.pixels, own.labels, config.seed, own.name
  )


def with_reference(
  config: sections.Config,
  evaluator: scores.Evaluator,
  shape: tuple[int, int, int],
  own: data_sources.Images | None,
  store: accumulate.PartialStore | None = None,
) -> scores.Evaluator:
  """Loads the reference that `eval.reference` names, or measures it.

  `shape` is H, W, ch of the images to score. The run's own training images, if
  in memory, are the reference where the config names none.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  section = config.eval
  try:
    if section.reference:
      path = paths.local(section.reference)
      published = section.preprocessing == "published"
      return reference.against(
        evaluator, path, shape, store, published=published
      )
    if own is None:
      scores.require_reference(section.scores, None)
      return evaluator
    gaussians, rows = scores.compared(section.scores)
    measured = reference.measure_statistics(
      images_source(own),
      evaluator.extractor,
      gaussians,
      rows,
      store,
      own.name,
    )
  except ValueError as error:
    # Without training images in memory nothing else can be the reference.
    help_text = "" if section.reference or own else _REFERENCE_HELP
    key = f"config.eval.reference={section.reference!r}"
    raise ValueError(f"{key}: {error}{help_text}") from None
  return dataclasses.replace(evaluator, reference=measured)


def with_heldout(
  config: sections.Config,
  evaluator: scores.Evaluator,
  shape: tuple[int, int, int],
  own: data_sources.Images | None,
  store: accumulate.PartialStore | None = None,
) -> scores.Evaluator:
  """Adds the held-out images that `eval.heldout` names.

  The run's `own`, if in memory, are taken where the config names none; without
  them, or where no score is of held-out images, nothing is added.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  named = config.eval.heldout
  try:
    if named:
      return reference.with_heldout(evaluator, paths.local(named), shape, store)
    if own is None or not any(scores.compared_heldout(config.eval.scores)):
      return evaluator
    gaussians, rows = reference.needed_heldout(evaluator)
    measured = reference.measure_statistics(
      images_source(own), evaluator.extractor, gaussians, rows, store, own.name
    )
  except ValueError as error:
    raise ValueError(f"config.eval.heldout={named!r}: {error}") from None
  return dataclasses.replace(evaluator, heldout=measured)


def real_images(
  config: sections.Config, own: data_sources.Images | None, channels: int
) -> sources.ImageSource | None:
  """The images of the reference, or None where it holds statistics alone."""
  if config.eval.reference:
    return reference.images_of(paths.local(config.eval.reference), channels)
  return images_source(own) if own else None


def images_source(images: data_sources.Images) -> sources.ImageSource:
  """Images of a data set as a source."""
  return sources.in_memory(images.pixels, {"images": images.name})


def score_pixels(
  evaluator: scores.Evaluator | None, pixels: np.ndarray
) -> dict[str, float]:
  """Scores of images uint8 [n H W ch]; the evaluator must have a reference."""
  assert evaluator is not None, "config checks that the report has its score"
  source = sources.in_memory(pixels, {})
  return evaluator(source, source.count)
