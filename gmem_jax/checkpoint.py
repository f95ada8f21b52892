"""Everything orbax, behind one file.

A checkpoint is the training state, uncompressed, with the resolved config and
the progress as JSON. Orbax writes into a temporary directory and renames it
when all hosts are done: a step that is listed was written whole.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

_log = logging.getLogger(__name__)

policies = ocp.training.preservation_policies


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When checkpoints are written and which are kept.

  Attributes:
    every: Steps between checkpoints; the last step always has one.
    keep_latest: How many of the newest are kept.
    keep_every: Checkpoints at multiples of this step are kept for ever; 0 for
      none.
  """

  every: int
  keep_latest: int
  keep_every: int

  def __post_init__(self):
    if self.every < 1 or self.keep_latest < 1 or self.keep_every < 0:
      raise ValueError(
        f"checkpoint.every={self.every}, .keep_latest={self.keep_latest},"
        f" .keep_every={self.keep_every}: the first two must be at least 1,"
        " the last not negative"
      )


def _context() -> ocp.Context:
  """Uncompressed arrays: several times faster, a few percent larger."""
  context = ocp.Context()
  context.array.saving.use_compression = False
  return context


class Checkpoints:
  """The checkpoints of one run."""

  def __init__(self, directory: pathlib.Path, config: CheckpointConfig):
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
    self._checkpointer = self._open()

  def steps(self) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    return sorted(c.step for c in self._checkpointer.checkpoints)

  def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
    """Starts to write a checkpoint; returns once the state may be changed.

    Args:
      step: The step the state describes.
      state: The training state.
      progress: What else a continued run wants to know; JSON.
    """
    self._checkpointer.save_async(
      step, state, force=True, custom_metadata=progress
    )

  def restore(self, target: Any) -> tuple[Any, dict[str, Any]] | None:
    """Restores the newest readable checkpoint.

    An unreadable one is moved aside, so that its step can be written again.

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
    progress = self._checkpointer.metadata(step).custom_metadata
    if not isinstance(progress, dict) or not progress:
      raise ValueError("its metadata is damaged")
    return self._checkpointer.load(step, target), progress

  def _newest(self, load: Callable[[int], Any]) -> Any:
    """Loads the newest step that can be; sets aside those that cannot."""
    steps = self.steps()
    for step in reversed(steps):
      try:
        return load(step)
      # Damage shows as anything from a missing file to a JSON error.
      except Exception as error:
        _log.warning(
          "checkpoint %d is unreadable (%s); falling back to the one before",
          step,
          _root_cause(error),
        )
        self._set_aside(step)
    if steps:
      raise ValueError(
        f"none of the checkpoints {steps} in {self.directory} can be read;"
        " they were set aside as unreadable-*"
      )
    return None

  def _set_aside(self, step: int) -> None:
    self._checkpointer.close()
    source = self.directory / str(step)
    for n in range(1000):
      aside = self.directory / f"unreadable-{step}-{n}"
      if not aside.exists():
        source.rename(aside)
        break
    self._checkpointer = self._open()

  def wait(self) -> None:
    """Waits until what was started is on disk."""
    self._checkpointer.wait()

  def close(self) -> None:
    """Waits, and releases the directory."""
    self._checkpointer.close()


@contextlib.contextmanager
def opened(
  directory: pathlib.Path, config: CheckpointConfig
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


def load_newest(
  directory: pathlib.Path,
  part: str,
  place: Callable[[Any], Any],
) -> tuple[int, Any]:
  """Reads a part of a run's newest checkpoint, in the shapes that it has.

  Args:
    directory: Where the run's checkpoints lie.
    part: The part of the state, e.g. "ema".
    place: Arrays' metadata -> shardings.

  Returns:
    (step, nested dicts of arrays).

  Raises:
    ValueError: If there is no checkpoint, or it cannot be read.
  """
  if not directory.is_dir():
    raise ValueError(f"{directory}: no such directory of checkpoints")
  checkpointer = ocp.training.Checkpointer(str(directory))
  try:
    steps = [c.step for c in checkpointer.checkpoints]
    if not steps:
      raise ValueError(f"{directory}: there is no checkpoint yet")
    step = max(steps)
    stored: Any = checkpointer.metadata(step).metadata
    target = jax.tree.map(lambda _: ocp.PLACEHOLDER, stored)
    target[part] = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      stored[part],
      place(stored[part]),
    )
    loaded: Any = checkpointer.load(step, target)
    return step, loaded[part]
  except ValueError:
    raise
  # Damage shows as anything from a missing file to a JSON error.
  except Exception as error:
    raise ValueError(
      f"{directory}: its newest checkpoint cannot be read"
      f" ({_root_cause(error)})"
    ) from None
  finally:
    checkpointer.close()


def save_tree(path: pathlib.Path, tree: Any, metadata: dict[str, Any]) -> None:
  """Writes one pytree of arrays with JSON beside it, atomically.

  Args:
    path: Directory to write; replaced if it exists.
    tree: Arrays.
    metadata: JSON.
  """
  with _context():
    ocp.save(str(path), tree, overwrite=True, custom_metadata=metadata)


def load_tree(
  path: pathlib.Path, sharding: jax.sharding.Sharding
) -> tuple[Any, dict[str, Any]]:
  """Reads what `save_tree` wrote.

  Args:
    path: The directory.
    sharding: Where every array goes.

  Returns:
    (nested dicts of arrays, metadata).

  Raises:
    ValueError: If there is nothing of the kind.
  """
  if not path.is_dir():
    raise ValueError(f"{path}: no such checkpoint directory")
  with _context():
    stored = ocp.metadata(str(path))
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
      stored.metadata,
    )
    return ocp.load(str(path), target), _json_dict(stored.custom_metadata)


def read_metadata(path: pathlib.Path) -> dict[str, Any]:
  """Reads the JSON that `save_tree` wrote beside a tree.

  Args:
    path: The directory.
  """
  return _json_dict(ocp.metadata(str(path)).custom_metadata)


def _json_dict(value: Any) -> dict[str, Any]:
  if not isinstance(value, dict):
    raise ValueError(f"checkpoint metadata is {value!r}, not a table")
  return value


def _root_cause(error: BaseException) -> str:
  """The first line of the error that started a chain."""
  while error.__cause__ is not None:
    error = error.__cause__
  message = str(error).strip() or "no message"
  return f"{type(error).__name__}: {message.splitlines()[0][:300]}"


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a small file whole or not at all.

  Args:
    path: The file.
    text: Its new content.
  """
  temporary = path.with_name(f".{path.name}.tmp")
  temporary.write_text(text)
  temporary.replace(path)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON whole or not at all.

  Args:
    path: The file.
    value: Its new content.
  """
  write_text(path, json.dumps(value, indent=2) + "\n")
