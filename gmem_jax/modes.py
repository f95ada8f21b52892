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
  checkpoint,
  config as config_lib,
  evaluate,
  images,
  pretrained,
  report,
  sample,
  sharding,
  train,
)
from gmem_jax.bank import bank as bank_lib, draw
from gmem_jax.models import conditioning

_log = logging.getLogger(__name__)


def train_mode(config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Trains, and compares with a network without memory if so configured.

  Args:
    config: The run.
    workdir: Its directory.
  """
  assemble.require_data(config)
  mesh = make_mesh(config)
  config_lib.claim_workdir(config, workdir)
  dataset = assemble.load_dataset(config)
  memory = assemble.make_memory(dataset, mesh)
  distance = frechet_to(dataset, config.seed)
  run = make_run(config, workdir, mesh, dataset, memory, distance)
  state = train.train(run)
  if not config.report.unconditional:
    return
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
    from_heldout=draw_samples(
      config, sample_fn, weights, heldout, outside=True
    ),
    unconditional=draw_samples(other, other_fn, other_weights, bank),
    distance=distance,
  )
  print(report.write(material, workdir, other_dir, config.train.steps))
  print(f"Pictures: {workdir}/samples.png, {workdir}/curves.png")


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
  dataset: assemble.Dataset,
  memory: assemble.Memory,
  distance: Callable[[np.ndarray], float],
) -> train.Run:
  """Puts a run together; its evaluation is the distance of fresh samples.

  Args:
    config: The run.
    workdir: Its directory.
    mesh: Its devices.
    dataset: Its images.
    memory: What sampling needs.
    distance: uint8 images -> Fréchet distance.
  """
  assemble.save_memory(workdir / "memory", memory)
  sample_fn = make_sample_fn(config, memory, mesh, config.seed)

  def evaluate_fn(step: int, params: Any):
    del step
    weights = make_weights(config, memory, params)
    found = draw_samples(config, sample_fn, weights, memory.bank)
    grid = images.make_grid(found.pixels[: config.eval.grid], 16, scale=4)
    return {"frechet": distance(found.pixels)}, {"bank": grid}

  return train.Run(config, workdir, mesh, dataset, memory, evaluate_fn)


def draw_samples(
  config: config_lib.Config,
  sample_fn: sample.SampleFn,
  weights: sample.Weights,
  bank: bank_lib.MemoryBank,
  *,
  outside: bool = False,
) -> report.Samples:
  """The samples of an evaluation: always the same rows and noise.

  Args:
    config: The run.
    sample_fn: Makes the images.
    weights: What it makes them with.
    bank: Where the snippets come from.
    outside: Whether that is another bank than the one neighbours come from.
  """
  numbers = np.arange(config.eval.count, dtype=np.int32)
  rows = np.asarray(
    draw.draw_rows(config.seed, jnp.asarray(numbers), bank.size)
  )
  features = np.asarray(bank.rows)[rows]
  own = None if outside else rows
  pixels = sample_fn(weights, numbers, features, own)
  return report.Samples(pixels, rows)


def frechet_to(
  dataset: assemble.Dataset, seed: int
) -> Callable[[np.ndarray], float]:
  """The Fréchet distance of images to the training images.

  Args:
    dataset: The images.
    seed: Seed of the classifier whose features are compared.
  """
  real = dataset.train_images
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
    recall=config.retrieval,
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
    tokenizer=pretrained.load_tokenizer(config),
    stats=memory.stats,
    bank=sample_bank(config, memory.bank),
  )


def sample_bank(
  config: config_lib.Config, bank: bank_lib.MemoryBank
) -> bank_lib.MemoryBank | None:
  """The bank that sampling looks neighbours up in.

  Args:
    config: The run.
    bank: Raw rows.

  Returns:
    Unit rows, or None for a network that does not attend to neighbours.

  Raises:
    ValueError: If the bank has too few rows.
  """
  if not conditioning.uses_cross(config.model.conditioning):
    return None
  return assemble.step_bank(config, bank)


def make_mesh(config: config_lib.Config) -> jax.sharding.Mesh:
  """The mesh of a run, once the batches are known to fit it.

  Args:
    config: The run.

  Raises:
    ValueError: Naming the key that does not fit.
  """
  mesh = sharding.make_mesh(config.mesh)
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if config.train.batch_size % ways:
    raise ValueError(
      f"config.train.batch_size={config.train.batch_size} is not a multiple of"
      f" the mesh's data x fsdp = {ways}"
    )
  return mesh
