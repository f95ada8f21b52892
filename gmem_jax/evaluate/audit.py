"""Memorisation: how close samples come to what the model was trained on.

For each generated image the nearest training latent and the nearest row of the
memory bank; beside them, for scale, how close real training images come to each
other. A model that copies has samples nearer than real images ever are.

Shapes: n images, m training latents, f numbers of a latent, d feature width.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from gmem_jax import config as config_lib, pretrained, training_data
from gmem_jax.bank import bank as bank_lib, lookup
from gmem_jax.data import records as records_lib
from gmem_jax.encoders import protocols
from gmem_jax.evaluate import sources

# Training latents, and samples, that are handled at a time.
_BLOCK, _QUERIES = 4096, 256

# () -> the training latents in order, in blocks [k …].
Blocks = Callable[[], Iterable[np.ndarray]]


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
    nearest_latents: The training images whose latents are nearest.
    nearest_memories: Those whose features are nearest.
  """

  latents: Memorisation
  bank_rows: np.ndarray
  bank_scores: np.ndarray
  samples: np.ndarray
  nearest_latents: np.ndarray
  nearest_memories: np.ndarray


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
  queries: np.ndarray, blocks: Blocks, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest training latent of each query, by Euclidean distance.

  Args:
    queries: [n …].
    blocks: Gives the training latents.
    own: [n] a row for each query that does not count, its own; or None.

  Returns:
    (distances [n], rows [n]); float32 and int32.
  """
  queries = queries.reshape(len(queries), -1).astype(np.float32)
  own = np.full(len(queries), -1) if own is None else own
  best = jnp.full(len(queries), jnp.inf, jnp.float32)
  rows = jnp.full(len(queries), -1, jnp.int32)
  first = 0
  for block in blocks():
    numbers = first + np.arange(len(block))
    allowed = own[:, None] != numbers[None]
    flat = block.reshape(len(block), -1).astype(np.float32)
    best, rows = _nearer(best, rows, queries, flat, np.int32(first), allowed)
    first += len(block)
  found = np.asarray(rows)
  return _exact(queries, blocks, found), found


def _exact(queries: np.ndarray, blocks: Blocks, rows: np.ndarray) -> np.ndarray:
  """The distances again, of differences: products cancel between near pairs."""
  distances = np.zeros(len(queries), np.float32)
  first = 0
  for block in blocks():
    here = np.flatnonzero((rows >= first) & (rows < first + len(block)))
    flat = block[rows[here] - first].reshape(len(here), queries.shape[1])
    difference = queries[here] - flat.astype(np.float32)
    distances[here] = np.linalg.norm(difference, axis=1)
    first += len(block)
  return distances


def memorisation(
  samples: np.ndarray, blocks: Blocks, real: np.ndarray, own: np.ndarray
) -> Memorisation:
  """Compares samples with training latents, and these with each other.

  Args:
    samples: [n …] latents of samples.
    blocks: Gives the training latents.
    real: [k …] some of the training latents.
    own: [k] their rows.
  """
  distances, rows = nearest(samples, blocks)
  real_distances, _ = nearest(real, blocks, own)
  return Memorisation(distances, rows, real_distances)


def in_blocks(latents: np.ndarray) -> Blocks:
  """Latents in memory, block by block.

  Args:
    latents: [m …].
  """
  starts = range(0, len(latents), _BLOCK)
  return lambda: (latents[start : start + _BLOCK] for start in starts)


def prepare(
  config: config_lib.Config, dataset: training_data.Dataset | None, count: int
) -> Callable[[sources.Source], Result]:
  """Gets an audit ready, so that what is missing shows before the work.

  Args:
    config: The run.
    dataset: Its training images and latents, or None.
    count: Images that there are to audit.

  Returns:
    Generated images -> the audit of the first `eval.audit` of them.

  Raises:
    ValueError: If there are no training images to compare with, or fewer
      samples than are to be audited.
  """
  if dataset is None or dataset.train_images is None:
    raise ValueError(
      f"config.eval.audit={config.eval.audit}: config.data.source="
      f"{config.data.source!r} has no training images in memory to compare with"
    )
  if count < config.eval.audit:
    raise ValueError(
      f"config.eval.audit={config.eval.audit}: there are {count} images"
    )
  train = dataset.train
  pixels = dataset.train_images.pixels
  tokenizer = pretrained.load_tokenizer(config)
  encoder = pretrained.load_features(config, pixels.shape[-1])

  def audit(source: sources.Source) -> Result:
    shown = _read(source, config.eval.audit)
    latents, features = [], []
    for start in range(0, len(shown), _QUERIES):
      part = protocols.to_float(jnp.asarray(shown[start : start + _QUERIES]))
      latents.append(np.asarray(tokenizer.encode(part)))
      features.append(np.asarray(encoder(part)[0]))
    scores, rows = jax.jit(lookup.nearest, static_argnames="k")(
      bank_lib.normalise(jnp.asarray(np.concatenate(features))),
      jax.jit(lookup.unit)(train.bank),
      k=1,
    )
    assert isinstance(train.records, records_lib.InMemoryRecords)
    stored = train.records.fields["latent"]
    own = np.arange(len(stored))
    found = memorisation(
      np.concatenate(latents), in_blocks(stored), stored, own
    )
    bank_rows = np.asarray(rows)[:, 0]
    return Result(
      found,
      bank_rows,
      np.asarray(scores)[:, 0],
      shown,
      pixels[found.rows],
      pixels[bank_rows],
    )

  return audit


def _read(source: sources.Source, count: int) -> np.ndarray:
  """The first images of a source."""
  starts = range(0, count, _QUERIES)
  parts = [np.arange(s, min(s + _QUERIES, count)) for s in starts]
  return np.concatenate([source.read(part) for part in parts])
