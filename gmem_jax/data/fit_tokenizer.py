"""Fits a linear tokenizer to the images that are trained on."""

import hashlib
import logging
import pathlib
from collections.abc import Iterator

import jax
import numpy as np

from gmem_jax import progress as progress_lib
from gmem_jax.config import sections
from gmem_jax.data import batching, decode_image, sources
from gmem_jax.files import weights
from gmem_jax.models.encoders import patch_pca
from gmem_jax.parallel import processes

_log = logging.getLogger(__name__)

# More tell no more: each has hundreds of patches.
MOST_IMAGES = 4096
# Images whose patches are summed together.
BATCH = 64


def fit_if_missing(config: sections.Config, source: sources.Source) -> None:
  """Writes `encoder.tokenizer_weights`, if they are fitted and not there yet.

  All processes call it; the first one fits.

  Raises:
    ValueError: If no image can be read, or they vary too little.
    OSError: If the weights cannot be written.
  """
  if config.encoder.tokenizer != "patch_pca":
    return
  path = pathlib.Path(config.encoder.tokenizer_weights)
  if jax.process_index() == 0 and not path.exists():
    _fit(config.encoder.tokenizer_patch, config, source, path)
  processes.wait_for_all("prepare/tokenizer")


def _fit(
  patch: int,
  config: sections.Config,
  source: sources.Source,
  path: pathlib.Path,
) -> None:
  channels, size = config.encoder.tokenizer_channels, config.encoder.image_size
  found = patch_pca.fit(_images(source, size), patch, channels)
  _log.info(
    "tokenizer: %d directions keep %.1f %% of the variance of patches of"
    " %d x %d pixels; written to %s",
    channels,
    100 * found.kept,
    patch,
    patch,
    path,
  )
  digest = hashlib.sha256(found.mean.tobytes() + found.basis.tobytes())
  weights.save_converted(
    path,
    {"params": {"mean": found.mean, "basis": found.basis}},
    {
      "kind": "patch_pca",
      "title": f"linear tokenizer of {patch} x {patch} pixels",
      "model": {"patch": patch},
      "weights": None,
      "step": None,
      "source": {"file": "", "sha256": digest.hexdigest()},
    },
  )


def _images(source: sources.Source, size: int) -> Iterator[np.ndarray]:
  """Batches of cropped images in [-1, 1]: all, or as many evenly spaced."""
  count = min(len(source), MOST_IMAGES)
  numbers = np.linspace(0, len(source) - 1, count).astype(int)
  line = progress_lib.Progress("tokenizer", 0, count, unit="image")

  def readable() -> Iterator[np.ndarray]:
    for number in numbers:
      pixels = source.read(int(number)).pixels
      line.advance(1)
      if pixels is None:
        continue
      if pixels.shape[:2] != (size, size):
        pixels = decode_image.center_crop(pixels, size)
      yield pixels

  empty = True
  for batch in batching.grouped(readable(), BATCH):
    empty = False
    yield np.stack(batch).astype(np.float32) / 127.5 - 1
  line.close()
  if empty:
    raise ValueError(f"no image of {source.name} can be read")
