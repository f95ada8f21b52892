"""Fits what is linear in the encoders to the images that are trained on."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gmem_jax import progress as progress_lib
from gmem_jax.config import sections
from gmem_jax.data import batching, decode_image, load_encoders, sources
from gmem_jax.files import paths, weights
from gmem_jax.models.encoders import layout_pca, patch_pca
from gmem_jax.parallel import processes

_log = logging.getLogger(__name__)

# More tell no more: each has hundreds of patches.
MOST_IMAGES = 4096
# Images whose patches, or features, are summed together.
BATCH = 64


def fit_missing(config: sections.Config, source: sources.Source) -> None:
  """Fits tokenizer and snippet, where the config has them fitted.

  What is at `encoder.tokenizer_weights` or `encoder.snippet_weights` already is
  kept. All processes call it; the first one fits.

  Raises:
    ValueError: If no image can be read, or they vary too little.
    OSError: If the weights cannot be written.
  """
  encoder = config.encoder
  if encoder.tokenizer == "patch_pca":
    _fit_once(encoder.tokenizer_weights, _fit_tokenizer, config, source)
  if encoder.snippet_weights:
    _fit_once(encoder.snippet_weights, _fit_snippet, config, source)


def _fit_once(
  path: str,
  fit: Callable[[sections.Config, sources.Source, paths.Path], None],
  config: sections.Config,
  source: sources.Source,
) -> None:
  if jax.process_index() == 0 and not paths.exists(path):
    fit(config, source, paths.of(path))
  processes.wait_for_all(f"prepare/{fit.__name__}")


def _fit_tokenizer(
  config: sections.Config, source: sources.Source, path: paths.Path
) -> None:
  patch, channels = (
    config.encoder.tokenizer_patch,
    config.encoder.tokenizer_channels,
  )
  images = _images(config, source, "tokenizer")
  found = patch_pca.fit(images, patch, channels)
  _log.info(
    "tokenizer: %d directions keep %.1f %% of the variance of patches of"
    " %d x %d pixels; written to %s",
    channels,
    100 * found.kept,
    patch,
    patch,
    path,
  )
  title = f"linear tokenizer of {patch} x {patch} pixels"
  arrays = {"mean": found.mean, "basis": found.basis}
  _save(path, "patch_pca", title, {"patch": patch}, arrays)


def _fit_snippet(
  config: sections.Config, source: sources.Source, path: paths.Path
) -> None:
  width = config.encoder.snippet_width
  encoder = load_encoders.load_features_alone(config, source.channels)
  images = _images(config, source, "snippet")
  found = layout_pca.fit(images, encoder, width)
  _log.info("snippet: %d wide; written to %s", width, path)
  title = f"projections of {encoder.name}"
  arrays = {name: getattr(found, name) for name in found._fields}
  _save(path, "layout_pca", title, {"encoder": encoder.name}, arrays)


def _save(
  path: paths.Path,
  kind: str,
  title: str,
  model: Mapping[str, Any],
  arrays: Mapping[str, np.ndarray],
) -> None:
  """Writes what was fitted as converted weights are written."""
  digest = hashlib.sha256()
  for array in arrays.values():
    digest.update(array.tobytes())
  weights.save_converted(
    path,
    {"params": dict(arrays)},
    {
      "kind": kind,
      "title": title,
      "model": dict(model),
      "weights": None,
      "step": None,
      "source": {"file": "", "sha256": digest.hexdigest()},
    },
  )


def _images(
  config: sections.Config, source: sources.Source, name: str
) -> Iterator[np.ndarray]:
  """Batches of cropped images in [-1, 1]: all, or as many evenly spaced.

  With mirror images where they are trained on. `name` begins the line of
  progress.
  """
  size = config.encoder.image_size
  count = min(len(source), MOST_IMAGES)
  numbers = np.linspace(0, len(source) - 1, count).astype(int)
  line = progress_lib.Progress(name, 0, count, unit="image")
  broken: list[sources.Picture] = []

  def readable() -> Iterator[np.ndarray]:
    for number in numbers:
      picture = source.read(int(number))
      pixels = picture.pixels
      line.advance(1)
      if pixels is None:
        broken.append(picture)
        continue
      if pixels.shape[:2] != (size, size):
        pixels = decode_image.center_crop(pixels, size)
      yield pixels

  empty = True
  for batch in batching.grouped(readable(), BATCH):
    empty = False
    images = np.stack(batch).astype(np.float32) / 127.5 - 1
    yield images
    if config.data.mirror:
      yield images[:, :, ::-1]
  line.close()
  if empty:
    first = broken[0]
    raise ValueError(
      f"no image of {source.name} can be read; the first is {first.name}:"
      f" {first.note}"
    )
