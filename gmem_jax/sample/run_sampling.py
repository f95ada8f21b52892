"""What a run samples with: its parameters, its function, its snippets."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.bank import bank as bank_lib, sharding as bank_sharding
from gmem_jax.config import sections
from gmem_jax.data import load_encoders
from gmem_jax.parallel import sharding
from gmem_jax.sample import sampler as sampler_lib
from gmem_jax.train import checkpoint, setup


def load_params(
  config: sections.Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh
) -> tuple[int, Any]:
  """Loads the parameters to sample with, and nothing else.

  Returns:
    (step, parameters).

  Raises:
    ValueError: If the run has no checkpoint yet.
  """
  try:
    return checkpoint.load_part(
      workdir / "checkpoints",
      config.sample.weights,
      lambda shapes: sharding.state_shardings(shapes, mesh),
    )
  except ValueError as error:
    raise ValueError(f"--workdir={workdir}: {error}") from None


def draw_snippets(
  config: sections.Config, bank: bank_lib.MemoryBank, numbers: np.ndarray
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
    bank_lib.draw_rows(config.seed, jnp.asarray(numbers), bank.size)
  )
  return rows, bank_sharding.read_rows(bank, rows)


def make_sample_fn(
  config: sections.Config,
  memory: setup.Memory,
  mesh: jax.sharding.Mesh,
  seed: int,
) -> sampler_lib.SampleFn:
  """The sampling function of a run.

  Args:
    config: The run.
    memory: Its memory.
    mesh: The devices.
    seed: Image i's noise depends on (seed, i) alone.
  """
  return sampler_lib.make_sample_fn(
    setup.network(config, memory),
    config.sampler,
    memory.latent_shape,
    mesh,
    seed=seed,
    device_batch=config.sample.device_batch,
    retrieve=setup.make_retrieve(config, memory.unit),
  )


def make_weights(
  config: sections.Config, memory: setup.Memory, params: Any
) -> sampler_lib.Weights:
  """All that a run samples with.

  Args:
    config: The run.
    memory: Its memory.
    params: Its network's parameters.
  """
  return sampler_lib.Weights(
    params=params,
    tokenizer=load_encoders.load_decoder(config),
    stats=memory.stats,
    bank=memory.unit,
  )
