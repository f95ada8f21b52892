"""Training, as `main` starts it, and what sampling shares with it."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import (
  assemble,
  bank_placement,
  checkpoint,
  config as config_lib,
  distributed,
  evaluate,
  images,
  pretrained,
  report,
  sample,
  sharding,
  train,
  training_data,
)
from gmem_jax.bank import bank as bank_lib, draw, lookup

_log = logging.getLogger(__name__)

# Held-out images, and memories of each, in neighbours.png.
NEIGHBOURS = 8


def train_mode(config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Trains, and compares with a network without memory if so configured.

  Args:
    config: The run.
    workdir: Its directory.
  """
  training_data.require(config)
  mesh = make_mesh(config)
  config_lib.claim_workdir(config, workdir)
  dataset = training_data.load(config)
  memory = assemble.make_memory(config, dataset, mesh)
  distance = frechet_to(dataset, config.seed)
  run = make_run(config, workdir, mesh, dataset, memory, distance)
  state = train.train(run)
  if not config.report.unconditional:
    return
  # The config has been checked: the images are in memory.
  assert dataset.train_images is not None
  assert dataset.heldout is not None
  assert dataset.heldout_images is not None
  assert distance is not None
  other = dataclasses.replace(
    config, model=dataclasses.replace(config.model, conditioning="none")
  )
  other_dir = workdir / "unconditional"
  config_lib.claim_workdir(other, other_dir)
  other_run = make_run(other, other_dir, mesh, dataset, memory, distance)
  other_state = train.train(other_run)
  _log.info("sampling for the report")
  sample_fn = make_sample_fn(config, memory, mesh, config.seed)
  weights = make_weights(config, memory, state.ema)
  other_weights = make_weights(other, memory, other_state.ema)
  other_fn = make_sample_fn(other, memory, mesh, config.seed)
  bank, heldout = memory.bank, dataset.heldout.bank
  material = report.Material(
    train=dataset.train_images.pixels,
    heldout=dataset.heldout_images.pixels,
    from_bank=draw_samples(config, sample_fn, weights, bank),
    from_heldout=draw_samples(config, sample_fn, weights, heldout),
    unconditional=draw_samples(other, other_fn, other_weights, bank),
    neighbours=neighbours(heldout, dataset.train.bank),
    distance=distance,
  )
  if not distributed.is_main():
    return
  print(report.write(material, workdir, other_dir, config.train.steps))
  pictures = ("samples.png", "neighbours.png", "curves.png")
  print("Pictures: " + ", ".join(f"{workdir}/{name}" for name in pictures))


def neighbours(
  queries: bank_lib.MemoryBank, bank: bank_lib.MemoryBank
) -> report.Neighbours:
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
  return report.Neighbours(*map(np.asarray, found))


def load_params(
  config: config_lib.Config,
  workdir: pathlib.Path,
  memory: assemble.Memory,
  mesh: jax.sharding.Mesh,
) -> tuple[int, Any]:
  """Loads the parameters to sample with, and nothing else.

  Args:
    config: The run.
    workdir: Its directory.
    memory: Its memory.
    mesh: The devices.

  Returns:
    (step, parameters).

  Raises:
    ValueError: If the run has no checkpoint yet.
  """
  shapes = jax.eval_shape(assemble.make_init(config, memory))
  target = sharding.abstract(shapes, sharding.state_shardings(shapes, mesh))
  with checkpoint.opened(
    workdir / "checkpoints", config.checkpoint
  ) as checkpoints:
    restored = checkpoints.restore_part(
      target, lambda state: getattr(state, config.sample.weights)
    )
  if restored is None:
    raise ValueError(f"--workdir={workdir}: the run has no checkpoint yet")
  return restored


def make_run(
  config: config_lib.Config,
  workdir: pathlib.Path,
  mesh: jax.sharding.Mesh,
  dataset: training_data.Dataset,
  memory: assemble.Memory,
  distance: Callable[[np.ndarray], float] | None,
) -> train.Run:
  """Puts a run together; its evaluation is the distance of fresh samples.

  Args:
    config: The run.
    workdir: Its directory.
    mesh: Its devices.
    dataset: Its images.
    memory: What sampling needs.
    distance: uint8 images -> Fréchet distance; None to make pictures alone.
  """
  assemble.save_memory(workdir / "memory", memory)
  sample_fn = make_sample_fn(config, memory, mesh, config.seed)

  def evaluate_fn(step: int, params: Any):
    del step
    weights = make_weights(config, memory, params)
    count = config.eval.count if distance is not None else config.eval.grid
    found = draw_samples(config, sample_fn, weights, memory.bank, count)
    side = found.pixels.shape[1]
    shown = found.pixels[: config.eval.grid]
    grid = images.make_grid(shown, 16, scale=max(1, 32 // side))
    numbers = {} if distance is None else {"frechet": distance(found.pixels)}
    return numbers, {"bank": grid}

  return train.Run(config, workdir, mesh, dataset, memory, evaluate_fn)


def draw_samples(
  config: config_lib.Config,
  sample_fn: sample.SampleFn,
  weights: sample.Weights,
  bank: bank_lib.MemoryBank,
  count: int | None = None,
) -> report.Samples:
  """The samples of an evaluation: always the same rows and noise.

  Args:
    config: The run.
    sample_fn: Makes the images.
    weights: What it makes them with.
    bank: Where the snippets come from.
    count: How many; by default `eval.count`.
  """
  numbers = np.arange(count or config.eval.count, dtype=np.int32)
  rows = np.asarray(
    draw.draw_rows(config.seed, jnp.asarray(numbers), bank.size)
  )
  pixels = sample_fn(weights, numbers, bank_placement.read_rows(bank, rows))
  return report.Samples(pixels, rows)


def frechet_to(
  dataset: training_data.Dataset, seed: int
) -> Callable[[np.ndarray], float] | None:
  """The Fréchet distance of images to the training images, if in memory.

  Args:
    dataset: The images.
    seed: Seed of the classifier whose features are compared.
  """
  real = dataset.train_images
  if real is None:
    return None
  features = evaluate.classifier_features(real.pixels, real.labels, seed)
  reference = evaluate.fit_gaussian(features(real.pixels))
  return lambda pixels: evaluate.frechet_distance(
    evaluate.fit_gaussian(features(pixels)), reference
  )


def make_sample_fn(
  config: config_lib.Config,
  memory: assemble.Memory,
  mesh: jax.sharding.Mesh,
  seed: int,
) -> sample.SampleFn:
  """The sampling function of a run.

  Args:
    config: The run.
    memory: Its memory.
    mesh: The devices.
    seed: Image i's noise depends on (seed, i) alone.
  """
  return sample.make_sample_fn(
    assemble.network(config, memory),
    config.sampler,
    memory.latent_shape,
    mesh,
    seed=seed,
    device_batch=config.sample.device_batch,
  )


def make_weights(
  config: config_lib.Config, memory: assemble.Memory, params: Any
) -> sample.Weights:
  """All that a run samples with.

  Args:
    config: The run.
    memory: Its memory.
    params: Its network's parameters.
  """
  return sample.Weights(
    params=params,
    tokenizer=pretrained.load_decoder(config),
    stats=memory.stats,
  )


def make_mesh(config: config_lib.Config) -> jax.sharding.Mesh:
  """The mesh of a run, once the batches are known to fit it.

  Args:
    config: The run.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  mesh = sharding.make_mesh(config.mesh)
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
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
