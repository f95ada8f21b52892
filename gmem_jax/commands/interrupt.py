"""Ctrl-C: the first ends a command in one line, a second one at once."""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from gmem_jax.files import errors

# What a shell reports of a process that SIGINT has ended: 128 + 2.
STATUS = 130
# Seconds after which a command that has not ended yet says that it is about to.
PATIENCE = 1.0


def run(main: Callable[[], Any]) -> Any:
  """Runs a program's main function and returns what it returns.

  A first Ctrl-C raises KeyboardInterrupt in it, as always; if it does not take
  that as a request to stop, as training does, it ends with `STATUS` and a line.
  """
  _watch()
  try:
    return main()
  except KeyboardInterrupt:
    _say("interrupted")
    return STATUS


def _watch() -> None:
  """Makes a second Ctrl-C end the process."""
  # Not a handler of Python's: those wait until the main thread is back from
  # compiled code, which may take minutes. The pipe is written at once.
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  threading.Thread(target=_end, args=(reader,), daemon=True).start()


def _end(reader: int) -> None:
  """Waits for two interrupts in a pipe of signal numbers; ends the process."""
  _wait(reader)
  again, _, _ = select.select([reader], [], [], PATIENCE)
  if not again:
    _say("stopping; Ctrl-C again ends it at once")
  _wait(reader)
  os._exit(STATUS)


def _wait(reader: int) -> None:
  while os.read(reader, 1) != bytes([signal.SIGINT]):
    pass


def _say(text: str) -> None:
  # The terminal has shown ^C, and perhaps a line of progress.
  start = "\n" if sys.stderr.isatty() else ""
  errors.say(f"{start}gmem_jax: {text}", sys.stderr)
