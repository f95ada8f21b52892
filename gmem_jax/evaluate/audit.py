"""Memorisation: how close samples come to what the model was trained on.

For each generated image the nearest training latent and the nearest row of the
memory bank; beside them, for scale, how close real training images come to each
other. A model that copies has samples nearer than real images are.

Shapes: n images, m training latents, f numbers of a latent, d feature width.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from gmem_jax import progress
from gmem_jax.bank import bank as bank_lib, lookup
from gmem_jax.config import sections
from gmem_jax.data import load_encoders, pipeline, schema
from gmem_jax.evaluate import accumulate, sources
from gmem_jax.models.encoders import protocols
from gmem_jax.train import dataset as dataset_lib

# Training latents that are compared at a time, and real ones that are compared
# with all others.
_BLOCK, _REAL = 4096, 2048
_READERS = 8


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
    rows: [n] which that is.
    real_distances: [k] the same of real training latents, themselves left out.
  """

  distances: np.ndarray
  rows: np.ndarray
  real_distances: np.ndarray

  def own_memory(self, rows: np.ndarray) -> float:
    """Fraction of samples that are nearest to their own memory.

    Args:
      rows: [n] the training image that each sample's snippet was made of.
    """
    return float(np.mean(self.rows == rows))


@dataclasses.dataclass(frozen=True)
class Result:
  """An audit.

  Attributes:
    latents: How close the samples come in latents.
    bank_rows: [n] the bank row whose feature is nearest to each sample's.
    bank_scores: [n] its cosine.
    samples: The samples, uint8 [n H W ch].
    pictures: Numbers of training images -> these, uint8; decoded of their
      latents where the images themselves are not in memory.
  """

  latents: Memorisation
  bank_rows: np.ndarray
  bank_scores: np.ndarray
  samples: np.ndarray
  pictures: Callable[[np.ndarray], np.ndarray]


@functools.partial(jax.jit, donate_argnums=(0, 1))
def _nearer(
  best: Float[Array, " n"],
  rows: Int32[Array, " n"],
  queries: Float[Array, "n f"],
  block: Float[Array, "k f"],
  first: Int32[Array, ""],
  allowed: Bool[Array, "n k"],
) -> tuple[Float[Array, " n"], Int32[Array, " n"]]:
  """The nearest of those found before and of a block's rows."""
  highest = jax.lax.Precision.HIGHEST
  norms = (queries**2).sum(axis=1)[:, None] + (block**2).sum(axis=1)[None]
  squared = norms - 2 * jnp.matmul(queries, block.T, precision=highest)
  squared = jnp.where(allowed, jnp.maximum(squared, 0), jnp.inf)
  found = squared.argmin(axis=1).astype(jnp.int32)
  distance = jnp.take_along_axis(squared, found[:, None], axis=1)[:, 0]
  nearer = distance < best
  return jnp.where(nearer, distance, best), jnp.where(
    nearer, first + found, rows
  )


def nearest(
  queries: np.ndarray, latents: Latents, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest training latent of each query, by Euclidean distance.

  Args:
    queries: [n …].
    latents: The training latents; each is read once, in order, and those that
      were found once more.
    own: [n] a row for each query that does not count, its own; or None.

  Returns:
    (distances [n], rows [n]); float32 and int32.
  """
  queries = queries.reshape(len(queries), -1).astype(np.float32)
  own = np.full(len(queries), -1) if own is None else own
  best = jnp.full(len(queries), jnp.inf, jnp.float32)
  rows = jnp.full(len(queries), -1, jnp.int32)
  bar = progress.Progress("audit", 0, latents.count, unit="latent")
  for start in range(0, latents.count, _BLOCK):
    numbers = np.arange(start, min(start + _BLOCK, latents.count))
    block = _flat(latents.read(numbers))
    allowed = own[:, None] != numbers[None]
    best, rows = _nearer(best, rows, queries, block, np.int32(start), allowed)
    bar.update(int(numbers[-1]) + 1)
  bar.close()
  found = np.asarray(rows)
  # Again, of differences: products cancel between near pairs.
  differences = queries - _flat(latents.read(found))
  return np.linalg.norm(differences, axis=1), found


def _flat(latents: np.ndarray) -> np.ndarray:
  return latents.reshape(len(latents), -1).astype(np.float32)


def memorisation(
  samples: np.ndarray, latents: Latents, real: np.ndarray
) -> Memorisation:
  """Compares samples with training latents, and some of these with the others.

  Args:
    samples: [n …] latents of samples.
    latents: The training latents.
    real: [k] rows of those that are compared with the others.
  """
  count = len(samples)
  queries = np.concatenate([_flat(samples), _flat(latents.read(real))])
  own = np.concatenate([np.full(count, -1), real])
  distances, rows = nearest(queries, latents, own)
  return Memorisation(distances[:count], rows[:count], distances[count:])


def in_memory(latents: np.ndarray) -> Latents:
  """Latents that are one array.

  Args:
    latents: [m …].
  """
  return Latents(len(latents), lambda numbers: latents[numbers])


def of_records(records: pipeline.Records) -> Latents:
  """The latents of training examples: of images as they are, not mirrored.

  Args:
    records: The examples; of a posterior the mean is compared.
  """
  field = "latent" if "latent" in records.spec() else "mean"
  flips = schema.Flips(latent=False, tokens=False, feature=False)

  def read_one(number: int) -> np.ndarray:
    return records.read(number, flips)[field].astype(np.float32)

  def read(numbers: np.ndarray) -> np.ndarray:
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:
      return np.stack(list(pool.map(read_one, numbers.tolist())))

  return Latents(len(records), read)


def prepare(
  config: sections.Config,
  dataset: dataset_lib.Dataset | None,
  count: int,
  shape: tuple[int, int, int],
) -> Callable[[sources.Source], Result]:
  """Gets an audit ready, so that what is missing shows before the work.

  Args:
    config: The run.
    dataset: Its training images and latents, or None.
    count: Images that there are to audit.
    shape: H, W, ch of each.

  Returns:
    Generated images -> the audit of the first `eval.audit` of them.

  Raises:
    ValueError: If there are no training images to compare with, fewer samples
      than are to be audited, or these are of another size.
  """
  if dataset is None:
    raise ValueError(
      f"config.eval.audit={config.eval.audit}: config.data.source="
      f"{config.data.source!r} has no training images to compare with"
    )
  if count < config.eval.audit:
    raise ValueError(
      f"config.eval.audit={config.eval.audit}: there are {count} images"
    )
  train, batch = dataset.train, config.eval.device_batch
  tokenizer = load_encoders.load_tokenizer(config)
  one = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  found = jax.eval_shape(tokenizer.encode, one).shape[1:]
  if found != tuple(train.latent_shape):
    raise ValueError(
      f"config.eval.audit={config.eval.audit}: images of {shape} pixels encode"
      f" to latents {found}, those of the training images are"
      f" {tuple(train.latent_shape)}"
    )
  encoder = load_encoders.load_features(config, shape[-1])
  latents = of_records(train.records)

  @jax.jit
  def encode(pixels):
    floats = protocols.to_float(pixels)
    return tokenizer.encode(floats), encoder(floats)[0]

  pictures = _pictures(dataset, latents, tokenizer, batch)

  def audit(source: sources.Source) -> Result:
    numbers = np.arange(config.eval.audit)
    shown, encoded, features = _in_batches(
      lambda part: [pixels := source.read(part), *encode(pixels)],
      numbers,
      batch,
    )
    cosines, rows = jax.jit(lookup.nearest, static_argnames="k")(
      bank_lib.normalise(jnp.asarray(features)),
      jax.jit(lookup.unit)(train.bank),
      k=1,
    )
    real = accumulate.evenly(latents.count, _REAL)
    found = memorisation(encoded, latents, real)
    return Result(
      found, np.asarray(rows)[:, 0], np.asarray(cosines)[:, 0], shown, pictures
    )

  return audit


def _pictures(
  dataset: dataset_lib.Dataset,
  latents: Latents,
  tokenizer: protocols.Tokenizer,
  batch: int,
) -> Callable[[np.ndarray], np.ndarray]:
  """Numbers of training images -> these, or what their latents decode to."""
  if dataset.train_images is not None:
    pixels = dataset.train_images.pixels
    return lambda rows: pixels[rows]
  decode = jax.jit(lambda found: protocols.to_uint8(tokenizer.decode(found)))

  def decoded(rows: np.ndarray) -> np.ndarray:
    (pixels,) = _in_batches(
      lambda part: [decode(latents.read(part))], rows, batch
    )
    return pixels

  return decoded


def _in_batches(
  function: Callable[[np.ndarray], Sequence[Any]],
  numbers: np.ndarray,
  batch: int,
) -> list[np.ndarray]:
  """What a function gives for numbers of images, always for as many at once."""
  parts = []
  for start in range(0, len(numbers), batch):
    part = numbers[start : start + batch]
    found = function(np.resize(part, batch))
    parts.append([np.asarray(x)[: len(part)] for x in found])
  return [np.concatenate(p) for p in zip(*parts, strict=True)]
