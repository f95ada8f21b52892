"""Memorisation: how close samples come to what the model was trained on.

For each generated image the nearest training latent and the nearest row of the
memory bank; beside them, for scale, how close real training images come to each
other. A model that copies has samples nearer than real images are.

Shapes: n images, m training latents, d feature width.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import progress
from gmem_jax.bank import lookup
from gmem_jax.config import sections
from gmem_jax.data import load_encoders, pipeline, schema
from gmem_jax.evaluate import accumulate, nearest as nearest_lib, sources
from gmem_jax.models.encoders import protocols
from gmem_jax.train import dataset as dataset_lib

# Training latents compared at a time: 64 MB of the VAE's of 256 pixels, read
# from disk once for all queries.
_BLOCK = 4096
# Real images compared with all others: enough for a histogram.
_REAL = 2048


@dataclasses.dataclass(frozen=True)
class Latents:
  """The latents of the training images.

  Attributes:
    count: How many.
    read: Numbers of images [n] -> their latents [n …].
  """

  count: int
  read: Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Memorisation:
  """How close samples come to the training images.

  Attributes:
    distances: [n] of each sample to its nearest training latent.
    rows: [n] number of that latent.
    real_distances: [k] the same for real training latents, themselves excluded.
  """

  distances: np.ndarray
  rows: np.ndarray
  real_distances: np.ndarray

  def own_memory(self, rows: np.ndarray) -> float:
    """Fraction of samples nearest to the row [n] that their snippet is of."""
    return float(np.mean(self.rows == rows))


@dataclasses.dataclass(frozen=True)
class Audit:
  """Samples beside their nearest training images.

  Attributes:
    latents: How close the samples come in latents.
    bank_rows: [n] the bank row whose feature is nearest to each sample's.
    bank_scores: [n] its cosine.
    samples: uint8 [n H W ch].
    pictures: Numbers of training images -> these, uint8; decoded from their
      latents where the images themselves are not in memory.
  """

  latents: Memorisation
  bank_rows: np.ndarray
  bank_scores: np.ndarray
  samples: np.ndarray
  pictures: Callable[[np.ndarray], np.ndarray]


def nearest(
  queries: np.ndarray, latents: Latents, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest training latent of each query, by Euclidean distance.

  Args:
    queries: [n …].
    latents: Read once, in order; those that are nearest once more.
    own: [n] for each query a row to exclude, its own; -1 or None for none.

  Returns:
    (distances float32 [n], rows int32 [n]).
  """
  queries = _flat(queries)
  own = np.full(len(queries), -1) if own is None else own
  best = np.full(len(queries), np.inf, np.float32)
  rows = np.full(len(queries), -1, np.int32)
  bar = progress.Progress("audit", 0, latents.count, unit="latent")
  for start in range(0, latents.count, _BLOCK):
    numbers = np.arange(start, min(start + _BLOCK, latents.count))
    block = _flat(latents.read(numbers))
    # Two, as the nearest of them may be the query's own.
    squared, near = nearest_lib.nearest(queries, block, min(2, len(block)))
    near = near + np.int32(start)
    squared[near == own[:, None]] = np.inf
    each, first = np.arange(len(queries)), squared.argmin(axis=1)
    squared, near = squared[each, first], near[each, first]
    # Strictly: of equals the first stays, whatever the block's size.
    nearer = squared < best
    best = np.where(nearer, squared, best)
    rows = np.where(nearer, near, rows)
    bar.update(int(numbers[-1]) + 1)
  bar.close()
  # Again, from differences: |q|² - 2 q·x + |x|² cancels for near pairs, which
  # are the ones that an audit is about.
  differences = queries - _flat(latents.read(rows))
  return np.linalg.norm(differences, axis=1), rows


def _flat(latents: np.ndarray) -> np.ndarray:
  return latents.reshape(len(latents), -1).astype(np.float32)


def memorisation(
  samples: np.ndarray, latents: Latents, rows: np.ndarray
) -> Memorisation:
  """Compares samples [n …] with training latents, rows [k] with the others."""
  count = len(samples)
  # In one pass, as reading the latents takes longest.
  queries = np.concatenate([_flat(samples), _flat(latents.read(rows))])
  own = np.concatenate([np.full(count, -1), rows])
  distances, near = nearest(queries, latents, own)
  return Memorisation(distances[:count], near[:count], distances[count:])


def in_memory(latents: np.ndarray) -> Latents:
  """Latents that are one array [m …]."""
  return Latents(len(latents), lambda numbers: latents[numbers])


def of_records(records: pipeline.Records) -> Latents:
  """Latents of training examples, not mirrored; means of posteriors."""
  field = "latent" if "latent" in records.spec() else "mean"
  flips = schema.Flips(latent=False, tokens=False, feature=False)

  def read_one(number: int) -> np.ndarray:
    return records.read(number, flips)[field].astype(np.float32)

  return Latents(
    len(records),
    lambda numbers: np.stack(sources.read_all(read_one, numbers)),
  )


class Auditor:
  """Audits generated images; refuses what cannot be before they are made."""

  def __init__(
    self,
    config: sections.Config,
    dataset: dataset_lib.Dataset | None,
    count: int,
    shape: tuple[int, int, int],
  ):
    """Loads the encoders, for `count` images of the shape H, W, ch.

    Raises:
      ValueError: If there are no training images to compare with, fewer samples
        than are to be audited, or these have another size.
    """
    key = f"config.eval.audit={config.eval.audit}"
    if dataset is None:
      raise ValueError(
        f"{key}: config.data.source={config.data.source!r} has no training"
        " images to compare with"
      )
    if count < config.eval.audit:
      raise ValueError(f"{key}: there are {count} images")
    self._count, self._batch = config.eval.audit, config.eval.device_batch
    self._dataset = dataset
    self._tokenizer = load_encoders.load_tokenizer(config)
    latent_shape = tuple(dataset.train.latent_shape)
    one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    encoded = jax.eval_shape(self._tokenizer.encode, one).shape[1:]
    if encoded != latent_shape:
      raise ValueError(
        f"{key}: images of {shape} pixels encode to latents {encoded}, those of"
        f" the training images are {latent_shape}"
      )
    self._encoder = load_encoders.load_features(config, shape[-1])
    self._latents = of_records(dataset.train.records)
    self._encode = jax.jit(self._latents_and_features)
    self._decode = jax.jit(
      lambda x: protocols.to_uint8(self._tokenizer.decode(x))
    )

  def __call__(self, source: sources.ImageSource) -> Audit:
    """Audits the first `eval.audit` images of a source."""

    def encode(numbers: np.ndarray):
      pixels = source.read(numbers)
      return pixels, *self._encode(pixels)

    samples, latents, features = sources.in_batches(
      encode, np.arange(self._count), self._batch
    )
    units = lookup.place_units(self._dataset.train.bank)
    cosines, rows = lookup.nearest_by_cosine(features, units, 1)
    real = accumulate.evenly(self._latents.count, _REAL)
    return Audit(
      memorisation(latents, self._latents, real),
      rows[:, 0],
      cosines[:, 0],
      samples,
      self._pictures,
    )

  def _latents_and_features(self, pixels):
    floats = protocols.to_float(pixels)
    return self._tokenizer.encode(floats), self._encoder(floats)[0]

  def _pictures(self, rows: np.ndarray) -> np.ndarray:
    """Training images, or what their latents decode to."""
    if self._dataset.train_images is not None:
      return self._dataset.train_images.pixels[rows]
    (pixels,) = sources.in_batches(
      lambda part: [self._decode(self._latents.read(part))], rows, self._batch
    )
    return pixels
