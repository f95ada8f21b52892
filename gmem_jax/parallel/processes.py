"""Several processes: start-up, agreement, stopping, and how a job ends.

With one process every collective is a no-op.
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

_line: peers.Peers | None = None  # To the other processes; None: alone.

# Seconds that a failed process waits for news of another one: a collective
# mostly breaks because a process is gone, and that is what the user must read.
GRACE = 1.0


def start(
  job: jobs.Job, *, seconds: float, card: Mapping[str, Any], silence: float
) -> None:
  """Connects the processes; afterwards jax sees the devices of all.

  From then on a process that fails or is killed ends all of them, each with one
  message.

  Args:
    job: From `jobs.find`.
    seconds: How long to wait for processes that have not started yet.
    card: Settings that must be the same on all of them; JSON.
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
  # Requests to stop go over our line: jax's service also hears orbax's steps,
  # which count on another scale (see `stop_vote`).
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    job.coordinator,
    job.count,
    job.index,
    local_device_ids=None
    if job.local_devices is None
    else list(job.local_devices),
    initialization_timeout=int(max(seconds, 30)),
    # Our line is faster and names the process; jax's heartbeat is a fallback.
    heartbeat_timeout_seconds=int(max(2 * silence, 20)),
  )
  _outlive_abort()


def end_process(message: str, status: int) -> None:
  """Ends this process at once, with a message and an exit status."""
  # Not sys.exit: a thread that waits in a collective would never return.
  sys.stdout.flush()
  print(f"\ngmem_jax: {message}", file=sys.stderr, flush=True)
  os._exit(status)


def _outlive_abort() -> None:
  """Gives the watching thread time to report when jax aborts the process."""
  # When the coordinator is gone, a thread of jax's aborts the process within
  # milliseconds, often before our thread had its turn. libc's signal, because
  # Python's handlers run on the main thread, which waits in a collective.
  handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)

  def aborted(_):
    fail("aborted by jax or XLA; the reason is above", 1)

  handler = handler_type(aborted)
  _KEPT.append(handler)  # C holds no reference to it.
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, handler_type]
  libc.signal.restype = ctypes.c_void_p
  libc.signal(signal.SIGABRT, handler)


_KEPT: list[Any] = []


def finish() -> None:
  """Ends a job that succeeded: waits for the others, then disconnects."""
  global _line
  if _line is not None:
    jax.distributed.shutdown()
    _line.leave()
    _line = None


def fail(message: str, status: int) -> int:
  """Reports why this process ends; all others end with it, and report it, too.

  Returns:
    The status, for a process alone; one of several ends here.
  """
  if _line is not None:
    known = _line.ended.wait(GRACE)
    if known or not _line.tell(f"process {_line.index}: {message}", status):
      time.sleep(GRACE)  # The watching thread reports it and ends us.
    end_process(message, status)
  print(f"gmem_jax: {message}", file=sys.stderr, flush=True)
  return status


def is_joined() -> bool:
  """Whether this process is one of several."""
  return _line is not None


def index() -> int:
  """The number of this process; alone, no device is looked for."""
  return jax.process_index() if jax.distributed.is_initialized() else 0


def is_main() -> bool:
  """Whether this is the process that writes what only one may write."""
  return jax.process_index() == 0


def hardware() -> dict[str, str]:
  """What computes here, for records: {"backend": "gpu", "device": its kind}."""
  return {
    "backend": jax.default_backend(),
    "device": jax.devices()[0].device_kind,
  }


def hardware_line() -> str:
  """The same as text: "gpu, NVIDIA H100"."""
  return ", ".join(hardware().values())


def agree(value: Any) -> Any:
  """Process 0's value, a number or an array of one shape, on all processes."""
  if jax.process_count() == 1:
    return value
  return multihost_utils.broadcast_one_to_all(value)


def everywhere(value: bool) -> bool:
  """Whether `value` is true on all processes."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.process_allgather(np.array(value)).all())


def wait_for_all(name: str) -> None:
  """Waits until all processes are here; `name` is the same on all."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def check_shared(
  directory: pathlib.Path, key: str, seconds: float = 30.0
) -> None:
  """Checks that all processes see one directory; creates it if needed.

  Args:
    directory: Its path on this process.
    key: The flag that names it, for the message.
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
    # Listed, not opened: NFS caches that a file is absent.
    seen = token.name in os.listdir(directory)
    time.sleep(0 if seen else 0.2)
  seeing = multihost_utils.process_allgather(np.array(seen)).reshape(-1)
  if is_main():
    token.unlink(missing_ok=True)
  if not seeing.all():
    blind = ", ".join(str(i) for i in np.flatnonzero(~seeing)[:16])
    raise ValueError(
      f"{key}={directory}: must be shared by all processes, but process(es)"
      f" {blind} do not see what process 0 writes there"
    )


class StopRequest:
  """Notes signals on any process, so that the loop can save before it ends.

  Attributes:
    cause: The name of the first signal, or "another process".
  """

  # SIGINT is Ctrl-C, SIGHUP a terminal that was closed.
  _SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  # Dispatches of all loops of this process. Counted across loops, not by one,
  # so that the processes' numbers agree and only grow.
  _calls = itertools.count(1)

  def __init__(self):
    self._received = False
    self.cause = "another process"

  def __enter__(self) -> "StopRequest":
    self._previous = {
      number: signal.signal(number, self._handle)
      for number in self._SIGNALS
      # nohup, and shells for what runs in the background, have one ignored.
      if signal.getsignal(number) is not signal.SIG_IGN
    }
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _handle(self, number: int, _: Any) -> None:
    if not self._received:
      self._received, self.cause = True, signal.Signals(number).name
    if _line is not None:
      _line.request_stop()

  def reached(self) -> bool:
    """Whether to stop now; all processes call this once a dispatch."""
    if _line is None:
      return self._received
    return _line.reached(next(self._calls))
