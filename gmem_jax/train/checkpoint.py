"""Everything orbax, behind this file and `checkpoint_part`.

A checkpoint is the training state, uncompressed, with the progress and digests
as JSON. Orbax writes into a temporary directory and renames it when all hosts
are done: a step that is listed was written whole. What happens to it afterwards
the digests show: orbax notices a file that is missing or cut, but not a bit
that flipped.
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
from gmem_jax.files import weights
from gmem_jax.parallel import processes

_log = logging.getLogger(__name__)

policies = ocp.training.preservation_policies


class Unreadable(ValueError):
  """A checkpoint is damaged; all processes agree on that."""


def _context(*, alone: bool = False) -> ocp.Context:
  """Uncompressed arrays; `alone`, no process waits for one that cannot read."""
  context = weights.uncompressed()
  if alone:
    me, options = jax.process_index(), context.multiprocessing
    options.primary_host, options.active_processes = me, {me}
    options.barrier_sync_key_prefix = f"process_{me}"
  return context


class Checkpoints:
  """The checkpoints of one run."""

  def __init__(
    self, directory: pathlib.Path, config: training.CheckpointConfig
  ):
    """Opens the directory, which is made if need be.

    Args:
      directory: Where the checkpoints lie.
      config: What to keep.
    """
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
    self._set_aside_what_cannot_be_listed()
    self._checkpointer = self._open()

  def _set_aside_what_cannot_be_listed(self) -> None:
    """Orbax lists no checkpoint where one of them has broken metadata."""
    if processes.is_main() and self.directory.is_dir():
      for path in self.directory.iterdir():
        if not path.name.isdigit():
          continue
        try:
          with _context(alone=True):
            ocp.metadata(str(path))
        # Damage shows as anything from a missing file to a JSON error.
        except Exception as error:
          _log.warning("checkpoint %s: %s", path.name, root_cause(error))
          _move_aside(path)
    processes.wait_for_all("listable")

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, oldest first; as process 0 sees them."""
    found = sorted(c.step for c in self._checkpointer.checkpoints)
    count = int(processes.agree(np.int32(len(found))))
    steps = np.resize(np.array(found or [0], np.int32), count)
    return [int(step) for step in processes.agree(steps)] if count else []

  def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
    """Starts to write a checkpoint; returns once the state may be changed.

    Args:
      step: The step the state describes.
      state: The training state.
      progress: What else a continued run wants to know; JSON.
    """
    metadata: dict[str, Any] = progress | {
      "digests": weights.digests(state)
      | {"progress": weights.json_digest(progress)}
    }
    self._checkpointer.save_async(
      step, state, force=True, custom_metadata=metadata
    )

  def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
    """Restores the newest readable checkpoint; unreadable ones move aside.

    Args:
      target: The state's shapes with the shardings to restore to.

    Returns:
      (state, progress), or None where there is no checkpoint at all.

    Raises:
      ValueError: If there are checkpoints and none can be read.
    """
    return self._newest(lambda step: self._load(step, target))

  def restore_part(
    self, target: Any, part: Callable[[Any], Any], step: int | None = None
  ) -> tuple[int, Any] | None:
    """Restores a part of a checkpoint, reading no more.

    Args:
      target: The whole state's shapes with the shardings to restore to.
      part: The state -> the part that is wanted.
      step: The checkpoint; by default the newest readable one.

    Returns:
      (step, part), or None where there is no checkpoint at all.

    Raises:
      ValueError: If there are checkpoints and none can be read.
    """
    wanted = {id(leaf) for leaf in jax.tree.leaves(part(target))}
    partial = jax.tree.map(
      lambda leaf: leaf if id(leaf) in wanted else ocp.PLACEHOLDER, target
    )

    def load(step: int) -> tuple[int, Any]:
      return step, part(self._load(step, partial)[0])

    return self._newest(load) if step is None else load(step)

  def _load(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
    """Reads and checks a checkpoint; all processes find the same."""
    problem, found = "another process cannot read it", None
    try:
      found = self._read(step, target)
    # Damage shows as anything from a missing file to a JSON error.
    except Exception as error:
      problem = root_cause(error)
    if not processes.everywhere(found is not None) or found is None:
      raise Unreadable(problem)
    state, progress, digests = found
    wrong = [
      name
      for name, value in weights.digests(state).items()
      if digests.get(name) != value
    ]
    if wrong:
      raise Unreadable(f"{', '.join(wrong[:3])}: not what was written")
    return state, progress

  def _read(
    self, step: int, target: Any
  ) -> tuple[Any, dict[str, Any], dict[str, int]]:
    """Reads this process's part; returns (state, progress, digests)."""
    metadata: Any = self._checkpointer.metadata(step).custom_metadata
    if not isinstance(metadata, dict) or "digests" not in metadata:
      raise ValueError("its metadata is damaged")
    progress = {k: v for k, v in metadata.items() if k != "digests"}
    digests = metadata["digests"]
    if digests["progress"] != weights.json_digest(progress):
      raise ValueError("its metadata is damaged")
    with _context(alone=True):
      state = ocp.load(str(self.directory / str(step)), target)
    return state, progress, digests

  def _newest(self, load: Callable[[int], Any]) -> Any:
    """Loads the newest step that can be; sets aside those that cannot."""
    steps = self.steps()
    for step in reversed(steps):
      try:
        return load(step)
      except Unreadable as error:
        _log.warning(
          "checkpoint %d is unreadable (%s); falling back to the one before",
          step,
          error,
        )
        self._set_aside(step)
    # Also in a later run: to begin anew is the user's decision.
    if processes.agree(any(self.directory.glob("unreadable-*"))):
      raise ValueError(
        f"none of the checkpoints in {self.directory} can be read; they were"
        " set aside as unreadable-*. Remove those to begin anew."
      )
    return None

  def _set_aside(self, step: int) -> None:
    self._checkpointer.close()
    processes.wait_for_all("closed")
    if processes.is_main():
      _move_aside(self.directory / str(step))
    processes.wait_for_all("set aside")
    self._checkpointer = self._open()

  def wait(self) -> None:
    """Waits until what was started is on disk."""
    self._checkpointer.wait()

  def close(self) -> None:
    """Waits, and releases the directory."""
    self._checkpointer.close()


@contextlib.contextmanager
def opened(
  directory: pathlib.Path, config: training.CheckpointConfig
) -> Iterator[Checkpoints]:
  """Opens checkpoints and closes them again, also after an error.

  Args:
    directory: Where they lie.
    config: What to keep.
  """
  checkpoints = Checkpoints(directory, config)
  try:
    yield checkpoints
  finally:
    checkpoints.close()


def _move_aside(path: pathlib.Path) -> None:
  """Nothing is thrown away, but its step can be written again."""
  names = (f"unreadable-{path.name}-{n}" for n in itertools.count())
  path.rename(
    next(path.parent / n for n in names if not (path.parent / n).exists())
  )


def root_cause(error: BaseException) -> str:
  """The first line of the error that started a chain.

  Args:
    error: The last of it.
  """
  while error.__cause__ is not None:
    error = error.__cause__
  message = str(error).strip() or "no message"
  return f"{type(error).__name__}: {message.splitlines()[0][:300]}"
