"""Starts a run from existing parameters, also of another conditioning.

What the network gained, e.g. cross-attention, starts fresh. Fresh
cross-attention adds nothing: "adaln+cross" begins exactly where converted
"adaln" weights are, and "cross" where a network without memory is.
"""

import dataclasses
import logging
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from gmem_jax.config import sections
from gmem_jax.files import paths, shown, weights
from gmem_jax.models import dit
from gmem_jax.parallel import sharding
from gmem_jax.train import checkpoint, state as train_state

_log = logging.getLogger(__name__)

# Parts that one network may have and the other lack.
PARTS = ("snippet_embed", "memory_embed", "memory_norm", "cross", "projector")
# Those that change nothing while fresh: the output projection of
# cross-attention starts at zero, and sampling never runs the projector.
SILENT = {"memory_embed", "memory_norm", "cross", "projector"}


def start(
  config: sections.Config,
  state: train_state.TrainState,
  mesh: jax.sharding.Mesh,
) -> train_state.TrainState:
  """Gives a fresh state the parameters that `train.init_from` names.

  Returns:
    The state with these parameters, and a moving average that begins at them;
    the optimizer stays fresh.

  Raises:
    ValueError: If they do not fit; names what differs.
  """
  where = f"config.train.init_from={config.train.init_from!r}"
  try:
    path = paths.resolve(config.train.init_from)
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None
  if weights.is_converted(path):
    given = _converted(config, path, where)
  elif (path / "checkpoints").is_dir():
    given = _of_run(path, mesh, where)
  else:
    raise ValueError(
      f"{where}: neither converted weights nor the directory of a run"
    )
  merged = merge(state.params, given, where)
  params = jax.tree.map(_placed, merged, state.params)
  average = jax.tree.map(jnp.copy, params)
  return dataclasses.replace(state, params=params, ema=average)


def _converted(
  config: sections.Config, path: paths.Path, where: str
) -> dict[str, Any]:
  """Parameters of converted weights, by the model that they name."""
  try:
    given, metadata = weights.load_kind(str(path), tuple(dit.FAMILIES))
  except (ValueError, OSError) as error:
    raise ValueError(f"{where}: {error}") from None
  differing = dit.differing_keys(
    config.model, metadata["model"], ignored=("conditioning",)
  )
  if differing:
    raise ValueError(
      f"{where} holds another network than config.model:\n{differing}"
    )
  # The first release's time runs from data to noise, a run's the other way. The
  # parameters are turned exactly, not approximately.
  return dit.turn_params(given) if dit.is_release(metadata) else given


def _of_run(
  path: paths.Path, mesh: jax.sharding.Mesh, where: str
) -> dict[str, Any]:
  """The moving average of a run's newest checkpoint."""
  try:
    step, given = checkpoint.load_part(
      path / "checkpoints",
      "ema",
      lambda shapes: sharding.state_shardings(shapes, mesh),
    )
  except ValueError as error:
    raise ValueError(f"{where}: {error}") from None
  _log.info("starting from step %d of %s", step, path)
  return given


def merge(
  fresh: dict[str, Any], given: dict[str, Any], where: str
) -> dict[str, Any]:
  """A tree like `fresh`, with the given parameters wherever there are any.

  Args:
    fresh: Parameters of the new network.
    given: Parameters of the old one.
    where: Names the latter in errors.

  Raises:
    ValueError: If the networks differ in more than `PARTS`.
  """
  flat: Any = flax.traverse_util.flatten_dict
  new, old = flat(fresh, sep="/"), flat(given, sep="/")
  problems = [
    f"  {name}: {old[name].shape} there, {new[name].shape} now"
    for name in sorted(new.keys() & old.keys())
    if new[name].shape != old[name].shape
  ]
  gained, lost = new.keys() - old.keys(), old.keys() - new.keys()
  for names, text in ((gained, "missing there"), (lost, "unknown now")):
    problems += [
      shown.line(f"  {name}: {text}")
      for name in sorted(names)
      if _part(name) not in PARTS
    ]
  if problems:
    raise ValueError(
      f"{where} holds another network than config.model:\n"
      + "\n".join(problems)
    )
  # What is reported are parts, not their single parameters.
  gained, lost = (sorted(set(map(_part, names))) for names in (gained, lost))
  # Cross-attention that is lost was trained, and did change something.
  same = set(gained) <= SILENT and set(lost) <= SILENT - {"cross"}
  _log.info(
    "parameters of %s; fresh: %s; left out: %s; %s",
    where,
    ", ".join(gained) or "none",
    ", ".join(lost) or "none",
    "the network begins as the same function"
    if same
    else "the network begins as another function",
  )
  return flax.traverse_util.unflatten_dict(
    {name: old.get(name, new[name]) for name in new}, sep="/"
  )


def _part(name: str) -> str:
  """The part of a network that a parameter is of; all projectors are one."""
  top = name.split("/")[0]
  return "projector" if top.startswith("projector") else top


def _placed(array: Any, like: jax.Array) -> jax.Array:
  """An array with the sharding and type of a fresh one."""
  if isinstance(array, jax.Array):
    return jax.device_put(array.astype(like.dtype), like.sharding)
  # Host arrays: each process makes the shards of its own devices only.
  array = np.asarray(array, like.dtype)
  return jax.make_array_from_callback(
    array.shape, like.sharding, lambda index: array[index]
  )
