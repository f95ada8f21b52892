"""Training, as `main` starts it."""

import dataclasses
import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.bank import (
  bank as bank_lib,
  lookup,
  sharding as bank_sharding,
)
from gmem_jax.commands import report
from gmem_jax.config import sections
from gmem_jax.data import images, load_encoders, sources as data_sources
from gmem_jax.evaluate import build, scores, sources
from gmem_jax.models.encoders import protocols
from gmem_jax.parallel import processes, sharding
from gmem_jax.sample import sampler as sampler_lib, source as source_lib
from gmem_jax.train import dataset as dataset_lib, loop, run_directory, setup

_log = logging.getLogger(__name__)

# Held-out images, and memories of each, in neighbours.png.
NEIGHBOURS = 8


def train_mode(config: sections.Config, workdir: pathlib.Path) -> None:
  """Trains, and compares with a network without memory if so configured.

  Args:
    config: The run.
    workdir: Its directory.
  """
  dataset_lib.require(config)
  mesh = make_mesh(config)
  run_directory.claim(config, workdir)
  dataset = dataset_lib.load(config)
  memory = setup.make_memory(config, dataset, mesh)
  evaluator = make_evaluator(
    config, mesh, memory.latent_shape, dataset.train_images
  )
  run = make_run(config, workdir, mesh, dataset, memory, evaluator)
  state = loop.train(run)
  if not config.report.unconditional:
    return
  # The config has been checked: the images are in memory.
  assert dataset.train_images is not None
  assert dataset.heldout is not None
  assert dataset.heldout_images is not None
  other = dataclasses.replace(
    config, model=dataclasses.replace(config.model, conditioning="none")
  )
  other_dir = workdir / "unconditional"
  run_directory.claim(other, other_dir)
  other_run = make_run(other, other_dir, mesh, dataset, memory, evaluator)
  other_state = loop.train(other_run)
  _log.info("sampling for the report")
  sampler = source_lib.make_sampler(config, memory, mesh, config.seed)
  weights = source_lib.make_weights(config, memory, state.ema)
  other_weights = source_lib.make_weights(other, memory, other_state.ema)
  other_sampler = source_lib.make_sampler(other, memory, mesh, config.seed)
  bank, heldout = memory.bank, dataset.heldout.bank
  material = report.Material(
    train=dataset.train_images.pixels,
    heldout=dataset.heldout_images.pixels,
    from_bank=draw_samples(config, sampler, weights, bank),
    from_heldout=draw_samples(config, sampler, weights, heldout, outside=True),
    unconditional=draw_samples(other, other_sampler, other_weights, bank),
    neighbours=neighbours(heldout, dataset.train.bank),
    distance=lambda pixels: build.score_pixels(evaluator, pixels)["frechet"],
  )
  if not processes.is_main():
    return
  print(report.write(material, workdir, other_dir, config.train.steps))
  pictures = ("samples.png", "neighbours.png", "curves.png")
  print("Pictures: " + ", ".join(f"{workdir}/{name}" for name in pictures))


def neighbours(
  queries: bank_lib.MemoryBank, bank: bank_lib.MemoryBank
) -> report.NearestMemories:
  """Looks up the nearest memories of the first rows of another bank.

  Args:
    queries: The other bank.
    bank: The bank.
  """
  count = min(NEIGHBOURS, queries.size)
  found = jax.jit(lookup.nearest, static_argnames="k")(
    bank_lib.snippets(queries, jnp.arange(count)),
    jax.jit(lookup.unit)(bank),
    k=min(NEIGHBOURS, bank.size),
  )
  return report.NearestMemories(*map(np.asarray, found))


def make_run(
  config: sections.Config,
  workdir: pathlib.Path,
  mesh: jax.sharding.Mesh,
  dataset: dataset_lib.Dataset,
  memory: setup.RunMemory,
  evaluator: scores.Evaluator | None,
) -> loop.Run:
  """Puts a run together; its evaluation scores fresh samples.

  Args:
    config: The run.
    workdir: Its directory.
    mesh: Its devices.
    dataset: Its images.
    memory: What sampling needs.
    evaluator: Scores images; None to make the pictures alone.
  """
  setup.save_memory(workdir / "memory", memory)
  sampler = source_lib.make_sampler(config, memory, mesh, config.seed)
  # The decoder is read once, not at every evaluation.
  fixed = source_lib.make_weights(config, memory, None)
  shape = protocols.image_shape(fixed.tokenizer, memory.latent_shape)

  def evaluate_fn(step: int, params: Any):
    weights = dataclasses.replace(fixed, params=params)
    shown: list[np.ndarray] = []

    def read(numbers):
      rows, features = draw_snippets(config, memory.bank, numbers)
      pixels = sampler(weights, numbers, features, rows)
      if numbers[0] < config.eval.grid:
        shown.append(pixels)
      return pixels

    found = {}
    if evaluator is None:
      read(np.arange(config.eval.grid))
    else:
      found = evaluator(
        sources.Arrays(
          {"step": step},
          config.eval.count,
          shape,
          read,
          collective=True,
        ),
        config.eval.count,
      )
    pixels = np.concatenate(shown)[: config.eval.grid]
    scale = max(1, 32 // pixels.shape[1])
    return found, {"bank": images.make_grid(pixels, 16, scale=scale)}

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
  """What scores the samples during training.

  Args:
    config: The run.
    mesh: The devices.
    latent_shape: h, w, c.
    own: The training images, where they are images; else
      `config.eval.reference` must name what to compare with.

  Returns:
    It, or None if the config asks for no score.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  if not config.eval.scores:
    return None
  shape = protocols.image_shape(
    load_encoders.load_tokenizer(config), latent_shape
  )
  evaluator = build.make_evaluator(config, mesh, own)
  evaluator.check_size(shape, config.eval.count, "config.eval.count")
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

  Args:
    config: The run.
    sampler: Makes the images.
    weights: What it makes them with.
    bank: Where the snippets come from.
    outside: Whether that is another bank than the one neighbours come from.
  """
  numbers = np.arange(config.eval.count)
  rows, features = draw_snippets(config, bank, numbers)
  own = None if outside else rows
  return report.Samples(sampler(weights, numbers, features, own), rows)


def draw_snippets(
  config: sections.Config, bank: bank_lib.MemoryBank, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the snippet of each image; depends on (config.seed, number) alone.

  Args:
    config: The run.
    bank: Where the snippets come from.
    numbers: [n] numbers of the images.

  Returns:
    [n] rows of the bank, and their features [n d].
  """
  images = jnp.asarray(numbers.astype(np.int32))
  rows = np.asarray(bank_lib.draw_rows(config.seed, images, bank.size))
  return rows, bank_sharding.read_rows(bank, rows)


def make_mesh(config: sections.Config) -> jax.sharding.Mesh:
  """The mesh of a run, once the batches are known to fit it.

  Args:
    config: The run.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  mesh = sharding.make_mesh(config.mesh)
  ways = sharding.batch_ways(mesh)
  batch, parts = config.train.batch_size, config.train.accumulation
  if batch % ways:
    raise ValueError(
      f"config.train.batch_size={batch} is not a multiple of the mesh's"
      f" data x fsdp = {ways}"
    )
  if batch % (ways * parts):
    raise ValueError(
      f"config.train.accumulation={parts} does not divide the {batch // ways}"
      f" examples that each of data x fsdp = {ways} holds of"
      f" config.train.batch_size={batch}"
    )
  return mesh
