"""Metrics of a run: averaged on the device, timed, written to files.

Names are public interface: train/loss, eval/…, units in the name
(perf/images_per_s).
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int32

from gmem_jax.files import appended, atomic, paths
from gmem_jax.train import tensorboard, wandb_board

_log = logging.getLogger(__name__)

# Called with the numbers of a step by name, as metrics.jsonl has them.
Callback = Callable[[int, Mapping[str, float]], object]


# Values of each step that also have a histogram, and its edges: eight to a
# decade; what is outside of them counts in the first or last place.
HISTOGRAMS = ("train/grad_norm",)
EDGES = (10.0 ** np.arange(-4, 4.01, 1 / 8)).astype(np.float32)


class NonFiniteError(RuntimeError):
  """The loss or the gradient became NaN or infinite."""


@jax.jit
def _fold(averages, counts, bad_step, first_step, values):
  """Adds one dispatch's [k] values to averages and counts, on the device."""
  from clu import metrics as clu_metrics

  counts = {
    name: count.at[
      jnp.searchsorted(EDGES[1:-1], values[name], side="right")
    ].add(1)
    for name, count in counts.items()
  }
  averages = {
    name: averages[name].merge(clu_metrics.Average.from_model_output(value))
    for name, value in values.items()
  }
  # The average tells that a step broke, but not which one was the first.
  bad = ~jnp.isfinite(jnp.stack(list(values.values()))).all(axis=0)
  this_bad = jnp.where(bad.any(), first_step + jnp.argmax(bad) + 1, -1)
  return averages, counts, jnp.where(bad_step >= 0, bad_step, this_bad)


@dataclasses.dataclass(frozen=True)
class Closed:
  """The metrics of a finished interval, possibly still being computed.

  Attributes:
    step: The step at which the interval ended.
  """

  step: int
  _averages: Any
  _counts: Any
  _bad_step: Any

  def fetch_histograms(self) -> dict[str, Int32[np.ndarray, " bins"]]:
    """Waits for the histograms: how many steps' values were between `EDGES`."""
    return jax.device_get(self._counts)

  def fetch(self) -> dict[str, float]:
    """Waits for the means over the interval, and brings them to the host.

    Raises:
      NonFiniteError: If a value was not finite; names the first such step.
    """
    # Fetched together: each transfer has a latency, and these are scalars.
    averages, bad_step = jax.device_get((self._averages, self._bad_step))
    if bad_step >= 0:
      raise NonFiniteError(
        f"a metric of step {int(bad_step)} is NaN or infinite; the last good"
        " checkpoint is kept. Lower config.optim.learning_rate (of a prior:"
        " config.prior.learning_rate) or config.optim.clip_norm, or look at the"
        " data of that step."
      )
    return {k: float(v.total / v.count) for k, v in averages.items()}


class Interval:
  """Running means and histograms of metrics, kept on the device."""

  def __init__(self):
    self._averages = self._counts = None
    self._bad_step = jnp.array(-1, jnp.int32)

  def add(self, first_step: int, values: Mapping[str, jax.Array]) -> None:
    """Adds a dispatch: per name one value a step, [k], after `first_step`."""
    from clu import metrics as clu_metrics

    if self._averages is None:
      self._averages = {name: clu_metrics.Average.empty() for name in values}
      self._counts = {
        name: jnp.zeros(len(EDGES) - 1, jnp.int32)
        for name in HISTOGRAMS
        if name in values
      }
    self._averages, self._counts, self._bad_step = _fold(
      self._averages,
      self._counts,
      self._bad_step,
      jnp.array(first_step, jnp.int32),
      dict(values),
    )

  def close(self, step: int) -> Closed:
    """Ends the interval after `step` steps, without waiting for its values."""
    return Closed(
      step, self._averages or {}, self._counts or {}, self._bad_step
    )


class Clock:
  """Seconds of training, over all restarts, without evaluation."""

  def __init__(self, step: int, seconds: float, batch_size: int):
    """Starts at `step` steps that took `seconds` in earlier starts."""
    self._start = time.monotonic() - seconds
    self._batch_size = batch_size
    self._lap = step, seconds

  @property
  def seconds(self) -> float:
    """Seconds of training so far."""
    return time.monotonic() - self._start

  def lap(self, step: int) -> dict[str, float]:
    """Rates since the last lap, and the seconds until `step`."""
    (first, then), now = self._lap, self.seconds
    self._lap = step, now
    per_second = (step - first) / max(now - then, 1e-9)
    return {
      "perf/steps_per_s": per_second,
      "perf/images_per_s": per_second * self._batch_size,
      "perf/train_seconds": now,
    }

  @contextlib.contextmanager
  def paused(self):
    """Leaves out the time spent inside."""
    began = time.monotonic()
    yield
    self._start += time.monotonic() - began


class Writer:
  """Writes to metrics.jsonl and TensorBoard, on process 0 only.

  clu's own writers need TensorFlow; the methods have their names.
  """

  def __init__(
    self,
    workdir: paths.Path,
    first_step: int,
    callbacks: Sequence[Callback] = (),
    board: wandb_board.Board | None = None,
  ):
    """Opens metrics.jsonl.

    Args:
      workdir: The run's directory.
      first_step: Steps already taken. Records of later ones, which a killed run
        wrote after its last checkpoint, are dropped: they come again.
      callbacks: Told what is written, on process 0 too.
      board: Gets numbers and pictures, too.
    """
    self._callbacks, self._board = callbacks, board
    self._jsonl = self._tensorboard = self._purge_step = None
    if jax.process_index() != 0:
      return
    path = workdir / "metrics.jsonl"
    kept = [r for r in read_jsonl(path) if r["step"] <= first_step]
    self._jsonl = appended.Appended(
      path, "".join(json.dumps(r) + "\n" for r in kept)
    )
    self._directory = workdir / "tensorboard"
    # What a try that got to no checkpoint has left is void, too.
    if first_step or self._directory.exists():
      self._purge_step = first_step + 1

  def open(self) -> Any:
    """TensorBoard's writer, which is opened the first time.

    Best called while the device is busy with its first step; otherwise the
    first `write_…` does it while the user waits.
    """
    if self._jsonl is not None and self._tensorboard is None:
      self._tensorboard = tensorboard.TensorBoard(
        self._directory, self._purge_step
      )
    return self._tensorboard

  def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
    """Writes the numbers of a step by name."""
    if self._jsonl is None:
      return
    # The file first, and flushed: a failing TensorBoard must not lose the row.
    self._jsonl.write(json.dumps({"step": step, **scalars}) + "\n")
    for name, value in scalars.items():
      self.open().add_scalar(name, value, step)
    if self._board is not None:
      self._board.write_scalars(step, scalars)
    for callback in self._callbacks:
      callback(step, scalars)

  def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes uint8 pictures [H, W, channels] by name, not to metrics.jsonl."""
    if self._jsonl is not None:
      for name, image in images.items():
        self.open().add_image(name, image, step)
      if self._board is not None:
        self._board.write_images(step, images)

  def write_histograms(
    self, step: int, histograms: Mapping[str, np.ndarray]
  ) -> None:
    """Writes counts between `EDGES` by name, to TensorBoard only."""
    if self._jsonl is not None:
      for name, counts in histograms.items():
        self.open().add_histogram(f"{name}/histogram", counts, EDGES, step)

  def flush_scalars(self) -> None:
    """Puts metrics.jsonl into the bucket; on a disk it always is."""
    if self._jsonl is not None:
      self._jsonl.flush()

  def flush(self) -> None:
    """Puts everything on disk, or into the bucket."""
    self.flush_scalars()
    if self._tensorboard is not None:
      self._tensorboard.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._purge_step is not None:
      self.open()  # Marks what is void, even if nothing follows.
    if self._jsonl is not None:
      self._jsonl.close()
    if self._tensorboard is not None:
      self._tensorboard.close()
    if self._board is not None:
      self._board.close()


def read_jsonl(path: paths.Path) -> list[dict[str, Any]]:
  """Reads a metrics file, which may be absent; one dict per line, in order."""
  if not path.exists():
    return []
  records = []
  # A kill can cut off the line that was being written, and a crash of the
  # machine can leave any bytes there.
  for line in path.read_bytes().decode(errors="replace").splitlines():
    try:
      record = json.loads(line)
      records.append(atomic.check_keys(record, {"step": int}, str(path)))
    except (ValueError, RecursionError):
      _log.warning("%s: a broken line was left out", path)
  return records
