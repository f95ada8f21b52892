"""Reads a part of another run's checkpoint, in the shapes that it has.

Nothing in that run's directory changes: it may still be training.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from gmem_jax.files import weights
from gmem_jax.train import checkpoint


def load_newest(
  directory: pathlib.Path, part: str, place: Callable[[Any], Any]
) -> tuple[int, Any]:
  """Reads a part of a run's newest checkpoint.

  Args:
    directory: Where the run's checkpoints lie.
    part: The part of the state, e.g. "ema".
    place: Shapes -> shardings.

  Returns:
    (step, nested dicts of arrays).

  Raises:
    ValueError: If there is no checkpoint, or it cannot be read.
  """
  checkpointer = ocp.training.Checkpointer(str(directory))
  try:
    steps = [c.step for c in checkpointer.checkpoints]
    if not steps:
      raise ValueError("there is no checkpoint yet")
    return max(steps), _load(checkpointer, max(steps), part, place)
  # Damage shows as anything from a missing file to a JSON error.
  except Exception as error:
    raise ValueError(f"{directory}: {checkpoint.root_cause(error)}") from None
  finally:
    checkpointer.close()


def _load(
  checkpointer: ocp.training.Checkpointer,
  step: int,
  part: str,
  place: Callable[[Any], Any],
) -> Any:
  metadata = checkpointer.metadata(step)
  stored: Any = metadata.metadata
  target = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored)
  target[part] = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    stored[part],
    place(stored[part]),
  )
  loaded: Any = checkpointer.load(step, target)
  digests: Any = metadata.custom_metadata["digests"]  # type: ignore
  for name, value in weights.digests({part: loaded[part]}).items():
    if digests.get(name) != value:
      raise ValueError(f"step {step}: {name} is not what was written")
  return loaded[part]
