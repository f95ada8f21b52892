"""Several processes: start-up, agreement, stopping, and how a job ends.

One process alone runs the same code: it agrees with itself.
"""

import ctypes
import itertools
import os
import pathlib
import signal
import sys
import time
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gmem_jax.parallel import jobs, peers

_line: peers.Peers | None = None  # to the other processes; None: alone

# Seconds that a process which failed waits for news of another one: a broken
# collective is but the echo of a process that is gone.
GRACE = 1.0


def start(
  job: jobs.Job, *, seconds: float, card: Mapping[str, Any], silence: float
) -> None:
  """Brings the processes together; afterwards jax sees all their devices.

  From then on a process that fails or is killed ends all of them, each with one
  message.

  Args:
    job: The processes.
    seconds: How long to wait for those that are not there yet.
    card: What must be the same on all of them; JSON.
    silence: Seconds without a sign of life after which a process is gone.

  Raises:
    ValueError: Naming the processes that are missing or do not fit.
  """
  global _line
  line = peers.Peers(
    job.watch_address,
    job.index,
    job.count,
    card=dict(card) | {"jax": jax.__version__},
    on_end=end_process,
    beat=silence / 12,
    silence=silence,
  )
  line.join(seconds)
  _line = line
  # The line carries requests to stop, and orbax would disturb jax's own.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    job.coordinator,
    job.count,
    job.index,
    local_device_ids=None
    if job.local_devices is None
    else list(job.local_devices),
    initialization_timeout=int(max(seconds, 30)),
    # Ours is faster and says who; jax's is the second net.
    heartbeat_timeout_seconds=int(max(2 * silence, 20)),
  )
  _outlive_abort()


def end_process(message: str, status: int) -> None:
  """Ends this process at once: its collectives would wait for ever.

  Args:
    message: Why.
    status: The exit status.
  """
  sys.stdout.flush()
  print(f"\ngmem_jax: {message}", file=sys.stderr, flush=True)
  os._exit(status)


def _outlive_abort() -> None:
  """Lets the watching thread speak when jax aborts the process.

  Where the coordinator is gone, a thread of jax's aborts the process within
  milliseconds, often before our thread had its turn.
  """
  handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)

  def aborted(_):
    fail("aborted by jax or XLA; the reason stands above", 1)

  handler = handler_type(aborted)
  _KEPT.append(handler)  # C does not count references.
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, handler_type]
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, handler)


_KEPT: list[Any] = []


def finish() -> None:
  """Ends a job that went well: waits for the others, then lets go of them."""
  global _line
  if _line is not None:
    jax.distributed.shutdown()
    _line.leave()
    _line = None


def fail(message: str, status: int) -> int:
  """Says why this process ends; all others end with it, and say it, too.

  Args:
    message: Why.
    status: The exit status.

  Returns:
    The status, for a process alone; among several the process ends here.
  """
  if _line is not None:
    if _line.ended.wait(GRACE):
      time.sleep(GRACE)  # The watching thread is saying it.
    _line.tell(f"process {_line.index}: {message}", status)
    end_process(message, status)
  print(f"gmem_jax: {message}", file=sys.stderr, flush=True)
  return status


def is_joined() -> bool:
  """Whether this process is one of several."""
  return _line is not None


def is_main() -> bool:
  """Whether this process writes what only one may write."""
  return jax.process_index() == 0


def agree(value: Any) -> Any:
  """Process 0's value, on all processes.

  Args:
    value: A number or an array, of the same shape on all.
  """
  if jax.process_count() == 1:
    return value
  return multihost_utils.broadcast_one_to_all(value)


def everywhere(value: bool) -> bool:
  """Whether something holds on all processes.

  Args:
    value: Whether it holds here.
  """
  if jax.process_count() == 1:
    return value
  found = multihost_utils.process_allgather(np.array(value))
  return bool(found.all())


def wait_for_all(name: str) -> None:
  """Waits until all processes are here.

  Args:
    name: Of the place; the same on all.
  """
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def check_shared(
  directory: pathlib.Path, key: str, seconds: float = 30.0
) -> None:
  """Checks that all processes see one directory; makes it if need be.

  Args:
    directory: The directory.
    key: The flag that names it.
    seconds: How long a slow network file system may take.

  Raises:
    ValueError: On all processes, if one of them does not see what process 0
      writes.
  """
  directory.mkdir(parents=True, exist_ok=True)
  if jax.process_count() == 1:
    return
  number = int(agree(np.int32(uuid.uuid4().int & 0x7FFFFFFF)))
  token = directory / f".shared-{number}"
  if is_main():
    token.write_text("seen by all processes of a run\n")
  wait_for_all("token")
  deadline, seen = time.monotonic() + seconds, False
  while not seen and time.monotonic() < deadline:
    # Listing, not asking for the file: NFS remembers that a file is absent.
    seen = token.name in os.listdir(directory)
    time.sleep(0 if seen else 0.2)
  seeing = multihost_utils.process_allgather(np.array(seen)).reshape(-1)
  if is_main():
    token.unlink(missing_ok=True)
  if not seeing.all():
    blind = ", ".join(str(i) for i in np.flatnonzero(~seeing)[:16])
    raise ValueError(
      f"{key}={directory} is not shared: process(es) {blind} do not see what"
      " process 0 writes there. All processes need the same directory."
    )


class StopRequest:
  """Notes SIGTERM on any process, so that the loop can save before it ends."""

  # Dispatches of all loops of this process: the others count the same.
  _calls = itertools.count(1)

  def __init__(self):
    self._received = False

  def __enter__(self) -> "StopRequest":
    self._previous = signal.signal(signal.SIGTERM, self._handle)
    return self

  def __exit__(self, *_) -> None:
    signal.signal(signal.SIGTERM, self._previous)

  def _handle(self, *_) -> None:
    self._received = True
    if _line is not None:
      _line.request_stop()

  def reached(self) -> bool:
    """Whether to stop now; all processes ask, once a dispatch."""
    if _line is None:
      return self._received
    return _line.reached(next(self._calls))
