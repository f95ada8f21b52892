"""Checkpoints: everything orbax does for training is behind this file.

A checkpoint is the training state, uncompressed, with the progress and digests
as JSON. Orbax writes into a temporary directory and renames it once all
processes are done, so a step with a plain number for a name was written whole.
The digests tell what happened to it afterwards: orbax notices a file that is
missing or cut short, not a flipped bit.
"""

import contextlib
import itertools
import logging
import pathlib
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from gmem_jax.config import training
from gmem_jax.files import disk, orbax_directory, paths, shown
from gmem_jax.parallel import processes
from gmem_jax.train import digests as digests_lib

_log = logging.getLogger(__name__)

# Orbax's last object of a checkpoint in a bucket.
_COMMITTED = "commit_success.txt"
# An object that keeps the directory of a bucket's checkpoints there.
_KEPT = ".directory"

policies = ocp.training.preservation_policies

# The arrays that a checkpoint stores (shapes and types) -> what to read: arrays
# with shardings, or ocp.PLACEHOLDER for those to skip.
TargetFn = Callable[[Any], Any]


class Unreadable(ValueError):
  """A checkpoint is damaged; raised on all processes at once."""


class Checkpoints:
  """The checkpoints of one run, for the run itself to write and continue."""

  def __init__(self, directory: paths.Path, config: training.CheckpointConfig):
    """Opens the directory, which is created if need be."""
    self.directory = directory
    kept: list[Any] = [policies.LatestN(config.keep_latest)]
    if config.keep_every:
      kept.append(policies.EveryNSteps(config.keep_every))
    self._open = lambda: ocp.training.Checkpointer(
      str(directory),
      context=_context(),
      preservation_policy=typing.cast(
        policies.PreservationPolicy, policies.AnyPreservationPolicy(kept)
      ),
      cleanup_tmp_directories=True,
    )
    self._set_aside_broken_metadata()
    self._checkpointer = self._open()

  def _set_aside_broken_metadata(self) -> None:
    """Orbax lists no checkpoint at all if the metadata of one is broken."""
    if processes.is_main():
      if not isinstance(self.directory, pathlib.Path):
        # A bucket has no empty directory: orbax removes a first checkpoint
        # that a kill cut off, and then lists what is no longer there.
        (self.directory / _KEPT).write_text("")
      for step in _listed(self.directory):
        path = self.directory / str(step)
        try:
          with orbax_directory.reading(path), _context(alone=True):
            ocp.metadata(str(path))
        except ValueError as error:
          _log.warning("checkpoint %d: %s", step, shown.cause(error))
          _move_aside(path)
    processes.wait_for_all("listable")

  def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
    """Starts to write a checkpoint; returns once the state may be changed.

    Args:
      step: The step that the state describes.
      state: May be donated to the next step once this returns.
      progress: What else a continued run needs; JSON.
    """
    metadata: dict[str, Any] = progress | {
      "digests": digests_lib.of_arrays(state)
      | {"progress": digests_lib.of_json(progress)}
    }
    # What went wrong in writing the checkpoint before is raised here, too.
    with disk.named(self.directory):
      self._checkpointer.save_async(
        step, state, force=True, custom_metadata=metadata
      )

  def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
    """Restores the newest readable checkpoint; unreadable ones move aside.

    Args:
      target: The state's shapes with the shardings to restore to.

    Returns:
      (state, progress), or None if there is no checkpoint at all.

    Raises:
      ValueError: If there are checkpoints and none can be read.
    """
    restored = _newest(self.directory, lambda _: target, self._set_aside)
    return None if restored is None else restored[1:]

  def _set_aside(self, step: int) -> None:
    # Closed first: orbax keeps its own list of the steps.
    self._checkpointer.close()
    processes.wait_for_all("closed")
    if processes.is_main():
      _move_aside(self.directory / str(step))
    processes.wait_for_all("set aside")
    self._checkpointer = self._open()

  def wait(self) -> None:
    """Waits until every checkpoint started is on disk."""
    with disk.named(self.directory):
      self._checkpointer.wait()

  def close(self) -> None:
    """Waits, and releases the directory."""
    with disk.named(self.directory):
      self._checkpointer.close()


@contextlib.contextmanager
def opened(
  directory: paths.Path, config: training.CheckpointConfig
) -> Iterator[Checkpoints]:
  """Opens a run's checkpoints and closes them again, also after an error."""
  checkpoints = Checkpoints(directory, config)
  try:
    yield checkpoints
  finally:
    checkpoints.close()


def load_part(
  directory: paths.Path,
  part: str,
  shardings_of: Callable[[Any], Any],
  step: int | None = None,
) -> tuple[int, Any]:
  """Reads a part of a run's checkpoint, as it was stored.

  It needs neither the network nor the optimizer, reads nothing but the part,
  and changes nothing in the directory: the run may still be training.

  Args:
    directory: The run's checkpoints.
    part: The part of the state, e.g. "ema".
    shardings_of: Shapes of the part -> shardings.
    step: That of the checkpoint; None for the newest that can be read.

  Returns:
    (step, nested dicts of arrays).

  Raises:
    ValueError: If there is no checkpoint, or it cannot be read.
  """

  def target_of(stored: Any) -> Any:
    target = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored)
    target[part] = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      stored[part],
      shardings_of(stored[part]),
    )
    return target

  if step is not None:
    loaded = _of_step(directory, step, target_of)
  else:
    loaded = _newest(directory, target_of)
  if loaded is None:
    raise ValueError(f"{directory}: there is no checkpoint yet")
  step, state, _ = loaded
  return step, state[part]


def _newest(
  directory: paths.Path,
  target_of: TargetFn,
  set_aside: Callable[[int], None] = lambda step: None,
) -> tuple[int, Any, dict[str, Any]] | None:
  """The newest readable (step, state, progress); None if there is no step."""
  listed = steps(directory)
  for step in reversed(listed):
    try:
      return step, *_load(directory / str(step), target_of)
    except Unreadable as error:
      _log.warning(
        "checkpoint %d is unreadable (%s); falling back to the one before",
        step,
        error,
      )
      set_aside(step)
  if exist(directory):
    raise ValueError(
      f"none of the checkpoints in {directory} can be read; training sets such"
      " aside as unreadable-*. Remove those to begin anew."
    )
  return None


def _of_step(
  directory: paths.Path, step: int, target_of: TargetFn
) -> tuple[int, Any, dict[str, Any]]:
  """The (step, state, progress) of one checkpoint."""
  kept = steps(directory)
  if step not in kept:
    found = ", ".join(map(str, kept)) or "none"
    raise ValueError(f"step={step!r}: {directory} has the steps {found}")
  try:
    return step, *_load(directory / str(step), target_of)
  except Unreadable as error:
    raise ValueError(
      f"step={step}: the checkpoint cannot be read: {error}"
    ) from None


def _load(path: paths.Path, target_of: TargetFn) -> tuple[Any, dict[str, Any]]:
  """Reads and checks a checkpoint; all processes agree on the outcome."""
  problem, loaded = "another process cannot read it", None
  try:
    loaded = _read(path, target_of)
  # Damage surfaces as anything from a missing file to a JSON error.
  except Exception as error:
    problem = shown.cause(error)
  if not processes.everywhere(loaded is not None) or loaded is None:
    raise Unreadable(problem)
  state, progress, digests = loaded
  wrong = [
    name
    for name, value in digests_lib.of_arrays(state).items()
    if digests.get(name) != value
  ]
  if wrong:
    raise Unreadable(f"{', '.join(wrong[:3])}: not what was written")
  return state, progress


def _read(
  path: paths.Path, target_of: TargetFn
) -> tuple[Any, dict[str, Any], dict[str, int]]:
  """Reads this process's part: (state, progress, digests)."""
  with orbax_directory.reading(path), _context(alone=True):
    stored = ocp.metadata(str(path))
    orbax_directory.check_size(path, stored.metadata)
    metadata: Any = stored.custom_metadata
    if not isinstance(metadata, dict) or "digests" not in metadata:
      raise ValueError("its metadata is damaged")
    progress = {k: v for k, v in metadata.items() if k != "digests"}
    digests = metadata["digests"]
    if digests["progress"] != digests_lib.of_json(progress):
      raise ValueError("its metadata is damaged")
    return ocp.load(str(path), target_of(stored.metadata)), progress, digests


def steps(directory: paths.Path) -> list[int]:
  """Steps that have a checkpoint, oldest first, as process 0 lists them."""
  listed = _listed(directory)
  # The count goes first: what is agreed on has one shape on all processes.
  count = int(processes.agree(np.int32(len(listed))))
  if not count:
    return []
  shared = processes.agree(np.resize(np.array(listed or [0], np.int32), count))
  return [int(step) for step in shared]


def exist(directory: paths.Path) -> bool:
  """Whether a run saved anything there, as process 0 sees it."""
  # Those set aside count too: to begin anew is the user's decision.
  return bool(steps(directory)) or bool(
    processes.agree(any(directory.glob("unreadable-*")))
  )


def _listed(directory: paths.Path) -> list[int]:
  """The steps this process sees, of whole checkpoints.

  Unfinished ones carry a suffix; in a bucket, where nothing can be renamed at
  once, they lack the object that orbax writes last.
  """
  if not directory.is_dir():
    return []
  found = [path for path in directory.iterdir() if path.name.isdigit()]
  if not isinstance(directory, pathlib.Path):
    found = [path for path in found if (path / _COMMITTED).exists()]
  return sorted(int(path.name) for path in found)


def _context(*, alone: bool = False) -> ocp.Context:
  """Uncompressed arrays; `alone`, no process waits for one that cannot read."""
  context = ocp.Context()
  context.array.saving.use_compression = False
  if alone:
    me, options = jax.process_index(), context.multiprocessing
    options.primary_host, options.active_processes = me, {me}
    options.barrier_sync_key_prefix = f"process_{me}"
  return context


def _move_aside(path: paths.Path) -> None:
  """Nothing is thrown away, and the step can be written again."""
  names = (f"unreadable-{path.name}-{n}" for n in itertools.count())
  path.rename(
    next(path.parent / n for n in names if not (path.parent / n).exists())
  )
