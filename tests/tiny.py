"""A run small enough for tests: the digits config, shrunk."""

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.config import resolve, sections
from gmem_jax.parallel import sharding
from gmem_jax.train import (
  checkpoint,
  dataset as dataset_lib,
  directory as directory_lib,
  loop,
  run as run_lib,
  setup,
  state as train_state,
)

ROOT = pathlib.Path(__file__).parents[1]

# Dotted key -> value; also given as flags to real processes.
CHANGES = {
  "model.width": 32,
  "model.depth": 2,
  "model.heads": 2,
  "model.projector_depth": 2,
  "train.steps": 160,
  "train.batch_size": 16,
  "train.steps_per_dispatch": 2,
  "train.log_every": 8,
  "checkpoint.every": 8,
  "optim.warmup_steps": 5,
  "optim.decay_steps": 160,
  "sampler.method": "ode_euler",
  "sampler.steps": 3,
  "eval.every": 80,
  "eval.count": 72,  # more than the classifier has features
  "eval.grid": 16,
  "report.unconditional": False,
  "sample.device_batch": 8,
  "sample.grid": 16,
}


def make_config(**changes: Any) -> sections.Config:
  """The tiny config; keys are dotted with "__", e.g. train__steps=4."""
  spec = importlib.util.spec_from_file_location(
    "digits", ROOT / "configs" / "digits.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  tree = module.get_config()
  changes = {k.replace("__", "."): v for k, v in changes.items()}
  tree.update_from_flattened_dict(CHANGES | changes)
  return resolve.resolve(tree)


def make_run(
  config: sections.Config,
  workdir: pathlib.Path,
  mesh: jax.sharding.Mesh,
  dataset: dataset_lib.Dataset,
  memory: setup.RunMemory,
  evaluate: loop.EvaluateFn | None = None,
) -> run_lib.Run:
  """A run with the network of its config."""
  network = setup.network(config, memory)
  retrieve = setup.make_retrieve(config, memory.unit)
  return run_lib.Run(
    config, workdir, mesh, dataset, memory, network, retrieve, evaluate
  )


def save_run(
  workdir: pathlib.Path,
  change: Callable[[train_state.TrainState], train_state.TrainState]
  | None = None,
) -> pathlib.Path:
  """Writes a run at step 8, to sample from.

  Its parameters are random, and none of them zero, unless `change` says what
  becomes of the first state.
  """
  config = make_config()
  directory_lib.claim(config, workdir)
  mesh = sharding.make_mesh(config.mesh)
  memory = setup.make_memory(config, dataset_lib.load(config), mesh)
  setup.save_memory(workdir / "memory", memory)
  state = _first_state(config, memory)
  _save_state(config, workdir, 8, (change or loud)(state))
  return workdir


def save_step(
  workdir: pathlib.Path,
  step: int,
  change: Callable[[train_state.TrainState], train_state.TrainState],
) -> None:
  """Gives a run of `save_run` another checkpoint, as `change` says."""
  config = directory_lib.config_of(workdir)
  mesh = sharding.make_mesh(config.mesh)
  memory = setup.load_memory(workdir / "memory", mesh, None)
  _save_state(config, workdir, step, change(_first_state(config, memory)))


def _first_state(
  config: sections.Config, memory: setup.RunMemory
) -> train_state.TrainState:
  with jax.numpy_dtype_promotion("standard"):
    return setup.make_init(config, memory)()


def _save_state(
  config: sections.Config,
  workdir: pathlib.Path,
  step: int,
  state: train_state.TrainState,
) -> None:
  with checkpoint.opened(workdir / "checkpoints", config.checkpoint) as kept:
    kept.save(step, jax.tree.map(jnp.asarray, state), {"seconds": 1.0})


def flags(**changes: Any) -> list[str]:
  """The same as command line flags."""
  changes = {k.replace("__", "."): v for k, v in changes.items()}
  return [f"--config.{k}={v}" for k, v in (CHANGES | changes).items()]


def loud(state: train_state.TrainState) -> train_state.TrainState:
  """The state with parameters none of which is zero."""
  random = np.random.default_rng(0)
  params = jax.tree.map(
    lambda a: a + 0.2 * random.standard_normal(a.shape).astype(np.float32),
    jax.device_get(state.params),
  )
  return state.replace(params=params, ema=params)
