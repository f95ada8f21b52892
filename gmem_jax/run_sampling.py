"""What a run samples with: its parameters, its function, its snippets."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax import (
  assemble,
  bank_placement,
  checkpoint,
  config as config_lib,
  pretrained_encoders,
  sample,
  sharding,
)
from gmem_jax.bank import bank as bank_lib, draw


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


def draw_snippets(
  config: config_lib.Config, bank: bank_lib.MemoryBank, numbers: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """What the samples of an evaluation are made of.

  Args:
    config: The run.
    bank: Where the snippets come from.
    numbers: [n] numbers of the images.

  Returns:
    [n] rows of the bank, and their features [n d].
  """
  numbers = numbers.astype(np.int32)
  rows = np.asarray(
    draw.draw_rows(config.seed, jnp.asarray(numbers), bank.size)
  )
  return rows, bank_placement.read_rows(bank, rows)


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
    recall=assemble.make_recall(config, memory.unit),
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
    tokenizer=pretrained_encoders.load_decoder(config),
    stats=memory.stats,
    bank=memory.unit,
  )
