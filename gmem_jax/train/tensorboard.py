"""TensorBoard's files.

tensorboardX's SummaryWriter writes them in a thread, which a full disk ends
without a word: the training then waits for it for ever. Here they are written,
and fail, where the numbers come from.
"""

import pathlib
import time
from typing import Any

import numpy as np

from gmem_jax.files import disk

# Seconds between flushes, for those who watch.
FLUSH_EVERY = 120.0


class TensorBoard:
  """A file of events in a directory, which is created if need be."""

  def __init__(self, directory: pathlib.Path, purge_step: int | None = None):
    """Opens a new file; earlier files' events from `purge_step` on are void."""
    # Imported late: it imports PyTorch where that is installed, and no first
    # step should wait for that.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2

    protocol: Any = event_pb2  # Generated when it is imported.
    self._make, self._event = summary, protocol.Event
    self._directory = directory
    directory.mkdir(parents=True, exist_ok=True)
    # The name has seconds and host alone, and would be another file's.
    unique = f".{time.time_ns()}"
    with disk.named(directory):
      self._file = event_file_writer.EventsWriter(
        str(directory / "events"), unique
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

  def _write(self, step: int, **content: Any) -> None:
    event = self._event(wall_time=time.time(), step=step, **content)
    with disk.named(self._directory):
      self._file.write_event(event)
    if time.monotonic() - self._flushed > FLUSH_EVERY:
      self.flush()

  def flush(self) -> None:
    """Puts everything on disk."""
    self._flushed = time.monotonic()
    with disk.named(self._directory):
      self._file.flush()

  def close(self) -> None:
    """Flushes and closes the file."""
    with disk.named(self._directory):
      self._file.close()
