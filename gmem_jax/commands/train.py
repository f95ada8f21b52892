"""`--mode=train`: trains a run, scores its samples, reports on digits."""

import dataclasses
import functools
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.bank import bank as bank_lib, lookup, sharding as bank_sharding
from gmem_jax.commands import report
from gmem_jax.config import sections
from gmem_jax.data import load_encoders, sources as data_sources, write_images
from gmem_jax.evaluate import build, scores, sources
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import processes, sharding
from gmem_jax.sample import (
  draw_rows,
  sampler as sampler_lib,
  source as source_lib,
)
from gmem_jax.train import dataset as dataset_lib, loop, setup

_log = logging.getLogger(__name__)

# Held-out images, and memories of each, in neighbours.png.
NEIGHBOURS = 8


def train_mode(config: sections.Config, workdir: pathlib.Path) -> None:
  """Trains, and compares with a network without memory if so configured."""
  # First what needs no device and no data: a wrong config fails in a second.
  dataset_lib.require(config)
  mesh = make_mesh(config)
  setup.claim(config, workdir)
  dataset = dataset_lib.load(config)
  memory = setup.make_memory(config, dataset, mesh)
  evaluator = make_evaluator(
    config, mesh, memory.latent_shape, dataset.train_images
  )
  run = make_run(config, workdir, mesh, dataset, memory, evaluator)
  state = loop.train(run)
  if config.report.unconditional:
    _compare(run, state.ema, evaluator)


def _compare(
  run: loop.Run, params: Any, evaluator: scores.Evaluator | None
) -> None:
  """Trains the network without memory too, and writes the report."""
  config, dataset, memory = run.config, run.dataset, run.memory
  # The config has been checked: the images are in memory.
  assert dataset.train_images is not None
  assert dataset.heldout is not None
  assert dataset.heldout_images is not None
  other = dataclasses.replace(
    config, model=dataclasses.replace(config.model, conditioning="none")
  )
  directory = run.workdir / "unconditional"
  setup.claim(other, directory)
  other_run = make_run(other, directory, run.mesh, dataset, memory, evaluator)
  other_params = loop.train(other_run).ema
  _log.info("sampling for the report")
  # A sampler of each network, for both banks: it compiles at its first call.
  draw, draw_other = (
    functools.partial(
      draw_samples,
      one,
      source_lib.make_sampler(one, memory, run.mesh, one.seed),
      source_lib.make_weights(one, memory, weights),
    )
    for one, weights in ((config, params), (other, other_params))
  )
  material = report.Material(
    train=dataset.train_images.pixels,
    heldout=dataset.heldout_images.pixels,
    from_bank=draw(memory.bank),
    from_heldout=draw(dataset.heldout.bank, outside=True),
    unconditional=draw_other(memory.bank),
    neighbours=neighbours(dataset.heldout.bank, dataset.train.bank),
    distance=lambda pixels: build.score_pixels(evaluator, pixels)["frechet"],
  )
  # All processes have sampled and scored together.
  if not processes.is_main():
    return
  print(report.write(material, run.workdir, directory, config.train.steps))
  pictures = ("samples.png", "neighbours.png", "curves.png")
  print("Pictures: " + ", ".join(f"{run.workdir}/{name}" for name in pictures))


def neighbours(
  queries: bank_lib.MemoryBank, bank: bank_lib.MemoryBank
) -> report.NearestMemories:
  """Looks up the rows of a bank nearest to the first rows of another."""
  count = min(NEIGHBOURS, queries.size)
  scores, rows = jax.jit(lookup.nearest, static_argnames="k")(
    bank_lib.snippets(queries, jnp.arange(count)),
    jax.jit(lookup.unit)(bank),
    k=min(NEIGHBOURS, bank.size),
  )
  return report.NearestMemories(np.asarray(scores), np.asarray(rows))


def make_run(
  config: sections.Config,
  workdir: pathlib.Path,
  mesh: jax.sharding.Mesh,
  dataset: dataset_lib.Dataset,
  memory: setup.RunMemory,
  evaluator: scores.Evaluator | None,
) -> loop.Run:
  """Puts a run together; its evaluation scores fresh samples.

  Without an evaluator it only makes pictures.
  """
  # Sampling needs no data set, only this directory.
  setup.save_memory(workdir / "memory", memory)
  sampler = source_lib.make_sampler(config, memory, mesh, config.seed)
  # The decoder is read here and not at every evaluation; on the host it waits
  # without taking memory of the devices.
  fixed = source_lib.make_weights(config, memory, None)
  shape = protocols.image_shape(fixed.tokenizer, memory.latent_shape)
  count, shown = config.eval.count, config.eval.grid
  # Every evaluation samples the same memories: they are drawn once.
  rows, features = draw_snippets(
    config, memory.bank, np.arange(max(count, shown))
  )

  def evaluate_fn(step: int, params: Any):
    weights = dataclasses.replace(fixed, params=params)
    first: list[np.ndarray] = []

    def read(numbers):
      pixels = sampler(weights, numbers, features[numbers], rows[numbers])
      # The picture shows images that are scored anyway.
      if numbers[0] < shown:
        first.append(pixels)
      return pixels

    values = {}
    if evaluator is None:
      read(np.arange(shown))
    else:
      samples = sources.Arrays(
        {"step": step}, count, shape, read, collective=True
      )
      values = evaluator(samples, count)
    pixels = np.concatenate(first)[:shown]
    scale = max(1, 32 // pixels.shape[1])
    return values, {"bank": write_images.make_grid(pixels, 16, scale=scale)}

  return loop.Run(
    config,
    workdir,
    mesh,
    dataset,
    memory,
    setup.network(config, memory),
    setup.make_retrieve(config, memory.unit),
    evaluate_fn,
  )


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
    return None
  shape = protocols.image_shape(
    load_encoders.load_tokenizer(config), latent_shape
  )
  evaluator = build.make_evaluator(config, mesh, own)
  evaluator.check_shape(shape, config.eval.count, "config.eval.count")
  return build.with_reference(config, evaluator, shape, own)


def draw_samples(
  config: sections.Config,
  sampler: sampler_lib.Sampler,
  weights: sampler_lib.SampleWeights,
  bank: bank_lib.MemoryBank,
  *,
  outside: bool = False,
) -> report.Samples:
  """The samples of an evaluation: always the same rows and noise.

  If the bank is `outside` of the one that neighbours are looked up in, no row
  is left out there as an image's own.
  """
  numbers = np.arange(config.eval.count)
  rows, features = draw_snippets(config, bank, numbers)
  own = None if outside else rows
  return report.Samples(sampler(weights, numbers, features, own), rows)


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


def make_mesh(config: sections.Config) -> jax.sharding.Mesh:
  """The mesh of a run.

  Raises:
    ValueError: If the batch or its parts do not divide over it.
  """
  mesh = sharding.make_mesh(config.mesh)
  ways = sharding.batch_ways(mesh)
  batch, parts = config.train.batch_size, config.train.accumulation
  if batch % ways:
    raise ValueError(
      f"config.train.batch_size={batch}: must be a multiple of the mesh's data"
      f" x fsdp = {ways}"
    )
  if batch % (ways * parts):
    raise ValueError(
      f"config.train.accumulation={parts}: must divide the {batch // ways}"
      f" examples that each of data x fsdp = {ways} has of"
      f" config.train.batch_size={batch}"
    )
  return mesh
