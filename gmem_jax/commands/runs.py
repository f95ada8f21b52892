"""Puts a run together: its mesh, its evaluator, samples while it is trained."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import progress
from gmem_jax.bank import bank as bank_lib, sharding as bank_sharding
from gmem_jax.config import sections
from gmem_jax.data import load_encoders, sources as data_sources, write_images
from gmem_jax.evaluate import build, scores, sources
from gmem_jax.files import paths
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import sharding
from gmem_jax.sample import (
  draw_rows,
  sampler as sampler_lib,
  source as source_lib,
)
from gmem_jax.train import (
  dataset as dataset_lib,
  fitted,
  milestones,
  run as run_lib,
  setup,
)

_log = logging.getLogger(__name__)


def make_mesh(config: sections.Config) -> jax.sharding.Mesh:
  """The mesh of a run.

  Raises:
    ValueError: If the batch or its parts do not divide over it.
  """
  mesh = sharding.make_mesh(config.mesh)
  setup.check_batch(config, mesh)
  return mesh


def make_evaluator(
  config: sections.Config,
  mesh: jax.sharding.Mesh,
  latent_shape: tuple[int, int, int],
  own: data_sources.Images | None,
) -> scores.Evaluator | None:
  """What scores the samples during training, or None if no score is asked for.

  Args:
    config: Names the scores.
    mesh: Where features are computed.
    latent_shape: h, w, c.
    own: The training images, if they are in memory; else
      `config.eval.reference` must name what to compare with.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  if not config.eval.scores:
    if config.eval.thresholds:
      raise ValueError(
        f"config.eval.thresholds={config.eval.thresholds}: config.eval.scores"
        " is empty"
      )
    return None
  shape = protocols.image_shape(
    load_encoders.load_tokenizer(config), latent_shape
  )
  known = scores.names_of(config.eval.scores)
  for threshold in milestones.all_of(config):
    if threshold.name not in known:
      raise ValueError(
        f"config.eval.thresholds: {threshold} is of none of the scores that"
        f" config.eval.scores gives: {', '.join(known)}"
      )
  evaluator = build.make_evaluator(config, mesh, own)
  evaluator.check_shape(shape, config.eval.count, "config.eval.count")
  return build.with_reference(config, evaluator, shape, own)


def make_run(
  config: sections.Config,
  workdir: paths.Path,
  mesh: jax.sharding.Mesh,
  dataset: dataset_lib.Dataset,
  memory: setup.RunMemory,
  evaluator: scores.Evaluator | None,
) -> run_lib.Run:
  """Puts a run together; its evaluation scores fresh samples.

  Without an evaluator it only makes pictures.
  """
  # Sampling needs no data set, only this directory.
  setup.save_memory(workdir / "memory", memory)
  fitted.keep(config, workdir)
  sampler = source_lib.make_sampler(config, memory, mesh)
  # The decoder is read here and not at every evaluation; on the host it waits
  # without taking memory of the devices.
  fixed = source_lib.make_weights(config, memory, None)
  shape = protocols.image_shape(fixed.tokenizer, memory.latent_shape)
  count, shown = config.eval.count, config.eval.grid
  # Every evaluation samples the same memories: they are drawn once.
  rows, features = draw_snippets(
    config, memory.bank, np.arange(max(count, shown))
  )
  memories = None
  if config.model.conditioning != "none":
    memories = dataset_lib.images_of_rows(dataset, rows[:shown])

  def evaluate_fn(step: int, params: Any):
    sampled = shown if evaluator is None else count
    _log.info(
      "step %d: sampling %d images; the first call compiles", step, sampled
    )
    weights = dataclasses.replace(fixed, params=params)
    first: list[np.ndarray] = []

    def read(numbers):
      pixels = sampler(
        weights, config.seed, numbers, features[numbers], rows[numbers]
      )
      # The picture shows images that are scored anyway.
      if numbers[0] < shown:
        first.append(pixels)
      return pixels

    values = {}
    if evaluator is None:
      sample_in_calls("sample", sampler, shown, read)
    else:
      samples = sources.Arrays(
        {"step": step}, count, shape, read, collective=True
      )
      values = evaluator(samples, count)
    pixels = np.concatenate(first)[:shown]
    if memories is not None:
      # To the left of each sample, the image whose memory it is made from.
      pixels = np.concatenate([memories[: len(pixels)], pixels], axis=2)
    scale = max(1, 32 // pixels.shape[1])
    return values, {"bank": write_images.make_grid(pixels, scale=scale)}

  return run_lib.Run(
    config,
    workdir,
    mesh,
    dataset,
    memory,
    setup.network(config, memory),
    setup.make_retrieve(config, memory.unit),
    milestones.telling(
      evaluate_fn, config, workdir, len(dataset.train.records)
    ),
  )


def draw_snippets(
  config: sections.Config, bank: bank_lib.MemoryBank, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the snippets of images [n]; each depends on (seed, number) alone.

  Returns:
    Rows of the bank [n], and their features [n d].
  """
  images = jnp.asarray(numbers.astype(np.int32))
  rows = np.asarray(draw_rows.draw_rows(config.seed, images, bank.size))
  return rows, bank_sharding.read_rows(bank, rows)


def sample_in_calls(
  name: str,
  sampler: sampler_lib.Sampler,
  count: int,
  read: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
  """Reads samples 0 to `count`, those of one call at a time, with progress."""
  line = progress.Progress(name, 0, count, unit="image")
  parts = []
  for start in range(0, count, sampler.call_size):
    numbers = np.arange(start, min(start + sampler.call_size, count))
    parts.append(read(numbers))
    line.advance(len(numbers))
  line.close()
  return np.concatenate(parts)
