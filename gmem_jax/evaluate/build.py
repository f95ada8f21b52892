"""From a config to what scores its images."""

import pathlib

import jax
import numpy as np
from jax.sharding import Mesh

from gmem_jax.config import sections
from gmem_jax.data import sources as data_sources
from gmem_jax.evaluate import (
  catalogue,
  features as extractor_lib,
  measure,
  networks,
  reference,
  scores,
  sources,
)


def make_evaluator(
  config: sections.Config,
  mesh: Mesh,
  own: data_sources.Images | None,
) -> scores.Evaluator:
  """Loads the networks.

  Args:
    config: The run.
    mesh: The devices.
    own: The run's training images, where they are images.

  Returns:
    The evaluator, still without a reference: see `with_reference`.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  chosen = config.eval
  found = []
  wanted = catalogue.networks_of(chosen.scores)
  if "inception" in wanted:
    found.append(
      networks.load_inception(
        "config.eval.inception_weights",
        chosen.inception_weights,
        catalogue.preprocessing_of(chosen.preprocessing),
      )
    )
  if "dinov2" in wanted:
    key = "config.encoder.features_weights"
    found.append(networks.load_dinov2(key, config.encoder.features_weights))
  if "classifier" in wanted:
    found.append(_classifier(config, own))
  extractor = extractor_lib.Extractor(found, mesh, chosen.device_batch)
  return scores.Evaluator(chosen.scores, extractor, catalogue.NO_REFERENCE)


def with_reference(
  config: sections.Config,
  evaluator: scores.Evaluator,
  shape: tuple[int, int, int],
  own: data_sources.Images | None,
  store: measure.Store | None = None,
) -> scores.Evaluator:
  """Loads the reference, or measures it.

  Args:
    config: The run.
    evaluator: What `make_evaluator` made.
    shape: H, W, ch of the images that will be scored.
    own: The run's training images, where they are images.
    store: Where a killed measurement continues from, or None.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  try:
    return _with_reference(config, evaluator, shape, own, store)
  except ValueError as error:
    key = f"config.eval.reference={config.eval.reference!r}"
    raise ValueError(f"{key}: {error}") from None


def _with_reference(
  config: sections.Config,
  evaluator: scores.Evaluator,
  shape: tuple[int, int, int],
  own: data_sources.Images | None,
  store: measure.Store | None,
) -> scores.Evaluator:
  chosen, extractor = config.eval, evaluator.extractor
  if chosen.reference:
    return evaluator.against(
      pathlib.Path(chosen.reference).absolute(),
      shape,
      store,
      published=chosen.preprocessing == "published",
    )
  if own is None:
    try:
      catalogue.no_reference(chosen.scores, None)
    except ValueError as error:
      raise ValueError(
        f"{error}: the run's training images are not in memory, so it must be"
        " ADM's .npz, images, or statistics of them (python -m"
        " gmem_jax.evaluate stats --help)"
      ) from None
    return evaluator
  gaussians, rows = catalogue.compared(chosen.scores)
  found = reference.measure_statistics(
    images_source(own),
    extractor,
    gaussians,
    catalogue.REFERENCE_ROWS if rows else 0,
    store,
    own.name,
  )
  return scores.Evaluator(chosen.scores, extractor, found)


def _classifier(
  config: sections.Config, own: data_sources.Images | None
) -> networks.Network:
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


def images_source(images: data_sources.Images) -> sources.Source:
  """Images in memory as a source.

  Args:
    images: The images.
  """
  pixels = images.pixels
  return sources.Arrays(
    {"images": images.name},
    len(pixels),
    pixels.shape[1:],
    lambda numbers: pixels[numbers],
  )


def score_pixels(
  evaluator: scores.Evaluator | None, pixels: np.ndarray
) -> dict[str, float]:
  """Scores of images in memory.

  Args:
    evaluator: With its reference; the config asked for scores.
    pixels: uint8 [n H W ch].
  """
  assert evaluator is not None, "config checks that the report has its score"
  source = sources.Arrays(
    {}, len(pixels), pixels.shape[1:], lambda numbers: pixels[numbers]
  )
  return evaluator(source, source.count)


def decoded_shape(
  tokenizer, latent_shape: tuple[int, int, int]
) -> tuple[int, int, int]:
  """H, W, ch of the images that a tokenizer decodes.

  Args:
    tokenizer: The tokenizer.
    latent_shape: h, w, c.
  """
  latents = jax.ShapeDtypeStruct((1, *latent_shape), "float32")
  return jax.eval_shape(tokenizer.decode, latents).shape[1:]
