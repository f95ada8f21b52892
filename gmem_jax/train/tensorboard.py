"""TensorBoard's files.

tensorboardX's SummaryWriter writes them in a thread, which a full disk ends
without a word: the training then waits for it for ever. Here they are written,
and fail, where the numbers come from.
"""

import contextlib
import logging
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gmem_jax.files import bucket, disk, paths

_log = logging.getLogger(__name__)

# Seconds between flushes, for those who watch.
FLUSH_EVERY = 120.0


class TensorBoard:
  """A file of events in a directory, which is created if need be."""

  def __init__(self, directory: paths.Path, purge_step: int | None = None):
    """Opens a new file; earlier files' events from `purge_step` on are void."""
    # Imported late: it imports PyTorch where that is installed, and no first
    # step should wait for that.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    protocol: Any = event_pb2  # Generated when it is imported.
    self._make, self._event = summary, protocol.Event
    self._directory = directory
    self._ending = contextlib.ExitStack()
    if isinstance(directory, pathlib.Path):
      directory.mkdir(parents=True, exist_ok=True)
      self._here = directory
    else:
      # An object cannot grow: this file is copied anew at each flush.
      temporary = tempfile.TemporaryDirectory(prefix="gmem_jax_")
      self._here = pathlib.Path(self._ending.enter_context(temporary))
    # The name has seconds and host alone, and would be another file's.
    unique = f".{time.time_ns()}"
    with disk.named(directory):
      self._file = event_file_writer.EventsWriter(
        str(self._here / "events"), unique
      )
    self._flushed = -FLUSH_EVERY  # The first event is seen at once.
    if purge_step is not None:
      start = protocol.SessionLog(status=protocol.SessionLog.START)
      self._write(purge_step, session_log=start)

  def __enter__(self) -> "TensorBoard":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def add_scalar(self, name: str, value: float, step: int) -> None:
    """Writes a number."""
    self._write(step, summary=self._make.scalar(name, value))

  def add_image(self, name: str, image: np.ndarray, step: int) -> None:
    """Writes a picture, uint8 [H, W, channels]."""
    made = self._make.image(name, image, dataformats="HWC")
    self._write(step, summary=made)

  def add_histogram(
    self, name: str, counts: np.ndarray, edges: np.ndarray, step: int
  ) -> None:
    """Writes how many values [n] were between edges [n + 1]."""
    full = np.flatnonzero(counts)
    middles = np.sqrt(edges[:-1] * edges[1:])
    made = self._make.histogram_raw(
      name,
      min=float(edges[full[0]]) if len(full) else 0.0,
      max=float(edges[full[-1] + 1]) if len(full) else 0.0,
      num=int(counts.sum()),
      # Of the places' middles, as the values themselves are not kept.
      sum=float(counts @ middles),
      sum_squares=float(counts @ middles**2),
      bucket_limits=edges[1:].tolist(),
      bucket_counts=counts.tolist(),
    )
    self._write(step, summary=made)

  def _write(self, step: int, **content: Any) -> None:
    event = self._event(wall_time=time.time(), step=step, **content)
    with disk.named(self._directory):
      self._file.write_event(event)
    if time.monotonic() - self._flushed > FLUSH_EVERY:
      self.flush()

  def flush(self) -> None:
    """Puts everything on disk, or into the bucket."""
    self._flushed = time.monotonic()
    with disk.named(self._directory):
      self._file.flush()
    self._copy()

  def close(self) -> None:
    """Flushes and closes the file."""
    with self._ending:
      with disk.named(self._directory):
        self._file.close()
      self._copy()

  def _copy(self) -> None:
    """Copies the file into the bucket, if it belongs there."""
    if not isinstance(self._directory, pathlib.Path):
      for file in self._here.iterdir():
        bucket.put(file, self._directory / file.name)


class Tracer:
  """Traces some of the steps, for the profilers of TensorBoard and XProf."""

  def __init__(self, steps: tuple[int, int] | None, directory: paths.Path):
    """Keeps what is to be traced: the steps after the first, until the second.

    A run that begins between them is traced from there on; None for nothing.
    """
    self._steps, self._directory = steps, directory
    self._tracing, self._temporary = False, None

  @contextlib.contextmanager
  def dispatch(self, step: int) -> Iterator[None]:
    """Marks the dispatch that follows on `step` steps."""
    if self._steps and not self._tracing:
      self._tracing = self._steps[0] <= step < self._steps[1]
      if self._tracing:
        jax.profiler.start_trace(self._here())
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield

  def reached(self, step: int, state: Any) -> None:
    """Ends the trace after its last step, when `state` has been computed."""
    if self._tracing and self._steps and step >= self._steps[1]:
      jax.block_until_ready(state)
      self.close()
      _log.info("step %d: a trace is in %s", step, self._directory)

  def close(self) -> None:
    """Ends the trace if there is one."""
    if self._tracing:
      self._tracing, self._steps = False, None
      jax.profiler.stop_trace()
      if self._temporary and not isinstance(self._directory, pathlib.Path):
        bucket.put_all(pathlib.Path(self._temporary.name), self._directory)
        self._temporary.cleanup()

  def _here(self) -> pathlib.Path:
    """Where a trace can be written: JAX knows no buckets."""
    if isinstance(self._directory, pathlib.Path):
      return self._directory
    self._temporary = tempfile.TemporaryDirectory(prefix="gmem_jax_")
    return pathlib.Path(self._temporary.name)
