"""Metrics: aggregated by clu, written by our writers, one progress line.

clu's own writers need TensorFlow; ours keep its method names. Names are public
interface: train/loss, eval/…, units in the name (perf/images_per_s).
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics

from gmem_jax.files import atomic

_log = logging.getLogger(__name__)


class NonFiniteError(RuntimeError):
  """The loss or the gradient became NaN or infinite."""


@jax.jit
def _fold(averages, bad_step, first_step, values):
  """Adds one dispatch's [k] values to the running averages, on the device."""
  averages = {
    name: averages[name].merge(clu_metrics.Average.from_model_output(value))
    for name, value in values.items()
  }
  bad = ~jnp.isfinite(jnp.stack(list(values.values()))).all(axis=0)
  this_bad = jnp.where(bad.any(), first_step + jnp.argmax(bad) + 1, -1)
  return averages, jnp.where(bad_step >= 0, bad_step, this_bad)


@dataclasses.dataclass(frozen=True)
class Closed:
  """The metrics of a finished interval, possibly still being computed.

  Attributes:
    step: The step at which the interval ended.
  """

  step: int
  _averages: Any
  _bad_step: Any

  def fetch(self) -> dict[str, float]:
    """Waits for the values and brings them to the host in one transfer.

    Returns:
      The means over the interval.

    Raises:
      NonFiniteError: If a value was not finite; names the first such step.
    """
    averages, bad_step = jax.device_get((self._averages, self._bad_step))
    if bad_step >= 0:
      raise NonFiniteError(
        f"a metric of step {int(bad_step)} is NaN or infinite; the last good"
        " checkpoint is kept. Lower optim.learning_rate or optim.clip_norm,"
        " or look at the data of that step."
      )
    return {k: float(v.total / v.count) for k, v in averages.items()}


class Interval:
  """Running means of the step's metrics, kept on the device."""

  def __init__(self):
    self._averages = None
    self._bad_step = jnp.array(-1, jnp.int32)

  def add(self, first_step: int, values: Mapping[str, jax.Array]) -> None:
    """Adds the metrics of one dispatch.

    Args:
      first_step: Steps taken before the dispatch.
      values: Name -> one value per step of the dispatch, [k].
    """
    if self._averages is None:
      self._averages = {name: clu_metrics.Average.empty() for name in values}
    self._averages, self._bad_step = _fold(
      self._averages,
      self._bad_step,
      jnp.array(first_step, jnp.int32),
      dict(values),
    )

  def close(self, step: int) -> Closed:
    """Ends the interval without waiting for it, and starts the next.

    Args:
      step: Steps taken so far.
    """
    closed = Closed(step, self._averages or {}, self._bad_step)
    self.__init__()
    return closed


def open_tensorboard(
  directory: pathlib.Path, purge_step: int | None = None
) -> Any:
  """A writer of TensorBoard's event files, tensorboardX's SummaryWriter.

  Imported only here: it imports PyTorch where that is installed, for which no
  first step should wait.

  Args:
    directory: Made if need be.
    purge_step: What is there of this step and later ones is void.
  """
  import tensorboardX

  return tensorboardX.SummaryWriter(str(directory), purge_step=purge_step)


class Writer:
  """Writes to metrics.jsonl and to TensorBoard; silent but on process 0."""

  def __init__(self, workdir: pathlib.Path, first_step: int):
    """Opens metrics.jsonl.

    Args:
      workdir: The run's directory.
      first_step: Steps already taken: what an interrupted run wrote about
        later ones is dropped, it will be written again.
    """
    self._jsonl = self._tensorboard = self._purge_step = None
    if jax.process_index() != 0:
      return
    path = workdir / "metrics.jsonl"
    kept = [r for r in read_jsonl(path) if r["step"] <= first_step]
    atomic.write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
    self._jsonl = path.open("a")
    self._directory = workdir / "tensorboard"
    self._purge_step = first_step + 1 if first_step else None

  def open(self) -> None:
    """Opens TensorBoard's file, if that was not done.

    To be called while the device has its first step to do, as `write_…` would
    do it otherwise, and somebody wait.
    """
    if self._jsonl is not None and self._tensorboard is None:
      self._tensorboard = open_tensorboard(self._directory, self._purge_step)

  def _board(self) -> Any:
    """TensorBoard's writer, opened."""
    self.open()
    return self._tensorboard

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes numbers.

    Args:
      step: The step they describe.
      scalars: Name -> number.
    """
    if self._jsonl is None:
      return
    self._jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
    self._jsonl.flush()
    for name, value in scalars.items():
      self._board().add_scalar(name, value, step)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes pictures to TensorBoard.

    Args:
      step: The step they describe.
      images: Name -> uint8 [H, W, channels].
    """
    if self._jsonl is not None:
      for name, image in images.items():
        self._board().add_image(name, image, step, dataformats="HWC")

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes texts to TensorBoard.

    Args:
      step: The step they describe.
      texts: Name -> Markdown.
    """
    if self._jsonl is not None:
      for name, text in texts.items():
        self._board().add_text(name, text, step)

  def flush(self) -> None:
    """Puts everything on disk."""
    if self._tensorboard is not None:
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._purge_step is not None:
      self.open()  # What is void is marked so, even if nothing follows.
    if self._jsonl is not None:
      self._jsonl.close()
    if self._tensorboard is not None:
      self._tensorboard.close()


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads a metrics file; a line cut off by a kill is left out.

  Args:
    path: metrics.jsonl; it may not exist.

  Returns:
    One dict a line, in order.
  """
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except json.JSONDecodeError:
      _log.warning("%s: a broken line was left out", path)
  return records
