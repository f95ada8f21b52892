"""Text files that grow, line by line."""

import os
import pathlib
import time

from gmem_jax.files import atomic, disk, paths

# Seconds between copies of a file in a bucket, which are of the whole file.
EVERY = 30.0


class Appended:
  """A file that is open for appending.

  On a disk a line is there once it was written. An object cannot grow: in a
  bucket the file is written anew, at most every `EVERY` seconds and at `flush`.
  """

  def __init__(self, path: paths.Path, text: str):
    """Writes the file anew, whole or not at all: with this text."""
    self._path, self._text, self._written = path, text, time.monotonic()
    self._is_dirty = False
    atomic.write_text(path, text)
    self._file = path.open("a") if isinstance(path, pathlib.Path) else None

  def write(self, line: str) -> None:
    """Appends a line, which ends in a newline."""
    if self._file is not None:
      with disk.named(os.fspath(self._path)):
        self._file.write(line)
        self._file.flush()
      return
    self._text, self._is_dirty = self._text + line, True
    if time.monotonic() - self._written > EVERY:
      self.flush()

  def flush(self) -> None:
    """Writes what a bucket does not have yet."""
    if self._is_dirty:
      atomic.write_text(self._path, self._text)
      self._is_dirty, self._written = False, time.monotonic()

  def close(self) -> None:
    """Flushes and closes the file."""
    self.flush()
    if self._file is not None:
      self._file.close()
